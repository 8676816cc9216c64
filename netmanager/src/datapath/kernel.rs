//! The real datapath: netlink for links and routes, `nft` for rules, /proc for parameters.
//!
//! Works in the network namespace of the process, which its parent has put it into.

use super::conntrack::{self, Flows};
use super::link::{self, Common, Link};
use super::netns::{Connection, Netns};
use super::sysctl::{self, Forwarding, Opened};
use super::{Datapath, DatapathConfig, DatapathError, Endpoint, EndpointFailure, LINK_PREFIX, nft, sockets};
use async_trait::async_trait;
use roble_core::ports::Protocol;
use roble_daemon::failpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long a link that was looked at from both ends is taken as unchanged, if its node side is still there.
const TRUST: Duration = Duration::from_secs(20);

/// Largest packet of containers' links without a tunnel, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// The kernel's datapath, in the namespace of this process.
pub struct KernelDatapath {
    forwarding: Forwarding,
    seen: Mutex<Seen>,
}

/// What this process has found or made; only saves work, and is empty after a restart.
#[derive(Default)]
struct Seen {
    links: BTreeMap<String, SeenLink>,
    forgotten: BTreeSet<Ipv4Addr>,
    udp_ports: BTreeSet<u16>,
    rules: Option<Rules>,
}

/// Rules that were loaded, and what `nft` said was there afterwards.
struct Rules {
    loaded: String,
    listed: Listed,
}

enum Listed {
    Is(String),
    /// Running `nft` takes longer than the rest of an attachment, so nobody waits for this.
    Becoming(tokio::task::JoinHandle<Result<String, DatapathError>>),
}

struct SeenLink {
    addresses: Vec<IpAddr>,
    common: Common,
    index: u32,
    netns: (u64, u64),
    at: Instant,
}

impl KernelDatapath {
    /// Keeps what must be restored by [`clean_up`](Datapath::clean_up) in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            forwarding: Forwarding::new(state_dir.join("forwarding.json")),
            seen: Mutex::default(),
        }
    }
}

#[async_trait]
impl Datapath for KernelDatapath {
    async fn set(&self, config: &DatapathConfig) -> Result<Vec<EndpointFailure>, DatapathError> {
        let mut seen = self.seen.lock().await;
        let mut failures = Vec::new();
        let mut present = Vec::new();
        for endpoint in &config.endpoints {
            match Netns::open(&endpoint.netns) {
                Ok(netns) => present.push((endpoint, netns)),
                Err(error) => failures.push(EndpointFailure {
                    link: endpoint.link.clone(),
                    error,
                }),
            }
        }
        let opened = if present.is_empty() {
            Opened::default()
        } else {
            self.forwarding.plan()?
        };
        // Rules first: a link that is up without them could send from any address.
        let endpoints: Vec<_> = present.iter().map(|(endpoint, _)| *endpoint).collect();
        seen.load_rules(nft::render(&config.plan, &config.range, &endpoints, &opened))
            .await?;
        failpoint!("net.set.rules");
        self.forwarding.open(&opened)?;
        failpoint!("net.set.forwarding");

        let node = Connection::open()?;
        let mut links = our_links(&node).await?;
        for (name, link) in &links {
            if !endpoints.iter().any(|endpoint| endpoint.link.as_str() == name) {
                link::remove(&node.handle, link).await?;
                failpoint!("net.set.link-removed");
            }
        }
        let has_v6 = sysctl::has_v6();
        let both = |v4: Ipv4Addr| {
            let v6 = has_v6.then(|| config.plan.endpoint_v6(v4).into());
            [v4.into()].into_iter().chain(v6).collect::<Vec<IpAddr>>()
        };
        let common = Common {
            gateways: both(config.range.gateway()),
            mtu: DEFAULT_MTU,
        };
        for (endpoint, netns) in &present {
            let name = endpoint.link.as_str();
            let existing = links.remove(name);
            let addresses = both(endpoint.address);
            let mut link = SeenLink {
                addresses,
                common: common.clone(),
                index: existing.as_ref().map_or(0, |link| link.index),
                netns: netns.identity(),
                at: Instant::now(),
            };
            if seen.is_settled(name, &link, existing.as_ref()) {
                continue;
            }
            match link::ensure(
                &node.handle,
                netns,
                endpoint,
                &link.addresses,
                &common,
                existing.as_ref(),
            )
            .await
            {
                Ok(index) => {
                    link.index = index;
                    seen.links.insert(name.into(), link);
                }
                Err(error) => failures.push(EndpointFailure {
                    link: endpoint.link.clone(),
                    error,
                }),
            }
        }
        seen.links
            .retain(|name, _| endpoints.iter().any(|endpoint| endpoint.link.as_str() == name));
        seen.forget_flows(config, &endpoints);
        failpoint!("net.set.flows-forgotten");
        Ok(failures)
    }

    async fn clean_up(&self) -> Result<(), DatapathError> {
        *self.seen.lock().await = Seen::default();
        let links = async {
            let node = Connection::open()?;
            for link in our_links(&node).await?.values() {
                link::remove(&node.handle, link).await?;
            }
            Ok(())
        };
        // Links before rules: see `set`. Everything is tried, the first failure is told.
        let links = links.await;
        let forwarding = self.forwarding.restore();
        let rules = nft::load(&nft::render_removal()).await;
        links.and(forwarding).and(rules)
    }

    async fn listener(&self, protocol: Protocol, port: u16) -> Option<String> {
        sockets::listener(protocol, port)
    }
}

async fn our_links(node: &Connection) -> Result<BTreeMap<String, Link>, DatapathError> {
    let links = link::list(&node.handle).await?.into_iter();
    Ok(links
        .filter(|link| link.name.starts_with(LINK_PREFIX))
        .map(|link| (link.name.clone(), link))
        .collect())
}

impl Seen {
    /// Loads `text` unless it is in force already: loading sets the counters to zero.
    async fn load_rules(&mut self, text: String) -> Result<(), DatapathError> {
        if let Some(rules) = self.rules.take().filter(|rules| rules.loaded == text) {
            let listed = match rules.listed {
                Listed::Is(listed) => Some(listed),
                // Unknown if it failed; then the rules are loaded again.
                Listed::Becoming(listing) => listing.await.ok().and_then(Result::ok),
            };
            if let Some(listed) = listed
                && nft::list().await? == listed
            {
                self.rules = Some(Rules {
                    loaded: text,
                    listed: Listed::Is(listed),
                });
                return Ok(());
            }
            tracing::warn!("the rules were changed by somebody else and are loaded again");
        }
        nft::load(&text).await?;
        self.rules = Some(Rules {
            loaded: text,
            listed: Listed::Becoming(tokio::spawn(nft::list())),
        });
        Ok(())
    }

    /// Whether `wanted` was found to be so lately, with this link on the node's side.
    fn is_settled(&self, name: &str, wanted: &SeenLink, existing: Option<&Link>) -> bool {
        let (Some(known), Some(link)) = (self.links.get(name), existing) else {
            return false;
        };
        let same = known.addresses == wanted.addresses
            && known.common == wanted.common
            && known.netns == wanted.netns
            && known.index == link.index;
        same && link.up && link.mtu == wanted.common.mtu && known.at.elapsed() < TRUST
    }

    /// Forgets flows to and from resting addresses, and UDP flows that began before their port was published; each once.
    fn forget_flows(&mut self, config: &DatapathConfig, endpoints: &[&Endpoint]) {
        let udp: BTreeSet<_> = endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.ports)
            .filter(|port| port.protocol == Protocol::Udp)
            .map(|port| port.host)
            .collect();
        let resting = config.resting.difference(&self.forgotten);
        let flows = resting
            .flat_map(|v4| [IpAddr::from(*v4), config.plan.endpoint_v6(*v4).into()])
            .flat_map(|address| [Flows::AnsweredBy(address), Flows::BegunBy(address)])
            .chain(udp.difference(&self.udp_ports).flat_map(|port| {
                let port = *port;
                [false, true].map(|v6| Flows::UdpTo { port, v6 })
            }));
        for flows in flows {
            if let Err(error) = conntrack::forget(flows) {
                tracing::warn!(
                    ?flows,
                    error = &error as &dyn std::error::Error,
                    "tracked flows were not forgotten"
                );
            }
        }
        self.forgotten.clone_from(&config.resting);
        self.udp_ports = udp;
    }
}

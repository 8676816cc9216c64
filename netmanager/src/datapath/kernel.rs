//! The real datapath: netlink for links and routes, `nft` for rules, /proc for parameters.
//!
//! Works in the network namespace of the process, which its parent has put it into.

use super::conntrack::{self, Flows};
use super::lan;
use super::link::{self, Common, Link};
use super::miss;
use super::netns::{Connection, Netns};
use super::permits::{Flow, Permits};
use super::rules::Found;
use super::ruleset::{self, Ruleset};
use super::sealed::{self, Sealed};
use super::sysctl::{self, Forwarding};
use super::tunnel;
use super::{
    Counted, Datapath, DatapathConfig, DatapathError, Endpoint, EndpointFailure, InForce, LINK_PREFIX, LinkName, nft,
    rules, sockets,
};
use async_trait::async_trait;
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::Policy;
use roble_core::ports::Protocol;
use roble_daemon::failpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, oneshot};

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
    tunnel: Option<SeenTunnel>,
    sealed: Option<SeenSealed>,
    /// The device for misses: its index, the ranges that lead to it, its address, and when that was seen.
    miss: Option<(u32, Plan, Ipv4Addr, Instant)>,
    forgotten: BTreeSet<Ipv4Addr>,
    udp_ports: BTreeSet<u16>,
    /// Which backends stand behind each address of a service; `None` before the first time.
    served: Option<Served>,
    /// Who may call whom; `None` before the first time.
    permits: Option<Permits>,
    rules: Option<Rules>,
}

type Served = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// Rules that were loaded, and what `nft` said was there afterwards.
struct Rules {
    loaded: Arc<Ruleset>,
    /// While it stays, nobody has changed anything.
    generation: Option<u32>,
    /// The listing waits for this to go.
    waits: Option<oneshot::Sender<()>>,
    listed: Listed,
}

enum Listed {
    Is(String),
    /// Running `nft` takes longer than the rest of an attachment, so nobody waits for this, and it begins when the rest is
    /// done: it would take a core from that. `None`: somebody else was faster.
    Becoming(tokio::task::JoinHandle<Option<String>>),
}

struct SeenTunnel {
    tunnel: tunnel::Tunnel,
    nodes: Vec<super::RemoteNode>,
    common: Common,
    index: u32,
    at: Instant,
}

struct SeenSealed {
    sealed: Sealed,
    index: u32,
    at: Instant,
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
        let node = Connection::open()?;
        let mut links = our_links(&node).await?;
        let mut found = Found::default();
        if !present.is_empty() {
            found.opened = self.forwarding.plan()?;
            if !config.egress.lan {
                let ours = links.values().map(|link| link.index).collect();
                found.lan = lan::connected(&node.handle, &ours).await?;
            }
        }
        // Rules first: a link that is up without them could send from any address. New links are made meanwhile, not up.
        let endpoints: Vec<_> = present.iter().map(|(endpoint, _)| *endpoint).collect();
        let permits = Permits::of(config, &endpoints);
        let rules = rules::render(config, &endpoints, &permits, &found);
        let making = make_links(&node, &present, &links);
        let (loaded, made) = tokio::join!(seen.load_rules(rules), making);
        loaded?;
        links.extend(made);
        // At once: callers wait for it.
        seen.forget_unserved(config);
        seen.forget_forbidden(config, permits);
        failpoint!("net.set.rules");
        self.forwarding.open(&found.opened)?;
        failpoint!("net.set.forwarding");

        for (name, link) in &links {
            let is_device = (name == tunnel::LINK && config.tunnel.is_some())
                || (name == sealed::LINK && config.sealed.is_some())
                || (name == miss::LINK && config.misses.is_some());
            if !is_device && !endpoints.iter().any(|endpoint| endpoint.link.as_str() == name) {
                link::remove(&node.handle, link).await?;
                failpoint!("net.set.link-removed");
            }
        }
        let has_v6 = sysctl::has_v6();
        let both = |v4: Ipv4Addr| {
            let v6 = has_v6.then(|| config.plan.endpoint_v6(v4).into());
            [v4.into()].into_iter().chain(v6).collect::<Vec<IpAddr>>()
        };
        // Without its tunnel a node goes on alone.
        let underlay = match &config.tunnel {
            None => Ok(DEFAULT_MTU),
            Some(tunnel) => tunnel::underlay_mtu(&node.handle, tunnel.address).await,
        };
        let through = |underlay| config.tunnel.map_or(underlay, |tunnel| tunnel.mtu(underlay));
        let vxlan = through(*underlay.as_ref().unwrap_or(&DEFAULT_MTU));
        let sealed_mtu = match &config.sealed {
            None => vxlan,
            // Whoever seals finds out what is narrower on the way.
            Some(sealed) => {
                let underlay = tunnel::underlay_mtu(&node.handle, sealed.address).await;
                underlay.unwrap_or(DEFAULT_MTU).saturating_sub(sealed::OVERHEAD)
            }
        };
        let common = Common {
            gateways: both(config.range.gateway()),
            mtu: vxlan.min(sealed_mtu),
        };
        let device = links.get(tunnel::LINK);
        let tunnel_result = match underlay {
            Ok(_) => seen.ensure_tunnel(&node, config, &common, device).await,
            Err(error) => Err(error),
        };
        failures.extend(tunnel_result.err().map(|error| EndpointFailure {
            link: LinkName::tunnel(),
            error,
        }));
        let sealed_result = seen
            .ensure_sealed(&node, config, links.get(sealed::LINK), sealed_mtu)
            .await;
        failures.extend(sealed_result.err().map(|error| EndpointFailure {
            link: LinkName::sealed(),
            error,
        }));
        failpoint!("net.set.tunnel");
        let missed = seen.ensure_miss(&node, config, links.get(miss::LINK), has_v6).await;
        failures.extend(missed.err().map(|error| EndpointFailure {
            link: LinkName::miss(),
            error,
        }));
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
        if let Some(rules) = &mut seen.rules {
            rules.list();
        }
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
        let rules = nft::load(&ruleset::removal()).await;
        links.and(forwarding).and(rules)
    }

    async fn translated(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        let flows = tokio::task::spawn_blocking(conntrack::begun).await;
        match flows.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(flows) => flows,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "tracked flows were not listed");
                BTreeSet::new()
            }
        }
    }

    async fn counted(&self, plan: Plan) -> Counted {
        let asked = tokio::task::spawn_blocking(move || {
            let counted = || {
                Ok::<_, std::io::Error>(Counted {
                    counters: nft::counters()?,
                    flows: conntrack::tally(|to| plan.is_service(to))?,
                })
            };
            counted().unwrap_or_else(|error| {
                tracing::warn!(%error, "the kernel does not tell what it has counted");
                Counted::default()
            })
        });
        asked.await.unwrap_or_default()
    }

    async fn in_force(&self) -> Option<InForce> {
        let mut seen = self.seen.lock().await;
        let rules = seen.rules.as_mut()?;
        rules.settle().await;
        let is_whole = rules.are_in_force(nft::generation().ok()).await.unwrap_or(false);
        let rules = rules.loaded.clone();
        drop(seen);
        let node = Connection::open().ok()?;
        Some(InForce {
            rules,
            is_whole,
            links: link::list(&node.handle).await.ok()?,
        })
    }

    async fn listener(&self, protocol: Protocol, port: u16) -> Option<String> {
        sockets::listener(protocol, port)
    }
}

/// Makes the links that are not there. What cannot be made is left to [`link::ensure`], which says why.
async fn make_links(
    node: &Connection,
    present: &[(&Endpoint, Netns)],
    links: &BTreeMap<String, Link>,
) -> BTreeMap<String, Link> {
    let mut made = BTreeMap::new();
    for (endpoint, netns) in present
        .iter()
        .filter(|(endpoint, _)| !links.contains_key(endpoint.link.as_str()))
    {
        match link::make(&node.handle, netns, endpoint).await {
            Ok(link) => drop(made.insert(link.name.clone(), link)),
            Err(error) => {
                tracing::debug!(link = %endpoint.link, error = &error as &dyn std::error::Error, "link not made yet")
            }
        }
    }
    made
}

async fn our_links(node: &Connection) -> Result<BTreeMap<String, Link>, DatapathError> {
    let links = link::list(&node.handle).await?.into_iter();
    Ok(links
        .filter(|link| link.name.starts_with(LINK_PREFIX))
        .map(|link| (link.name.clone(), link))
        .collect())
}

impl Rules {
    /// `before`: the generation before this was loaded.
    fn loaded(loaded: Arc<Ruleset>, before: Option<u32>) -> Self {
        // Zero is left out. If somebody came in between, it will not be what is found next time.
        let generation = before.map(|before| before.checked_add(1).unwrap_or(1));
        let (waits, begin) = oneshot::channel();
        let listing = async move {
            // Sent, or dropped: either way it is time.
            let _ = begin.await;
            let listed = nft::list().await.ok()?;
            (nft::generation().ok() == generation).then_some(listed)
        };
        Self {
            loaded,
            generation,
            waits: Some(waits),
            listed: Listed::Becoming(tokio::spawn(listing)),
        }
    }

    /// Begins to ask the kernel what was loaded, unless that was begun.
    fn list(&mut self) {
        drop(self.waits.take());
    }

    /// Waits until the kernel has said what was loaded; it is empty if somebody else was faster.
    async fn settle(&mut self) {
        self.list();
        if let Listed::Becoming(listing) = &mut self.listed {
            let listed = listing.await.ok().flatten();
            self.listed = Listed::Is(listed.unwrap_or_default());
        }
    }

    /// Whether the kernel has them as they were loaded, in this generation of its tables. If not, they never are again.
    async fn are_in_force(&mut self, generation: Option<u32>) -> Result<bool, DatapathError> {
        if generation.is_some() && self.generation == generation {
            return Ok(true);
        }
        self.settle().await;
        let listed = match &mut self.listed {
            Listed::Is(listed) => std::mem::take(listed),
            Listed::Becoming(_) => String::new(),
        };
        let is_same = !listed.is_empty() && nft::list().await? == listed;
        if is_same {
            self.listed = Listed::Is(listed);
            self.generation = generation;
        }
        Ok(is_same)
    }
}

impl Drop for Listed {
    /// Of a listing that nobody will read the program is ended too.
    fn drop(&mut self) {
        if let Self::Becoming(listing) = self {
            listing.abort();
        }
    }
}

impl Seen {
    /// Brings the rules to `wanted`. What stays the same is not touched, so turns and counters go on; everything is
    /// replaced if it is not known what is there.
    async fn load_rules(&mut self, wanted: Ruleset) -> Result<(), DatapathError> {
        let before = nft::generation().ok();
        if let Some(mut rules) = self.rules.take() {
            if !rules.are_in_force(before).await? {
                tracing::warn!("the rules were changed by somebody else and are loaded again");
                return self.replace_rules(wanted).await;
            }
            if *rules.loaded == wanted {
                self.rules = Some(rules);
                return Ok(());
            }
            if let Some(changes) = wanted.text_from(&rules.loaded) {
                match nft::load(&changes).await {
                    Ok(()) => {
                        self.rules = Some(Rules::loaded(Arc::new(wanted), before));
                        return Ok(());
                    }
                    Err(error) => tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the rules could not be changed and are replaced"
                    ),
                }
            }
        }
        self.replace_rules(wanted).await
    }

    async fn replace_rules(&mut self, wanted: Ruleset) -> Result<(), DatapathError> {
        let before = nft::generation().ok();
        nft::load(&wanted.text()).await?;
        self.rules = Some(Rules::loaded(Arc::new(wanted), before));
        Ok(())
    }

    /// Brings the tunnel to what it shall be, unless it was found so lately.
    async fn ensure_tunnel(
        &mut self,
        node: &Connection,
        config: &DatapathConfig,
        common: &Common,
        existing: Option<&Link>,
    ) -> Result<(), DatapathError> {
        let known = self.tunnel.take();
        let Some(tunnel) = config.tunnel else {
            return Ok(());
        };
        let is_settled = |known: &SeenTunnel, link: &Link| {
            let same = known.tunnel == tunnel && known.nodes == config.nodes && known.common == *common;
            same && known.index == link.index && link.up && link.mtu == common.mtu && known.at.elapsed() < TRUST
        };
        if let (Some(known), Some(link)) = (known, existing)
            && is_settled(&known, link)
        {
            self.tunnel = Some(known);
            return Ok(());
        }
        let has_v6 = sysctl::has_v6();
        let index = tunnel::ensure(&node.handle, &tunnel, config, existing, has_v6, common.mtu).await?;
        self.tunnel = Some(SeenTunnel {
            tunnel,
            nodes: config.nodes.clone(),
            common: common.clone(),
            index,
            at: Instant::now(),
        });
        Ok(())
    }

    /// Brings the way into the encrypted tunnel to what it shall be, unless it was found so lately.
    async fn ensure_sealed(
        &mut self,
        node: &Connection,
        config: &DatapathConfig,
        device: Option<&Link>,
        mtu: u32,
    ) -> Result<(), DatapathError> {
        let known = self.sealed.take();
        let Some(sealed) = &config.sealed else { return Ok(()) };
        let Some(device) = device else {
            let is_needed = !sealed.blocks.is_empty();
            return if is_needed {
                Err(DatapathError::NoDevice)
            } else {
                Ok(())
            };
        };
        let is_settled = |known: &SeenSealed| {
            let same = known.sealed == *sealed && known.index == device.index;
            same && device.up && device.mtu == mtu && known.at.elapsed() < TRUST
        };
        if let Some(known) = known.filter(is_settled) {
            self.sealed = Some(known);
            return Ok(());
        }
        sealed::ensure(&node.handle, sealed, config, device, sysctl::has_v6(), mtu).await?;
        self.sealed = Some(SeenSealed {
            sealed: sealed.clone(),
            index: device.index,
            at: Instant::now(),
        });
        Ok(())
    }

    /// Brings the device for misses up, unless it was found so lately.
    async fn ensure_miss(
        &mut self,
        node: &Connection,
        config: &DatapathConfig,
        existing: Option<&Link>,
        has_v6: bool,
    ) -> Result<(), DatapathError> {
        let known = self.miss.take();
        let Some(link) = existing.filter(|_| config.misses.is_some()) else {
            return Ok(());
        };
        let gateway = config.range.gateway();
        let is_settled = |known: &(u32, Plan, Ipv4Addr, Instant)| {
            let same = (known.0, known.1, known.2) == (link.index, config.plan, gateway);
            same && link.up && known.3.elapsed() < TRUST
        };
        if let Some(known) = known.filter(is_settled) {
            self.miss = Some(known);
            return Ok(());
        }
        miss::ensure(&node.handle, link, &config.plan, gateway, has_v6).await?;
        self.miss = Some((link.index, config.plan, gateway, Instant::now()));
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

    /// Forgets flows of services to backends that are not ready, dead or gone: their next packet goes to another one.
    fn forget_unserved(&mut self, config: &DatapathConfig) {
        let mut served = Served::new();
        for service in &config.services {
            for (policy, addresses) in &service.addresses {
                let is_meant = |number: u32| !matches!(policy, Policy::Instance(wanted) if *wanted != number);
                for address in addresses {
                    let backends = service.ready().filter(|backend| is_meant(backend.number));
                    let of_family = |backend: &super::Backend| match address {
                        IpAddr::V4(_) => IpAddr::from(backend.v4),
                        IpAddr::V6(_) => backend.v6.into(),
                    };
                    served.entry(*address).or_default().extend(backends.map(of_family));
                }
            }
        }
        let lost: Vec<(IpAddr, IpAddr)> = match &self.served {
            Some(before) => {
                let pairs = before
                    .iter()
                    .flat_map(|(to, backends)| backends.iter().map(|backend| (*to, *backend)));
                pairs.collect()
            }
            // What changed while nobody looked.
            None => match conntrack::translated() {
                Ok(pairs) => pairs
                    .into_iter()
                    .filter(|(to, _)| config.plan.is_service(*to))
                    .collect(),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "tracked flows were not listed"
                    );
                    Vec::new()
                }
            },
        };
        let is_served = |to: &IpAddr, backend: &IpAddr| served.get(to).is_some_and(|all| all.contains(backend));
        let lost = lost.into_iter().filter(|(to, backend)| !is_served(to, backend));
        forget(
            &lost
                .map(|(to, backend)| Flows::Translated { to, backend })
                .collect::<Vec<_>>(),
        );
        self.served = Some(served);
    }

    /// Forgets flows that a rule let in and none does any more: their next packet is judged anew, here and at the other end.
    fn forget_forbidden(&mut self, config: &DatapathConfig, permits: Permits) {
        let before = self.permits.replace(permits.clone());
        if before.as_ref().is_some_and(|before| !permits.is_less_than(before)) {
            return;
        }
        let plan = &config.plan;
        let forgotten = conntrack::forget_where(|tracked| {
            let (from, to, answered_by) = (tracked.from, tracked.to, tracked.answered_by);
            // By a published port everybody comes in.
            let is_ours =
                plan.is_endpoint(from) && plan.is_endpoint(answered_by) && (to == answered_by || plan.is_service(to));
            let flow = Flow {
                from,
                to: answered_by,
                port: tracked.port,
            };
            let was_let_in = before.as_ref().is_none_or(|before| before.lets_in(&flow));
            is_ours && was_let_in && !permits.connects(&flow)
        });
        if let Err(error) = forgotten {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "tracked flows were not forgotten");
        }
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
        forget(&flows.collect::<Vec<_>>());
        self.forgotten.clone_from(&config.resting);
        self.udp_ports = udp;
    }
}

fn forget(flows: &[Flows]) {
    if let Err(error) = conntrack::forget(flows) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(?flows, error, "tracked flows were not forgotten");
    }
}

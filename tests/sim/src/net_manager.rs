//! A net manager beside each node engine: the real tier and the real state of attachments; its files, the kernel's links and
//! namespaces of its machine, and the order in which `netmanager/src/service.rs` and `follow.rs` do things are simulated.
//!
//! A file is written at once and wholly, as the real one is before anything else happens. Links are the machine's: they
//! outlive the process, and say which container really has which address.

use crate::daemon::Daemon;
use crate::drive::Input;
use crate::world::{Ev, Who, World};
use rand::Rng;
use roble_core::ids::{ApplicationId, InstanceId};
use roble_core::overlay::plan::Plan;
use roble_core::overlay::row::{Row, RowKey, WantRow, Wanted};
use roble_core::spec::Assignment;
use roble_daemon::home::Home;
use roble_link::child::ChildClocks;
use roble_net::datapath::tunnel::{DEFAULT_PORT, Tunnel, TunnelKind};
use roble_net::overlay;
use roble_net::state::{Instant, RefusedAttach, State};
use roble_net::tier::{Act, Event, NetTier, Told};
use roble_net::wants::Wants;
use roble_proto::local_net::{Attach, Tenant};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at what is attached, milliseconds.
const ROUND_MS: u64 = 30_000;

/// After the calm nobody begins to want anything, milliseconds.
const LAST_WANT_MS: u64 = 20_000;

/// As `netmanager/src/session.rs` has it.
pub const CLOCKS: ChildClocks = ChildClocks {
    beat_ms: 60_000,
    silence_ms: 6_000,
};

/// A net manager and what it has on its machine.
pub struct NetHost {
    /// The tier; its disk is the store of rows.
    pub daemon: Daemon<NetTier>,
    /// The file `attachments.json`.
    pub state: State,
    /// What the process has taken over of the tables; nothing right after its start.
    pub following: Option<Arc<Told>>,
    /// Links of containers and the addresses on them: the kernel's, and the truth.
    pub links: BTreeMap<InstanceId, Ipv4Addr>,
    /// Network namespaces, made by the node engine.
    pub namespaces: BTreeSet<InstanceId>,
    /// What applications of its containers want to know of the services of others.
    pub wants: BTreeMap<RowKey, WantRow>,
    /// Its attachments were lost: containers may get other addresses.
    pub lost_at: Option<u64>,
    boots: u64,
}

/// Why a container has no network: the code, and whether another node might do better.
pub type NoNetwork = (&'static str, bool);

impl NetHost {
    /// On a machine that was booted a while ago.
    pub fn new() -> Self {
        Self {
            daemon: Daemon::default(),
            state: State::default(),
            following: None,
            links: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            wants: BTreeMap::new(),
            lost_at: None,
            boots: 0,
        }
    }

    /// Whether it answers.
    pub const fn is_up(&self) -> bool {
        self.daemon.tier.is_some() && self.following.is_some()
    }

    fn instant(&self, t: u64) -> Instant {
        Instant {
            boot_id: self.boots.to_string(),
            boot_ms: self.daemon.now(t).boot.as_millis(),
        }
    }

    /// The tree's ranges, as they are known here.
    pub fn plan(&self) -> Plan {
        self.following.as_ref().map(|told| told.plan()).unwrap_or_default()
    }

    /// The machine is gone, and the kernel's memory with it.
    pub fn power_off(&mut self) {
        self.links.clear();
        self.namespaces.clear();
        self.boots += 1;
    }

    /// The process is gone.
    pub fn crash(&mut self, t: u64) {
        self.daemon.crash(t);
        self.following = None;
    }

    /// Brings the kernel to the state; before anything is known nothing is changed.
    fn set(&mut self) {
        if self.following.is_none() || self.state.block.is_none() {
            return;
        }
        let of = |(container, attachment): (&String, &roble_net::state::Attachment)| {
            let instance = container.parse::<InstanceId>().ok()?;
            self.namespaces
                .contains(&instance)
                .then_some((instance, attachment.address))
        };
        self.links = self.state.attachments.iter().filter_map(of).collect();
    }

    fn attach(&mut self, order: &Assignment, t: u64) -> Result<Ipv4Addr, NoNetwork> {
        self.namespaces.insert(order.instance);
        if !self.is_up() {
            return Err(("net-unavailable", false));
        }
        let range = self.state.block.ok_or(("no-block", false))?;
        let spec = &order.spec;
        let wish = Attach {
            netns: format!("/run/roble/netns/{}", order.instance).into(),
            ports: spec.ports.clone(),
            instance: Some(Tenant {
                instance: order.instance,
                application: spec.application,
                organization: spec.organization,
                path: spec.path.clone(),
            }),
        };
        let (plan, container, now) = (self.plan(), order.instance.to_string(), self.instant(t));
        let attached = self.state.attach(&plan, &range, &container, &wish, &now);
        attached.map_err(|refused| match refused {
            RefusedAttach::Invalid(_) => ("invalid", false),
            RefusedAttach::PortTaken { .. } => ("port-taken", true),
            RefusedAttach::NoBlock => ("no-block", false),
            RefusedAttach::NoAddress { .. } => ("no-address", true),
        })?;
        self.set();
        Ok(self.state.attachments[&container].address)
    }

    /// Removes what is left of a container. `false`: the net manager does not answer, and its namespace stays, too.
    pub fn detach(&mut self, instance: InstanceId, t: u64) -> bool {
        if self.daemon.tier.is_none() {
            return false;
        }
        let now = self.instant(t);
        self.state.detach(&instance.to_string(), &now);
        self.set();
        self.namespaces.remove(&instance);
        self.links.remove(&instance);
        true
    }

    /// Containers whose namespace is gone are forgotten, everything else is set.
    fn reconcile(&mut self, t: u64) {
        if self.following.is_none() || self.state.block.is_none() {
            return;
        }
        let now = self.instant(t);
        let is_gone = |container: &&String| {
            let instance = container.parse::<InstanceId>();
            instance.is_ok_and(|instance| !self.namespaces.contains(&instance))
        };
        let gone: Vec<String> = self.state.attachments.keys().filter(is_gone).cloned().collect();
        for container in gone {
            self.state.detach(&container, &now);
        }
        self.set();
    }
}

impl Default for NetHost {
    fn default() -> Self {
        Self::new()
    }
}

fn want(row: Row) -> Option<(RowKey, WantRow)> {
    match row {
        Row::Want(want) => Some((want.key(), want)),
        _ => None,
    }
}

/// Where the tunnel of a node is reached.
pub fn tunnel(index: usize) -> Tunnel {
    Tunnel {
        address: Ipv4Addr::new(192, 0, 2, index as u8 + 10).into(),
        kind: TunnelKind::Vxlan {
            port: DEFAULT_PORT,
            vni: 1,
        },
    }
}

impl World {
    /// The process of a net manager begins.
    pub fn start_net(&mut self, index: usize) -> Vec<String> {
        let net = &mut self.nodes[index].net;
        let records = net.daemon.disk.records();
        let (tier, bad) = NetTier::new(CLOCKS, "sim", &records, &mut self.rng);
        // As the real one takes them up.
        let wants = Wants::new(Duration::MAX, tier.told()).rows().borrow().clone();
        net.wants = wants.into_iter().filter_map(want).collect();
        net.daemon.tier = Some(tier);
        let life = net.daemon.life;
        self.push(self.t + 2, Ev::Round(index, life));
        bad
    }

    /// A net manager looks at what is attached.
    pub fn net_round(&mut self, index: usize, life: u64) {
        let net = &mut self.nodes[index].net;
        if life != net.daemon.life || net.daemon.tier.is_none() {
            return;
        }
        net.reconcile(self.t);
        self.watch_addresses(index);
        self.want(index);
        self.push(self.t + ROUND_MS, Ev::Round(index, life));
    }

    /// Performs one act of a net manager.
    pub fn net_act(&mut self, index: usize, act: Act) {
        match act {
            Act::Send(bytes) => {
                let link = self.link_of(Who::Net(index));
                self.send(link, crate::net::UP, bytes);
            }
            Act::Told(told) => self.follow(index, told),
            Act::Violation(what) => self.violate("protocol", what),
            Act::Connected(_) => {}
        }
    }

    /// Takes over what is told, as `follow.rs` does.
    fn follow(&mut self, index: usize, told: Arc<Told>) {
        let net = &mut self.nodes[index].net;
        let before = net.following.replace(told.clone());
        net.state.set_block(told.block());
        net.set();
        self.watch_told(index, before.as_deref(), &told);
        self.watch_blocks(index);
        self.watch_addresses(index);
        self.say(index);
    }

    fn say(&mut self, index: usize) {
        let host = &self.nodes[index];
        let home = Home {
            node: host.id,
            cluster: self.clusters[host.cluster].id,
            address: String::new(),
            mqtt_port: 0,
        };
        let mut says = overlay::says(&home, host.net.state.block, Some(tunnel(index)), None);
        says.extend(host.net.wants.values().cloned().map(Row::Want));
        self.give(Who::Net(index), Input::Net(Box::new(Event::Says(says))));
    }

    /// Applications of the node begin to want something, or stop.
    fn want(&mut self, index: usize) {
        if !self.nodes[index].net.is_up() || self.t > self.plan.calm_at + LAST_WANT_MS {
            return;
        }
        let attachments = self.nodes[index].net.state.attachments.values();
        let tenants = attachments.filter_map(|one| Some(one.instance.as_ref()?.application));
        let own: BTreeSet<ApplicationId> = tenants.collect();
        let names: Vec<String> = self.users.services.keys().cloned().collect();
        if !own.is_empty() && !names.is_empty() && self.rng.random_bool(0.5) {
            let application = own.iter().copied().nth(self.rng.random_range(0..own.len()));
            let name = names[self.rng.random_range(0..names.len())].clone();
            self.ledger.asked.insert((self.nodes[index].id, name.clone()));
            let row = application.map(|application| WantRow {
                application,
                wanted: Wanted::Name(format!("web.{name}")),
                service: None,
            });
            self.nodes[index].net.wants.extend(row.map(|row| (row.key(), row)));
        }
        let stops = self.rng.random_bool(0.1);
        let wants = &mut self.nodes[index].net.wants;
        wants.retain(|_, want| own.contains(&want.application));
        if stops {
            wants.pop_first();
        }
        self.say(index);
    }

    /// The node engine asks for a container's place in the network.
    pub fn attach(&mut self, index: usize, order: &Assignment) -> Result<Ipv4Addr, NoNetwork> {
        let attached = self.nodes[index].net.attach(order, self.t);
        self.log.line(
            self.t,
            format_args!("n{index} attaches {}: {attached:?}", order.instance),
        );
        self.watch_addresses(index);
        attached
    }

    /// The files of a net manager are lost: its rows, its attachments, or both.
    pub fn lose_net_store(&mut self, index: usize, rows: bool, attachments: bool) {
        if !self.is_up(Who::Net(index)) {
            return;
        }
        self.crash(Who::Net(index));
        let t = self.t;
        let net = &mut self.nodes[index].net;
        if rows {
            net.daemon.disk.wipe();
        }
        if attachments {
            net.state = State::default();
            net.lost_at = Some(t);
        }
        let back = t + self.rng.random_range(100..1_500);
        self.push(back, Ev::Start(Who::Net(index)));
    }
}

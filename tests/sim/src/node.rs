//! A node: its engine and its runtime, which outlives the engine. The runtime is the truth that the checks go by.

use crate::daemon::Daemon;
use crate::drive::Input;
use crate::net_manager::NetHost;
use crate::world::{CHILD_CLOCKS, Ev, Who, World};
use rand::Rng;
use rand::rngs::SmallRng;
use roble_core::engine::{Command, Exit, NodeFacts, Observed, ObservedState, StartFailure, StartedInfo};
use roble_core::ids::{InstanceId, NodeId};
use roble_core::labels::{ARCH, Labels};
use roble_core::resources::Resources;
use roble_core::spec::{Assignment, InstanceSpec, WhenCutOff};
use roble_core::status::Reason;
use roble_core::version::Version;
use roble_node::tier::{Event, NodeConfig, NodeTier};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its start is under way.
    Creating,
    /// Its process runs.
    Running,
    /// Its process ended, or never ran.
    Ended(Option<Exit>),
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// The version it was made for.
    pub version: Version,
    /// What it is.
    pub spec: Arc<InstanceSpec>,
    /// What it does.
    pub state: State,
    /// Tells it from earlier ones of the instance.
    pub nonce: u64,
    /// The endpoint address that it was given.
    pub address: Option<Ipv4Addr>,
    /// When its state changed last.
    pub changed_at: u64,
    /// It was removed, and its network was not: only the first look of an engine finds it.
    pub is_husk: bool,
}

/// An operation of the runtime that ends.
#[derive(Debug)]
pub struct Op {
    instance: InstanceId,
    nonce: u64,
    life: u64,
    what: OpKind,
}

#[derive(Debug)]
enum OpKind {
    Start(Result<(), Failure>),
    Stop(bool),
}

/// Why a start fails.
#[derive(Debug, Clone, Copy)]
struct Failure {
    code: &'static str,
    retryable: bool,
    refuse: bool,
}

/// A node and its machine.
pub struct Host {
    /// The engine.
    pub daemon: Daemon<NodeTier>,
    /// The net manager.
    pub net: NetHost,
    /// Its cluster.
    pub cluster: usize,
    /// Its identity there.
    pub id: NodeId,
    /// SHA-256 of its key.
    pub key: String,
    /// Its name.
    pub name: String,
    /// What it is and has.
    pub facts: NodeFacts,
    /// The machine has power.
    pub powered: bool,
    /// It was put out.
    pub expelled: bool,
    /// Every container.
    pub containers: BTreeMap<InstanceId, Container>,
    /// When the engine was last interrupted.
    pub crashed_at: u64,
    highest: BTreeMap<InstanceId, Version>,
    /// How often a process of this instance and spec was started here, and whether it is an at-most-one copy.
    pub starts: BTreeMap<(InstanceId, u64), (u32, bool)>,
    /// Starts that the runtime refused for a cause that nothing tells of: they are not tried again in a run.
    pub refused: BTreeSet<(InstanceId, u64)>,
    nonces: u64,
}

impl Host {
    /// A new machine.
    pub fn new(index: usize, cluster: usize, rng: &mut SmallRng) -> Self {
        let mut labels = Labels::new();
        labels.insert(
            ARCH.to_owned(),
            if rng.random_bool(0.8) { "arm64" } else { "amd64" }.to_owned(),
        );
        labels.insert(
            "zone".to_owned(),
            if rng.random_bool(0.5) { "edge" } else { "core" }.to_owned(),
        );
        Self {
            daemon: Daemon::default(),
            net: NetHost::new(),
            cluster,
            id: "000000000000000000000000".parse().expect("an id"),
            key: format!("key-n{index}"),
            name: format!("n{index}"),
            facts: NodeFacts {
                allocatable: Resources {
                    cpu_millis: rng.random_range(2..=5) * 500,
                    memory_bytes: rng.random_range(2..=5) * 256 * 1024 * 1024,
                },
                labels,
                virtualizations: vec!["container".to_owned()],
            },
            powered: true,
            expelled: false,
            containers: BTreeMap::new(),
            crashed_at: 0,
            highest: BTreeMap::new(),
            starts: BTreeMap::new(),
            refused: BTreeSet::new(),
            nonces: 0,
        }
    }

    /// What the engine says of itself.
    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            name: self.name.clone(),
            address: "192.0.2.2".to_owned(),
            facts: self.facts.clone(),
            clocks: CHILD_CLOCKS,
            software: "sim".to_owned(),
        }
    }

    /// What the runtime lists; with what only a network is left of if it is the `first` look.
    pub fn list(&self, first: bool) -> Vec<Observed> {
        let observed = |(instance, container): (&InstanceId, &Container)| {
            if container.is_husk && !first {
                return None;
            }
            let state = match container.state {
                State::Creating => return None,
                State::Running => ObservedState::Running { started_at: None },
                State::Ended(exit) => ObservedState::Ended(exit),
            };
            Some(Observed {
                addresses: self.addresses(*instance),
                detached: self.net.is_up() && self.addresses(*instance).is_empty(),
                instance: *instance,
                version: container.version.clone(),
                state,
            })
        };
        self.containers.iter().filter_map(observed).collect()
    }

    /// What the net manager says of a container: nothing while it is down.
    fn addresses(&self, instance: InstanceId) -> Vec<IpAddr> {
        let attachment = self.net.state.attachments.get(&instance.to_string());
        let attachment = attachment.filter(|_| self.net.is_up());
        attachment.map_or_else(Vec::new, |attachment| self.both(attachment.address))
    }

    /// An endpoint address of each family.
    fn both(&self, v4: Ipv4Addr) -> Vec<IpAddr> {
        vec![v4.into(), self.net.plan().endpoint_v6(v4).into()]
    }

    /// The engine is gone: operations under way end somehow.
    pub fn interrupt(&mut self, rng: &mut SmallRng) {
        for container in self.containers.values_mut() {
            if container.state == State::Creating {
                container.state = State::Ended(None);
                container.nonce = 0;
            }
        }
        let _ = rng;
    }

    /// The machine is gone: no process is left.
    pub fn power_off(&mut self) {
        for container in self.containers.values_mut() {
            container.state = match container.state {
                State::Ended(exit) => State::Ended(exit),
                _ => State::Ended(None),
            };
            container.nonce = 0;
        }
        self.net.power_off();
    }

    /// Sum of what its processes may use.
    pub fn used(&self) -> Resources {
        let running = self
            .containers
            .values()
            .filter(|container| container.state == State::Running);
        running.fold(Resources::ZERO, |sum, container| sum.plus(&container.spec.resources))
    }
}

/// The content number of a spec: its environment variable `V`.
pub fn content(spec: &InstanceSpec) -> u64 {
    let value = spec.environment.iter().find(|(key, _)| key == "V");
    value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

impl World {
    /// Whether a daemon's machine has power.
    pub fn is_powered(&self, who: Who) -> bool {
        match who {
            Who::Node(index) | Who::Net(index) => self.nodes[index].powered,
            _ => true,
        }
    }

    /// The runtime of a node gets to work.
    pub fn run_command(&mut self, index: usize, command: Command) {
        let t = self.t;
        self.log.line(t, format_args!("n{index} {}", brief(&command)));
        let calm = t >= self.plan.calm_at || self.plan.gentle;
        let life = self.nodes[index].daemon.life;
        match command {
            Command::Start(order) => self.begin_start(index, &order, calm, life),
            Command::Attach(order) => drop(self.attach(index, &order)),
            Command::Stop { instance, grace_ms } => {
                let takes = self.rng.random_range(20..=grace_ms.clamp(21, 4_000));
                let ok = calm || self.rng.random_bool(0.97);
                let nonce = self.nodes[index]
                    .containers
                    .get(&instance)
                    .map_or(0, |container| container.nonce);
                let what = OpKind::Stop(ok);
                let op = Op {
                    instance,
                    nonce,
                    life,
                    what,
                };
                self.op(t + takes, index, op);
            }
        }
    }

    fn begin_start(&mut self, index: usize, order: &Assignment, calm: bool, life: u64) {
        let takes = self.rng.random_range(50..3_000);
        let failure: Result<(), Failure> = if calm || self.rng.random_bool(0.95) {
            Ok(())
        } else {
            Err(Failure {
                code: "bad-luck",
                retryable: self.rng.random_bool(0.8),
                refuse: self.rng.random_bool(0.3),
            })
        };
        let attached = self.attach(index, order);
        let no_network = |(code, refuse)| Failure {
            code,
            retryable: true,
            refuse,
        };
        let outcome = attached.map_err(no_network).and(failure);
        let host = &mut self.nodes[index];
        let existing = host.containers.get(&order.instance);
        let existing = existing
            .filter(|container| !container.is_husk)
            .map(|container| container.state);
        host.nonces += 1;
        let nonce = host.nonces;
        let container = Container {
            version: order.version.clone(),
            spec: order.spec.clone(),
            state: State::Creating,
            nonce,
            address: attached.ok(),
            changed_at: self.t,
            is_husk: false,
        };
        host.containers.insert(order.instance, container);
        if let Some(state) = existing {
            self.violate(
                "I3",
                format!("n{index} starts {} over a container that is {state:?}", order.instance),
            );
        }
        let op = Op {
            instance: order.instance,
            nonce,
            life,
            what: OpKind::Start(outcome),
        };
        self.op(self.t + takes, index, op);
    }

    /// An operation of a runtime ends.
    pub fn done(&mut self, index: usize, op: Op) {
        // An engine that died took its operations with it.
        if op.life != self.nodes[index].daemon.life {
            return;
        }
        let instance = op.instance;
        match op.what {
            OpKind::Stop(ok) => {
                let result = if ok {
                    self.remove(index, instance)
                } else {
                    Err(Reason::new("busy", "it would not die"))
                };
                self.tell(index, Event::Gone { instance, result });
            }
            OpKind::Start(result) => {
                let wall = self.nodes[index].daemon.now(self.t).wall;
                let Some(container) = self.nodes[index].containers.get_mut(&instance) else {
                    return;
                };
                if container.nonce != op.nonce {
                    return;
                }
                let version = container.version.clone();
                let result = match result {
                    Ok(()) => {
                        container.state = State::Running;
                        container.changed_at = self.t;
                        let address = container.address;
                        self.started(index, instance);
                        Ok(StartedInfo {
                            addresses: address.map_or_else(Vec::new, |v4| self.nodes[index].both(v4)),
                            started_at: wall,
                            image_digest: None,
                        })
                    }
                    Err(failure) => {
                        container.state = State::Ended(None);
                        container.changed_at = self.t;
                        if failure.refuse {
                            let spec = content(&container.spec);
                            self.nodes[index].refused.insert((instance, spec));
                            // What is left of it then is only logged.
                            let _ = self.remove(index, instance);
                        }
                        Err(StartFailure {
                            reason: Reason::new(failure.code, "the start failed"),
                            retryable: failure.retryable || failure.refuse,
                            refuse: failure.refuse,
                        })
                    }
                };
                let event = Event::Started {
                    instance,
                    version,
                    result,
                };
                self.tell(index, event);
            }
        }
    }

    /// A container is removed, and its network after it.
    fn remove(&mut self, index: usize, instance: InstanceId) -> Result<(), Reason> {
        let t = self.t;
        let host = &mut self.nodes[index];
        if host.net.detach(instance, t) {
            host.containers.remove(&instance);
            return Ok(());
        }
        if let Some(container) = host.containers.get_mut(&instance) {
            container.state = State::Ended(None);
            container.changed_at = t;
            container.is_husk = true;
        }
        Err(Reason::new("net-unavailable", "the net manager does not answer"))
    }

    /// A process ends by itself.
    pub fn exit(&mut self, index: usize, instance: InstanceId, nonce: u64) {
        let t = self.t;
        let calm = t >= self.plan.calm_at;
        let Some(container) = self.nodes[index].containers.get_mut(&instance) else {
            return;
        };
        let job = container.spec.one_shot;
        if container.nonce != nonce || container.state != State::Running || (calm && !job) {
            return;
        }
        let exit = Exit {
            code: if job { 0 } else { 137 },
            oom_killed: !job && nonce.is_multiple_of(2),
        };
        container.state = State::Ended(Some(exit));
        container.changed_at = t;
        let version = container.version.clone();
        self.log
            .line(t, format_args!("n{index} {instance} exits {}", exit.code));
        self.tell(
            index,
            Event::Exited {
                instance,
                version,
                exit,
            },
        );
    }

    fn tell(&mut self, index: usize, event: Event) {
        self.give(Who::Node(index), Input::Node(Box::new(event)));
    }

    /// A process has started: everything that must hold at every instant is checked here.
    fn started(&mut self, index: usize, instance: InstanceId) {
        let container = self.nodes[index].containers[&instance].clone();
        let (spec, version) = (&container.spec, &container.version);
        let what = format!("{instance} ({}) on n{index} at {version}", spec.path);
        self.log
            .line(self.t, format_args!("n{index} {instance} {version} runs"));
        let host = &mut self.nodes[index];
        let highest = host.highest.entry(instance).or_default();
        let fell = (*version < *highest).then(|| format!("{what} after {highest}"));
        highest.clone_from(&(*highest).clone().max(version.clone()));
        let starts = host.starts.entry((instance, content(spec))).or_default();
        *starts = (starts.0 + 1, spec.when_cut_off == WhenCutOff::Stop);
        let (used, allocatable, labels) = (host.used(), host.facts.allocatable, host.facts.labels.clone());
        if let Some(fell) = fell {
            self.violate("I5", fell);
        }
        if !allocatable.covers(&used) {
            self.violate("I7", format!("{what}: {used} of {allocatable} used"));
        }
        let ports: Vec<u16> = self.nodes[index]
            .containers
            .values()
            .filter(|container| container.state == State::Running)
            .flat_map(|container| container.spec.ports.iter().map(|port| port.host))
            .collect();
        let mut unique = ports.clone();
        unique.sort_unstable();
        unique.dedup();
        if unique.len() != ports.len() {
            self.violate("I7", format!("{what}: ports {ports:?}"));
        }
        let constraints = &spec.constraints;
        let cluster = &self.clusters[self.nodes[index].cluster].config;
        if constraints.node_selector.first_mismatch(&labels).is_some()
            || constraints.cluster_selector.first_mismatch(&cluster.labels).is_some()
            || constraints.cluster.as_ref().is_some_and(|name| *name != cluster.name)
        {
            self.violate("I8", what.clone());
        }
        self.watch_addresses(index);
        if spec.when_cut_off == WhenCutOff::Stop {
            let copies: Vec<&str> = self
                .nodes
                .iter()
                .filter(|host| {
                    host.containers
                        .get(&instance)
                        .is_some_and(|container| container.state == State::Running)
                })
                .map(|host| host.name.as_str())
                .collect();
            if copies.len() > 1 {
                let detail = format!("at-most-one {what}: runs on {copies:?}");
                self.violate("I3", detail);
            }
        }
        let ends = if spec.one_shot {
            Some(self.rng.random_range(1_000..15_000))
        } else if spec.path.contains("flaky") {
            Some(self.rng.random_range(2_000..60_000))
        } else {
            None
        };
        if let Some(after) = ends {
            self.push(self.t + after, Ev::Exit(index, instance, container.nonce));
        }
    }
}

fn brief(command: &Command) -> String {
    match command {
        Command::Start(order) => format!("start {} {} {}", order.instance, order.version, order.spec.path),
        Command::Attach(order) => format!("attach {} again", order.instance),
        Command::Stop { instance, grace_ms } => format!("stop {instance} within {grace_ms}"),
    }
}

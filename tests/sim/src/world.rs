//! The world of one run: every daemon, link and runtime, and the queue of events that drives them.

use crate::daemon::Daemon;
use crate::faults::Fault;
use crate::identity::{Papers, Step};
use crate::log::Log;
use crate::net::{Link, Weather};
use crate::node::{Host, Op};
use crate::points::Points;
use crate::tables::Ledger;
use crate::work::Work;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use roble_cluster::tier::{ClusterConfig, ClusterTier};
use roble_core::ids::{ClusterId, InstanceId};
use roble_core::labels::Labels;
use roble_core::liveness::Clocks;
use roble_core::registry::{JoinToken, Member, MemberState, TokenKind};
use roble_core::tier::Tier;
use roble_link::child::ChildClocks;
use roble_proto::rest::{CreateToken, CreatedToken, JoinRequest};
use roble_proto::wire;
use roble_root::tier::{Act as RootAct, AuditLimits, Call, Caller, Event as RootEvent, RootConfig, RootTier};
use std::collections::BTreeMap;

/// Timing of every link's lower end.
pub const CHILD_CLOCKS: ChildClocks = ChildClocks {
    beat_ms: 2_500,
    silence_ms: 8_000,
};

/// What a run does to the tree.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Only the daemons and links above the nodes fail, and briefly: nothing may restart.
    pub gentle: bool,
    /// Nodes per cluster.
    pub nodes: Vec<usize>,
    /// So many of the clusters have joined before the run, with their nodes; the others are only there.
    pub installed: usize,
    /// The network.
    pub weather: Weather,
    /// When all faults end.
    pub calm_at: u64,
    /// When the checks are made.
    pub end_at: u64,
    /// Print the trace.
    pub trace: bool,
    /// Longest time a write takes to be durable, milliseconds.
    pub sync_ms: u64,
    /// Acts are performed before their writes are durable: a planted bug.
    pub acts_first: bool,
    /// The ranges of addresses.
    pub overlay: roble_core::overlay::plan::Plan,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64, trace: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x0007_2006_1e00);
        let gentle = seed % 4 == 3;
        let clusters = rng.random_range(2..=3);
        let mut nodes = vec![1; clusters];
        for _ in 0..rng.random_range(1..=8 - clusters) {
            nodes[rng.random_range(0..clusters)] += 1;
        }
        let rough = !gentle && rng.random_bool(0.5);
        Self {
            seed,
            gentle,
            installed: nodes.len(),
            nodes,
            weather: Weather {
                latency_ms: [20, 150, 600][rng.random_range(0..if gentle { 2 } else { 3 })],
                loss: if rough { rng.random_range(0..30) } else { 0 },
                twice: if rough { rng.random_range(0..30) } else { 0 },
                late: if rough { rng.random_range(0..30) } else { 0 },
            },
            calm_at: 170_000,
            end_at: 330_000,
            trace,
            sync_ms: 40,
            acts_first: false,
            overlay: Default::default(),
        }
    }
}

/// A daemon, by its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The root.
    Root,
    /// A cluster orchestrator.
    Cluster(usize),
    /// A node engine.
    Node(usize),
    /// The net manager beside it.
    Net(usize),
}

/// What a daemon asked for, released once its writes were durable or need not be.
#[derive(Debug)]
pub enum Acts {
    /// Of the root.
    Root(Vec<RootAct>),
    /// Of a cluster.
    Cluster(Vec<roble_cluster::tier::Act>),
    /// Of a node.
    Node(Vec<roble_node::tier::Act>),
    /// Of a net manager.
    Net(Vec<roble_net::tier::Act>),
}

/// What may happen.
#[derive(Debug)]
pub enum Ev {
    /// Time for a daemon's next tick.
    Tick(Who, u64),
    /// A daemon's acts may leave it.
    Acts(Who, u64, Acts),
    /// A daemon starts.
    Start(Who),
    /// The lower end of a link tries to connect.
    Dial(usize),
    /// The lower end notices that its connection is gone.
    ChildDown(usize, u64),
    /// The upper end does.
    ParentDown(usize, u64),
    /// A message arrives at the other end of a link: connection, direction, bytes.
    Frame(usize, u64, usize, Vec<u8>),
    /// A runtime's operation ends.
    Done(usize, Op),
    /// A process ends by itself.
    Exit(usize, InstanceId, u64),
    /// A node engine lists its runtime.
    List(usize, u64),
    /// A net manager looks at what is attached.
    Round(usize, u64),
    /// Something breaks.
    Fault(Fault),
    /// Somebody wants something.
    Work(Work),
    /// A step of getting or renewing an identity.
    Identity(Step),
}

/// A cluster and its machine.
pub struct ClusterHost {
    /// The orchestrator.
    pub daemon: Daemon<ClusterTier>,
    /// Its configuration.
    pub config: ClusterConfig,
    /// What it is to the root.
    pub id: ClusterId,
    /// Its store was lost once.
    pub has_lost_store: bool,
    /// When it crashed last.
    pub crashed_at: u64,
}

/// A violation of an invariant.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which, e.g. `I3`.
    pub invariant: &'static str,
    /// When, milliseconds.
    pub at: u64,
    /// What was seen.
    pub detail: String,
}

/// The world. See the module's text.
pub struct World {
    /// What happens in it.
    pub plan: Plan,
    /// The only source of chance.
    pub rng: SmallRng,
    /// Now, milliseconds.
    pub t: u64,
    /// What happened.
    pub log: Log,
    queue: BTreeMap<(u64, u64), Ev>,
    sequence: u64,
    /// The root.
    pub root: Daemon<RootTier>,
    /// The clusters.
    pub clusters: Vec<ClusterHost>,
    /// The nodes.
    pub nodes: Vec<Host>,
    /// First one per cluster, then one per node, then one per net manager.
    pub links: Vec<Link>,
    /// What users want and were told.
    pub users: crate::work::Users,
    /// What is known of addresses and tables.
    pub ledger: Ledger,
    /// How many stores were lost, of clusters and nodes.
    pub lost_stores: u32,
    /// What was found wrong.
    pub violations: Vec<Violation>,
    /// Boundaries between steps, for the sweep over all of them.
    pub points: Points,
    /// The identities of daemons, where a run is about them.
    pub papers: BTreeMap<Who, Papers>,
    /// Requests for certificates: who asked.
    pub asked: BTreeMap<u64, Who>,
    /// How many requests, keys and certificates were made.
    pub requests: u64,
    /// See [`Self::requests`].
    pub keys: u64,
    /// See [`Self::requests`].
    pub serials: u64,
}

impl World {
    /// A tree that has just been installed: every cluster and node has joined.
    pub fn new(plan: Plan) -> Self {
        let mut world = Self {
            rng: SmallRng::seed_from_u64(plan.seed),
            t: 0,
            log: Log::new(plan.trace),
            queue: BTreeMap::new(),
            sequence: 0,
            root: Daemon::default(),
            clusters: Vec::new(),
            nodes: Vec::new(),
            links: Vec::new(),
            users: crate::work::Users::default(),
            ledger: Ledger::default(),
            lost_stores: 0,
            violations: Vec::new(),
            points: Points::default(),
            papers: BTreeMap::new(),
            asked: BTreeMap::new(),
            requests: 0,
            keys: 0,
            serials: 0,
            plan,
        };
        world.install();
        world
    }

    fn install(&mut self) {
        self.root.disk.write(0, crate::work::organizations());
        self.start(Who::Root);
        let sizes = self.plan.nodes.clone();
        for index in 0..sizes.len() {
            let name = format!("c{index}");
            let is_installed = index < self.plan.installed;
            let id = if is_installed {
                ClusterId(self.join_cluster(&name).id.0)
            } else {
                "ffffffffffffffffffffffff".parse().expect("an id")
            };
            self.links.push(Link::default());
            let mut labels = Labels::new();
            labels.insert("site".to_owned(), name.clone());
            self.clusters.push(ClusterHost {
                daemon: Daemon::default(),
                config: ClusterConfig {
                    id,
                    name,
                    labels,
                    address: "192.0.2.1".to_owned(),
                    clocks: Clocks::NODES,
                    uplink: CHILD_CLOCKS,
                    software: "sim".to_owned(),
                    pin: "00".repeat(32),
                    is_new: false,
                },
                id,
                has_lost_store: false,
                crashed_at: 0,
            });
            if is_installed {
                self.start(Who::Cluster(index));
            }
            let at = self.rng.random_range(0..500);
            self.push(at, Ev::Dial(index));
        }
        for (cluster, count) in sizes.into_iter().enumerate() {
            for _ in 0..count {
                let index = self.nodes.len();
                let host = Host::new(index, cluster, &mut self.rng);
                self.nodes.push(host);
                self.links.push(Link::default());
                if cluster < self.plan.installed {
                    self.join_node(index);
                    self.start(Who::Node(index));
                }
                let at = self.rng.random_range(0..500);
                let link = self.link_of(Who::Node(index));
                self.push(at, Ev::Dial(link));
            }
        }
        for index in 0..self.nodes.len() {
            self.links.push(Link::default());
            if self.nodes[index].cluster < self.plan.installed {
                self.start(Who::Net(index));
            }
            let at = self.rng.random_range(0..500);
            let link = self.link_of(Who::Net(index));
            self.push(at, Ev::Dial(link));
        }
    }

    /// The link on which a daemon dials its parent.
    pub fn link_of(&self, who: Who) -> usize {
        match who {
            Who::Root => usize::MAX,
            Who::Cluster(index) => index,
            Who::Node(index) => self.plan.nodes.len() + index,
            Who::Net(index) => self.plan.nodes.len() + self.node_count() + index,
        }
    }

    fn node_count(&self) -> usize {
        self.plan.nodes.iter().sum()
    }

    /// Who dials on a link.
    pub fn child_of(&self, link: usize) -> Who {
        match link.checked_sub(self.plan.nodes.len()) {
            None => Who::Cluster(link),
            Some(index) => match index.checked_sub(self.node_count()) {
                None => Who::Node(index),
                Some(net) => Who::Net(net),
            },
        }
    }

    /// Whom one reaches on a link.
    pub fn parent_of(&self, link: usize) -> Who {
        match self.child_of(link) {
            Who::Node(index) | Who::Net(index) => Who::Cluster(self.nodes[index].cluster),
            _ => Who::Root,
        }
    }

    /// A call that is answered at once, made by the operator on the root's machine.
    pub fn call_now(&mut self, caller: Caller, call: Call) -> roble_root::tier::Answer {
        let now = self.root.now(self.t);
        let tier = self.root.tier.as_mut().expect("the root is up when it is asked");
        let output = tier.on(RootEvent::Call(u64::MAX, caller, call), now, &mut self.rng);
        self.root.disk.write(self.t, output.writes);
        self.root.disk.sync(self.t);
        let mut answer = None;
        let mut others = Vec::new();
        for act in output.acts {
            match act {
                RootAct::Answer(u64::MAX, given) => answer = Some(given),
                other => others.push(other),
            }
        }
        self.release(Who::Root, Acts::Root(others));
        answer.expect("this call is answered at once")
    }

    fn join_cluster(&mut self, name: &str) -> Member {
        let create = CreateToken {
            kind: TokenKind::Cluster,
            cluster: None,
            ttl_ms: None,
            needs_approval: false,
            name: None,
        };
        let created = self.call_now(Caller::Local, Call::CreateToken(create));
        let created: CreatedToken = serde_json::from_value(created.expect("made")).expect("a token");
        let token: JoinToken = created.token.parse().expect("a token");
        self.users.spent_tokens.push((None, token.clone()));
        let request = JoinRequest {
            token: token.id,
            secret: token.secret,
            name: name.to_owned(),
            csr: String::new(),
        };
        let key_sha256 = format!("key-{name}");
        self.users.note_admitted(&token.id, &key_sha256);
        let joined = self.call_now(Caller::Anonymous, Call::Join { request, key_sha256 });
        serde_json::from_value(joined.expect("joined")).expect("a member")
    }

    /// The operator gives a node a token, and it joins its cluster with its key.
    pub fn join_node(&mut self, index: usize) {
        let cluster = self.nodes[index].cluster;
        let host = &mut self.clusters[cluster];
        let now = host.daemon.now(self.t);
        let Some(tier) = host.daemon.tier.as_mut() else { return };
        let create = wire::CreateJoinToken {
            ttl_ms: 0,
            needs_approval: false,
            name: String::new(),
        };
        let what = wire::request::What::CreateJoinToken(create);
        let mut output = tier.on(roble_cluster::tier::Event::Local(1, what), now, &mut self.rng);
        let created = output.acts.iter().find_map(|act| match act {
            roble_cluster::tier::Act::Answer(1, Ok(json)) => serde_json::from_slice::<CreatedToken>(json).ok(),
            _ => None,
        });
        let token: JoinToken = created.expect("made").token.parse().expect("a token");
        self.users.spent_tokens.push((Some(cluster), token.clone()));
        let node = &mut self.nodes[index];
        self.users.note_admitted(&token.id, &node.key);
        let join = roble_cluster::tier::Event::Join {
            asker: 2,
            token: token.id,
            secret: token.secret,
            key_sha256: node.key.clone(),
            name: node.name.clone(),
        };
        output.append(tier.on(join, now, &mut self.rng));
        let joined = output.acts.iter().find_map(|act| match act {
            roble_cluster::tier::Act::Joined(2, Ok(member)) => Some(member.id),
            _ => None,
        });
        node.id = roble_core::ids::NodeId(joined.expect("joined").0);
        host.daemon.disk.write(self.t, output.writes);
        host.daemon.disk.sync(self.t);
        self.release(Who::Cluster(cluster), Acts::Cluster(output.acts));
    }

    /// Starts a daemon on what its disk has.
    pub fn start(&mut self, who: Who) {
        let t = self.t;
        let bad = match who {
            Who::Root => {
                self.root.disk.sync(t);
                let records = self.root.disk.records();
                let now = self.root.now(t);
                let config = RootConfig {
                    clocks: Clocks::CLUSTERS,
                    software: "sim".to_owned(),
                    pin: "00".repeat(32),
                    session_ms: 1_000_000_000,
                    audit: AuditLimits::default(),
                    plan: self.plan.overlay,
                };
                let (tier, writes, bad) = RootTier::new(config, &records, now, &mut self.rng);
                self.root.disk.write(t, writes);
                self.root.disk.sync(t);
                self.root.tier = Some(tier);
                bad
            }
            Who::Cluster(index) => {
                let host = &mut self.clusters[index];
                let (records, now) = (host.daemon.disk.records(), host.daemon.now(t));
                let complete = host.daemon.complete;
                let (tier, bad) = ClusterTier::new(host.config.clone(), &records, complete, now, &mut self.rng);
                for member in tier.registry().members() {
                    let revoked = member.state == MemberState::Revoked;
                    if let Some(node) = self.nodes.iter_mut().find(|node| node.id.0 == member.id.0) {
                        node.expelled |= revoked;
                    }
                }
                host.daemon.tier = Some(tier);
                bad
            }
            Who::Node(index) => {
                let host = &mut self.nodes[index];
                let (records, now) = (host.daemon.disk.records(), host.daemon.now(t));
                let complete = host.daemon.complete;
                let (tier, bad) =
                    roble_node::tier::NodeTier::new(host.config(), &records, complete, now, &mut self.rng);
                host.daemon.tier = Some(tier);
                let life = host.daemon.life;
                let at = t + self.rng.random_range(5..400);
                self.push(at, Ev::List(index, life));
                // The net manager beside one that joins has waited for its identity.
                if self.nodes[index].cluster >= self.plan.installed && self.nodes[index].net.daemon.life == 0 {
                    self.push(t + 1, Ev::Start(Who::Net(index)));
                }
                bad
            }
            Who::Net(index) => self.start_net(index),
        };
        if !bad.is_empty() {
            self.violate("readable", format!("{who:?} could not read {bad:?}"));
        }
        self.tick_at(who, t + 1);
    }

    /// Plans a daemon's next tick.
    pub fn tick_at(&mut self, who: Who, at: u64) {
        match who {
            Who::Root => self.root.next_tick = at,
            Who::Cluster(index) => self.clusters[index].daemon.next_tick = at,
            Who::Node(index) => self.nodes[index].daemon.next_tick = at,
            Who::Net(index) => self.nodes[index].net.daemon.next_tick = at,
        }
        let life = self.life(who);
        self.push(at, Ev::Tick(who, life));
    }

    /// Which process of a daemon lives now.
    pub fn life(&self, who: Who) -> u64 {
        match who {
            Who::Root => self.root.life,
            Who::Cluster(index) => self.clusters[index].daemon.life,
            Who::Node(index) => self.nodes[index].daemon.life,
            Who::Net(index) => self.nodes[index].net.daemon.life,
        }
    }

    /// Whether a daemon runs.
    pub fn is_up(&self, who: Who) -> bool {
        match who {
            Who::Root => self.root.tier.is_some(),
            Who::Cluster(index) => self.clusters[index].daemon.tier.is_some(),
            Who::Node(index) => self.nodes[index].daemon.tier.is_some(),
            Who::Net(index) => self.nodes[index].net.daemon.tier.is_some(),
        }
    }

    /// Puts an event on the queue.
    pub fn push(&mut self, at: u64, event: Ev) {
        self.sequence += 1;
        self.queue.insert((at.max(self.t), self.sequence), event);
    }

    /// Notes a violation.
    pub fn violate(&mut self, invariant: &'static str, detail: String) {
        self.log.line(self.t, format_args!("VIOLATION {invariant}: {detail}"));
        if self.violations.len() < 20 {
            let at = self.t;
            self.violations.push(Violation { invariant, at, detail });
        }
    }

    /// Lets everything happen until `end`.
    pub fn run_until(&mut self, end: u64) {
        while let Some(((at, sequence), event)) = self.queue.pop_first() {
            if at > end {
                self.queue.insert((at, sequence), event);
                break;
            }
            self.t = at;
            self.happen(event);
        }
        self.t = end;
    }
}

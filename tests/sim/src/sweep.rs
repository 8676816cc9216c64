//! A crash at every boundary between two steps of every tier, for deploy, replace, scale, delete, join and renew.
//!
//! Each scenario is run once without a crash, which counts the points of each tier; then once more for each point, with a
//! crash there. Afterwards the scenario's own result must hold, and all invariants of [`crate::check`]. The tree is small
//! and the weather fine, so the same seed reaches the same points up to the crash.
//! `cargo run -p roble-sim -- --point deploy/cluster/17` repeats one, with `ROBLE_SIM_TRACE=1` printing every event.

use crate::net::Weather;
use crate::node::{State, content};
use crate::points::Level;
use crate::work::Wanted;
use crate::world::{Ev, Plan, Violation, Who, World};
use roble_core::registry::{JoinToken, MemberState, TokenKind};
use roble_proto::rest::{CreateToken, CreatedToken};
use roble_root::tier::Call;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Between two looks at a run, virtual milliseconds.
const LOOK_MS: u64 = 100;
/// Longest time to reach a result, and to settle afterwards.
const DEADLINE_MS: u64 = 150_000;
/// Points are counted until so long after the result holds: what is still under way then is part of the scenario.
const TAIL_MS: u64 = 3_000;
/// Time in which nothing may change any more.
const QUIET_MS: u64 = 12_000;

/// What is done to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Two new services.
    Deploy,
    /// A changed descriptor.
    Replace,
    /// More replicas, then fewer.
    Scale,
    /// An application goes.
    Delete,
    /// A cluster joins, and a node joins it.
    Join,
    /// A cluster and a node get new certificates, and the old ones run out.
    Renew,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Deploy,
        Self::Replace,
        Self::Scale,
        Self::Delete,
        Self::Join,
        Self::Renew,
    ];
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deploy => "deploy",
            Self::Replace => "replace",
            Self::Scale => "scale",
            Self::Delete => "delete",
            Self::Join => "join",
            Self::Renew => "renew",
        })
    }
}

/// One point of a scenario, as `deploy/cluster/17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The scenario.
    pub scenario: Scenario,
    /// The tier that crashes.
    pub level: Level,
    /// Which of its points, counted from 0.
    pub number: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.scenario, self.level, self.number)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [scenario, level, number] = parts.as_slice() else {
            return Err(format!("`{text}` is not SCENARIO/TIER/NUMBER"));
        };
        let found = Scenario::ALL.into_iter().find(|one| one.to_string() == *scenario);
        Ok(Self {
            scenario: found.ok_or_else(|| format!("there is no scenario `{scenario}`"))?,
            level: level.parse()?,
            number: number
                .parse()
                .map_err(|_| format!("`{number}` is not the number of a point"))?,
        })
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Points reached, by [`Level::ALL`].
    pub reached: [u64; 4],
    /// Where the crash was, if one was asked for and its point was reached.
    pub crashed: Option<String>,
    /// What was wrong.
    pub problems: Vec<String>,
}

/// Something that is wanted and comes true after a while.
enum Goal {
    /// A service is as described, or gone.
    Service(&'static str, Option<Wanted>),
    /// So many replicas.
    Scale(&'static str, Wanted),
    /// The last cluster, or the last node, is a member and connected.
    Joined(Who),
    /// A daemon shows a new certificate.
    Renewed(Who),
}

/// How a sweep is done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Print every event.
    pub trace: bool,
    /// Acts are performed before their writes are durable: a planted bug.
    pub acts_first: bool,
}

impl Default for Options {
    /// As in CI.
    fn default() -> Self {
        Self {
            seed: 1,
            trace: false,
            acts_first: false,
        }
    }
}

/// Runs a scenario; with a crash at a point if one is given.
pub fn run(scenario: Scenario, point: Option<Point>, options: Options) -> Outcome {
    let (nodes, installed) = match scenario {
        Scenario::Join => (vec![1, 1], 1),
        _ => (vec![2, 1], 2),
    };
    let mut world = World::new(Plan {
        gentle: true,
        nodes,
        installed,
        weather: Weather {
            latency_ms: 20,
            loss: 0,
            twice: 0,
            late: 0,
        },
        calm_at: 0,
        acts_first: options.acts_first,
        ..Plan::of(options.seed, options.trace)
    });
    let mut sweep = Sweep {
        world: &mut world,
        problems: Vec::new(),
    };
    sweep.world.run_until(6_000);
    for goal in before(scenario) {
        sweep.reach(&goal);
    }
    let quiet = sweep.world.t + 2_000;
    sweep.world.run_until(quiet);
    sweep.world.points.armed = point.map(|point| (point.level, point.number));
    sweep.world.points.counting = true;
    let goals = wanted(scenario);
    for goal in &goals {
        sweep.reach(goal);
    }
    let tail = sweep.world.t + TAIL_MS;
    sweep.world.run_until(tail);
    sweep.world.points.counting = false;
    if scenario == Scenario::Renew {
        sweep.expire_old();
    }
    sweep.settle(scenario, goals.last());
    let problems = sweep.problems;
    Outcome {
        reached: world.points.reached,
        crashed: world.points.crashed.take(),
        problems,
    }
}

/// What is there before the scenario.
fn before(scenario: Scenario) -> Vec<Goal> {
    let web = Goal::Service("web", Some(Wanted::plain(1, 2)));
    let one = Goal::Service("one", Some(Wanted::plain(2, 1).fenced()));
    match scenario {
        Scenario::Deploy => Vec::new(),
        Scenario::Replace | Scenario::Scale | Scenario::Delete | Scenario::Renew => vec![web, one],
        Scenario::Join => vec![web],
    }
}

/// What is done in the scenario, one after another.
fn wanted(scenario: Scenario) -> Vec<Goal> {
    match scenario {
        Scenario::Deploy => vec![
            Goal::Service("web", Some(Wanted::plain(1, 3).published(8_000))),
            Goal::Service("one", Some(Wanted::plain(2, 1).fenced())),
        ],
        Scenario::Replace => vec![
            Goal::Service("web", Some(Wanted::plain(3, 2))),
            Goal::Service("one", Some(Wanted::plain(4, 1).fenced())),
        ],
        Scenario::Scale => vec![
            Goal::Scale("web", Wanted::plain(1, 4)),
            Goal::Scale("web", Wanted::plain(1, 1)),
        ],
        Scenario::Delete => vec![Goal::Service("web", None), Goal::Service("one", None)],
        Scenario::Join => vec![
            Goal::Joined(Who::Cluster(1)),
            Goal::Joined(Who::Node(1)),
            // Shows that what has joined takes part.
            Goal::Service("pinned", Some(Wanted::plain(5, 2).on("c1"))),
        ],
        Scenario::Renew => vec![Goal::Renewed(Who::Cluster(0)), Goal::Renewed(Who::Node(0))],
    }
}

/// What a sweep over one scenario found.
#[derive(Debug)]
pub struct Swept {
    /// The scenario.
    pub scenario: Scenario,
    /// How many points each tier has, by [`Level::ALL`]; all of them were crashed at.
    pub points: [u64; 4],
    /// What went wrong, with the point.
    pub failures: Vec<String>,
}

/// Crashes at every point of these scenarios, in so many threads.
pub fn sweep(scenarios: &[Scenario], options: Options, threads: usize) -> Vec<Swept> {
    let mut swept: Vec<Swept> = Vec::new();
    let mut work: Vec<Point> = Vec::new();
    for &scenario in scenarios {
        let whole = run(scenario, None, options);
        let mut failures = Vec::new();
        failures.extend(
            whole
                .problems
                .into_iter()
                .map(|problem| format!("{scenario} without a crash: {problem}")),
        );
        for level in Level::ALL {
            let count = whole.reached[level as usize];
            work.extend((0..count).map(|number| Point {
                scenario,
                level,
                number,
            }));
        }
        let points = whole.reached;
        swept.push(Swept {
            scenario,
            points,
            failures,
        });
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(point) = work.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let outcome = run(point.scenario, Some(*point), options);
                    let at = outcome.crashed.unwrap_or_else(|| "never reached".to_owned());
                    let mut problems = outcome.problems;
                    if at == "never reached" {
                        problems.push("the same seed did not reach it again".to_owned());
                    }
                    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    found.extend(
                        problems
                            .into_iter()
                            .map(|problem| (*point, format!("{point} ({at}): {problem}"))),
                    );
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort();
    for (point, failure) in found {
        let of = swept.iter_mut().find(|one| one.scenario == point.scenario);
        of.expect("its scenario was swept").failures.push(failure);
    }
    swept
}

/// The table of a sweep: scenario by tier, how many points.
pub fn table(swept: &[Swept]) -> String {
    let row = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:>8}")).collect();
        format!("{name:<10}{cells}\n")
    };
    let count = |points: [u64; 4]| {
        let all: u64 = points.iter().sum();
        points.iter().chain([&all]).map(u64::to_string).collect()
    };
    let names = Level::ALL.iter().map(Level::to_string);
    let mut text = row("points", names.chain(["all".to_owned()]).collect());
    let mut sum = [0; 4];
    for one in swept {
        text.push_str(&row(&one.scenario.to_string(), count(one.points)));
        for (sum, points) in sum.iter_mut().zip(one.points) {
            *sum += points;
        }
    }
    text.push_str(&row("all", count(sum)));
    text
}

struct Sweep<'a> {
    world: &'a mut World,
    problems: Vec<String>,
}

impl Sweep<'_> {
    /// Does what leads to the goal, again if it was lost, until it is reached.
    fn reach(&mut self, goal: &Goal) {
        let deadline = self.world.t + DEADLINE_MS;
        while !self.is_reached(goal) {
            if self.world.t >= deadline {
                self.problems.push(format!("{} was not reached", describe(goal)));
                return;
            }
            self.ask(goal);
            let next = self.world.t + LOOK_MS;
            self.world.run_until(next);
        }
    }

    fn is_reached(&mut self, goal: &Goal) -> bool {
        match goal {
            Goal::Service(name, wanted) => self.world.is_settled(name, wanted.as_ref()),
            Goal::Scale(name, wanted) => self.world.is_settled(name, Some(wanted)),
            Goal::Joined(who) => self.world.is_member(*who),
            Goal::Renewed(who) => {
                let papers = self.world.papers(*who).clone();
                papers.certificate == Some(papers.in_force) && papers.in_force > 0 && self.world.is_member(*who)
            }
        }
    }

    /// Asks for what is wanted, unless somebody is at it.
    fn ask(&mut self, goal: &Goal) {
        match goal {
            Goal::Service(name, wanted) => self.call(name, wanted.as_ref(), false),
            Goal::Scale(name, wanted) => self.call(name, Some(wanted), true),
            Goal::Joined(who) => self.join(*who),
            Goal::Renewed(who) => {
                self.world.adopt_papers(*who);
                let papers = self.world.papers(*who);
                if papers.asking.is_none() && papers.certificate.is_none() && self.world.is_up(*who) {
                    self.world.request(*who);
                }
            }
        }
    }

    fn call(&mut self, name: &str, wanted: Option<&Wanted>, scale: bool) {
        let world = &mut *self.world;
        world.announce(name);
        let known = &world.users.services[name];
        if known.busy || known.may_be == [wanted.cloned()] || !world.is_up(Who::Root) {
            return;
        }
        let call = match wanted {
            None => Call::DeleteApplication(name.to_owned()),
            Some(wanted) if scale => Call::Scale {
                service: format!("{name}/web"),
                replicas: wanted.replicas,
            },
            Some(wanted) => Call::Apply {
                descriptor: crate::work::descriptor(name, wanted).into_bytes(),
                dry_run: false,
            },
        };
        world.call(name.to_owned(), wanted.cloned(), call);
    }

    /// The operator makes a token, and the daemon is started with it.
    fn join(&mut self, who: Who) {
        let world = &mut *self.world;
        if world.papers(who).token.is_some() || !world.is_up(Who::Root) {
            return;
        }
        if let Some(answer) = world.users.operator_answer.take() {
            world.users.operator = None;
            let created = answer
                .ok()
                .and_then(|value| serde_json::from_value::<CreatedToken>(value).ok());
            if let Some(token) = created.and_then(|created| created.token.parse::<JoinToken>().ok()) {
                world.papers(who).token = Some(token);
                world.push(world.t + 10, Ev::Start(who));
            }
        } else if world.users.operator.is_none() {
            let (kind, cluster) = match who {
                Who::Node(index) => {
                    let cluster = world.nodes[index].cluster;
                    (TokenKind::Node, Some(world.clusters[cluster].config.name.clone()))
                }
                _ => (TokenKind::Cluster, None),
            };
            let call = Call::CreateToken(CreateToken {
                kind,
                cluster,
                ttl_ms: None,
                needs_approval: false,
                name: None,
            });
            world.operate(call);
        }
    }

    /// The certificates from before the scenario run out, and every connection of who renewed is made anew.
    fn expire_old(&mut self) {
        let world = &mut *self.world;
        let renewed = world.papers.iter().filter(|(_, papers)| papers.certificate.is_some());
        let renewed: Vec<Who> = renewed.map(|(who, _)| *who).collect();
        for who in renewed {
            let beside = match who {
                Who::Node(index) => Some(Who::Net(index)),
                _ => None,
            };
            for who in [who].into_iter().chain(beside) {
                let link = world.link_of(who);
                world.links[link].valid_from = 1;
                world.cut(link, 100);
            }
        }
        let soon = world.t + 200;
        world.run_until(soon);
    }

    /// Waits until everything that must hold holds, and goes on holding.
    fn settle(&mut self, scenario: Scenario, last: Option<&Goal>) {
        let deadline = self.world.t + DEADLINE_MS;
        let mut held_since = None;
        loop {
            let found = self.check(scenario, last);
            if found.is_empty() {
                let since = *held_since.get_or_insert(self.world.t);
                if self.world.t >= since + QUIET_MS {
                    break;
                }
            } else if held_since.is_some() || self.world.t >= deadline {
                let held = held_since.map_or("", |_| " (after all was well)");
                self.problems
                    .extend(found.into_iter().map(|problem| format!("{problem}{held}")));
                break;
            }
            let next = self.world.t + QUIET_MS / 2;
            self.world.run_until(next);
        }
        let watched = std::mem::take(&mut self.world.violations);
        self.problems.extend(watched.iter().map(tell));
    }

    /// Everything that is wrong now.
    fn check(&mut self, scenario: Scenario, last: Option<&Goal>) -> Vec<String> {
        let watched = std::mem::take(&mut self.world.violations);
        let mut found = Vec::new();
        if self.world.is_up(Who::Root) {
            self.world.check();
        } else {
            found.push("the root is down".to_owned());
        }
        found.extend(std::mem::replace(&mut self.world.violations, watched).iter().map(tell));
        if let Some(goal) = last.filter(|goal| !self.is_reached(goal)) {
            found.push(format!("{} does not hold", describe(goal)));
        }
        if scenario == Scenario::Join {
            found.extend(self.world.check_joined());
        }
        found
    }
}

fn tell(violation: &Violation) -> String {
    let at = violation.at as f64 / 1000.0;
    format!("{} at {at:.3} s: {}", violation.invariant, violation.detail)
}

fn describe(goal: &Goal) -> String {
    match goal {
        Goal::Service(name, Some(wanted)) => format!("{name} with content {} x {}", wanted.content, wanted.replicas),
        Goal::Service(name, None) => format!("the end of {name}"),
        Goal::Scale(name, wanted) => format!("{name} x {}", wanted.replicas),
        Goal::Joined(who) => format!("the membership of {who:?}"),
        Goal::Renewed(who) => format!("the new certificate of {who:?}"),
    }
}

impl World {
    /// The user was answered, and what runs on all nodes is exactly what he asked for.
    fn is_settled(&self, name: &str, wanted: Option<&Wanted>) -> bool {
        let known = self.users.services.get(name);
        if !known.is_some_and(|known| !known.busy && known.may_be == [wanted.cloned()]) {
            return false;
        }
        let path = format!("{name}/web");
        let all = self.nodes.iter().flat_map(|host| host.containers.values());
        let own: Vec<_> = all.filter(|container| container.spec.path == path).collect();
        let right = |wanted: &Wanted| {
            own.iter()
                .all(|one| one.state == State::Running && content(&one.spec) == wanted.content)
        };
        match wanted {
            Some(wanted) => own.len() == wanted.replicas as usize && right(wanted),
            None => own.is_empty(),
        }
    }

    /// A daemon is up, connected, and known to its parent by its key.
    fn is_member(&mut self, who: Who) -> bool {
        let key = match self.papers(who).key.clone() {
            Some(key) => key,
            None => return false,
        };
        let (connected, registry) = match who {
            Who::Node(index) => {
                let tier = self.nodes[index].daemon.tier.as_ref();
                let parent = &self.clusters[self.nodes[index].cluster].daemon.tier;
                (
                    tier.is_some_and(roble_node::tier::NodeTier::is_connected),
                    parent.as_ref().map(|tier| tier.registry()),
                )
            }
            Who::Cluster(index) => {
                let tier = self.clusters[index].daemon.tier.as_ref();
                let parent = self.root.tier.as_ref();
                (
                    tier.is_some_and(roble_cluster::tier::ClusterTier::is_connected),
                    parent.map(|tier| tier.registry()),
                )
            }
            Who::Root | Who::Net(_) => return false,
        };
        let active = registry.is_some_and(|registry| {
            let mut members = registry.members();
            members.any(|member| member.key_sha256 == key && member.state == MemberState::Active)
        });
        connected && active
    }

    /// A daemon of the installed tree renews with the key it joined with.
    fn adopt_papers(&mut self, who: Who) {
        let key = match who {
            Who::Node(index) => self.nodes[index].key.clone(),
            Who::Cluster(index) => format!("key-{}", self.clusters[index].config.name),
            Who::Root | Who::Net(_) => return,
        };
        let registry = match who {
            Who::Node(index) => self.clusters[self.nodes[index].cluster]
                .daemon
                .tier
                .as_ref()
                .map(|tier| tier.registry()),
            _ => self.root.tier.as_ref().map(|tier| tier.registry()),
        };
        let member = registry.and_then(|registry| registry.members().find(|member| member.key_sha256 == key));
        let home = member.cloned();
        let papers = self.papers(who);
        papers.key.get_or_insert(key);
        if papers.home.is_none() {
            papers.home = home;
        }
    }

    /// Each name is one member with one key, and the token of each let in that key.
    fn check_joined(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut registries = Vec::new();
        registries.extend(self.root.tier.as_ref().map(|tier| ("root".to_owned(), tier.registry())));
        for host in &self.clusters {
            registries.extend(
                host.daemon
                    .tier
                    .as_ref()
                    .map(|tier| (host.config.name.clone(), tier.registry())),
            );
        }
        for (of, registry) in registries {
            let mut names: BTreeMap<&str, u32> = BTreeMap::new();
            for member in registry.members() {
                *names.entry(&member.name).or_default() += 1;
                let token = member.token.and_then(|token| registry.token(token));
                if token.is_none_or(|token| token.used_by.as_ref() != Some(&member.key_sha256)) {
                    found.push(format!("{of}: {} is not who used {token:?}", member.name));
                }
            }
            let twice = names.into_iter().filter(|(_, count)| *count > 1);
            found.extend(twice.map(|(name, count)| format!("{of}: {count} members are called {name}")));
        }
        for (who, papers) in &self.papers {
            if papers.key.is_some() && papers.home.as_ref().map(|home| &home.key_sha256) != papers.key.as_ref() {
                found.push(format!("{who:?} has the key {:?} but is {:?}", papers.key, papers.home));
            }
        }
        found
    }
}

//! The users: what they ask of the tree, and what they were promised.

use crate::drive::Input;
use crate::identity::FIRST_REQUEST;
use crate::world::{Ev, Who, World};
use rand::Rng;
use roble_cluster::tier::Event as ClusterEvent;
use roble_core::ids::{OrganizationId, TokenId, UserId};
use roble_core::registry::{JoinToken, Member, RegistryError};
use roble_core::tier::Write;
use roble_core::time::Timestamp;
use roble_proto::rest::{Applied, JoinRequest};
use roble_root::tier::model::{self, Organization, Session, User};
use roble_root::tier::{Answer, Call, Caller, Change, Event as RootEvent};
use std::collections::{BTreeMap, BTreeSet};

/// Users' sessions: of the operators' organization, and of a tenant whose objects nobody else may see.
pub const SESSIONS: [&str; 2] = ["session-a", "session-b"];
/// In everything that the tenant plants.
pub const CANARY: &str = "canary";

/// What a user wants.
#[derive(Debug, Clone)]
pub enum Work {
    /// A new service, or a changed one.
    Apply,
    /// Another number of replicas.
    Scale,
    /// A service goes.
    Delete,
    /// A node takes nothing new, or again.
    Cordon(bool),
    /// A node is put out.
    Revoke,
    /// A machine tries a token that another one used.
    ReuseToken,
}

/// A service as its user described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Number of the description; in the environment of every container.
    pub content: u64,
    /// How many.
    pub replicas: u32,
    cpu_millis: u64,
    memory_mib: u64,
    port: Option<u16>,
    fenced: bool,
    job: bool,
    zone: Option<&'static str>,
    cluster: Option<String>,
    /// The application that may call it besides its own.
    pub caller: Option<String>,
}

impl Wanted {
    /// A service that any node could run.
    pub const fn plain(content: u64, replicas: u32) -> Self {
        Self {
            content,
            replicas,
            cpu_millis: 100,
            memory_mib: 32,
            port: None,
            fenced: false,
            job: false,
            zone: None,
            cluster: None,
            caller: None,
        }
    }

    /// The same, at most once at any moment.
    #[must_use]
    pub const fn fenced(mut self) -> Self {
        self.fenced = true;
        self
    }

    /// The same, with a port of its node.
    #[must_use]
    pub const fn published(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The same, on this cluster only.
    #[must_use]
    pub fn on(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }
}

/// What is known of a service.
#[derive(Debug, Clone)]
pub struct Known {
    /// Whose: index into [`SESSIONS`].
    pub owner: usize,
    /// What it may be now; more than one after a call without an answer. `None`: deleted.
    pub may_be: Vec<Option<Wanted>>,
    /// The call under way.
    pub busy: bool,
}

struct Pending {
    name: String,
    wanted: Option<Wanted>,
}

/// The users of a run.
#[derive(Default)]
pub struct Users {
    /// By application; each has one service, `web`.
    pub services: BTreeMap<String, Known>,
    pending: BTreeMap<u64, Pending>,
    calls: u64,
    contents: u64,
    /// Tokens that were used, with the cluster they are for.
    pub spent_tokens: Vec<(Option<usize>, JoinToken)>,
    /// The keys that each token let in.
    pub admitted: BTreeMap<TokenId, BTreeSet<String>>,
    /// Applies that were acknowledged.
    pub acknowledged: u64,
    /// The operator's call whose answer is kept.
    pub operator: Option<u64>,
    /// Its answer.
    pub operator_answer: Option<Answer>,
}

impl Users {
    /// A token let a key in.
    pub fn note_admitted(&mut self, token: &TokenId, key: &str) {
        self.admitted.entry(*token).or_default().insert(key.to_owned());
    }

    /// The root died: who waits for an answer does not know what became of the call.
    pub fn lost_calls(&mut self) {
        self.operator = None;
        for (_, pending) in std::mem::take(&mut self.pending) {
            if let Some(known) = self.services.get_mut(&pending.name) {
                known.may_be.push(pending.wanted);
                known.busy = false;
            }
        }
    }
}

/// Organizations, users and sessions that the root finds at its first start.
pub fn organizations() -> Vec<Write> {
    let mut writes = Vec::new();
    for (index, session) in SESSIONS.into_iter().enumerate() {
        let id = |kind: u8| format!("{:024x}", 0x1000 + u64::from(kind) * 16 + index as u64);
        let organization = Organization {
            id: id(1).parse::<OrganizationId>().expect("an id"),
            name: ["ours", CANARY][index].to_owned(),
        };
        let user = User {
            id: id(2).parse::<UserId>().expect("an id"),
            name: format!("user-{}", ["ours", CANARY][index]),
            organization: organization.id,
            is_admin: index == 0,
            has_logged_in: true,
        };
        let session = Session {
            token_sha256: session.to_owned(),
            user: user.id,
            client: "sim".to_owned(),
            expires_at: Timestamp::from_millis(u64::MAX),
        };
        writes.push(model::put("organization", &organization.id, None, &organization));
        writes.push(model::put("user", &user.id, None, &user));
        writes.push(model::put("session", &session.token_sha256, None, &session));
    }
    writes
}

/// The descriptor of an application.
pub fn descriptor(name: &str, wanted: &Wanted) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "application: {name}\nservices:\n  web:\n    image: registry.example/{name}:{}\n    replicas: {}\n    cpu: {}m\n    \
         memory: {}MiB\n    environment:\n      V: \"{}\"\n      NAME: {name}\n",
        wanted.content, wanted.replicas, wanted.cpu_millis, wanted.memory_mib, wanted.content
    );
    if let Some(port) = wanted.port {
        let _ = writeln!(text, "    ports: [\"{port}:80\"]");
    }
    if wanted.fenced {
        text.push_str("    when_cut_off: stop\n");
    }
    if wanted.job {
        text.push_str("    one_shot: true\n    restart: on-failure\n");
    }
    if let Some(caller) = &wanted.caller {
        let _ = writeln!(text, "    allow: [{{from: {caller}}}]");
    }
    if wanted.zone.is_some() || wanted.cluster.is_some() {
        text.push_str("    placement:\n");
    }
    if let Some(zone) = wanted.zone {
        let _ = writeln!(text, "      node_labels:\n        zone: {zone}");
    }
    if let Some(cluster) = &wanted.cluster {
        let _ = writeln!(text, "      cluster: {cluster}");
    }
    text
}

impl World {
    /// Plans what the users want in the run.
    pub fn plan_work(&mut self) {
        let last = if self.plan.gentle {
            60_000
        } else {
            self.plan.calm_at + 20_000
        };
        for _ in 0..self.rng.random_range(4..=16) {
            let at = self.rng.random_range(1_000..last);
            let work = match self.rng.random_range(0..20) {
                _ if self.plan.gentle => Work::Apply,
                0..=10 => Work::Apply,
                11..=13 => Work::Scale,
                14 | 15 => Work::Delete,
                16 => Work::Cordon(true),
                17 => Work::Cordon(false),
                18 => Work::ReuseToken,
                _ => Work::Revoke,
            };
            self.push(at, Ev::Work(work));
        }
    }

    fn new_service(&mut self) -> (String, Wanted) {
        let owner = usize::from(self.rng.random_bool(0.25));
        let number = self.users.services.len();
        let flaky = !self.plan.gentle && self.rng.random_bool(0.15);
        let name = format!(
            "{}{}{number}",
            ["app-", "canary-"][owner],
            if flaky { "flaky-" } else { "" }
        );
        let wanted = Wanted {
            content: 0,
            replicas: self.rng.random_range(1..=4),
            cpu_millis: self.rng.random_range(1..=8) * 100,
            memory_mib: self.rng.random_range(1..=8) * 32,
            port: self.rng.random_bool(0.2).then(|| self.rng.random_range(8_000..8_003)),
            fenced: !flaky && self.rng.random_bool(0.35),
            job: !flaky && self.rng.random_bool(0.1),
            zone: self
                .rng
                .random_bool(0.2)
                .then(|| ["edge", "core"][self.rng.random_range(0..2)]),
            cluster: self
                .rng
                .random_bool(0.15)
                .then(|| format!("c{}", self.rng.random_range(0..self.clusters.len()))),
            caller: self.any_caller(owner),
        };
        let known = Known {
            owner,
            may_be: vec![None],
            busy: false,
        };
        self.users.services.insert(name.clone(), known);
        (name, wanted)
    }

    /// An application whose owner may let it in, or nobody.
    fn any_caller(&mut self, owner: usize) -> Option<String> {
        let own = self.users.services.iter().filter(|(_, known)| known.owner == owner);
        let names: Vec<String> = own.map(|(name, _)| name.clone()).collect();
        let is_open = !names.is_empty() && self.rng.random_bool(0.4);
        is_open.then(|| names[self.rng.random_range(0..names.len())].clone())
    }

    fn change_service(&mut self, name: &str, wanted: &mut Wanted) {
        if self.rng.random_bool(0.3) {
            let owner = self.users.services[name].owner;
            wanted.caller = self.any_caller(owner).filter(|caller| caller != name);
        }
        if self.plan.gentle {
            return;
        }
        match self.rng.random_range(0..4) {
            0 => wanted.cpu_millis = self.rng.random_range(1..=8) * 100,
            1 => wanted.memory_mib = self.rng.random_range(1..=8) * 32,
            2 => wanted.replicas = self.rng.random_range(0..=4),
            _ => {}
        }
    }

    /// A service that is there for sure, and that nobody is changing.
    fn any_service(&mut self) -> Option<(String, Wanted)> {
        let known = self.users.services.iter().filter(|(_, known)| !known.busy);
        let sure: Vec<(String, Wanted)> = known
            .filter_map(|(name, known)| match known.may_be.as_slice() {
                [Some(wanted)] => Some((name.clone(), wanted.clone())),
                _ => None,
            })
            .collect();
        if sure.is_empty() {
            return None;
        }
        let index = self.rng.random_range(0..sure.len());
        sure.into_iter().nth(index)
    }

    /// A user's service of this name, which is not there yet.
    pub fn announce(&mut self, name: &str) {
        let known = Known {
            owner: 0,
            may_be: vec![None],
            busy: false,
        };
        self.users.services.entry(name.to_owned()).or_insert(known);
    }

    /// Somebody wants something.
    pub fn work(&mut self, work: Work) {
        self.log.line(self.t, format_args!("work {work:?}"));
        if !self.is_up(Who::Root) {
            self.push(self.t + 3_000, Ev::Work(work));
            return;
        }
        match work {
            Work::Apply => {
                let known = if self.rng.random_bool(0.4) {
                    self.any_service()
                } else {
                    None
                };
                let (name, mut wanted) = match known {
                    Some((name, mut wanted)) => {
                        self.change_service(&name, &mut wanted);
                        (name, wanted)
                    }
                    None => self.new_service(),
                };
                self.users.contents += 1;
                wanted.content = self.users.contents;
                if let Some(caller) = &wanted.caller {
                    self.ledger.opened.insert((name.clone(), caller.clone()));
                }
                let call = Call::Apply {
                    descriptor: descriptor(&name, &wanted).into_bytes(),
                    dry_run: false,
                };
                self.call(name, Some(wanted), call);
            }
            Work::Scale => {
                let Some((name, mut wanted)) = self.any_service() else {
                    return;
                };
                wanted.replicas = self.rng.random_range(0..=5);
                let call = Call::Scale {
                    service: format!("{name}/web"),
                    replicas: wanted.replicas,
                };
                self.call(name, Some(wanted), call);
            }
            Work::Delete => {
                let Some((name, _)) = self.any_service() else { return };
                let call = Call::DeleteApplication(name.clone());
                self.call(name, None, call);
            }
            Work::Cordon(cordon) => {
                let node = self.rng.random_range(0..self.nodes.len());
                let change = if cordon { Change::Cordon } else { Change::Uncordon };
                let _ = self.operate(Call::ChangeNode(self.nodes[node].name.clone(), change));
            }
            Work::Revoke => {
                let node = self.rng.random_range(0..self.nodes.len());
                let siblings = self
                    .nodes
                    .iter()
                    .filter(|host| host.cluster == self.nodes[node].cluster);
                if siblings.count() > 1 {
                    let _ = self.operate(Call::ChangeNode(self.nodes[node].name.clone(), Change::Revoke));
                }
            }
            Work::ReuseToken => self.reuse_token(),
        }
    }

    /// The operator calls; the number of the call.
    pub fn operate(&mut self, call: Call) -> u64 {
        self.users.calls += 1;
        let number = self.users.calls;
        let event = RootEvent::Call(number, Caller::Session(SESSIONS[0].to_owned()), call);
        self.users.operator = Some(number);
        self.give(Who::Root, Input::Root(Box::new(event)));
        number
    }

    /// Somebody calls about a service of his.
    pub fn call(&mut self, name: String, wanted: Option<Wanted>, call: Call) {
        self.users.calls += 1;
        let number = self.users.calls;
        let Some(known) = self.users.services.get_mut(&name) else {
            return;
        };
        known.busy = true;
        let caller = Caller::Session(SESSIONS[known.owner].to_owned());
        self.users.pending.insert(number, Pending { name, wanted });
        let event = RootEvent::Call(number, caller, call);
        self.give(Who::Root, Input::Root(Box::new(event)));
    }

    /// An answer reached its user.
    pub fn answered(&mut self, number: u64, answer: Answer) {
        if number >= FIRST_REQUEST {
            let member = match answer {
                Ok(value) => serde_json::from_value::<Member>(value).map_err(|error| error.to_string()),
                Err(refusal) => Err(refusal.body.message),
            };
            self.granted(number, member);
            return;
        }
        if self.users.operator.is_some_and(|asked| asked == number) {
            self.users.operator_answer = Some(answer);
            return;
        }
        let Some(pending) = self.users.pending.remove(&number) else {
            return;
        };
        let Some(known) = self.users.services.get_mut(&pending.name) else {
            return;
        };
        known.busy = false;
        match answer {
            Ok(value) => {
                known.may_be = vec![pending.wanted];
                self.users.acknowledged += 1;
                self.log.line(self.t, format_args!("acknowledged {}", pending.name));
                if let Ok(applied) = serde_json::from_value::<Applied>(value) {
                    self.log.detail(self.t, || format!("{applied:?}"));
                }
            }
            // Deleted by the same call before, whose answer was lost.
            Err(refusal) if pending.wanted.is_none() && refusal.status == 404 => known.may_be = vec![None],
            Err(refusal) => {
                let detail = format!("{} refused: {:?}", pending.name, refusal.body);
                self.violate("I6", detail);
            }
        }
    }

    fn reuse_token(&mut self) {
        let index = self.rng.random_range(0..self.users.spent_tokens.len());
        let (cluster, token) = self.users.spent_tokens[index].clone();
        let key_sha256 = format!("thief-{}", self.rng.random_range(0..1_000_000));
        match cluster {
            None => {
                let request = JoinRequest {
                    token: token.id,
                    secret: token.secret,
                    name: "thief".to_owned(),
                    csr: String::new(),
                };
                let call = Call::Join {
                    request,
                    key_sha256: key_sha256.clone(),
                };
                if self.call_now(Caller::Anonymous, call).is_ok() {
                    self.users.note_admitted(&token.id, &key_sha256);
                }
            }
            Some(cluster) => {
                let event = ClusterEvent::Join {
                    asker: 77,
                    token: token.id,
                    secret: token.secret,
                    key_sha256: key_sha256.clone(),
                    name: "thief".to_owned(),
                };
                self.give(Who::Cluster(cluster), Input::Cluster(Box::new(event)));
            }
        }
    }

    /// A cluster answered a join.
    pub fn rejoined(&mut self, cluster: usize, number: u64, result: &Result<Member, RegistryError>) {
        if let (77, Ok(member)) = (number, result) {
            self.log.line(self.t, format_args!("c{cluster} let {} in", member.name));
            let key = member.key_sha256.clone();
            if let Some(token) = &member.token {
                self.users.note_admitted(token, &key);
            }
        }
    }
}

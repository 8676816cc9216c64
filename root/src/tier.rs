//! The root's tier: users and their applications above, clusters below. No I/O.
//!
//! What is stored, by kind: `organization`, `user`, `session`, `credential`, `application`, `service`, `instance`
//! (a placement record), `member` (a cluster), `profile`, `token`, `audit`. Everything of a tenant is written below its
//! organization, and read through [`tenant::Tenant`], which sees one organization only. Of audit records only the names
//! are held here.

mod access;
mod fleet;
pub mod model;
mod overlay;
mod rules;
mod services;
mod stored;
pub mod tenant;
mod trace;
mod views;

pub use access::is_about;
use model::{Application, Credential, Event as Happening, InstanceRecord, Organization, Service, Session, User};
use overlay::Overlay;
use rand::RngCore;
use roble_core::ids::{
    ApplicationId, ChildId, ClusterId, EventId, InstanceId, OrganizationId, RawId, ServiceId, TokenId, UserId,
};
use roble_core::liveness::Clocks;
use roble_core::overlay::plan::Plan;
use roble_core::placement::{Level, Profile};
use roble_core::registry::{Member, MemberState, Registry};
use roble_core::spec::Assignment;
use roble_core::tier::{Output, Record, Tier, Write};
use roble_core::time::{Boottime, Now};
use roble_core::version::{Epochs, Version};
use roble_daemon::refusal::Refusal;
use roble_link::children::{Children, ChildrenOutput};
use roble_link::parent::ParentClocks;
use roble_link::tables::TableServer;
use roble_proto::local_net::About;
use roble_proto::rest::{CreateToken, JoinRequest, Login};
use roble_proto::wire;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use stored::Stored;
pub use trace::Traced;

/// How many events are kept.
const EVENTS: usize = 2_000;

/// Who asks, in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular: only what needs no session.
    Anonymous,
    /// The holder of a session, by the SHA-256 of its token.
    Session(String),
    /// Somebody at the root's own machine, over the local socket.
    Local,
    /// A cluster, by the SHA-256 of the public key in its certificate.
    Cluster(String),
}

/// A call of the users' API. The answer is JSON of the REST type named in `roble_proto::rest`.
#[derive(Debug, Clone)]
pub enum Call {
    /// Exchange a one-time credential for a session. Needs no session.
    Login(Login),
    /// Who calls.
    WhoAmI,
    /// Make a new one-time credential. Local only. Answers `{"credential": ...}`.
    NewCredential {
        /// Of this organization, which is made if there is none of the name; `None`: of the admin.
        organization: Option<String>,
    },
    /// Apply a descriptor.
    Apply {
        /// JSON or YAML.
        descriptor: Vec<u8>,
        /// Change nothing.
        dry_run: bool,
    },
    /// One application, or all.
    Applications(Option<String>),
    /// One service, or all.
    Services(Option<String>),
    /// One instance, or all.
    Instances(Option<String>),
    /// Delete an application.
    DeleteApplication(String),
    /// Delete a service.
    DeleteService(String),
    /// Change the number of replicas.
    Scale {
        /// Which service.
        service: String,
        /// How many.
        replicas: u32,
    },
    /// Why an instance is where it is.
    Explain(String),
    /// Have the node of an instance dial a stream with its log.
    OpenLogs {
        /// Which instance.
        instance: String,
        /// The stream's id, unguessable.
        stream: String,
        /// Go on as it grows.
        follow: bool,
        /// Lines from the end.
        tail: Option<u32>,
    },
    /// What is known of both ends of a way. Answers [`Ends`](crate::trace::Ends).
    Ends(Traced),
    /// Ask the net manager of the node that holds an instance.
    AskNet {
        /// Which instance.
        instance: String,
        /// What.
        about: About,
    },
    /// One cluster, or all.
    Clusters(Option<String>),
    /// Change a cluster.
    ChangeCluster(String, Change),
    /// All nodes of one cluster, or of all.
    Nodes {
        /// Name or id of the cluster.
        cluster: Option<String>,
    },
    /// Change a node.
    ChangeNode(String, Change),
    /// Make a join token.
    CreateToken(CreateToken),
    /// All join tokens.
    Tokens,
    /// Delete a join token, of a cluster or of a node.
    DeleteToken(String),
    /// Ids of audit records, the newest, in order of time. Answers [`AuditIds`].
    Audit {
        /// Only older ones.
        before: Option<EventId>,
        /// At most so many.
        limit: usize,
    },
    /// Events after an id, about something.
    Events {
        /// Only later ones.
        after: Option<EventId>,
        /// Only about this and what is below it.
        about: Option<String>,
    },
    /// A cluster joins. Needs no session. Answers a [`Member`].
    Join {
        /// As sent.
        request: JoinRequest,
        /// SHA-256 of the public key in the certificate request, hex.
        key_sha256: String,
    },
    /// A cluster renews, known by its key. Answers a [`Member`].
    Renew,
    /// What the holder of a key is, by its SHA-256 in hex. Needs no session. Answers a [`roble_proto::rest::MemberAnswer`].
    MemberState(String),
}

/// Which audit records there are; their text is in the store only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditIds {
    /// Below which organization.
    pub organization: OrganizationId,
    /// In order of time.
    pub ids: Vec<EventId>,
}

/// How much of what was done is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditLimits {
    /// Records.
    pub records: usize,
    /// Milliseconds.
    pub age_ms: u64,
}

impl Default for AuditLimits {
    fn default() -> Self {
        Self {
            records: 10_000,
            age_ms: 90 * 86_400_000,
        }
    }
}

/// What is done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Let it take part.
    Approve,
    /// Put it out for good.
    Revoke,
    /// Give it nothing new.
    Cordon,
    /// Give it new things again.
    Uncordon,
}

/// The answer to a call: JSON.
pub type Answer = Result<serde_json::Value, Refusal>;

/// What happens to the root.
#[derive(Debug)]
pub enum Event {
    /// A call; answered with [`Act::Answer`] of the same number.
    Call(u64, Caller, Call),
    /// A message of a cluster, named by its certificate.
    Message(ClusterId, wire::Frame),
    /// The transport lost a cluster.
    Down(ClusterId),
}

/// What the root asks of its shell.
#[derive(Debug)]
pub enum Act {
    /// Answer a call.
    Answer(u64, Answer),
    /// Send this to a cluster; it may be lost.
    Send(ClusterId, wire::Frame),
    /// Put a cluster out: close its connections and refuse new ones.
    Expel(ClusterId),
    /// Something happened: tell those who follow events, and the log.
    Happened(Box<roble_proto::rest::EventView>, OrganizationScope),
    /// A cluster broke the protocol: counted.
    Violation(String),
}

/// Whose an event is: a tenant's, or the operators'.
pub type OrganizationScope = Option<OrganizationId>;

/// What a root is.
#[derive(Debug, Clone)]
pub struct RootConfig {
    /// Timing of its clusters.
    pub clocks: Clocks,
    /// Software version.
    pub software: String,
    /// The authority's pin, for join tokens.
    pub pin: String,
    /// Milliseconds a session lives.
    pub session_ms: u64,
    /// How much of what was done is remembered.
    pub audit: AuditLimits,
    /// The overlay's ranges.
    pub plan: Plan,
}

/// Waits for clusters to answer parts of a call.
#[derive(Debug)]
struct Gather {
    call: u64,
    kind: GatherKind,
    waiting: BTreeSet<(ChildId, u64)>,
    parts: Vec<(ChildId, Result<Vec<u8>, wire::Failure>)>,
    since: Boottime,
}

#[derive(Debug)]
enum GatherKind {
    /// Concatenate lists, after this one.
    Lists(Vec<serde_json::Value>),
    /// The single answer as it is.
    One,
    /// Find the cluster that has this token in its list, then delete it there.
    FindToken(TokenId),
    /// Find the node by name or id in all lists, then change it.
    FindNode(String, Change),
    /// The cluster's part of an explanation, to be put into this.
    Explain(Box<roble_proto::rest::Explained>),
}

/// The root. See the module's text.
#[derive(Debug)]
pub struct RootTier {
    config: RootConfig,
    organizations: BTreeMap<OrganizationId, Organization>,
    users: BTreeMap<UserId, User>,
    sessions: BTreeMap<String, Session>,
    credentials: BTreeMap<String, Credential>,
    applications: BTreeMap<ApplicationId, Application>,
    services: BTreeMap<ServiceId, Service>,
    /// The generation each instance is asked to run; stored in its record.
    wished: BTreeMap<InstanceId, u64>,
    /// Services whose instances are to be compared with what they should be.
    rollout: BTreeSet<ServiceId>,
    registry: Registry,
    children: Children,
    events: VecDeque<(OrganizationScope, roble_proto::rest::EventView)>,
    /// What was last told of an instance, so that an event is made once.
    told: BTreeMap<InstanceId, roble_core::status::Phase>,
    gathers: Vec<Gather>,
    /// Audit records and whose they are; what they say is in the store only.
    audit: BTreeMap<EventId, OrganizationId>,
    overlay: Overlay,
}

impl RootTier {
    /// Takes up what was stored; makes the first organization and user if there are none.
    /// Returns the writes of that and the records that could not be read.
    pub fn new(
        config: RootConfig,
        records: &[Record],
        now: Now,
        rng: &mut dyn RngCore,
    ) -> (Self, Vec<Write>, Vec<String>) {
        let tables = TableServer::new(ParentClocks::of_tables(&config.clocks), false).at_the_top();
        let mut tier = Self {
            children: Children::new(Level::Clusters, config.clocks, true, now.boot),
            overlay: Overlay::new(config.plan, tables),
            config,
            organizations: BTreeMap::new(),
            users: BTreeMap::new(),
            sessions: BTreeMap::new(),
            credentials: BTreeMap::new(),
            applications: BTreeMap::new(),
            services: BTreeMap::new(),
            wished: BTreeMap::new(),
            rollout: BTreeSet::new(),
            registry: Registry::default(),
            events: VecDeque::new(),
            told: BTreeMap::new(),
            gathers: Vec::new(),
            audit: BTreeMap::new(),
        };
        let mut bad = tier.restore(records);
        let mut writes = tier.restore_overlay(now, &mut bad);
        if tier.organizations.is_empty() {
            let organization = Organization {
                id: OrganizationId::generate(now.wall, rng),
                name: "root".to_owned(),
            };
            let user = User {
                id: UserId::generate(now.wall, rng),
                name: "admin".to_owned(),
                organization: organization.id,
                is_admin: true,
                has_logged_in: false,
            };
            writes.push(model::put("organization", &organization.id, None, &organization));
            writes.push(model::put("user", &user.id, None, &user));
            tier.organizations.insert(organization.id, organization);
            tier.users.insert(user.id, user);
        }
        (tier, writes, bad)
    }

    fn restore(&mut self, records: &[Record]) -> Vec<String> {
        let mut bad = Vec::new();
        let mut profiles = BTreeMap::new();
        let mut instances: Vec<(InstanceId, InstanceRecord)> = Vec::new();
        for read in stored::read_all(records) {
            match read {
                Ok(Stored::Organization(it)) => drop(self.organizations.insert(it.id, it)),
                Ok(Stored::User(it)) => drop(self.users.insert(it.id, it)),
                Ok(Stored::Session(it)) => drop(self.sessions.insert(it.token_sha256.clone(), it)),
                Ok(Stored::Credential(it)) => drop(self.credentials.insert(it.sha256.clone(), it)),
                Ok(Stored::Application(it)) => drop(self.applications.insert(it.id, it)),
                Ok(Stored::Service(it)) => drop(self.services.insert(it.id, *it)),
                Ok(Stored::Instance(id, it)) => instances.push((id, *it)),
                Ok(Stored::Member(it)) => self.registry.restore_member(*it),
                Ok(Stored::Token(it)) => self.registry.restore_token(*it),
                Ok(Stored::Audit(id, organization)) => drop(self.audit.insert(id, organization)),
                Ok(Stored::Profile(member, it)) => drop(profiles.insert(member, *it)),
                Ok(Stored::Block(it)) => self.overlay.restore_block(&it),
                Ok(Stored::Rested(address, since)) => self.overlay.restore_rested(address, since),
                Ok(Stored::Foreign) => {}
                Err(error) => bad.push(error),
            }
        }
        let active = |member: &&Member| member.state == MemberState::Active;
        for member in self.registry.members().filter(active) {
            let unknown = Profile {
                name: member.name.clone(),
                ..Profile::default()
            };
            let profile = profiles.remove(&member.id.to_string()).unwrap_or(unknown);
            self.children.add_child(member.id, profile, member.cordoned);
        }
        for (instance, record) in instances {
            let service = self.services.get(&instance.service);
            let spec = service
                .filter(|service| !service.deleting && !record.removed)
                .and_then(|s| s.specs.get(&record.generation));
            let wish = spec.map(|spec| Assignment {
                instance,
                version: version(record.generation),
                spec: spec.clone(),
            });
            self.wished.insert(instance, record.generation);
            self.children.restore(instance, wish, record.placement);
        }
        self.rollout.extend(self.services.keys());
        bad
    }

    /// Addresses and tables as the records say; services of before there were addresses get theirs. Returns the writes of
    /// that.
    fn restore_overlay(&mut self, now: Now, bad: &mut Vec<String>) -> Vec<Write> {
        let mut out = Output::default();
        for service in self.services.values() {
            if !self.overlay.restore_service(service) {
                let path = &service.path;
                bad.push(format!(
                    "service {path} has addresses outside of overlay.services, or twice given ones"
                ));
            }
        }
        let lacking = |service: &&Service| !service.deleting && service.addresses.is_empty();
        let lacking: Vec<ServiceId> = self
            .services
            .values()
            .filter(lacking)
            .map(|service| service.id)
            .collect();
        for id in lacking {
            if let Some(mut service) = self.services.remove(&id) {
                self.give_addresses(&mut service, now, &mut out);
                out.writes
                    .push(model::put("service", &id, Some(service.organization), &service));
                self.services.insert(id, service);
            }
        }
        let resolved: Vec<_> = self
            .services
            .values()
            .map(|service| self.resolve_rules(service))
            .collect();
        for (service, allows) in self.services.values().zip(resolved) {
            self.overlay.publish(service, allows);
        }
        let active = |member: &&Member| member.state == MemberState::Active;
        let clusters: Vec<ChildId> = self.registry.members().filter(active).map(|member| member.id).collect();
        for child in clusters {
            self.add_to_overlay(child, now, &mut out);
        }
        out.writes
    }

    /// Clusters and what is placed on them, to be looked at.
    pub const fn children(&self) -> &Children {
        &self.children
    }

    /// Clusters as members, and tokens, to be looked at.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether nobody has ever logged in: the first start's credential is still to be used.
    pub fn is_untouched(&self) -> bool {
        self.sessions.is_empty() && self.users.values().all(|user| !user.has_logged_in)
    }

    fn happen(
        &mut self,
        scope: OrganizationScope,
        event: Happening,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) {
        let last = self.events.back().map(|(_, last)| last.id);
        let view = roble_proto::rest::EventView {
            id: later_than(last, EventId::generate(now.wall, rng)),
            at: now.wall,
            about: event.about,
            code: event.code.to_owned(),
            message: event.message,
        };
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((scope, view.clone()));
        out.acts.push(Act::Happened(Box::new(view), scope));
    }

    /// Compares, decides, stores and sends what is due.
    fn settle(&mut self, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        // A status may let a rollout go on, which places, which changes status: a few rounds at most.
        for _ in 0..8 {
            self.roll_out(out);
            let outputs = self.children.settle(now);
            if outputs.is_empty() && self.rollout.is_empty() {
                break;
            }
            for output in outputs {
                self.handle(output, now, rng, out);
            }
        }
        self.settle_overlay(now, out);
    }

    fn handle(&mut self, output: ChildrenOutput, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        match output {
            ChildrenOutput::Record(instance) => out.writes.extend(self.instance_write(instance)),
            ChildrenOutput::Forget(instance) => self.forget(instance, now, rng, out),
            ChildrenOutput::Status(instance) => {
                self.rollout.insert(instance.service);
                self.publish_instance(instance);
                self.tell(instance, now, rng, out);
            }
            ChildrenOutput::Capacity => {}
            ChildrenOutput::Standing(child, standing) => {
                let about = format!("cluster/{}", self.cluster_name(child));
                let message = format!("the cluster is {}", standing.as_str());
                self.happen(
                    None,
                    Happening {
                        about,
                        code: standing.as_str(),
                        message,
                    },
                    now,
                    rng,
                    out,
                );
            }
            ChildrenOutput::Brake(held) => {
                let message = if held {
                    "most clusters fell silent together: nothing is moved until over half are back"
                } else {
                    "over half of the clusters are back"
                };
                let about = "clusters".to_owned();
                self.happen(
                    None,
                    Happening {
                        about,
                        code: "brake",
                        message: message.to_owned(),
                    },
                    now,
                    rng,
                    out,
                );
            }
            ChildrenOutput::Ordered(child) => self.refresh_wants(child),
            ChildrenOutput::Step(_) | ChildrenOutput::Opened(_) => {}
            ChildrenOutput::Profile(child) => {
                let orchestrator = self.children.orchestrator();
                let profile = orchestrator
                    .child(child, now)
                    .map(|view| model::put("profile", &child, None, view.profile));
                out.writes.extend(profile);
            }
            ChildrenOutput::Cloned(child) => self.hear_cloned(child, now, rng, out),
            ChildrenOutput::Response(child, response) => self.hear_response(child, response, now, rng, out),
            ChildrenOutput::Violation(child, what) => out.acts.push(Act::Violation(format!("cluster {child}: {what}"))),
            ChildrenOutput::Send(child, frame) => out.acts.push(Act::Send(ClusterId(child.0), frame)),
        }
    }

    fn instance_write(&self, instance: InstanceId) -> Option<Write> {
        let orchestrator = self.children.orchestrator();
        let record = InstanceRecord {
            generation: self.wished.get(&instance).copied()?,
            removed: orchestrator.wish(instance).is_none(),
            placement: orchestrator.record(instance)?.clone(),
        };
        let organization = self.services.get(&instance.service)?.organization;
        Some(model::put("instance", &instance, Some(organization), &record))
    }

    fn cluster_name(&self, child: ChildId) -> String {
        self.registry
            .member(child)
            .map_or_else(|| child.to_string(), |member| member.name.clone())
    }
}

/// The root's version of a generation: no tier above has placed it.
fn version(generation: u64) -> Version {
    Version {
        generation: roble_core::version::Generation(generation),
        epochs: Epochs::default(),
    }
}

impl Tier for RootTier {
    type Event = Event;
    type Act = Act;

    fn on(&mut self, event: Event, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        match event {
            Event::Call(number, caller, call) => {
                if let Some(answer) = self.call(number, &caller, call, now, rng, &mut out) {
                    out.acts.push(Act::Answer(number, answer));
                }
            }
            Event::Message(cluster, frame) if frame.branch() == wire::Branch::Net => {
                self.overlay.server.receive(cluster.into(), frame, now);
            }
            Event::Message(cluster, frame) => self.children.receive(cluster.into(), frame, now),
            Event::Down(cluster) => {
                self.children.transport_down(cluster.into());
                self.overlay.server.transport_down(cluster.into());
            }
        }
        self.settle(now, rng, &mut out);
        out
    }

    fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        self.children.tick(now);
        self.expire(now, rng, &mut out);
        self.settle(now, rng, &mut out);
        out
    }

    fn next_due(&self) -> Option<Boottime> {
        None
    }
}

/// `id`, or the next after `last` if that is later: whoever asks for events after one misses none of the same millisecond.
fn later_than(last: Option<EventId>, id: EventId) -> EventId {
    let Some(last) = last.filter(|last| *last >= id) else {
        return id;
    };
    let mut bytes = *last.0.as_bytes();
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    EventId(RawId::from_bytes(bytes))
}

/// Where a token is looked up by id.
fn parse_token(text: &str) -> Result<TokenId, Refusal> {
    text.parse()
        .map_err(|_| Refusal::new("not-found", format!("there is no token `{text}`")))
}

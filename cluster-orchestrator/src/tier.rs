//! The cluster's tier: its nodes below, the root above, members and tokens beside. No I/O.

mod overlay;
mod requests;

use overlay::Overlay;
use prost::Message;
use rand::RngCore;
use roble_core::ids::{ChildId, InstanceId, NodeId, TokenId};
use roble_core::labels::Labels;
use roble_core::liveness::{Clocks, Standing};
use roble_core::orchestrator::{PlacementRecord, Step};
use roble_core::overlay::tunnel::{PublicKey, TunnelEnd};
use roble_core::placement::{Level, Profile};
use roble_core::registry::{Forgotten, Member, MemberState, Registry, RegistryError};
use roble_core::spec::Assignment;
use roble_core::tier::{Output, Record, Tier, Write};
use roble_core::time::{Boottime, Now};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_link::children::{Children, ChildrenOutput};
use roble_link::parent::ParentClocks;
use roble_link::tables::TableServer;
use roble_proto::convert::{decode_assignment, encode_status};
use roble_proto::topics::Branch;
use roble_proto::wire;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Kind of record: an order of the root exactly as received.
const ASSIGNMENT: &str = "assignment";
/// Kind of record: where an instance is.
const PLACEMENT: &str = "placement";
/// Kind of record: a node as a member.
const MEMBER: &str = "member";
/// Kind of record: a join token.
const TOKEN: &str = "token";
/// Kind of record: what a node said of itself last.
const PROFILE: &str = "profile";

/// Who gets an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// The root, to its request of this id.
    Root(u64),
    /// Somebody at the cluster's own doors, by a number of the shell.
    Local(u64),
}

/// What happens to a cluster.
#[derive(Debug)]
pub enum Event {
    /// The transport to the root came up.
    UplinkUp,
    /// The transport to the root went down.
    UplinkDown,
    /// The root has put this cluster out for good: it said so to a question of ours.
    UplinkRevoked,
    /// A message of the root.
    UplinkMessage(wire::Frame),
    /// A message of a node's engine or net manager; its certificate names the node.
    NodeMessage(NodeId, Branch, Vec<u8>),
    /// The transport lost one of them.
    NodeDown(NodeId, Branch),
    /// The relay of this cluster serves at this address, with this key.
    RelayServes(SocketAddr, PublicKey),
    /// All nodes that talk to the relay, and where they come from.
    RelaySees(BTreeMap<NodeId, SocketAddr>),
    /// A machine wants to join. Answered with [`Act::Joined`].
    Join {
        /// The shell's number for the answer.
        asker: u64,
        /// The token's id.
        token: TokenId,
        /// The token's secret.
        secret: String,
        /// SHA-256 of the public key, hex.
        key_sha256: String,
        /// Wanted name.
        name: String,
    },
    /// A node wants a new certificate. Answered with [`Act::Joined`].
    Renew {
        /// The shell's number for the answer.
        asker: u64,
        /// SHA-256 of the public key, hex, proven by the connection.
        key_sha256: String,
        /// Who it says it is, proven by the connection except for the name: taken up again if it is not known.
        forgotten: Option<Forgotten>,
    },
    /// A request at the cluster's own doors. Answered with [`Act::Answer`].
    Local(u64, wire::request::What),
}

/// What a cluster asks of its shell.
#[derive(Debug)]
pub enum Act {
    /// Send this to the root; it may be lost.
    SendUp(wire::Frame),
    /// Send this to a node's engine or net manager; it may be lost.
    SendNode(NodeId, Branch, Vec<u8>),
    /// Answer a join or a renewal: issue the certificate, or refuse.
    Joined(u64, Result<Member, RegistryError>),
    /// Answer a local request with JSON or a failure.
    Answer(u64, Result<Vec<u8>, wire::Failure>),
    /// Who may use the relay: all of them.
    RelayFor(Vec<(NodeId, TunnelEnd)>),
    /// Put a node out: close its connections and refuse new ones.
    Expel(NodeId),
    /// A node will dial a stream of this id: pass it on to the root.
    ExpectStream(String),
    /// The session with the root stands, or is lost.
    Connected(bool),
    /// Something worth a line in the log.
    Note(Note),
}

/// Something worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A decision about an instance.
    Step(Step),
    /// A node's standing changed.
    Standing(NodeId, Standing),
    /// Eviction is held, or no longer.
    Brake(bool),
    /// Two machines use the identity of this node: it was cordoned.
    Cloned(NodeId),
    /// A message could not be understood, or broke the protocol.
    Violation(String),
}

/// What a cluster is.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its id, given by the root.
    pub id: roble_core::ids::ClusterId,
    /// Its name at the root.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// For people.
    pub address: String,
    /// Timing of its nodes.
    pub clocks: Clocks,
    /// Timing of the link to the root.
    pub uplink: ChildClocks,
    /// Software version.
    pub software: String,
    /// The authority's pin, for join tokens.
    pub pin: String,
    /// It has joined just now: there is nothing that its store could have lost.
    pub is_new: bool,
}

/// The cluster. See the module's text.
#[derive(Debug)]
pub struct ClusterTier {
    config: ClusterConfig,
    uplink: ChildEnd,
    children: Children,
    registry: Registry,
    overlay: Overlay,
    /// Requests passed on to nodes: who asked.
    passed_on: BTreeMap<(ChildId, u64), (Asker, Boottime)>,
}

struct Reports<'a>(&'a Children);

impl Source for Reports<'_> {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.0
            .orchestrator()
            .view(key.parse().ok()?)
            .map(|status| encode_status(&status))
    }
}

impl ClusterTier {
    /// Takes up what was stored. `complete`: the store is not known to have lost anything; a fresh or damaged one must
    /// hear the root's orders before any node is told to delete something.
    /// Returns the records that could not be read, for the log.
    pub fn new(
        config: ClusterConfig,
        records: &[Record],
        complete: bool,
        now: Now,
        rng: &mut dyn RngCore,
    ) -> (Self, Vec<String>) {
        let mut bad = Vec::new();
        let mut registry = Registry::default();
        let mut children = Children::new(Level::Nodes, config.clocks, complete, now.boot);
        let mut uplink = ChildEnd::new(config.uplink, rng.next_u64(), &config.software);
        if !complete {
            uplink.set_fresh();
        }
        if !complete && !config.is_new {
            children.set_fresh();
        }
        let server = TableServer::new(ParentClocks::of_tables(&config.clocks), false);
        let net = ChildEnd::new(config.uplink, rng.next_u64(), &config.software);
        let mut overlay = Overlay::new(net, server, complete);
        let of = |kind: &'static str| records.iter().filter(move |record| record.kind == kind);
        for record in of(TOKEN) {
            match serde_json::from_slice(&record.value) {
                Ok(token) => registry.restore_token(token),
                Err(error) => bad.push(format!("token {}: {error}", record.id)),
            }
        }
        let profiles: BTreeMap<&str, Profile> = of(PROFILE)
            .filter_map(|record| Some((record.id.as_str(), serde_json::from_slice(&record.value).ok()?)))
            .collect();
        for record in of(MEMBER) {
            match serde_json::from_slice::<Member>(&record.value) {
                Ok(member) => {
                    if member.state == MemberState::Active {
                        let unknown = Profile {
                            name: member.name.clone(),
                            ..Profile::default()
                        };
                        let profile = profiles.get(record.id.as_str()).cloned().unwrap_or(unknown);
                        children.add_child(member.id, profile, member.cordoned);
                    }
                    registry.restore_member(member);
                }
                Err(error) => bad.push(format!("member {}: {error}", record.id)),
            }
        }
        let mut wishes: BTreeMap<InstanceId, Assignment> = BTreeMap::new();
        for record in of(ASSIGNMENT) {
            match decode_assignment(&record.id, &record.value) {
                Ok(order) => {
                    uplink.restore_order(&record.id, &record.value);
                    wishes.insert(order.instance, order);
                }
                Err(error) => bad.push(format!("assignment {}: {error}", record.id)),
            }
        }
        for record in of(PLACEMENT) {
            match (
                record.id.parse(),
                serde_json::from_slice::<PlacementRecord>(&record.value),
            ) {
                (Ok(instance), Ok(placement)) => children.restore(instance, wishes.remove(&instance), placement),
                _ => bad.push(format!("placement {}", record.id)),
            }
        }
        for (instance, wish) in wishes {
            children.restore(instance, Some(wish), PlacementRecord::default());
        }
        for record in of(overlay::ROW) {
            bad.extend(overlay.restore_row(&record.id, &record.value).err());
        }
        for record in of(overlay::WANT) {
            bad.extend(overlay.restore_want(&record.id, &record.value).err());
        }
        for record in of(overlay::BLOCK) {
            match serde_json::from_slice(&record.value) {
                Ok(block) => overlay.restore_block(&block),
                Err(error) => bad.push(format!("block {}: {error}", record.id)),
            }
        }
        let mut tier = Self {
            config,
            uplink,
            children,
            registry,
            overlay,
            passed_on: BTreeMap::new(),
        };
        let instances: Vec<InstanceId> = tier.children.orchestrator().instances().collect();
        for instance in instances {
            tier.report(instance);
        }
        let nodes: Vec<ChildId> = tier.children.orchestrator().child_ids().collect();
        for child in nodes {
            tier.add_to_overlay(child);
        }
        tier.report_profile();
        (tier, bad)
    }

    /// The nodes and what is placed on them, to be looked at.
    pub const fn children(&self) -> &Children {
        &self.children
    }

    /// Whether everything is known here that a lost store may have held: wishes, who runs what, and the root's rows.
    pub fn is_settled(&self) -> bool {
        self.children.is_settled() && self.overlay.is_whole
    }

    /// Members and tokens, to be looked at.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether the session with the root stands.
    pub const fn is_connected(&self) -> bool {
        self.uplink.is_connected()
    }

    fn report(&mut self, instance: InstanceId) {
        let status = self
            .children
            .orchestrator()
            .view(instance)
            .map(|status| encode_status(&status));
        self.uplink.set_status(&instance.to_string(), status.as_deref());
    }

    fn report_profile(&mut self) {
        let orchestrator = self.children.orchestrator();
        self.uplink.set_profile(Profile {
            name: self.config.name.clone(),
            labels: self.config.labels.clone(),
            address: self.config.address.clone(),
            virtualizations: orchestrator.virtualizations(),
            offers: orchestrator.offers(),
            software: self.config.software.clone(),
            revision: orchestrator.revision(),
        });
    }

    fn handle_up(&mut self, outputs: Vec<ChildOutput>, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        for output in outputs {
            match output {
                ChildOutput::Send(frame) => out.acts.push(Act::SendUp(frame)),
                ChildOutput::Order { key, value } => match decode_assignment(&key, &value) {
                    Ok(order) => {
                        let instance = order.instance;
                        self.children.set_wish(order.clone());
                        if self.children.orchestrator().wish(instance) == Some(&order) {
                            out.writes.push(Write::put(ASSIGNMENT, &key, value));
                        }
                    }
                    Err(error) => out
                        .acts
                        .push(Act::Note(Note::Violation(format!("order {key}: {error}")))),
                },
                ChildOutput::Withdraw(key) => {
                    if let Ok(instance) = key.parse() {
                        self.children.remove_wish(instance);
                        out.writes.push(Write::delete(ASSIGNMENT, &key));
                    }
                }
                ChildOutput::Complete => self.children.set_complete(),
                ChildOutput::Request(request) => {
                    if let Some(what) = request.what {
                        self.ask(Asker::Root(request.id), what, now, rng, out);
                    }
                }
                ChildOutput::Connected(connected) => {
                    self.children.set_parent_hears(connected);
                    out.acts.push(Act::Connected(connected));
                }
                // A root does not forget its clusters; one restored from an old backup needs a person.
                ChildOutput::Unknown => {
                    let what = "the root does not know this cluster";
                    out.acts.push(Act::Note(Note::Violation(what.to_owned())));
                }
            }
        }
    }

    fn settle(&mut self, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        for output in self.children.settle(now) {
            match output {
                ChildrenOutput::Record(instance) => {
                    let record = self
                        .children
                        .orchestrator()
                        .record(instance)
                        .and_then(|r| serde_json::to_vec(r).ok());
                    out.writes
                        .extend(record.map(|record| Write::put(PLACEMENT, instance, record)));
                }
                ChildrenOutput::Forget(instance) => out.writes.push(Write::delete(PLACEMENT, instance)),
                ChildrenOutput::Status(instance) => {
                    self.report(instance);
                    self.publish_instance(instance);
                }
                ChildrenOutput::Ordered(child) => self.refresh_wants(child),
                ChildrenOutput::Capacity => self.report_profile(),
                ChildrenOutput::Standing(child, standing) => {
                    out.acts.push(Act::Note(Note::Standing(NodeId(child.0), standing)));
                }
                ChildrenOutput::Brake(held) => out.acts.push(Act::Note(Note::Brake(held))),
                ChildrenOutput::Step(step) => out.acts.push(Act::Note(Note::Step(step))),
                ChildrenOutput::Profile(child) => {
                    let orchestrator = self.children.orchestrator();
                    let profile = orchestrator
                        .child(child, now)
                        .and_then(|view| serde_json::to_vec(view.profile).ok());
                    out.writes
                        .extend(profile.map(|profile| Write::put(PROFILE, child, profile)));
                }
                ChildrenOutput::Opened(_) => {}
                ChildrenOutput::Cloned(child) => self.hear_cloned(child, out),
                ChildrenOutput::Response(child, response) => self.hear_response(child, response, out),
                ChildrenOutput::Violation(child, what) => {
                    out.acts
                        .push(Act::Note(Note::Violation(format!("node {child}: {what}"))));
                }
                ChildrenOutput::Send(child, frame) => {
                    out.acts
                        .push(Act::SendNode(NodeId(child.0), Branch::Engine, frame.encode_to_vec()));
                }
            }
        }
        let outputs = self.uplink.flush(&Reports(&self.children));
        self.handle_up(outputs, now, rng, out);
        self.settle_overlay(now, out);
    }

    fn hear_cloned(&mut self, child: ChildId, out: &mut Output<Act>) {
        if let Ok(mut member) = self.registry.set_cloned(child) {
            // Nothing new goes there until a person has decided which of the two is the right one.
            if let Ok(cordoned) = self.registry.set_cordoned(child, true) {
                member = cordoned;
            }
            self.children.set_cordoned(child, true);
            out.writes.extend(member_write(&member));
            out.acts.push(Act::Note(Note::Cloned(NodeId(child.0))));
        }
    }
}

fn member_write(member: &Member) -> Option<Write> {
    serde_json::to_vec(member)
        .ok()
        .map(|value| Write::put(MEMBER, member.id, value))
}

impl Tier for ClusterTier {
    type Event = Event;
    type Act = Act;

    fn on(&mut self, event: Event, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        match event {
            Event::UplinkUp => {
                self.uplink.transport_up(now);
                self.net_up(now);
            }
            Event::UplinkDown => {
                let outputs = self.uplink.transport_down();
                self.handle_up(outputs, now, rng, &mut out);
                self.net_down(now, &mut out);
            }
            Event::UplinkRevoked => {
                let outputs = self.uplink.dismiss();
                self.handle_up(outputs, now, rng, &mut out);
                self.children.set_complete();
                self.overlay.is_whole = true;
            }
            Event::UplinkMessage(frame) if frame.branch() == wire::Branch::Net => {
                self.receive_net_up(frame, now, &mut out);
            }
            Event::UplinkMessage(frame) => {
                let outputs = self.uplink.receive(frame, &Reports(&self.children), now);
                self.handle_up(outputs, now, rng, &mut out);
            }
            Event::NodeMessage(node, branch, bytes) => match wire::Frame::decode(bytes.as_slice()) {
                Ok(frame) if branch == Branch::Net => self.overlay.server.receive(node.into(), frame, now),
                Ok(frame) => self.children.receive(node.into(), frame, now),
                Err(error) => out
                    .acts
                    .push(Act::Note(Note::Violation(format!("node {node}: {error}")))),
            },
            Event::NodeDown(node, Branch::Engine) => self.children.transport_down(node.into()),
            Event::NodeDown(node, Branch::Net) => self.overlay.server.transport_down(node.into()),
            Event::RelayServes(address, key) => self.set_relay(address, key),
            Event::RelaySees(seen) => self.set_seen(&seen),
            Event::Join {
                asker,
                token,
                secret,
                key_sha256,
                name,
            } => {
                let joined = self.registry.redeem(token, &secret, &key_sha256, &name, now.wall, rng);
                let token = self
                    .registry
                    .token(token)
                    .and_then(|token| Some((token.id, serde_json::to_vec(token).ok()?)));
                out.writes.extend(token.map(|(id, value)| Write::put(TOKEN, id, value)));
                if let Ok(member) = &joined {
                    out.writes.extend(member_write(member));
                    self.admit(member);
                }
                out.acts.push(Act::Joined(asker, joined));
            }
            Event::Renew {
                asker,
                key_sha256,
                forgotten,
            } => {
                let mut renewed = self.registry.renew(&key_sha256).cloned();
                if let (Err(RegistryError::Unknown), Some(forgotten)) = (&renewed, forgotten) {
                    renewed = self.registry.readmit(forgotten, &key_sha256, now.wall);
                    if let Ok(member) = &renewed {
                        out.writes.extend(member_write(member));
                        self.admit(member);
                    }
                }
                out.acts.push(Act::Joined(asker, renewed));
            }
            Event::Local(asker, what) => self.ask(Asker::Local(asker), what, now, rng, &mut out),
        }
        self.settle(now, rng, &mut out);
        out
    }

    fn tick(&mut self, now: Now, rng: &mut dyn RngCore) -> Output<Act> {
        let mut out = Output::default();
        self.children.tick(now);
        // What was waited for may be known by now.
        self.overlay.is_due = true;
        self.expire_requests(now, &mut out);
        for token in self.registry.prune(now.wall) {
            out.writes.push(Write::delete(TOKEN, token));
        }
        self.settle(now, rng, &mut out);
        let outputs = self.uplink.tick(now, rng);
        self.handle_up(outputs, now, rng, &mut out);
        let outputs = self.overlay.uplink.tick(now, rng);
        self.handle_net_up(outputs, now, &mut out);
        out
    }

    fn next_due(&self) -> Option<Boottime> {
        let due = [self.uplink.next_due(), self.overlay.uplink.next_due()];
        due.into_iter().flatten().min()
    }
}

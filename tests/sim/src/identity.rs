//! How a daemon gets its identity and renews it, step by step as `node-engine/src/identity.rs` and
//! `cluster-orchestrator/src/membership.rs` do it. The deciding side is the real tier; files and certificates are only
//! counted here.

use crate::drive::Input;
use crate::points::Boundary;
use crate::world::{Ev, Who, World};
use roble_cluster::tier::Event as ClusterEvent;
use roble_core::ids::{ClusterId, NodeId};
use roble_core::registry::{JoinToken, Member};
use roble_proto::rest::JoinRequest;
use roble_root::tier::{Call, Caller, Event as RootEvent};

/// Time of one way between the daemon and the door of its parent, milliseconds.
const WAY_MS: u64 = 15;
/// Time after which an unanswered request is sent again.
const AGAIN_MS: u64 = 1_500;
/// Numbers of these requests begin here.
pub const FIRST_REQUEST: u64 = 1 << 40;

/// What a daemon has of its identity.
#[derive(Debug, Default, Clone)]
pub struct Papers {
    /// File: the key, by its SHA-256.
    pub key: Option<String>,
    /// File: serial number of the certificate.
    pub certificate: Option<u64>,
    /// File: who it is, as its parent said.
    pub home: Option<Member>,
    /// In memory: the certificate it shows.
    pub in_force: u64,
    /// What it was given to join with.
    pub token: Option<JoinToken>,
    /// In memory: its last request, if no answer has come.
    pub asking: Option<u64>,
}

/// A step.
#[derive(Debug)]
pub enum Step {
    /// A request arrives at the parent's door.
    Arrives(u64),
    /// The answer arrives.
    Answered(u64, Box<Member>),
    /// Time to ask again.
    Again(u64),
}

impl World {
    /// The papers of a daemon.
    pub fn papers(&mut self, who: Who) -> &mut Papers {
        self.papers.entry(who).or_default()
    }

    /// A daemon that has no tier starts: with the identity it has, or it joins. `false`: it has to join first.
    pub fn establish(&mut self, who: Who) -> bool {
        let papers = self.papers(who);
        if papers.token.is_none() || (papers.certificate.is_some() && papers.home.is_some()) {
            papers.in_force = papers.certificate.unwrap_or(0);
            return true;
        }
        if papers.key.is_none() {
            if self.point(who, Boundary::Identity("started")) {
                return false;
            }
            self.keys += 1;
            let key = format!("key-{who:?}-{}", self.keys);
            self.papers(who).key = Some(key);
        }
        if !self.point(who, Boundary::Identity("key written")) {
            self.request(who);
        }
        false
    }

    /// Asks the parent for a certificate: joins, or renews if the daemon has one.
    pub fn request(&mut self, who: Who) {
        self.requests += 1;
        let number = FIRST_REQUEST + self.requests;
        self.papers(who).asking = Some(number);
        self.asked.insert(number, who);
        self.push(self.t + WAY_MS, Ev::Identity(Step::Arrives(number)));
        self.push(self.t + AGAIN_MS, Ev::Identity(Step::Again(number)));
        self.point(who, Boundary::Identity("request sent"));
    }

    /// The process ended: nobody waits for the answer any more.
    pub fn forget_request(&mut self, who: Who) {
        self.papers(who).asking = None;
    }

    /// A step of some daemon's identity.
    pub fn identify(&mut self, step: Step) {
        let number = match &step {
            Step::Arrives(number) | Step::Answered(number, _) | Step::Again(number) => *number,
        };
        let Some(who) = self.asked.get(&number).copied() else {
            return;
        };
        if self.papers(who).asking != Some(number) {
            return;
        }
        match step {
            Step::Arrives(number) => self.knock(who, number),
            Step::Again(_) => self.request(who),
            Step::Answered(_, member) => self.keep(who, *member),
        }
    }

    /// The request reaches the parent's tier, if that is up.
    fn knock(&mut self, who: Who, number: u64) {
        let papers = self.papers(who).clone();
        let Some(key) = papers.key else { return };
        let joins = papers
            .token
            .filter(|_| papers.home.is_none() || papers.certificate.is_none());
        match who {
            Who::Node(index) => {
                let cluster = self.nodes[index].cluster;
                let name = self.nodes[index].name.clone();
                let event = match joins {
                    Some(token) => ClusterEvent::Join {
                        asker: number,
                        token: token.id,
                        secret: token.secret,
                        key_sha256: key,
                        name,
                    },
                    None => ClusterEvent::Renew {
                        asker: number,
                        key_sha256: key,
                        forgotten: None,
                    },
                };
                self.give(Who::Cluster(cluster), Input::Cluster(Box::new(event)));
            }
            Who::Cluster(index) => {
                let name = self.clusters[index].config.name.clone();
                let (caller, call) = match joins {
                    Some(token) => {
                        let request = JoinRequest {
                            token: token.id,
                            secret: token.secret,
                            name,
                            csr: String::new(),
                        };
                        let key_sha256 = key;
                        (Caller::Anonymous, Call::Join { request, key_sha256 })
                    }
                    None => (Caller::Cluster(key), Call::Renew),
                };
                self.give(Who::Root, Input::Root(Box::new(RootEvent::Call(number, caller, call))));
            }
            Who::Root | Who::Net(_) => {}
        }
    }

    /// A parent answered.
    pub fn granted(&mut self, number: u64, result: Result<Member, String>) {
        match result {
            Ok(member) => {
                if let Some(token) = &member.token {
                    self.users.note_admitted(token, &member.key_sha256);
                }
                self.push(self.t + WAY_MS, Ev::Identity(Step::Answered(number, Box::new(member))));
            }
            Err(refusal) => {
                let who = self.asked.get(&number).copied();
                self.violate("identity", format!("{who:?} was refused: {refusal}"));
            }
        }
    }

    fn keep(&mut self, who: Who, member: Member) {
        if self.point(who, Boundary::Identity("answered")) {
            return;
        }
        self.serials += 1;
        let serial = self.serials;
        let before = self.papers(who).home.clone();
        if before.as_ref().is_some_and(|before| before.id != member.id) {
            self.violate("identity", format!("{who:?} was {before:?} and is now {member:?}"));
        }
        self.papers(who).certificate = Some(serial);
        if self.point(who, Boundary::Identity("certificate written")) {
            return;
        }
        if before.is_none() {
            self.papers(who).home = Some(member.clone());
            if self.point(who, Boundary::Identity("home written")) {
                return;
            }
        }
        let papers = self.papers(who);
        papers.asking = None;
        papers.in_force = serial;
        if self.is_up(who) {
            self.point(who, Boundary::Identity("swapped in"));
        } else {
            self.take_identity(who, &member);
            self.start(who);
            self.point(who, Boundary::Identity("opened"));
        }
    }

    /// From its home file, at every start.
    pub fn take_identity(&mut self, who: Who, member: &Member) {
        match who {
            Who::Node(index) => {
                self.nodes[index].id = NodeId(member.id.0);
                self.nodes[index].key.clone_from(&member.key_sha256);
            }
            Who::Cluster(index) => {
                let host = &mut self.clusters[index];
                host.id = ClusterId(member.id.0);
                host.config.id = host.id;
            }
            Who::Root | Who::Net(_) => {}
        }
    }
}

//! Requests to the cluster: of the root over the link, and at its own doors. Both are answered by the same code, so that
//! an operator at the site can do the same with the uplink cut.

use super::{Act, Asker, ClusterTier, TOKEN, member_write};
use rand::RngCore;
use roble_core::ids::{ChildId, InstanceId, NodeId, TokenId};
use roble_core::liveness::Standing;
use roble_core::placement::Profile;
use roble_core::registry::{JoinToken, Member, MemberState, RegistryError, TokenKind, TokenOptions};
use roble_core::resources::Resources;
use roble_core::tier::{Output, Write};
use roble_core::time::{Boottime, Now};
use roble_link::child::ChildOutput;
use roble_proto::rest::{CreatedToken, Deleted, NodeView, TokenView};
use roble_proto::wire::{self, request::What, response};

/// How long a node may take to answer what was passed on to it, milliseconds.
const PASS_ON_MS: u64 = 5_000;

impl ClusterTier {
    pub(super) fn ask(&mut self, asker: Asker, what: What, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        let answer = match what {
            What::CreateJoinToken(create) => self.create_token(create, now, rng, out),
            What::ListTokens(_) => json(&self.tokens()),
            What::DeleteToken(delete) => self.delete_token(&delete.token, out),
            What::ListChildren(_) => json(&self.nodes(now)),
            What::Explain(explain) => match explain.instance.parse::<InstanceId>() {
                Ok(instance) => json(&self.children.orchestrator().explain(instance)),
                Err(error) => Err(failure("invalid", &error.to_string())),
            },
            What::SetCordon(set) => self.change(&set.child, now, out, |tier, id| {
                let member = tier.registry.set_cordoned(id, set.cordoned)?;
                tier.children.set_cordoned(id, set.cordoned);
                Ok(member)
            }),
            What::ApproveChild(approve) => self.change(&approve.child, now, out, |tier, id| {
                let member = tier.registry.approve(id)?;
                tier.admit(&member);
                tier.children.set_cordoned(id, member.cordoned);
                Ok(member)
            }),
            What::RevokeChild(revoke) => {
                let answer = self.change(&revoke.child, now, out, |tier, id| {
                    tier.children.remove_child(id);
                    tier.registry.revoke(id)
                });
                if answer.is_ok()
                    && let Ok(id) = revoke.child.parse::<NodeId>()
                {
                    self.remove_from_overlay(id.into(), now, out);
                    out.acts.push(Act::Expel(id));
                }
                answer
            }
            What::OpenStream(open) => {
                let (instance, stream) = (open.instance.clone(), open.stream.clone());
                match self.pass_on(asker, &instance, What::OpenStream(open), now) {
                    Some(failure) => Err(failure),
                    None => return out.acts.push(Act::ExpectStream(stream)),
                }
            }
            What::AskNet(ask) => {
                let instance = ask.instance.clone();
                match self.pass_on(asker, &instance, What::AskNet(ask), now) {
                    Some(failure) => Err(failure),
                    None => return,
                }
            }
        };
        self.reply(asker, answer, out);
    }

    fn reply(&mut self, asker: Asker, answer: Result<Vec<u8>, wire::Failure>, out: &mut Output<Act>) {
        match asker {
            Asker::Local(number) => out.acts.push(Act::Answer(number, answer)),
            Asker::Root(id) => {
                let what = match answer {
                    Ok(json) => response::What::Json(json),
                    Err(failure) => response::What::Failure(failure),
                };
                if let Some(ChildOutput::Send(frame)) = self.uplink.respond(id, what) {
                    out.acts.push(Act::SendUp(frame));
                }
            }
        }
    }

    /// Lets an active member open sessions.
    pub(super) fn admit(&mut self, member: &Member) {
        if member.state == MemberState::Active && !self.children.is_known(member.id) {
            let profile = Profile {
                name: member.name.clone(),
                ..Profile::default()
            };
            self.children.add_child(member.id, profile, member.cordoned);
            self.add_to_overlay(member.id);
        }
    }

    fn change(
        &mut self,
        child: &str,
        now: Now,
        out: &mut Output<Act>,
        change: impl FnOnce(&mut Self, ChildId) -> Result<Member, RegistryError>,
    ) -> Result<Vec<u8>, wire::Failure> {
        let id = child
            .parse::<ChildId>()
            .map_err(|error| failure("invalid", &error.to_string()))?;
        let member = change(self, id).map_err(|error| refused(&error))?;
        out.writes.extend(member_write(&member));
        json(&self.node(&member, now))
    }

    fn create_token(
        &mut self,
        create: wire::CreateJoinToken,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Result<Vec<u8>, wire::Failure> {
        // In protobuf, what is not said is empty.
        let ttl_ms = Some(create.ttl_ms).filter(|ttl| *ttl != 0);
        let name = Some(create.name).filter(|name| !name.is_empty());
        let options = TokenOptions::asked(ttl_ms, create.needs_approval, name).map_err(|error| refused(&error))?;
        let (record, secret) = self.registry.create_token(options, now.wall, rng);
        let value = serde_json::to_vec(&record).map_err(|error| failure("internal", &error.to_string()))?;
        out.writes.push(Write::put(TOKEN, record.id, value));
        let token = JoinToken {
            kind: TokenKind::Node,
            cluster: Some(self.config.id),
            id: record.id,
            secret,
            pin: self.config.pin.clone(),
        };
        json(&CreatedToken {
            id: record.id,
            token: token.reveal(),
            expires_at: record.expires_at,
            kind: TokenKind::Node,
        })
    }

    fn delete_token(&mut self, text: &str, out: &mut Output<Act>) -> Result<Vec<u8>, wire::Failure> {
        let unknown = || failure("not-found", &format!("there is no token `{text}` here"));
        let id: TokenId = text.parse().map_err(|_| unknown())?;
        if !self.registry.delete_token(id) {
            return Err(unknown());
        }
        out.writes.push(Write::delete(TOKEN, id));
        json(&Deleted {
            deleted: vec![id.to_string()],
            remaining_instances: 0,
        })
    }

    fn tokens(&self) -> Vec<TokenView> {
        let view = |token| TokenView::of(token, TokenKind::Node, Some(self.config.name.clone()));
        self.registry.tokens().map(view).collect()
    }

    fn nodes(&self, now: Now) -> Vec<NodeView> {
        self.registry.members().map(|member| self.node(member, now)).collect()
    }

    fn node(&self, member: &Member, now: Now) -> NodeView {
        let child = self.children.orchestrator().child(member.id, now);
        let offer = child.as_ref().and_then(|child| child.profile.offers.first());
        NodeView {
            id: NodeId(member.id.0),
            name: member.name.clone(),
            cluster: self.config.name.clone(),
            state: member.state,
            standing: child
                .as_ref()
                .map_or("-", |child| Standing::as_str(child.standing))
                .to_owned(),
            silent_ms: child.as_ref().and_then(|child| child.silent_ms),
            cordoned: member.cordoned,
            cloned: member.cloned,
            labels: offer.map(|offer| offer.labels.clone()).unwrap_or_default(),
            allocatable: offer.map_or(Resources::ZERO, |offer| offer.allocatable),
            reserved: child.as_ref().map_or(Resources::ZERO, |child| child.reserved),
            instances: child.as_ref().map_or(0, |child| child.instances),
            address: child
                .as_ref()
                .map(|child| child.profile.address.clone())
                .unwrap_or_default(),
            software: child
                .as_ref()
                .map(|child| child.profile.software.clone())
                .unwrap_or_default(),
            joined_at: member.joined_at,
        }
    }

    /// Passes a request on to the node that holds the instance. Its answer goes to `asker`.
    fn pass_on(&mut self, asker: Asker, instance: &str, what: What, now: Now) -> Option<wire::Failure> {
        let Ok(instance) = instance.parse::<InstanceId>() else {
            return Some(failure("invalid", "which instance is not understood"));
        };
        let Some(holder) = self.children.orchestrator().holder(instance) else {
            return Some(failure("not-placed", "the instance is on no node of this cluster now"));
        };
        match self.children.request(holder, what) {
            Some(id) => {
                self.passed_on.insert((holder, id), (asker, now.boot));
                None
            }
            None => Some(failure(
                "node-unreachable",
                "the node that holds the instance does not answer",
            )),
        }
    }

    pub(super) fn hear_response(&mut self, child: ChildId, response: wire::Response, out: &mut Output<Act>) {
        if let Some((asker, _)) = self.passed_on.remove(&(child, response.id)) {
            let answer = match response.what {
                Some(response::What::Json(json)) => Ok(json),
                Some(response::What::Failure(failure)) => Err(failure),
                None => Err(failure("invalid", "the node gave an empty answer")),
            };
            self.reply(asker, answer, out);
        }
    }

    pub(super) fn expire_requests(&mut self, now: Now, out: &mut Output<Act>) {
        let late = |at: &Boottime| now.boot.since(*at) >= PASS_ON_MS;
        let expired: Vec<_> = self
            .passed_on
            .iter()
            .filter(|(_, (_, at))| late(at))
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            if let Some((asker, _)) = self.passed_on.remove(&key) {
                self.reply(
                    asker,
                    Err(failure("node-unreachable", "the node did not answer in time")),
                    out,
                );
            }
        }
    }
}

fn refused(error: &RegistryError) -> wire::Failure {
    failure(error.code(), &error.to_string())
}

fn failure(code: &str, message: &str) -> wire::Failure {
    wire::Failure {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, wire::Failure> {
    serde_json::to_vec(value).map_err(|error| failure("internal", &error.to_string()))
}

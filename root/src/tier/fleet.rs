//! Clusters, nodes and join tokens: what the operators see and do. What a cluster alone knows is asked of it over its
//! link; the call is answered when it has answered, or given up after a deadline.

use super::model::{self, Event as Happening};
use super::{Act, Answer, Change, Gather, GatherKind, Refusal, RootTier, parse_token};
use rand::RngCore;
use roble_core::ids::{ChildId, ClusterId, InstanceId, OrganizationId};
use roble_core::placement::{Explanation, Profile};
use roble_core::registry::{JoinToken, Member, MemberState, TokenKind, TokenOptions};
use roble_core::tier::{Output, Write};
use roble_core::time::Now;
use roble_proto::rest::{
    CreateToken, CreatedToken, Deleted, Explained, JoinRequest, Listed, NodeView, TokenView, Unanswered,
};
use roble_proto::wire::{self, request::What, response};
use std::collections::BTreeSet;

/// How long clusters may take to answer, milliseconds.
const GATHER_MS: u64 = 8_000;
/// Events in an explanation.
const EXPLAIN_EVENTS: usize = 20;

impl RootTier {
    pub(super) fn clusters(&self, reference: Option<&str>, now: Now) -> Answer {
        match reference {
            Some(reference) => super::views::json(&self.cluster_view(self.cluster(reference)?, now)),
            None => {
                let all: Vec<_> = self
                    .registry
                    .members()
                    .map(|member| self.cluster_view(member, now))
                    .collect();
                super::views::json(&all)
            }
        }
    }

    pub(super) fn change_cluster(
        &mut self,
        reference: &str,
        change: Change,
        now: Now,
        out: &mut Output<Act>,
    ) -> Answer {
        let id = self.cluster(reference)?.id;
        let changed = match change {
            Change::Approve => self.registry.approve(id),
            Change::Revoke => self.registry.revoke(id),
            Change::Cordon => self.registry.set_cordoned(id, true),
            Change::Uncordon => self.registry.set_cordoned(id, false),
        };
        let member = changed.map_err(Refusal::from)?;
        match change {
            Change::Approve => {
                self.admit(&member, now, out);
                self.children.set_cordoned(id, member.cordoned);
            }
            Change::Revoke => {
                self.children.remove_child(id);
                self.remove_from_overlay(id, now, out);
                out.acts.push(Act::Expel(ClusterId(id.0)));
            }
            Change::Cordon | Change::Uncordon => self.children.set_cordoned(id, member.cordoned),
        }
        out.writes.push(model::put("member", &id, None, &member));
        super::views::json(&self.cluster_view(&member, now))
    }

    /// Lets an active cluster open sessions.
    fn admit(&mut self, member: &Member, now: Now, out: &mut Output<Act>) {
        if member.state == MemberState::Active && !self.children.is_known(member.id) {
            let profile = Profile {
                name: member.name.clone(),
                ..Profile::default()
            };
            self.children.add_child(member.id, profile, member.cordoned);
            self.add_to_overlay(member.id, now, out);
        }
    }

    pub(super) fn join(
        &mut self,
        request: &JoinRequest,
        key_sha256: &str,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let joined = self
            .registry
            .redeem(request.token, &request.secret, key_sha256, &request.name, now.wall, rng);
        if let Some(token) = self.registry.token(request.token) {
            out.writes.push(model::put("token", &token.id, None, token));
        }
        let member = joined.map_err(Refusal::from)?;
        out.writes.push(model::put("member", &member.id, None, &member));
        self.admit(&member, now, out);
        let about = format!("cluster/{}", member.name);
        let message = match member.state {
            MemberState::Pending => "the cluster asks to join; `roble approve cluster` lets it",
            _ => "the cluster joined",
        };
        self.happen(
            None,
            Happening {
                about,
                code: "joined",
                message: message.to_owned(),
            },
            now,
            rng,
            out,
        );
        super::views::json(&member)
    }

    pub(super) fn member_state(&self, key_sha256: &str) -> Answer {
        let mut members = self.registry.members();
        let member = members.find(|member| member.key_sha256 == key_sha256);
        let state = member
            .ok_or(roble_core::registry::RegistryError::Unknown)
            .map_err(Refusal::from)?
            .state;
        super::views::json(&roble_proto::rest::MemberAnswer { state })
    }

    pub(super) fn renew(&self, key_sha256: &str) -> Answer {
        let member = self.registry.renew(key_sha256).map_err(Refusal::from)?;
        super::views::json(member)
    }

    pub(super) fn hear_cloned(&mut self, child: ChildId, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        let cordoned = self
            .registry
            .set_cloned(child)
            .and_then(|_| self.registry.set_cordoned(child, true));
        if let Ok(member) = cordoned {
            self.children.set_cordoned(child, true);
            out.writes.push(model::put("member", &child, None, &member));
            let about = format!("cluster/{}", member.name);
            let message = "two machines use this cluster's identity: nothing new goes there until it is approved again";
            self.happen(
                None,
                Happening {
                    about,
                    code: "cloned",
                    message: message.to_owned(),
                },
                now,
                rng,
                out,
            );
        }
    }

    pub(super) fn create_token(
        &mut self,
        number: u64,
        create: &CreateToken,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Option<Answer> {
        let options = match TokenOptions::asked(create.ttl_ms, create.needs_approval, create.name.clone()) {
            Ok(options) => options,
            Err(error) => return Some(Err(error.into())),
        };
        if create.kind == TokenKind::Node {
            let cluster = match self.only_cluster(create.cluster.as_deref()) {
                Ok(cluster) => cluster,
                Err(refusal) => return Some(Err(refusal)),
            };
            let what = What::CreateJoinToken(wire::CreateJoinToken {
                ttl_ms: options.ttl_ms,
                needs_approval: options.needs_approval,
                name: options.name.unwrap_or_default(),
            });
            return self.gather(number, &[cluster], &what, GatherKind::One, now);
        }
        let (record, secret) = self.registry.create_token(options, now.wall, rng);
        out.writes.push(model::put("token", &record.id, None, &record));
        let token = JoinToken {
            kind: TokenKind::Cluster,
            cluster: None,
            id: record.id,
            secret,
            pin: self.config.pin.clone(),
        };
        let (id, expires_at, token) = (record.id, record.expires_at, token.reveal());
        Some(super::views::json(&CreatedToken {
            id,
            token,
            expires_at,
            kind: TokenKind::Cluster,
        }))
    }

    fn only_cluster(&self, reference: Option<&str>) -> Result<ChildId, Refusal> {
        if let Some(reference) = reference {
            return self.cluster(reference).map(|member| member.id);
        }
        let mut active = self
            .registry
            .members()
            .filter(|member| member.state == MemberState::Active);
        match (active.next(), active.next()) {
            (Some(one), None) => Ok(one.id),
            (None, _) => Err(Refusal::new(
                "no-cluster",
                "no cluster has joined yet; `roble token create cluster` first",
            )),
            _ => Err(Refusal::new(
                "which-cluster",
                "there are several clusters; say which with --cluster",
            )),
        }
    }

    pub(super) fn tokens(&mut self, number: u64, now: Now) -> Option<Answer> {
        let own = self.own_tokens();
        self.gather(
            number,
            &self.active_clusters(),
            &What::ListTokens(wire::ListTokens {}),
            GatherKind::Lists(own),
            now,
        )
    }

    /// A token of the root's own, or of the cluster that has it.
    pub(super) fn delete_token(&mut self, number: u64, text: &str, now: Now, out: &mut Output<Act>) -> Option<Answer> {
        let id = match parse_token(text) {
            Ok(id) => id,
            Err(refusal) => return Some(Err(refusal)),
        };
        if !self.registry.delete_token(id) {
            let what = What::ListTokens(wire::ListTokens {});
            return self.gather(number, &self.open_clusters(), &what, GatherKind::FindToken(id), now);
        }
        out.writes.push(Write::delete("token", id));
        Some(super::views::json(&Deleted {
            deleted: vec![id.to_string()],
            remaining_instances: 0,
        }))
    }

    pub(super) fn nodes(&mut self, number: u64, cluster: Option<&str>, now: Now) -> Option<Answer> {
        let clusters = match cluster.map(|reference| self.cluster(reference).map(|member| member.id)) {
            Some(Ok(id)) => vec![id],
            Some(Err(refusal)) => return Some(Err(refusal)),
            None => self.active_clusters(),
        };
        self.gather(
            number,
            &clusters,
            &What::ListChildren(wire::ListChildren {}),
            GatherKind::Lists(Vec::new()),
            now,
        )
    }

    pub(super) fn change_node(&mut self, number: u64, reference: String, change: Change, now: Now) -> Option<Answer> {
        let what = What::ListChildren(wire::ListChildren {});
        self.gather(
            number,
            &self.open_clusters(),
            &what,
            GatherKind::FindNode(reference, change),
            now,
        )
    }

    /// An instance, and the cluster that holds it.
    pub(super) fn held(&self, own: OrganizationId, reference: &str) -> Result<(InstanceId, ChildId), Refusal> {
        let (instance, _) = self.tenant(own).instance(reference)?;
        let holder = self.children.orchestrator().holder(instance);
        let nowhere = || format!("`{reference}` is nowhere now; `roble explain {reference}` tells why");
        let holder = holder.ok_or_else(|| Refusal::new("not-placed", nowhere()))?;
        Ok((instance, holder))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn open_logs(
        &mut self,
        number: u64,
        own: OrganizationId,
        reference: &str,
        stream: String,
        follow: bool,
        tail: Option<u32>,
        now: Now,
    ) -> Option<Answer> {
        let (instance, holder) = match self.held(own, reference) {
            Ok(held) => held,
            Err(refusal) => return Some(Err(refusal)),
        };
        let logs = Some(wire::LogOptions { follow, tail });
        let what = What::OpenStream(wire::OpenStream {
            stream,
            instance: instance.to_string(),
            logs,
        });
        self.gather(number, &[holder], &what, GatherKind::One, now)
    }

    pub(super) fn explain(&mut self, number: u64, own: OrganizationId, reference: &str, now: Now) -> Option<Answer> {
        let (instance, service) = match self.tenant(own).instance(reference) {
            Ok(found) => found,
            Err(refusal) => return Some(Err(refusal)),
        };
        let Some(view) = self.instance_view(instance, service, now) else {
            return Some(Err(super::tenant::not_found("instance", reference, "roble ps")));
        };
        let about = view.path.clone();
        let about_it = |event: &&roble_proto::rest::EventView| super::access::is_about(&event.about, &about);
        let own_events = self
            .events
            .iter()
            .filter(|(scope, _)| *scope == Some(own))
            .map(|(_, event)| event);
        let mut events: Vec<_> = own_events.filter(about_it).cloned().collect();
        events.drain(..events.len().saturating_sub(EXPLAIN_EVENTS));
        let reason = view
            .reason
            .as_ref()
            .map(|reason| format!(": {}", reason.message))
            .unwrap_or_default();
        let place = view
            .cluster
            .as_ref()
            .map(|cluster| format!(" on cluster {cluster}"))
            .unwrap_or_default();
        let explained = Explained {
            summary: format!("{} is {}{place}{reason}", view.path, view.phase),
            instance: view,
            root: self.children.orchestrator().explain(instance).cloned(),
            cluster: None,
            cluster_missing: None,
            events,
            warnings: [
                service.warnings.clone(),
                self.unresolved_rules(
                    service.organization,
                    &service.descriptor,
                    &format!("services.{}", service.descriptor.name),
                    &BTreeSet::new(),
                ),
            ]
            .concat(),
        };
        let Some(holder) = self.children.orchestrator().holder(instance) else {
            return Some(super::views::json(&explained));
        };
        let what = What::Explain(wire::Explain {
            instance: instance.to_string(),
        });
        self.gather(number, &[holder], &what, GatherKind::Explain(Box::new(explained)), now)
    }

    /// Those that could contribute to a list, connected or not.
    fn active_clusters(&self) -> Vec<ChildId> {
        let members = self.registry.members();
        let active = members.filter(|member| member.state == MemberState::Active);
        active.map(|member| member.id).collect()
    }

    fn open_clusters(&self) -> Vec<ChildId> {
        let members = self.registry.members().map(|member| member.id);
        members.filter(|id| self.children.is_open(*id)).collect()
    }

    /// Asks clusters; the call is answered by `finish` once all have answered.
    pub(super) fn gather(
        &mut self,
        call: u64,
        clusters: &[ChildId],
        what: &What,
        kind: GatherKind,
        now: Now,
    ) -> Option<Answer> {
        let mut waiting = BTreeSet::new();
        let mut parts = Vec::new();
        for cluster in clusters {
            match self.children.request(*cluster, what.clone()) {
                Some(id) => {
                    waiting.insert((*cluster, id));
                }
                None => parts.push((*cluster, Err(unreachable(&self.cluster_name(*cluster))))),
            }
        }
        let gather = Gather {
            call,
            kind,
            waiting,
            parts,
            since: now.boot,
        };
        if gather.waiting.is_empty() {
            return self.finish(gather, now);
        }
        self.gathers.push(gather);
        None
    }

    pub(super) fn hear_response(
        &mut self,
        child: ChildId,
        response: wire::Response,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) {
        let key = (child, response.id);
        let Some(index) = self.gathers.iter().position(|gather| gather.waiting.contains(&key)) else {
            return;
        };
        let gather = &mut self.gathers[index];
        gather.waiting.remove(&key);
        let part = match response.what {
            Some(response::What::Json(json)) => Ok(json),
            Some(response::What::Failure(failure)) => Err(failure),
            None => Err(wire::Failure {
                code: "invalid".to_owned(),
                message: "empty answer".to_owned(),
            }),
        };
        gather.parts.push((child, part));
        if gather.waiting.is_empty() {
            let gather = self.gathers.swap_remove(index);
            self.answer(gather, now, rng, out);
        }
    }

    pub(super) fn expire(&mut self, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) {
        while let Some(index) = self
            .gathers
            .iter()
            .position(|gather| now.boot.since(gather.since) >= GATHER_MS)
        {
            let mut gather = self.gathers.swap_remove(index);
            for (cluster, _) in std::mem::take(&mut gather.waiting) {
                gather
                    .parts
                    .push((cluster, Err(unreachable(&self.cluster_name(cluster)))));
            }
            self.answer(gather, now, rng, out);
        }
        let expired: Vec<String> = self
            .sessions
            .values()
            .filter(|session| session.expires_at <= now.wall)
            .map(|session| session.token_sha256.clone())
            .collect();
        for session in expired {
            self.sessions.remove(&session);
            out.writes.push(Write::delete("session", session));
        }
        for token in self.registry.prune(now.wall) {
            out.writes.push(Write::delete("token", token));
        }
        self.forget_old_audit(now, out);
    }

    fn answer(&mut self, gather: Gather, now: Now, _rng: &mut dyn RngCore, out: &mut Output<Act>) {
        let call = gather.call;
        if let Some(answer) = self.finish(gather, now) {
            out.acts.push(Act::Answer(call, answer));
        }
    }

    /// Makes the answer of all parts; `None` if one more question was asked.
    fn finish(&mut self, gather: Gather, now: Now) -> Option<Answer> {
        match gather.kind {
            GatherKind::One => Some(match gather.parts.into_iter().next() {
                Some((_, Ok(json))) => parse(&json),
                Some((_, Err(failure))) => Err(failure.into()),
                None => Err(Refusal::new("cluster-unreachable", "no cluster is connected")),
            }),
            GatherKind::Lists(mut items) => {
                let mut unanswered = Vec::new();
                for (cluster, part) in gather.parts {
                    match part.map_err(Refusal::from).and_then(|json| parse(&json)) {
                        Ok(serde_json::Value::Array(mut list)) => items.append(&mut list),
                        Ok(_) => unanswered.push(self.unanswered(cluster, misunderstood())),
                        Err(refusal) => unanswered.push(self.unanswered(cluster, refusal)),
                    }
                }
                Some(super::views::json(&Listed { items, unanswered }))
            }
            GatherKind::FindToken(id) => {
                let silent = gather.parts.iter().find_map(|(_, part)| part.as_ref().err().cloned());
                for (cluster, part) in gather.parts {
                    let Ok(json) = part else { continue };
                    let tokens: Vec<TokenView> = serde_json::from_slice(&json).unwrap_or_default();
                    if tokens.iter().any(|token| token.id == id) {
                        let token = id.to_string();
                        let what = What::DeleteToken(wire::DeleteToken { token });
                        return self.gather(gather.call, &[cluster], &what, GatherKind::One, now);
                    }
                }
                // A cluster that did not answer may be the one that has it.
                let missing = || super::tenant::not_found("token", &id.to_string(), "roble get tokens");
                Some(Err(silent.map_or_else(missing, Refusal::from)))
            }
            GatherKind::FindNode(reference, change) => {
                let silent = gather.parts.iter().find_map(|(_, part)| part.as_ref().err().cloned());
                for (cluster, part) in gather.parts {
                    let Ok(json) = part else { continue };
                    let nodes: Vec<NodeView> = serde_json::from_slice(&json).unwrap_or_default();
                    let found = nodes
                        .iter()
                        .find(|node| node.id.to_string() == reference || node.name == reference);
                    if let Some(node) = found {
                        let child = node.id.to_string();
                        let what = match change {
                            Change::Approve => What::ApproveChild(wire::ApproveChild { child }),
                            Change::Revoke => What::RevokeChild(wire::RevokeChild { child }),
                            Change::Cordon => What::SetCordon(wire::SetCordon { child, cordoned: true }),
                            Change::Uncordon => What::SetCordon(wire::SetCordon { child, cordoned: false }),
                        };
                        return self.gather(gather.call, &[cluster], &what, GatherKind::One, now);
                    }
                }
                // A cluster that did not answer may be the one that has it.
                let missing = || super::tenant::not_found("node", &reference, "roble get nodes");
                Some(Err(silent.map_or_else(missing, Refusal::from)))
            }
            GatherKind::Explain(mut explained) => {
                match gather.parts.into_iter().next() {
                    Some((_, Ok(json))) => {
                        explained.cluster = serde_json::from_slice::<Option<Explanation>>(&json).unwrap_or_default();
                    }
                    Some((_, Err(failure))) => explained.cluster_missing = Some(failure.message),
                    None => {}
                }
                Some(super::views::json(&*explained))
            }
        }
    }
}

impl RootTier {
    fn unanswered(&self, cluster: ChildId, refusal: Refusal) -> Unanswered {
        Unanswered {
            cluster: self.cluster_name(cluster),
            code: refusal.body.code,
            message: refusal.body.message,
        }
    }

    /// The root's own tokens, as the beginning of a list of tokens.
    fn own_tokens(&self) -> Vec<serde_json::Value> {
        self.registry
            .tokens()
            .filter_map(|token| serde_json::to_value(TokenView::of(token, TokenKind::Cluster, None)).ok())
            .collect()
    }
}

fn parse(json: &[u8]) -> Answer {
    serde_json::from_slice(json).map_err(|_| misunderstood())
}

fn misunderstood() -> Refusal {
    Refusal::new("cluster-answer", "the cluster's answer was not understood")
}

fn unreachable(name: &str) -> wire::Failure {
    wire::Failure {
        code: "cluster-unreachable".to_owned(),
        message: format!("cluster {name} is not connected now"),
    }
}

//! Who may call what: sessions, one-time credentials, and the dispatch of calls after the check.

use super::model::{self, Credential, Organization, Session, User};
use super::{Act, Answer, AuditIds, Call, Caller, Refusal, RootTier};
use rand::RngCore;
use roble_core::ids::{EventId, OrganizationId, UserId};
use roble_core::registry::sha256_hex;
use roble_core::tier::{Output, Write};
use roble_core::time::{Now, Timestamp};
use roble_proto::rest::{self, AuditView, UserView, WhoAmI};

impl RootTier {
    /// Answers a call; `None` if the answer comes later.
    pub(super) fn call(
        &mut self,
        number: u64,
        caller: &Caller,
        call: Call,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Option<Answer> {
        // What needs no session of a user.
        match (caller, call) {
            (_, Call::Login(login)) => Some(self.login(&login, now, rng, out)),
            (_, Call::Join { request, key_sha256 }) => Some(self.join(&request, &key_sha256, now, rng, out)),
            (Caller::Cluster(key), Call::Renew) => Some(self.renew(key)),
            (_, Call::MemberState(key)) => Some(self.member_state(&key)),
            (Caller::Local, Call::NewCredential { organization }) => {
                Some(self.new_credential(organization.as_deref(), now, rng, out))
            }
            (_, Call::NewCredential { .. } | Call::Renew) => Some(Err(forbidden())),
            (_, call) => match self.user(caller, now) {
                Ok(user) => self.call_of(number, &user, call, now, rng, out),
                Err(refusal) => Some(Err(refusal)),
            },
        }
    }

    fn call_of(
        &mut self,
        number: u64,
        user: &User,
        call: Call,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Option<Answer> {
        let own = user.organization;
        let writes = out.writes.len();
        let audit = describe(&call);
        let answer = match call {
            Call::WhoAmI => Some(self.who_am_i(user)),
            Call::Apply { descriptor, dry_run } => Some(self.apply(own, &descriptor, dry_run, now, rng, out)),
            Call::Applications(reference) => Some(self.applications(own, reference.as_deref())),
            Call::Services(reference) => Some(self.services(own, reference.as_deref())),
            Call::Instances(reference) => Some(self.instances(own, reference.as_deref(), now)),
            Call::DeleteApplication(reference) => Some(self.delete_application(own, &reference, now, rng, out)),
            Call::DeleteService(reference) => Some(self.delete_service(own, &reference, now, rng, out)),
            Call::Scale { service, replicas } => Some(self.scale(own, &service, replicas, now, rng, out)),
            Call::Events { after, about } => Some(self.list_events(user, after, about.as_deref())),
            Call::Explain(reference) => self.explain(number, own, &reference, now),
            Call::OpenLogs {
                instance,
                stream,
                follow,
                tail,
            } => self.open_logs(number, own, &instance, stream, follow, tail, now),
            Call::Ends(traced) => Some(self.ends(user, &traced, now)),
            Call::AskNet { instance, about } => self.ask_net(number, own, &instance, about, now),
            // Clusters, nodes and tokens are the operators'.
            _ if !user.is_admin => Some(Err(forbidden())),
            Call::Clusters(reference) => Some(self.clusters(reference.as_deref(), now)),
            Call::ChangeCluster(reference, change) => Some(self.change_cluster(&reference, change, now, out)),
            Call::Nodes { cluster } => self.nodes(number, cluster.as_deref(), now),
            Call::ChangeNode(reference, change) => self.change_node(number, reference, change, now),
            Call::CreateToken(create) => self.create_token(number, &create, now, rng, out),
            Call::Tokens => self.tokens(number, now),
            Call::DeleteToken(id) => self.delete_token(number, &id, now, out),
            Call::Audit { before, limit } => Some(self.list_audit(own, before, limit)),
            Call::Login(_) | Call::NewCredential { .. } | Call::Join { .. } | Call::Renew | Call::MemberState(_) => {
                Some(Err(forbidden()))
            }
        };
        let mutated = out.writes.len() > writes;
        if let Some((action, mut object)) = audit.filter(|_| mutated || answer.is_none()) {
            // What a descriptor was about is known once it is read.
            if let Some(Ok(answer)) = &answer
                && action == "apply"
            {
                let services = answer["services"].as_array().into_iter().flatten();
                let paths: Vec<&str> = services.filter_map(|service| service["path"].as_str()).collect();
                object = paths.join(", ");
            }
            self.audit(user, action, &object, now, rng, out);
        }
        answer
    }

    fn user(&self, caller: &Caller, now: Now) -> Result<User, Refusal> {
        let user = match caller {
            Caller::Session(token_sha256) => {
                let session = self
                    .sessions
                    .get(token_sha256)
                    .filter(|session| session.expires_at > now.wall);
                session.and_then(|session| self.users.get(&session.user))
            }
            Caller::Local => self.users.values().find(|user| user.is_admin),
            Caller::Anonymous | Caller::Cluster(_) => None,
        };
        let message = "log in first: `roble login URL --credential ...`; the session may have expired";
        user.cloned().ok_or_else(|| Refusal::new("not-logged-in", message))
    }

    fn user_view(&self, user: &User) -> UserView {
        let organization_name = self
            .organizations
            .get(&user.organization)
            .map(|o| o.name.clone())
            .unwrap_or_default();
        UserView {
            id: user.id,
            name: user.name.clone(),
            organization: user.organization,
            organization_name,
            is_admin: user.is_admin,
        }
    }

    fn who_am_i(&self, user: &User) -> Answer {
        super::views::json(&WhoAmI {
            user: self.user_view(user),
            root_version: self.config.software.clone(),
        })
    }

    fn login(&mut self, login: &rest::Login, now: Now, rng: &mut dyn RngCore, out: &mut Output<Act>) -> Answer {
        let wrong = || {
            let message = "the credential is not valid, or was used before; `roble-root credential` on the root's machine makes a new one";
            Refusal::new("credential-invalid", message)
        };
        let credential = self
            .credentials
            .remove(&sha256_hex(login.credential.trim().as_bytes()))
            .ok_or_else(wrong)?;
        let mut user = self.users.get(&credential.user).cloned().ok_or_else(wrong)?;
        let token = format!("roble_{}", secret(rng));
        let session = Session {
            token_sha256: sha256_hex(token.as_bytes()),
            user: user.id,
            client: login.client.chars().take(128).collect(),
            expires_at: Timestamp::from_millis(now.wall.as_millis().saturating_add(self.config.session_ms)),
        };
        if !user.has_logged_in {
            user.has_logged_in = true;
            out.writes.push(model::put("user", &user.id, None, &user));
            self.users.insert(user.id, user.clone());
        }
        out.writes.push(Write::delete("credential", &credential.sha256));
        out.writes
            .push(model::put("session", &session.token_sha256, None, &session));
        self.audit(&user, "login", &session.client, now, rng, out);
        let expires_at = session.expires_at;
        self.sessions.insert(session.token_sha256.clone(), session);
        super::views::json(&rest::Session {
            token,
            user: self.user_view(&user),
            expires_at,
        })
    }

    fn new_credential(
        &mut self,
        organization: Option<&str>,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Answer {
        let admin = self.users.values().find(|user| user.is_admin).cloned();
        let admin = admin.ok_or_else(|| Refusal::new("no-admin", "there is no admin user in the store"))?;
        let user = match organization {
            Some(name) => self.ensure_owner(name, &admin, now, rng, out)?,
            None => admin.clone(),
        };
        let secret = secret(rng);
        let credential = Credential {
            sha256: sha256_hex(secret.as_bytes()),
            user: user.id,
            created_at: now.wall,
        };
        // Only the newest one of a user is valid.
        self.credentials.retain(|old, credential| {
            let is_other = credential.user != user.id;
            if !is_other {
                out.writes.push(Write::delete("credential", old));
            }
            is_other
        });
        out.writes
            .push(model::put("credential", &credential.sha256, None, &credential));
        self.audit(&admin, "new-credential", organization.unwrap_or("admin"), now, rng, out);
        self.credentials.insert(credential.sha256.clone(), credential);
        Ok(serde_json::json!({ "credential": secret }))
    }

    /// The user who owns what the organization of this name has; both are made if there are none.
    fn ensure_owner(
        &mut self,
        name: &str,
        admin: &User,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) -> Result<User, Refusal> {
        if !roble_core::registry::is_name(name) {
            let message = format!("`{name}` is no name: lower-case letters, digits, `-` and `.`, at most 63");
            return Err(Refusal::new("name-invalid", message));
        }
        let known = self.organizations.values().find(|one| one.name == name);
        let organization = match known {
            Some(known) => known.id,
            None => {
                let made = Organization {
                    id: OrganizationId::generate(now.wall, rng),
                    name: name.to_owned(),
                };
                out.writes.push(model::put("organization", &made.id, None, &made));
                self.audit(admin, "new-organization", name, now, rng, out);
                // Rules of others may name it.
                self.overlay.is_renamed = true;
                let id = made.id;
                self.organizations.insert(id, made);
                id
            }
        };
        // That of the admin has its own.
        if let Some(user) = self.users.values().find(|user| user.organization == organization) {
            return Ok(user.clone());
        }
        let user = User {
            id: UserId::generate(now.wall, rng),
            name: "owner".to_owned(),
            organization,
            is_admin: false,
            has_logged_in: false,
        };
        out.writes.push(model::put("user", &user.id, None, &user));
        self.users.insert(user.id, user.clone());
        Ok(user)
    }

    fn list_events(&self, user: &User, after: Option<EventId>, about: Option<&str>) -> Answer {
        let visible = |scope: &Option<_>| *scope == Some(user.organization) || (scope.is_none() && user.is_admin);
        let matches = |event: &rest::EventView| {
            after.is_none_or(|after| event.id > after) && about.is_none_or(|about| is_about(&event.about, about))
        };
        let events = self
            .events
            .iter()
            .filter(|(scope, event)| visible(scope) && matches(event));
        super::views::json(&events.map(|(_, event)| event).collect::<Vec<_>>())
    }

    fn list_audit(&self, own: OrganizationId, before: Option<EventId>, limit: usize) -> Answer {
        let older = |id: &EventId| before.is_none_or(|before| *id < before);
        let newest = self.audit.iter().rev().filter(|(id, of)| **of == own && older(id));
        let mut ids: Vec<EventId> = newest.take(limit).map(|(id, _)| *id).collect();
        ids.reverse();
        super::views::json(&AuditIds { organization: own, ids })
    }

    /// Records what a user did, with the writes of it, and forgets the oldest records if there are too many.
    fn audit(
        &mut self,
        user: &User,
        action: &str,
        object: &str,
        now: Now,
        rng: &mut dyn RngCore,
        out: &mut Output<Act>,
    ) {
        let last = self.audit.last_key_value().map(|(id, _)| *id);
        let record = AuditView {
            id: super::later_than(last, EventId::generate(now.wall, rng)),
            at: now.wall,
            user: user.name.clone(),
            action: action.to_owned(),
            object: object.chars().take(256).collect(),
        };
        self.audit.insert(record.id, user.organization);
        out.writes
            .push(model::put("audit", &record.id, Some(user.organization), &record));
        while self.audit.len() > self.config.audit.records.max(1) {
            self.forget_oldest_audit(out);
        }
    }

    pub(super) fn forget_old_audit(&mut self, now: Now, out: &mut Output<Act>) {
        // A clock that jumped ahead shall not empty it at once.
        const AT_ONCE: usize = 100;
        let oldest_kept = now.wall.as_millis().saturating_sub(self.config.audit.age_ms);
        let is_old = |id: &EventId| id.0.made_at().as_millis() < oldest_kept;
        let old = self.audit.keys().take(AT_ONCE).take_while(|id| is_old(id)).count();
        for _ in 0..old {
            self.forget_oldest_audit(out);
        }
    }

    fn forget_oldest_audit(&mut self, out: &mut Output<Act>) {
        if let Some((id, organization)) = self.audit.pop_first() {
            out.writes.push(Write::delete("audit", id).of(organization));
        }
    }
}

/// Whether an event about `subject` is of interest to who follows `about`: the same, or below it.
pub fn is_about(subject: &str, about: &str) -> bool {
    subject
        .strip_prefix(about)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
}

fn secret(rng: &mut dyn RngCore) -> String {
    let mut bytes = [0_u8; 32];
    rng.fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn forbidden() -> Refusal {
    Refusal::new("forbidden", "this needs rights that the caller does not have")
}

/// Action and object of a call that changes something.
fn describe(call: &Call) -> Option<(&'static str, String)> {
    Some(match call {
        Call::Apply { dry_run: false, .. } => ("apply", String::new()),
        Call::DeleteApplication(reference) => ("delete-application", reference.clone()),
        Call::DeleteService(reference) => ("delete-service", reference.clone()),
        Call::Scale { service, replicas } => ("scale", format!("{service} to {replicas}")),
        Call::ChangeCluster(reference, change) => ("change-cluster", format!("{reference} {change:?}")),
        Call::ChangeNode(reference, change) => ("change-node", format!("{reference} {change:?}")),
        Call::CreateToken(create) => ("create-token", create.kind.to_string()),
        Call::DeleteToken(id) => ("delete-token", id.clone()),
        _ => return None,
    })
}

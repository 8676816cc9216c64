//! `roble wait`, and the waiting of other verbs: look until it is so, or the deadline has passed.

use super::Session;
use crate::api::{self, Api};
use crate::failure::Failure;
use crate::reference::Reference;
use crate::text;
use clap::Args;
use roble_core::registry::MemberState;
use roble_core::status::Phase;
use roble_proto::rest::{ApplicationView, ClusterView, InstanceView, NodeView, ServiceView};
use std::str::FromStr;
use std::time::Duration;
use tokio::time::Instant;

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Application, service, instance, `cluster/NAME` or `node/NAME`.
    #[arg(value_name = "REF")]
    pub reference: Reference,
    /// `gone`; for instances, services and applications `running` or another phase; for clusters and nodes `ready`,
    /// `unreachable`, `lost`, `active`, `cordoned`, `revoked`.
    #[arg(long = "for", value_name = "CONDITION")]
    pub condition: Condition,
    /// How long; exit code 4 when it is over.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The root knows it no more.
    Gone,
    /// As many run as are asked for, all of the newest generation.
    Running,
    /// All its instances are in this phase.
    Phase(Phase),
    /// A cluster or node stands so.
    Standing(String),
}

const STANDINGS: [&str; 6] = [
    "ready",
    "unreachable",
    "active",
    "cordoned",
    "revoked",
    "pending-approval",
];

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let phase = Phase::ALL.into_iter().find(|phase| phase.as_str() == text);
        match (text, phase) {
            ("gone", _) => Ok(Self::Gone),
            ("running", _) => Ok(Self::Running),
            (_, Some(phase)) => Ok(Self::Phase(phase)),
            _ if STANDINGS.contains(&text) => Ok(Self::Standing(text.to_owned())),
            _ => {
                let phases: Vec<&str> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
                Err(format!("known: gone, {}, {}", phases.join(", "), STANDINGS.join(", ")))
            }
        }
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("gone"),
            Self::Running => f.write_str("running"),
            Self::Phase(phase) => phase.fmt(f),
            Self::Standing(standing) => f.write_str(standing),
        }
    }
}

/// When waiting ends.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    given: Duration,
}

impl Deadline {
    /// `given` from now on.
    pub fn after(given: Duration) -> Self {
        let now = Instant::now();
        // An instant too far away to be told counts as a year.
        let year = Duration::from_secs(365 * 86_400);
        let at = now.checked_add(given).unwrap_or(now + year);
        Self { at, given }
    }
}

/// Between two looks: short at first, since most things are quick; then long enough not to burden the root.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(1000)];

pub(crate) async fn run(wait: Wait, session: Session<'_>) -> Result<(), Failure> {
    let deadline = Deadline::after(wait.timeout);
    until(session.api, &wait.reference, &wait.condition, &deadline).await?;
    session
        .console
        .hint(format_args!("{} is {}", wait.reference, wait.condition));
    Ok(())
}

/// Returns once `target` is as `condition` says.
///
/// # Errors
/// [`Failure::Timeout`] says how it was at the last look; an instance that ended for good is not waited for in vain. A
/// root that is away for a moment is asked again.
pub async fn until(
    api: &dyn Api,
    target: &Reference,
    condition: &Condition,
    deadline: &Deadline,
) -> Result<(), Failure> {
    let mut pause = PAUSES[0];
    let mut seen = "nothing was heard of it".to_owned();
    loop {
        match tokio::time::timeout_at(deadline.at, look(api, target, condition)).await {
            Ok(Ok(Look::Done)) => return Ok(()),
            Ok(Ok(Look::NotYet(state))) => seen = state,
            Ok(Ok(Look::Never(state))) => {
                return Err(Failure::other(format!("{target} will not become {condition}: {state}")));
            }
            Ok(Err(failure)) if failure.is_transient() => seen = failure.to_string(),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => {}
        }
        if Instant::now() + pause >= deadline.at {
            let given = text::span(u64::try_from(deadline.given.as_millis()).unwrap_or(u64::MAX));
            // One more look at the very end, unless the time is over already.
            tokio::time::sleep_until(deadline.at).await;
            return match look_once_more(api, target, condition).await {
                Some(Look::Done) => Ok(()),
                Some(Look::NotYet(state)) => Err(timed_out(target, condition, &given, &state)),
                _ => Err(timed_out(target, condition, &given, &seen)),
            };
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(PAUSES[1]);
    }
}

async fn look_once_more(api: &dyn Api, target: &Reference, condition: &Condition) -> Option<Look> {
    let last = look(api, target, condition);
    tokio::time::timeout(Duration::from_secs(1), last).await.ok()?.ok()
}

fn timed_out(target: &Reference, condition: &Condition, given: &str, seen: &str) -> Failure {
    Failure::Timeout(format!("{target} is not {condition} after {given}: {seen}"))
}

enum Look {
    Done,
    NotYet(String),
    Never(String),
}

async fn look(api: &dyn Api, target: &Reference, condition: &Condition) -> Result<Look, Failure> {
    match (target, condition) {
        (_, Condition::Gone) => match api::get::<serde_json::Value>(api, target.path()).await {
            Ok(_) => Ok(Look::NotYet("it is still there".into())),
            Err(Failure::Answer { status: 404, .. }) => Ok(Look::Done),
            Err(failure) => Err(failure),
        },
        (Reference::Cluster(_), Condition::Standing(wanted)) => {
            let view: ClusterView = api::get(api, target.path()).await?;
            Ok(standing(view.state, &view.standing, view.cordoned, wanted))
        }
        (Reference::Node(_), Condition::Standing(wanted)) => {
            let view: NodeView = api::get(api, target.path()).await?;
            Ok(standing(view.state, &view.standing, view.cordoned, wanted))
        }
        // `lost` is a phase of instances and a standing of members.
        (Reference::Cluster(_) | Reference::Node(_), Condition::Phase(Phase::Lost)) => {
            Box::pin(look(api, target, &Condition::Standing("lost".into()))).await
        }
        (Reference::Cluster(_) | Reference::Node(_), _) | (_, Condition::Standing(_)) => Err(Failure::Usage(format!(
            "`{condition}` is nothing that {target} can be; `roble wait --help` lists what goes with what"
        ))),
        (Reference::Service(_), Condition::Running) => {
            let service: ServiceView = api::get(api, target.path()).await?;
            Ok(running(std::slice::from_ref(&service)))
        }
        (Reference::Application(_), Condition::Running) => {
            let application: ApplicationView = api::get(api, target.path()).await?;
            Ok(running(&application.services))
        }
        (Reference::Instance(_), Condition::Running) => phases(api, target, Phase::Running).await,
        (_, Condition::Phase(phase)) => phases(api, target, *phase).await,
    }
}

fn standing(state: MemberState, standing: &str, cordoned: bool, wanted: &str) -> Look {
    let is_active = state == MemberState::Active;
    let is_so = match wanted {
        "active" => is_active,
        "revoked" => state == MemberState::Revoked,
        "pending-approval" => state == MemberState::Pending,
        "cordoned" => cordoned,
        _ => is_active && standing == wanted,
    };
    let shown = match state {
        MemberState::Active => standing,
        MemberState::Pending => "pending-approval",
        MemberState::Revoked => "revoked",
    };
    match (is_so, state) {
        (true, _) => Look::Done,
        (false, MemberState::Revoked) => Look::Never("it is revoked".into()),
        (false, _) => Look::NotYet(format!("it is {shown}")),
    }
}

fn running(services: &[ServiceView]) -> Look {
    for service in services {
        let ServiceView {
            path,
            replicas,
            running,
            up_to_date,
            ..
        } = service;
        if service.deleting {
            return Look::Never(format!("{path} is being deleted"));
        }
        if running != replicas || up_to_date != replicas {
            let rest = format!("{running} of {replicas} run, {up_to_date} of the newest generation");
            return Look::NotYet(format!("{path}: {rest}; `roble ps {path}` shows why"));
        }
    }
    Look::Done
}

async fn phases(api: &dyn Api, target: &Reference, wanted: Phase) -> Result<Look, Failure> {
    let instances = super::instances_of(api, target).await?;
    let Some(other) = instances.iter().find(|instance| instance.phase != wanted) else {
        return Ok(match instances.is_empty() {
            // A service without instances is in no phase; one that does not exist is an error.
            true => api::get::<serde_json::Value>(api, target.path())
                .await
                .map(|_| Look::NotYet("it has no instances".into()))?,
            false => Look::Done,
        });
    };
    let InstanceView {
        path, phase, reason, ..
    } = other;
    let why = reason.as_ref().map_or(String::new(), |reason| format!(", {reason}"));
    let state = text::clean(&format!("{path} is {phase}{why}"));
    // Stopping and the like may follow an end; a new start under the same generation does not.
    let is_vain = phase.is_final() && !matches!(wanted, Phase::Stopping | Phase::Lost);
    Ok(if is_vain {
        Look::Never(state)
    } else {
        Look::NotYet(state)
    })
}

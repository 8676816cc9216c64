//! Applications, services and instances.

use super::extract::{Body, Params, Raw, Ref, Who, switch};
use super::{Api, Reply};
use crate::tier::Call;
use axum::Json;
use axum::extract::State;
use roble_proto::rest::Scale;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct ApplyParams {
    dry_run: Option<String>,
}

pub(super) async fn apply(
    State(api): Api,
    Who(who): Who,
    Params(params): Params<ApplyParams>,
    Raw(body): Raw,
) -> Reply {
    let call = Call::Apply {
        descriptor: body.to_vec(),
        dry_run: switch("dry_run", params.dry_run.as_deref())?,
    };
    Ok(Json(api.handle.call(who, call).await?))
}

pub(super) async fn applications(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::Applications(None)).await?))
}

pub(super) async fn application(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::Applications(Some(reference))).await?))
}

pub(super) async fn delete_application(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::DeleteApplication(reference)).await?))
}

pub(super) async fn services(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::Services(None)).await?))
}

pub(super) async fn service(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::Services(Some(reference))).await?))
}

pub(super) async fn delete_service(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::DeleteService(reference)).await?))
}

pub(super) async fn scale(State(api): Api, Who(who): Who, Ref(service): Ref, Body(scale): Body<Scale>) -> Reply {
    let call = Call::Scale {
        service,
        replicas: scale.replicas,
    };
    Ok(Json(api.handle.call(who, call).await?))
}

pub(super) async fn instances(State(api): Api, Who(who): Who) -> Reply {
    Ok(Json(api.handle.call(who, Call::Instances(None)).await?))
}

pub(super) async fn instance(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::Instances(Some(reference))).await?))
}

pub(super) async fn explain(State(api): Api, Who(who): Who, Ref(reference): Ref) -> Reply {
    Ok(Json(api.handle.call(who, Call::Explain(reference)).await?))
}

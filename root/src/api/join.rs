//! Joining and renewing of clusters: the tier decides who is a member, certificates are made here.

use super::extract::{Body, From};
use super::login::throttle;
use super::{Api, ApiState};
use crate::tier::{Call, Caller};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use roble_core::ids::ClusterId;
use roble_core::registry::{Member, MemberState};
use roble_daemon::failpoint;
use roble_daemon::pki::{Identity, VerifiedRequest, certificate_request_from_pem, certificates_to_pem};
use roble_daemon::refusal::Refusal;
use roble_daemon::serve::PeerIdentity;
use roble_proto::rest::{JoinGrant, JoinRequest, RenewRequest};

pub(super) async fn join(
    State(api): Api,
    From(address): From,
    Body(request): Body<JoinRequest>,
) -> Result<Json<JoinGrant>, Refusal> {
    throttle(&api, address)?;
    let certified = verify(&request.csr)?;
    let key_sha256 = certified.pin().to_string();
    let member = api
        .handle
        .call(Caller::Anonymous, Call::Join { request, key_sha256 })
        .await?;
    grant(&api, member, &certified)
}

/// The connection proves which cluster it is; the request proves the key that its authority has had since it joined.
pub(super) async fn renew(
    State(api): Api,
    Extension(peer): Extension<PeerIdentity>,
    Body(request): Body<RenewRequest>,
) -> Result<Json<JoinGrant>, Refusal> {
    let Some(Identity::Cluster(id)) = peer.0 else {
        let message = "renewing needs the cluster's certificate on the connection; without one, join again";
        return Err(Refusal::new("certificate-required", message));
    };
    let certified = verify(&request.csr)?;
    let caller = Caller::Cluster(certified.pin().to_string());
    let member = api.handle.call(caller, Call::Renew).await?;
    if member["id"] != id.as_str() {
        let message = "the key in the request is not the one this cluster joined with";
        return Err(Refusal::new("other-key", message));
    }
    grant(&api, member, &certified)
}

/// For a cluster that is refused and does not know why.
pub(super) async fn member(
    State(api): Api,
    From(address): From,
    Path(key_sha256): Path<String>,
) -> Result<Json<serde_json::Value>, Refusal> {
    throttle(&api, address)?;
    let call = Call::MemberState(key_sha256);
    Ok(Json(api.handle.call(Caller::Anonymous, call).await?))
}

fn verify(pem: &str) -> Result<VerifiedRequest, Refusal> {
    certificate_request_from_pem(pem.as_bytes())
        .and_then(|der| VerifiedRequest::parse(&der))
        .map_err(|error| Refusal::new("request-invalid", format!("`csr`: {error}")))
}

fn grant(api: &ApiState, member: serde_json::Value, request: &VerifiedRequest) -> Result<Json<JoinGrant>, Refusal> {
    let internal = |error: &(dyn std::error::Error + 'static)| {
        tracing::error!(error, "certificate not issued");
        Refusal::new(
            "internal",
            "the certificate could not be issued; the root's log tells more",
        )
    };
    let member: Member = serde_json::from_value(member).map_err(|error| internal(&error))?;
    failpoint!("root.grant.decided");
    let id = member.id.to_string();
    let mut certificates = String::new();
    if member.state == MemberState::Active {
        let issued = api
            .authority
            .issue_cluster_authority(&id, request, api.clock.now())
            .map_err(|error| internal(&error))?;
        failpoint!("root.grant.certified");
        // The root's own certificate is told apart from the rest.
        certificates = certificates_to_pem(&issued.chain[..issued.chain.len() - 1]);
        tracing::info!(cluster = %id, name = %member.name, serial = %issued.serial, "cluster authority issued");
    }
    Ok(Json(JoinGrant {
        id,
        cluster: ClusterId(member.id.0),
        state: member.state,
        certificates,
        authority: certificates_to_pem(&[api.authority.root().clone()]),
        link_port: api.link_port,
    }))
}

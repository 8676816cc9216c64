//! Leases: what keeps containerd's collector from unfinished work.

use super::client::{Client, describe, fresh, optional, unavailable};
use crate::runtime::{RuntimeError, wall_now};
use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use roble_core::time::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// How long a lease outlives a process that died while it held it, seconds.
const LEASE_SECONDS: u64 = 3_600;

fn id_of(purpose: &str) -> String {
    format!("roble-{}", hex::encode(&Sha256::digest(purpose.as_bytes())[..12]))
}

/// A lease on what is made under its id. Not ended by dropping it: a call that was broken off goes on from there.
#[derive(Debug)]
pub(super) struct Lease {
    id: String,
}

impl Lease {
    /// A lease for the work named `purpose`. A crashed process may have left one of the same name: it is replaced.
    pub(super) async fn begin(client: &Client, purpose: &str) -> Result<Self, RuntimeError> {
        let id = id_of(purpose);
        let expire = Timestamp::from_millis(wall_now().as_millis() + LEASE_SECONDS * 1_000);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire.to_string())]);
        let request = CreateRequest { id: id.clone(), labels };
        if fresh(client.leases().create(client.request(request.clone())).await)
            .map_err(unavailable)?
            .is_none()
        {
            let old = DeleteRequest {
                id: id.clone(),
                sync: false,
            };
            optional(client.leases().delete(client.request(old)).await).map_err(unavailable)?;
            fresh(client.leases().create(client.request(request)).await).map_err(unavailable)?;
        }
        Ok(Self { id })
    }

    /// Ends the lease of work that turned out to be done: whoever held it died before it could.
    pub(super) async fn end_left(client: &Client, purpose: &str) -> Result<(), RuntimeError> {
        let request = DeleteRequest {
            id: id_of(purpose),
            sync: false,
        };
        optional(client.leases().delete(client.request(request)).await).map_err(unavailable)?;
        Ok(())
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Ends the lease after the work, unless a later try can go on from what there is; passes the result on.
    pub(super) async fn settle<T>(self, client: &Client, done: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        if done.as_ref().err().is_some_and(RuntimeError::is_retryable) {
            return done;
        }
        let request = DeleteRequest {
            id: self.id.clone(),
            sync: false,
        };
        if let Err(status) = optional(client.leases().delete(client.request(request)).await) {
            tracing::debug!(lease = self.id, error = describe(&status), "lease left to expire");
        }
        done
    }
}

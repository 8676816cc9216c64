//! What the store holds, read back at start: side by side, as a large root has tens of thousands of records.

use super::model::{self, Application, Credential, InstanceRecord, Organization, Service, Session, User};
use super::overlay;
use roble_core::ids::{EventId, InstanceId, OrganizationId};
use roble_core::overlay::blocks::BlockRecord;
use roble_core::placement::Profile;
use roble_core::registry::{Member, TokenRecord};
use roble_core::tier::Record;
use roble_core::time::Timestamp;
use std::net::Ipv4Addr;
use std::thread::{self, ScopedJoinHandle};

/// Fewer records than this are not worth another thread.
const SHARE: usize = 1_000;

/// One record.
#[derive(Debug)]
pub(super) enum Stored {
    Organization(Organization),
    User(User),
    Session(Session),
    Credential(Credential),
    Application(Application),
    Service(Box<Service>),
    Instance(InstanceId, Box<InstanceRecord>),
    Member(Box<Member>),
    Token(Box<TokenRecord>),
    /// Its name and owner; what it says stays in the store.
    Audit(EventId, OrganizationId),
    /// The profile of the member with this id.
    Profile(String, Box<Profile>),
    /// A block that a cluster has or had.
    Block(BlockRecord),
    /// A service address that was given back, and when.
    Rested(Ipv4Addr, Timestamp),
    /// Of a kind that is not the tier's.
    Foreign,
}

/// Reads all, in no order. An error says which record cannot be read and why.
pub(super) fn read_all(records: &[Record]) -> Vec<Result<Stored, String>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let shares = processors.min(records.len() / SHARE).max(1);
    // Neighbours are of one kind and size: dealt out one by one, all shares take the same time.
    let read_share = move |share: usize| records.iter().skip(share).step_by(shares).map(read).collect::<Vec<_>>();
    thread::scope(|scope| {
        let others: Vec<_> = (1..shares)
            .map(|share| {
                (
                    share,
                    thread::Builder::new().spawn_scoped(scope, move || read_share(share)),
                )
            })
            .collect();
        let mut all = read_share(0);
        for (share, spawned) in others {
            all.extend(match spawned.map(ScopedJoinHandle::join) {
                Ok(Ok(read)) => read,
                // No thread to be had, or it panicked, as this one will then.
                Ok(Err(_)) | Err(_) => read_share(share),
            });
        }
        all
    })
}

fn read(record: &Record) -> Result<Stored, String> {
    let value = &record.value;
    let read = match record.kind.as_str() {
        "organization" => model::read(value).map(Stored::Organization),
        "user" => model::read(value).map(Stored::User),
        "session" => model::read(value).map(Stored::Session),
        "credential" => model::read(value).map(Stored::Credential),
        "application" => model::read(value).map(Stored::Application),
        "service" => model::read(value).map(Stored::Service),
        "instance" => match record.id.parse() {
            Ok(id) => model::read(value).map(|instance| Stored::Instance(id, instance)),
            Err(error) => Err(error.to_string()),
        },
        "member" => model::read(value).map(Stored::Member),
        "token" => model::read(value).map(Stored::Token),
        "audit" => match (record.id.parse(), record.organization) {
            (Ok(id), Some(organization)) => Ok(Stored::Audit(id, organization)),
            _ => Err("not an audit record's name".to_owned()),
        },
        "profile" => model::read(value).map(|profile| Stored::Profile(record.id.clone(), profile)),
        overlay::BLOCK => model::read(value).map(Stored::Block),
        overlay::RESTED => match record.id.parse() {
            Ok(address) => model::read(value).map(|since| Stored::Rested(address, since)),
            Err(_) => Err("not an address".to_owned()),
        },
        _ => Ok(Stored::Foreign),
    };
    read.map_err(|error| format!("{} {}: {error}", record.kind, record.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_read_once_however_many_share_the_work() {
        let named = |index: usize| Record {
            organization: None,
            kind: if index.is_multiple_of(7) { "service" } else { "foreign" }.to_owned(),
            id: index.to_string(),
            value: Vec::new(),
        };
        for count in [0, 1, SHARE, 10 * SHARE + 3] {
            let records: Vec<Record> = (0..count).map(named).collect();
            let read = read_all(&records);
            assert_eq!(read.len(), count);
            let mut bad: Vec<String> = read.into_iter().filter_map(Result::err).collect();
            bad.sort();
            bad.dedup();
            assert_eq!(bad.len(), count.div_ceil(7));
        }
    }
}

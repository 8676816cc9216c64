//! Random histories against a map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Handle, key};
use crate::{Envelope, Key, MAX_PAGE_ENTRIES, Prefix, StoreError, Transaction};

/// One step of the model test.
#[derive(Debug, Clone)]
enum Step {
    /// Operations as (key, value or removal), then conditions as (key, whether it is meant to hold).
    Commit(Vec<(u8, Option<Vec<u8>>)>, Vec<(u8, bool)>),
    List {
        after: u8,
        limit: usize,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = || 0..12u8;
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let operation = (id(), proptest::option::weighted(0.7, bytes));
    let commit = (
        proptest::collection::vec(operation, 0..6),
        proptest::collection::vec((id(), proptest::bool::weighted(0.9)), 0..3),
    );
    let step = prop_oneof![
        8 => commit.prop_map(|(operations, conditions)| Step::Commit(operations, conditions)),
        2 => (id(), 1..8usize).prop_map(|(after, limit)| Step::List { after, limit }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

type Model = BTreeMap<Key, (u64, Envelope)>;

/// Compares `cases` random histories with a map, reopening along the way.
///
/// `make` returns a new, empty store and a function that closes it and opens it again.
pub fn model<F, R>(cases: u32, runtime: &tokio::runtime::Runtime, make: F)
where
    F: Fn() -> (Handle, R),
    R: FnMut(Handle) -> Handle,
{
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let checked = TestRunner::new(config).run(&steps(), |steps| {
        let (mut store, mut reopen) = make();
        let (mut model, mut revision) = (Model::new(), 0);
        for step in steps {
            match step {
                Step::Reopen => store = reopen(store),
                Step::List { after, limit } => {
                    runtime.block_on(check_page(&store, &model, after, limit))?;
                }
                Step::Commit(operations, conditions) => {
                    let step = check_commit(&store, &mut model, revision, operations, conditions);
                    revision = runtime.block_on(step)?;
                }
            }
        }
        store = reopen(store);
        runtime.block_on(check_page(&store, &model, 0, MAX_PAGE_ENTRIES))?;
        prop_assert_eq!(runtime.block_on(store.revision()).expect("revision"), revision);
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}

fn numbered(id: u8) -> Key {
    key(&format!("{id:02}"))
}

async fn check_page(store: &Handle, model: &Model, after: u8, limit: usize) -> Result<(), TestCaseError> {
    let after = (after > 0).then(|| numbered(after - 1));
    let page = store.list(&Prefix::all(), after.as_ref(), limit).await.expect("list");
    let found: Vec<_> = page
        .entries
        .into_iter()
        .map(|(k, v)| (k, (v.revision, v.envelope)))
        .collect();
    let all = model
        .iter()
        .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after));
    let expected: Vec<_> = all
        .clone()
        .take(limit)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    prop_assert_eq!(page.next.is_some(), all.count() > limit);
    prop_assert_eq!(found, expected);
    Ok(())
}

async fn check_commit(
    store: &Handle,
    model: &mut Model,
    revision: u64,
    operations: Vec<(u8, Option<Vec<u8>>)>,
    conditions: Vec<(u8, bool)>,
) -> Result<u64, TestCaseError> {
    let mut transaction = Transaction::new();
    for (id, holds) in &conditions {
        let now = model.get(&numbered(*id)).map(|(revision, _)| *revision);
        transaction = match (now, holds) {
            (None, true) => transaction.if_absent(numbered(*id)),
            (Some(now), true) => transaction.if_revision(numbered(*id), now),
            (None, false) => transaction.if_revision(numbered(*id), revision),
            (Some(_), false) => transaction.if_absent(numbered(*id)),
        };
    }
    let operations: BTreeMap<u8, Option<Vec<u8>>> = operations.into_iter().collect();
    for (id, bytes) in &operations {
        transaction = match bytes {
            Some(bytes) => transaction.put(numbered(*id), Envelope::new(2, bytes.clone())),
            None => transaction.delete(numbered(*id)),
        };
    }
    let answer = store.commit(transaction).await;
    if conditions.iter().any(|(_, holds)| !holds) {
        let refused = matches!(answer, Err(StoreError::Conflict { .. }));
        prop_assert!(refused, "a condition does not hold");
        return Ok(revision);
    }
    let changes = operations
        .iter()
        .any(|(id, bytes)| bytes.is_some() || model.contains_key(&numbered(*id)));
    let expected = revision + u64::from(changes);
    prop_assert_eq!(answer.expect("commit"), expected);
    for (id, bytes) in operations {
        match bytes {
            Some(bytes) => {
                model.insert(numbered(id), (expected, Envelope::new(2, bytes)));
            }
            None => {
                model.remove(&numbered(id));
            }
        }
    }
    Ok(expected)
}

//! The contract of [`Store`], as code: every backend runs [`contract`] and [`model`].
//!
//! Panics where a backend breaks the contract, as tests do.

use std::future::Future;
use std::sync::Arc;

mod edges;
mod model;

pub use model::model;

use crate::{
    Envelope, Expectation, Key, MAX_OPERATIONS, MAX_PAGE_ENTRIES, MAX_TRANSACTION_BYTES, Prefix, Scope, Store,
    StoreError, Transaction, WATCH_CAPACITY, WatchError,
};

/// A store for the suite.
pub type Handle = Arc<dyn Store>;

fn key(id: &str) -> Key {
    Key::new(&format!("s/test/{id}")).expect("the suite's ids are segments")
}

fn value(text: &str) -> Envelope {
    Envelope::new(1, text.as_bytes().to_vec())
}

async fn put(store: &Handle, id: &str, text: &str) -> u64 {
    let transaction = Transaction::new().put(key(id), value(text));
    store.commit(transaction).await.expect("put")
}

async fn payload(store: &Handle, id: &str) -> Option<Vec<u8>> {
    let found = store.get(&key(id)).await.expect("get");
    found.map(|found| found.envelope.payload.to_vec())
}

/// Runs every clause; `make` returns a new, empty store each time.
pub async fn contract<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Handle>,
{
    reads_what_was_written(make().await).await;
    conditions_guard_the_whole_transaction(make().await).await;
    exactly_one_of_many_racers_wins(make().await).await;
    limits_are_clear_errors(make().await).await;
    lists_in_pages(make().await).await;
    watches_in_order(make().await).await;
    a_slow_watch_is_told(make().await).await;
    edges::scopes_hold(make().await).await;
    edges::a_closed_store_says_so(make().await).await;
}

async fn reads_what_was_written(store: Handle) {
    assert_eq!(store.revision().await.expect("revision"), 0);
    assert_eq!(store.get(&key("a")).await.expect("get"), None);
    let first = put(&store, "a", "1").await;
    let second = put(&store, "b", "").await;
    assert!(second > first);
    let found = store.get(&key("a")).await.expect("get").expect("a was put");
    assert_eq!((found.revision, &found.envelope), (first, &value("1")));
    assert_eq!(payload(&store, "b").await, Some(Vec::new()));

    let third = put(&store, "a", "2").await;
    assert_eq!(payload(&store, "a").await, Some(b"2".to_vec()));
    store.commit(Transaction::new().delete(key("a"))).await.expect("delete");
    assert_eq!(payload(&store, "a").await, None);

    let before = store.revision().await.expect("revision");
    assert!(before > third);
    let idle = store
        .commit(Transaction::new().delete(key("a")))
        .await
        .expect("delete again");
    assert_eq!(
        idle, before,
        "a transaction that changes nothing has no revision of its own"
    );
    assert_eq!(store.commit(Transaction::new()).await.expect("empty"), before);

    let newer = Envelope::new(7, &b"x"[..]);
    store
        .commit(Transaction::new().put(key("n"), newer))
        .await
        .expect("put");
    let found = store.get(&key("n")).await.expect("get").expect("n was put").envelope;
    assert!(matches!(
        found.read(6),
        Err(StoreError::NewerSchema { found: 7, known: 6 })
    ));
    assert_eq!(found.read(7).expect("known schema"), (7, &b"x"[..]));
}

async fn conditions_guard_the_whole_transaction(store: Handle) {
    let revision = put(&store, "a", "1").await;
    let refused = [
        Transaction::new().if_absent(key("a")),
        Transaction::new().if_revision(key("a"), revision + 1),
        Transaction::new().if_revision(key("b"), revision),
        Transaction::new().if_revision(key("a"), revision).if_absent(key("a")),
    ];
    for transaction in refused {
        let transaction = transaction.put(key("a"), value("2")).put(key("c"), value("2"));
        let error = store.commit(transaction).await.expect_err("condition does not hold");
        assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
        assert!(error.retry_can_help());
        assert_eq!(payload(&store, "a").await, Some(b"1".to_vec()));
        assert_eq!(payload(&store, "c").await, None);
    }
    let error = store
        .commit(Transaction::new().if_absent(key("a")))
        .await
        .expect_err("a is there");
    match error {
        StoreError::Conflict {
            key: at,
            expected,
            found,
        } => {
            assert_eq!((at, expected, found), (key("a"), Expectation::Absent, Some(revision)));
        }
        other => panic!("unexpected {other}"),
    }
    assert_eq!(
        store.revision().await.expect("revision"),
        revision,
        "a conflict writes nothing"
    );

    let held = Transaction::new().if_revision(key("a"), revision).if_absent(key("c"));
    let both = held.delete(key("a")).put(key("c"), value("3"));
    let at = store.commit(both).await.expect("conditions hold");
    assert_eq!(payload(&store, "a").await, None);
    assert_eq!(store.get(&key("c")).await.expect("get").map(|c| c.revision), Some(at));
}

async fn exactly_one_of_many_racers_wins(store: Handle) {
    let tasks: Vec<_> = (0..64)
        .map(|racer| {
            let store = store.clone();
            tokio::spawn(async move {
                let first = Transaction::new().if_absent(key("prize"));
                let own = key(&format!("racer-{racer}"));
                let both = first.put(key("prize"), value("won")).put(own, value("won"));
                store.commit(both).await.is_ok()
            })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.expect("racer"));
    }
    assert_eq!(winners, 1);
    let page = store.list(&Prefix::all(), None, 10).await.expect("list");
    assert_eq!(page.entries.len(), 2, "losers leave nothing behind");
    assert_eq!(page.entries[0].1.revision, page.entries[1].1.revision);
}

async fn limits_are_clear_errors(store: Handle) {
    let filled = |count: usize| (0..count).fold(Transaction::new(), |t, i| t.put(key(&i.to_string()), value("x")));
    store.commit(filled(MAX_OPERATIONS)).await.expect("as many as allowed");
    let error = store
        .commit(filled(MAX_OPERATIONS + 1))
        .await
        .expect_err("one too many");
    assert!(
        matches!(error, StoreError::TooManyOperations { count: 101, limit: 100 }),
        "{error}"
    );

    let room = MAX_TRANSACTION_BYTES - key("big").as_str().len();
    let big = |bytes: usize| Transaction::new().put(key("big"), Envelope::new(1, vec![7; bytes]));
    store.commit(big(room)).await.expect("as large as allowed");
    assert_eq!(payload(&store, "big").await.map(|p| p.len()), Some(room));
    let error = store.commit(big(room + 1)).await.expect_err("one byte too many");
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");

    let twice = Transaction::new().put(key("t"), value("1")).delete(key("t"));
    let error = store.commit(twice).await.expect_err("same key twice");
    assert!(matches!(error, StoreError::DuplicateKey { .. }), "{error}");
    assert_eq!(payload(&store, "t").await, None);
}

async fn lists_in_pages(store: Handle) {
    for organization in ["a", "ab", "b"] {
        let scope = Scope::organization(organization).expect("a segment");
        let transaction = (0..25).fold(Transaction::new(), |t, i| {
            t.put(
                scope.key("k", &format!("{i:02}")).expect("a segment"),
                value(organization),
            )
        });
        store.commit(transaction).await.expect("fill");
    }
    for (prefix, expected) in [("o/a/", 25), ("o/ab/k/", 25), ("o/", 75), ("o/c/", 0)] {
        let prefix = Prefix::new(prefix).expect("a prefix");
        for limit in [1, 7, 25, MAX_PAGE_ENTRIES, usize::MAX] {
            let (mut keys, mut after) = (Vec::new(), None);
            loop {
                let page = store.list(&prefix, after.as_ref(), limit).await.expect("list");
                assert!(page.entries.len() <= limit);
                keys.extend(page.entries.into_iter().map(|(key, _)| key));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(keys.len(), expected, "{prefix} by {limit}");
            assert!(keys.is_sorted() && keys.iter().all(|key| prefix.contains(key)));
        }
    }
    let after = Key::new("o/a/k/10").expect("a key");
    let prefix = Prefix::new("o/a/").expect("a prefix");
    let page = store.list(&prefix, Some(&after), 1).await.expect("list");
    assert_eq!(page.entries[0].0.as_str(), "o/a/k/11");
    assert_eq!(page.revision, 3);
    let before_all = Key::new("a").expect("a key");
    let page = store.list(&prefix, Some(&before_all), 100).await.expect("list");
    assert_eq!(page.entries.len(), 25);
}

async fn watches_in_order(store: Handle) {
    let prefix = Prefix::new("s/test/in/").expect("a prefix");
    put(&store, "in/early", "0").await;
    let mut watch = store.watch(&prefix).await.expect("watch");
    assert_eq!(watch.since(), 1);
    assert_eq!(watch.try_next(), Ok(None), "the past is not replayed");
    put(&store, "out", "1").await;
    let both = Transaction::new()
        .put(key("in/a"), value("1"))
        .put(key("out"), value("2"));
    let first = store.commit(both.delete(key("in/never"))).await.expect("commit");
    store
        .commit(Transaction::new().if_absent(key("in/a")))
        .await
        .expect_err("conflict");
    let second = store
        .commit(Transaction::new().delete(key("in/a")))
        .await
        .expect("delete");

    let commit = watch.next().await.expect("first commit");
    assert_eq!(commit.revision, first);
    let changes: Vec<_> = commit.changes.iter().map(|c| (&c.key, &c.envelope)).collect();
    assert_eq!(changes, [(&key("in/a"), &Some(value("1")))]);
    let commit = watch.next().await.expect("second commit");
    assert_eq!((commit.revision, &commit.changes[0].envelope), (second, &None));
    assert_eq!(watch.try_next(), Ok(None));
}

async fn a_slow_watch_is_told(store: Handle) {
    let mut slow = store.watch(&Prefix::all()).await.expect("watch");
    let mut elsewhere = store.watch(&Prefix::new("o/").expect("a prefix")).await.expect("watch");
    for i in 0..=WATCH_CAPACITY {
        put(&store, "a", &i.to_string()).await;
    }
    for revision in 1..=WATCH_CAPACITY as u64 {
        assert_eq!(slow.next().await.expect("kept").revision, revision);
    }
    assert_eq!(slow.next().await, Err(WatchError::Lagged));
    assert_eq!(
        elsewhere.try_next(),
        Ok(None),
        "what does not match cannot make a watch lag"
    );
}

//! The backend in memory behaves badly on demand.

use std::time::Duration;

use roble_store::{DiskFault, Envelope, Key, MemoryStore, Prefix, Store, StoreError, Transaction, WatchError};

fn key(id: &str) -> Key {
    Key::new(&format!("s/test/{id}")).expect("a key")
}

fn put(id: &str) -> Transaction {
    Transaction::new().put(key(id), Envelope::new(1, vec![1; 100]))
}

#[tokio::test(start_paused = true)]
async fn a_crash_drops_what_is_not_yet_durable() {
    let store = MemoryStore::new();
    store.commit(put("kept")).await.expect("commit");
    store.set_sync_delay(Duration::from_secs(1));
    let mut watch = store.watch(&Prefix::all()).await.expect("watch");
    let slow = tokio::spawn({
        let store = store.clone();
        async move { store.commit(put("lost")).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        store.get(&key("lost")).await.expect("get").is_none(),
        "not durable, not visible"
    );
    store.crash();
    assert!(matches!(slow.await.expect("join"), Err(StoreError::Closed)));
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    assert!(store.get(&key("lost")).await.expect("get").is_none());
    assert!(store.get(&key("kept")).await.expect("get").is_some());
    assert_eq!(store.revision().await.expect("revision"), 1);
}

#[tokio::test]
async fn a_failed_sync_stops_the_store() {
    for fault in [DiskFault::Broken, DiskFault::NoSpace] {
        let store = MemoryStore::new();
        store.commit(put("kept")).await.expect("commit");
        store.fail(fault);
        let error = store.commit(put("lost")).await.expect_err("the disk refuses");
        assert_eq!(matches!(error, StoreError::Full { .. }), fault == DiskFault::NoSpace);
        let error = store.commit(put("lost")).await.expect_err("stopped");
        assert!(matches!(error, StoreError::Stopped { .. }));
        assert!(store.get(&key("kept")).await.is_err());
        store.crash();
        assert!(store.get(&key("kept")).await.expect("get").is_some());
        assert!(store.get(&key("lost")).await.expect("get").is_none());
        store.commit(put("lost")).await.expect("works again");
    }
}

#[tokio::test]
async fn a_full_store_refuses_and_goes_on() {
    let store = MemoryStore::new();
    store.set_capacity(Some(300));
    store.commit(put("a")).await.expect("room");
    store.commit(put("b")).await.expect("room");
    assert!(matches!(store.commit(put("c")).await, Err(StoreError::Full { .. })));
    store.commit(put("b")).await.expect("replacing takes no room");
    store.commit(Transaction::new().delete(key("a"))).await.expect("delete");
    store.commit(put("c")).await.expect("room again");
}

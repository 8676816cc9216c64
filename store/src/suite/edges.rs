//! What a scope keeps out, and what a closed store answers.

use super::{Handle, key, put, value};
use crate::{Prefix, Scope, Scoped, Store, StoreError, Transaction, WatchError};

pub(super) async fn scopes_hold(store: Handle) {
    let scope = |id: &str| Scope::organization(id).expect("a segment");
    let acme = Scoped::new(store.clone(), scope("acme"));
    let rival = Scoped::new(store.clone(), scope("acme2"));
    acme.put("service", "web", value("acme")).await.expect("put");
    rival.put("service", "web", value("rival")).await.expect("put");
    let read = acme.read("service", "web").await.expect("read").expect("web was put");
    assert_eq!(read.envelope, value("acme"));
    assert_eq!(
        acme.list_kind("service", None, 10).await.expect("list").entries.len(),
        1
    );
    assert!(
        store
            .get(&scope("acme").key("service", "web").expect("a key"))
            .await
            .is_ok()
    );

    let foreign = scope("acme2").key("service", "web").expect("a key");
    let own = scope("acme").key("service", "own").expect("a key");
    let own_put = Transaction::new().put(own.clone(), value("x"));
    let attempts = [
        acme.get(&foreign).await.err(),
        acme.list(&Prefix::all(), None, 10).await.err(),
        acme.list(scope("acme2").prefix(), None, 10).await.err(),
        acme.watch(Scope::system().prefix()).await.err(),
        acme.commit(own_put.clone().delete(foreign.clone())).await.err(),
        acme.commit(own_put.if_revision(foreign, 2)).await.err(),
    ];
    for attempt in attempts {
        assert!(matches!(attempt, Some(StoreError::OutOfScope { .. })), "{attempt:?}");
    }
    assert!(
        acme.put("service", "../../acme2/service/web", value("x"))
            .await
            .is_err()
    );
    assert_eq!(store.get(&own).await.expect("get"), None);
    acme.delete("service", "web").await.expect("delete");
    assert!(rival.read("service", "web").await.expect("read").is_some());
}

pub(super) async fn a_closed_store_says_so(store: Handle) {
    put(&store, "a", "1").await;
    let mut watch = store.watch(&Prefix::all()).await.expect("watch");
    store.close().await.expect("close");
    store.close().await.expect("close again");
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    let late = Transaction::new().put(key("b"), value("1"));
    assert!(matches!(store.commit(late).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(&key("a")).await, Err(StoreError::Closed)));
    assert!(matches!(
        store.list(&Prefix::all(), None, 1).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.watch(&Prefix::all()).await, Err(StoreError::Closed)));
    assert!(matches!(store.revision().await, Err(StoreError::Closed)));
}

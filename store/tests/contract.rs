//! All backends keep the contract of the store.

use std::sync::Arc;
use std::sync::Mutex;

use roble_store::suite::{self, Handle};
use roble_store::{BackendKind, MemoryStore, OpenOptions, open};
use tempfile::TempDir;

async fn open_in(kind: BackendKind, folder: &TempDir) -> Handle {
    let opened = open(kind, &folder.path().join("state"), &OpenOptions::default()).await;
    opened.expect("open").store
}

async fn contract(kind: BackendKind) {
    let folders = Mutex::new(Vec::new());
    suite::contract(|| async {
        let folder = TempDir::new().expect("a temporary folder");
        let store = open_in(kind, &folder).await;
        folders.lock().expect("no test panics while it holds this").push(folder);
        store
    })
    .await;
}

fn model(kind: BackendKind, cases: u32) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    suite::model(cases, &runtime, || {
        let folder = TempDir::new().expect("a temporary folder");
        let store = runtime.block_on(open_in(kind, &folder));
        let runtime = &runtime;
        (store, move |store: Handle| {
            drop(store);
            runtime.block_on(open_in(kind, &folder))
        })
    });
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(BackendKind::Memory).await;
}

#[tokio::test]
async fn redb_keeps_the_contract() {
    contract(BackendKind::Redb).await;
}

#[tokio::test]
async fn sled_keeps_the_contract() {
    contract(BackendKind::Sled).await;
}

#[test]
fn memory_follows_the_model() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    suite::model(256, &runtime, || {
        let memory = MemoryStore::new();
        let store: Handle = Arc::new(memory.clone());
        (store, move |store: Handle| {
            memory.crash();
            store
        })
    });
}

#[test]
fn redb_follows_the_model() {
    model(BackendKind::Redb, 48);
}

#[test]
fn sled_follows_the_model() {
    model(BackendKind::Sled, 32);
}

//! What every [`Network`] promises; run on each implementation, with nothing attached at the beginning.

use super::{Attach, Network};
use async_trait::async_trait;
use roble_core::ports::PortMapping;
use std::path::{Path, PathBuf};

/// How the suite gets namespaces for the implementation under test.
#[async_trait]
pub trait Namespaces: Send + Sync {
    /// Makes a namespace; `name` is unique within a run of the suite.
    async fn make(&self, name: &str) -> PathBuf;
    /// Removes one that was made.
    async fn remove(&self, path: &Path);
}

fn wish(netns: &Path, ports: &str) -> Attach {
    Attach {
        netns: netns.into(),
        ports: PortMapping::parse_list(ports).expect("ports of the suite"),
        instance: None,
    }
}

/// Runs everything.
///
/// # Panics
/// If a promise is broken.
pub async fn run(network: &dyn Network, namespaces: &dyn Namespaces) {
    assert!(
        network.list().await.unwrap().is_empty(),
        "the suite starts with nothing attached"
    );
    repetition_changes_nothing(network, namespaces).await;
    conflicts_are_refused(network, namespaces).await;
    detached_addresses_come_back(network, namespaces).await;
    nonsense_is_refused(network, namespaces).await;
    assert!(network.list().await.unwrap().is_empty(), "nothing remains");
}

async fn repetition_changes_nothing(network: &dyn Network, namespaces: &dyn Namespaces) {
    let (a, b) = (namespaces.make("repeat-a").await, namespaces.make("repeat-b").await);
    let first = network
        .attach("repeat-b", &wish(&b, "31080:80;31053:53/udp"))
        .await
        .unwrap();
    assert_eq!((first.container.as_str(), &first.netns), ("repeat-b", &b));
    assert_eq!(first.ports, wish(&b, "31080:80;31053:53/udp").ports);
    assert_eq!(
        network
            .attach("repeat-b", &wish(&b, "31080:80;31053:53/udp"))
            .await
            .unwrap(),
        first
    );
    let changed = network.attach("repeat-b", &wish(&b, "31081:80")).await.unwrap();
    assert_eq!(changed.address, first.address);
    let other = network.attach("repeat-a", &wish(&a, "31080:80")).await.unwrap();
    assert_ne!(other.address, first.address);
    assert_eq!(network.list().await.unwrap(), [other, changed], "ordered by container");
    for _ in 0..2 {
        network.detach("repeat-a").await.unwrap();
        network.detach("repeat-b").await.unwrap();
    }
    namespaces.remove(&a).await;
    namespaces.remove(&b).await;
}

async fn conflicts_are_refused(network: &dyn Network, namespaces: &dyn Namespaces) {
    let (a, b) = (namespaces.make("conflict-a").await, namespaces.make("conflict-b").await);
    network.attach("conflict-a", &wish(&a, "31100:80")).await.unwrap();
    let error = network
        .attach("conflict-b", &wish(&b, "31101;31100:81"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "port-taken");
    assert!(
        error.to_string().contains("31100") && error.to_string().contains("conflict-a"),
        "{error}"
    );
    let same = network.attach("conflict-b", &wish(&a, "")).await.unwrap_err();
    assert_eq!(same.code(), "invalid", "one namespace belongs to one container");
    assert_eq!(
        network.list().await.unwrap().len(),
        1,
        "a refused attachment leaves nothing"
    );
    network.attach("conflict-b", &wish(&b, "31100:80/udp")).await.unwrap();
    network.detach("conflict-a").await.unwrap();
    network
        .attach("conflict-b", &wish(&b, "31100:80;31100:80/udp"))
        .await
        .unwrap();
    network.detach("conflict-b").await.unwrap();
    namespaces.remove(&a).await;
    namespaces.remove(&b).await;
}

async fn detached_addresses_come_back(network: &dyn Network, namespaces: &dyn Namespaces) {
    let (a, b) = (namespaces.make("back-a").await, namespaces.make("back-b").await);
    let first = network.attach("back-a", &wish(&a, "")).await.unwrap();
    // The namespace may be gone before the detachment.
    namespaces.remove(&a).await;
    network.detach("back-a").await.unwrap();
    let other = network.attach("back-b", &wish(&b, "")).await.unwrap();
    assert_ne!(other.address, first.address, "a released address rests");
    let again = namespaces.make("back-a2").await;
    assert_eq!(
        network.attach("back-a", &wish(&again, "")).await.unwrap().address,
        first.address
    );
    network.detach("back-a").await.unwrap();
    network.detach("back-b").await.unwrap();
    namespaces.remove(&again).await;
    namespaces.remove(&b).await;
}

async fn nonsense_is_refused(network: &dyn Network, namespaces: &dyn Namespaces) {
    let gone = namespaces.make("gone").await;
    namespaces.remove(&gone).await;
    assert_eq!(
        network.attach("gone", &wish(&gone, "31200")).await.unwrap_err().code(),
        "netns-missing"
    );
    let netns = namespaces.make("nonsense").await;
    for container in ["a b", "a%2fb", "\u{e4}"] {
        assert_eq!(
            network.attach(container, &wish(&netns, "")).await.unwrap_err().code(),
            "invalid",
            "{container}"
        );
    }
    let twice = wish(&netns, "31200:1;31200:2");
    assert_eq!(network.attach("nonsense", &twice).await.unwrap_err().code(), "invalid");
    let relative = wish(Path::new("netns/x"), "");
    assert_eq!(
        network.attach("nonsense", &relative).await.unwrap_err().code(),
        "invalid"
    );
    network.detach("never-attached").await.unwrap();
    namespaces.remove(&netns).await;
}

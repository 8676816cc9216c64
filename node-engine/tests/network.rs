//! The network seam with real namespaces and a real `roble-net`. Needs root, `nft` and `nsenter`.

use async_trait::async_trait;
use roble_node::network::client::NetClient;
use roble_node::network::suite::{self, Namespaces};
use roble_node::network::{Network as _, netns};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// The program, built anew if need be: daemons do not depend on each other's crates.
fn roble_net() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "-p", "roble-net"])
        .status()
        .expect("cargo runs");
    assert!(status.success(), "roble-net cannot be built");
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("roble-net")
}

struct Folder(tempfile::TempDir);

#[async_trait]
impl Namespaces for Folder {
    async fn make(&self, name: &str) -> PathBuf {
        let path = self.0.path().join("netns").join(name);
        netns::ensure(&path)
            .await
            .expect("needs root, see scripts/install-deps.sh");
        path
    }
    async fn remove(&self, path: &Path) {
        netns::ensure_gone(path).await.unwrap();
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_on_the_real_net_manager() {
    let program = roble_net();
    let folder = Folder(tempfile::tempdir().unwrap());
    let node = folder.make("node").await;
    let socket = folder.0.path().join("net.sock");
    let (state, at) = (folder.0.path().join("state"), socket.clone());
    let start = move || {
        Command::new(program)
            .arg("--state-dir")
            .arg(state)
            .args(["--endpoint-range", "10.18.0.0/26", "--identity", "/nonexistent"])
            .arg("--socket")
            .arg(at)
            .args(["--reconcile-interval", "300ms"])
            .spawn()
    };
    let daemon = Daemon(netns::enter(&node, start).await.unwrap());
    let client = NetClient::new(socket, Duration::from_secs(10));
    tokio::time::timeout(Duration::from_secs(15), async {
        while client.list().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("roble-net answers (is nft installed? scripts/install-deps.sh)");
    suite::run(&client, &folder).await;
    drop(daemon);
    netns::ensure_gone(&node).await.unwrap();
    assert!(netns::list(&folder.0.path().join("netns")).unwrap().is_empty());
}

#[tokio::test]
async fn namespaces_may_be_made_and_removed_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let (home, path) = (folder.path().join("netns"), folder.path().join("netns/a"));
    assert!(netns::list(&home).unwrap().is_empty() && !netns::exists(&path));
    netns::ensure_gone(&path).await.unwrap();
    for _ in 0..2 {
        netns::ensure(&path).await.unwrap();
    }
    assert!(netns::exists(&path));
    let links = netns::enter(&path, || std::fs::read_to_string("/proc/thread-self/net/dev"))
        .await
        .unwrap();
    assert_eq!(links.lines().skip(2).count(), 1, "only lo: {links}");
    // What a crash between the file and the mount leaves.
    let half = home.join("half");
    std::fs::write(&half, "").unwrap();
    assert!(!netns::exists(&half));
    assert!(netns::enter(&half, || Ok(())).await.is_err());
    assert_eq!(netns::list(&home).unwrap(), [path.clone(), half.clone()]);
    netns::ensure(&half).await.unwrap();
    assert!(netns::exists(&half));
    for path in [&path, &half] {
        for _ in 0..2 {
            netns::ensure_gone(path).await.unwrap();
        }
    }
    assert!(netns::list(&home).unwrap().is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(home.to_str().unwrap()), "no mount is left");
}

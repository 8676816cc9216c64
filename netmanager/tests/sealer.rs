//! From one kind of device to the other, on a machine that has both: needs a kernel with WireGuard, so
//! `tests/vm/run.sh --only tunnel` runs it in a virtual machine. Without one it fails.

use nix::sched::{CloneFlags, unshare};
use roble_net::datapath::sealed::LINK;
use roble_net::sealing::device::{Current, Guard, Wanted};
use roble_proto::local_net::SealedBy;
use roble_tunnel::client::Launch;
use roble_tunnel::kernel::{self, LinkKind};
use roble_tunnel::{Client, Device as _, DeviceConfig, PeerConfig, PrivateKey, PublicKey};
use std::time::Duration;

/// The program of the worker, of the machine that the test runs on.
fn program() -> std::path::PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("roble-tunnel");
    std::env::var_os("ROBLE_TUNNEL_PROGRAM").map_or(beside, Into::into)
}

#[test]
fn each_kind_of_device_replaces_the_other_and_nothing_is_left() {
    // This thread's alone, and gone with it.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch {
        program: program(),
        device: LINK.to_owned(),
        socket: folder.path().join("tunnel.sock"),
    };
    let worker = Client::new(&launch.socket);
    let peer = PublicKey([7; 32]);
    let alone = DeviceConfig {
        private_key: Some(PrivateKey::generate()),
        listen_port: Some(50_103),
        replace_peers: true,
        ..DeviceConfig::default()
    };
    let config = DeviceConfig {
        peers: vec![PeerConfig::new(peer)],
        ..alone.clone()
    };
    let kind = || kernel::kind_of(LINK).unwrap();
    assert!(
        Current::default()
            .ensure(Wanted::Auto, &launch, &alone)
            .unwrap()
            .is_none()
    );
    assert_eq!(kind(), None, "without peers none is needed");

    let steps = [
        (Wanted::Auto, SealedBy::Kernel),
        (Wanted::User, SealedBy::UserSpace),
        (Wanted::User, SealedBy::UserSpace),
        (Wanted::Auto, SealedBy::Kernel),
        (Wanted::Kernel, SealedBy::Kernel),
    ];
    let mut last = None;
    for (wanted, by) in steps {
        // As after a start of the net manager with another setting.
        let current = Current::default();
        for _ in 0..2 {
            let guard = current.ensure(wanted, &launch, &config).unwrap().unwrap();
            assert_eq!(matches!(guard, Guard::Kernel(_)), by == SealedBy::Kernel, "{wanted:?}");
            last = Some(guard);
        }
        let running = current.running().unwrap();
        assert_eq!(running.by, by, "{wanted:?}");
        assert_eq!(running.device.get().unwrap().peers[0].public_key, peer);
        let is_kernel = by == SealedBy::Kernel;
        assert_eq!(
            kind(),
            Some(if is_kernel {
                LinkKind::WireGuard
            } else {
                LinkKind::Other
            })
        );
        assert_eq!(worker.get().is_err(), is_kernel, "{wanted:?}: a worker runs, or none");
    }

    // Somebody removes it: that is noticed.
    kernel::remove(LINK).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let guard = last.unwrap();
    let noticed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), guard.ended()).await });
    assert!(noticed.is_ok(), "its end is noticed");
}

//! Damaged files are noticed, set aside and reported; nothing is silently empty or short.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use roble_store::{BackendKind, Envelope, Key, OpenOptions, Opened, Prefix, Store, StoreError, Transaction, open};
use tempfile::TempDir;

const EMBEDDED: [BackendKind; 2] = [BackendKind::Redb, BackendKind::Sled];
const SEED: u64 = 7;

fn key(id: usize) -> Key {
    Key::new(&format!("s/test/{id:04}")).expect("a key")
}

fn value(id: usize) -> Envelope {
    Envelope::new(1, format!("value {id} ").repeat(20).into_bytes())
}

async fn open_at(kind: BackendKind, path: &Path) -> Result<Opened, StoreError> {
    open(kind, path, &OpenOptions::default()).await
}

/// Number of records, all of which have the value they were given.
async fn count(store: &Arc<dyn Store>) -> Result<usize, StoreError> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = store.list(&Prefix::all(), after.as_ref(), 100).await?;
        for (found, record) in page.entries {
            assert_eq!((found, record.envelope), (key(count), value(count)));
            count += 1;
        }
        after = page.next;
        if after.is_none() {
            return Ok(count);
        }
    }
}

/// A closed store with `records` records, ten to a commit.
async fn filled(kind: BackendKind, path: &Path, records: usize) {
    let store = open_at(kind, path).await.expect("open").store;
    for start in (0..records).step_by(10) {
        let ids = start..records.min(start + 10);
        let fill = ids.fold(Transaction::new(), |t, id| t.put(key(id), value(id)));
        store.commit(fill).await.expect("fill");
    }
    store.close().await.expect("close");
}

fn data_file(kind: BackendKind, path: &Path) -> PathBuf {
    match kind {
        BackendKind::Sled => path.join("store.sled/db"),
        _ => path.join("store.redb"),
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make the copy's folder");
    for entry in fs::read_dir(from).expect("read the folder") {
        let entry = entry.expect("read the folder");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), &target).expect("copy")),
        }
    }
}

/// Opens a copy of `template` after `damage`: it must be whole, or set aside and reported.
async fn check(kind: BackendKind, template: &Path, records: usize, damage: impl Fn(&fs::File)) -> bool {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("state");
    copy_folder(template, &path);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(data_file(kind, &path));
    damage(&file.expect("open the data file"));

    let opened = open_at(kind, &path)
        .await
        .expect("damage does not keep the store from opening");
    let found = count(&opened.store).await.expect("what opened can be read");
    for (id, (at, record)) in opened.records.iter().enumerate() {
        assert_eq!((at, &record.envelope), (&key(id), &value(id)));
    }
    assert_eq!(
        opened.records.len(),
        found,
        "{kind}: opening hands out what the store holds"
    );
    if opened.damage.is_none() {
        assert!(!opened.fresh && opened.set_aside.is_none());
        assert_eq!(found, records, "{kind}: records are missing and nobody was told");
        return false;
    }
    assert!(opened.fresh);
    assert_eq!(found, 0);
    assert!(opened.set_aside.expect("the damaged store was kept").exists());
    let write = Transaction::new().put(key(0), value(0));
    opened.store.commit(write).await.expect("the new store works");
    opened.store.close().await.expect("close");
    let again = open_at(kind, &path).await.expect("open again");
    assert!(!again.fresh && again.set_aside.is_none() && again.damage.is_none());
    true
}

#[tokio::test]
async fn truncation_is_noticed() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        filled(kind, folder.path(), 300).await;
        let len = fs::metadata(data_file(kind, folder.path())).expect("metadata").len();
        let cuts = [0, 1, 8, 100, 511, 4095, 4096, len / 4, len / 2, len - 4096, len - 1];
        let mut noticed = 0;
        for cut in cuts {
            let cut_file = |file: &fs::File| file.set_len(cut).expect("truncate");
            noticed += usize::from(check(kind, folder.path(), 300, cut_file).await);
        }
        assert!(noticed >= cuts.len() / 2, "{kind}: {noticed} of {} noticed", cuts.len());
    }
}

#[tokio::test]
async fn zeroed_ranges_are_noticed() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        filled(kind, folder.path(), 300).await;
        let len = fs::metadata(data_file(kind, folder.path())).expect("metadata").len();
        for step in 0..16 {
            let zero = |file: &fs::File| {
                file.write_all_at(&[0; 8192], len * step / 16).expect("zero");
                file.set_len(len).expect("keep the length");
            };
            check(kind, folder.path(), 300, zero).await;
        }
    }
}

#[tokio::test]
async fn flipped_bits_are_noticed() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        filled(kind, folder.path(), 300).await;
        let len = fs::metadata(data_file(kind, folder.path())).expect("metadata").len();
        let mut rng = SmallRng::seed_from_u64(SEED);
        for round in 0..60 {
            // The first page, where an engine keeps what leads to all else, gets a third of the flips.
            let at = if round % 3 == 0 {
                rng.random_range(0..512)
            } else {
                rng.random_range(0..len)
            };
            let bit = rng.random_range(0..8);
            let flip = |file: &fs::File| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("read a byte");
                file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("flip a bit");
            };
            println!("{kind}: seed {SEED} round {round}: bit {bit} of byte {at}");
            check(kind, folder.path(), 300, flip).await;
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_noticed_until_the_first_commit() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        filled(kind, folder.path(), 20).await;
        let name = folder.path().join(format!("store.{kind}"));
        fs::rename(&name, folder.path().join("elsewhere")).expect("move away");
        let opened = open_at(kind, folder.path()).await.expect("open");
        assert!(opened.fresh && opened.damage.is_some());
        assert_eq!(opened.store.revision().await.expect("revision"), 2, "revisions go on");
        opened.store.close().await.expect("close");
        let again = open_at(kind, folder.path()).await.expect("open again");
        assert!(again.fresh, "still to be filled");
    }
}

#[tokio::test]
async fn a_set_aside_store_is_reported_until_the_first_commit() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        filled(kind, folder.path(), 20).await;
        fs::write(data_file(kind, folder.path()), b"not a store").expect("overwrite");
        let first = open_at(kind, folder.path()).await.expect("open");
        let aside = first.set_aside.expect("set aside");
        first.store.close().await.expect("close");
        let second = open_at(kind, folder.path()).await.expect("open again");
        assert!(second.fresh && second.damage.is_none());
        assert_eq!(second.set_aside, Some(aside));
    }
}

#[tokio::test]
async fn two_handles_of_one_store_are_a_clear_error() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        let held = open_at(kind, folder.path()).await.expect("open");
        let second = open_at(kind, folder.path()).await.expect_err("locked");
        assert!(matches!(second, StoreError::Locked { .. }), "{second}");
        held.store.close().await.expect("close");
        open_at(kind, folder.path()).await.expect("open after close");
    }
}

#[tokio::test]
async fn another_backend_is_a_clear_error() {
    let folder = TempDir::new().expect("a temporary folder");
    filled(BackendKind::Redb, folder.path(), 10).await;
    let error = open_at(BackendKind::Sled, folder.path())
        .await
        .expect_err("made by redb");
    assert!(matches!(error, StoreError::OtherBackend { .. }), "{error}");
    let opened = open_at(BackendKind::Redb, folder.path()).await.expect("open");
    assert_eq!(count(&opened.store).await.expect("count"), 10);
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    for kind in EMBEDDED {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("state");
        filled(kind, &path, 10).await;
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        for file in [data_file(kind, &path), path.join("LOCK"), path.join("mark")] {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }
}

#[tokio::test]
async fn unfinished_snapshots_of_sled_are_removed() {
    let folder = TempDir::new().expect("a temporary folder");
    filled(BackendKind::Sled, folder.path(), 30).await;
    for name in ["snap.7FFFFFFFFFFFFFFF", "snap.7FFFFFFFFFFFFFFF.generating"] {
        fs::write(folder.path().join("store.sled").join(name), b"").expect("leave a snapshot");
    }
    let opened = open_at(BackendKind::Sled, folder.path()).await.expect("open");
    assert_eq!(opened.damage, None);
    assert_eq!(count(&opened.store).await.expect("count"), 30);
}

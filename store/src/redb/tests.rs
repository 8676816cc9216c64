//! Power loss under redb, simulated: the disk keeps what was synced and any part of what was not.

use std::io;
use std::sync::{Arc, Mutex};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::engine::{Group, verify};
use crate::store::{Envelope, Transaction};
use crate::{Key, engine};

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// A disk in memory that remembers everything done to it.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<Step>)>>);

impl Disk {
    fn with(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((image, Vec::new()))))
    }

    fn do_step(&self, step: Step) {
        let mut disk = self.0.lock().unwrap();
        play(&mut disk.0, &step);
        disk.1.push(step);
    }

    fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().1.clone()
    }
}

fn play(image: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(at, bytes) => {
            let (start, end) = (*at as usize, *at as usize + bytes.len());
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(bytes);
        }
        Step::Length(length) => image.resize(*length as usize, 0),
        Step::Sync => {}
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = offset as usize;
        let found = disk
            .0
            .get(start..start + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.do_step(Step::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.do_step(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.do_step(Step::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// The disk after losing power before `steps[end]`: unsynced writes are there, torn at a sector, or not.
fn lose_power(steps: &[Step], end: usize, rng: &mut SmallRng) -> Vec<u8> {
    let synced = steps[..end]
        .iter()
        .rposition(|step| matches!(step, Step::Sync))
        .unwrap_or(0);
    let mut image = Vec::new();
    steps[..synced].iter().for_each(|step| play(&mut image, step));
    for step in &steps[synced..end] {
        match (step, rng.random_range(0..3)) {
            (Step::Write(..), 0) => {}
            (Step::Write(at, bytes), 1) => {
                for (index, sector) in bytes.chunks(512).enumerate() {
                    if rng.random() {
                        play(&mut image, &Step::Write(at + 512 * index as u64, sector.into()));
                    }
                }
            }
            _ => play(&mut image, step),
        }
    }
    image
}

/// The steps of 24 commits, the last disk closed, and the step counts at which each revision was acknowledged.
fn fill(key: impl Fn(u64) -> Key) -> (Vec<Step>, Vec<usize>) {
    let disk = Disk::default();
    let mut state = State::new(0);
    let store = RedbEngine::create(disk.clone(), 1 << 20, &state).unwrap();
    let mut acks = vec![disk.steps().len()];
    for revision in 1..=24 {
        let payload = vec![revision as u8; 100 + 150 * revision as usize];
        let mut transaction = Transaction::new()
            .put(key(revision), Envelope::new(1, payload.clone()))
            .put(key(0), Envelope::new(1, payload));
        if revision % 3 == 0 {
            transaction = transaction.delete(key(revision - 2));
        }
        let mut group = Group::new(state);
        group.stage(&store, transaction).unwrap();
        store.apply(&group.batch, &group.state).unwrap();
        state = group.state;
        acks.push(disk.steps().len());
    }
    drop(store);
    (disk.steps(), acks)
}

#[test]
fn power_loss_at_any_step_keeps_every_acknowledged_commit() {
    const SEED: u64 = 11;
    let key = |id: u64| Key::new(&format!("s/test/{id}")).unwrap();
    let (steps, acks) = fill(key);
    let mut rng = SmallRng::seed_from_u64(SEED);
    for end in acks[0]..=steps.len() {
        for _ in 0..2 {
            let acked = acks.iter().rposition(|at| *at <= end).unwrap() as u64;
            let image = Disk::with(lose_power(&steps, end, &mut rng));
            let store = RedbEngine::open_backend(image, 1 << 20)
                .unwrap_or_else(|e| panic!("seed {SEED} step {end}: does not open: {e}"));
            let found = store.state().unwrap().expect("made before the first step");
            verify(&store, &found).unwrap_or_else(|e| panic!("seed {SEED} step {end}: {e}"));
            let revision = found.revision;
            assert!(
                revision == acked || revision == acked + 1,
                "seed {SEED} step {end}: {acked} acknowledged, {revision} found"
            );
            if revision > 0 {
                let both = [key(0), key(revision)];
                let both = both.map(|key| engine::get(&store, &key).unwrap().unwrap().revision);
                assert_eq!(both, [revision; 2], "torn");
            }
        }
    }
    println!(
        "{} crash points, {} images",
        steps.len() - acks[0] + 1,
        2 * (steps.len() - acks[0] + 1)
    );
}

#[test]
fn power_loss_while_opening_keeps_every_acknowledged_commit() {
    const SEED: u64 = 12;
    let (steps, acks) = fill(|id| Key::new(&format!("s/test/{id}")).unwrap());
    let mut rng = SmallRng::seed_from_u64(SEED);
    for killed in (acks[0]..steps.len()).step_by(11).chain([steps.len()]) {
        // The process ends, the system does not: the next one sees all writes, synced or not.
        let mut image = Vec::new();
        steps[..killed].iter().for_each(|step| play(&mut image, step));
        let disk = Disk(Arc::new(Mutex::new((image, steps[..killed].to_vec()))));
        drop(RedbEngine::open_backend(disk.clone(), 1 << 20).unwrap());
        let acked = acks.iter().rposition(|at| *at <= killed).unwrap() as u64;
        let all = disk.steps();
        for end in killed..=all.len() {
            for _ in 0..2 {
                let place = format!("seed {SEED} killed {killed} step {end}");
                let image = Disk::with(lose_power(&all, end, &mut rng));
                let store =
                    RedbEngine::open_backend(image, 1 << 20).unwrap_or_else(|e| panic!("{place}: does not open: {e}"));
                let found = store.state().unwrap().expect("made before the first step");
                verify(&store, &found).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(found.revision >= acked, "{place}: {acked} acknowledged, {found:?}");
            }
        }
    }
}

//! The shell around a tier: feeds it events, puts its writes on disk, then performs its acts. The same for every daemon.
//!
//! Events that wait are taken together, their writes go to disk in as few transactions as the limits allow, and only
//! then are the acts performed, in order. Acts come first only if all that is to be written is told again by whoever knows it.
//! If the store fails, the loop ends with an error: nothing that was not stored is ever acknowledged, and the daemon starts again
//! from what is on disk.

use crate::clock::Clock;
use crate::failpoint;
use roble_core::ids::OrganizationId;
use roble_core::tier::{Output, Record, Tier, Write};
use roble_core::time::{Boottime, Now, Timestamp};
use roble_store::{
    Envelope, Key, KeyError, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Scope, Store, StoreError, Transaction, Versioned,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Schema number of the records written by this build.
const SCHEMA: u16 = 1;
/// Most events taken together.
const BATCH: usize = 256;
/// Time between ticks, if the tier does not ask for an earlier one.
const TICK: Duration = Duration::from_millis(500);

/// Performs what a tier asks for. Must not block: long work goes to tasks of its own, whose end comes back as an event.
pub trait Hands<A>: Send {
    /// Performs one act.
    fn act(&mut self, act: A);
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The store cannot be written any more.
    #[error("write the store")]
    Store(#[from] StoreError),
    /// A record has an id or kind that cannot be stored.
    #[error("name a record {kind}/{id}")]
    Name {
        /// Its kind.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is wrong.
        #[source]
        source: KeyError,
    },
}

/// Both clocks of `clock`, as the tiers take them.
pub fn now(clock: &dyn Clock) -> Now {
    Now {
        boot: Boottime::from_millis(clock.boot()),
        wall: Timestamp::from_millis(clock.wall()),
    }
}

/// What was found in the store when it was opened, as records. Of the kinds in `names_only`, which are read one by one with
/// [`read`] when they are asked for, only the names: their values are empty.
///
/// # Errors
/// [`StoreError::NewerSchema`] if a record has a newer schema than this build knows.
pub fn records(found: Vec<(Key, Versioned)>, names_only: &[&str]) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::with_capacity(found.len());
    for (key, versioned) in found {
        versioned.envelope.read(SCHEMA)?;
        let Some(mut record) = record(key.as_str()) else {
            continue;
        };
        if !names_only.contains(&record.kind.as_str()) {
            record.value = versioned.envelope.payload.into();
        }
        records.push(record);
    }
    Ok(records)
}

/// One record of an organization; `None` if there is none.
///
/// # Errors
/// [`ShellError`].
pub async fn read(
    store: &dyn Store,
    organization: OrganizationId,
    kind: &'static str,
    id: &str,
) -> Result<Option<Vec<u8>>, ShellError> {
    let name = |source| ShellError::Name {
        kind,
        id: id.to_owned(),
        source,
    };
    let scope = Scope::organization(&organization.to_string()).map_err(name)?;
    let Some(found) = store.get(&scope.key(kind, id).map_err(name)?).await? else {
        return Ok(None);
    };
    let (_, value) = found.envelope.read(SCHEMA)?;
    Ok(Some(value.to_vec()))
}

/// `o/<organization>/<kind>/<id>` and `s/<kind>/<id>`, still without value; anything else is not a record of a tier.
fn record(key: &str) -> Option<Record> {
    let mut parts = key.splitn(2, '/');
    let (organization, rest) = match (parts.next()?, parts.next()?) {
        ("s", rest) => (None, rest),
        ("o", rest) => {
            let (organization, rest) = rest.split_once('/')?;
            (Some(organization.parse::<OrganizationId>().ok()?), rest)
        }
        _ => return None,
    };
    let (kind, id) = rest.split_once('/')?;
    Some(Record {
        organization,
        kind: kind.to_owned(),
        id: id.to_owned(),
        value: Vec::new(),
    })
}

/// Puts writes on disk: the last one for each record counts; several transactions if they are many.
///
/// # Errors
/// [`ShellError`]; what was written before it stays written.
pub async fn write(store: &dyn Store, writes: Vec<Write>) -> Result<(), ShellError> {
    // The order of first writing is kept, so that a parent record comes before what it is the parent of.
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    let mut keyed: Vec<(Key, Option<Vec<u8>>)> = Vec::new();
    for write in writes {
        let name = |source| ShellError::Name {
            kind: write.kind,
            id: write.id.clone(),
            source,
        };
        let scope = match write.organization {
            Some(organization) => Scope::organization(&organization.to_string()).map_err(name)?,
            None => Scope::system(),
        };
        let key = scope.key(write.kind, &write.id).map_err(name)?;
        match last.get(key.as_str()) {
            Some(index) => keyed[*index].1 = write.value,
            None => {
                last.insert(key.as_str().to_owned(), keyed.len());
                keyed.push((key, write.value));
            }
        }
    }
    let mut transaction = Transaction::new();
    let mut bytes = 0;
    for (key, value) in keyed {
        let size = key.as_str().len() + value.as_ref().map_or(0, Vec::len) + 64;
        if transaction.len() + 1 > MAX_OPERATIONS || (bytes > 0 && bytes + size > MAX_TRANSACTION_BYTES) {
            store.commit(std::mem::take(&mut transaction)).await?;
            failpoint!("shell.part-written");
            bytes = 0;
        }
        bytes += size;
        transaction = match value {
            Some(value) => transaction.put(key, Envelope::new(SCHEMA, value)),
            None => transaction.delete(key),
        };
    }
    if !transaction.is_empty() {
        store.commit(transaction).await?;
    }
    Ok(())
}

/// What a tier is driven with.
pub struct Shell<H, R, L> {
    /// Where its writes go.
    pub store: Arc<dyn Store>,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Its randomness.
    pub rng: R,
    /// What performs its acts.
    pub hands: H,
    /// Sees the tier after every batch: for readiness and metrics.
    pub look: L,
}

/// Drives a tier until `stop` is cancelled or the store fails.
///
/// # Errors
/// [`ShellError`] if the store fails.
pub async fn run<T, H, R, L>(
    mut tier: T,
    mut events: mpsc::Receiver<T::Event>,
    shell: Shell<H, R, L>,
    stop: CancellationToken,
) -> Result<(), ShellError>
where
    T: Tier + Send,
    T::Event: Send,
    T::Act: Send,
    H: Hands<T::Act>,
    R: rand::RngCore + Send,
    L: FnMut(&T) + Send,
{
    let Shell {
        store,
        clock,
        mut rng,
        mut hands,
        mut look,
    } = shell;
    let mut next_tick = clock.boot();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let boot = clock.boot();
        let due = tier.next_due().map_or(next_tick, |due| due.as_millis().min(next_tick));
        let wait = Duration::from_millis(due.saturating_sub(boot));
        let mut out = Output {
            writes: Vec::new(),
            acts: Vec::new(),
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            count = events.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                for event in batch.drain(..) {
                    out.append(tier.on(event, now(&*clock), &mut rng));
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
        let time = now(&*clock);
        if time.boot.as_millis() >= next_tick || tier.next_due().is_some_and(|due| due <= time.boot) {
            next_tick = time.boot.as_millis() + TICK.as_millis() as u64;
            out.append(tier.tick(time, &mut rng));
        }
        let mut act = |acts: Vec<_>| {
            for act in acts {
                failpoint!("shell.before-act");
                hands.act(act);
                failpoint!("shell.after-act");
            }
        };
        if out.are_retold() {
            act(std::mem::take(&mut out.acts));
        }
        if !out.writes.is_empty() {
            failpoint!("shell.decided");
            write(&*store, out.writes).await?;
            failpoint!("shell.written");
        }
        act(out.acts);
        look(&tier);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::rng::{OsRandomness, Randomness as _};
    use rand::RngCore;
    use roble_store::{DiskFault, MemoryStore};

    /// Writes what it is given, and acts once.
    struct Obedient;

    impl Tier for Obedient {
        type Event = Vec<Write>;
        type Act = ();

        fn on(&mut self, writes: Vec<Write>, _: Now, _: &mut dyn RngCore) -> Output<()> {
            Output { writes, acts: vec![()] }
        }

        fn tick(&mut self, _: Now, _: &mut dyn RngCore) -> Output<()> {
            Output::default()
        }

        fn next_due(&self) -> Option<Boottime> {
            None
        }
    }

    struct Count<'a>(&'a mut usize);

    impl Hands<()> for Count<'_> {
        fn act(&mut self, (): ()) {
            *self.0 += 1;
        }
    }

    /// Acts performed although the disk failed.
    async fn acts_without_disk(writes: Vec<Write>) -> usize {
        let store = MemoryStore::new();
        store.fail(DiskFault::Broken);
        let (events, inbox) = mpsc::channel(1);
        events.send(writes).await.unwrap();
        let mut acts = 0;
        let shell = Shell {
            store: Arc::new(store),
            clock: Arc::new(SystemClock),
            rng: OsRandomness.generator(),
            hands: Count(&mut acts),
            look: |_: &_| (),
        };
        let end = run(Obedient, inbox, shell, CancellationToken::new()).await;
        assert!(matches!(end, Err(ShellError::Store(_))), "{end:?}");
        acts
    }

    #[tokio::test]
    async fn acts_wait_for_the_disk_unless_all_that_is_written_is_retold() {
        let put = |id: &str| Write::put("row", id, vec![1]);
        assert_eq!(acts_without_disk(vec![put("a")]).await, 0);
        assert_eq!(acts_without_disk(vec![put("a").retold(true), put("b")]).await, 0);
        assert_eq!(acts_without_disk(vec![put("a").retold(true)]).await, 1);
    }
}

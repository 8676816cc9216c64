//! What applications of this node want to know of the services of others: asked for at first use, given back when unused.
//!
//! A want is a row of what the node says of itself, as long as it stands; the cluster answers it under the same key. It is
//! answered here only when the datapath is as the answer says, so whoever waited may go on at once. What was known before a
//! restart is wanted again, or it would be taken back.

use crate::service::NetService;
use crate::tier::Told;
use roble_core::ids::{ApplicationId, ServiceId};
use roble_core::overlay::row::{Row, RowKey, WantRow, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a packet or a query waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long what is not there, or not answered, is wanted after the last question.
const FRUITLESS: Duration = Duration::from_secs(10);
/// Wants at a time: of the node, and of one application.
const MOST: usize = 1_024;
const MOST_OF_APPLICATION: usize = 128;

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is known, and the datapath is as it should be.
    Known,
    /// There is nothing that the application may use.
    Nothing,
    /// Nobody has answered in time, or too much is asked for already.
    Unknown,
}

/// What is known, as the datapath and the name server have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    wants: BTreeMap<RowKey, WantRow>,
    /// Service addresses that the kernel knows.
    known: BTreeSet<IpAddr>,
}

impl Answers {
    /// As the rows say that the cluster tells. `known`: service addresses that the kernel knows.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Row>, known: BTreeSet<IpAddr>) -> Self {
        let (mut wants, mut services) = (BTreeMap::new(), BTreeSet::new());
        for row in rows {
            match row {
                Row::Want(want) => drop(wants.insert(want.key(), want.clone())),
                Row::Service(row) => drop(services.insert(row.service)),
                _ => {}
            }
        }
        // What is said to be there is known once its row has come, too.
        wants.retain(|_, want| want.service.is_none_or(|service| services.contains(&service)));
        Self { wants, known }
    }

    fn outcome(&self, want: &WantRow) -> Option<Outcome> {
        if let Wanted::Address(address) = &want.wanted
            && self.known.contains(address)
        {
            return Some(Outcome::Known);
        }
        let answer = self.wants.get(&want.key())?;
        // Another want with the same key is no answer to this one.
        (answer.wanted == want.wanted).then_some(match answer.service {
            Some(_) => Outcome::Known,
            None => Outcome::Nothing,
        })
    }

    /// Addresses that are closed to an application, or nobody's.
    pub fn refused(&self) -> impl Iterator<Item = (ApplicationId, IpAddr)> + '_ {
        self.wants
            .values()
            .filter_map(|want| match (&want.wanted, want.service) {
                (Wanted::Address(address), None) => Some((want.application, *address)),
                _ => None,
            })
    }
}

struct Want {
    row: WantRow,
    used: Instant,
}

/// The wants of one node. See the module's text.
pub struct Wants {
    idle: Duration,
    wants: Mutex<BTreeMap<RowKey, Want>>,
    rows: watch::Sender<Vec<Row>>,
    answers: watch::Sender<Arc<Answers>>,
}

impl Wants {
    /// Wants what `told` answers already. A want that was answered ends when it was not used for `idle`.
    pub fn new(idle: Duration, told: &Told) -> Self {
        let now = Instant::now();
        let wants = Answers::of(told.rows(), BTreeSet::new())
            .wants
            .into_iter()
            .map(|(key, row)| {
                let row = WantRow { service: None, ..row };
                (key, Want { row, used: now })
            });
        let wants: BTreeMap<RowKey, Want> = wants.collect();
        let rows = rows(&wants);
        Self {
            idle,
            wants: Mutex::new(wants),
            rows: watch::Sender::new(rows),
            answers: watch::Sender::default(),
        }
    }

    /// What the node says of its wants, as it changes.
    pub fn rows(&self) -> watch::Receiver<Vec<Row>> {
        self.rows.subscribe()
    }

    /// The datapath is as the cluster tells now.
    pub fn set_answers(&self, answers: Answers) {
        let _ = self.answers.send_if_modified(|before| {
            let is_changed = **before != answers;
            if is_changed {
                *before = Arc::new(answers);
            }
            is_changed
        });
    }

    /// What is known of a want now, without asking for it.
    pub fn known(&self, application: ApplicationId, wanted: &Wanted) -> Option<Outcome> {
        self.answers.borrow().outcome(&row(application, wanted.clone()))
    }

    /// Asks, and waits for the answer, for [`PATIENCE`] at most.
    pub async fn resolve(&self, application: ApplicationId, wanted: Wanted) -> Outcome {
        let want = row(application, wanted);
        let mut answers = self.answers.subscribe();
        if let Some(outcome) = answers.borrow_and_update().outcome(&want) {
            self.touch(&want);
            return outcome;
        }
        if !self.add(want.clone()) {
            return Outcome::Unknown;
        }
        let answered = async {
            loop {
                if let Some(outcome) = answers.borrow_and_update().outcome(&want) {
                    return outcome;
                }
                if answers.changed().await.is_err() {
                    return Outcome::Unknown;
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .unwrap_or(Outcome::Unknown)
    }

    /// A flow of an application goes to an address of another one's service: what was asked for it is in use. `service`: whose
    /// address it is.
    pub fn use_flow(&self, application: ApplicationId, address: IpAddr, service: ServiceId) {
        let answers = self.answers.borrow().clone();
        let is_meant = |want: &Want| {
            let answer = answers.wants.get(&want.row.key());
            want.row.application == application && answer.is_some_and(|answer| answer.service == Some(service))
        };
        let mut is_known = false;
        for want in self.lock().values_mut().filter(|want| is_meant(want)) {
            want.used = Instant::now();
            is_known = true;
        }
        if !is_known {
            // It was asked for by another application, which may stop.
            self.add(row(application, Wanted::Address(address)));
        }
    }

    /// Ends what is not used any more.
    pub fn expire(&self) {
        let answers = self.answers.borrow().clone();
        let mut wants = self.lock();
        let before = wants.len();
        wants.retain(|key, want| {
            let is_fruitful = answers.wants.get(key).is_some_and(|answer| answer.service.is_some());
            want.used.elapsed()
                < if is_fruitful {
                    self.idle
                } else {
                    FRUITLESS.min(self.idle)
                }
        });
        if wants.len() != before {
            self.rows.send_replace(rows(&wants));
        }
    }

    fn touch(&self, want: &WantRow) {
        if let Some(want) = self.lock().get_mut(&want.key()) {
            want.used = Instant::now();
        }
    }

    /// `false`: too much is wanted already.
    fn add(&self, row: WantRow) -> bool {
        let mut wants = self.lock();
        let (key, used) = (row.key(), Instant::now());
        if let Some(want) = wants.get_mut(&key) {
            want.used = used;
            return true;
        }
        let own = wants.values().filter(|want| want.row.application == row.application);
        if wants.len() >= MOST || own.count() >= MOST_OF_APPLICATION {
            return false;
        }
        wants.insert(key, Want { row, used });
        self.rows.send_replace(rows(&wants));
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RowKey, Want>> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks now and then which wants are in use, and ends the others. Does nothing while there is none.
pub async fn tend(wants: &Wants, service: &NetService, told: watch::Receiver<Arc<Told>>) {
    let mut rows = wants.rows();
    let pause = (wants.idle / 4).clamp(Duration::from_millis(250), FRUITLESS);
    let every = (wants.idle / 4).min(Duration::from_secs(60));
    let mut looked = Instant::now();
    loop {
        while rows.borrow_and_update().is_empty() {
            if rows.changed().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        if looked.elapsed() >= every {
            let told = told.borrow().clone();
            for (application, address, of) in in_use(&told, service).await {
                wants.use_flow(application, address, of);
            }
            looked = Instant::now();
        }
        wants.expire();
    }
}

/// Flows to services of other applications: whose they are, and where they go.
async fn in_use(told: &Told, service: &NetService) -> BTreeSet<(ApplicationId, IpAddr, ServiceId)> {
    let (plan, callers) = (told.plan(), service.callers().borrow().clone());
    let given = told.services().flat_map(|row| {
        let v4 = row.v4.values().copied().map(IpAddr::from);
        let v6 = row.v6.values().copied().map(IpAddr::from);
        v4.chain(v6).map(|address| (address, row.service))
    });
    let given: BTreeMap<IpAddr, ServiceId> = given.collect();
    let rows: BTreeMap<ServiceId, ApplicationId> = told.services().map(|row| (row.service, row.application)).collect();
    let derived = |address: IpAddr| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => plan.service_of_v6(v6).map(|(service, _)| service),
    };
    let flows = service.translated().await;
    let used = flows.into_iter().filter_map(|(from, to)| {
        let caller = callers.get(&from)?.application;
        let service = given.get(&to).copied().or_else(|| derived(to))?;
        let owner = *rows.get(&service)?;
        (owner != caller).then_some((caller, to, service))
    });
    used.collect()
}

const fn row(application: ApplicationId, wanted: Wanted) -> WantRow {
    WantRow {
        application,
        wanted,
        service: None,
    }
}

fn rows(wants: &BTreeMap<RowKey, Want>) -> Vec<Row> {
    wants.values().map(|want| Row::Want(want.row.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::RawId;

    const APPLICATION: ApplicationId = ApplicationId(RawId::from_bytes([1; 12]));
    const SERVICE: ServiceId = ServiceId(RawId::from_bytes([2; 12]));

    fn name(text: &str) -> Wanted {
        Wanted::Name(text.to_owned())
    }

    fn answers(all: &[(&str, Option<ServiceId>)]) -> Answers {
        let want = |(text, service): &(&str, Option<ServiceId>)| {
            let want = WantRow {
                service: *service,
                ..row(APPLICATION, name(text))
            };
            (want.key(), want)
        };
        Answers {
            wants: all.iter().map(want).collect(),
            known: BTreeSet::from([[10, 30, 0, 7].into()]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_wait_and_a_want_its_use() {
        let wants = Arc::new(Wants::new(Duration::from_secs(60), &Told::default()));
        let rows = wants.rows();
        assert_eq!(
            wants.resolve(APPLICATION, Wanted::Address([10, 30, 0, 8].into())).await,
            Outcome::Unknown
        );
        let waiting = tokio::spawn({
            let wants = wants.clone();
            async move { wants.resolve(APPLICATION, name("db.mail")).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(rows.borrow().len(), 2);
        wants.set_answers(answers(&[("db.mail", Some(SERVICE)), ("x.mail", None)]));
        assert_eq!(waiting.await.unwrap(), Outcome::Known);
        assert_eq!(wants.resolve(APPLICATION, name("x.mail")).await, Outcome::Nothing);
        let known = Wanted::Address([10, 30, 0, 7].into());
        assert_eq!(wants.known(APPLICATION, &known), Some(Outcome::Known));

        tokio::time::advance(FRUITLESS).await;
        wants.expire();
        assert_eq!(rows.borrow().as_slice(), [Row::Want(row(APPLICATION, name("db.mail")))]);
        tokio::time::advance(Duration::from_secs(45)).await;
        wants.use_flow(APPLICATION, [10, 30, 0, 9].into(), SERVICE);
        tokio::time::advance(Duration::from_secs(45)).await;
        wants.expire();
        assert_eq!(rows.borrow().len(), 1, "it is in use");
        tokio::time::advance(Duration::from_secs(60)).await;
        wants.expire();
        assert!(rows.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_application_wants_no_more_than_it_may() {
        let wants = Wants::new(Duration::from_secs(60), &Told::default());
        for number in 0..200_u8 {
            wants.add(row(APPLICATION, Wanted::Address([10, 30, 0, number].into())));
        }
        assert_eq!(wants.rows().borrow().len(), MOST_OF_APPLICATION);
        assert_eq!(wants.resolve(APPLICATION, name("a.b")).await, Outcome::Unknown);
        let other = ApplicationId(RawId::from_bytes([9; 12]));
        assert!(wants.add(row(other, name("a.b"))));
    }
}

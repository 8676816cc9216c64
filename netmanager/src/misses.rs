//! The first packets to service addresses that are not known here: held until these are, and sent on.
//!
//! The kernel routes such packets to [`Device`]. Those of one application to one address wait for the same answer. Then all
//! are handed back to the kernel, which knows the address by now or refuses them: nothing that comes from the device is sent
//! to it again.

use crate::datapath::miss::Device;
use crate::dns::{Caller, Callers};
use crate::metrics::NetMetrics;
use crate::wants::Wants;
use roble_core::ids::ApplicationId;
use roble_core::overlay::row::Wanted;
use roble_daemon::CancellationToken;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Packets that wait for one answer.
const PACKETS: usize = 16;
/// Answers that are waited for at a time.
const QUESTIONS: usize = 256;
/// How long the device rests after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Whose packets wait, and for which address.
type Key = (ApplicationId, IpAddr);

/// Source and destination of a packet; `None` if it is none.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let at = |from: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(from..from + 4)?).ok()?));
            Some((at(12)?.into(), at(16)?.into()))
        }
        6 => {
            let at = |from: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(from..from + 16)?).ok()?));
            Some((at(8)?.into(), at(24)?.into()))
        }
        _ => None,
    }
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It waits.
    Held,
    /// It waits, and this must be asked.
    Ask(Key),
    /// Nobody can wait for it: the kernel decides.
    Pass,
    /// It is lost.
    Drop,
}

/// Packets that wait.
#[derive(Debug, Default)]
struct Held(BTreeMap<Key, Vec<Vec<u8>>>);

impl Held {
    fn take_in(&mut self, packet: &[u8], callers: &Callers) -> Step {
        let Some((from, to)) = addresses(packet) else {
            return Step::Drop;
        };
        let Some(Caller { application, .. }) = callers.get(&from) else {
            return Step::Pass;
        };
        let key = (*application, to);
        let is_new = !self.0.contains_key(&key);
        if is_new && self.0.len() >= QUESTIONS {
            return Step::Pass;
        }
        let waiting = self.0.entry(key).or_default();
        if waiting.len() >= PACKETS {
            return Step::Drop;
        }
        waiting.push(packet.to_vec());
        if is_new { Step::Ask(key) } else { Step::Held }
    }

    fn release(&mut self, key: &Key) -> Vec<Vec<u8>> {
        self.0.remove(key).unwrap_or_default()
    }
}

/// Holds packets of `device` until `stop`.
pub async fn run(
    device: Device,
    wants: Arc<Wants>,
    callers: watch::Receiver<Arc<Callers>>,
    metrics: NetMetrics,
    stop: CancellationToken,
) {
    let mut held = Held::default();
    let (answered, mut answers) = mpsc::channel(QUESTIONS);
    let mut buffer = vec![0; 65_536];
    let send = |packet: &[u8]| {
        if let Err(error) = device.write(packet) {
            tracing::debug!(%error, "a held packet was lost");
        }
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(key) = answers.recv() => held.release(&key).iter().for_each(|packet| send(packet)),
            read = device.read(&mut buffer) => {
                let packet = match read {
                    Ok(length) => &buffer[..length],
                    Err(error) => {
                        tracing::debug!(%error, "read a packet");
                        tokio::time::sleep(ERROR_PAUSE).await;
                        continue;
                    }
                };
                let callers = callers.borrow().clone();
                match held.take_in(packet, &callers) {
                    Step::Held => drop(metrics.packets_held.inc()),
                    Step::Pass => send(packet),
                    Step::Drop => drop(metrics.packets_overheld.inc()),
                    Step::Ask((application, address)) => {
                        metrics.packets_held.inc();
                        let (wants, answered) = (wants.clone(), answered.clone());
                        tokio::spawn(async move {
                            wants.resolve(application, Wanted::Address(address)).await;
                            let _ = answered.send((application, address)).await;
                        });
                    }
                }
            }
        }
    }
}

/// For fuzzing: any bytes as a packet.
///
/// # Panics
/// More is kept than may be.
pub fn fuzz_packet(data: &[u8]) {
    let caller = Caller {
        organization: roble_core::ids::OrganizationId(roble_core::ids::RawId::from_bytes([1; 12])),
        application: ApplicationId(roble_core::ids::RawId::from_bytes([1; 12])),
    };
    let mut held = Held::default();
    let callers = addresses(data).map(|(from, _)| (from, caller)).into_iter().collect();
    for _ in 0..=PACKETS {
        held.take_in(data, &callers);
    }
    assert!(
        held.0.values().all(|packets| packets.len() <= PACKETS),
        "at most so many wait"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use roble_core::ids::{OrganizationId, RawId};

    fn packet(from: u8, to: [u8; 2]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&[10, 18, 0, from]);
        packet[16..20].copy_from_slice(&[10, 30, to[0], to[1]]);
        packet
    }

    #[test]
    fn so_many_wait_for_an_answer_and_no_more() {
        let application = ApplicationId(RawId::from_bytes([1; 12]));
        let caller = Caller {
            organization: OrganizationId(RawId::from_bytes([2; 12])),
            application,
        };
        let callers: Callers = [2, 3].map(|last| (IpAddr::from([10, 18, 0, last]), caller)).into();
        let mut held = Held::default();
        let key = |to: [u8; 2]| (application, IpAddr::from([10, 30, to[0], to[1]]));
        assert_eq!(held.take_in(&packet(2, [0, 1]), &callers), Step::Ask(key([0, 1])));
        for _ in 1..PACKETS {
            assert_eq!(
                held.take_in(&packet(3, [0, 1]), &callers),
                Step::Held,
                "of the same application"
            );
        }
        assert_eq!(held.take_in(&packet(2, [0, 1]), &callers), Step::Drop);
        assert_eq!(held.take_in(&packet(9, [0, 1]), &callers), Step::Pass, "nobody's");
        assert_eq!(held.take_in(&[0x45; 19], &callers), Step::Drop);
        assert_eq!(held.take_in(&[], &callers), Step::Drop);
        assert_eq!(held.release(&key([0, 1])).len(), PACKETS);
        assert!(held.release(&key([0, 1])).is_empty());
        for number in 0..QUESTIONS {
            let to = [1 + (number / 256) as u8, (number % 256) as u8];
            assert_eq!(held.take_in(&packet(2, to), &callers), Step::Ask(key(to)));
        }
        assert_eq!(held.take_in(&packet(2, [9, 9]), &callers), Step::Pass);
    }
}

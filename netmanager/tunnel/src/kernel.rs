//! The kernel's own WireGuard as a [`Device`].
//!
//! The kernel seals and opens, roams and keeps sessions, also when nobody looks. It has one address and one key per peer and
//! one key of its own; what a peer's other addresses, a relay and changes of keys need is done from outside, by
//! [`KernelDevice::tend`]: [`ways`] chooses addresses, [`plan`] says what must be told. Only differences are told, so that a
//! wish repeated disturbs nothing. docs/tunnel.md has what this costs in comparison with the worker.

mod netlink;
mod plan;
mod ways;

use crate::client::{Device, DeviceError};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::sys::{boot_time, udp};
use crate::types::{AllowedIp, DeviceConfig, DeviceStatus, PeerStatus};
use netlink::Netlink;
use nix::errno::Errno;
use plan::{Holder, Known, Peers};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use ways::{Look, Move};

/// Between two looks at a device: how late a relay is used or left.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a peer changes its key: how long its packets are refused for.
const QUICK_LOOK: Duration = Duration::from_millis(50);
/// How long a change of keys is looked at so closely.
const QUICK_LIFE: Duration = Duration::from_secs(900);
/// How long the kernel has to send a sign of life before it is told the next address.
const GLANCE_TIME: Duration = Duration::from_millis(10);
/// How long this device keeps a key that was replaced: as long as the worker understands one.
const KEY_DELAY: Duration = Duration::from_secs(600);
/// What a sign of life is provoked with if there shall be none otherwise, seconds.
const POKE: u16 = 25;
/// What a WireGuard message adds at most: to IPv4 and UDP, or IPv6 and UDP.
const OVERHEAD: [u16; 2] = [20 + 8 + 32, 40 + 8 + 32];

/// What the kernel is told of a device: what is `None` or empty stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Change {
    private_key: Option<PrivateKey>,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
    peers: Vec<PeerChange>,
}

impl Change {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the kernel is told of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PeerChange {
    public_key: PublicKey,
    remove: bool,
    update_only: bool,
    preshared_key: Option<PresharedKey>,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: Option<u16>,
    replace_allowed_ips: bool,
    allowed_ips: Vec<AllowedIp>,
}

impl PeerChange {
    const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    fn removal(public_key: PublicKey) -> Self {
        Self {
            remove: true,
            ..Self::new(public_key)
        }
    }
}

/// What the kernel says of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    private_key: Option<PrivateKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, FoundPeer>,
}

/// What the kernel says of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FoundPeer {
    preshared_key: PresharedKey,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: u16,
    last_handshake: Option<Duration>,
    rx_bytes: u64,
    tx_bytes: u64,
    allowed_ips: BTreeSet<AllowedIp>,
}

/// What has the name of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel's WireGuard.
    WireGuard,
    /// Anything else: a worker's TUN device.
    Other,
}

/// What has that name in the network namespace of the calling thread, if anything.
///
/// # Errors
/// [`DeviceError::Kernel`].
pub fn kind_of(name: &str) -> Result<Option<LinkKind>, DeviceError> {
    let link = Netlink::open().and_then(|mut netlink| netlink.link(name));
    let link = link.map_err(failed("look for the tunnel's device"))?;
    Ok(link.map(|link| match link.is_wireguard {
        true => LinkKind::WireGuard,
        false => LinkKind::Other,
    }))
}

/// Removes the link of that name, with addresses and routes. None is fine.
///
/// # Errors
/// [`DeviceError::Kernel`].
pub fn remove(name: &str) -> Result<(), DeviceError> {
    let removed = Netlink::open().and_then(|mut netlink| match netlink.link(name)? {
        Some(link) => netlink.remove_link(link.index),
        None => Ok(()),
    });
    removed.map_err(failed("remove the tunnel's device"))
}

/// Whether the kernel has WireGuard; it loads the module for this.
///
/// # Errors
/// [`DeviceError::Kernel`]: why not.
pub fn supported() -> Result<(), DeviceError> {
    let family = Netlink::open().and_then(|mut netlink| netlink.wireguard());
    family.map(drop).map_err(failed("ask the kernel for WireGuard"))
}

fn failed(attempt: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError::Kernel { attempt, source }
}

/// A device of the kernel. It stays when this is dropped, and the next process takes it over; [`remove`] removes it.
///
/// [`Device::get`] cannot say how many packets there were, what was dropped, or how long a handshake took: these are zero or
/// `None`.
#[derive(Debug)]
pub struct KernelDevice {
    name: String,
    key_delay: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    netlink: Netlink,
    family: u16,
    peers: Peers,
    /// The key that this device takes, and when.
    next_key: Option<(PrivateKey, Duration)>,
    /// Since when a peer changes its key.
    changing_since: Option<Duration>,
}

impl KernelDevice {
    /// Takes over the device of that name, or makes it, in the network namespace of the calling thread; calls from other
    /// threads are about the same one.
    ///
    /// # Errors
    /// [`DeviceError::Kernel`]: without WireGuard, without `CAP_NET_ADMIN`, or if another kind of link has the name.
    pub fn ensure(name: &str) -> Result<Self, DeviceError> {
        let mut netlink = Netlink::open().map_err(failed("open netlink sockets"))?;
        let family = netlink.wireguard().map_err(failed("ask the kernel for WireGuard"))?;
        let link = netlink.link(name).map_err(failed("look for the tunnel's device"))?;
        match link {
            Some(link) if link.is_wireguard => {}
            Some(_) => {
                let taken = "take over the tunnel's device, which is of another kind";
                return Err(failed(taken)(Errno::EEXIST.into()));
            }
            None => netlink.make_link(name).map_err(failed("make a WireGuard device"))?,
        }
        Ok(Self {
            name: name.to_owned(),
            key_delay: KEY_DELAY,
            state: Mutex::new(State {
                netlink,
                family,
                peers: Peers::new(),
                next_key: None,
                changing_since: None,
            }),
        })
    }

    /// The same, with another time for which a key that was replaced is kept.
    #[must_use]
    pub fn with_key_delay(self, key_delay: Duration) -> Self {
        Self { key_delay, ..self }
    }

    /// Does what the kernel does not: chooses among a peer's addresses, and follows changes of keys. To be called again after
    /// the time that it returns; seldom is harmless, never means that relays are not left and keys not changed.
    ///
    /// # Errors
    /// [`DeviceError::Kernel`]; `ENODEV` if the device is gone.
    pub fn tend(&self) -> Result<Duration, DeviceError> {
        let mut state = self.lock();
        self.tend_locked(&mut state)
            .map_err(failed("look after the tunnel's device"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tend_locked(&self, state: &mut State) -> io::Result<Duration> {
        let found = state.found(&self.name)?;
        let now = boot_time();
        if let Some((key, at)) = state.next_key.take() {
            if at <= now {
                state.take_key(&self.name, key, &found)?;
            } else {
                state.next_key = Some((key, at));
            }
        }
        let (changes, is_changing) = plan::settle(&state.peers, &found);
        state.tell(&self.name, changes)?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut moves = Vec::new();
        for (key, known) in &mut state.peers {
            let former = known.previous.and_then(|key| found.peers.get(&key));
            let Some((used, peer)) = in_use(*key, known.previous, found.peers.get(key), former) else {
                continue;
            };
            let look = Look {
                endpoint: peer.endpoint,
                session_age: peer.last_handshake.map(|at| unix.saturating_sub(at)),
                received: peer.rx_bytes,
                sent: peer.tx_bytes,
                now,
            };
            let told = known.ways.look(&look);
            if told != Move::Stay {
                moves.push((used, peer.endpoint, known.keepalive, told));
            }
        }
        let (mut pokes, mut glances) = (Vec::new(), Vec::new());
        for (key, back, keepalive, told) in moves {
            match told {
                Move::Stay => {}
                Move::Go(to) => pokes.extend(poke(key, Some(to), keepalive)),
                Move::Glance(others) => glances.push(Glance {
                    key,
                    back,
                    keepalive,
                    others,
                }),
            }
        }
        state.tell(&self.name, pokes)?;
        state.glance(&self.name, glances)?;
        let since = *state.changing_since.get_or_insert(now);
        if !is_changing {
            state.changing_since = None;
        }
        let is_quick = is_changing && now < since + QUICK_LIFE;
        let due = state.next_key.as_ref().map(|(_, at)| at.saturating_sub(now));
        let pause = if is_quick { QUICK_LOOK } else { LOOK };
        Ok(due.map_or(pause, |due| due.min(pause)))
    }
}

/// A look at other addresses of a peer.
struct Glance {
    key: PublicKey,
    /// Where packets went.
    back: Option<SocketAddr>,
    keepalive: u16,
    others: Vec<SocketAddr>,
}

/// The entry of a peer that carries its packets.
fn in_use<'a>(
    key: PublicKey,
    former: Option<PublicKey>,
    now: Option<&'a FoundPeer>,
    before: Option<&'a FoundPeer>,
) -> Option<(PublicKey, &'a FoundPeer)> {
    match Holder::of(now, before) {
        Holder::New => Some((key, now?)),
        Holder::Former => Some((former?, before?)),
    }
}

/// A sign of life at once: the kernel sends one whenever they are turned on.
fn poke(key: PublicKey, endpoint: Option<SocketAddr>, keepalive: u16) -> Vec<PeerChange> {
    let change = |endpoint, seconds| PeerChange {
        update_only: true,
        endpoint,
        persistent_keepalive: Some(seconds),
        ..PeerChange::new(key)
    };
    let off = change(endpoint, 0);
    match keepalive {
        0 => vec![off, change(None, POKE), change(None, 0)],
        seconds => vec![off, change(None, seconds)],
    }
}

impl State {
    fn found(&mut self, name: &str) -> io::Result<Found> {
        self.netlink.device(self.family, name)
    }

    fn tell(&mut self, name: &str, peers: Vec<PeerChange>) -> io::Result<()> {
        if peers.is_empty() {
            return Ok(());
        }
        let change = Change {
            peers,
            ..Change::default()
        };
        self.netlink.change(self.family, name, &change)
    }

    /// Takes a key; sessions of it are made at once, those that stand are received on until their end.
    fn take_key(&mut self, name: &str, key: PrivateKey, found: &Found) -> io::Result<()> {
        let change = Change {
            private_key: Some(key),
            ..Change::default()
        };
        self.netlink.change(self.family, name, &change)?;
        let sessions = found.peers.iter().filter(|(_, peer)| peer.last_handshake.is_some());
        let pokes: Vec<_> = sessions
            .flat_map(|(key, peer)| poke(*key, None, peer.persistent_keepalive))
            .collect();
        self.tell(name, pokes)
    }

    /// Signs of life to others of the peers' addresses, for a moment in which everything goes there. Who answers within it is
    /// not taken back.
    fn glance(&mut self, name: &str, mut glances: Vec<Glance>) -> io::Result<()> {
        let most = glances.iter().map(|glance| glance.others.len()).max().unwrap_or(0);
        for turn in 0..most {
            let at = |glance: &Glance| glance.others.get(turn).copied();
            let pokes = glances
                .iter()
                .filter_map(|glance| Some(poke(glance.key, Some(at(glance)?), glance.keepalive)));
            self.tell(name, pokes.flatten().collect())?;
            let before = self.found(name)?;
            std::thread::sleep(GLANCE_TIME);
            let after = self.found(name)?;
            // What came by another way would have moved it there.
            let is_answered = |glance: &Glance| {
                let (before, after) = (before.peers.get(&glance.key), after.peers.get(&glance.key));
                before.zip(after).is_some_and(|(before, after)| {
                    after.endpoint.is_some() && after.endpoint == at(glance) && after.rx_bytes > before.rx_bytes
                })
            };
            glances.retain(|glance| !is_answered(glance));
        }
        let back = glances.iter().map(|glance| PeerChange {
            update_only: true,
            endpoint: glance.back,
            ..PeerChange::new(glance.key)
        });
        self.tell(name, back.collect())
    }
}

impl Device for KernelDevice {
    fn set(&self, config: &DeviceConfig) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let state = &mut *state;
        let found = state.found(&self.name).map_err(failed("read the tunnel's device"))?;
        let invalid = |_| DeviceError::Refused {
            errno: Errno::EINVAL as i32,
        };
        let mut peers = state.peers.clone();
        let mut change = plan::plan(config, &found, &mut peers).map_err(invalid)?;
        let mut late = state.next_key.take();
        let mut taken = None;
        if let Some(wanted) = &config.private_key {
            let current = if wanted.is_zero() {
                None
            } else {
                found.private_key.clone()
            };
            match current {
                None => {
                    late = None;
                    change.private_key = Some(wanted.clone()).filter(|_| found.private_key.as_ref() != Some(wanted));
                    if wanted.is_zero() && found.private_key.is_none() {
                        change.private_key = None;
                    }
                }
                Some(current) if current == *wanted => late = None,
                Some(_) => {
                    let due = boot_time() + self.key_delay;
                    late = match late {
                        Some((key, at)) if key == *wanted => Some((key, at)),
                        before => {
                            // Others know of two keys, not of three.
                            taken = before.map(|(key, _)| key);
                            Some((wanted.clone(), due))
                        }
                    };
                }
            }
        }
        state.next_key = late;
        let told = (|| {
            if let Some(key) = taken {
                state.take_key(&self.name, key, &found)?;
            }
            if !change.is_empty() {
                state.netlink.change(state.family, &self.name, &change)?;
            }
            if let Some(mtu) = config.mtu {
                let link = state.netlink.link(&self.name)?.ok_or(Errno::ENODEV)?;
                if link.mtu != u32::from(mtu) {
                    state.netlink.set_mtu(link.index, mtu.into())?;
                }
            }
            Ok(())
        })();
        told.map_err(failed("change the tunnel's device"))?;
        state.peers = peers;
        Ok(())
    }

    fn get(&self) -> Result<DeviceStatus, DeviceError> {
        let mut state = self.lock();
        let reading = failed("read the tunnel's device");
        let found = state.found(&self.name).map_err(&reading)?;
        let link = state.netlink.link(&self.name).map_err(&reading)?;
        let mtu = link.map_or(0, |link| u16::try_from(link.mtu).unwrap_or(u16::MAX));
        let none = Known::default();
        let formers: BTreeSet<PublicKey> = state.peers.values().filter_map(|known| known.previous).collect();
        let entries = found.peers.iter().filter(|(key, _)| !formers.contains(key));
        let peers = entries.map(|(key, peer)| {
            let known = state.peers.get(key).unwrap_or(&none);
            let former = known.previous.and_then(|key| found.peers.get(&key));
            status(*key, peer, former, known, mtu, found.fwmark)
        });
        Ok(DeviceStatus {
            peers: peers.collect(),
            private_key: found.private_key,
            listen_port: found.listen_port,
            fwmark: found.fwmark,
            mtu,
            ..DeviceStatus::default()
        })
    }
}

/// A peer, whose two entries are one to others while it changes its key.
fn status(
    key: PublicKey,
    peer: &FoundPeer,
    former: Option<&FoundPeer>,
    known: &Known,
    mtu: u16,
    fwmark: u32,
) -> PeerStatus {
    let used = in_use(key, known.previous, Some(peer), former).map_or(peer, |(_, used)| used);
    let sum = |of: fn(&FoundPeer) -> u64| of(peer) + former.map_or(0, of);
    let path = used.endpoint.and_then(|endpoint| {
        let outer = udp::path_mtu(endpoint, fwmark)?;
        Some(outer.saturating_sub(OVERHEAD[usize::from(endpoint.is_ipv6())]))
    });
    PeerStatus {
        public_key: key,
        previous_public_key: known.previous.filter(|_| former.is_some()),
        preshared_key: (used.preshared_key != PresharedKey::default()).then(|| used.preshared_key.clone()),
        endpoint: used.endpoint,
        endpoint_relayed: known.ways.is_relay(used.endpoint),
        candidates: known.ways.candidates().to_vec(),
        persistent_keepalive: used.persistent_keepalive,
        allowed_ips: used.allowed_ips.iter().copied().collect(),
        mtu: path.map_or(mtu, |path| path.min(mtu)),
        last_handshake: used.last_handshake,
        handshake_rtt: None,
        rx_bytes: sum(|peer| peer.rx_bytes),
        tx_bytes: sum(|peer| peer.tx_bytes),
        rx_packets: 0,
        tx_packets: 0,
    }
}

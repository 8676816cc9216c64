//! A node as far as a cluster sees it: joins, speaks over MQTT with the real transport and lower end, and reports what it
//! is ordered as running.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use roble_core::backoff::Backoff;
use roble_core::ids::NodeId;
use roble_core::labels::ARCH;
use roble_core::placement::{Offer, Profile};
use roble_core::registry::JoinToken;
use roble_core::resources::Resources;
use roble_core::status::{InstanceStatus, Phase};
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::join::JoinError;
use roble_daemon::pki::{Credential, Identity, PrivateKey, certificates_from_pem};
use roble_daemon::shell;
use roble_daemon::tls::{ClientTls, Dialer, Protocol};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_link::mqtt::{MqttConfig, MqttTransport};
use roble_link::transport::{Transport, TransportEvent};
use roble_proto::convert::{decode_assignment, encode_status};
use roble_proto::rest::JoinGrant;
use roble_proto::topics::Branch;
use roble_proto::wire::{Frame, Request, SetKind};
use tokio::task::JoinHandle;

/// What a node holds after it joined.
pub struct Joined {
    pub grant: JoinGrant,
    pub id: NodeId,
    pub key: String,
    clock: Arc<VerifierClock>,
}

pub fn clock() -> Arc<VerifierClock> {
    Arc::new(VerifierClock::volatile(Arc::new(SystemClock)))
}

/// Joins at the cluster's API with this token.
pub async fn join(api: SocketAddr, token: &JoinToken, name: &str, key: &PrivateKey) -> Result<Joined, JoinError> {
    let clock = clock();
    let cluster = Identity::cluster(&token.cluster.unwrap().to_string()).unwrap();
    let tls = ClientTls::pinned(cluster, token.pin.parse().unwrap(), clock.clone())
        .protocol(Protocol::Raw)
        .build()
        .unwrap();
    let mut rng = SmallRng::seed_from_u64(9);
    let grant = roble_daemon::join::join(&Dialer::new(tls), &api.to_string(), token, name, key, &mut rng).await?;
    Ok(Joined {
        id: grant.id.parse().unwrap(),
        grant,
        key: key.to_pem().to_string(),
        clock,
    })
}

impl Joined {
    /// Key and chain.
    pub fn credential(&self) -> Credential {
        let mut chain = certificates_from_pem(self.grant.certificates.as_bytes()).unwrap();
        chain.extend(certificates_from_pem(self.grant.authority.as_bytes()).unwrap());
        Credential::new(PrivateKey::from_pem(self.key.as_bytes()).unwrap(), chain).unwrap()
    }

    /// The dialing side with the node's certificate.
    pub fn tls(&self, protocol: Protocol) -> ClientTls {
        let credential = self.credential();
        let cluster = Identity::cluster(&self.grant.cluster.to_string()).unwrap();
        ClientTls::trusting(cluster, &[credential.root().clone()], self.clock.clone())
            .credential(&credential)
            .protocol(protocol)
            .build()
            .unwrap()
    }
}

/// What a running node has seen.
#[derive(Default)]
pub struct Seen {
    pub connected: bool,
    pub sessions: u32,
    pub running: BTreeMap<String, Vec<u8>>,
    pub requests: Vec<Request>,
    pub downs: u32,
    /// How often the cluster said that it does not know this node.
    pub unknown: u32,
}

/// A node that is connected, or tries to be.
pub struct FakeNode {
    pub id: NodeId,
    pub seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Statuses<'a>(&'a BTreeMap<String, Vec<u8>>);

impl Source for Statuses<'_> {
    fn value(&self, _: SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
}

impl FakeNode {
    /// Connects with the identity it was given.
    pub fn start(joined: &Joined, name: &str) -> Self {
        let mut config = MqttConfig::new("127.0.0.1", joined.grant.link_port, joined.id, Branch::Engine);
        config.backoff = Backoff {
            base_ms: 20,
            cap_ms: 200,
        };
        let tls = joined.tls(Protocol::Raw);
        let transport = MqttTransport::start(
            config,
            Arc::new(move || Ok(tls.config())),
            Box::new(SmallRng::seed_from_u64(3)),
        );
        let seen = Arc::new(Mutex::new(Seen::default()));
        let room = Resources {
            cpu_millis: 4_000,
            memory_bytes: 1 << 30,
        };
        let profile = Profile {
            name: name.to_owned(),
            address: "192.0.2.7".to_owned(),
            virtualizations: vec!["container".to_owned()],
            offers: vec![Offer {
                labels: [(ARCH.to_owned(), "amd64".to_owned())].into(),
                count: 1,
                allocatable: room,
                largest_free: vec![room],
            }],
            software: "test".to_owned(),
            ..Profile::default()
        };
        let task = tokio::spawn(drive(transport, profile, seen.clone()));
        Self {
            id: joined.id,
            seen,
            task,
        }
    }
}

async fn drive(transport: MqttTransport, profile: Profile, seen: Arc<Mutex<Seen>>) {
    let mut rng = SmallRng::seed_from_u64(11);
    let clocks = ChildClocks {
        beat_ms: 200,
        silence_ms: 3_000,
    };
    let mut end = ChildEnd::new(clocks, u64::from_le_bytes(roble_daemon::rng::secret_bytes()), "test");
    end.set_profile(profile);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut statuses = BTreeMap::new();
    loop {
        let now = shell::now(&SystemClock);
        let mut outputs = tokio::select! {
            event = transport.next() => match event {
                TransportEvent::Up => { end.transport_up(now); Vec::new() }
                TransportEvent::Down { .. } => {
                    seen.lock().unwrap().downs += 1;
                    end.transport_down()
                }
                TransportEvent::Message(message) => end.receive(Frame::decode(message).unwrap(), &Statuses(&statuses), now),
            },
            _ = ticks.tick() => end.tick(now, &mut rng),
        };
        let mut send = Vec::new();
        for output in outputs.drain(..) {
            match output {
                ChildOutput::Send(frame) => send.push(frame),
                ChildOutput::Order { key, value } => {
                    let order = decode_assignment(&key, &value).unwrap();
                    let status = encode_status(&InstanceStatus::new(order.instance, order.version, Phase::Running));
                    end.set_status(&key, Some(&status));
                    statuses.insert(key, status);
                }
                ChildOutput::Withdraw(key) => {
                    end.set_status(&key, None);
                    statuses.remove(&key);
                }
                ChildOutput::Request(request) => seen.lock().unwrap().requests.push(request),
                ChildOutput::Connected(connected) => {
                    let mut seen = seen.lock().unwrap();
                    seen.connected = connected;
                    seen.sessions += u32::from(connected);
                }
                ChildOutput::Complete => {}
                ChildOutput::Unknown => seen.lock().unwrap().unknown += 1,
            }
        }
        for output in end.flush(&Statuses(&statuses)) {
            if let ChildOutput::Send(frame) = output {
                send.push(frame);
            }
        }
        seen.lock().unwrap().running.clone_from(&statuses);
        for frame in send {
            let _ = transport.send(frame.encode_to_vec().into()).await;
        }
    }
}

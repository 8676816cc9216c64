//! A cluster that runs whatever it is told to, over the real link.

use super::{Root, clock};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roble_core::labels::{ARCH, Labels};
use roble_core::placement::{Offer, Profile};
use roble_core::registry::JoinToken;
use roble_core::resources::Resources;
use roble_core::status::{InstanceStatus, Phase};
use roble_daemon::clock::SystemClock;
use roble_daemon::join::{JoinError, post};
use roble_daemon::pki::{
    Authority, Credential, Identity, Lifetimes, PrivateKey, VerifiedRequest, certificate_request_to_pem,
    certificates_from_pem,
};
use roble_daemon::shell::now;
use roble_daemon::tls::{ClientTls, Dialer, Protocol};
use roble_link::Source;
use roble_link::child::{ChildClocks, ChildEnd, ChildOutput};
use roble_proto::convert::{decode_assignment, encode_status};
use roble_proto::local_net::{About, Question};
use roble_proto::rest::{JoinGrant, JoinRequest};
use roble_proto::wire::link_client::LinkClient;
use roble_proto::wire::{self, request, response};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// The only join token that such a cluster has.
pub const TOKEN: &str = "0123456789abcdef01234567";

/// Asks to join with `key`.
pub async fn join(root: &Root, token: &str, name: &str, key: &PrivateKey) -> Result<JoinGrant, JoinError> {
    let token: JoinToken = token.parse().unwrap();
    let tls = ClientTls::pinned(Identity::Root, token.pin.parse().unwrap(), clock());
    let dialer = Dialer::new(tls.protocol(Protocol::Http).build().unwrap());
    let request = JoinRequest {
        token: token.id,
        secret: token.secret,
        name: name.to_owned(),
        csr: certificate_request_to_pem(&key.request().unwrap()),
    };
    post(&dialer, &root.api.to_string(), "/v1/join", &request).await
}

/// The cluster's own certificate, issued by the authority it was granted.
pub fn credential(grant: &JoinGrant, key: &PrivateKey) -> Credential {
    let chain = format!("{}{}", grant.certificates, grant.authority);
    let key = PrivateKey::from_pem(key.to_pem().as_bytes()).unwrap();
    let chain = certificates_from_pem(chain.as_bytes()).unwrap();
    let authority = Authority::new(key, chain, Lifetimes::default()).unwrap();
    let leaf = PrivateKey::generate().unwrap();
    let request = VerifiedRequest::parse(&leaf.request().unwrap()).unwrap();
    let issued = authority.issue_cluster(&grant.id, &request, clock().now()).unwrap();
    Credential::new(leaf, issued.chain).unwrap()
}

/// Dials with the cluster's certificate.
pub fn dialer(credential: &Credential, protocol: Protocol) -> Dialer {
    let tls = ClientTls::trusting(Identity::Root, &[credential.root().clone()], clock());
    Dialer::new(tls.credential(credential).protocol(protocol).build().unwrap())
}

/// A gRPC channel to the root's link.
pub async fn channel(root: &Root, credential: &Credential) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", root.link)).unwrap();
    endpoint
        .connect_with_connector(dialer(credential, Protocol::Http2).connector())
        .await
}

#[derive(Default)]
struct Statuses(BTreeMap<String, Vec<u8>>);

impl Source for Statuses {
    fn value(&self, _: wire::SetKind, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
}

/// Serves the link until it ends; returns why.
pub async fn serve(root: &Root, credential: &Credential, name: &str) -> tokio::task::JoinHandle<String> {
    serve_as(7, root, credential, name).await
}

/// As [`serve`], as the process of this number.
pub async fn serve_as(
    process: u64,
    root: &Root,
    credential: &Credential,
    name: &str,
) -> tokio::task::JoinHandle<String> {
    let channel = channel(root, credential).await.unwrap();
    let name = name.to_owned();
    tokio::spawn(async move {
        match run(process, channel, &name).await {
            Ok(()) => "ended".to_owned(),
            Err(status) => status.to_string(),
        }
    })
}

async fn run(process: u64, channel: Channel, name: &str) -> Result<(), tonic::Status> {
    let mut client = LinkClient::new(channel);
    let (sender, frames) = mpsc::channel(64);
    let mut rng = StdRng::from_os_rng();
    let clocks = ChildClocks {
        beat_ms: 200,
        silence_ms: 10_000,
    };
    let mut end = ChildEnd::new(clocks, process, "test");
    end.set_profile(profile(name));
    end.transport_up(now(&SystemClock));
    let mut incoming = client.session(ReceiverStream::new(frames)).await?.into_inner();
    let mut statuses = Statuses::default();
    loop {
        let mut outputs = tokio::select! {
            frame = incoming.message() => match frame? {
                Some(frame) => end.receive(frame, &statuses, now(&SystemClock)),
                None => return Ok(()),
            },
            () = tokio::time::sleep(Duration::from_millis(20)) => end.tick(now(&SystemClock), &mut rng),
        };
        for output in outputs.clone() {
            match output {
                ChildOutput::Order { key, value } => {
                    let order = decode_assignment(&key, &value).unwrap();
                    let status = InstanceStatus::new(order.instance, order.version, Phase::Running);
                    let status = encode_status(&status);
                    end.set_status(&key, Some(&status));
                    statuses.0.insert(key, status);
                }
                ChildOutput::Withdraw(key) => {
                    statuses.0.remove(&key);
                    end.set_status(&key, None);
                }
                ChildOutput::Request(asked) => {
                    let json = match asked.what {
                        Some(request::What::OpenStream(open)) => {
                            tokio::spawn(log(client.clone(), open));
                            serde_json::json!({})
                        }
                        Some(request::What::AskNet(ask)) => departure(&ask),
                        Some(request::What::ListTokens(_)) => serde_json::json!([{
                            "id": TOKEN, "kind": "node", "cluster": name, "expires_at": 0, "needs_approval": false,
                            "name": null, "used": false, "reuse_attempts": 0
                        }]),
                        Some(request::What::DeleteToken(delete)) => {
                            serde_json::json!({"deleted": [delete.token], "remaining_instances": 0})
                        }
                        _ => serde_json::json!({}),
                    };
                    outputs.extend(end.respond(asked.id, response::What::Json(json.to_string().into_bytes())));
                }
                _ => {}
            }
        }
        outputs.extend(end.flush(&statuses));
        for output in outputs {
            if let ChildOutput::Send(frame) = output
                && sender.send(frame).await.is_err()
            {
                return Ok(());
            }
        }
    }
}

/// What a net manager says that has given the instance no network yet.
fn departure(ask: &wire::AskNet) -> serde_json::Value {
    let question: Question = serde_json::from_slice(&ask.question).unwrap();
    assert_eq!(question.instance.to_string(), ask.instance);
    assert!(matches!(question.about, About::Leaving { .. }), "{question:?}");
    serde_json::json!({"address": null, "turned": [], "knowledge": "known", "ways": [], "findings": []})
}

/// A log of `tail` lines (3 if all are wanted); one that fails at the end if 99 are wanted.
async fn log(mut client: LinkClient<Channel>, open: wire::OpenStream) {
    let tail = open.logs.unwrap_or_default().tail.unwrap_or(3);
    let (sender, frames) = mpsc::channel(4);
    let sending = client.stream(ReceiverStream::new(frames));
    let lines = async move {
        for line in 0..tail {
            let frame = wire::StreamFrame {
                stream: if line == 0 { open.stream.clone() } else { String::new() },
                data: format!("line {line}\n").into_bytes(),
                failure: None,
            };
            if sender.send(frame).await.is_err() {
                return;
            }
        }
        if tail == 99 {
            let failure = Some(wire::Failure {
                code: "gone".to_owned(),
                message: "the log is gone".to_owned(),
            });
            let _ = sender
                .send(wire::StreamFrame {
                    failure,
                    ..Default::default()
                })
                .await;
        }
    };
    let _ = tokio::join!(sending, lines);
}

fn profile(name: &str) -> Profile {
    let room = Resources {
        cpu_millis: 8_000,
        memory_bytes: 16 << 30,
    };
    let labels = Labels::from_iter([(ARCH.to_owned(), "amd64".to_owned())]);
    Profile {
        name: name.to_owned(),
        virtualizations: vec!["container".to_owned()],
        offers: vec![Offer {
            labels,
            count: 3,
            allocatable: room,
            largest_free: vec![room; 3],
        }],
        software: "test".to_owned(),
        ..Profile::default()
    }
}

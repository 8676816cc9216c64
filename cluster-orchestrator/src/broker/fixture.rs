//! A cluster's authority and the certificates it gave, for tests over real TLS.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use roble_core::backoff::Backoff;
use roble_core::ids::{ClusterId, NodeId, RawId};
use roble_daemon::clock::{Clock, SystemClock, VerifierClock};
use roble_daemon::pki::{Authority, Credential, Identity, Lifetimes, PrivateKey, VerifiedRequest};
use roble_daemon::tls::{ClientTls, Protocol, ServerTls};
use roble_link::mqtt::{MqttConfig, MqttTransport, TlsSource};
use roble_proto::topics::Branch;

/// A root, one cluster below it, and whoever that cluster certifies.
pub(super) struct Tree {
    pub(super) cluster: ClusterId,
    root: Authority,
    authority: Authority,
    clock: Arc<VerifierClock>,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    pub(super) fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let clock = Arc::new(VerifierClock::volatile(clock));
        let (now, lifetimes) = (clock.now(), Lifetimes::default());
        let cluster = ClusterId(RawId::from_bytes([0xcc; 12]));
        let root = Authority::create_root(now, lifetimes).unwrap();
        let authority = Self::authority_below(&root, cluster, now);
        Self {
            cluster,
            root,
            authority,
            clock,
        }
    }

    fn authority_below(root: &Authority, cluster: ClusterId, now: u64) -> Authority {
        let key = PrivateKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
        let issued = root
            .issue_cluster_authority(&cluster.to_string(), &request, now)
            .unwrap();
        Authority::new(key, issued.chain, Lifetimes::default()).unwrap()
    }

    pub(super) fn node(&self, node: NodeId) -> Credential {
        self.certify(&self.authority, node)
    }

    /// A node of this id in another cluster of the same root.
    pub(super) fn foreign_node(&self, node: NodeId) -> Credential {
        let elsewhere = ClusterId(RawId::from_bytes([0xdd; 12]));
        self.certify(&Self::authority_below(&self.root, elsewhere, self.clock.now()), node)
    }

    fn certify(&self, authority: &Authority, node: NodeId) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
        let issued = authority
            .issue_node(&node.to_string(), &request, self.clock.now())
            .unwrap();
        Credential::new(key, issued.chain).unwrap()
    }

    /// A new certificate of the cluster itself.
    pub(super) fn cluster(&self) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.request().unwrap()).unwrap();
        let issued = self
            .authority
            .issue_cluster(&self.cluster.to_string(), &request, self.clock.now())
            .unwrap();
        Credential::new(key, issued.chain).unwrap()
    }

    pub(super) fn server(&self) -> ServerTls {
        ServerTls::builder(&self.cluster(), self.clock.clone())
            .protocol(Protocol::Raw)
            .build()
            .unwrap()
    }

    /// The dialing side with this certificate.
    pub(super) fn client(&self, credential: &Credential) -> ClientTls {
        let server = Identity::cluster(&self.cluster.to_string()).unwrap();
        let roots = [self.authority.root().clone()];
        let builder = ClientTls::trusting(server, &roots, self.clock.clone());
        builder.credential(credential).protocol(Protocol::Raw).build().unwrap()
    }

    pub(super) fn source(&self, credential: &Credential) -> TlsSource {
        let tls = self.client(credential);
        Arc::new(move || Ok(tls.config()))
    }

    /// A node that dials a broker at this port of this machine, and comes back fast.
    pub(super) fn transport(&self, port: u16, node: NodeId, branch: Branch) -> MqttTransport {
        self.dial(MqttConfig::new("127.0.0.1", port, node, branch))
    }

    /// As [`transport`](Self::transport), with other settings.
    pub(super) fn dial(&self, mut config: MqttConfig) -> MqttTransport {
        let node = config.node;
        config.backoff = Backoff {
            base_ms: 20,
            cap_ms: 200,
        };
        MqttTransport::start(
            config,
            self.source(&self.node(node)),
            Box::new(SmallRng::seed_from_u64(1)),
        )
    }

    /// The root's certificate, as PEM.
    pub(super) fn root_pem(&self) -> String {
        roble_daemon::pki::certificates_to_pem(&[self.authority.root().clone()])
    }
}

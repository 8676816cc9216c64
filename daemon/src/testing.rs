//! A small tree of authorities and certificates for the tests of this crate.

use std::sync::Arc;

use crate::clock::{ManualClock, VerifierClock};
use crate::pki::{Authority, Credential, Identity, Lifetimes, PrivateKey, VerifiedRequest};
use crate::tls::{ClientTls, ClientTlsBuilder, ServerTls, ServerTlsBuilder};

/// Where the clocks of the tests start: January 2027.
pub(crate) const NOW: u64 = 1_800_000_000_000;
pub(crate) const DAY: u64 = 24 * 3_600_000;

pub(crate) fn id(digit: &str) -> String {
    digit.repeat(24)
}

/// A root authority with a clock.
pub(crate) struct Tree {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) verifier: Arc<VerifierClock>,
    pub(crate) root: Authority,
}

/// A cluster below it.
pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    id: String,
    key: String,
    root_chain: Vec<rustls_pki_types::CertificateDer<'static>>,
}

fn certify(
    issue: impl FnOnce(&VerifiedRequest) -> Vec<rustls_pki_types::CertificateDer<'static>>,
) -> (PrivateKey, Vec<rustls_pki_types::CertificateDer<'static>>) {
    let key = PrivateKey::generate().unwrap();
    let chain = issue(&VerifiedRequest::parse(&key.request().unwrap()).unwrap());
    (key, chain)
}

impl Tree {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let verifier = Arc::new(VerifierClock::with_floor(clock.clone(), None, 0));
        Self {
            clock,
            verifier,
            root: Authority::create_root(NOW, Lifetimes::default()).unwrap(),
        }
    }

    pub(crate) fn root_credential(&self) -> Credential {
        let (key, chain) = certify(|request| self.root.issue_root(&[], request, NOW).unwrap().chain);
        Credential::new(key, chain).unwrap()
    }

    pub(crate) fn cluster(&self, digit: &str) -> Cluster {
        let id = id(digit);
        let (key, chain) = certify(|request| self.root.issue_cluster_authority(&id, request, NOW).unwrap().chain);
        let authority = Authority::new(key, chain, Lifetimes::default()).unwrap();
        let (key, root_chain) = certify(|request| authority.issue_cluster(&id, request, NOW).unwrap().chain);
        Cluster {
            authority,
            id,
            key: key.to_pem().to_string(),
            root_chain,
        }
    }

    pub(crate) fn server<'a>(&self, credential: &'a Credential) -> ServerTlsBuilder<'a> {
        ServerTls::builder(credential, self.verifier.clone()).trust([self.root.root().clone()])
    }

    pub(crate) fn client<'a>(&self, server: Identity) -> ClientTlsBuilder<'a> {
        ClientTls::trusting(server, &[self.root.root().clone()], self.verifier.clone())
    }
}

impl Cluster {
    pub(crate) fn identity(&self) -> Identity {
        Identity::cluster(&self.id).unwrap()
    }

    /// The same each time.
    pub(crate) fn credential(&self) -> Credential {
        Credential::new(
            PrivateKey::from_pem(self.key.as_bytes()).unwrap(),
            self.root_chain.clone(),
        )
        .unwrap()
    }

    pub(crate) fn node(&self, digit: &str) -> Credential {
        let (key, chain) = certify(|request| self.authority.issue_node(&id(digit), request, NOW).unwrap().chain);
        Credential::new(key, chain).unwrap()
    }

    /// A certificate for any name, signed with this cluster's key without asking whether it may.
    pub(crate) fn forge(&self, name: &str) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let chain = self.authority.sign_anything(&params, &key);
        Credential::new(key, chain).unwrap()
    }
}

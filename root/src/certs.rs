//! The root authority, and the server's certificate: issued at every start and again while running, always in time.

use crate::config::Settings;
use roble_daemon::CancellationToken;
use roble_daemon::clock::VerifierClock;
use roble_daemon::pki::{Authority, Credential, ExtraName, Identity, Lifetimes, PkiError, PrivateKey, VerifiedRequest};
use roble_daemon::tls::{ClientAuth, Protocol, Revocations, ServerTls, TlsError};
use std::sync::Arc;
use std::time::Duration;

/// Between looks at the certificate and writes of the time.
const ROUND: Duration = Duration::from_secs(3_600);

/// The authority with what is needed to serve under it.
#[derive(Debug)]
pub struct Certificates {
    authority: Arc<Authority>,
    names: Vec<ExtraName>,
    clock: Arc<VerifierClock>,
    current: Credential,
}

impl Certificates {
    /// Takes the authority in the state folder, or makes it, and issues a certificate for the server.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn new(settings: &Settings, clock: Arc<VerifierClock>) -> Result<Self, PkiError> {
        let path = settings.state_dir.join("authority.pem");
        let authority = Arc::new(Authority::load_or_create_root(
            &path,
            clock.now(),
            Lifetimes::default(),
        )?);
        let local = ["localhost", "127.0.0.1", "::1"];
        let mut names: Vec<&str> = settings.advertise.iter().map(String::as_str).chain(local).collect();
        names.sort_unstable();
        names.dedup();
        let names: Vec<ExtraName> = names.into_iter().map(ExtraName::from).collect();
        let current = issue(&authority, &names, &clock)?;
        Ok(Self {
            authority,
            names,
            clock,
            current,
        })
    }

    /// The authority.
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// TLS for users and joining clusters: a certificate is checked if shown, and must be a cluster's.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn api(&self, revocations: Arc<Revocations>) -> Result<ServerTls, TlsError> {
        self.server(revocations, ClientAuth::Optional, Protocol::Http)
    }

    /// TLS for links: a cluster's certificate is required.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn link(&self, revocations: Arc<Revocations>) -> Result<ServerTls, TlsError> {
        self.server(revocations, ClientAuth::Required, Protocol::Http2)
    }

    fn server(
        &self,
        revocations: Arc<Revocations>,
        clients: ClientAuth,
        protocol: Protocol,
    ) -> Result<ServerTls, TlsError> {
        ServerTls::builder(&self.current, self.clock.clone())
            .clients(clients)
            .accept(|identity| matches!(identity, Identity::Cluster(_)))
            .revocations(revocations)
            .protocol(protocol)
            .build()
    }

    /// Renews the certificate of `servers` in time, and keeps the time for the next start, until `stop`.
    pub async fn keep(mut self, servers: Vec<ServerTls>, stop: CancellationToken) {
        loop {
            if let Err(error) = self.clock.persist() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "time not kept for the next start"
                );
            }
            let due = Duration::from_millis(self.current.renew_at().saturating_sub(self.clock.now()));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due.clamp(Duration::from_secs(60), ROUND)) => {}
            }
            if self.clock.now() < self.current.renew_at() {
                continue;
            }
            match issue(&self.authority, &self.names, &self.clock) {
                Ok(credential) => {
                    self.current = credential;
                    for server in &servers {
                        if let Err(error) = server.swap(&self.current) {
                            tracing::error!(error = &error as &dyn std::error::Error, "new certificate not shown");
                        }
                    }
                    tracing::info!("server certificate renewed");
                }
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "server certificate not renewed"
                ),
            }
        }
    }
}

fn issue(authority: &Authority, names: &[ExtraName], clock: &VerifierClock) -> Result<Credential, PkiError> {
    let key = PrivateKey::generate()?;
    let request = VerifiedRequest::parse(&key.request()?)?;
    Credential::new(key, authority.issue_root(names, &request, clock.now())?.chain)
}

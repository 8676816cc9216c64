//! Mosquitto as a peer: plain and over TLS with certificates of clients, on ports of its own, nothing stored.

use crate::probe;
use crate::process::Owned;
use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::PrivateKeyDer;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

const PLAIN_PORT: u16 = 18_830;
const TLS_PORT: u16 = 18_831;

/// How to start it and reach it.
pub struct Mosquitto {
    _folder: TempDir,
    plain: PathBuf,
    secure: PathBuf,
    tls: Arc<ClientConfig>,
}

impl Mosquitto {
    /// Writes keys, certificates (P-256, as ours) and configurations.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("roble-bench-peer-").tempdir()?;
        let file = |name: &str| folder.path().join(name);
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // With the same name as its leaves it would be taken for their equal.
        params.distinguished_name.push(DnType::CommonName, "bench authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let server_key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["bench".to_owned()])?.signed_by(&server_key, &authority)?;
        let client_key = KeyPair::generate()?;
        let client = CertificateParams::new(vec!["client".to_owned()])?.signed_by(&client_key, &authority)?;
        std::fs::write(file("ca.pem"), authority.pem())?;
        std::fs::write(file("server.pem"), server.pem())?;
        std::fs::write(file("server.key"), server_key.serialize_pem())?;
        // As root it would put itself under another user, who cannot read our folder. Without the last word its CONNACK
        // waits 40 ms for the client's acknowledgement of the handshake.
        let common = "user root\npersistence false\nallow_anonymous true\nset_tcp_nodelay true\n";
        std::fs::write(file("plain.conf"), format!("{common}listener {PLAIN_PORT}\n"))?;
        let at = folder.path().display();
        let secure = format!(
            "{common}listener {TLS_PORT}\ncafile {at}/ca.pem\ncertfile {at}/server.pem\nkeyfile {at}/server.key\n\
             require_certificate true\n"
        );
        std::fs::write(file("tls.conf"), secure)?;
        let key = PrivateKeyDer::try_from(client_key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Self {
            plain: file("plain.conf"),
            secure: file("tls.conf"),
            tls: probe::client(Some((vec![client.der().clone()], key)))?,
            _folder: folder,
        })
    }

    /// Starts it without TLS and says after how many milliseconds it accepted a client.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_plain(&self) -> anyhow::Result<(Owned, f64)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PLAIN_PORT));
        self.start(&self.plain, || probe::mqtt(None, address, "bench"))
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_tls(&self) -> anyhow::Result<(Owned, f64)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, TLS_PORT));
        self.start(&self.secure, || probe::mqtt(Some(&self.tls), address, "bench"))
    }

    fn start(&self, config: &PathBuf, attempt: impl FnMut() -> std::io::Result<()>) -> anyhow::Result<(Owned, f64)> {
        let started = Instant::now();
        let process = Owned::start(Command::new("mosquitto").arg("-c").arg(config))?;
        let ms = probe::first(started, attempt).context("mosquitto")?;
        Ok((process, ms))
    }
}

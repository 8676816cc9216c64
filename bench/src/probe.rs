//! First right answers: HTTP over TLS or a Unix socket, CONNACK over TCP or TLS. Each try is a connection of its own.

use anyhow::bail;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries: small against what is measured, long enough to leave the processor to the daemon.
const PAUSE: Duration = Duration::from_micros(250);

/// Milliseconds from `started` to the first try that succeeds.
///
/// # Errors
/// None succeeds.
pub fn first(started: Instant, mut attempt: impl FnMut() -> io::Result<()>) -> anyhow::Result<f64> {
    loop {
        match attempt() {
            Ok(()) => return Ok(started.elapsed().as_secs_f64() * 1e3),
            Err(error) if started.elapsed() > PATIENCE => bail!("no answer within {} s: {error}", PATIENCE.as_secs()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// TLS without a look at who answers: these are our own processes, and the check would cost the asker only.
///
/// # Errors
/// The certificate does not fit its key.
pub fn client(
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    Ok(Arc::new(match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    }))
}

/// GET over TLS that must be answered with 200.
///
/// # Errors
/// It is not.
pub fn https(tls: &Arc<ClientConfig>, address: SocketAddr, path: &str) -> io::Result<()> {
    get(secure(tls, address)?, path)
}

/// GET over a Unix socket that must be answered with 200.
///
/// # Errors
/// It is not.
pub fn unix(socket: &Path, path: &str) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    get(stream, path)
}

/// CONNECT that must be accepted, over TLS if there is a configuration.
///
/// # Errors
/// It is not.
pub fn mqtt(tls: Option<&Arc<ClientConfig>>, address: SocketAddr, client_id: &str) -> io::Result<()> {
    match tls {
        Some(tls) => connect(secure(tls, address)?, client_id),
        None => connect(plain(address)?, client_id),
    }
}

fn plain(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn secure(tls: &Arc<ClientConfig>, address: SocketAddr) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let connection = ClientConnection::new(tls.clone(), ServerName::IpAddress(address.ip().into()));
    Ok(StreamOwned::new(connection.map_err(io::Error::other)?, plain(address)?))
}

fn get(mut stream: impl Read + Write, path: &str) -> io::Result<()> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    match &status {
        b"HTTP/1.1 200" => Ok(()),
        _ => Err(io::Error::other(String::from_utf8_lossy(&status).into_owned())),
    }
}

fn connect(mut stream: impl Read + Write, client_id: &str) -> io::Result<()> {
    stream.write_all(&connect_packet(client_id))?;
    stream.flush()?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    match answer {
        [0x20, 2, _, 0] => Ok(()),
        _ => Err(io::Error::other(format!("CONNACK is {answer:?}"))),
    }
}

/// MQTT 3.1.1, clean session, keep-alive 60 s.
fn connect_packet(client_id: &str) -> Vec<u8> {
    let mut rest = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60];
    rest.extend([0, client_id.len() as u8]);
    rest.extend(client_id.as_bytes());
    let mut packet = vec![0x10, rest.len() as u8];
    packet.extend(rest);
    packet
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_packet_is_what_the_standard_says() {
        assert_eq!(connect_packet("ab"), b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab");
    }
}

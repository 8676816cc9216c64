//! Which authority is trusted, and TLS made from it.
//!
//! At login nothing is known but, perhaps, the authority's pin. So the first connection is a probe: it takes whatever
//! chain is shown, sends nothing and closes. The authority found in that chain is compared with the pin (or shown to a
//! person), and only then a second connection is made, which verifies the chain against exactly this authority and the
//! name `root.roble.internal`. A man in the middle gains nothing between the two.

use crate::failure::Failure;
use anyhow::Context as _;
use roble_daemon::clock::{SystemClock, VerifierClock};
use roble_daemon::pki::{Identity, Pin};
use roble_daemon::tls::{ClientTls, Probe, Protocol, with_pin};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::time::Duration;

/// `https://host:port` from what a person types: the scheme and port 10000 may be left out.
///
/// # Errors
/// [`Failure::Usage`], also for `http://`.
pub fn normal_url(text: &str) -> Result<String, Failure> {
    let bad = |why: &str| {
        Failure::Usage(format!(
            "`{text}` is not the URL of a root: {why}, e.g. https://root.example:10000"
        ))
    };
    if text.starts_with("http://") {
        return Err(bad("it is https only"));
    }
    let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) || rest.chars().any(char::is_control) {
        return Err(bad("only host and port expected"));
    }
    // A bare IPv6 address has more than one colon and no brackets.
    let rest = match rest.matches(':').count() {
        2.. if !rest.starts_with('[') => format!("[{rest}]"),
        _ => rest.to_owned(),
    };
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let full = match has_port {
        true => format!("https://{rest}"),
        false => format!("https://{rest}:{}", roble_proto::limits::ROOT_API_PORT),
    };
    let parsed = reqwest::Url::parse(&full).map_err(|error| bad(&error.to_string()))?;
    match (parsed.host_str(), parsed.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("https://{host}:{port}")),
        _ => Err(bad("host and port expected")),
    }
}

/// TLS towards the root under these authorities, whatever address is dialed.
///
/// # Errors
/// The PEM text holds no usable certificate.
pub fn tls(authority: &[u8]) -> Result<rustls::ClientConfig, Failure> {
    let roots = roble_daemon::pki::certificates_from_pem(authority).context("the trusted authority")?;
    let clock = Arc::new(VerifierClock::volatile(Arc::new(SystemClock)));
    let tls = ClientTls::trusting(Identity::Root, &roots, clock)
        .protocol(Protocol::Http)
        .build()
        .context("set up TLS")?;
    Ok((*tls.config()).clone())
}

/// The authority in a presented chain.
#[derive(Debug)]
pub struct Authority {
    /// Its certificate, PEM.
    pub pem: String,
    /// SHA-256 of its public key.
    pub pin: Pin,
}

/// Fetches the chain that the server at `url` shows, sends nothing, and returns the authority at its end; with `pin`,
/// the certificate of the chain that has it.
///
/// # Errors
/// [`Failure::Unreachable`]; [`Failure::Refused`] if the pin is not in the chain.
pub async fn probe(url: &str, pin: Option<Pin>, timeout: Duration) -> Result<Authority, Failure> {
    let probe = Probe::new().context("set up TLS")?;
    let client = crate::api::https::client(probe.config(), timeout)?;
    let refused = client.head(url).send().await;
    let chain = probe.into_chain();
    if chain.is_empty() {
        return match refused {
            Err(error) => Err(crate::api::https::unreachable(url, &error)),
            Ok(_) => Err(Failure::other("the server showed no certificate")),
        };
    }
    authority_of(&chain, pin, url)
}

fn authority_of(chain: &[CertificateDer<'static>], pin: Option<Pin>, url: &str) -> Result<Authority, Failure> {
    // Not the server's own certificate: an authority stands above it.
    let authorities = chain.get(1..).unwrap_or_default();
    let Some(last) = authorities.last() else {
        return Err(Failure::Refused {
            what: format!("{url} shows no authority beside its certificate"),
            help: "is this the API of a Roble root? Its default port is 10000".into(),
        });
    };
    let shown = Pin::of_certificate(last).context("read the presented chain")?;
    let (certificate, pin) = match pin {
        None => (last, shown),
        Some(pin) => match with_pin(authorities, &pin) {
            Some(certificate) => (certificate, pin),
            None => {
                return Err(Failure::Refused {
                    what: format!("{url} is not under the pinned authority\n  pinned: {pin}\n  shown:  {shown}"),
                    help: "nothing was sent. Either the root was set up anew (then log in with the --pin that it \
                           printed), or somebody stands between you and it"
                        .into(),
                });
            }
        },
    };
    let pem = roble_daemon::pki::certificates_to_pem(std::slice::from_ref(certificate));
    Ok(Authority { pem, pin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_completed_and_never_plain() {
        for (given, full) in [
            ("root.example", "https://root.example:10000"),
            ("https://10.0.0.1:443/", "https://10.0.0.1:443"),
            ("[fd00::1]:9", "https://[fd00::1]:9"),
            ("fd00::1", "https://[fd00::1]:10000"),
            ("https://root.example", "https://root.example:10000"),
        ] {
            assert_eq!(normal_url(given).unwrap(), full);
        }
        for bad in [
            "",
            "http://root",
            "https://",
            "a b",
            "root/path",
            "user@root",
            "root:99999",
        ] {
            assert!(normal_url(bad).is_err(), "{bad}");
        }
    }
}

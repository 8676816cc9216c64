//! [`Api`] over HTTPS, and what a failed connection probably means.

use super::{Answer, Api, Request};
use crate::context::Target;
use crate::failure::Failure;
use anyhow::Context as _;
use futures_util::StreamExt as _;
use rustls::CertificateError;
use std::error::Error;
use std::io;
use std::time::Duration;

/// A root over HTTPS.
pub struct Https {
    client: reqwest::Client,
    url: String,
    token: Option<String>,
    timeout: Duration,
}

/// HTTP over this TLS: direct (no proxy from the environment), no redirects.
pub(crate) fn client(tls: rustls::ClientConfig, timeout: Duration) -> Result<reqwest::Client, Failure> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(Duration::from_secs(10)))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .user_agent(concat!("roble/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(client.context("set up HTTPS")?)
}

impl Https {
    /// The root of `target`, authenticated. `timeout`: for one request that is not a stream.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn new(target: &Target, timeout: Duration) -> Result<Self, Failure> {
        let mut this = Self::without_token(&target.url, &target.authority, timeout)?;
        this.token = Some(target.token.clone());
        Ok(this)
    }

    /// The root at `url` under `authority` (PEM), before there is a session.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn without_token(url: &str, authority: &[u8], timeout: Duration) -> Result<Self, Failure> {
        Ok(Self {
            client: client(crate::trust::tls(authority)?, timeout)?,
            url: url.to_owned(),
            token: None,
            timeout,
        })
    }
}

#[async_trait::async_trait]
impl Api for Https {
    async fn send(&self, request: Request) -> Result<Answer, Failure> {
        let mut builder = self
            .client
            .request(request.method, format!("{}{}", self.url, request.path));
        if let Some(token) = &self.token {
            builder = builder.bearer_auth(token);
        }
        if let Some((kind, body)) = request.body {
            builder = builder.header(http::header::CONTENT_TYPE, kind).body(body);
        }
        if !request.is_stream {
            builder = builder.timeout(self.timeout);
        }
        let response = builder.send().await.map_err(|error| unreachable(&self.url, &error))?;
        let (status, url) = (response.status().as_u16(), self.url.clone());
        let body = response
            .bytes_stream()
            .map(move |piece| piece.map_err(|error| unreachable(&url, &error)))
            .boxed();
        Ok(Answer { status, body })
    }

    fn url(&self) -> &str {
        &self.url
    }
}

/// What a failed request means, for people.
pub(crate) fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    let found = Cause::of(error);
    if let Some(Cause::Tls(tls)) = &found
        && let Some(refused) = refused(url, tls)
    {
        return refused;
    }
    let (cause, help) = match found {
        Some(Cause::Tls(tls)) => (
            format!("TLS: {tls}"),
            "something else than a Roble root seems to listen there; its API has port 10000 by default".to_owned(),
        ),
        Some(Cause::Io(io::ErrorKind::ConnectionRefused)) => (
            "connection refused".to_owned(),
            "nothing listens there: does roble-root run, and is the port right (10000 by default)?".to_owned(),
        ),
        Some(Cause::Io(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)) => (
            "no route to it".to_owned(),
            "is this machine's network up, and the address right?".to_owned(),
        ),
        _ if error.is_timeout() => (
            "no answer in time".to_owned(),
            "the host may be off, or a firewall drops the packets; --request-timeout gives it longer".to_owned(),
        ),
        Some(Cause::Name) => (
            "the host name is not known".to_owned(),
            "is it spelt right, and does this machine have DNS?".to_owned(),
        ),
        _ if error.is_body() || error.is_decode() => (
            "the connection broke off".to_owned(),
            "the root or the network went away in the middle; try again".to_owned(),
        ),
        _ => (chain(error), String::new()),
    };
    Failure::Unreachable {
        address: url.to_owned(),
        cause,
        help,
    }
}

fn refused(url: &str, error: &rustls::Error) -> Option<Failure> {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return None;
    };
    let (why, help) = match certificate {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is not from the authority pinned at login: the authority has changed",
            "nothing was sent. If the root was set up anew, log in again with the --pin that it printed; if not, \
             somebody may stand between you and it",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "its certificate has expired",
            "is the clock of this machine right? The root renews its certificate by itself while it runs",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "its certificate is not valid yet",
            "the clock of this machine seems to be behind",
        ),
        _ => (
            "it does not prove to be root.roble.internal",
            "it may be another member of the tree: is this the address of the root's API?",
        ),
    };
    Some(Failure::Refused {
        what: format!("{url} is not trusted: {why} ({error})"),
        help: help.to_owned(),
    })
}

/// What lies at the bottom of an error, as far as it is told apart.
enum Cause {
    Tls(rustls::Error),
    Io(io::ErrorKind),
    Name,
}

impl Cause {
    fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        let mut found = None;
        while let Some(error) = next {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::Tls(tls.clone()));
            }
            let io = error.downcast_ref::<io::Error>();
            found = found.or(io.map(|io| Self::Io(io.kind())));
            // Name lookup has no type of its own in the HTTP client.
            if error.to_string().contains("dns error") {
                return Some(Self::Name);
            }
            // `source` of an I/O error skips the error that it wraps.
            let wrapped = io
                .and_then(io::Error::get_ref)
                .map(|inner| inner as &(dyn Error + 'static));
            next = wrapped.or_else(|| error.source());
        }
        found
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

//! How a machine gets its identity from the tier above, and keeps it: the same for a cluster at the root and a node at a
//! cluster. The key never leaves the machine; the pin in the token is checked before the token is shown.

use crate::config::{Config, Kind, Setting};
use crate::failpoint;
use crate::files::{self, FileError};
use crate::pki::{Pin, PkiError, PrivateKey, certificate_request_to_pem};
use crate::tls::{DialError, Dialer};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rand::RngCore;
use roble_core::backoff::Backoff;
use roble_core::registry::{JoinToken, MemberState, ParseTokenError, TokenKind};
use roble_proto::rest::{ErrorBody, JoinGrant, JoinRequest, MemberAnswer, RenewRequest};
use std::path::PathBuf;
use std::time::Duration;

/// Largest answer that is read, bytes.
const ANSWER_BYTES: usize = 256 * 1024;
/// Time for one try.
const TRY: Duration = Duration::from_secs(15);
/// Waits between tries while a person has not approved, or the other side does not answer.
const WAIT: Backoff = Backoff {
    base_ms: 1_000,
    cap_ms: 15_000,
};

/// Longest file with a token that is read, bytes.
const TOKEN_BYTES: u64 = 4 * 1024;

/// By what a machine joins; the same for a cluster and a node.
pub static SETTINGS: &[Setting] = &[
    Setting::new(
        "join",
        Kind::String,
        "join token, for the first start; made by `roble token create`",
    )
    .secret(),
    Setting::new(
        "join_file",
        Kind::Path,
        "file with the join token, which then stands neither on the command line nor in the environment",
    ),
];

/// Where the join token is, as the settings say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// Nowhere: this machine has joined before.
    #[default]
    Nowhere,
    /// It was given itself.
    Given(JoinToken),
    /// In this file, which is read only if the machine has not joined: it may be gone later.
    File(PathBuf),
}

/// Why a join token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is none.
    #[error(transparent)]
    Parse(#[from] ParseTokenError),
    /// For something else.
    #[error("this token lets a {0} join; make one with `roble token create {1}`")]
    Kind(TokenKind, TokenKind),
    /// Two places.
    #[error("give `join` or `join_file`, not both")]
    Both,
    /// No such file.
    #[error("there is no file {0}")]
    NoFile(PathBuf),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TokenSource {
    /// As set with [`SETTINGS`]. `kind`: what this machine is.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn of(config: &Config, kind: TokenKind) -> Result<Self, TokenError> {
        let text = config.try_string("join").filter(|text| !text.is_empty());
        match (text, config.try_path("join_file")) {
            (Some(_), Some(_)) => Err(TokenError::Both),
            (Some(text), None) => token(text, kind).map(Self::Given),
            (None, Some(path)) => Ok(Self::File(path.to_owned())),
            (None, None) => Ok(Self::Nowhere),
        }
    }

    /// The token, if there is one. `kind`: what this machine is.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(&self, kind: TokenKind) -> Result<Option<JoinToken>, TokenError> {
        match self {
            Self::Nowhere => Ok(None),
            Self::Given(token) => Ok(Some(token.clone())),
            Self::File(path) => {
                let bytes = files::read_optional(path, TOKEN_BYTES)?.ok_or_else(|| TokenError::NoFile(path.clone()))?;
                token(&String::from_utf8_lossy(&bytes), kind).map(Some)
            }
        }
    }
}

fn token(text: &str, kind: TokenKind) -> Result<JoinToken, TokenError> {
    let token: JoinToken = text.trim().parse()?;
    if token.kind == kind {
        Ok(token)
    } else {
        Err(TokenError::Kind(token.kind, kind))
    }
}

/// Why an identity could not be had.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection, or the other side is not the one that the token names.
    #[error("connect to {address}")]
    Dial {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: DialError,
    },
    /// The connection broke or the answer was not understood.
    #[error("talk to {address}: {detail}")]
    Talk {
        /// With whom.
        address: String,
        /// What happened.
        detail: String,
    },
    /// The other side said no.
    #[error("refused by {address}: {} ({})", body.message, body.code)]
    Refused {
        /// Who.
        address: String,
        /// HTTP status.
        status: u16,
        /// Why.
        body: ErrorBody,
    },
    /// The own key cannot be used.
    #[error("make a certificate request")]
    Key(#[from] PkiError),
}

impl JoinError {
    /// Whether another try may help: nobody answered, or the other side was not itself.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Dial { source, .. } => !matches!(source, DialError::Handshake { .. }),
            Self::Talk { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Key(_) => false,
        }
    }
}

/// Sends JSON and reads JSON, over a connection of its own.
///
/// # Errors
/// [`JoinError`].
pub async fn post<B: serde::Serialize, A: serde::de::DeserializeOwned>(
    dialer: &Dialer,
    address: &str,
    path: &str,
    body: &B,
) -> Result<A, JoinError> {
    let body = serde_json::to_vec(body).map_err(|error| JoinError::Talk {
        address: address.to_owned(),
        detail: error.to_string(),
    })?;
    let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
    exchange(dialer, address, request, body).await
}

/// What the holder of `key` is to the side at `address`; `None`: it knows no such key. `dialer` checks that side; nothing is
/// proven to it.
///
/// # Errors
/// [`JoinError`].
pub async fn member_state(dialer: &Dialer, address: &str, key: &Pin) -> Result<Option<MemberState>, JoinError> {
    let request = http::Request::get(format!("/v1/members/{key}"));
    match exchange::<MemberAnswer>(dialer, address, request, Vec::new()).await {
        Ok(answer) => Ok(Some(answer.state)),
        Err(JoinError::Refused { body, .. }) if body.code == "unknown-member" => Ok(None),
        Err(error) => Err(error),
    }
}

async fn exchange<A: serde::de::DeserializeOwned>(
    dialer: &Dialer,
    address: &str,
    request: http::request::Builder,
    body: Vec<u8>,
) -> Result<A, JoinError> {
    let talk = |detail: String| JoinError::Talk {
        address: address.to_owned(),
        detail,
    };
    let exchange = async {
        let stream = dialer.connect(address).await.map_err(|source| JoinError::Dial {
            address: address.to_owned(),
            source,
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| talk(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let request = request
            .header(http::header::HOST, dialer.tls().server().dns_name())
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| talk(error.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| talk(error.to_string()))?;
        let status = response.status().as_u16();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let answer = answer.map_err(|error| talk(error.to_string()))?.to_bytes();
        connection.abort();
        if status != 200 {
            let body = serde_json::from_slice(&answer).unwrap_or_else(|_| ErrorBody {
                code: "unknown".to_owned(),
                message: format!("HTTP status {status}"),
                mistakes: Vec::new(),
            });
            return Err(JoinError::Refused {
                address: address.to_owned(),
                status,
                body,
            });
        }
        serde_json::from_slice(&answer).map_err(|error| talk(error.to_string()))
    };
    tokio::time::timeout(TRY, exchange)
        .await
        .unwrap_or_else(|_| Err(talk("no answer in time".to_owned())))
}

/// Joins with a token, and waits until a person has approved if that is needed. `dialer` must be pinned to the token's
/// authority and the name of the side that is joined.
///
/// # Errors
/// [`JoinError`] once another try cannot help.
pub async fn join(
    dialer: &Dialer,
    address: &str,
    token: &JoinToken,
    name: &str,
    key: &PrivateKey,
    rng: &mut (dyn RngCore + Send),
) -> Result<JoinGrant, JoinError> {
    let request = JoinRequest {
        token: token.id,
        secret: token.secret.clone(),
        name: name.to_owned(),
        csr: certificate_request_to_pem(&key.request()?),
    };
    let mut tries = 0;
    loop {
        failpoint!("join.ask");
        let answer = post::<_, JoinGrant>(dialer, address, "/v1/join", &request).await;
        failpoint!("join.answered");
        match answer {
            Ok(grant) if grant.state == MemberState::Active => return Ok(grant),
            Ok(_) => {
                let command = format!("roble approve {} {name}", token.kind);
                tracing::info!(name, command, "joined; waiting for a person to approve");
            }
            Err(error) if error.is_retryable() => {
                let error = error_chain(&error);
                tracing::warn!(address, error, "cannot join yet; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(WAIT.delay_ms(tries, rng))).await;
        tries = tries.saturating_add(1);
    }
}

/// Asks for a new certificate for the same key. `dialer` must show the present one. `name`: of a node, which its cluster may
/// have forgotten.
///
/// # Errors
/// [`JoinError`].
pub async fn renew(
    dialer: &Dialer,
    address: &str,
    key: &PrivateKey,
    name: Option<&str>,
) -> Result<JoinGrant, JoinError> {
    let request = RenewRequest {
        csr: certificate_request_to_pem(&key.request()?),
        name: name.map(str::to_owned),
    };
    failpoint!("renew.ask");
    let grant = post(dialer, address, "/v1/renew", &request).await;
    failpoint!("renew.answered");
    grant
}

/// An error and its causes on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, Outcome, Spec, parse};

    static SPEC: Spec = Spec {
        daemon: "test",
        about: "",
        version: "0",
        prefix: "TEST_",
        default_file: None,
        settings: &[SETTINGS],
        flags: &[],
    };

    fn source(args: &[&str]) -> Result<TokenSource, TokenError> {
        match parse(&SPEC, &Inputs::default().args(args.iter().copied())) {
            Ok(Outcome::Run(config)) => TokenSource::of(&config, TokenKind::Node),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_comes_from_the_command_line_or_a_file_and_is_of_the_right_kind() {
        let node = format!("roble1.node@{0}.{0}.{1}.{1}", "0".repeat(24), "ab".repeat(32));
        let cluster = format!("roble1.cluster.{}.{1}.{1}", "0".repeat(24), "ab".repeat(32));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file = path.to_str().unwrap();

        let given = source(&["--join", &node]).unwrap();
        assert_eq!(given.read(TokenKind::Node).unwrap().unwrap().reveal(), node);
        assert_eq!(source(&[]).unwrap().read(TokenKind::Node).unwrap(), None);
        assert!(matches!(source(&["--join", "abc"]), Err(TokenError::Parse(_))));
        assert!(matches!(
            source(&["--join", &cluster]),
            Err(TokenError::Kind(TokenKind::Cluster, TokenKind::Node))
        ));
        assert!(matches!(
            source(&["--join", &node, "--join-file", file]),
            Err(TokenError::Both)
        ));
        // A file that is gone matters only to who has not joined yet.
        let in_file = source(&["--join-file", file]).unwrap();
        assert!(matches!(in_file.read(TokenKind::Node), Err(TokenError::NoFile(_))));
        std::fs::write(&path, format!("{node}\n")).unwrap();
        assert_eq!(in_file.read(TokenKind::Node).unwrap().unwrap().reveal(), node);
    }
}

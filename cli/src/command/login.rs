//! `roble login`: pin the authority, exchange the credential, remember both.

use crate::api::https::Https;
use crate::api::{self, Request};
use crate::console::Console;
use crate::context::{Context, Contexts, Environment};
use crate::failure::Failure;
use crate::trust::{self, Authority};
use anyhow::Context as _;
use clap::Args;
use http::Method;
use roble_daemon::pki::Pin;
use roble_proto::rest;
use std::io::Write as _;
use std::time::Duration;

/// Flags of `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// Address of the root's API, e.g. https://root.example:10000.
    pub url: String,
    /// The one-time credential; `-` reads it from standard input.
    #[arg(long, value_name = "X")]
    pub credential: String,
    /// SHA-256 of the authority's public key, as the root printed it. Without it you are asked.
    #[arg(long, value_name = "SHA256", value_parser = |text: &str| text.parse::<Pin>().map_err(|error| error.to_string()))]
    pub pin: Option<Pin>,
}

/// Runs the verb. `name`: of the context, `default` if none.
pub(crate) async fn run(
    login: Login,
    name: Option<String>,
    timeout: Duration,
    environment: &Environment,
    console: &mut Console,
) -> Result<(), Failure> {
    let credential = match login.credential.as_str() {
        "-" => console.read_line()?,
        given => given.trim().to_owned(),
    };
    if credential.is_empty() {
        return Err(Failure::Usage(
            "the credential is empty; the root prints one at its first start, or by `roble-root credential`".into(),
        ));
    }
    let name = name.unwrap_or_else(|| "default".to_owned());
    log_in(&login.url, &credential, login.pin, &name, timeout, environment, console).await
}

/// Logs in to the root at `url` and stores the context `name`, which becomes the current one.
///
/// The authority is checked before the credential is sent: against `pin`; else against the one already pinned for this
/// URL under this name; else a person is asked.
///
/// # Errors
/// [`Failure::Refused`] if the authority is not the pinned one, or not pinned and nobody can be asked.
pub async fn log_in(
    url: &str,
    credential: &str,
    pin: Option<Pin>,
    name: &str,
    timeout: Duration,
    environment: &Environment,
    console: &mut Console,
) -> Result<(), Failure> {
    let url = trust::normal_url(url)?;
    // Read before anything is sent: the credential is good only once, and its answer must find a place.
    let mut contexts = Contexts::load(environment)?;
    let known = match contexts.contexts.get(name).filter(|known| known.url == url) {
        Some(known) => Some(pin_of(&known.authority)?),
        None => None,
    };
    let pin = pin.or(known);
    let authority = trust::probe(&url, pin, timeout).await?;
    if pin.is_none() {
        ask(&url, &authority, console)?;
    }
    let api = Https::without_token(&url, authority.pem.as_bytes(), timeout)?;
    let request = Request::new(Method::POST, "/v1/login").json(&rest::Login {
        credential: credential.to_owned(),
        client: client(environment),
    })?;
    let session: rest::Session = api::send(&api, request).await.map_err(explained)?;
    let context = Context {
        url: url.clone(),
        authority: authority.pem,
        token: session.token,
        user: session.user.name.clone(),
        expires_at: session.expires_at,
    };
    contexts.contexts.insert(name.to_owned(), context);
    contexts.current = name.to_owned();
    let path = contexts.save(environment)?;
    let (user, organization) = (&session.user.name, &session.user.organization_name);
    writeln!(
        console.out,
        "logged in to {url} as {user} (organization {organization}) until {}",
        session.expires_at
    )?;
    console.hint(format_args!("authority {}", authority.pin));
    console.hint(format_args!("stored in {} as `{name}`", path.display()));
    Ok(())
}

/// A refused credential has no session to renew, so the usual advice would be wrong.
fn explained(failure: Failure) -> Failure {
    match failure {
        Failure::Answer {
            status: 401 | 403,
            body,
        } => Failure::Refused {
            what: format!("{} ({})", body.message, body.code),
            help:
                "a credential is good once and for a limited time; `roble-root credential` at the root makes a new one"
                    .into(),
        },
        other => other,
    }
}

fn ask(url: &str, authority: &Authority, console: &mut Console) -> Result<(), Failure> {
    let pin = authority.pin;
    if !console.interactive {
        return Err(Failure::Refused {
            what: format!("the authority of {url} is not known here, and nobody can be asked; nothing was sent"),
            help: format!(
                "compare its fingerprint with what the root printed at its first start, then repeat with --pin {pin}"
            ),
        });
    }
    writeln!(
        console.err,
        "The authority of {url} is not known here. Its fingerprint (SHA-256 of its key):"
    )?;
    writeln!(console.err, "  {pin}")?;
    write!(
        console.err,
        "Is this what the root printed at its first start? [yes/no] "
    )?;
    console.err.flush()?;
    match console.read_line()?.as_str() {
        "yes" => Ok(()),
        _ => Err(Failure::Refused {
            what: "the authority was not confirmed; nothing was sent".into(),
            help: "type `yes` in full, or give --pin".into(),
        }),
    }
}

fn pin_of(pem: &str) -> Result<Pin, Failure> {
    let certificates = roble_daemon::pki::certificates_from_pem(pem.as_bytes()).context("the stored authority")?;
    let first = certificates.first().context("the stored authority is empty")?;
    Ok(Pin::of_certificate(first).context("the stored authority")?)
}

fn client(environment: &Environment) -> String {
    let user = environment.get("USER").unwrap_or("somebody");
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{user}@{}", host.as_deref().unwrap_or("somewhere"))
        .chars()
        .take(128)
        .collect()
}

//! A file per verb or group of verbs: its flags, the request made of them, and how the answer is printed.

pub mod apply;
pub mod completion;
pub mod contexts;
pub mod delete;
pub mod events;
pub mod explain;
pub mod get;
pub mod login;
pub mod logs;
pub mod member;
pub mod network;
pub mod node;
pub mod scale;
pub mod token;
pub mod trace;
pub mod wait;

use crate::api::https::Https;
use crate::api::{self, Api};
use crate::console::Console;
use crate::context::{self, Environment};
use crate::failure::Failure;
use crate::flags::{Cli, Command, Format};
use crate::reference::{Reference, path};
use crate::text::clean;
use roble_proto::rest::{InstanceView, Listed, WhoAmI};
use std::io::Write as _;

/// What a verb that talks to the root works with.
pub struct Session<'a> {
    /// The root.
    pub api: &'a dyn Api,
    /// Where text goes.
    pub console: &'a mut Console,
    /// In which format.
    pub format: Format,
}

/// What a list holds; whose part is missing is said beside it.
fn listed<T>(list: Listed<T>, console: &mut Console) -> Vec<T> {
    for missing in &list.unanswered {
        console.hint(format_args!(
            "not in this list: what cluster {} has ({}: {})",
            clean(&missing.cluster),
            clean(&missing.code),
            clean(&missing.message)
        ));
    }
    list.items
}

/// Runs the verbs that need no root; opens a session for the others.
pub(crate) async fn dispatch(cli: Cli, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    match cli.command {
        Command::Login(login) => login::run(login, cli.context, cli.request_timeout, environment, console).await,
        Command::Context(verb) => contexts::run(verb, cli.output, environment, console),
        Command::Validate(validate) => apply::validate(&validate, cli.output, console),
        Command::Completion(completion) => completion::run(&completion, console),
        Command::Dev(verb) => crate::dev::run_verb(verb, environment, console).await,
        Command::Version => version(&cli, environment, console).await,
        Command::Network(network::Verb::Routes(here)) => node::routes(&here, cli.output, console).await,
        Command::Doctor(verb) => node::doctor(&verb, cli.output, console).await,
        command => {
            let target = context::resolve(environment, cli.context.as_deref())?;
            let api = Https::new(&target, cli.request_timeout)?;
            let session = Session {
                api: &api,
                console,
                format: cli.output,
            };
            Box::pin(with_root(command, session)).await
        }
    }
}

/// Runs a verb that needs a root.
///
/// # Errors
/// [`Failure`].
pub async fn with_root(command: Command, session: Session<'_>) -> Result<(), Failure> {
    match command {
        Command::Whoami => whoami(session).await,
        Command::Apply(apply) => apply::apply(apply, session).await,
        Command::Delete(delete) => delete::run(delete, session).await,
        Command::Ps(ps) => get::ps(ps, session).await,
        Command::Get(get) => get::get(get, session).await,
        Command::Describe(describe) => get::describe(describe, session).await,
        Command::Logs(logs) => logs::run(logs, session).await,
        Command::Events(events) => events::run(events, session).await,
        Command::Scale(scale) => scale::run(scale, session).await,
        Command::Token(verb) => token::run(verb, session).await,
        Command::Approve(member) => member::run("approve", &member, session).await,
        Command::Revoke(revoke) => member::revoke(&revoke, session).await,
        Command::Cordon(member) => member::run("cordon", &member, session).await,
        Command::Uncordon(member) => member::run("uncordon", &member, session).await,
        Command::Wait(wait) => wait::run(wait, session).await,
        Command::Explain(explain) => explain::run(explain, session).await,
        Command::Network(verb) => network::run(verb, session).await,
        Command::Login(_)
        | Command::Context(_)
        | Command::Validate(_)
        | Command::Completion(_)
        | Command::Dev(_)
        | Command::Doctor(_)
        | Command::Version => Err(Failure::Usage("this verb needs no root".into())),
    }
}

async fn whoami(session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    let who: WhoAmI = api::get(api, path(&["whoami"])).await?;
    match format {
        Format::Table => {
            let mut page = crate::output::Page::default();
            page.entry("User", &who.user.name);
            page.entry("Organization", &who.user.organization_name);
            page.entry("Administrator", if who.user.is_admin { "yes" } else { "no" });
            page.entry("Root", api.url());
            page.entry("Root version", &who.root_version);
            console.out.write_all(page.text().as_bytes())?;
        }
        Format::Name => writeln!(console.out, "{}", who.user.name)?,
        _ => crate::output::document(console, format, &who)?,
    }
    Ok(())
}

async fn version(cli: &Cli, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    writeln!(console.out, "roble {}", env!("CARGO_PKG_VERSION"))?;
    // The root's version is a courtesy: not to know it is no failure.
    let Ok(target) = context::resolve(environment, cli.context.as_deref()) else {
        return Ok(());
    };
    let api = Https::new(&target, cli.request_timeout.min(std::time::Duration::from_secs(3)))?;
    match api::get::<WhoAmI>(&api, path(&["whoami"])).await {
        Ok(who) => writeln!(console.out, "root  {} at {}", who.root_version, target.url)?,
        Err(failure) => console.hint(format_args!("root  not known: {failure}")),
    }
    Ok(())
}

/// All instances that are part of `reference`, in the order the root gives.
pub(crate) async fn instances_of(api: &dyn Api, reference: &Reference) -> Result<Vec<InstanceView>, Failure> {
    if let Reference::Instance(_) = reference {
        return Ok(vec![api::get(api, reference.path()).await?]);
    }
    let mut all: Vec<InstanceView> = api::get(api, path(&["instances"])).await?;
    all.retain(|instance| reference.holds(&instance.path));
    Ok(all)
}

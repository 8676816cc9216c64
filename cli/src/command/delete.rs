//! `roble delete`.

use super::{Session, apply, wait};
use crate::api::{self, Api, Request};
use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Format;
use crate::output;
use crate::reference::Reference;
use clap::{Args, ValueEnum};
use http::Method;
use roble_core::descriptor::ApplicationDescriptor;
use roble_proto::rest::{ApplicationView, Deleted};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

/// Flags of `delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// What kind of thing.
    #[arg(value_enum, requires = "reference", required_unless_present = "files")]
    pub kind: Option<Kind>,
    /// Name or id: `shop`, `shop/web`.
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Delete what this descriptor says: its services, and its application if nothing else is in it.
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "kind")]
    pub files: Vec<String>,
    /// Wait until every node has confirmed.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

/// What can be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An application with all its services.
    #[value(alias = "application", alias = "apps", alias = "applications")]
    App,
    /// A service.
    #[value(alias = "services", alias = "svc")]
    Service,
}

pub(crate) async fn run(delete: Delete, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    let deadline = wait::Deadline::after(delete.timeout);
    let targets = match (delete.kind, delete.reference) {
        (Some(Kind::App), Some(name)) => vec![Reference::Application(name)],
        (Some(Kind::Service), Some(name)) => vec![Reference::Service(name)],
        _ => of_files(&delete.files, api, console).await?,
    };
    let mut answers = Vec::new();
    for target in &targets {
        let answer: Deleted = api::send(api, Request::new(Method::DELETE, target.path())).await?;
        print(&answer, delete.wait, format, console)?;
        answers.push(answer);
    }
    if matches!(format, Format::Json | Format::Yaml) {
        output::document(console, format, &answers)?;
    }
    if delete.wait {
        for target in &targets {
            wait::until(api, target, &wait::Condition::Gone, &deadline).await?;
        }
    }
    Ok(())
}

fn print(answer: &Deleted, waits: bool, format: Format, console: &mut Console) -> Result<(), Failure> {
    for path in &answer.deleted {
        match format {
            Format::Name => writeln!(console.out, "{path}")?,
            Format::Table => writeln!(console.out, "{path} deleted")?,
            _ => {}
        }
    }
    if format == Format::Table && answer.remaining_instances > 0 {
        let number = crate::text::count(answer.remaining_instances as usize, "instance");
        let hint = if waits { "waiting" } else { "`--wait` waits for it" };
        console.hint(format_args!("{number} still to be confirmed gone; {hint}"));
    }
    Ok(console.out.flush()?)
}

/// What the descriptors name and the root has. An application goes as a whole only if nothing else is in it.
async fn of_files(files: &[String], api: &dyn Api, console: &mut Console) -> Result<Vec<Reference>, Failure> {
    let mut targets = Vec::new();
    for file in files {
        let (name, text) = apply::read(file, console)?;
        for application in apply::parse(&name, &text)?.descriptor.applications {
            let reference = Reference::Application(application.name.clone());
            match api::get::<ApplicationView>(api, reference.path()).await {
                Ok(present) => targets.extend(parts(&application, &present)),
                Err(Failure::Answer { status: 404, .. }) => console.hint(format_args!("{reference} is not there")),
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(targets)
}

fn parts(asked: &ApplicationDescriptor, present: &ApplicationView) -> Vec<Reference> {
    let asked: BTreeSet<String> = asked
        .services
        .iter()
        .map(|service| format!("{}/{}", present.name, service.name))
        .collect();
    let there: BTreeSet<String> = present.services.iter().map(|service| service.path.clone()).collect();
    if there.is_subset(&asked) {
        return vec![Reference::Application(present.name.clone())];
    }
    there.intersection(&asked).cloned().map(Reference::Service).collect()
}

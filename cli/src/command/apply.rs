//! `roble apply` and `roble validate`.

use super::Session;
use crate::api::{self, Request};
use crate::command::wait;
use crate::console::Console;
use crate::failure::{Failure, print_finding};
use crate::flags::Format;
use crate::output;
use crate::reference::Reference;
use anyhow::Context as _;
use clap::Args;
use http::Method;
use roble_core::descriptor::{self, Parsed};
use roble_proto::rest::{Applied, Change, Finding};
use std::io::{Read as _, Write as _};
use std::time::Duration;

/// Flags of `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// Descriptor, JSON or YAML; `-` is standard input. May be repeated.
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<String>,
    /// Check and say what would change, but change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until everything of it runs.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::text::duration)]
    pub timeout: Duration,
}

/// Flags of `validate`.
#[derive(Debug, Args)]
pub struct Validate {
    /// Descriptor, JSON or YAML; `-` is standard input. May be repeated.
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<String>,
}

pub(crate) async fn apply(apply: Apply, session: Session<'_>) -> Result<(), Failure> {
    let Session { api, console, format } = session;
    let deadline = wait::Deadline::after(apply.timeout);
    let mut answers = Vec::new();
    for file in &apply.files {
        let (name, text) = read(file, console)?;
        let dry_run = if apply.dry_run { "?dry_run=true" } else { "" };
        let mut request = Request::new(Method::POST, format!("/v1/apply{dry_run}"));
        let starts_as_json = text.trim_ascii_start().starts_with(b"{");
        request.body = Some((
            if starts_as_json {
                "application/json"
            } else {
                "application/yaml"
            },
            text,
        ));
        let applied: Applied = api::send(api, request).await.map_err(|failure| match failure {
            Failure::Answer { status: 422, body } if !body.mistakes.is_empty() => Failure::Mistakes {
                document: name.clone(),
                findings: body.mistakes,
            },
            other => other,
        })?;
        for warning in &applied.warnings {
            write!(console.err, "warning: ")?;
            print_finding(&mut console.err, &name, warning)?;
        }
        if matches!(format, Format::Table | Format::Name) {
            print(&applied, format, console)?;
        }
        answers.push(applied);
    }
    match (format, answers.as_slice()) {
        (Format::Table | Format::Name, _) => {}
        (_, [answer]) => output::document(console, format, answer)?,
        _ => output::document(console, format, &answers)?,
    }
    if !apply.wait {
        return Ok(());
    }
    for service in answers.iter().flat_map(|answer| &answer.services) {
        let target = Reference::Service(service.path.clone());
        wait::until(api, &target, &wait::Condition::Running, &deadline).await?;
    }
    Ok(())
}

fn print(applied: &Applied, format: Format, console: &mut Console) -> Result<(), Failure> {
    for service in &applied.services {
        if format == Format::Name {
            writeln!(console.out, "{}", service.path)?;
            continue;
        }
        let change = match service.change {
            Change::Created => "created",
            Change::Updated => "updated",
            Change::Unchanged => "unchanged",
        };
        let dry = if applied.dry_run {
            " (dry run, nothing was changed)"
        } else {
            ""
        };
        writeln!(console.out, "{} {change}{dry}", service.path)?;
    }
    Ok(console.out.flush()?)
}

/// `validate`: `-o yaml` prints the descriptor in its native form, `-o json` the model with all defaults.
pub(crate) fn validate(validate: &Validate, format: Format, console: &mut Console) -> Result<(), Failure> {
    let mut mistakes = None;
    for file in &validate.files {
        let (name, text) = read(file, console)?;
        match parse(&name, &text) {
            Ok(parsed) => {
                for warning in &parsed.warnings {
                    write!(console.err, "warning: ")?;
                    print_finding(&mut console.err, &name, &finding(warning.clone()))?;
                }
                print_valid(&name, &parsed, format, console)?;
            }
            // All files are looked at; the last one's mistakes are printed as the failure.
            Err(failure) => {
                if let Some(earlier) = mistakes.replace(failure) {
                    earlier.print(&mut console.err)?;
                }
            }
        }
    }
    mistakes.map_or(Ok(()), Err)
}

fn print_valid(name: &str, parsed: &Parsed, format: Format, console: &mut Console) -> Result<(), Failure> {
    let descriptor = &parsed.descriptor;
    let services = descriptor
        .applications
        .iter()
        .flat_map(|app| app.services.iter().map(move |service| (app, service)));
    match format {
        Format::Table => {
            let (mut number, mut instances) = (0, 0);
            for (_, service) in services {
                number += 1;
                instances += service.replicas as usize;
            }
            let (services, instances) = (
                crate::text::count(number, "service"),
                crate::text::count(instances, "instance"),
            );
            writeln!(console.out, "{name}: valid, {services}, {instances}")?;
        }
        Format::Name => {
            for (app, service) in services {
                writeln!(console.out, "{}/{}", app.name, service.name)?;
            }
        }
        Format::Json => output::document(console, format, parsed)?,
        Format::Yaml => console
            .out
            .write_all(descriptor::to_native_yaml(descriptor).as_bytes())?,
    }
    Ok(())
}

/// Reads a descriptor with the same code as the root.
pub(crate) fn parse(name: &str, text: &[u8]) -> Result<Parsed, Failure> {
    descriptor::parse(text, descriptor::Format::Auto).map_err(|mistakes| Failure::Mistakes {
        document: name.to_owned(),
        findings: mistakes.into_iter().map(finding).collect(),
    })
}

/// Bytes of a file or of standard input, and what to call it.
pub(crate) fn read(file: &str, console: &mut Console) -> Result<(String, Vec<u8>), Failure> {
    // One byte more than is accepted, so that what is too large is told by its own mistake.
    let limit = descriptor::MAX_BYTES as u64 + 1;
    let mut text = Vec::new();
    if file == "-" {
        (&mut console.input)
            .take(limit)
            .read_to_end(&mut text)
            .context("read standard input")?;
        return Ok(("standard input".into(), text));
    }
    let open = std::fs::File::open(file).with_context(|| format!("read {file}"))?;
    open.take(limit)
        .read_to_end(&mut text)
        .with_context(|| format!("read {file}"))?;
    Ok((file.to_owned(), text))
}

fn finding(finding: descriptor::Finding) -> Finding {
    Finding {
        path: finding.path,
        line: finding.line,
        code: finding.code.to_string(),
        message: finding.message,
        help: finding.help.unwrap_or_default(),
    }
}

//! `roble context`: list, choose or forget logins.

use crate::console::Console;
use crate::context::{Contexts, Environment};
use crate::failure::Failure;
use crate::flags::Format;
use clap::Subcommand;
use std::io::Write as _;

/// Verbs of `context`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List them; the current one has a star.
    Ls,
    /// Make one the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Forget one, with its session and its pinned authority.
    Rm {
        /// Its name.
        name: String,
    },
}

pub(crate) fn run(verb: Verb, format: Format, environment: &Environment, console: &mut Console) -> Result<(), Failure> {
    let mut contexts = Contexts::load(environment)?;
    match verb {
        Verb::Ls => return list(&contexts, format, console),
        Verb::Use { name } => {
            contexts.choose(Some(&name))?;
            contexts.current = name;
        }
        Verb::Rm { name } => {
            contexts.choose(Some(&name))?;
            contexts.contexts.remove(&name);
        }
    }
    contexts.save(environment)?;
    Ok(())
}

fn list(contexts: &Contexts, format: Format, console: &mut Console) -> Result<(), Failure> {
    let all = contexts.contexts.iter();
    match format {
        Format::Name => {
            for (name, _) in all {
                writeln!(console.out, "{name}")?;
            }
        }
        Format::Table => {
            let rows = all.map(|(name, context)| {
                let mark = if *name == contexts.current { "*" } else { "" };
                vec![
                    mark.to_owned(),
                    name.clone(),
                    context.url.clone(),
                    context.user.clone(),
                    context.expires_at.to_string(),
                ]
            });
            let text = crate::output::table(&["", "NAME", "ROOT", "USER", "EXPIRES"], rows);
            console.out.write_all(text.as_bytes())?;
        }
        // Without the tokens.
        _ => {
            let public = all.map(|(name, context)| {
                serde_json::json!({
                    "name": name, "url": context.url, "user": context.user, "expires_at": context.expires_at,
                    "current": *name == contexts.current,
                })
            });
            crate::output::document(console, format, &public.collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

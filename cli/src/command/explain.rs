//! `roble explain`.

use super::Session;
use crate::api::{self, Api};
use crate::failure::{Failure, print_finding};
use crate::flags::Format;
use crate::output::{self, table};
use crate::reference::{Reference, path};
use crate::text::{clean, count};
use clap::Args;
use roble_core::placement::{Explanation, Score};
use roble_core::status::Phase;
use roble_proto::rest::Explained;
use std::fmt::Write as _;

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Instance (`shop/web.0`); of a service, its first instance that does not run.
    #[arg(value_name = "REF")]
    pub reference: Reference,
}

pub(crate) async fn run(explain: Explain, session: Session<'_>) -> Result<(), Failure> {
    let instance = choose(&explain.reference, session.api).await?;
    let answer: Explained = api::get(session.api, path(&["explain", &instance])).await?;
    let console = session.console;
    match session.format {
        Format::Table => console.out.write_all(render(&answer).as_bytes())?,
        Format::Name => writeln!(console.out, "{}", answer.instance.path)?,
        format => output::document(console, format, &answer)?,
    }
    Ok(())
}

async fn choose(reference: &Reference, api: &dyn Api) -> Result<String, Failure> {
    if let Reference::Instance(name) = reference {
        return Ok(name.clone());
    }
    let instances = super::instances_of(api, reference).await?;
    let wants_help = instances.iter().find(|instance| instance.phase != Phase::Running);
    match wants_help.or(instances.first()) {
        Some(instance) => Ok(instance.path.clone()),
        None => Err(Failure::NotFound(format!(
            "{reference} has no instances; `roble ps` lists all"
        ))),
    }
}

fn render(explained: &Explained) -> String {
    let instance = &explained.instance;
    let mut text = format!("{}: {}\n", instance.path, instance.phase);
    let _ = writeln!(text, "{}", clean(&explained.summary));
    if let Some(reason) = &instance.reason {
        let _ = writeln!(text, "reason: {}", clean(&reason.to_string()));
    }
    if let Some(root) = &explained.root {
        decision(&mut text, "The root chose among", "cluster", root);
    }
    match (&explained.cluster, &explained.cluster_missing) {
        (Some(cluster), _) => {
            let name = instance.cluster.as_deref().unwrap_or("?");
            decision(&mut text, &format!("Cluster {name} chose among"), "node", cluster);
        }
        (None, Some(why)) => {
            let _ = writeln!(text, "\nThe cluster's part is missing: {}", clean(why));
        }
        (None, None) => {}
    }
    if !explained.events.is_empty() {
        text.push_str("\nWhat happened, newest last:\n");
        let rows = explained
            .events
            .iter()
            .map(|event| vec![event.at.to_string(), event.code.clone(), event.message.clone()]);
        indent(&mut text, &table(&["AT", "EVENT", "MESSAGE"], rows));
    }
    if !explained.warnings.is_empty() {
        text.push_str("\nNot honoured:\n");
        let mut lines = Vec::new();
        for warning in &explained.warnings {
            // Writing to memory does not fail.
            let _ = print_finding(&mut lines, "descriptor", warning);
        }
        indent(&mut text, &String::from_utf8_lossy(&lines));
    }
    text
}

fn decision(text: &mut String, title: &str, noun: &str, explanation: &Explanation) {
    let _ = writeln!(text, "\n{title} {}:", count(explanation.considered as usize, noun));
    let ranked = explanation.chosen.iter().map(|it| ("chosen", it));
    let ranked = ranked.chain(explanation.runners_up.iter().map(|it| ("next best", it)));
    let rows: Vec<Vec<String>> = ranked
        .map(|(rank, (name, score))| ranked_row(rank, name, score))
        .collect();
    if rows.is_empty() {
        let _ = writeln!(text, "  none of them can take it");
    } else {
        let header = noun.to_uppercase();
        indent(
            text,
            &table(&["RANK", &header, "SAME SERVICE THERE", "LEFT OVER"], rows.into_iter()),
        );
    }
    if explanation.kept {
        text.push_str("  it was found there, as wished, and stays\n");
    }
    if explanation.refused.is_empty() {
        return;
    }
    let mut counts: Vec<_> = explanation.refused.iter().collect();
    counts.sort_by_key(|(refusal, number)| (std::cmp::Reverse(**number), **refusal));
    let total: u32 = counts.iter().map(|(_, number)| **number).sum();
    let list: Vec<String> = counts
        .iter()
        .map(|(refusal, number)| format!("{number} {}", refusal.as_str()))
        .collect();
    let _ = writeln!(text, "  {} refused: {}", count(total as usize, noun), list.join(", "));
    let rows = explanation
        .examples
        .iter()
        .map(|it| vec![it.name.clone(), it.refusal.as_str().to_owned(), it.detail.clone()]);
    let mut examples = String::new();
    indent(
        &mut examples,
        &table(&[&noun.to_uppercase(), "REFUSAL", "DETAIL"], rows),
    );
    indent(text, &examples);
    let named = u32::try_from(explanation.examples.len()).unwrap_or(u32::MAX);
    if named < total {
        let _ = writeln!(text, "    ... and {} more", total - named);
    }
}

fn ranked_row(rank: &str, name: &str, score: &Score) -> Vec<String> {
    let tenths = score.left_over_permille;
    let left = format!("{}.{}%", tenths / 10, tenths % 10);
    vec![rank.to_owned(), name.to_owned(), score.siblings.to_string(), left]
}

fn indent(text: &mut String, lines: &str) {
    for line in lines.lines() {
        let _ = writeln!(text, "  {line}");
    }
}

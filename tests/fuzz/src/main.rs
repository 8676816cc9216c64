//! Longer runs, and the samples among the corpus.

use anyhow::Context as _;
use roble_fuzz::{BODIES, campaign, corpus, samples};

const USAGE: &str = "roble-fuzz [--cases N] [BODY...] | --write-samples";

fn main() -> anyhow::Result<()> {
    let mut cases = 100_000;
    let mut names = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--cases" => cases = args.next().context(USAGE)?.parse().context(USAGE)?,
            "--write-samples" => return samples::write(),
            name if BODIES.iter().any(|body| body.name == name) => names.push(arg),
            _ => anyhow::bail!(USAGE),
        }
    }
    for body in BODIES
        .iter()
        .filter(|body| names.is_empty() || names.iter().any(|name| name == body.name))
    {
        if let Err(failure) = campaign(body, &corpus(body)?, cases) {
            let path = std::env::temp_dir().join(format!("roble-fuzz-{}", body.name));
            std::fs::write(&path, &failure.input)?;
            anyhow::bail!("{}: {}; the input is in {}", body.name, failure.what, path.display());
        }
        println!("{}: {cases} cases, nothing found", body.name);
    }
    Ok(())
}

//! Everything that bytes from outside pass through, as plain functions of those bytes: the [`BODIES`]. Each must neither
//! panic nor take memory that does not come from what was sent, and what it reads it must write so that it reads back.
//!
//! - `cargo test -p roble-fuzz` runs each over its corpus (`corpus/NAME/`) and a few thousand seeded changes of it.
//! - `cargo run --release -p roble-fuzz -- --cases 1000000 [BODY]` runs more of the same.
//! - `cargo run -p roble-fuzz -- --write-samples` writes the samples among the corpus anew; what found a bug is put beside
//!   them by hand.
//!
//! A guided fuzzer can take the same functions.

mod allocator;
mod bodies;
mod mutate;
pub mod samples;

use std::path::PathBuf;

pub use bodies::{BODIES, Body};

/// Memory that a body may take besides [`PER_BYTE`] of its input.
const BASE_BYTES: usize = 1 << 20;
/// Memory that a body may take for each byte of its input. Small things become large ones: a port mapping of ten bytes is
/// an object, its text and its place in a table, several times over.
const PER_BYTE: usize = 400;

/// What is wrong with one input.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub what: String,
    /// The input, to be put into the corpus.
    pub input: Vec<u8>,
}

/// Runs `body` on `input`.
///
/// # Errors
/// It panicked, or took too much memory.
pub fn run(body: &Body, input: &[u8]) -> Result<(), Failure> {
    let failure = |what: String| Failure {
        what,
        input: input.to_vec(),
    };
    let (ended, peak) = allocator::peak(|| std::panic::catch_unwind(|| (body.run)(input)));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        return Err(failure(format!("panic: {}", text.unwrap_or("?"))));
    }
    let most = BASE_BYTES + PER_BYTE * input.len();
    if peak > most {
        return Err(failure(format!("took {peak} bytes of memory, {most} are allowed")));
    }
    Ok(())
}

/// The committed inputs of a body, in the order of their names.
///
/// # Errors
/// The folder cannot be read.
pub fn corpus(body: &Body) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for folder in body.corpus {
        for entry in std::fs::read_dir(root().join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                inputs.push((name, std::fs::read(entry.path())?));
            }
        }
    }
    inputs.sort();
    Ok(inputs)
}

/// This crate's folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the corpus of `body`, then `cases` changes of it. The same numbers give the same inputs.
///
/// # Errors
/// The first failure.
pub fn campaign(body: &Body, corpus: &[(String, Vec<u8>)], cases: u64) -> Result<(), Failure> {
    corpus.iter().try_for_each(|(_, input)| run(body, input))?;
    (0..cases).try_for_each(|case| run(body, &mutate::case(corpus, case)))
}

//! The event log: hashed always, printed on demand.

use sha2::{Digest, Sha256};
use std::fmt;

/// Every event of a run, as one hash; the same seed gives the same hash.
pub struct Log {
    hash: Sha256,
    lines: u64,
    print: bool,
}

impl Log {
    /// An empty log. `print`: also write every line to standard error.
    pub fn new(print: bool) -> Self {
        Self {
            hash: Sha256::new(),
            lines: 0,
            print,
        }
    }

    /// Adds one line.
    pub fn line(&mut self, at: u64, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}\n", at as f64 / 1000.0);
        self.hash.update(line.as_bytes());
        self.lines += 1;
        if self.print {
            eprint!("{line}");
        }
    }

    /// Adds what is only for readers, and in no hash.
    pub fn detail(&self, at: u64, what: impl FnOnce() -> String) {
        if self.print {
            eprintln!("{:>9.3}     {}", at as f64 / 1000.0, what());
        }
    }

    /// How many lines, and their hash.
    pub fn finish(&self) -> (u64, String) {
        (self.lines, hex::encode(self.hash.clone().finalize()))
    }
}

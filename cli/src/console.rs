//! Where text goes and comes from, and what time it is: the seam that lets tests look at everything printed.

use roble_core::time::Timestamp;
use std::io::{IsTerminal as _, Read, Write};

/// The outside of a command. Results go to `out`; hints, progress and errors to `err`.
pub struct Console {
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
    /// Standard input.
    pub input: Box<dyn Read + Send>,
    /// Wall clock, for ages.
    pub clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// A person sits in front of it: questions may be asked, the screen may be redrawn.
    pub interactive: bool,
}

impl Console {
    /// The process's own.
    pub fn of_process() -> Self {
        let (out, input) = (std::io::stdout(), std::io::stdin());
        Self {
            interactive: out.is_terminal() && input.is_terminal(),
            out: Box::new(out),
            err: Box::new(std::io::stderr()),
            input: Box::new(input),
            clock: Box::new(|| {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                Timestamp::from_millis(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
            }),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// One line to standard error; that it cannot be written is no reason to fail.
    pub fn hint(&mut self, line: impl std::fmt::Display) {
        let _ = writeln!(self.err, "{line}");
    }

    /// One line of standard input, without its end.
    ///
    /// # Errors
    /// As reading; an end before any byte is an empty line.
    pub fn read_line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte: what follows the line belongs to whoever reads next.
        while line.len() < 4096 && self.input.read(&mut byte)? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

//! What can go wrong, what to do about it, and the exit code.

use roble_proto::rest::{ErrorBody, Finding};
use std::io::Write;

/// Exit codes, as documented in docs/cli.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something went wrong.
    Error = 1,
    /// The command line is wrong (also clap's code).
    Usage = 2,
    /// There is no such object.
    NotFound = 3,
    /// What was waited for did not come in time.
    Timeout = 4,
    /// Refused: not logged in, not allowed, or an authority that is not trusted.
    Refused = 5,
}

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line does not make sense.
    #[error("{0}")]
    Usage(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The deadline of a wait has passed.
    #[error("{0}")]
    Timeout(String),
    /// Refused on one of the two sides.
    #[error("{what}")]
    Refused {
        /// What is refused.
        what: String,
        /// What to do.
        help: String,
    },
    /// A descriptor has mistakes.
    #[error("{document} has {}", crate::text::count(findings.len(), "mistake"))]
    Mistakes {
        /// File name.
        document: String,
        /// All of them.
        findings: Vec<Finding>,
    },
    /// No connection.
    #[error("cannot reach the root at {address}: {cause}")]
    Unreachable {
        /// What was dialed.
        address: String,
        /// What happened.
        cause: String,
        /// The likely reason.
        help: String,
    },
    /// The root says no.
    #[error("{} ({})", body.message, body.code)]
    Answer {
        /// HTTP status.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// Our own output could not be written.
    #[error("write the output")]
    Print(#[from] std::io::Error),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// An anonymous failure with a sentence.
    pub fn other(message: impl std::fmt::Display) -> Self {
        Self::Other(anyhow::anyhow!("{message}"))
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::NotFound(_) | Self::Answer { status: 404, .. } => Exit::NotFound,
            Self::Timeout(_) => Exit::Timeout,
            Self::Refused { .. } | Self::Answer { status: 401 | 403, .. } => Exit::Refused,
            _ => Exit::Error,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Answer {
                    status: 429 | 500 | 502 | 503 | 504,
                    ..
                }
        )
    }

    fn help(&self) -> Option<&str> {
        match self {
            Self::Refused { help, .. } | Self::Unreachable { help, .. } => Some(help.as_str()),
            Self::Answer { status: 401, .. } => {
                Some("log in again: roble login URL --credential X (a new one: `roble-root credential` at the root)")
            }
            Self::Answer { status: 403, .. } => Some("`roble whoami` shows who you are; an administrator may do this"),
            Self::Answer { status: 429, .. } => Some("the root is busy; try again in a moment"),
            _ => None,
        }
        .filter(|help| !help.is_empty())
    }

    /// Writes it for people: what is wrong, where, what to do.
    ///
    /// # Errors
    /// As writing.
    pub fn print(&self, to: &mut dyn Write) -> std::io::Result<()> {
        write!(to, "error: {self}")?;
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            write!(to, ": {error}")?;
            source = error.source();
        }
        writeln!(to)?;
        if let Self::Mistakes { document, findings } = self {
            for finding in findings {
                print_finding(to, document, finding)?;
            }
        }
        match self.help() {
            Some(help) => writeln!(to, "  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Writes `FILE:LINE: path: message [code]`, and the help below it.
///
/// # Errors
/// As writing.
pub fn print_finding(to: &mut dyn Write, document: &str, finding: &Finding) -> std::io::Result<()> {
    let clean = crate::text::clean;
    write!(to, "{document}:")?;
    if let Some(line) = finding.line {
        write!(to, "{line}:")?;
    }
    if !finding.path.is_empty() {
        write!(to, " {}:", clean(&finding.path))?;
    }
    writeln!(to, " {} [{}]", clean(&finding.message), clean(&finding.code))?;
    if finding.help.is_empty() {
        return Ok(());
    }
    writeln!(to, "  help: {}", clean(&finding.help))
}

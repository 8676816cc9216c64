//! What is found in a descriptor: mistakes that refuse it, notices that only inform.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// What kind of thing was found; the text is stable and documented in `docs/descriptor.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }
        impl Code {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
            /// The stable text, in kebab case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

codes! {
    /// The bytes are not JSON or YAML, or use a part of YAML that is not read (tags, several documents).
    Syntax = "syntax",
    /// Too many bytes, levels, entries or characters.
    TooLarge = "too-large",
    /// The same key twice in one mapping.
    DuplicateKey = "duplicate-key",
    /// A field that must be there is not.
    Missing = "missing",
    /// A value of another type than the field takes.
    WrongType = "wrong-type",
    /// A number, or a quantity, below or above what the field takes.
    OutOfRange = "out-of-range",
    /// A text that is not one of those known, or not of the form the field takes.
    BadValue = "bad-value",
    /// A name that is not of the form of names.
    BadName = "bad-name",
    /// Two applications, services or addresses that must differ and do not.
    Clash = "clash",
    /// A host port that is published twice by one service.
    PortClash = "port-clash",
    /// Not a reference to an OCI image.
    BadImage = "bad-image",
    /// A key that means nothing here: a mistake in the native form, a notice in the SLA form.
    UnknownField = "unknown-field",
    /// A known thing that this version can not do.
    NotSupportedYet = "not-supported-yet",
    /// A version of the SLA form other than v2.0.
    UnknownVersion = "unknown-version",
    /// More mistakes than are told.
    TooManyMistakes = "too-many-mistakes",
    /// Notice: accepted, and ignored as Oakestra itself ignores it.
    Ignored = "ignored",
    /// Notice: accepted, and changed as the message says.
    Changed = "changed",
    /// Notice: stored, and honoured once the overlay can.
    Stored = "stored",
    /// Notice: what is asked for has a consequence that is easily overlooked.
    Consequence = "consequence",
    /// Notice: there is nothing in it.
    Empty = "empty",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing found in a descriptor, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where in the document, e.g. `applications[0].microservices[2].memory`; empty for the document itself.
    pub path: String,
    /// Line, counted from 1, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in characters, counted from 1, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What kind of thing.
    pub code: Code,
    /// What is wrong, or what was done.
    pub message: String,
    /// What to do about it, if there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// A finding that refuses the descriptor.
pub type Mistake = Finding;
/// A finding that only informs.
pub type Notice = Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, "{line}:{column}: ")?,
            (Some(line), None) => write!(f, "{line}: ")?,
            _ => {}
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{} [{}]", self.message, self.code)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

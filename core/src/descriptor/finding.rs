//! What is found in a descriptor: mistakes that refuse it, notices that only inform.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
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

/// Mistakes told at most; one more says how many are left out.
const MAX_MISTAKES: usize = 1000;
/// Notices told at most.
const MAX_NOTICES: usize = 1000;

/// Collects what is found during one parse, and remembers what may be there only once.
#[derive(Debug, Default)]
pub(super) struct Findings {
    mistakes: Vec<Mistake>,
    notices: Vec<Notice>,
    untold: usize,
    claims: HashMap<String, String>,
}

impl Findings {
    /// Adds a mistake.
    pub(super) fn mistake(&mut self, finding: Mistake) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(finding);
        } else {
            self.untold += 1;
        }
    }

    /// Adds a notice.
    pub(super) fn notice(&mut self, finding: Notice) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.push(finding);
        }
    }

    /// Takes `what` for the value at `path`; gives the path of the value that has it already.
    pub(super) fn claim(&mut self, what: String, path: &str) -> Option<String> {
        self.claims.insert(what, path.to_owned())
    }

    /// The notices if there is no mistake, else the mistakes; both in document order where lines are known.
    pub(super) fn finish(mut self) -> Result<Vec<Notice>, Vec<Mistake>> {
        let place = |finding: &Finding| (finding.line, finding.column);
        if self.mistakes.is_empty() {
            self.notices.sort_by_key(place);
            return Ok(self.notices);
        }
        self.mistakes.sort_by_key(place);
        if self.untold > 0 {
            let message = format!("{} more mistakes are not shown", self.untold);
            self.mistakes.push(Finding::whole(Code::TooManyMistakes, message));
        }
        Err(self.mistakes)
    }
}

impl Finding {
    /// A finding about the document as a whole.
    pub(super) fn whole(code: Code, message: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            line: None,
            column: None,
            code,
            message: message.into(),
            help: None,
        }
    }

    /// The same with advice.
    pub(super) fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    /// The same at another place.
    pub(super) fn at(self, line: u32, column: u32) -> Self {
        Self {
            line: Some(line),
            column: Some(column),
            ..self
        }
    }
}

/// `text` for a message: on one line and cut at 64 characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(|c| c.escape_debug()).collect();
    if text.chars().nth(64).is_some() {
        shown.push_str("...");
    }
    // `escape_debug` is for string literals; quotes need no escape between back ticks.
    shown.replace("\\\"", "\"").replace("\\'", "'")
}

/// `did you mean ...?` with the nearest of `known`, if one is near.
pub(super) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(word, known).map(|near| format!("did you mean `{near}`?"))
}

/// The one of `known` with the smallest edit distance to `word`, if at most a third of its length; the first of equals.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let folded = fold(word);
    known
        .into_iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(word.chars().count()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Whether two words differ by at most two slips, and are long enough for that to mean something.
pub(super) fn is_near(a: &str, b: &str) -> bool {
    a.len().min(b.len()) > 3 && a.len().max(b.len()) <= 64 && distance(&fold(a), &fold(b)) <= 2
}

/// Case and joints do not matter to a likeness: `workingDir` is near `working_dir`.
fn fold(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
///
/// Source: optimal string alignment distance (Damerau 1964, Levenshtein 1966).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["vcpus", "vgpus", "memory", "environment", "working_dir"];
        for (word, near) in [
            ("vcpu", Some("vcpus")),
            ("Memory", Some("memory")),
            ("mmeory", Some("memory")),
            ("workingDir", Some("working_dir")),
            ("enviroment", Some("environment")),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), near, "{word}");
        }
    }

    #[test]
    fn codes_are_in_kebab_case_and_serialise_as_they_print() {
        for code in Code::ALL {
            assert!(
                code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{code}"
            );
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn mistakes_beyond_the_cap_are_counted() {
        let mut findings = Findings::default();
        for _ in 0..MAX_MISTAKES + 5 {
            findings.mistake(Finding::whole(Code::Missing, "x"));
        }
        let mistakes = findings.finish().unwrap_err();
        assert_eq!(mistakes.len(), MAX_MISTAKES + 1);
        assert_eq!(mistakes.last().unwrap().message, "5 more mistakes are not shown");
    }
}

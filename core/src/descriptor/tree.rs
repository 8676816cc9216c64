//! A document as a tree that knows where everything stands, and typed readers that note mistakes instead of stopping.

use super::finding::{Code, Finding, Findings, did_you_mean, is_near, shown};
use super::{MAX_ENTRIES, MAX_LONG_TEXT, MAX_TEXT};

/// A value and where it starts, line and column counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// What JSON and YAML have in common. Numbers and booleans keep the text they were written as.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool, String),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands; keys of one mapping differ.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Value {
    /// What it is, with an article, for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(..) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// A value with its path: what the readers below work on.
#[derive(Debug, Clone)]
pub(super) struct Item<'t> {
    pub(super) node: &'t Node,
    pub(super) path: String,
}

impl<'t> Item<'t> {
    /// The document itself.
    pub(super) const fn root(node: &'t Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    /// A finding at this value.
    pub(super) fn finding(&self, code: Code, message: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            ..Finding::whole(code, message)
        }
        .at(self.node.line, self.node.column)
    }

    /// Notes that the value is of another type than `expected`.
    pub(super) fn wrong_type(&self, expected: &str, findings: &mut Findings) {
        let finding = self.finding(
            Code::WrongType,
            format!("{expected} is expected here, not {}", self.node.value.kind()),
        );
        findings.mistake(match &self.node.value {
            Value::Null => finding.with_help("give it a value, or leave the key out if it has a default"),
            Value::Number(raw) | Value::Bool(_, raw) if expected == "a text" => {
                finding.with_help(format!("put it in quotes: \"{}\"", shown(raw)))
            }
            _ => finding,
        });
    }

    /// A text of at most [`MAX_TEXT`] bytes without NUL.
    pub(super) fn text(&self, findings: &mut Findings) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(text) => self.checked(text, MAX_TEXT, findings),
            _ => {
                self.wrong_type("a text", findings);
                None
            }
        }
    }

    /// Like [`Self::text`], up to [`MAX_LONG_TEXT`].
    pub(super) fn long_text(&self, findings: &mut Findings) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(text) => self.checked(text, MAX_LONG_TEXT, findings),
            _ => {
                self.wrong_type("a text", findings);
                None
            }
        }
    }

    /// Like [`Self::long_text`]; a number or a boolean counts as the text it was written as.
    pub(super) fn scalar(&self, findings: &mut Findings) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(raw) | Value::Number(raw) | Value::Bool(_, raw) => self.checked(raw, MAX_LONG_TEXT, findings),
            Value::Null => {
                let finding = self.finding(Code::WrongType, "a text is expected here, not null");
                findings.mistake(finding.with_help("write \"\" for an empty text"));
                None
            }
            _ => {
                self.wrong_type("a text", findings);
                None
            }
        }
    }

    fn checked(&self, text: &'t str, limit: usize, findings: &mut Findings) -> Option<&'t str> {
        if text.len() > limit {
            let message = format!("the text has {} bytes; at most {limit} are accepted here", text.len());
            findings.mistake(self.finding(Code::TooLarge, message));
            return None;
        }
        if text.contains('\0') {
            findings.mistake(self.finding(Code::BadValue, "the text contains a NUL character"));
            return None;
        }
        Some(text)
    }

    /// A boolean.
    pub(super) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value, _) => Some(*value),
            Value::Text(text) => {
                let message = format!("`true` or `false` is expected here, not the text `{}`", shown(text));
                findings.mistake(self.finding(Code::WrongType, message));
                None
            }
            _ => {
                self.wrong_type("`true` or `false`", findings);
                None
            }
        }
    }

    /// A whole number from 0 to `max`; `1.0` counts as 1.
    pub(super) fn integer(&self, max: u64, findings: &mut Findings) -> Option<u64> {
        let Value::Number(raw) = &self.node.value else {
            self.wrong_type("a whole number", findings);
            return None;
        };
        match whole(raw) {
            None => {
                let message = format!("a whole number is expected here, not `{}`", shown(raw));
                findings.mistake(self.finding(Code::WrongType, message));
                None
            }
            Some(number) if number < 0.0 => {
                let message = format!(
                    "`{}` is negative; a number from 0 to {max} is expected here",
                    shown(raw)
                );
                findings.mistake(self.finding(Code::OutOfRange, message));
                None
            }
            // Every limit is far below 2^53, so the comparison and the cast are exact.
            Some(number) if number <= max as f64 => Some(number as u64),
            Some(_) => {
                let message = format!(
                    "`{}` is too large; a number from 0 to {max} is expected here",
                    shown(raw)
                );
                findings.mistake(self.finding(Code::OutOfRange, message));
                None
            }
        }
    }

    /// A list of at most [`MAX_ENTRIES`].
    pub(super) fn list(&self, findings: &mut Findings) -> Option<Vec<Item<'t>>> {
        let Value::List(nodes) = &self.node.value else {
            self.wrong_type("a list", findings);
            return None;
        };
        if !self.few_enough(nodes.len(), findings) {
            return None;
        }
        let item = |(index, node)| Item {
            node,
            path: format!("{}[{index}]", self.path),
        };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// A mapping of at most [`MAX_ENTRIES`].
    pub(super) fn table(&self, findings: &mut Findings) -> Option<Table<'t>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type("a mapping", findings);
            return None;
        };
        self.few_enough(entries.len(), findings).then(|| Table {
            item: self.clone(),
            entries,
        })
    }

    fn few_enough(&self, entries: usize, findings: &mut Findings) -> bool {
        if entries > MAX_ENTRIES {
            let message = format!("there are {entries} entries; at most {MAX_ENTRIES} are accepted");
            findings.mistake(self.finding(Code::TooLarge, message));
        }
        entries <= MAX_ENTRIES
    }

    /// Whether the value says nothing: null, false, zero, an empty text, list or mapping.
    pub(super) fn is_void(&self) -> bool {
        match &self.node.value {
            Value::Null | Value::Bool(false, _) => true,
            Value::Bool(true, _) => false,
            Value::Number(raw) => whole(raw) == Some(0.0),
            Value::Text(text) => text.is_empty(),
            Value::List(nodes) => nodes.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }
}

/// The number, if it has no fraction: `7`, `-3`, `1.0`, `1e3`, `0x1f`, `0o17`.
fn whole(raw: &str) -> Option<f64> {
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(|number| number as f64);
    let number = match (raw.strip_prefix("0x"), raw.strip_prefix("0o")) {
        (Some(digits), _) => radix(digits, 16)?,
        (_, Some(digits)) => radix(digits, 8)?,
        _ => raw.parse::<f64>().ok()?,
    };
    (number.is_finite() && number.fract() == 0.0).then_some(number)
}

/// A mapping with its path.
#[derive(Debug, Clone)]
pub(super) struct Table<'t> {
    pub(super) item: Item<'t>,
    entries: &'t [(Key, Node)],
}

impl<'t> Table<'t> {
    /// The value of `key`, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<Item<'t>> {
        let (_, node) = self.entries.iter().find(|(candidate, _)| candidate.text == key)?;
        Some(Item {
            node,
            path: self.path_of(key),
        })
    }

    /// The value of `key`; its absence is a mistake.
    pub(super) fn required(&self, key: &str, findings: &mut Findings) -> Option<Item<'t>> {
        let found = self.get(key);
        if found.is_none() {
            let finding = self.item.finding(Code::Missing, format!("`{key}` is missing"));
            let similar = self.entries.iter().find(|(there, _)| is_near(&there.text, key));
            findings.mistake(match similar {
                Some((there, _)) => finding.with_help(format!("is `{}` meant to be it?", shown(&there.text))),
                None => finding,
            });
        }
        found
    }

    /// All entries, in document order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'t Key, Item<'t>)> {
        self.entries.iter().map(|(key, node)| {
            (
                key,
                Item {
                    node,
                    path: self.path_of(&key.text),
                },
            )
        })
    }

    /// Whether there is no entry.
    pub(super) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A finding at `key`, not at its value.
    pub(super) fn at_key(&self, key: &Key, code: Code, message: impl Into<String>) -> Finding {
        Finding {
            path: self.path_of(&key.text),
            ..Finding::whole(code, message)
        }
        .at(key.line, key.column)
    }

    /// Notes every key that is not in `known`: as `not-supported-yet` if `later` names it, else as unknown.
    pub(super) fn refuse_unknown(&self, known: &[&str], later: &[(&str, &str)], findings: &mut Findings) {
        for (key, _) in self.iter() {
            if known.contains(&key.text.as_str()) {
                continue;
            }
            if let Some((_, what)) = later.iter().find(|(word, _)| *word == key.text) {
                let message = format!("`{}` ({what}) is not supported yet", key.text);
                findings.mistake(
                    self.at_key(key, Code::NotSupportedYet, message)
                        .with_help("leave it out for now"),
                );
                continue;
            }
            let finding = self.at_key(
                key,
                Code::UnknownField,
                format!("`{}` is not known here", shown(&key.text)),
            );
            let help = did_you_mean(&key.text, known.iter().copied())
                .unwrap_or_else(|| format!("known: {}", known.join(", ")));
            findings.mistake(finding.with_help(help));
        }
    }

    fn path_of(&self, key: &str) -> String {
        key_path(&self.item.path, key)
    }
}

/// The path of the value of `key` in the mapping at `path`.
pub(super) fn key_path(path: &str, key: &str) -> String {
    // A long key is cut, so that paths stay short however often they are repeated.
    let plain =
        (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[\"{}\"]", shown(key)),
    }
}

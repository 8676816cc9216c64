//! JSON to a tree with places. `serde_json` decides what is JSON and unescapes texts; the walk over a document it
//! has accepted only finds where each value stands, which `serde_json` does not tell.

use super::MAX_DEPTH;
use super::finding::{Code, Finding, Findings};
use super::tree::{Key, Node, Value, key_path};

/// Reads a whole document; duplicate keys are noted and the first one stays.
///
/// # Errors
/// The mistake that makes it impossible to go on.
pub(super) fn read(text: &str, findings: &mut Findings) -> Result<Node, Finding> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
        let place = (u32::try_from(error.line()), u32::try_from(error.column()));
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or("not readable");
        let finding = Finding::whole(Code::Syntax, format!("this is not JSON: {what}"));
        // serde_json counts columns in bytes and from 0 at a line end; good enough to find the place.
        match place {
            (Ok(line), Ok(column)) if line > 0 => finding.at(line, column.max(1)),
            _ => finding,
        }
    })?;
    let mut walk = Walk {
        text,
        at: 0,
        line: 1,
        column: 1,
        counted: 0,
        findings,
    };
    walk.value(0, "")
}

struct Walk<'t, 'f> {
    text: &'t str,
    at: usize,
    line: u32,
    /// Column at `counted`, up to where columns are counted.
    column: u32,
    counted: usize,
    findings: &'f mut Findings,
}

impl Walk<'_, '_> {
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    /// Passes white space and the separators between values.
    fn skip(&mut self) {
        while let b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' = self.peek() {
            if self.peek() == b'\n' {
                self.line = self.line.saturating_add(1);
            }
            self.at += 1;
        }
    }

    /// Line and column of what comes next. Counts on from the last place, so that a document of one line takes no longer.
    fn place(&mut self) -> (u32, u32) {
        let between = self.text.get(self.counted..self.at).unwrap_or("");
        let fresh = between.rsplit('\n').next().unwrap_or("");
        if fresh.len() < between.len() {
            self.column = 1;
        }
        self.column = self
            .column
            .saturating_add(u32::try_from(fresh.chars().count()).unwrap_or(u32::MAX));
        self.counted = self.at;
        (self.line, self.column)
    }

    fn value(&mut self, depth: usize, path: &str) -> Result<Node, Finding> {
        self.skip();
        let (line, column) = self.place();
        let value = match self.peek() {
            b'{' | b'[' if depth >= MAX_DEPTH => return Err(too_deep(path).at(line, column)),
            b'{' => self.map(depth, path)?,
            b'[' => self.list(depth, path)?,
            b'"' => Value::Text(self.string()?),
            _ => self.plain(),
        };
        Ok(Node { value, line, column })
    }

    fn list(&mut self, depth: usize, path: &str) -> Result<Value, Finding> {
        self.at += 1;
        let mut nodes = Vec::new();
        loop {
            self.skip();
            if matches!(self.peek(), b']' | 0) {
                self.at += 1;
                return Ok(Value::List(nodes));
            }
            let node = self.value(depth + 1, &format!("{path}[{}]", nodes.len()))?;
            nodes.push(node);
        }
    }

    fn map(&mut self, depth: usize, path: &str) -> Result<Value, Finding> {
        self.at += 1;
        let mut entries = Entries::default();
        loop {
            self.skip();
            if matches!(self.peek(), b'}' | 0) {
                self.at += 1;
                return Ok(Value::Map(entries.finish()));
            }
            let (line, column) = self.place();
            let key = Key {
                text: self.string()?,
                line,
                column,
            };
            let key_path = key_path(path, &key.text);
            let node = self.value(depth + 1, &key_path)?;
            entries.push(key, node, key_path, self.findings);
        }
    }

    fn string(&mut self) -> Result<String, Finding> {
        let (line, column) = self.place();
        let start = self.at;
        self.at += 1;
        while !matches!(self.peek(), b'"' | 0) {
            self.at += if self.peek() == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let quoted = self.text.get(start..self.at).unwrap_or("");
        serde_json::from_str(quoted)
            .map_err(|_| Finding::whole(Code::Syntax, "this text has an escape that is no character").at(line, column))
    }

    fn plain(&mut self) -> Value {
        let start = self.at;
        while !matches!(self.peek(), b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n' | 0) {
            self.at += 1;
        }
        match self.text.get(start..self.at).unwrap_or("") {
            "null" => Value::Null,
            "true" => Value::Bool(true, "true".to_owned()),
            "false" => Value::Bool(false, "false".to_owned()),
            number => Value::Number(number.to_owned()),
        }
    }
}

/// Entries of a mapping as they are read; the first of two equal keys stays.
#[derive(Debug, Default)]
pub(super) struct Entries {
    seen: std::collections::HashMap<String, u32>,
    entries: Vec<(Key, Node)>,
}

impl Entries {
    /// Adds an entry, or notes that the key was there before.
    pub(super) fn push(&mut self, key: Key, node: Node, path: String, findings: &mut Findings) {
        if let Some(line) = self.seen.get(&key.text) {
            let message = format!(
                "the key `{}` was given before, in line {line}",
                super::finding::shown(&key.text)
            );
            findings.mistake(
                Finding {
                    path,
                    ..Finding::whole(Code::DuplicateKey, message)
                }
                .at(key.line, key.column),
            );
            return;
        }
        self.seen.insert(key.text.clone(), key.line);
        self.entries.push((key, node));
    }

    /// Whether there is such a key.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.seen.contains_key(key)
    }

    /// All entries, in document order.
    pub(super) fn finish(self) -> Vec<(Key, Node)> {
        self.entries
    }
}

/// The document has too many levels.
pub(super) fn too_deep(path: &str) -> Finding {
    let message = format!("lists and mappings are nested more than {MAX_DEPTH} levels deep");
    Finding {
        path: path.to_owned(),
        ..Finding::whole(Code::TooLarge, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_ok(text: &str) -> Node {
        read(text, &mut Findings::default()).unwrap()
    }

    #[test]
    fn places_count_characters_from_one() {
        let node = read_ok("{\n  \"ä\": [1.0, true]\n}");
        let Value::Map(entries) = node.value else { panic!() };
        assert_eq!((entries[0].0.line, entries[0].0.column), (2, 3));
        let Value::List(items) = &entries[0].1.value else {
            panic!()
        };
        assert_eq!((items[0].line, items[0].column), (2, 9));
        assert_eq!(items[0].value, Value::Number("1.0".into()));
        assert_eq!((items[1].line, items[1].column), (2, 14));
    }

    #[test]
    fn syntax_depth_and_lone_surrogates_are_mistakes() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&deep(MAX_DEPTH), &mut Findings::default()).is_ok());
        for bad in [
            deep(MAX_DEPTH + 1),
            deep(100_000),
            "{".into(),
            "{} {}".into(),
            "\"\\ud800\"".into(),
            "".into(),
        ] {
            assert!(read(&bad, &mut Findings::default()).is_err());
        }
    }

    #[test]
    fn duplicate_keys_are_noted() {
        let mut findings = Findings::default();
        read("{\"a\": 1,\n \"a\": 2, \"a\": 3}", &mut findings).unwrap();
        let mistakes = findings.finish().unwrap_err();
        assert_eq!(mistakes.len(), 2);
        assert_eq!((mistakes[0].line, mistakes[0].column), (Some(2), Some(2)));
    }
}

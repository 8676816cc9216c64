//! YAML to a tree with places, from the events of the parser under `serde-saphyr`.
//!
//! Read are: one document, the core schema of YAML 1.2 with strict booleans (`no`, `off`, `y` are texts), anchors and
//! merge keys (`<<`). What aliases expand to is bounded. Tags other than those of the core schema are refused.

use super::MAX_DEPTH;
use super::finding::{Code, Finding, Findings, shown};
use super::json::{Entries, too_deep};
use super::tree::{Key, Node, Value, key_path};
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};
use std::collections::HashMap;

/// Values of a document at most, those that aliases repeat counted again.
const MAX_NODES: usize = 50_000;
/// Bytes of texts that aliases may repeat.
const MAX_REPEATED_BYTES: usize = 1024 * 1024;

/// Reads a whole document; duplicate keys are noted and the first one stays.
///
/// # Errors
/// The mistake that makes it impossible to go on.
pub(super) fn read(text: &str, findings: &mut Findings) -> Result<Node, Finding> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader {
        parser,
        anchors: HashMap::new(),
        nodes: 0,
        repeated_bytes: 0,
        findings,
    };
    let mut document = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(..) if document.is_some() => {
                let finding = Finding::whole(Code::Syntax, "a second document starts here");
                return Err(place(finding, span)
                    .with_help("put one document in a file; several applications go under `applications`"));
            }
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event => document = Some(reader.node(event, span, 0, "")?),
        }
    }
    document.ok_or_else(|| Finding::whole(Code::Syntax, "the document is empty"))
}

/// A value that an anchor names, with what an alias to it costs.
struct Anchored {
    node: Node,
    levels: usize,
    nodes: usize,
    bytes: usize,
}

struct Reader<'t, 'f> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    repeated_bytes: usize,
    findings: &'f mut Findings,
}

impl<'t> Reader<'t, '_> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Finding> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let finding = Finding::whole(Code::Syntax, format!("this is not YAML: {}", error.info()));
                let marker = error.marker();
                Err(finding.at(count(marker.line()), count(marker.col() + 1)))
            }
            None => Err(Finding::whole(Code::Syntax, "the document ends too early")),
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Finding> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            let message = format!("the document has more than {MAX_NODES} values, with those that aliases repeat");
            return Err(place(Finding::whole(Code::TooLarge, message), span));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize, path: &str) -> Result<Node, Finding> {
        self.count(1, span)?;
        let (line, column) = (count(span.start.line()), count(span.start.col() + 1));
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar(&text, style, tag.as_deref(), span)?, anchor),
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "seq", span)?;
                (self.list(span, depth, path)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "map", span)?;
                (self.map(span, depth, path)?, anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, span, depth, path),
            _ => return Err(place(Finding::whole(Code::Syntax, "a value is expected here"), span)),
        };
        let node = Node { value, line, column };
        if anchor != 0 {
            let (levels, nodes, bytes) = measure(&node);
            self.anchors.insert(
                anchor,
                Anchored {
                    node: node.clone(),
                    levels,
                    nodes,
                    bytes,
                },
            );
            // The copy that is kept costs as much as an alias to it.
            self.repeat(nodes, bytes, span)?;
        }
        Ok(node)
    }

    fn repeat(&mut self, nodes: usize, bytes: usize, span: Span) -> Result<(), Finding> {
        self.count(nodes, span)?;
        self.repeated_bytes = self.repeated_bytes.saturating_add(bytes);
        if self.repeated_bytes > MAX_REPEATED_BYTES {
            let message = "the aliases of the document repeat more than 1 MiB";
            return Err(place(Finding::whole(Code::TooLarge, message), span));
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize, path: &str) -> Result<Node, Finding> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(place(
                Finding::whole(Code::Syntax, "this alias is inside the value that it repeats"),
                span,
            ));
        };
        let (levels, nodes, bytes) = (anchored.levels, anchored.nodes, anchored.bytes);
        if depth + levels > MAX_DEPTH {
            return Err(place(too_deep(path), span));
        }
        self.repeat(nodes, bytes, span)?;
        // Looked up again, as `repeat` needed the whole reader.
        match self.anchors.get(&anchor) {
            Some(anchored) => Ok(anchored.node.clone()),
            None => Err(place(Finding::whole(Code::Syntax, "this alias has no anchor"), span)),
        }
    }

    fn list(&mut self, span: Span, depth: usize, path: &str) -> Result<Value, Finding> {
        if depth >= MAX_DEPTH {
            return Err(place(too_deep(path), span));
        }
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(nodes)),
                (event, span) => {
                    let node = self.node(event, span, depth + 1, &format!("{path}[{}]", nodes.len()))?;
                    nodes.push(node);
                }
            }
        }
    }

    fn map(&mut self, span: Span, depth: usize, path: &str) -> Result<Value, Finding> {
        if depth >= MAX_DEPTH {
            return Err(place(too_deep(path), span));
        }
        let mut entries = Entries::default();
        let mut merges = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                other => other,
            };
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, span, depth + 1, path)?;
            let place = (key.line, key.column);
            let text = match key.value {
                Value::Text(text) | Value::Number(text) | Value::Bool(_, text) => text,
                other => {
                    let message = format!("a key must be a text, not {}", other.kind());
                    let finding = Finding {
                        path: path.to_owned(),
                        ..Finding::whole(Code::Syntax, message)
                    };
                    self.findings.mistake(finding.at(place.0, place.1));
                    String::new()
                }
            };
            let value_path = key_path(path, &text);
            let (event, value_span) = self.next()?;
            let value = self.node(event, value_span, depth + 1, &value_path)?;
            if is_merge {
                merges.push(value);
            } else {
                entries.push(
                    Key {
                        text,
                        line: place.0,
                        column: place.1,
                    },
                    value,
                    value_path,
                    self.findings,
                );
            }
        }
        for merge in merges {
            self.merge(&mut entries, merge, path);
        }
        Ok(Value::Map(entries.finish()))
    }

    /// Adds what `<<` names; keys that are there already win.
    fn merge(&mut self, entries: &mut Entries, node: Node, path: &str) {
        match node.value {
            Value::Map(merged) => {
                for (key, value) in merged {
                    if !entries.contains(&key.text) {
                        let path = key_path(path, &key.text);
                        entries.push(key, value, path, self.findings);
                    }
                }
            }
            Value::List(nodes) if nodes.iter().all(|node| matches!(node.value, Value::Map(_))) => {
                nodes.into_iter().for_each(|node| self.merge(entries, node, path));
            }
            other => {
                let message = format!("`<<` takes a mapping or a list of them, not {}", other.kind());
                let finding = Finding {
                    path: key_path(path, "<<"),
                    ..Finding::whole(Code::WrongType, message)
                };
                self.findings.mistake(finding.at(node.line, node.column));
            }
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn place(finding: Finding, span: Span) -> Finding {
    finding.at(count(span.start.line()), count(span.start.col() + 1))
}

/// Levels, values and bytes of texts below and including `node`.
fn measure(node: &Node) -> (usize, usize, usize) {
    let add = |(levels, nodes, bytes): (usize, usize, usize), key: usize, child: &Node| {
        let below = measure(child);
        (levels.max(below.0 + 1), nodes + below.1, bytes + below.2 + key)
    };
    match &node.value {
        Value::Null => (0, 1, 0),
        Value::Bool(_, raw) | Value::Number(raw) | Value::Text(raw) => (0, 1, raw.len()),
        Value::List(nodes) => nodes.iter().fold((1, 1, 0), |sum, child| add(sum, 0, child)),
        Value::Map(entries) => entries
            .iter()
            .fold((1, 1, 0), |sum, (key, child)| add(sum, key.text.len(), child)),
    }
}

fn check_tag(tag: Option<&Tag>, expected: &str, span: Span) -> Result<(), Finding> {
    match tag {
        Some(tag) if tag.core_suffix() != Some(expected) => Err(refuse_tag(tag, span)),
        _ => Ok(()),
    }
}

fn refuse_tag(tag: &Tag, span: Span) -> Finding {
    place(
        Finding::whole(
            Code::Syntax,
            format!("the tag `{}` is not read here", shown(tag.suffix())),
        ),
        span,
    )
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Value, Finding> {
    let plain = style == ScalarStyle::Plain;
    match tag {
        None if plain => Ok(resolve(text)),
        None => Ok(Value::Text(text.to_owned())),
        Some(tag) => match tag.core_suffix() {
            Some("str") => Ok(Value::Text(text.to_owned())),
            Some("null" | "bool" | "int" | "float") => Ok(resolve(text)),
            _ => Err(refuse_tag(tag, span)),
        },
    }
}

/// The core schema, YAML 1.2.2 section 10.3.2; infinities and not-a-numbers stay texts, no field takes them.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true, text.to_owned()),
        "false" | "False" | "FALSE" => Value::Bool(false, text.to_owned()),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

/// `[-+]?[0-9]+`, `0o[0-7]+`, `0x[0-9a-fA-F]+` or `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_number(text: &str) -> bool {
    let all = |digits: &str, ok: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|b| ok(&b));
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, u8::is_ascii_hexdigit);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |b| (b'0'..=b'7').contains(b));
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction) && (!whole.is_empty() || !fraction.is_empty()),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    mantissa_ok && exponent.is_none_or(|exponent| all(exponent, u8::is_ascii_digit))
}

#[cfg(test)]
mod tests;

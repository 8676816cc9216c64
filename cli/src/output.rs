//! Results in the four formats.

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::Format;
use crate::text::clean;
use anyhow::Context as _;
use comfy_table::{Table, presets};
use roble_core::time::Timestamp;
use serde::Serialize;
use std::io::Write as _;

/// One kind of object, as people see it.
pub trait View: Serialize {
    /// Plural, for `no ... yet`.
    const PLURAL: &'static str;
    /// Columns.
    const HEADERS: &'static [&'static str];
    /// A reference that other commands take.
    fn name(&self) -> String;
    /// Its row, one text per header.
    fn row(&self, now: Timestamp) -> Vec<String>;
    /// All of it.
    fn describe(&self, page: &mut Page, now: Timestamp);
}

/// Prints several objects: a table, or an array.
///
/// # Errors
/// As writing.
pub fn list<T: View>(console: &mut Console, format: Format, items: &[T]) -> Result<(), Failure> {
    match format {
        Format::Table if items.is_empty() => console.hint(format_args!("no {} yet", T::PLURAL)),
        Format::Table => {
            let now = console.now();
            let rows = items.iter().map(|item| item.row(now));
            console.out.write_all(table(T::HEADERS, rows).as_bytes())?;
        }
        Format::Name => names(console, items)?,
        Format::Json | Format::Yaml => document(console, format, items)?,
    }
    Ok(console.out.flush()?)
}

/// Prints one object: a table of one row, or the object itself.
///
/// # Errors
/// As writing.
pub fn one<T: View>(console: &mut Console, format: Format, item: &T) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Name => list(console, format, std::slice::from_ref(item)),
        Format::Json | Format::Yaml => document(console, format, item),
    }
}

/// Prints the details of objects, or, in the other formats, what [`list`] and [`one`] print.
///
/// # Errors
/// As writing.
pub fn details<T: View>(console: &mut Console, format: Format, items: &[T]) -> Result<(), Failure> {
    match (format, items) {
        (Format::Table, _) => {}
        (_, [item]) => return one(console, format, item),
        _ => return list(console, format, items),
    }
    let now = console.now();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            writeln!(console.out)?;
        }
        let mut page = Page::default();
        item.describe(&mut page, now);
        console.out.write_all(page.text().as_bytes())?;
    }
    Ok(console.out.flush()?)
}

fn names<T: View>(console: &mut Console, items: &[T]) -> Result<(), Failure> {
    for item in items {
        writeln!(console.out, "{}", clean(&item.name()))?;
    }
    Ok(())
}

/// Prints anything as JSON or YAML; as JSON for the formats that are neither.
///
/// # Errors
/// As writing.
pub fn document<T: Serialize + ?Sized>(console: &mut Console, format: Format, item: &T) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(&item).context("write the answer as YAML")?,
        _ => serde_json::to_string_pretty(item).context("write the answer as JSON")?,
    };
    writeln!(console.out, "{}", text.trim_end())?;
    Ok(console.out.flush()?)
}

/// Prints one of many objects that have no end: JSON on one line, or a YAML document of its own.
///
/// # Errors
/// As writing.
pub fn document_of_stream<T: Serialize>(console: &mut Console, format: Format, item: &T) -> Result<(), Failure> {
    if format == Format::Yaml {
        writeln!(console.out, "---")?;
        return document(console, format, item);
    }
    let text = serde_json::to_string(item).context("write the answer as JSON")?;
    writeln!(console.out, "{text}")?;
    Ok(console.out.flush()?)
}

/// A table without borders, columns two spaces apart, lines without trailing spaces.
pub fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headers.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Details: `Key:  value` lines with aligned values, and sections.
#[derive(Debug, Default)]
pub struct Page {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Entry(String, String),
    Section(String),
    Text(String),
}

impl Page {
    /// A key and its value.
    pub fn entry(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.lines.push(Line::Entry(key.to_owned(), clean(&value.to_string())));
        self
    }

    /// A key and its value, unless there is none.
    pub fn maybe(&mut self, key: &str, value: Option<impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.entry(key, value);
        }
        self
    }

    /// A heading for what follows.
    pub fn section(&mut self, title: &str) -> &mut Self {
        self.lines.push(Line::Section(title.to_owned()));
        self
    }

    /// Lines below a heading, indented.
    pub fn text_block(&mut self, text: &str) -> &mut Self {
        self.lines
            .extend(text.lines().map(|line| Line::Text(format!("  {}", clean(line)))));
        self
    }

    /// The page.
    pub fn text(&self) -> String {
        let width = self.lines.iter().map(|line| match line {
            Line::Entry(key, _) => key.chars().count() + 1,
            _ => 0,
        });
        let width = width.max().unwrap_or(0);
        let mut text = String::new();
        for line in &self.lines {
            let line = match line {
                Line::Entry(key, value) => format!("{:width$}  {value}", format!("{key}:")),
                Line::Section(title) => format!("{title}:"),
                Line::Text(line) => line.clone(),
            };
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

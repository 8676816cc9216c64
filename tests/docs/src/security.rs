//! docs/security.md: rows of tables whose second column is `shown by`, with tests as `` `path/to/file.rs::function` ``.

use std::path::Path;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// What is done.
    pub text: String,
    /// What stands beside it.
    pub shown_by: String,
}

/// All measures of the page.
pub fn measures(page: &str) -> Vec<Measure> {
    let mut measures = Vec::new();
    let mut in_table = false;
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        match cells.as_slice() {
            ["measure", "shown by"] => in_table = true,
            ["---", "---"] => {}
            [text, shown_by] if in_table => measures.push(Measure {
                text: (*text).to_owned(),
                shown_by: (*shown_by).to_owned(),
            }),
            _ => {}
        }
    }
    measures
}

/// What is wrong with a measure; empty if nothing is.
pub fn mistakes(measure: &Measure, tree: &Path) -> Vec<String> {
    let tests: Vec<(&str, &str)> = measure
        .shown_by
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once(".rs::"))
        .collect();
    let mut mistakes: Vec<String> = tests
        .iter()
        .filter(|(file, function)| !is_test(&tree.join(format!("{file}.rs")), function))
        .map(|(file, function)| format!("there is no test {file}.rs::{function}"))
        .collect();
    let why = measure.shown_by.split_once("not yet").map(|(_, why)| why);
    match why {
        None if tests.is_empty() => mistakes.push("neither a test nor \"not yet\"".to_owned()),
        Some(why) if why.split_whitespace().count() < 2 => mistakes.push("\"not yet\" without why".to_owned()),
        _ => {}
    }
    mistakes
}

/// Whether `file` has the test `function`: with an attribute that says so, or within `proptest!`.
fn is_test(file: &Path, function: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let begins = format!("fn {function}(");
    let Some(at) = lines
        .iter()
        .position(|line| line.trim_start_matches("async ").starts_with(&begins))
    else {
        return false;
    };
    let above = lines[..at]
        .iter()
        .rev()
        .take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    above
        .filter(|line| line.starts_with("#["))
        .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

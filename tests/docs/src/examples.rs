//! Every file below examples/ that a user could apply is named by a test that applies it.

use std::path::Path;

/// Names of the descriptors in examples/.
///
/// # Errors
/// The folder cannot be read.
pub fn descriptors(tree: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(tree.join("examples"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The texts of the end-to-end tests, in one.
///
/// # Errors
/// The folder cannot be read.
pub fn end_to_end_tests(tree: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(tree.join("tests/e2e/tests"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "rs") {
            text += &std::fs::read_to_string(path)?;
        }
    }
    Ok(text)
}

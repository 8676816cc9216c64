//! Writes the generated parts of docs/.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = roble_docs::config_path();
    let written = std::fs::read_to_string(&path).and_then(|page| match roble_docs::config_page(&page) {
        Some(page) => std::fs::write(&path, page),
        None => Err(std::io::Error::other("the marks around the tables are gone")),
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

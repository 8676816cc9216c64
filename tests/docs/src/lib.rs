//! What docs/ says that the source tree knows better.
//!
//! - [`config_page`]: the tables of docs/config.md, written by `cargo run -p roble-docs`.
//! - [`security`]: docs/security.md, each measure with the tests that show it.
//! - [`examples`]: every file below examples/ is run by some test.

pub mod examples;
pub mod security;

use roble_daemon::config::{Spec, markdown};
use std::path::{Path, PathBuf};

/// The settings of every daemon, in the order of the page.
const SPECS: [&Spec; 4] = [
    &roble_root::config::SPEC,
    &roble_cluster::config::SPEC,
    &roble_node::config::SPEC,
    &roble_net::config::SPEC,
];
/// The generated part begins after this line.
const BEGIN: &str = "<!-- written by `cargo run -p roble-docs` -->\n";
/// And ends before this one.
const END: &str = "<!-- end of the written part -->\n";

/// The top of the source tree.
pub fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the page of settings is.
pub fn config_path() -> PathBuf {
    tree().join("docs/config.md")
}

/// The page `present` with its tables as the daemons' settings are now; `None` without the marks.
pub fn config_page(present: &str) -> Option<String> {
    let (before, rest) = present.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let tables: Vec<String> = SPECS.iter().map(|spec| markdown(spec)).collect();
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", tables.join("\n")))
}

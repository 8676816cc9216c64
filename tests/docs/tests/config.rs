//! docs/config.md.

use roble_docs::{config_page, config_path};

#[test]
fn the_tables_of_settings_are_those_of_the_daemons() {
    let page = std::fs::read_to_string(config_path()).unwrap();
    let written = config_page(&page).expect("the marks around the tables");
    assert!(
        page == written,
        "docs/config.md is old: run `cargo run -p roble-docs`, read what changed, and commit it"
    );
}

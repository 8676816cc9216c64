//! docs/security.md.

use roble_docs::security::{Measure, measures, mistakes};
use roble_docs::tree;

#[test]
fn every_measure_names_a_test_that_exists_or_says_why_not() {
    let page = std::fs::read_to_string(tree().join("docs/security.md")).unwrap();
    let measures = measures(&page);
    assert!(
        measures.len() > 40,
        "only {} measures: is the page still in its shape?",
        measures.len()
    );
    let wrong: Vec<String> = measures
        .iter()
        .flat_map(|measure| {
            let of = |mistake| format!("{}: {mistake}", measure.text);
            mistakes(measure, &tree()).into_iter().map(of)
        })
        .collect();
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_of_measures_notices_what_is_wrong() {
    let found = |shown_by: &str| {
        let measure = Measure {
            text: "a".to_owned(),
            shown_by: shown_by.to_owned(),
        };
        mistakes(&measure, &tree()).len()
    };
    let here = "`tests/docs/tests/security.rs::the_check_of_measures_notices_what_is_wrong`";
    assert_eq!(found(here), 0);
    assert_eq!(found("not yet: it needs hardware"), 0);
    assert_eq!(found("`tests/docs/tests/security.rs::no_such_test`"), 1);
    assert_eq!(found("`tests/docs/src/lib.rs::config_page`"), 1, "no test");
    assert_eq!(found("`no/such/file.rs::a`"), 1);
    assert_eq!(found("the code"), 1);
    assert_eq!(found("not yet"), 1);
}

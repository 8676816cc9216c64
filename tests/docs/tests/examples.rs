//! examples/.

use roble_docs::{examples, tree};

#[test]
fn every_example_is_applied_by_an_end_to_end_test() {
    let tests = examples::end_to_end_tests(&tree()).unwrap();
    for name in examples::descriptors(&tree()).unwrap() {
        assert!(
            tests.contains(&format!("\"examples/{name}\"")),
            "no test in tests/e2e applies examples/{name}"
        );
    }
}

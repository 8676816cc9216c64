//! Sample descriptors against their golden answers, and the corpus of the fuzzer.
//!
//! `ROBLE_BLESS=1 cargo test -p roble-core --test descriptors` writes the golden files anew.

use roble_core::descriptor::{Format, Parsed, fuzz_descriptor, parse};
use std::fs;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/descriptors")
        .join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.is_file() && file.extension().is_none_or(|extension| extension != "golden"));
    files.sort();
    assert!(!files.is_empty(), "{} holds samples", folder.display());
    files
}

fn format_of(file: &Path) -> Format {
    if file.extension().is_some_and(|extension| extension == "json") {
        Format::Json
    } else {
        Format::Yaml
    }
}

fn compare(file: &Path, answer: &str) {
    let mut golden = file.as_os_str().to_owned();
    golden.push(".golden");
    if std::env::var_os("ROBLE_BLESS").is_some() {
        fs::write(&golden, answer).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(answer, expected, "{} differs from its golden file", file.display());
}

fn shown(parsed: &Parsed) -> String {
    let mut text = String::new();
    for warning in &parsed.warnings {
        text.push_str(&format!("{warning}\n"));
    }
    text.push_str(&serde_json::to_string_pretty(&parsed.descriptor).unwrap());
    text.push('\n');
    text
}

#[test]
fn good_samples_give_their_golden_model() {
    for file in files(&folder("good")) {
        let bytes = fs::read(&file).unwrap();
        let parsed = parse(&bytes, format_of(&file)).unwrap_or_else(|m| panic!("{}: {m:#?}", file.display()));
        assert_eq!(
            parse(&bytes, Format::Auto).as_ref(),
            Ok(&parsed),
            "{}: found out by itself",
            file.display()
        );
        compare(&file, &shown(&parsed));
    }
}

#[test]
fn bad_samples_give_all_their_golden_mistakes() {
    for file in files(&folder("bad")) {
        let bytes = fs::read(&file).unwrap();
        let mistakes = parse(&bytes, format_of(&file)).expect_err(&file.display().to_string());
        let lines: Vec<String> = mistakes.iter().map(|mistake| format!("{mistake}\n")).collect();
        compare(&file, &lines.concat());
    }
}

#[test]
fn everything_that_is_stored_holds_the_fuzzers_rules() {
    for name in ["good", "bad", "corpus", "../../../examples"] {
        for file in files(&folder(name)) {
            fuzz_descriptor(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn the_examples_parse_without_a_mistake() {
    for file in files(&folder("../../../examples")) {
        let is_descriptor = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "json");
        if is_descriptor {
            let bytes = fs::read(&file).unwrap();
            parse(&bytes, Format::Auto).unwrap_or_else(|m| panic!("{}: {m:#?}", file.display()));
        }
    }
}

#[test]
fn the_two_forms_of_hello_ask_for_the_same() {
    let read = |name: &str| {
        let bytes = fs::read(folder("../../../examples").join(name)).unwrap();
        parse(&bytes, Format::Auto).unwrap().descriptor.applications
    };
    let (native, mut sla) = (read("hello.yaml"), read("hello-sla.json"));
    // Oakestra counts whole cores.
    sla[0].services[0].resources.cpu_millis = native[0].services[0].resources.cpu_millis;
    assert_eq!(native, sla);
}

#[test]
fn warnings_stay_with_the_service_they_are_about() {
    let sla = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/descriptors/good/sla-sensors.json")).unwrap();
    let parsed = parse(&sla, Format::Auto).unwrap();
    let of = |application, service| {
        let warnings = parsed.warnings_of(application, service);
        warnings.iter().map(|warning| warning.path.clone()).collect::<Vec<_>>()
    };
    let all: Vec<String> = parsed.warnings.iter().map(|warning| warning.path.clone()).collect();
    let first = |path: &&String| path.starts_with("applications[0].microservices[0]");
    assert!(all.iter().filter(first).count() > 3, "{all:?}");
    assert!(of(0, 0).iter().any(|path| path.ends_with(".bandwidth_out")));
    for (application, service) in [(0, 1), (1, 0)] {
        let others = of(application, service);
        assert!(others.iter().all(|path| !first(&path)), "{others:?}");
    }
    let native = "application: shop\nservices:\n  web: {image: a, when_cut_off: stop}\n  web-b: {image: a}\n";
    let parsed = parse(native.as_bytes(), Format::Auto).unwrap();
    let paths = |service| parsed.warnings_of(0, service).len();
    assert_eq!(
        (paths(0), paths(1)),
        (parsed.warnings.len(), 0),
        "{:?}",
        parsed.warnings
    );
}

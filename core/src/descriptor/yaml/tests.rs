use super::*;

fn read_ok(text: &str) -> Value {
    read(text, &mut Findings::default()).unwrap().value
}

fn read_err(text: &str) -> Finding {
    read(text, &mut Findings::default()).unwrap_err()
}

fn entries(value: Value) -> Vec<(String, Value)> {
    let Value::Map(entries) = value else {
        panic!("not a mapping")
    };
    entries.into_iter().map(|(key, node)| (key.text, node.value)).collect()
}

#[test]
fn words_for_yes_and_no_stay_texts() {
    for word in [
        "no",
        "off",
        "y",
        "Yes",
        "on",
        "1.2.3",
        "-",
        ".inf",
        "0x",
        "1e",
        "2024-01-01",
        "12:30",
    ] {
        assert_eq!(resolve(word), Value::Text(word.into()), "{word}");
    }
    for number in ["0", "-1", "+2", "1.0", ".5", "5.", "1e3", "0x1F", "0o17", "1.10"] {
        assert_eq!(resolve(number), Value::Number(number.into()), "{number}");
    }
    let found = entries(read_ok("no: off\ny: true\n1: ~\ntext: \"true\"\n"));
    assert_eq!(
        found,
        [
            ("no".to_owned(), Value::Text("off".into())),
            ("y".to_owned(), Value::Bool(true, "true".into())),
            ("1".to_owned(), Value::Null),
            ("text".to_owned(), Value::Text("true".into())),
        ]
    );
}

#[test]
fn places_count_from_one() {
    let node = read("a:\n  - ä: x\n", &mut Findings::default()).unwrap();
    let Value::Map(top) = &node.value else { panic!() };
    let Value::List(list) = &top[0].1.value else { panic!() };
    let Value::Map(inner) = &list[0].value else { panic!() };
    assert_eq!((top[0].0.line, top[0].0.column), (1, 1));
    assert_eq!((inner[0].0.line, inner[0].0.column), (2, 5));
    assert_eq!((inner[0].1.line, inner[0].1.column), (2, 8));
    let error = read_err("a: b\nc: [1,\n");
    assert!(error.line.is_some(), "{error}");
}

#[test]
fn anchors_and_merge_keys_work_within_bounds() {
    let found = entries(read_ok("base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\n"));
    let more = entries(found[1].1.clone());
    assert_eq!(
        more,
        [
            ("y".to_owned(), Value::Number("3".into())),
            ("x".to_owned(), Value::Number("1".into()))
        ]
    );

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let previous = level - 1;
        let list = vec![format!("*a{previous}"); 8].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert_eq!(read_err(&bomb).code, Code::TooLarge);

    let text = format!(
        "a: &a \"{}\"\nb: [{}]\n",
        "x".repeat(30_000),
        vec!["*a"; 100].join(", ")
    );
    assert_eq!(read_err(&text).code, Code::TooLarge);
    assert_eq!(read_err("a: &a [*a]\n").code, Code::Syntax);
    assert_eq!(read_err("a: *nowhere\n").code, Code::Syntax);
}

#[test]
fn what_is_not_read_is_refused() {
    for bad in [
        "",
        "# only a comment\n",
        "a: 1\n---\nb: 2\n",
        "a: !secret x\n",
        "a: !!binary aGk=\n",
        "a: [\n",
        "a: 'x",
    ] {
        assert_eq!(read_err(bad).code, Code::Syntax, "{bad:?}");
    }
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(read(&deep(MAX_DEPTH), &mut Findings::default()).is_ok());
    assert_eq!(read_err(&deep(MAX_DEPTH + 1)).code, Code::TooLarge);
    assert!(read(&deep(10_000), &mut Findings::default()).is_err());
}

#[test]
fn duplicate_keys_are_noted_also_of_a_list_of_merges() {
    let mut findings = Findings::default();
    read("a: 1\nb: 2\na: 3\n", &mut findings).unwrap();
    let mistakes = findings.finish().unwrap_err();
    assert_eq!((mistakes[0].code, mistakes[0].line), (Code::DuplicateKey, Some(3)));
}

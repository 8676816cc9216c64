use super::*;

static SETTINGS: &[Setting] = &[
    Setting::new("listen.api", Kind::Address, "where users' requests arrive").default("0.0.0.0:10000"),
    Setting::new("listen.link", Kind::Address, "where clusters dial in").default("0.0.0.0:50052"),
    Setting::new("store.cache", Kind::Size, "memory for the store").default("8MiB"),
    Setting::new("store.engine", Kind::Choice(&["redb", "sled"]), "kind of store")
        .default("redb")
        .flag("store"),
    Setting::new("names", Kind::List, "extra names in the certificate"),
    Setting::new("brake", Kind::Bool, "hold eviction when many nodes vanish").default("true"),
    Setting::new("retries", Kind::Integer, "tries per order").default("3"),
    Setting::new("join.token", Kind::String, "token to join with").secret(),
    Setting::new("admin.key", Kind::SecretFile, "key of the administrator"),
    Setting::new("state", Kind::Path, "folder of the daemon's state").required(),
];

static SPEC: Spec = Spec {
    daemon: "roble-root",
    about: "The root orchestrator.",
    version: "1.2.3",
    prefix: "ROBLE_ROOT_",
    default_file: Some("/etc/roble/root.toml"),
    settings: &[COMMON, SETTINGS],
    flags: &[ExtraFlag {
        name: "reset-admin",
        doc: "print a new admin credential",
    }],
};

fn run(inputs: &Inputs) -> Config {
    match parse(&SPEC, inputs) {
        Ok(Outcome::Run(config)) => config,
        other => panic!("{other:?}"),
    }
}

fn mistakes(inputs: &Inputs) -> Vec<String> {
    let mistakes = parse(&SPEC, inputs).unwrap_err();
    mistakes
        .0
        .iter()
        .map(|mistake| format!("{}: {}", mistake.source, mistake.message))
        .collect()
}

fn with_state() -> Inputs {
    Inputs::default().env("ROBLE_ROOT_STATE", "/var/lib/roble")
}

#[test]
fn table_is_sound_and_a_clash_is_found() {
    assert_eq!(SPEC.check(), Ok(()));
    static TWICE: &[&[Setting]] = &[&[Setting::new("a.b", Kind::Bool, ""), Setting::new("a_b", Kind::Bool, "")]];
    assert!(
        Spec {
            settings: TWICE,
            ..SPEC
        }
        .check()
        .is_err()
    );
    static BAD: &[&[Setting]] = &[&[Setting::new("a", Kind::Duration, "").default("30")]];
    assert!(
        Spec { settings: BAD, ..SPEC }
            .check()
            .unwrap_err()
            .contains("default of a")
    );
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "state = '/file'\n[listen]\napi = '127.0.0.1:1'\n[store]\ncache = '1MiB'\n";
    let mut inputs = Inputs::default().file("/etc/roble/root.toml", file);
    assert_eq!(run(&inputs).address("listen.link").port(), 50052);
    assert_eq!(run(&inputs).address("listen.api").port(), 1);
    inputs = inputs.env("ROBLE_ROOT_LISTEN_API", "127.0.0.1:2");
    assert_eq!(run(&inputs).address("listen.api").port(), 2);
    inputs = inputs.args(["--listen-api", "127.0.0.1:3", "--store=sled", "--brake=false"]);
    let config = run(&inputs);
    assert_eq!(config.address("listen.api").port(), 3);
    assert_eq!(config.size("store.cache"), 1 << 20);
    assert_eq!(config.string("store.engine"), "sled");
    assert!(!config.bool("brake"));
    assert_eq!(config.source("listen.api"), &Source::Flag("--listen-api".into()));
    assert_eq!(
        config.source("store.cache"),
        &Source::File("/etc/roble/root.toml".into())
    );
}

#[test]
fn print_config_shows_provenance_is_toml_and_keeps_secrets() {
    let file = "retries = 5\nnames = ['a', 'b']\n[admin]\nkey = '/run/key'\n";
    let inputs = with_state()
        .file("/x.toml", file)
        .env("ROBLE_ROOT_JOIN_TOKEN", "hunter2")
        .args(["--config", "/x.toml", "--log-level", "debug", "--print-config"]);
    let Ok(Outcome::Print(text)) = parse(&SPEC, &inputs) else {
        panic!()
    };
    for line in [
        "log.level = \"debug\"  # flag:--log-level",
        "listen.api = \"0.0.0.0:10000\"  # default",
        "retries = 5  # file:/x.toml",
        "names = [\"a\", \"b\"]  # file:/x.toml",
        "brake = true  # default",
        "state = \"/var/lib/roble\"  # env:ROBLE_ROOT_STATE",
        "join.token = \"<redacted>\"  # env:ROBLE_ROOT_JOIN_TOKEN",
        "admin.key = \"/run/key\"  # file:/x.toml",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line} in\n{text}");
    }
    assert!(!text.contains("hunter2"));
    text.parse::<toml::Table>().unwrap();
    let config = run(&with_state().env("ROBLE_ROOT_JOIN_TOKEN", "hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(config.print().contains("# names is not set"));
}

#[test]
fn all_mistakes_at_once_with_suggestions() {
    let file = "[listen]\nappi = '1.2.3.4:5'\n[stor]\ncache = '1MiB'\n";
    let inputs = Inputs::default()
        .file("/etc/roble/root.toml", file)
        .env("ROBLE_ROOT_STORE_CASHE", "1MiB")
        .env("ROBLE_ROOT_RETRIES", "many")
        .env("ROBLE_CLUSTER_ANYTHING", "not ours")
        .args(["--listen-apj", "1.2.3.4:5", "stray", "--brake=perhaps", "--names"]);
    let found = mistakes(&inputs);
    let expected = [
        "file:/etc/roble/root.toml: listen.appi: unknown setting, did you mean listen.api?",
        "file:/etc/roble/root.toml: stor: unknown setting",
        "env:ROBLE_ROOT_RETRIES: retries: expected a whole number, zero or more, got \"many\"",
        "env:ROBLE_ROOT_STORE_CASHE: unknown variable, did you mean ROBLE_ROOT_STORE_CACHE?",
        "flag:--listen-apj: unknown flag, did you mean --listen-api?",
        "flag:stray: expected a flag, which starts with --",
        "flag:--names: needs a value",
        "flag:--brake: brake: expected true or false, got \"perhaps\"",
        "default: state: must be set, by --state, ROBLE_ROOT_STATE or in the file",
    ];
    assert_eq!(found, expected);
    let text = parse(&SPEC, &inputs).unwrap_err().to_string();
    assert!(text.starts_with("9 mistakes in the configuration:\n  file:"), "{text}");
}

#[test]
fn a_secret_given_as_a_path_is_refused_and_not_repeated() {
    let found = mistakes(&with_state().env("ROBLE_ROOT_ADMIN_KEY", "hunter2"));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("absolute path") && !found[0].contains("hunter2"),
        "{found:?}"
    );
}

#[test]
fn file_that_is_named_must_exist_and_parse() {
    assert!(mistakes(&with_state().args(["--config", "/none"]))[0].contains("named by flag:--config"));
    assert!(mistakes(&with_state().env("ROBLE_ROOT_CONFIG", "/none"))[0].contains("named by env:ROBLE_ROOT_CONFIG"));
    let broken = mistakes(&with_state().file("/etc/roble/root.toml", "state = "));
    assert!(broken[0].contains("line 1"), "{broken:?}");
    let kinds = "brake = 'true'\nretries = '3'\nstate = 5\nnames = [1]\nlisten = 1\n[store]\ncache = 5\n";
    assert_eq!(mistakes(&with_state().file("/etc/roble/root.toml", kinds)).len(), 6);
}

#[test]
fn lists_add_up_and_empty_text_unsets() {
    let config = run(&with_state()
        .args(["--names", "a,b", "--names", "c"])
        .env("ROBLE_ROOT_JOIN_TOKEN", ""));
    assert_eq!(config.list("names"), ["a", "b", "c"]);
    assert_eq!(config.try_string("join.token"), None);
    assert_eq!(run(&with_state()).try_list("names"), None);
}

#[test]
fn help_names_everything_and_wins_over_mistakes() {
    for args in [["--help", "--nonsense"], ["--nonsense", "-h"]] {
        let Ok(Outcome::Print(text)) = parse(&SPEC, &Inputs::default().args(args)) else {
            panic!()
        };
        for setting in SPEC.settings() {
            assert!(
                text.contains(&setting.env_name("ROBLE_ROOT_")) && text.contains(&setting.flag_name()),
                "{text}"
            );
        }
        assert!(text.contains("--reset-admin") && text.contains("[required]"));
    }
    let Ok(Outcome::Print(text)) = parse(&SPEC, &Inputs::default().args(["-V"])) else {
        panic!()
    };
    assert_eq!(text, "roble-root 1.2.3\n");
}

#[test]
fn extra_flags_are_seen() {
    assert!(run(&with_state().args(["--reset-admin"])).flag("reset-admin"));
    assert!(!run(&with_state()).flag("reset-admin"));
    assert!(mistakes(&with_state().args(["--reset-admin=yes"]))[0].contains("takes no value"));
}

#[test]
fn secret_files_are_read_without_their_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let config = run(&with_state().env("ROBLE_ROOT_ADMIN_KEY", path.to_str().unwrap()));
    assert!(config.secret("admin.key").is_err());
    std::fs::write(&path, "hunter2\n").unwrap();
    assert_eq!(**config.secret("admin.key").unwrap().unwrap(), *b"hunter2");
    assert!(run(&with_state()).secret("admin.key").unwrap().is_none());
}

#[test]
fn markdown_has_a_row_per_setting() {
    let text = markdown(&SPEC);
    assert!(
        text.contains(
            "| `store.engine` | `ROBLE_ROOT_STORE_ENGINE` | `--store` | redb, sled | `redb` | kind of store |"
        )
    );
    assert_eq!(
        text.lines().filter(|line| line.starts_with("| `")).count(),
        SPEC.settings().count() + 1
    );
}

//! The table as text: `--help`, `--print-config`, docs/config.md.

use std::fmt::Write as _;

use super::value::Value;
use super::{Config, Setting, Spec};

/// What `--help` prints.
pub fn help(spec: &Spec) -> String {
    let mut rows = vec![
        ("-h, --help".to_owned(), "print this and exit".to_owned()),
        ("-V, --version".to_owned(), "print the version and exit".to_owned()),
        (
            "    --print-config".to_owned(),
            "print every setting and where it came from, and exit".to_owned(),
        ),
        ("    --config <PATH>".to_owned(), {
            let default = spec
                .default_file
                .map_or_else(String::new, |path| format!(" [default: {path}, if it exists]"));
            format!("file to read [env: {}]{default}", spec.file_variable())
        }),
    ];
    rows.extend(
        spec.flags
            .iter()
            .map(|flag| (format!("    --{}", flag.name), flag.doc.to_owned())),
    );
    let own = rows.len();
    rows.extend(spec.settings().map(|setting| {
        let mut text = format!("{} [env: {}]", setting.doc, setting.env_name(spec.prefix));
        if let Some(default) = setting.default {
            let _ = write!(text, " [default: {default}]");
        }
        if setting.required {
            text.push_str(" [required]");
        }
        (
            format!("    --{} <{}>", setting.flag_name(), setting.kind.placeholder()),
            text,
        )
    }));
    let mut text = format!("{}\n\nUsage: {} [flags]\n\nFlags:\n", spec.about, spec.daemon);
    for (number, (flag, doc)) in rows.iter().enumerate() {
        if number == own {
            text.push_str("\nSettings (flag over environment over file over default):\n");
        }
        let _ = writeln!(text, "  {flag}\n          {doc}");
    }
    text
}

/// The table of one daemon for docs/config.md.
pub fn markdown(spec: &Spec) -> String {
    let mut text = format!("## {}\n\n{}", spec.daemon, spec.about);
    if let Some(path) = spec.default_file {
        let _ = write!(
            text,
            " File: `{path}`, or what `--config` or `{}` names.",
            spec.file_variable()
        );
    }
    text.push_str(
        "\n\n| setting | variable | flag | kind | default | meaning |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for setting in spec.settings() {
        let default = match setting.default {
            Some(default) => format!("`{default}`"),
            None if setting.required => "required".into(),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "| `{}` | `{}` | `--{}` | {} | {default} | {} |",
            setting.key,
            setting.env_name(spec.prefix),
            setting.flag_name(),
            setting.kind.placeholder().replace('|', ", "),
            setting.doc.replace('|', "\\|"),
        );
    }
    if !spec.flags.is_empty() {
        text.push_str("\n| flag | meaning |\n| --- | --- |\n");
        for flag in spec.flags {
            let _ = writeln!(text, "| `--{}` | {} |", flag.name, flag.doc.replace('|', "\\|"));
        }
    }
    text
}

impl Config {
    /// What `--print-config` prints: valid TOML, each line with where its value came from; secrets are not shown.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for setting in self.spec.settings() {
            let entry = &self.entries[setting.key];
            let _ = match &entry.value {
                None => writeln!(text, "# {} is not set", setting.key),
                Some(value) => {
                    writeln!(
                        text,
                        "{} = {}  # {}",
                        setting.key,
                        shown(setting, &entry.text, value),
                        entry.source
                    )
                }
            };
        }
        text
    }
}

fn shown(setting: &Setting, text: &str, value: &Value) -> String {
    if setting.secret {
        return "\"<redacted>\"".into();
    }
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::List(items) => toml::Value::from(items.clone()).to_string(),
        _ => toml::Value::from(text).to_string(),
    }
}

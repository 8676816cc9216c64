//! Reading and merging the layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arguments::Arguments;
use super::suggest::did_you_mean;
use super::value::Value;
use super::view::Entry;
use super::{Config, Kind, Mistake, Mistakes, Setting, Source, Spec, help};
use crate::files;

/// Longest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads a file; `None` if there is none.
type ReadFile = Arc<dyn Fn(&Path) -> Result<Option<Vec<u8>>, String> + Send + Sync>;

/// What configuration is read from, gathered so that parsing needs nothing else.
#[derive(Clone)]
pub struct Inputs {
    /// Environment variables by name.
    env: BTreeMap<String, String>,
    /// Arguments without the program's name.
    args: Vec<String>,
    read_file: ReadFile,
}

impl Default for Inputs {
    /// No variables, no arguments, no files.
    fn default() -> Self {
        Self {
            env: BTreeMap::new(),
            args: Vec::new(),
            read_file: Arc::new(|_| Ok(None)),
        }
    }
}

impl Inputs {
    /// Those of this process. Texts that are not UTF-8 are read with replacement characters.
    pub fn of_process() -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            env: std::env::vars_os()
                .map(|(name, value)| (lossy(name), lossy(value)))
                .collect(),
            args: std::env::args_os().skip(1).map(lossy).collect(),
            read_file: Arc::new(|path| {
                files::read_optional(path, MAX_FILE_BYTES)
                    .map_err(|error| std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string))
            }),
        }
    }

    /// Those of this process, without the `words` that chose a command: `roble-root credential --state-dir DIR` has one.
    pub fn of_command(words: usize) -> Self {
        let mut inputs = Self::of_process();
        inputs.args.drain(..inputs.args.len().min(words));
        inputs
    }

    /// Without its arguments.
    #[must_use]
    pub fn without_args(mut self) -> Self {
        self.args.clear();
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// Makes `path` the only file there is, with this content.
    #[must_use]
    pub fn file(mut self, path: &str, content: &str) -> Self {
        let (path, content) = (PathBuf::from(path), content.as_bytes().to_vec());
        self.read_file = Arc::new(move |asked| Ok((asked == path).then(|| content.clone())));
        self
    }
}

/// What the inputs ask for.
#[derive(Debug)]
pub enum Outcome {
    /// To run with this.
    Run(Config),
    /// To print this and exit.
    Print(String),
}

/// Merges the layers.
///
/// # Errors
/// All mistakes, in the order file, environment, flags, missing. `--help` and `--version` win over mistakes.
pub fn parse(spec: &Spec, inputs: &Inputs) -> Result<Outcome, Mistakes> {
    let arguments = Arguments::read(spec, &inputs.args);
    if arguments.has("help") {
        return Ok(Outcome::Print(help(spec)));
    }
    if arguments.has("version") {
        return Ok(Outcome::Print(format!("{} {}\n", spec.daemon, spec.version)));
    }
    let mut layers = Layers::new(spec);
    layers.file(inputs, &arguments);
    layers.environment(&inputs.env);
    layers.arguments(&arguments);
    layers.missing();
    if !layers.mistakes.is_empty() {
        return Err(Mistakes(layers.mistakes));
    }
    let config = Config {
        spec: *spec,
        entries: layers.entries,
        flags: arguments.extra,
    };
    Ok(if arguments.present.contains("print-config") {
        Outcome::Print(config.print())
    } else {
        Outcome::Run(config)
    })
}

struct Layers<'a> {
    spec: &'a Spec,
    entries: BTreeMap<&'static str, Entry>,
    mistakes: Vec<Mistake>,
}

impl<'a> Layers<'a> {
    fn new(spec: &'a Spec) -> Self {
        let mut layers = Self {
            spec,
            entries: BTreeMap::new(),
            mistakes: Vec::new(),
        };
        for setting in spec.settings() {
            let unset = Entry {
                text: String::new(),
                value: None,
                source: Source::Default,
            };
            layers.entries.insert(setting.key, unset);
            if let Some(default) = setting.default {
                layers.set(setting, default, Source::Default);
            }
        }
        layers
    }

    /// An empty text unsets what may be unset.
    fn set(&mut self, setting: &'static Setting, text: &str, source: Source) {
        let unsets = text.is_empty() && setting.default.is_none() && setting.kind != Kind::List;
        let value = if unsets {
            None
        } else {
            Some(Value::parse(setting.kind, text))
        };
        match value.transpose() {
            Ok(value) => {
                self.entries.insert(
                    setting.key,
                    Entry {
                        text: text.into(),
                        value,
                        source,
                    },
                );
            }
            Err(message) => {
                let secret = setting.secret || setting.kind == Kind::SecretFile;
                let given = if secret {
                    String::new()
                } else {
                    format!(", got {text:?}")
                };
                self.mistakes.push(Mistake {
                    source,
                    message: format!("{}: {message}{given}", setting.key),
                });
            }
        }
    }

    fn file(&mut self, inputs: &Inputs, arguments: &Arguments) {
        let variable = self.spec.file_variable();
        let named = match (&arguments.file, inputs.env.get(&variable)) {
            (Some(path), _) => Some((path.as_str(), Source::Flag("--config".into()))),
            (None, Some(path)) if !path.is_empty() => Some((path.as_str(), Source::Env(variable))),
            _ => None,
        };
        let (path, named_by) = match (named, self.spec.default_file) {
            (Some((path, source)), _) => (path, Some(source)),
            (None, Some(path)) => (path, None),
            (None, None) => return,
        };
        let source = Source::File(path.into());
        let message = match ((inputs.read_file)(Path::new(path)), named_by) {
            (Ok(Some(content)), _) => match String::from_utf8(content).map_err(|error| error.to_string()) {
                Ok(content) => match content.parse::<toml::Table>() {
                    Ok(table) => return self.table("", &table, &source),
                    Err(error) => error.to_string().trim_end().replace('\n', "\n    "),
                },
                Err(message) => message,
            },
            (Ok(None), None) => return,
            (Ok(None), Some(by)) => format!("there is no such file, named by {by}"),
            (Err(message), _) => message,
        };
        self.mistakes.push(Mistake { source, message });
    }

    fn table(&mut self, prefix: &str, table: &toml::Table, source: &Source) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            let setting = self.spec.settings().find(|setting| setting.key == key);
            match (setting, value) {
                (Some(setting), value) => match text_of(setting, value) {
                    Ok(text) => self.set(setting, &text, source.clone()),
                    Err(message) => {
                        self.mistakes.push(Mistake {
                            source: source.clone(),
                            message: format!("{key}: {message}"),
                        });
                    }
                },
                (None, toml::Value::Table(inner)) if self.is_group(&key) => self.table(&key, inner, source),
                (None, _) => {
                    let keys = self.spec.settings().map(|setting| setting.key.to_owned());
                    let message = format!("{key}: unknown setting{}", did_you_mean(&key, keys, ""));
                    self.mistakes.push(Mistake {
                        source: source.clone(),
                        message,
                    });
                }
            }
        }
    }

    fn is_group(&self, key: &str) -> bool {
        self.spec
            .settings()
            .any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    fn environment(&mut self, env: &BTreeMap<String, String>) {
        for (name, value) in env {
            if let Some(setting) = self
                .spec
                .settings()
                .find(|setting| setting.env_name(self.spec.prefix) == *name)
            {
                self.set(setting, value, Source::Env(name.clone()));
            } else if name.starts_with(self.spec.prefix) && *name != self.spec.file_variable() {
                let known = self.spec.settings().map(|setting| setting.env_name(self.spec.prefix));
                let meant = did_you_mean(name, known.chain([self.spec.file_variable()]), "");
                let message = format!("unknown variable{meant}");
                self.mistakes.push(Mistake {
                    source: Source::Env(name.clone()),
                    message,
                });
            }
        }
    }

    /// A list given several times is the whole of it; of other settings the last one wins.
    fn arguments(&mut self, arguments: &Arguments) {
        self.mistakes.extend(arguments.mistakes.iter().cloned());
        let mut lists: BTreeMap<&str, String> = BTreeMap::new();
        for (setting, value) in &arguments.settings {
            let mut value = value.clone();
            if setting.kind == Kind::List {
                let list = lists.entry(setting.key).or_default();
                list.push_str(&value);
                list.push(',');
                value.clone_from(list);
            }
            self.set(setting, &value, Source::Flag(format!("--{}", setting.flag_name())));
        }
    }

    fn missing(&mut self) {
        for setting in self.spec.settings().filter(|setting| setting.required) {
            // A value that was given and is wrong has been reported already.
            let reported = self
                .mistakes
                .iter()
                .any(|mistake| mistake.message.starts_with(&format!("{}: ", setting.key)));
            if self.entries[setting.key].value.is_none() && !reported {
                let (flag, variable) = (setting.flag_name(), setting.env_name(self.spec.prefix));
                self.mistakes.push(Mistake {
                    source: Source::Default,
                    message: format!("{}: must be set, by --{flag}, {variable} or in the file", setting.key),
                });
            }
        }
    }
}

/// A TOML value as it would stand in a variable.
fn text_of(setting: &Setting, value: &toml::Value) -> Result<String, String> {
    match (setting.kind, value) {
        (Kind::List, toml::Value::Array(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            match texts {
                Some(texts) if texts.iter().any(|text| text.contains(',')) => {
                    Err("no item may contain a comma".to_owned())
                }
                Some(texts) => Ok(texts.join(",")),
                None => Err("expected an array of strings".to_owned()),
            }
        }
        (Kind::Bool, toml::Value::Boolean(value)) => Ok(value.to_string()),
        (Kind::Integer | Kind::Duration | Kind::Size, toml::Value::Integer(value)) => Ok(value.to_string()),
        (kind, toml::Value::String(text)) if kind != Kind::Bool && kind != Kind::Integer => Ok(text.clone()),
        (Kind::Bool, _) => Err("expected true or false, without quotes".to_owned()),
        (Kind::Integer, _) => Err("expected a whole number, without quotes".to_owned()),
        (Kind::List, _) => Err("expected an array of strings".to_owned()),
        _ => Err("expected a string in quotes".to_owned()),
    }
}

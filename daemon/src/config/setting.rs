//! The table a daemon declares.

use super::value::Value;

/// What a setting holds, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number, zero or more.
    Integer,
    /// `500ms`, `30s`, `1h30m`, `7d`.
    Duration,
    /// `512B`, `64KiB`, `256MiB`, `10MB`.
    Size,
    /// An address to listen on: `0.0.0.0:10000`, `[::]:10000`.
    Address,
    /// A place to dial: `root.example.org:50052`, `192.0.2.1:50052`.
    Endpoint,
    /// A path.
    Path,
    /// Texts, separated by commas (in the file: an array).
    List,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Absolute path of a file that holds a secret.
    SecretFile,
}

impl Kind {
    /// How the value is called in help texts.
    pub(super) fn placeholder(self) -> String {
        match self {
            Self::String => "TEXT".into(),
            Self::Bool => "BOOL".into(),
            Self::Integer => "NUMBER".into(),
            Self::Duration => "DURATION".into(),
            Self::Size => "SIZE".into(),
            Self::Address => "ADDRESS:PORT".into(),
            Self::Endpoint => "HOST:PORT".into(),
            Self::Path => "PATH".into(),
            Self::List => "LIST".into(),
            Self::Choice(names) => names.join("|"),
            Self::SecretFile => "FILE".into(),
        }
    }
}

/// One setting. In the file it stands under its key; variable and flag follow from the key unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Dotted, lower case: `listen.api`.
    pub key: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// One line, lower case, no full stop.
    pub doc: &'static str,
    /// Used if nobody says anything; without one the setting may stay unset.
    pub default: Option<&'static str>,
    /// Environment variable, if not prefix + `LISTEN_API`.
    pub env: Option<&'static str>,
    /// Flag without dashes, if not `listen-api`.
    pub flag: Option<&'static str>,
    /// Somebody must say something.
    pub required: bool,
    /// The value itself is a secret and is never shown.
    pub secret: bool,
}

impl Setting {
    /// A setting that may stay unset.
    pub const fn new(key: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self {
            key,
            kind,
            doc,
            default: None,
            env: None,
            flag: None,
            required: false,
            secret: false,
        }
    }

    /// With a default, written as an operator would.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    /// Must be given.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Holds a secret itself. Prefer [`Kind::SecretFile`].
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Another environment variable (whole name).
    #[must_use]
    pub const fn env(mut self, name: &'static str) -> Self {
        self.env = Some(name);
        self
    }

    /// Another flag (without dashes).
    #[must_use]
    pub const fn flag(mut self, name: &'static str) -> Self {
        self.flag = Some(name);
        self
    }

    /// Its environment variable.
    pub fn env_name(&self, prefix: &str) -> String {
        self.env.map_or_else(
            || format!("{prefix}{}", self.key.replace(['.', '-'], "_").to_uppercase()),
            str::to_owned,
        )
    }

    /// Its flag, without dashes.
    pub fn flag_name(&self) -> String {
        self.flag
            .map_or_else(|| self.key.replace(['.', '_'], "-"), str::to_owned)
    }
}

/// A flag that is no setting: present or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtraFlag {
    /// Without dashes.
    pub name: &'static str,
    /// One line, lower case, no full stop.
    pub doc: &'static str,
}

/// All a daemon declares.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Name of the program.
    pub daemon: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Printed by `--version`.
    pub version: &'static str,
    /// Of its environment variables: `ROBLE_ROOT_`.
    pub prefix: &'static str,
    /// Read if it exists and no other file is named.
    pub default_file: Option<&'static str>,
    /// Groups of settings, in the order of the help text.
    pub settings: &'static [&'static [Setting]],
    /// Further flags.
    pub flags: &'static [ExtraFlag],
}

impl Spec {
    /// All settings.
    pub fn settings(&self) -> impl Iterator<Item = &'static Setting> {
        self.settings.iter().flat_map(|group| group.iter())
    }

    /// The variable that names the file.
    pub fn file_variable(&self) -> String {
        format!("{}CONFIG", self.prefix)
    }

    /// Looks for mistakes in the table itself: names used twice, defaults that do not parse. For a test of each daemon.
    ///
    /// # Errors
    /// The first mistake.
    pub fn check(&self) -> Result<(), String> {
        let mut names = std::collections::BTreeSet::from(
            ["help", "version", "print-config", "config"].map(|name| format!("--{name}")),
        );
        names.insert(self.file_variable());
        let mut claim = |name: String| {
            if names.insert(name.clone()) {
                Ok(())
            } else {
                Err(format!("{name} twice"))
            }
        };
        for setting in self.settings() {
            claim(setting.key.to_owned())?;
            claim(setting.env_name(self.prefix))?;
            claim(format!("--{}", setting.flag_name()))?;
            if let Some(default) = setting.default {
                Value::parse(setting.kind, default).map_err(|error| format!("default of {}: {error}", setting.key))?;
                if setting.required {
                    return Err(format!("{} is required and has a default", setting.key));
                }
            }
        }
        self.flags.iter().try_for_each(|flag| claim(format!("--{}", flag.name)))
    }
}

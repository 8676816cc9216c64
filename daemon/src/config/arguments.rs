//! The command line.

use std::collections::BTreeSet;

use super::suggest::did_you_mean;
use super::{Kind, Mistake, Setting, Source, Spec};

/// The command line, split by what the table says.
#[derive(Default)]
pub(super) struct Arguments {
    pub(super) settings: Vec<(&'static Setting, String)>,
    pub(super) file: Option<String>,
    pub(super) present: BTreeSet<&'static str>,
    pub(super) extra: BTreeSet<&'static str>,
    pub(super) mistakes: Vec<Mistake>,
}

impl Arguments {
    pub(super) fn has(&self, name: &str) -> bool {
        self.present.contains(name)
    }

    pub(super) fn read(spec: &Spec, args: &[String]) -> Self {
        let mut read = Self::default();
        let mut args = args.iter();
        while let Some(argument) = args.next() {
            let argument = match argument.as_str() {
                "-h" => "--help",
                "-V" => "--version",
                other => other,
            };
            let Some(flag) = argument.strip_prefix("--") else {
                read.mistake(argument, "expected a flag, which starts with --");
                continue;
            };
            let (name, attached) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let dashed = format!("--{name}");
            let present = ["help", "version", "print-config"]
                .into_iter()
                .find(|known| *known == name);
            let extra = spec.flags.iter().find(|known| known.name == name);
            if present.is_some() || extra.is_some() {
                if attached.is_some() {
                    read.mistake(&dashed, "takes no value");
                }
                read.present.extend(present);
                read.extra.extend(extra.map(|flag| flag.name));
                continue;
            }
            let setting = spec.settings().find(|setting| setting.flag_name() == name);
            if setting.is_none() && name != "config" {
                let known = spec.settings().map(Setting::flag_name);
                let own = ["help", "version", "print-config", "config"]
                    .into_iter()
                    .map(str::to_owned);
                let extra = spec.flags.iter().map(|flag| flag.name.to_owned());
                let meant = did_you_mean(name, known.chain(own).chain(extra), "--");
                read.mistake(&dashed, &format!("unknown flag{meant}"));
                // A value after an unknown flag is not a second mistake.
                if attached.is_none() && args.as_slice().first().is_some_and(|next| !next.starts_with('-')) {
                    args.next();
                }
                continue;
            }
            let value = match attached {
                Some(value) => value,
                None if setting.is_some_and(|setting| setting.kind == Kind::Bool) => "true".into(),
                None => match args.as_slice().first() {
                    // No value of ours starts with two dashes; `--flag=--x` is there for one that does.
                    Some(next) if !next.starts_with("--") => args.next().cloned().unwrap_or_default(),
                    _ => {
                        read.mistake(&dashed, "needs a value");
                        continue;
                    }
                },
            };
            match setting {
                Some(setting) => read.settings.push((setting, value)),
                None => read.file = Some(value),
            }
        }
        read
    }

    fn mistake(&mut self, flag: &str, message: &str) {
        self.mistakes.push(Mistake {
            source: Source::Flag(flag.into()),
            message: message.into(),
        });
    }
}

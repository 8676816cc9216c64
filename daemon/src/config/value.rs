//! Values and how they are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Kind;

/// A value of one of the kinds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Integer(u64),
    Duration(Duration),
    Size(u64),
    Address(SocketAddr),
    Path(PathBuf),
    List(Vec<String>),
}

impl Value {
    /// Reads `text`; the error says what would be right and does not repeat the text.
    pub(super) fn parse(kind: Kind, text: &str) -> Result<Self, String> {
        let expected = |what: &str| format!("expected {what}");
        Ok(match kind {
            Kind::String => Self::Text(text.into()),
            Kind::Bool => match text {
                "true" => Self::Bool(true),
                "false" => Self::Bool(false),
                _ => return Err(expected("true or false")),
            },
            Kind::Integer => Self::Integer(
                text.replace('_', "")
                    .parse()
                    .map_err(|_| expected("a whole number, zero or more"))?,
            ),
            Kind::Duration => Self::Duration(duration(text)?),
            Kind::Size => Self::Size(size(text)?),
            Kind::Address => Self::Address(
                text.parse()
                    .map_err(|_| expected("address and port, as 0.0.0.0:10000 or [::]:10000"))?,
            ),
            Kind::Endpoint => {
                Self::Text(endpoint(text).ok_or_else(|| expected("host and port, as example.org:50052"))?)
            }
            Kind::Path if text.is_empty() => return Err(expected("a path")),
            Kind::Path => Self::Path(text.into()),
            Kind::List => Self::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
            Kind::Choice(names) if names.contains(&text) => Self::Text(text.into()),
            Kind::Choice(names) => return Err(expected(&format!("one of {}", names.join(", ")))),
            Kind::SecretFile if text.starts_with('/') => Self::Path(text.into()),
            Kind::SecretFile => {
                return Err(expected("the absolute path of a file that holds the secret"));
            }
        })
    }
}

fn endpoint(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let good = !host.is_empty()
        && (bracketed || !host.contains([':', '/', '[', ']']))
        && !host.contains(char::is_whitespace)
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    good.then(|| text.to_owned())
}

/// Splits `1h30m` into (1, `h`), (30, `m`).
fn parts(text: &str) -> Option<Vec<(f64, &str)>> {
    let mut rest = text.trim();
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let number_end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        parts.push((number.parse().ok()?, unit.trim()));
        rest = after.trim_start();
    }
    (!parts.is_empty()).then_some(parts)
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration with its unit (ms, s, m, h, d), as 30s or 1h30m".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    for (number, unit) in parts(text).ok_or_else(expected)? {
        seconds += number
            * match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(expected()),
            };
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| expected())
}

fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a size with its unit (B, KiB, MiB, GiB, kB, MB, GB), as 256MiB".to_owned();
    if text == "0" {
        return Ok(0);
    }
    let [(number, unit)] = parts(text).ok_or_else(expected)?[..] else {
        return Err(expected());
    };
    let factor = match unit {
        "B" => 1_u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(expected()),
    };
    let bytes = number * factor as f64;
    // Above 2^53 a float is no longer exact, and nothing here is that large.
    if bytes > 9e15 {
        Err(expected())
    } else {
        Ok(bytes.round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        let good = [
            ("30s", 30_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2.5s", 2_500),
            ("7d", 604_800_000),
            ("0", 0),
        ];
        for (text, milliseconds) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "30",
            "",
            "s",
            "-1s",
            "1y",
            "1.2.3s",
            "nan",
            "99999999999999999999d",
            "1 000s s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, bytes) in [
            ("256MiB", 256 << 20),
            ("1.5KiB", 1536),
            ("10MB", 10_000_000),
            ("0", 0),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["256", "1mib", "1MiB1KiB", "", "99999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_kinds_refuse_what_they_are_not() {
        for (kind, good, bad) in [
            (Kind::Bool, "true", "yes"),
            (Kind::Integer, "1_000", "-1"),
            (Kind::Address, "[::]:1", "localhost:1"),
            (Kind::Endpoint, "localhost:1", "localhost"),
            (Kind::Endpoint, "[::1]:1", "::1:1"),
            (Kind::Endpoint, "a:65535", "http://a:1"),
            (Kind::Path, "x", ""),
            (Kind::Choice(&["a", "b"]), "b", "c"),
            (Kind::SecretFile, "/run/secret", "hunter2"),
        ] {
            assert!(Value::parse(kind, good).is_ok(), "{kind:?} {good}");
            let error = Value::parse(kind, bad).unwrap_err();
            assert!(
                bad.len() < 3 || !error.contains(bad) || bad == "localhost",
                "{error} repeats {bad}"
            );
        }
        assert_eq!(
            Value::parse(Kind::List, "a, b,,"),
            Ok(Value::List(vec!["a".into(), "b".into()]))
        );
    }
}

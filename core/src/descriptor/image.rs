//! References to OCI images: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.
//!
//! Source: the reference grammar of the OCI distribution specification; short names as container engines read them
//! (`hello` is `docker.io/library/hello:latest`).

use std::fmt;
use std::str::FromStr;

/// A reference, normalised: the registry is written out, and there is a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// Host and port of the registry.
    pub registry: String,
    /// Path within the registry.
    pub repository: String,
    /// `latest` if neither tag nor digest was written.
    pub tag: Option<String>,
    /// `sha256:...` or `sha512:...`; wins over the tag.
    pub digest: Option<String>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ParseImageError {
    /// What is wrong with it.
    pub reason: String,
    /// What to write instead, if it can be guessed.
    pub help: Option<String>,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn refuse(reason: impl Into<String>, help: impl Into<Option<&'static str>>) -> ParseImageError {
    ParseImageError {
        reason: reason.into(),
        help: help.into().map(str::to_owned),
    }
}

impl FromStr for ImageReference {
    type Err = ParseImageError;

    fn from_str(text: &str) -> Result<Self, ParseImageError> {
        if text.is_empty() {
            return Err(refuse(
                "the image reference is empty",
                "write e.g. `docker.io/library/nginx:1.27`",
            ));
        }
        if text.contains("://") {
            return Err(refuse(
                "an image reference has no scheme",
                "leave out everything up to and including `://`",
            ));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            Some(colon) => (
                &rest[..after_slash + colon],
                Some(parse_tag(&rest[after_slash + colon + 1..])?),
            ),
            None => (rest, None),
        };
        let (registry, repository) = split_registry(name);
        if let Some(registry) = registry {
            check_registry(registry)?;
        }
        if registry.is_none() || registry == Some("docker.io") || registry == Some("index.docker.io") {
            check_repository(repository)?;
            let repository = if repository.contains('/') {
                repository.to_owned()
            } else {
                format!("library/{repository}")
            };
            return Ok(Self {
                registry: "docker.io".into(),
                repository,
                ..Self::finish(tag, digest)
            });
        }
        check_repository(repository)?;
        Ok(Self {
            registry: registry.unwrap_or_default().to_owned(),
            repository: repository.to_owned(),
            ..Self::finish(tag, digest)
        })
    }
}

impl ImageReference {
    fn finish(tag: Option<String>, digest: Option<String>) -> Self {
        let tag = if tag.is_none() && digest.is_none() {
            Some("latest".to_owned())
        } else {
            tag
        };
        Self {
            registry: String::new(),
            repository: String::new(),
            tag,
            digest,
        }
    }
}

/// The first part is a registry if it looks like a host: with a dot or a colon, or `localhost`.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    }
}

fn check_registry(registry: &str) -> Result<(), ParseImageError> {
    let error = || {
        refuse(
            format!("`{}` is not a registry: HOST[:PORT] expected", cut(registry)),
            None,
        )
    };
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port_ok = port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok_and(|port| port != 0));
    if host.len() <= 253 && host.split('.').all(label_ok) && port_ok {
        Ok(())
    } else {
        Err(error())
    }
}

fn check_repository(repository: &str) -> Result<(), ParseImageError> {
    if repository.is_empty() {
        return Err(refuse(
            "the image reference has no repository",
            "write e.g. `docker.io/library/nginx:1.27`",
        ));
    }
    if repository.len() > 255 {
        return Err(refuse("the repository is longer than 255 characters", None));
    }
    if let Some(space) = repository.chars().find(|c| c.is_whitespace()) {
        return Err(refuse(format!("the image reference contains {space:?}"), "remove it"));
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(refuse(
            format!("the repository `{}` has upper-case letters", cut(repository)),
            "repositories are lower case; only the tag may have upper-case letters",
        ));
    }
    match repository.split('/').find(|component| !component_ok(component)) {
        Some("") => Err(refuse("the repository has an empty part", "remove the extra `/`")),
        Some(bad) => Err(refuse(
            format!("`{}` can not be part of a repository", cut(bad)),
            "each part is lower-case letters and digits, joined by `.`, `_`, `__` or `-`",
        )),
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn component_ok(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(*first)
        && alphanumeric(*last)
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

fn parse_tag(tag: &str) -> Result<String, ParseImageError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok {
        return Ok(tag.to_owned());
    }
    Err(refuse(
        format!("`{}` is not a tag", cut(tag)),
        "a tag is up to 128 letters, digits, `_`, `.` and `-`, and starts with a letter, a digit or `_`",
    ))
}

fn parse_digest(digest: &str) -> Result<String, ParseImageError> {
    let length = match digest.split_once(':') {
        Some(("sha256", hex)) => Some((hex, 64)),
        Some(("sha512", hex)) => Some((hex, 128)),
        _ => None,
    };
    match length {
        Some((hex, length))
            if hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
        {
            Ok(digest.to_owned())
        }
        _ => Err(refuse(
            format!("`{}` is not a digest", cut(digest)),
            "a digest is `sha256:` and 64 lower-case hex digits, or `sha512:` and 128",
        )),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_written_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("hello", "docker.io/library/hello:latest".to_owned()),
            ("hello:1", "docker.io/library/hello:1".to_owned()),
            ("user/hello", "docker.io/user/hello:latest".to_owned()),
            ("docker.io/hello", "docker.io/library/hello:latest".to_owned()),
            (
                "index.docker.io/library/hello:V2",
                "docker.io/library/hello:V2".to_owned(),
            ),
            ("localhost/a/b-c__d.e:1", "localhost/a/b-c__d.e:1".to_owned()),
            (
                "registry.local:5000/ingest",
                "registry.local:5000/ingest:latest".to_owned(),
            ),
            ("ghcr.io/o/i:1.4", "ghcr.io/o/i:1.4".to_owned()),
            (&format!("x@{digest}"), format!("docker.io/library/x@{digest}")),
            (&format!("x:1@{digest}"), format!("docker.io/library/x:1@{digest}")),
        ];
        for (written, normal) in table {
            let parsed: ImageReference = written.parse().unwrap();
            assert_eq!(parsed.to_string(), normal, "{written}");
            assert_eq!(
                normal.parse::<ImageReference>().unwrap(),
                parsed,
                "normalising twice changes nothing"
            );
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        for bad in [
            "",
            "/",
            "a//b",
            "Hello",
            "https://ghcr.io/a",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@md5:00",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "host.io:99999/a",
            "host.io:/a",
            "host.io/",
            "ho..st/a",
            ":1",
            "a:1:2",
            "é",
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }
}

//! Image references as people write them, and their full form as containerd and registries know it.

use super::RuntimeError;
use std::fmt;

/// The registry that is meant when none is named.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A full reference: `registry/repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// Host and port, in lower case.
    pub registry: String,
    /// Path below the registry.
    pub repository: String,
    /// `latest` if neither tag nor digest is written.
    pub tag: Option<String>,
    /// `sha256:...`.
    pub digest: Option<String>,
}

impl ImageReference {
    /// Parses and completes: `hello` is `docker.io/library/hello:latest`.
    ///
    /// # Errors
    /// [`RuntimeError::BadReference`].
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        let error = |detail: &str| RuntimeError::BadReference {
            reference: text.chars().take(256).collect(),
            detail: detail.to_owned(),
        };
        if text.is_empty() || text.len() > 512 {
            return Err(error("it must have 1 to 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(error("after `@` comes sha256: and 64 hex digits")),
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DEFAULT_REGISTRY, rest),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let registry = if registry == "index.docker.io" {
            DEFAULT_REGISTRY
        } else {
            registry
        };
        let repository = match registry {
            DEFAULT_REGISTRY if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        if !is_host(registry) {
            return Err(error("bad registry host"));
        }
        if !repository.split('/').all(is_path_part) {
            return Err(error(
                "bad repository: lower case letters, digits and single separators expected",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(error("bad tag"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            registry: registry.to_ascii_lowercase(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the text is `sha256:` and 64 lowercase hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_host(host: &str) -> bool {
    host.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
}

fn is_path_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    part.bytes().next().is_some_and(alphanumeric)
        && part.bytes().next_back().is_some_and(alphanumeric)
        && part.bytes().all(|b| alphanumeric(b) || b"._-".contains(&b))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// This machine's architecture in OCI's names.
pub const fn machine_architecture() -> &'static str {
    // As bytes, because string patterns are not allowed in a const function.
    match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => "amd64",
        b"aarch64" => "arm64",
        b"x86" => "386",
        b"powerpc64" => "ppc64le",
        _ => std::env::consts::ARCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("hello", "docker.io/library/hello:latest".to_owned()),
            ("index.docker.io/hello:1", "docker.io/library/hello:1".to_owned()),
            ("org/app", "docker.io/org/app:latest".to_owned()),
            ("localhost/app:1.2", "localhost/app:1.2".to_owned()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".to_owned()),
            (&format!("ghcr.io/o/a@{digest}"), format!("ghcr.io/o/a@{digest}")),
            (&format!("ghcr.io/o/a:1@{digest}"), format!("ghcr.io/o/a:1@{digest}")),
        ];
        for (text, full) in table {
            assert_eq!(ImageReference::parse(text).expect(text).to_string(), full);
        }
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            "Hello",
            "a//b",
            "a:",
            "a@sha256:12",
            "../etc",
            "a b",
            "-a",
            "x/y:b/c@",
            "a:-1",
        ] {
            let error = ImageReference::parse(text).expect_err(text);
            assert_eq!(error.code(), "image-bad-reference", "{text}");
        }
    }
}

//! Published ports: `HOST[:CONTAINER][/tcp|/udp]`, several separated by `;` (Oakestra's syntax).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Transport of a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Two ports with `between` between them, or one that stands for both, and a transport: TCP unless it is named.
fn pair(text: &str, between: char) -> Option<((u16, u16), Protocol)> {
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((numbers, "tcp")) => (numbers, Protocol::Tcp),
        Some((numbers, "udp")) => (numbers, Protocol::Udp),
        Some(_) => return None,
    };
    let port = |digits: &str| -> Option<u16> {
        // `parse` would take a sign too.
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|port| is_number && *port != 0)
    };
    let (one, other) = numbers.split_once(between).unwrap_or((numbers, numbers));
    Some(((port(one)?, port(other)?), protocol))
}

/// A port of the node that leads to a port of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMapping {
    /// Port on the node, 1 to 65535.
    pub host: u16,
    /// Port inside the instance, 1 to 65535.
    pub container: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// Why a text is not a port mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a port mapping: HOST[:CONTAINER][/tcp|/udp] with ports from 1 to 65535 expected")]
pub struct ParsePortError {
    /// The entry that was refused.
    pub text: String,
}

impl PortMapping {
    /// What no two instances of one node may share.
    pub const fn host_key(&self) -> (Protocol, u16) {
        (self.protocol, self.host)
    }

    /// Parses entries separated by `;`; an empty text is an empty list.
    ///
    /// # Errors
    /// [`ParsePortError`] for each entry that is refused.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Vec<ParsePortError>> {
        let mut ports = Vec::new();
        let mut errors = Vec::new();
        for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
            match entry.parse() {
                Ok(port) => ports.push(port),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(ports) } else { Err(errors) }
    }
}

impl FromStr for PortMapping {
    type Err = ParsePortError;

    fn from_str(text: &str) -> Result<Self, ParsePortError> {
        let error = || ParsePortError {
            text: text.chars().take(64).collect(),
        };
        let ((host, container), protocol) = pair(text, ':').ok_or_else(error)?;
        Ok(Self {
            host,
            container,
            protocol,
        })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.container, self.protocol)
    }
}

impl TryFrom<String> for PortMapping {
    type Error = ParsePortError;
    fn try_from(text: String) -> Result<Self, ParsePortError> {
        text.parse()
    }
}

impl From<PortMapping> for String {
    fn from(port: PortMapping) -> String {
        port.to_string()
    }
}

/// Ports of an instance that somebody may call: `FIRST[-LAST][/tcp|/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// Transport.
    pub protocol: Protocol,
    /// The lowest, 1 to 65535.
    pub first: u16,
    /// The highest, not below the lowest.
    pub last: u16,
}

/// Why a text is not a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a range of ports: FIRST[-LAST][/tcp|/udp] with ports from 1 to 65535 expected")]
pub struct ParsePortRangeError {
    /// What was refused, cut at 64 characters.
    pub text: String,
}

impl PortRange {
    /// Whether a port is in it.
    pub fn holds(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = ParsePortRangeError;

    fn from_str(text: &str) -> Result<Self, ParsePortRangeError> {
        let error = || ParsePortRangeError {
            text: text.chars().take(64).collect(),
        };
        let ((first, last), protocol) = pair(text, '-').ok_or_else(error)?;
        if first > last {
            return Err(error());
        }
        Ok(Self { protocol, first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}/{}", self.first, self.protocol),
            false => write!(f, "{}-{}/{}", self.first, self.last, self.protocol),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = ParsePortRangeError;
    fn try_from(text: String) -> Result<Self, ParsePortRangeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oakestras_examples_parse() {
        let list = PortMapping::parse_list("8080;6080:80/tcp;53:53/udp").unwrap();
        assert_eq!(
            list.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["8080:8080/tcp", "6080:80/tcp", "53:53/udp"]
        );
    }

    #[test]
    fn every_bad_entry_is_named() {
        let errors = PortMapping::parse_list("0;70000;80/sctp;a:b;80").unwrap_err();
        assert_eq!(errors.len(), 4);
    }

    #[test]
    fn ranges_of_ports_read_back_what_they_wrote() {
        for (text, written) in [
            ("5432", "5432/tcp"),
            ("53/udp", "53/udp"),
            ("6000-6010/udp", "6000-6010/udp"),
            ("7-7/tcp", "7/tcp"),
            ("1-65535", "1-65535/tcp"),
        ] {
            let range: PortRange = text.parse().unwrap();
            assert_eq!(range.to_string(), written);
            assert_eq!(written.parse(), Ok(range));
            assert!(range.holds(range.protocol, range.last) && !range.holds(range.protocol, 0));
        }
        for bad in [
            "",
            "0",
            "9-8",
            "80/sctp",
            "80/tcp-90",
            "1-2-3",
            "-1",
            "80-",
            "+80",
            "65536",
            "80:80",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}

//! What users call things: application `shop`, service `shop/web`, instance `shop/web.0`, `cluster/north`, `node/pi-3`.

use std::fmt;
use std::str::FromStr;

/// What a reference is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `shop`.
    Application(String),
    /// `shop/web`.
    Service(String),
    /// `shop/web.0`, or `<service id>.0`.
    Instance(String),
    /// `cluster/north`.
    Cluster(String),
    /// `node/pi-3`.
    Node(String),
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let owned = text.to_owned();
        let is_part =
            |part: &str| !part.is_empty() && !part.contains(['/', ' ']) && !part.chars().any(char::is_control);
        let bad = || {
            Err(format!(
                "`{text}` is not a reference: APP, APP/SERVICE, APP/SERVICE.N, cluster/NAME or node/NAME expected"
            ))
        };
        let Some((first, rest)) = text.split_once('/') else {
            return match text.rsplit_once('.') {
                // Names may have dots; only an id is surely a service.
                Some((id, number)) if is_id(id) && is_number(number) => Ok(Self::Instance(owned)),
                _ if is_part(text) => Ok(Self::Application(owned)),
                _ => bad(),
            };
        };
        if !is_part(first) || !is_part(rest) {
            return bad();
        }
        Ok(match (first, rest.rsplit_once('.')) {
            ("cluster", _) => Self::Cluster(rest.to_owned()),
            ("node", _) => Self::Node(rest.to_owned()),
            (_, Some((service, number))) if !service.is_empty() && is_number(number) => Self::Instance(owned),
            _ => Self::Service(owned),
        })
    }
}

fn is_id(text: &str) -> bool {
    text.parse::<roble_core::ids::ServiceId>().is_ok()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl Reference {
    /// The path of the API that shows it.
    pub fn path(&self) -> String {
        match self {
            Self::Application(name) => path(&["applications", name]),
            Self::Service(name) => path(&["services", name]),
            Self::Instance(name) => path(&["instances", name]),
            Self::Cluster(name) => path(&["clusters", name]),
            Self::Node(name) => path(&["nodes", name]),
        }
    }

    /// Whether the instance with this path (`app/service.N`) is part of it.
    pub fn holds(&self, instance: &str) -> bool {
        let service = instance.rsplit_once('.').map_or(instance, |(service, _)| service);
        match self {
            Self::Application(name) => service.split_once('/').is_some_and(|(app, _)| app == name),
            Self::Service(name) => service == name,
            Self::Instance(name) => instance == name,
            Self::Cluster(_) | Self::Node(_) => false,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Application(name) | Self::Service(name) | Self::Instance(name) => f.write_str(name),
            Self::Cluster(name) => write!(f, "cluster/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
        }
    }
}

/// `/v1/` and the parts, each written so that no character of it can act as a separator.
pub fn path(parts: &[&str]) -> String {
    let mut path = "/v1".to_owned();
    for part in parts {
        path.push('/');
        path.push_str(&escape(part));
    }
    path
}

/// Percent-encodes all but RFC 3986's unreserved characters. A part that is only dots would be taken for a step in the
/// tree of paths, so its dots are encoded too.
pub fn escape(part: &str) -> String {
    let only_dots = part.bytes().all(|b| b == b'.');
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => text.push(char::from(byte)),
            b'.' if !only_dots => text.push('.'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_tell_what_is_meant() {
        let id = "0123456789abcdef01234567";
        let cases = [
            ("shop", Reference::Application("shop".into())),
            ("shop.test", Reference::Application("shop.test".into())),
            ("shop/web", Reference::Service("shop/web".into())),
            ("shop/web.test", Reference::Service("shop/web.test".into())),
            ("shop/web.0", Reference::Instance("shop/web.0".into())),
            ("shop.test/web.12", Reference::Instance("shop.test/web.12".into())),
            ("cluster/north", Reference::Cluster("north".into())),
            ("node/pi-3.local", Reference::Node("pi-3.local".into())),
        ];
        for (text, reference) in cases {
            assert_eq!(text.parse(), Ok(reference.clone()));
            assert_eq!(reference.to_string(), text);
        }
        assert_eq!(format!("{id}.3").parse(), Ok(Reference::Instance(format!("{id}.3"))));
        for bad in ["", "/", "a/", "/b", "a/b/c", "a b"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_cannot_be_broken_out_of() {
        assert_eq!(Reference::Service("shop/web".into()).path(), "/v1/services/shop%2Fweb");
        assert_eq!(path(&["nodes", ".."]), "/v1/nodes/%2E%2E");
        assert_eq!(path(&["nodes", "a?b#c"]), "/v1/nodes/a%3Fb%23c");
    }

    #[test]
    fn an_application_holds_its_instances_only() {
        let shop: Reference = "shop".parse().unwrap();
        assert!(shop.holds("shop/web.0") && !shop.holds("shop2/web.0"));
        let web: Reference = "shop/web".parse().unwrap();
        assert!(web.holds("shop/web.10") && !shop.holds("shop.test/web.0") && !web.holds("shop/web2.0"));
    }
}

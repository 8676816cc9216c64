//! How quantities, ages and counts look, and how durations are read.

use roble_core::ports::{PortMapping, Protocol};
use roble_core::resources::Resources;
use roble_core::time::Timestamp;
use std::net::IpAddr;
use std::time::Duration;

/// `text` without control characters, so that nothing from the tree can steer a terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `text`, or `-` if there is none.
pub fn or_dash(text: Option<impl ToString>) -> String {
    text.map(|text| text.to_string())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

/// Addresses side by side; `None` if there are none.
pub fn addresses(addresses: &[IpAddr]) -> Option<String> {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Some(texts.join(", ")).filter(|text| !text.is_empty())
}

/// `1 mistake`, `2 mistakes`.
pub fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// A span at a glance: `850ms`, `12s`, `5m10s`, `3h`, `12d`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..=119 => format!("{seconds}s"),
        120..=599 if !seconds.is_multiple_of(60) => format!("{}m{}s", seconds / 60, seconds % 60),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago `then` was, in whole seconds or more.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    match now.as_millis().saturating_sub(then.as_millis()) {
        0..=999 => "0s".to_owned(),
        millis => span(millis),
    }
}

/// Bytes in the largest binary unit that leaves at least one.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            return match bytes % size {
                0 => format!("{}{unit}", bytes / size),
                rest => format!("{}.{}{unit}", bytes / size, rest * 10 / size),
            };
        }
    }
    format!("{bytes}B")
}

/// Thousandths of a core: `250m`, `2`.
pub fn cpu(millis: u64) -> String {
    match millis % 1000 {
        0 => (millis / 1000).to_string(),
        _ => format!("{millis}m"),
    }
}

/// CPU and memory: `250m, 64MiB`.
pub fn resources(amount: &Resources) -> String {
    format!("{}, {}", cpu(amount.cpu_millis), bytes(amount.memory_bytes))
}

/// `10.0.0.5:8080`, `[fd00::1]:53/udp`, several separated by commas.
pub fn endpoints(address: &str, ports: &[PortMapping]) -> String {
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let one = |port: &PortMapping| match port.protocol {
        Protocol::Tcp => format!("{host}:{}", port.host),
        Protocol::Udp => format!("{host}:{}/udp", port.host),
    };
    ports.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Reads `500ms`, `30s`, `5m`, `1h`, `7d`, also summed up (`1h30m`).
///
/// # Errors
/// A sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration: a number and a unit expected (500ms, 30s, 5m, 1h, 7d)");
    let (mut total, mut rest) = (0_u64, text.trim());
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        total = number
            .checked_mul(unit)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(bad)?;
        rest = &rest[end..];
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        let cases = [
            (850, "850ms"),
            (12_000, "12s"),
            (310_000, "5m10s"),
            (300_000, "5m"),
            (4_000_000, "66m"),
            (10_800_000, "3h"),
            (1_036_800_000, "12d"),
        ];
        for (millis, text) in cases {
            assert_eq!(span(millis), text);
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        for bad in ["", "5", "s", "-1s", "1.5h", "99999999999999999999d", "1w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantities() {
        assert_eq!(bytes(64 << 20), "64MiB");
        assert_eq!(bytes((3 << 30) / 2), "1.5GiB");
        assert_eq!(bytes(12), "12B");
        assert_eq!((cpu(250), cpu(2000)), ("250m".to_owned(), "2".to_owned()));
        let ports = PortMapping::parse_list("8080:80;53/udp").unwrap();
        assert_eq!(endpoints("fd00::1", &ports), "[fd00::1]:8080,[fd00::1]:53/udp");
        assert_eq!(clean("a\x1b[2Jb"), "a [2Jb");
    }
}

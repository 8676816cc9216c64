//! CPU (`250m`, `0.25`, `2`), memory (`64MiB`, `128MB`) and durations (`10s`) as people write them, and back.

/// Thousandths of a core at least: the kernel's shortest quota, 1 ms in 100 ms.
pub(super) const MIN_CPU_MILLIS: u64 = 10;
/// Thousandths of a core at most.
pub(super) const MAX_CPU_MILLIS: u64 = 1_024_000;
/// Bytes of memory at least; less does not hold a process and its container.
pub(super) const MIN_MEMORY: u64 = 4 * 1024 * 1024;
/// Bytes of memory at most: 16 TiB.
pub(super) const MAX_MEMORY: u64 = 16 << 40;
/// Milliseconds that a stop may take at most.
pub(super) const MAX_STOP_GRACE_MS: u64 = 3_600_000;

const MEMORY_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];
const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Thousandths of a core.
///
/// # Errors
/// What is wrong, as a sentence without a start.
pub(super) fn parse_cpu(text: &str) -> Result<u64, String> {
    const HELP: &str = "write cores as `0.25` or `2`, or thousandths as `250m`";
    let millis = match text.strip_suffix('m') {
        Some(millis) => scaled(millis, 1),
        None => scaled(text, 1000),
    };
    let millis = millis.ok_or_else(|| HELP.to_owned())?;
    bounded(millis, MIN_CPU_MILLIS, MAX_CPU_MILLIS, "10m", "1024")
}

/// Bytes.
///
/// # Errors
/// What to write instead.
pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    const HELP: &str = "write a number and a unit: B, KB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1024s)";
    let number_and_unit = MEMORY_UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let bytes = number_and_unit.and_then(|(number, unit)| scaled(number.trim_end(), unit));
    bounded(
        bytes.ok_or_else(|| HELP.to_owned())?,
        MIN_MEMORY,
        MAX_MEMORY,
        "4MiB",
        "16TiB",
    )
}

/// Milliseconds.
///
/// # Errors
/// What to write instead.
pub(super) fn parse_duration(text: &str) -> Result<u64, String> {
    const HELP: &str = "write a number and a unit: ms, s, m or h";
    let number_and_unit = DURATION_UNITS
        .iter()
        .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)));
    let ms = number_and_unit.and_then(|(number, unit)| scaled(number.trim_end(), unit));
    bounded(ms.ok_or_else(|| HELP.to_owned())?, 0, MAX_STOP_GRACE_MS, "0s", "1h")
}

fn bounded(value: u64, min: u64, max: u64, shown_min: &str, shown_max: &str) -> Result<u64, String> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(format!("take from {shown_min} to {shown_max}"))
    }
}

/// `DIGITS[.DIGITS]` times `unit` if the result is whole; in integers, so that nothing is rounded.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') || fraction.len() > 12 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let mantissa = whole.parse::<u128>().ok()?.checked_mul(scale)? + fraction.parse::<u128>().unwrap_or(0);
    let product = mantissa.checked_mul(u128::from(unit))?;
    (product % scale == 0).then(|| u64::try_from(product / scale).ok())?
}

/// The shortest exact way to write thousandths of a core.
pub(super) fn print_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

/// The shortest exact way to write bytes.
pub(super) fn print_memory(bytes: u64) -> String {
    let exact = MEMORY_UNITS.iter().filter(|(_, size)| bytes.is_multiple_of(*size));
    exact
        .max_by_key(|(_, size)| *size)
        .map_or_else(|| format!("{bytes}B"), |(unit, size)| format!("{}{unit}", bytes / size))
}

/// The shortest exact way to write milliseconds.
pub(super) fn print_duration(ms: u64) -> String {
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_as_people_write_them() {
        for (text, millis) in [
            ("250m", 250),
            ("0.25", 250),
            ("2", 2000),
            ("1.5", 1500),
            ("10m", 10),
            ("1024", 1_024_000),
        ] {
            assert_eq!(parse_cpu(text), Ok(millis), "{text}");
        }
        for bad in [
            "",
            "m",
            "-1",
            "1e3",
            "0",
            "9m",
            "1025",
            "0.0001",
            "1.",
            ".5",
            "1 core",
            "2M",
            "99999999999999999999",
        ] {
            assert!(parse_cpu(bad).is_err(), "{bad}");
        }
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("128MB", 128_000_000),
            ("1.5 GiB", 3 << 29),
            ("4194304B", 4 << 20),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for bad in [
            "", "64", "64M", "64mb", "3MiB", "17TiB", "1.3B", "-1MiB", "MiB", "1e9MiB",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("1.5s", 1500),
        ] {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
        for bad in ["", "10", "s", "2h", "0.5ms", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            millis in MIN_CPU_MILLIS..=MAX_CPU_MILLIS, bytes in MIN_MEMORY..=MAX_MEMORY, ms in 0..=MAX_STOP_GRACE_MS,
        ) {
            prop_assert_eq!(parse_cpu(&print_cpu(millis)), Ok(millis));
            prop_assert_eq!(parse_memory(&print_memory(bytes)), Ok(bytes));
            prop_assert_eq!(parse_duration(&print_duration(ms)), Ok(ms));
        }

        #[test]
        fn nothing_panics(text in ".*") {
            let _ = (parse_cpu(&text), parse_memory(&text), parse_duration(&text));
        }
    }
}

//! Readers of single fields that both forms share.

use super::finding::{Code, Findings, did_you_mean, shown};
use super::image::ImageReference;
use super::tree::Item;
use std::str::FromStr;

/// Architectures in OCI's names.
pub(super) const ARCHITECTURES: [&str; 9] = [
    "amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "s390x", "mips64le", "loong64",
];

/// The name by which OCI knows an architecture that is called `text` elsewhere.
pub(super) fn oci_architecture(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    let name = match lower.as_str() {
        "x86_64" | "x86-64" | "x64" => "amd64",
        "aarch64" | "arm64v8" | "armv8" => "arm64",
        "armv7" | "armv7l" | "armhf" | "armv6" | "armv6l" | "arm32v7" => "arm",
        "i386" | "i686" | "x86" => "386",
        "riscv" => "riscv64",
        "loongarch64" => "loong64",
        other => return ARCHITECTURES.into_iter().find(|known| *known == other),
    };
    Some(name)
}

/// A reference to an image, normalised.
pub(super) fn image(item: &Item<'_>, findings: &mut Findings) -> Option<String> {
    let text = item.text(findings)?;
    match ImageReference::from_str(text) {
        Ok(reference) => Some(reference.to_string()),
        Err(error) => {
            let finding = item.finding(Code::BadImage, error.reason);
            findings.mistake(match error.help {
                Some(help) => finding.with_help(help),
                None => finding,
            });
            None
        }
    }
}

/// How a service is run: `container`, whatever it is called; all else is refused by name.
pub(super) fn virtualization(item: Option<Item<'_>>, findings: &mut Findings) -> String {
    const CONTAINER: &str = "container";
    let Some((item, text)) = item.and_then(|item| item.text(findings).map(|text| (item, text))) else {
        return CONTAINER.to_owned();
    };
    let finding = match text {
        CONTAINER | "docker" | "runc" => return CONTAINER.to_owned(),
        "unikernel" | "crosvm" | "vm" | "runsc" | "kata" | "crun" | "youki" | "wasm" => item.finding(
            Code::NotSupportedYet,
            format!("virtualization `{text}` is not supported yet"),
        ),
        _ => item.finding(Code::BadValue, format!("virtualization `{}` is not known", shown(text))),
    };
    let help = did_you_mean(text, [CONTAINER, "docker"]).unwrap_or_else(|| "use `container`".to_owned());
    findings.mistake(finding.with_help(help));
    CONTAINER.to_owned()
}

/// Why `key` can not be the name of an environment variable, or `None` if it can.
pub(super) fn variable_fault(key: &str) -> Option<String> {
    let bad = |c: char| c == '=' || c == '\0' || c.is_whitespace() || c.is_control();
    if key.is_empty() {
        Some("the name of a variable is empty".to_owned())
    } else if key.len() > 256 {
        Some("the name of a variable has at most 256 bytes".to_owned())
    } else if key.contains(bad) {
        Some(format!(
            "`{}` can not be the name of a variable: it contains white space or `=`",
            shown(key)
        ))
    } else {
        None
    }
}

/// `KEY=value`.
pub(super) fn assignment(item: &Item<'_>, findings: &mut Findings) -> Option<(String, String)> {
    let text = item.long_text(findings)?;
    let Some((key, value)) = text.split_once('=') else {
        let message = format!("`{}` has no `=`", shown(text));
        findings.mistake(item.finding(Code::BadValue, message).with_help("write `KEY=value`"));
        return None;
    };
    if let Some(fault) = variable_fault(key) {
        findings.mistake(item.finding(Code::BadValue, fault));
        return None;
    }
    Some((key.to_owned(), value.to_owned()))
}

/// An IPv4 or IPv6 address, by the type that is asked for.
pub(super) fn address<T: FromStr>(item: &Item<'_>, findings: &mut Findings) -> Option<T> {
    let text = item.text(findings)?;
    let address = text.parse().ok();
    if address.is_none() {
        let family = if std::mem::size_of::<T>() == 4 { "IPv4" } else { "IPv6" };
        let message = format!("`{}` is not an {family} address", shown(text));
        findings.mistake(item.finding(Code::BadValue, message));
    }
    address
}

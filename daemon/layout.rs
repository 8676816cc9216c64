//! Build script of every daemon: lays the program out for a small resident size; docs/benchmarks.md has the figures.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../daemon/layout.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    // Functions of one crate side by side: what is rarely used then shares few pages with what is in use.
    println!("cargo::rustc-link-arg-bins=-Wl,--sort-section=name");
    // Packed, relocations are a hundredth of their size, and all of them are read at each start. The loader understands them
    // since glibc 2.36; a program built here need not run on anything older than here.
    if variable("HOST") == variable("TARGET") && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of this machine's C library.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

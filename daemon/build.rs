//! Records when the crate was built: the lower bound of every verifier's clock.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // SOURCE_DATE_EPOCH makes builds reproducible: https://reproducible-builds.org/specs/source-date-epoch/
    let seconds = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |elapsed| elapsed.as_secs())
        });
    println!("cargo:rustc-env=ROBLE_BUILD_EPOCH={seconds}");
}

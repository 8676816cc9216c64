#!/bin/sh
# Installs what the tests need and runs them all. docs/testing.md says what takes how long.
set -eu
cd "$(dirname "$0")/.."

scripts/install-deps.sh --tests
stage() { printf '\n==> %s (%s s)\n' "$1" "$(($(date +%s) - began))"; }
began=$(date +%s)

stage "format"
cargo fmt --all --check
stage "dependencies: bans, licences, sources"
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
else
    echo "SKIPPED: cargo-deny is not installed; docs/testing.md says how" >&2
fi
stage "build"
cargo build --workspace --bins --quiet
cargo test --workspace --no-run --quiet
scripts/build-hello.sh
scripts/build-ffmpeg.sh
stage "tests"
cargo test --workspace -- --test-threads=2
stage "planted bugs: each must be caught"
cargo test -p roble-core --features planted-bugs --lib
cargo test -p roble-sim --features planted-bugs --test planted
stage "done"

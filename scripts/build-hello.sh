#!/bin/sh
# Builds examples/hello as a static program and makes the image archive TARGET/roble-hello.tar out of it.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
triple=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --quiet -p hello --target "$triple"
scripts/build-image.sh docker.io/library/roble-hello:latest "$target/$triple/release/hello" "$target/roble-hello.tar"

#!/bin/sh
# Builds what `bench/run tunnel` measures against into a folder of its own (by default target/tunnel-peers, which is not
# committed): gotatun, boringtun, wireguard-go. Takes some minutes the first time. What cannot be had is left out there.
set -eu
cd "$(dirname "$0")/.."

folder=${1:-${CARGO_TARGET_DIR:-target}/tunnel-peers}
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)
for crate in gotatun-cli@0.10.2 boringtun-cli@0.7.1; do
    cargo install --quiet --locked --root "$folder" "$crate" || cargo install --quiet --root "$folder" "$crate" ||
        echo "SKIPPED: $crate does not build here" >&2
done
if command -v go >/dev/null; then
    GOBIN="$folder/bin" go install golang.zx2c4.com/wireguard@latest || echo "SKIPPED: wireguard-go does not build here" >&2
else
    echo "SKIPPED: wireguard-go needs Go" >&2
fi
ls "$folder/bin"

#!/bin/sh
# Makes the image archive TARGET/roble-ffmpeg.tar, for examples/video.yaml, out of this machine's ffmpeg and the libraries it loads.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
program=$(command -v ffmpeg) || { echo "build-ffmpeg: ffmpeg is missing; scripts/install-deps.sh --tests installs it" >&2; exit 1; }
out=$target/roble-ffmpeg.tar
[ ! "$out" -nt "$program" ] || [ ! "$out" -nt "$0" ] || exit 0

rootfs=$(mktemp -d)
trap 'rm -rf "$rootfs"' EXIT
mkdir "$rootfs/bin"
cp -L "$program" "$rootfs/bin/ffmpeg"
# `NAME => PATH (ADDRESS)` for libraries, `PATH (ADDRESS)` for the loader, which must lie where the program names it.
LC_ALL=C ldd "$program" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (0x.*/\1/p' | while read -r library; do
    folder=$rootfs$(dirname "$library")
    mkdir -p "$folder"
    cp -L "$library" "$folder/"
done
# Where the loader looks without being told: its cache names what lies elsewhere.
mkdir -p "$rootfs/etc"
find "$rootfs" -name '*.so*' -exec dirname {} + | sed "s|^$rootfs||" | sort -u >"$rootfs/etc/ld.so.conf"
ldconfig -r "$rootfs" -X
# The folders' order and times shall not matter; the cache holds neither.
scripts/build-image.sh docker.io/library/roble-ffmpeg:latest "$rootfs" "$out" bin/ffmpeg

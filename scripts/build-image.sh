#!/bin/sh
# Makes an image archive out of one static binary, or of a folder with all that a program needs, without network and without
# a daemon.
#
#   scripts/build-image.sh NAME BINARY OUT.tar [ENTRYPOINT_NAME]
#   scripts/build-image.sh NAME FOLDER OUT.tar PROGRAM_IN_FOLDER
#   scripts/build-image.sh docker.io/library/roble-hello:latest target/.../hello hello.tar
#
# The archive is an OCI image layout with a docker `manifest.json` beside it, so that both `ctr images import` and
# `docker load` take it. The same binary gives the same bytes: no time, no owner, no order of the file system is in it.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 NAME BINARY|FOLDER OUT.tar [ENTRYPOINT_NAME]" >&2
    exit 2
fi
name=$1 binary=$2 out=$3 entry=${4:-$(basename "$2")}

folder=
if [ -d "$binary" ]; then
    folder=$binary binary=$binary/$entry
fi
[ -f "$binary" ] || { echo "build-image: no such file: $binary" >&2; exit 1; }
# An image of one file has no loader: a dynamic binary would fail with `no such file or directory` at its start.
if [ -z "$folder" ] && LC_ALL=C ldd "$binary" 2>&1 | grep -q '=>'; then
    echo "build-image: $binary is not static; build it with RUSTFLAGS='-C target-feature=+crt-static'" >&2
    exit 1
fi
case $name in
    */*:*) ;;
    *) echo "build-image: NAME must be full, as docker.io/library/roble-hello:latest" >&2; exit 2 ;;
esac
case $(od -An -tx1 -j18 -N2 "$binary" | tr -d ' ') in
    3e00) arch=amd64 variant= ;;
    b700) arch=arm64 variant=',"variant":"v8"' ;;
    2800) arch=arm variant=',"variant":"v7"' ;;
    f300) arch=riscv64 variant= ;;
    *) echo "build-image: $binary is for an architecture that is not known here" >&2; exit 1 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/rootfs/etc" "$work/rootfs/tmp" "$work/image/blobs/sha256"
chmod 0755 "$work/rootfs" "$work/rootfs/etc"
chmod 1777 "$work/rootfs/tmp"
if [ -n "$folder" ]; then
    cp -r "$folder/." "$work/rootfs/"
else
    install -m 0755 "$binary" "$work/rootfs/$entry"
fi
printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$work/rootfs/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$work/rootfs/etc/group"
chmod 0644 "$work/rootfs/etc/passwd" "$work/rootfs/etc/group"

archive() { # FOLDER OUT ENTRIES...
    folder=$1 archive_out=$2
    shift 2
    tar --create --file "$archive_out" --directory "$folder" --format=ustar --sort=name --mtime=@0 \
        --owner=0 --group=0 --numeric-owner "$@"
}
blob() { # FILE: moves it among the blobs; sets $digest and $size
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    size=$(wc -c <"$1" | tr -d ' ')
    mv "$1" "$work/image/blobs/sha256/$digest"
}

# shellcheck disable=SC2046 # Names at the top have no spaces.
archive "$work/rootfs" "$work/layer.tar" $(cd "$work/rootfs" && ls)
blob "$work/layer.tar"
layer=$digest layer_size=$size

cat >"$work/config.json" <<JSON
{"architecture":"$arch"$variant,"os":"linux","created":"1970-01-01T00:00:00Z","config":{"Entrypoint":["/$entry"],"Env":["PATH=/"],"WorkingDir":"/","StopSignal":"SIGTERM"},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"scripts/build-image.sh"}]}
JSON
blob "$work/config.json"
config=$digest config_size=$size

cat >"$work/manifest.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$layer_size}]}
JSON
blob "$work/manifest.json"
manifest=$digest manifest_size=$size

printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
cat >"$work/image/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$manifest_size,"platform":{"architecture":"$arch"$variant,"os":"linux"},"annotations":{"io.containerd.image.name":"$name","org.opencontainers.image.ref.name":"${name##*:}"}}]}
JSON
cat >"$work/image/manifest.json" <<JSON
[{"Config":"blobs/sha256/$config","RepoTags":["$name"],"Layers":["blobs/sha256/$layer"]}]
JSON
archive "$work/image" "$work/out.tar" blobs index.json manifest.json oci-layout
mv "$work/out.tar" "$out"
echo "$name sha256:$manifest"

#!/bin/sh
# From a fresh clone to two running replicas on a tree of one root, one cluster and two nodes, all on this machine.
# Repeatable; `roble dev down` removes everything again.
set -eu
cd "$(dirname "$0")/.."

say() { printf '\n==> %s\n' "$*"; }

[ "$(id -u)" = 0 ] || { echo "quickstart: it makes network namespaces and runs containers; run it as root" >&2; exit 1; }

say "Installing what is missing"
scripts/install-deps.sh

say "Building (a few minutes the first time)"
cargo build --release --quiet -p roble-root -p roble-cluster -p roble-node -p roble-net -p roble-tunnel -p roble-cli
target=${CARGO_TARGET_DIR:-target}
bin=$(cd "$target/release" && pwd)
PATH=$bin:$PATH
export PATH

say "Building the example image from examples/hello"
scripts/build-hello.sh

say "Starting a root, a cluster and two nodes: roble dev up"
roble dev up
roble dev import "$target/roble-hello.tar"

say "Deploying: roble apply -f examples/hello.yaml"
roble apply -f examples/hello.yaml
roble wait hello/web --for running --timeout 60s
roble ps

say "Asking each replica on its published port"
roble ps -o json | tr ',{' '\n\n' | sed -n 's/^ *"node_address": *"\([0-9.]*\)".*/\1/p' | sort | while read -r address; do
    printf 'http://%s:18080 -> ' "$address"
    curl --silent --show-error --max-time 5 "http://$address:18080/"
done

cat <<TXT

It works. The commands are in $bin; put them on your path:
  export PATH=$bin:\$PATH
Try next:
  roble get nodes                      # where things can run
  roble scale hello/web 1              # and 2 again
  roble logs hello/web.0
  roble explain hello/web.1            # why it runs where it runs
  roble delete app hello --wait
  roble dev down                       # stop and remove everything
TXT

#!/bin/sh
# Installs what Roble needs on Debian or Ubuntu: to build, to run `roble dev`, (with --tests) to run every test, and (with
# --vm) to run some of them in a virtual machine, tests/vm.
# Says exactly what to do where it cannot help itself. Repeatable.
set -eu

rust_needed=1.95
packages="containerd runc protobuf-compiler nftables iproute2 util-linux gcc libc6-dev ca-certificates curl"
tests="mosquitto strace python3 procps iperf3 busybox-static docker-registry apache2-utils skopeo umoci ffmpeg"
case ${1:-} in
    --tests) packages="$packages $tests" ;;
    --vm) packages="$packages $tests qemu-system-x86 e2fsprogs binutils" ;;
esac

missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || { echo "install-deps: no apt-get here; install these by hand:$missing" >&2; exit 1; }
    [ "$(id -u)" = 0 ] || { echo "install-deps: run as root, or: sudo apt-get install$missing" >&2; exit 1; }
    echo "install-deps: installing$missing"
    # Services of the packages are not started: the scripts start what they need themselves.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; trap 'rm -f '$policy EXIT; fi
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >/dev/null
fi

version=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
newest=$(printf '%s\n%s\n' "$rust_needed" "${version:-0}" | sort -V | tail -n1)
if [ -z "$version" ] || { [ "$newest" != "$version" ] && [ "$version" != "$rust_needed" ]; }; then
    if command -v rustup >/dev/null; then
        echo "install-deps: Rust ${version:-is not there}; installing a newer one with rustup"
        rustup toolchain install stable --profile minimal
    else
        echo "install-deps: Rust $rust_needed or newer is needed, ${version:-none} is here. Install it with" >&2
        echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal" >&2
        echo "then open a new shell and run this again." >&2
        exit 1
    fi
fi

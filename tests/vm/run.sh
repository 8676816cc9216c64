#!/bin/sh
# Runs the node engine's tests, those of the encrypted tunnel and a whole `roble dev` tree in a small virtual machine that has
# control groups of version 2 only, as most machines have today, and WireGuard in its kernel. Ends with 0 if all holds.
#
#   tests/vm/run.sh                             all, on Debian's kernel
#   tests/vm/run.sh --only engine|tree|tunnel   one part
#
# Needs Debian or Ubuntu on x86_64, and what `scripts/install-deps.sh --vm` installs. No KVM: the processor is emulated.
# Nothing is mounted, started or changed on this machine but files below TARGET/vm.
#   ROBLE_VM_KERNEL    folder with boot/vmlinuz-* and lib/modules/*; without it Debian's package is downloaded, not installed
#   ROBLE_VM_TESTS     of the part `tunnel`: only tests whose name contains this
#   ROBLE_VM_TIMEOUT   seconds until the machine is given up (1800)
set -eu
cd "$(dirname "$0")/../.."

case "$*" in
    '') only='tunnel tree engine' ;;
    '--only engine' | '--only tree' | '--only tunnel') only=$2 ;;
    *) echo "usage: $0 [--only engine|tree|tunnel]" >&2; exit 2 ;;
esac
[ "$(uname -m)" = x86_64 ] || { echo "vm: only for x86_64" >&2; exit 1; }

scripts/install-deps.sh --vm
target=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)
work=$target/vm
mkdir -p "$work"
say() { printf '\n==> %s (%s s)\n' "$*" "$(($(date +%s) - began))"; }
began=$(date +%s)

say "build"
rm -rf "$work/programs" && mkdir "$work/programs"
# Builds the programs of PACKAGE... for the machine.
programs() {
    for package in "$@"; do set -- "$@" -p "$package" && shift; done
    cargo build --quiet --bins "$@"
}
# Builds a test program, for the machine as NAME, with cargo's arguments that follow.
test_program() {
    name=$1
    shift
    # Programs that its tests start are built too, and named.
    built=$(cargo test --quiet "$@" --no-run --message-format=json | grep '"test":true},"features"' |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n1)
    [ -x "$built" ] || { echo "vm: cargo names no test program: $*" >&2; exit 1; }
    strip --strip-debug -o "$work/programs/$name" "$built"
}
take() { for program in "$@"; do strip --strip-debug -o "$work/programs/$program" "$target/debug/$program"; done; }
for part in $only; do
    case $part in
        engine) test_program suite -p roble-node --lib ;;
        tree)
            programs roble-root roble-cluster roble-node roble-net roble-tunnel roble-cli
            take roble roble-root roble-cluster roble-node roble-net roble-tunnel
            ;;
        tunnel)
            # An emulated processor is slow enough.
            fast='profile.dev.package.roble-tunnel.opt-level=2'
            test_program suite-tunnel -p roble-tunnel --test tunnel --config "$fast"
            test_program suite-kernel -p roble-tunnel --test kernel --config "$fast"
            take roble-tunnel
            test_program suite-sealer -p roble-net --test sealer
            ;;
    esac
done
[ -f "$target/roble-hello.tar" ] || scripts/build-hello.sh

kernel=${ROBLE_VM_KERNEL:-$work/kernel}
if [ ! -d "$kernel/boot" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n1)
    [ -n "$package" ] || { echo "vm: no kernel package linux-image-cloud-amd64 here; set ROBLE_VM_KERNEL" >&2; exit 1; }
    say "downloading the kernel $package to $work"
    rm -rf "$work/package" && mkdir "$work/package"
    (cd "$work/package" && apt-get download -q "$package")
    dpkg-deb -x "$work"/package/*.deb "$work/unpacked"
    rm -rf "$work/package" && mv "$work/unpacked" "$kernel"
fi
version=$(basename "$kernel"/lib/modules/*)

say "the machine's disk"
root=$work/root
rm -rf "$root" "$work/initramfs"
for folder in bin dev etc lib/modules proc root roble run sys tmp usr/bin var/lib; do mkdir -p "$root/$folder"; done
busybox=$(command -v busybox)
cp "$busybox" "$root/bin/busybox"
for program in $(busybox --list | grep -v "^busybox$"); do ln -s busybox "$root/bin/$program"; done
# With the libraries and the loader that each names. These come before busybox in PATH.
for program in containerd ctr containerd-shim-runc-v2 runc nft ip tc nsenter tar curl docker-registry htpasswd skopeo umoci; do
    path=$(command -v "$program") || { echo "vm: $program is not installed" >&2; exit 1; }
    cp -L "$path" "$root/usr/bin/$program"
done
cp "$work"/programs/* "$root/roble/"
for program in "$root"/usr/bin/* "$root"/roble/*; do
    ldd "$program" 2>/dev/null | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p'
done | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp "$target/roble-hello.tar" examples/hello.yaml tests/vm/out-of-memory.yaml tests/vm/tree.sh "$root/roble/"
cp tests/vm/init.sh "$root/init"
chmod 755 "$root/init"
echo "$only" >"$root/roble/only"
echo "${ROBLE_VM_TESTS:-}" >"$root/roble/tests"
# A client of registries needs some authorities, also for one without TLS.
mkdir -p "$root/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
cp -R "$kernel/lib/modules/$version" "$root/lib/modules/"
busybox depmod -b "$root" "$version"
rm -f "$work/disk"
truncate -s 2G "$work/disk"
mkfs.ext4 -q -d "$root" "$work/disk"

# Only what it takes to mount that disk.
initramfs=$work/initramfs
mkdir -p "$initramfs/bin" "$initramfs/disk" "$initramfs/dev" "$initramfs/proc" "$initramfs/lib/modules/$version/kernel"
cp "$busybox" "$initramfs/bin/busybox"
# Debian's kernel has ext4 built in; others have it as a module, with these beside it.
for module in drivers/virtio drivers/block/virtio_blk.ko fs/ext4 fs/jbd2 fs/mbcache.ko lib crypto arch/x86/crypto; do
    [ ! -e "$kernel/lib/modules/$version/kernel/$module" ] ||
        (cd "$kernel/lib/modules/$version/kernel" && cp -R --parents "$module" "$initramfs/lib/modules/$version/kernel")
done
cp "$kernel/lib/modules/$version/modules.builtin" "$kernel/lib/modules/$version/modules.order" "$initramfs/lib/modules/$version/"
busybox depmod -b "$initramfs" "$version"
cat >"$initramfs/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk ext4; do /bin/busybox modprobe -q $module; done
/bin/busybox mount -t ext4 /dev/vda /disk
exec /bin/busybox switch_root /disk /init
INIT
chmod 755 "$initramfs/init"
(cd "$initramfs" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"

say "boot"
log=$work/console.log
# One processor and a low priority: it takes its time, and leaves the rest to others. `-icount` makes an instruction last a
# nanosecond of the machine's own time, however slow this one is, and skips waiting: deadlines inside mean what they say.
# A panic ends it.
timeout "${ROBLE_VM_TIMEOUT:-1800}" nice -n 10 qemu-system-x86_64 -accel tcg -machine q35 -cpu max -smp 1 -m 2048 \
    -icount shift=0,sleep=off -rtc clock=vm \
    -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" \
    -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" \
    -nic none -display none -monitor none -no-reboot -serial stdio </dev/null | sed -u 's/\r$//' | tee "$log" || true

say "the machine is off; its console: $log"
grep -q '^vm: all passed$' "$log"

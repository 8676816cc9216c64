#!/bin/sh
# First process of the virtual machine of run.sh: mounts what a machine mounts, runs the tests, says how it went, switches off.
# /sys/fs/cgroup is version 2 alone, and every process but those of containers is in its root.
export PATH=/roble:/usr/bin:/bin HOME=/root RUST_BACKTRACE=1
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo /bin/modprobe >/proc/sys/kernel/modprobe
modprobe overlay
modprobe tun
ip link set lo up
hostname vm
since() { echo "$(cut -d. -f1 /proc/uptime) s"; }

echo "vm: up after $(since); Linux $(uname -r), controllers $(cat /sys/fs/cgroup/cgroup.controllers), $(cat /proc/cmdline)"
failed=""
for part in $(cat /roble/only); do
    case $part in
        # One test after the other: the processor is slow, and the deadlines are those of real ones. The group that all
        # tests share is empty in the end.
        engine) timeout 600 suite runtime:: --test-threads=1 && rmdir /sys/fs/cgroup/roble-test ;;
        # The kernel's WireGuard with itself and with the worker; then the worker on this kernel. Who else may control it is
        # asked in Python, which is not here.
        tunnel)
            export ROBLE_TUNNEL_PROGRAM=/roble/roble-tunnel
            timeout 60 suite-sealer $(cat /roble/tests) &&
                timeout 900 suite-kernel $(cat /roble/tests) --test-threads=1 --nocapture &&
                timeout 600 suite-tunnel $(cat /roble/tests) --test-threads=1 --skip nobody_else_may_control_it \
                    --skip the_other_end_may_be_another_program
            ;;
        tree) timeout 600 sh /roble/tree.sh ;;
        *) echo "vm: no part is named $part"; false ;;
    esac || failed="$failed $part"
    echo "vm: $part done after $(since)"
done
if [ -z "$failed" ]; then echo "vm: all passed"; else echo "vm: failed:$failed"; fi
sync
poweroff -f

#!/bin/sh
# Inside the virtual machine of run.sh: a tree of two nodes, its limits and its want of memory, in control groups of version 2;
# `roble dev down` leaves none.
set -eu
groups=/sys/fs/cgroup/roble-dev
# What a person would look at, if something fails.
show() {
    trap - EXIT
    echo "tree: failed; what it says:"
    roble ps || true
    roble explain hello/web.0 || true
    for log in /var/lib/roble-dev/logs/*.log; do
        echo "tree: $log"
        grep -v level=info "$log" | tail -n 12 | cut -c1-600
    done
    exit 1
} >&2
trap show EXIT
fail() {
    echo "tree: $*" >&2
    exit 1
}
expect() { # WHAT HAS WANTED
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
    echo "tree: $1 is $2"
}

roble dev up
roble dev import /roble/roble-hello.tar
roble apply -f /roble/hello.yaml
roble wait hello/web --for running --timeout 120s
roble ps
count=0
for process in $(find $groups -mindepth 2 -name cgroup.procs); do
    group=$(dirname "$process")
    [ -n "$(cat "$process")" ] || continue
    count=$((count + 1))
    expect "$group: cpu.max" "$(cat "$group/cpu.max")" "5000 100000"
    expect "$group: cpu.weight" "$(cat "$group/cpu.weight")" "2"
    expect "$group: memory.max" "$(cat "$group/memory.max")" 33554432
    # Where the kernel cannot limit swap there is no such file.
    [ ! -e "$group/memory.swap.max" ] || expect "$group: memory.swap.max" "$(cat "$group/memory.swap.max")" 0
    expect "$group: pids.max" "$(cat "$group/pids.max")" 512
done
expect "groups with processes" $count 2
for address in 10.99.77.2 10.99.77.3; do
    # It runs before it listens. Not busybox's wget: the static one crashes here.
    tries=0
    until curl --silent --max-time 5 --output /tmp/answer "http://$address:18080/"; do
        tries=$((tries + 1))
        [ $tries -lt 20 ] || fail "http://$address:18080 does not answer"
        sleep 1
    done
    expect "http://$address:18080" "$(head -n1 /tmp/answer | cut -c1-19)" "hello from the edge"
done

# This shell prefers its own `ip`, which knows less.
# Waits until rbl-wg of a node is of a kind, and the node's net manager says so too.
wait_kind() { # NODE KIND SAID
    tries=0
    until /usr/bin/ip -n "roble-dev-$1" -d -o link show rbl-wg 2>/dev/null | grep -qw "$2" &&
        roble network routes --socket "/var/lib/roble-dev/$1/net.sock" | tee /tmp/routes | grep -q " $3 "; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || fail "$1: rbl-wg is not of kind $2, said as $3: $(/usr/bin/ip -n "roble-dev-$1" -d -o link show rbl-wg 2>&1)"
        sleep 1
    done
    echo "tree: $1 seals by $3"
    cat /tmp/routes
}
# Each instance calls the other, on the other node, by the service addresses of that instance.
call_each_other() {
    calls=0
    for process in $(find $groups -mindepth 2 -name cgroup.procs -exec cat {} +); do
        number=$(tr '\0' '\n' <"/proc/$process/environ" | sed -n 's/^ROBLE_INSTANCE=//p')
        [ -n "$number" ] || continue
        other=$((1 - number))
        roble get instance "hello/web.$other" -o json >/tmp/instance
        for address in $(sed -n '/"service_addresses"/,/]/p' /tmp/instance | grep -o '"[0-9a-f]*[.:][0-9a-f.:]*"' | tr -d '"'); do
            case $address in *:*) address="[$address]" ;; esac
            calls=$((calls + 1))
            tries=0
            until /usr/bin/nsenter "--net=/proc/$process/ns/net" curl --silent --max-time 5 --output /tmp/answer "http://$address:8080/"; do
                tries=$((tries + 1))
                [ $tries -lt 20 ] || fail "instance $number does not reach $address"
                sleep 1
            done
            expect "instance $number calls $address" "$(head -n1 /tmp/answer)" \
                "hello from the edge from hello-web-$other instance $other"
        done
    done
    expect "calls between the nodes, both families, both ways" $calls 4
}
workers() { cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^roble-tunnel$' || true; }
# Starts the net manager of a node anew, with another device for the encrypted tunnel.
restart_net() { # NODE DEVICE
    process=$(cut -d' ' -f1 "/var/lib/roble-dev/$1-net.pid")
    kill "$process"
    while grep -qs roble-net "/proc/$process/comm"; do sleep 1; done
    ROBLE_NET_TUNNEL_DEVICE=$2 roble dev up
}

# Between the nodes the kernel's WireGuard seals, without having been asked for; then on one of them the worker; then not.
wait_kind n1 wireguard kernel
wait_kind n2 wireguard kernel
call_each_other
# A way that takes less than the device: senders are told by the route.
/usr/bin/ip -n roble-dev-n1 route add 10.99.77.3/32 dev eth0 mtu 1400
tries=0
until [ "$(/usr/bin/ip -n roble-dev-n1 route show dev rbl-wg | grep -c 'mtu 1340')" = 1 ] &&
    [ "$(/usr/bin/ip -n roble-dev-n1 -6 route show dev rbl-wg | grep -c 'mtu 1340')" = 1 ]; do
    tries=$((tries + 1))
    [ $tries -lt 90 ] || fail "no route is as narrow as its way: $(/usr/bin/ip -n roble-dev-n1 route show dev rbl-wg)"
    sleep 1
done
echo "tree: $(/usr/bin/ip -n roble-dev-n1 route show dev rbl-wg | grep mtu)"
/usr/bin/ip -n roble-dev-n1 route del 10.99.77.3/32 dev eth0
restart_net n1 user
wait_kind n1 tun "user space"
call_each_other
restart_net n1 auto
wait_kind n1 wireguard kernel
call_each_other
expect "workers left" "$(workers)" 0

roble apply -f /roble/out-of-memory.yaml
tries=0
until roble get instance hungry/once.0 -o json >/tmp/instance && grep -q out-of-memory /tmp/instance; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || fail "out-of-memory is not told: $(cat /tmp/instance)"
    sleep 1
done
echo "tree: told of want of memory: $(grep -A3 out-of-memory /tmp/instance | tr -d '\n')"
roble get service hello/web -o json | grep -q '"running": *2' || fail "the others do not run on"

roble delete app hungry --wait
roble delete app hello --wait
expect "groups left after the delete" "$(find $groups -mindepth 2 -type d)" ""
# What still runs goes down with the tree.
roble apply -f /roble/hello.yaml
roble wait hello/web --for running --timeout 120s
roble dev down
expect "workers left after roble dev down" "$(workers)" 0
expect "groups left after roble dev down" "$(find /sys/fs/cgroup -mindepth 1 -type d)" ""
expect "links left" "$(ip -o link | grep -c roble || true)" 0
expect "mounts left" "$(grep -c roble-dev /proc/mounts || true)" 0
trap - EXIT

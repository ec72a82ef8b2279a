#!/bin/bash
# TCP between two network namespaces that are joined by two taps at switchd, by two taps at Debian's vde_switch
# (vde_plug2tap), by veth pairs whose other ends are interfaces of switchd's (nic), or by the host's own bridge with such
# pairs (nothing need hold a tap there), in turns:
# bench/taps.sh [SECONDS [ROUNDS [KIND...]]]
# Needs root, for a network namespace with all of that in it. SWITCHD names the program, WITHOUT what it is to do without.
set -eu
. "$(dirname "$0")/common.sh"
enter --mount "$@"
seconds=${1:-3} rounds=${2:-5}
whole_seconds "$seconds"
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- vde_switch switchd nic bridge
switchd=${SWITCHD:-target/release/switchd}
mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns

measure() {
    kind=$1 dir=$(mktemp -d "$work/XXXXXX")
    for n in 1 2; do ip netns add n$n; done
    case $kind in
    bridge) ip link add br0 type bridge; ip link set br0 up ;;
    vde_switch) begin_open vde_switch -s "$dir/vde"; await test -S "$dir/vde/ctl" ;;
    switchd | nic) start_switchd "${WITHOUT:+--without $WITHOUT}" ;;
    *) echo "taps.sh: no kind '$kind': vde_switch, switchd, nic or bridge" >&2; exit 2 ;;
    esac
    for n in 1 2; do
        case $kind in
        bridge)
            ip link add t$n netns n$n type veth peer name p$n; ip link set p$n master br0 up ;;
        nic)
            ip link add t$n netns n$n type veth peer name p$n; ip link set p$n up
            "$switchd" --dir "$dir/h" port add A --nic p$n --promisc >/dev/null ;;
        vde_switch)
            begin_open ip netns exec n$n vde_plug2tap -s "$dir/vde" t$n; await ip -n n$n link show t$n ;;
        switchd)
            ip tuntap add dev t$n mode tap
            "$switchd" --dir "$dir/h" port add A --tap t$n >/dev/null
            ip link set t$n netns n$n ;;
        esac
        ip -n n$n addr add 10.0.0.$n/24 dev t$n; ip -n n$n link set t$n up
    done
    begin ip netns exec n1 iperf3 -s
    await ip netns exec n2 ping -c 1 -W 1 10.0.0.1
    await sh -c "ip netns exec n1 ss -ltnH | grep -q :5201"
    # Rate received, and segments sent again.
    ip netns exec n2 iperf3 -c 10.0.0.1 -t "$seconds" -f m |
        awk '/sender/ {again = $9} /receiver/ {rate = $7} END {print rate + 0, again + 0}' >>"$work/$kind"
    end
    remove_links p1 p2
    for n in 1 2; do ip netns del n$n; done
    remove_links br0
}

for _ in $(seq "$rounds"); do for kind; do measure "$kind"; done; done
base=$(cut -d' ' -f1 "$work/$1" | median)
echo "| joined by | TCP Mbit/s, median of $rounds | sent again | ratio |"
echo "| --- | ---: | ---: | ---: |"
for kind; do
    rate=$(cut -d' ' -f1 "$work/$kind" | median)
    echo "| $kind | $rate | $(cut -d' ' -f2 "$work/$kind" | median) | $(awk "BEGIN {printf \"%.2f\", $rate / $base}") |"
done

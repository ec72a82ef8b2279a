#!/bin/bash
# TCP between two UML kernels, each kind in turns: bench/guests.sh [SECONDS [ROUNDS [KIND...]]]
#   uml_switch  Debian's, by the kernel's old driver    vde_switch  Debian's, by its vde driver
#   bridge      the host's own, by taps (gro=1)         tap         from a guest over bess to the host's tap at switchd
#   daemon, vde, bess, bess9000 (an MTU of 9000), vhost (shared memory)    switchd, by the ways it offers
# Needs root, for a network namespace with the bridge in it. SWITCHD names the program.
set -eu
. "$(dirname "$0")/common.sh"
enter "" "$@"
seconds=${1:-4} rounds=${2:-5}
whole_seconds "$seconds"
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- uml_switch vde_switch bridge daemon vde bess bess9000 vhost tap
switchd=${SWITCHD:-target/release/switchd}

make_init <<'INIT'
# The other machine answers before its server listens, and that is busy a little longer than the test takes.
rate() {
    until iperf3 -c 10.0.0.1 -t $seconds -f m "$@" >/tmp/rate; do sleep 0.1; done
    awk '/receiver/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /bits/) sum += $i} END {print sum + 0}' /tmp/rate
}
echo "RATES $(rate) $(rate --bidir) END"
INIT

measure() {
    kind=$1 dir=$(mktemp -d "$work/XXXXXX") guests="1 2" mtu=1500
    case $kind in
    bridge)
        make_bridge
        word='vec0:transport=tap,ifname=tap@,gro=1,mac=02:00:00:00:00:0@' ;;
    uml_switch)
        # Not switchd under that name.
        begin /usr/bin/uml_switch -unix "$dir/ctl"
        await test -S "$dir/ctl"
        word="eth0=daemon,02:00:00:00:00:0@,unix,$dir/ctl" ;;
    vde_switch)
        begin_open vde_switch -s "$dir/vde"
        await test -S "$dir/vde/ctl"
        word="eth0=vde,$dir/vde,02:00:00:00:00:0@" ;;
    daemon | vde | vhost | bess | bess9000 | tap)
        [ $kind != bess9000 ] || mtu=9000
        start_switchd "--workers 1" --mtu $mtu
        case $kind in
        daemon) word="eth0=daemon,02:00:00:00:00:0@,unix,$at.cnct" ;;
        vde) word="eth0=vde,$at.vde,02:00:00:00:00:0@" ;;
        vhost) word=virtio_uml.device=$at.vhost:1 ;;
        # As vstart has it.
        bess | tap) word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@,depth=256 ;;
        bess9000) word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@,mtu=9000 ;;
        esac
        if [ $kind = tap ]; then
            guests=2
            ip tuntap add dev tap1 mode tap
            "$switchd" --dir "$dir/h" port add A --tap tap1 >/dev/null
            ip addr add 10.0.0.1/24 dev tap1; ip link set tap1 up
            begin iperf3 -s
        fi ;;
    *) echo "guests.sh: no kind '$kind'" >&2; exit 2 ;;
    esac
    boot_guests "$guests" mem=256M quiet "seconds=$seconds" "mtu=$mtu" "$word"
    await_rates $((seconds * 2 + 60))
    rates=$(sed -n 's/.*RATES \(.*\) END.*/\1/p' "$dir/console2")
    if [ -z "$rates" ] || grep -qE 'panic|BUG:|Call Trace' "$dir"/console?; then
        echo "guests.sh: $kind failed:" >&2; tail -n 20 "$dir"/console? >&2; exit 1
    fi
    echo "$rates" >> "$work/$kind"
    end
    remove_links br0 tap1 tap2
}

for _ in $(seq "$rounds"); do for kind; do measure "$kind"; done; done
base=$(cut -d' ' -f1 "$work/$1" | median)
echo "| kind | one way, Mbit/s | by that of $1 | both ways at once | all rounds |"
echo "| --- | ---: | ---: | ---: | --- |"
for kind; do
    rate=$(cut -d' ' -f1 "$work/$kind" | median)
    echo "| $kind | $rate | $(awk "BEGIN {printf \"%.2f\", $rate / $base}") | $(cut -d' ' -f2 "$work/$kind" | median) | $(tr '\n' ';' < "$work/$kind") |"
done

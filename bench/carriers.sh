#!/bin/bash
# TCP from one network namespace to another, each with a tap at a switch of its own, over what joins the two switches:
# each carrier of switchd beside what else speaks the same (QEMU's hub and netdevs, vde_switch with vde_plug):
#
#     usage: bench/carriers.sh [SECONDS [ROUNDS [CARRIER...]]]     SWITCHD names the program; needs root
#
# Everything is in a network namespace that goes with the script: nothing of the host's is changed.
set -eu
. "$(dirname "$0")/common.sh"
enter "--pid --fork --mount-proc" "$@"
seconds=${1:-2} rounds=${2:-3}
whole_seconds "$seconds"
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- none link cable stream dgram udp mcast l2tpv3 l2tpv3-ip gre
switchd=${SWITCHD:-target/release/switchd}
ip route add 224.0.0.0/4 dev lo

has_reader() { ip -o link show "$1" | grep -q LOWER_UP; }

# Two switches, tap1 at one and tap2 at the other.
ours() {
    for n in 1 2; do begin "$switchd" --dir "$work/$n" run --workers 1; done
    for n in 1 2; do
        await "$switchd" --dir "$work/$n" domain add A --mode switch
        [ "$n$1" = 2none ] || [ "$n$1" = 2link ] || "$switchd" --dir "$work/$n" port add A --tap tap$n
    done
    here=127.0.0.1 there=127.0.0.2
    case $1 in
    none) "$switchd" --dir "$work/1" port add A --tap tap2 ;;
    link)
        "$switchd" --dir "$work/1" domain add B --mode switch
        "$switchd" --dir "$work/1" port add B --tap tap2
        "$switchd" --dir "$work/1" link A B ;;
    cable) begin "$switchd" --dir "$work/1" cable A -- "$switchd" --dir "$work/2" cable A ;;
    stream) both "--stream unix:$work/s --listen" "--stream unix:$work/s" ;;
    dgram) both "--dgram $work/d1,$work/d2" "--dgram $work/d2,$work/d1" ;;
    udp) both "--udp $here:5001,$there:5002" "--udp $there:5002,$here:5001" ;;
    mcast) both "--mcast 239.192.168.1:1102" "--mcast 239.192.168.1:1102" ;;
    l2tpv3)
        both "--l2tpv3 $here:1701,$there:1702 --tx-session 1 --rx-session 2" \
            "--l2tpv3 $there:1702,$here:1701 --tx-session 2 --rx-session 1" ;;
    l2tpv3-ip)
        both "--l2tpv3 $here,$there --tx-session 1 --rx-session 2" "--l2tpv3 $there,$here --tx-session 2 --rx-session 1" ;;
    gre) both "--gre $here,$there" "--gre $there,$here" ;;
    *) fail "there is no carrier '$1'" ;;
    esac
}
both() {
    # shellcheck disable=SC2086 # words
    { "$switchd" --dir "$work/1" port add A $1; "$switchd" --dir "$work/2" port add A $2; }
}

# The same by others; fails if nobody has it.
theirs() {
    case $1 in
    none) begin qemu-system-x86_64 -nodefaults -machine none -display none $(hub tap,ifname=tap1,script=no tap,ifname=tap2,script=no) ;;
    cable)
        for n in 1 2; do begin_open vde_switch -s "$work/v$n" -tap tap$n; await [ -S "$work/v$n/ctl" ]; done
        # It makes a process group of its own, which the leader of a session cannot; it goes with the switches.
        begin sh -c "dpipe vde_plug $work/v1 = vde_plug $work/v2; true" ;;
    stream)
        qemus "stream,server=on,addr.type=unix,addr.path=$work/s" "stream,server=off,addr.type=unix,addr.path=$work/s" ;;
    dgram)
        qemus "dgram,local.type=unix,local.path=$work/d1,remote.type=unix,remote.path=$work/d2" \
            "dgram,local.type=unix,local.path=$work/d2,remote.type=unix,remote.path=$work/d1" ;;
    udp) qemus "socket,udp=127.0.0.2:5002,localaddr=127.0.0.1:5001" "socket,udp=127.0.0.1:5001,localaddr=127.0.0.2:5002" ;;
    mcast) qemus "socket,mcast=239.192.168.1:1102,localaddr=127.0.0.1" "socket,mcast=239.192.168.1:1102,localaddr=127.0.0.1" ;;
    l2tpv3)
        qemus "l2tpv3,udp=on,src=127.0.0.1,srcport=1701,dst=127.0.0.2,dstport=1702,txsession=1,rxsession=2" \
            "l2tpv3,udp=on,src=127.0.0.2,srcport=1702,dst=127.0.0.1,dstport=1701,txsession=2,rxsession=1" ;;
    l2tpv3-ip)
        qemus "l2tpv3,src=127.0.0.1,dst=127.0.0.2,txsession=1,rxsession=2" \
            "l2tpv3,src=127.0.0.2,dst=127.0.0.1,txsession=2,rxsession=1" ;;
    *) return 1 ;;
    esac
}
# Words for a hub of QEMU's between two netdevs.
hub() {
    echo "-netdev ${1%%,*},id=a,${1#*,} -netdev hubport,hubid=0,id=ha,netdev=a"
    echo "-netdev ${2%%,*},id=b,${2#*,} -netdev hubport,hubid=0,id=hb,netdev=b"
}
qemus() {
    n=0
    for netdev; do
        n=$((n + 1))
        # shellcheck disable=SC2046 # words
        begin qemu-system-x86_64 -nodefaults -machine none -display none $(hub tap,ifname=tap$n,script=no "$netdev")
        await has_reader tap$n
    done
}

# Two taps, whoever reads them; the rate between two namespaces they are moved to.
measure() {
    for n in 1 2; do ip tuntap add dev tap$n mode tap; ip link set tap$n up; done
    if ! "$1" "$2"; then end; for n in 1 2; do ip link del tap$n; done; return; fi
    for n in 1 2; do
        await has_reader tap$n
        begin unshare --net sleep 1000
        pid=$!
        await other_net "$pid"
        ip link set tap$n netns "$pid"
        nsenter --net="/proc/$pid/ns/net" sh -c "ip link set lo up; ip addr add 10.0.0.$n/24 dev tap$n; ip link set tap$n up"
        eval "host$n=$pid"
    done
    in2() { nsenter --net="/proc/$host2/ns/net" "$@"; }
    begin nsenter --net="/proc/$host1/ns/net" iperf3 -s
    await in2 ping -c 1 -W 0.2 10.0.0.1
    rtt=$(in2 ping -q -i 0.002 -c 200 10.0.0.1 | sed -n 's|^rtt.* = [^/]*/\([^/]*\)/.*|\1|p')
    # The server may not be there yet.
    rate=
    for _ in $(seq 50); do
        rate=$(in2 iperf3 -c 10.0.0.1 -t "$seconds" -f m 2>>"$work/log" |
            awk '/receiver/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /bits/) print $i}')
        [ -z "$rate" ] || break
        sleep 0.1
    done
    [ -n "$rate" ] || fail "$1 $2: no rate"
    echo "carriers.sh: $1 $2: $rate Mbit/s, ${rtt:-0} ms" >&2
    echo "$rate ${rtt:-0}" >>"$work/$1-$2"
    # The taps go with their namespaces.
    end
}
other_net() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ] && [ "$(cat "/proc/$1/comm")" = sleep ]; }

for _ in $(seq "$rounds"); do
    for carrier; do
        for who in ours theirs; do
            measure $who "$carrier"
            # Sockets of the last round are in nobody's way.
            rm -rf "$work"/[12] "$work"/v[12] "$work"/[sd] "$work"/d[12]
        done
    done
done
column() { [ ! -e "$work/$1" ] || cut -d' ' -f"$2" "$work/$1" | median; }
peer() { case $1 in cable) echo 'vde_switch, dpipe, vde_plug' ;; link | gre) echo ;; *) echo 'QEMU' ;; esac; }
echo "| carrier | switchd, Mbit/s | round trip, ms | peer | Mbit/s | round trip, ms | ratio |"
echo "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
for carrier; do
    own=$(column "ours-$carrier" 1) other=$(column "theirs-$carrier" 1)
    ratio=$(awk -v a="$own" -v b="$other" 'BEGIN {if (b) printf "%.2f", a / b}')
    echo "| $carrier | $own | $(column "ours-$carrier" 2) | $(peer "$carrier") | $other | $(column "theirs-$carrier" 2) | $ratio |"
done

#!/bin/bash
# 64-byte frames between two virtio-user ports of DPDK's testpmd, through switchd's shared memory (vhost) and through Open
# vSwitch with DPDK (ovs), beside switchd's sequenced packets (bess): bench/dpdk.sh [SECONDS [ROUNDS [KIND...]]]
# KIND sleep is vhost with --poll-us 0.
#
# testpmd keeps 128 frames in flight each way, and passes each on from one port to the other as it comes; then one each
# way, for the time a frame takes. It polls on the first processor and the switch has the second; bess has both.
#
# Needs root, for a network namespace and a /run of its own, and dpdk-testpmd:
#     apt-get install --no-install-recommends dpdk-dev       (33 MB to fetch, 170 MB installed)
# and for ovs the programs of Debian's packages, unpacked rather than installed, which would start a switch:
#     mkdir ovs; cd ovs; apt-get download openvswitch-{common,switch,switch-dpdk} libxdp1
#     for package in *.deb; do dpkg -x "$package" .; done; export OVS=$PWD
# SWITCHD and HUBLOAD name the programs of ours.
set -eu
. "$(dirname "$0")/common.sh"
command -v dpdk-testpmd >/dev/null || fail "there is no dpdk-testpmd: apt-get install --no-install-recommends dpdk-dev"
enter "--mount --pid --fork --mount-proc" "$@"
seconds=${1:-3} rounds=${2:-3}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- vhost sleep bess ${OVS:+ovs}
switchd=${SWITCHD:-target/release/switchd} hubload=${HUBLOAD:-target/release/hubload}
switchd=$(realpath "$switchd") hubload=$(realpath "$hubload")
mount -t tmpfs tmpfs /run

start_ovs() {
    local bin=$OVS/usr
    export LD_LIBRARY_PATH=$bin/lib/x86_64-linux-gnu OVS_RUNDIR=$dir OVS_LOGDIR=$dir OVS_DBDIR=$dir OVS_SYSCONFDIR=$dir
    export OVS_PKGDATADIR=$bin/share/openvswitch
    vsctl() { "$bin/bin/ovs-vsctl" --timeout=20 --db="unix:$dir/db.sock" "$@" >>"$work/log" 2>&1; }
    "$bin/bin/ovsdb-tool" create "$dir/conf.db" "$OVS_PKGDATADIR/vswitch.ovsschema"
    begin "$bin/sbin/ovsdb-server" "$dir/conf.db" --remote="punix:$dir/db.sock" --unixctl="$dir/db.ctl"
    await test -S "$dir/db.sock"
    vsctl --no-wait init
    vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:pmd-cpu-mask=2 \
        other_config:dpdk-extra="--legacy-mem --no-huge --no-pci --no-telemetry -m 2048 --file-prefix ovs"
    begin "$bin/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk" "unix:$dir/db.sock" --unixctl="$dir/vs.ctl"
    await test -S "$dir/vs.ctl"
    vsctl add-br br0 -- set bridge br0 datapath_type=netdev
    for port in p0 p1; do vsctl add-port br0 $port -- set Interface $port type=dpdkvhostuser; done
    unset LD_LIBRARY_PATH
    await test -S "$dir/p1"
}

received() { awk '/RX-packets:/ {last[n++ % 2] = $2} END {print last[0] + last[1]}' "$dir/pmd.log"; }
now() { date +%s%N; }
say() { echo "$*" >&7; }
# Asks for the counters, and waits for both ports' to be there.
show() {
    local lines
    lines=$(grep -c RX-packets: "$dir/pmd.log" || true)
    say show port stats all
    for _ in $(seq 500); do
        [ "$(grep -c RX-packets: "$dir/pmd.log")" -lt $((lines + 2)) ] || break
        sleep 0.01
    done
    received
}
# Frames received in a second.
rate() {
    local begun before ended after
    # Frames that came before the switch had both ports are lost, and none are left to go round.
    for _ in $(seq 20); do
        say start tx_first "$1"
        sleep 0.5
        before=$(show)
        sleep 0.1
        [ "$(show)" = "$before" ] || break
        say stop
    done
    before=$(show); begun=$(now); sleep "$seconds"; after=$(show); ended=$(now)
    say stop
    echo $(((after - before) * 1000000000 / (ended - begun)))
}

# testpmd at two sockets; prints both rates.
load() {
    mkfifo "$dir/commands"
    begin sh -c 'exec "$@" >"$0/pmd.log" 2>&1 <"$0/commands"' "$dir" stdbuf -oL dpdk-testpmd \
        --no-huge -m 128 --no-pci --no-telemetry --file-prefix pmd --lcores 0@0,1@0 \
        "--vdev=net_virtio_user0,path=$1,server=0,mac=02:00:00:00:00:01" \
        "--vdev=net_virtio_user1,path=$2,server=0,mac=02:00:00:00:00:02" -- \
        --interactive --total-num-mbufs=8192 --forward-mode=io --txpkts=60 \
        --eth-peer=0,02:00:00:00:00:02 --eth-peer=1,02:00:00:00:00:01
    exec 7>"$dir/commands"
    await grep -q 'testpmd>' "$dir/pmd.log"
    many=$(rate 4)
    # What is still on its way goes no further.
    for command in 'set fwd rxonly' start stop 'set fwd io' 'set burst 1'; do
        say "$command"
        sleep 0.2
    done
    one=$(rate 1)
    say quit
    exec 7>&-
    echo "$many $(awk "BEGIN {printf \"%.2f\", $one ? 2000000 / $one : 0}")" >>"$work/$kind"
}

measure() {
    kind=$1 dir=$(mktemp -d "$work/XXXXXX")
    case $kind in
    vhost | sleep)
        by="taskset -c 1" start_switchd "--workers 1 $([ $kind = vhost ] || echo --poll-us 0)"
        load "$dir"/h/vhub_*_A.vhost "$dir"/h/vhub_*_A.vhost ;;
    ovs)
        start_ovs
        load "$dir/p0" "$dir/p1" ;;
    bess)
        start_switchd "--workers 1"
        "$hubload" --attach bess --size 60 --switch --seconds "$seconds" --json "$dir"/h/vhub_*_A.bess >"$dir/bess.log"
        echo "$(grep -o '"delivered_per_s":[0-9]*' "$dir/bess.log" | head -n 1 | cut -d: -f2) -" >>"$work/$kind" ;;
    *) fail "no kind '$kind': vhost, sleep, bess or ovs" ;;
    esac
    end
}

for _ in $(seq "$rounds"); do for kind; do measure "$kind"; done; done
echo "| kind | frames/s | µs for one frame | all rounds |"
echo "| --- | ---: | ---: | --- |"
for kind; do
    echo "| $kind | $(cut -d' ' -f1 "$work/$kind" | median) | $(cut -d' ' -f2 "$work/$kind" | median) | $(tr '\n' ';' <"$work/$kind") |"
done

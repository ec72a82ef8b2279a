#!/bin/bash
# TCP between two UML kernels, each kind in turns: bench/guests.sh [SECONDS [ROUNDS [KIND...]]]
#   uml_switch  Debian's, by the kernel's old driver    vde_switch  Debian's, by its vde driver
#   bridge      the host's own, by taps (gro=1)         tap         from a guest over bess to the host's tap at switchd
#   daemon, vde, bess, bess9000 (an MTU of 9000), vhost (shared memory)    switchd, by the ways it offers
# Needs root, for a network namespace with the bridge in it. SWITCHD names the program.
set -eu
if [ -z "${INSIDE:-}" ]; then INSIDE=1 exec unshare --net --kill-child "$BASH" "$0" "$@"; fi
seconds=${1:-4} rounds=${2:-5}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- uml_switch vde_switch bridge daemon vde bess bess9000 vhost tap
switchd=${SWITCHD:-target/release/switchd}
work=$(mktemp -d)
cleanup() {
    for group in ${groups:-}; do kill -9 -- "-$group" 2>/dev/null || true; done
    groups=
    for link in br0 tap1 tap2; do ip link del $link 2>/dev/null || true; done
}
trap 'cleanup; rm -rf "$work"' EXIT
ip link set lo up

cat > "$work/init" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for word in $(cat /proc/cmdline); do case $word in host=*) host=${word#host=};; seconds=*) seconds=${word#seconds=};;
    mtu=*) mtu=${word#mtu=};; esac; done
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for module in net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    ! grep -q virtio_uml /proc/cmdline || busybox insmod $modules/$module.ko
done
for device in eth0 vec0; do [ ! -e /sys/class/net/$device ] || break; done
ip link set lo up; ip addr add 10.0.0.$host/24 dev $device; ip link set $device mtu ${mtu:-1500}; ip link set $device up
if [ $host = 1 ]; then exec iperf3 -s >/dev/null; fi
until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done
# The other machine answers before its server listens, and that is busy a little longer than the test takes.
rate() {
    until iperf3 -c 10.0.0.1 -t $seconds -f m "$@" >/tmp/rate; do sleep 0.1; done
    awk '/receiver/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /bits/) sum += $i} END {print sum + 0}' /tmp/rate
}
echo "RATES $(rate) $(rate --bidir) END"
exec sleep 1000
INIT
chmod +x "$work/init"

# Starts a command in a session of its own, to be ended with all it has started.
begin() { setsid "$@" >>"$work/log" 2>&1 </dev/null & groups="${groups:-} $!"; disown; }

measure() {
    kind=$1 dir=$(mktemp -d "$work/XXXXXX") guests="1 2" mtu=1500
    case $kind in
    bridge)
        ip link add br0 type bridge; ip link set br0 up
        for n in 1 2; do ip tuntap add dev tap$n mode tap; ip link set tap$n master br0 up; done
        word='vec0:transport=tap,ifname=tap@,gro=1,mac=02:00:00:00:00:0@' ;;
    uml_switch)
        begin uml_switch -unix "$dir/ctl"
        until [ -S "$dir/ctl" ]; do :; done
        word="eth0=daemon,02:00:00:00:00:0@,unix,$dir/ctl" ;;
    vde_switch)
        begin sh -c 'sleep infinity | vde_switch -s "$1"' - "$dir/vde"
        until [ -S "$dir/vde/ctl" ]; do :; done
        word="eth0=vde,$dir/vde,02:00:00:00:00:0@" ;;
    daemon | vde | vhost | bess | bess9000 | tap)
        begin "$switchd" --dir "$dir/h" run --workers 1
        until "$switchd" --dir "$dir/h" domain add A --mode switch --mtu 9000 >/dev/null 2>&1; do :; done
        at=$(echo "$dir"/h/vhub_*_A.cnct); at=${at%.cnct}
        case $kind in
        daemon) word="eth0=daemon,02:00:00:00:00:0@,unix,$at.cnct" ;;
        vde) word="eth0=vde,$at.vde,02:00:00:00:00:0@" ;;
        vhost) word=virtio_uml.device=$at.vhost:1 ;;
        # As vstart has it.
        bess | tap) word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@,depth=256 ;;
        *) word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@ ;;
        esac
        [ $kind != bess9000 ] || mtu=9000
        if [ $kind = tap ]; then
            guests=2
            ip tuntap add dev tap1 mode tap
            "$switchd" --dir "$dir/h" port add A --tap tap1 >/dev/null
            ip addr add 10.0.0.1/24 dev tap1; ip link set tap1 up
            begin iperf3 -s
        fi ;;
    *) echo "guests.sh: no kind '$kind'" >&2; exit 2 ;;
    esac
    : > "$dir/1"
    for n in $guests; do
        : > "$dir/$n"
        setsid linux.uml mem=256M root=/dev/root rootfstype=hostfs rootflags=/ ro "init=$work/init" con=null con0=null,fd:1 \
            quiet "umid=g$n" "uml_dir=$dir/u" "host=$n" "seconds=$seconds" "mtu=$mtu" "${word//@/$n}" >"$dir/$n" 2>&1 </dev/null &
        groups="${groups:-} $!"; disown
    done
    for _ in $(seq $(((seconds * 2 + 60) * 4))); do
        ! grep -q 'RATES.*END' "$dir/2" || break
        sleep 0.25
    done
    rates=$(sed -n 's/.*RATES \(.*\) END.*/\1/p' "$dir/2")
    if [ -z "$rates" ] || grep -qE 'panic|BUG:|Call Trace' "$dir/1" "$dir/2"; then
        echo "guests.sh: $kind failed:" >&2; tail -n 20 "$dir/1" "$dir/2" >&2; exit 1
    fi
    echo "$rates" >> "$work/$kind"
    cleanup
}

for _ in $(seq "$rounds"); do for kind; do measure "$kind"; done; done
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
base=$(cut -d' ' -f1 "$work/$1" | median)
echo "| kind | one way, Mbit/s | by that of $1 | both ways at once | all rounds |"
echo "| --- | ---: | ---: | ---: | --- |"
for kind; do
    rate=$(cut -d' ' -f1 "$work/$kind" | median)
    echo "| $kind | $rate | $(awk "BEGIN {printf \"%.2f\", $rate / $base}") | $(cut -d' ' -f2 "$work/$kind" | median) | $(tr '\n' ';' < "$work/$kind") |"
done

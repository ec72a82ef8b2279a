#!/bin/bash
# Boots pairs of UML kernels again and again, each pair with PINGS (1,000) pings and TCP both ways at once, and looks for
# what must not be: a ping lost, a second in which a direction stood still, a complaint of either kernel.
#     bench/boots.sh [BOOTS [SECONDS [KIND...]]]        of TCP, in each boot; 'boots.sh 3 60 vhost' is a soak
#   vhost   shared memory with switchd (SWITCHD names the program, FLAGS are further words of its `run`)
#   bess    switchd by the vector driver
#   bridge  the vector driver's taps at the host's bridge: neither switchd nor virtio
# Consoles of failed boots are printed, and kept in KEEP if that is a directory. Needs root, for a network namespace.
# Fails if any boot did.
set -eu
if [ -z "${INSIDE:-}" ]; then INSIDE=1 exec unshare --net --kill-child "$BASH" "$0" "$@"; fi
boots=${1:-20} seconds=${2:-2} pings=${PINGS:-1000}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- vhost bridge
switchd=${SWITCHD:-target/release/switchd}
work=$(mktemp -d)
cleanup() {
    for group in ${groups:-}; do kill -9 -- "-$group" 2>/dev/null || true; done
    groups=
    for link in br0 tap1 tap2; do ip link del $link 2>/dev/null || true; done
}
trap 'cleanup; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
ip link set lo up

cat > "$work/init" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for word in $(cat /proc/cmdline); do case $word in host=*) host=${word#host=};; seconds=*) seconds=${word#seconds=};;
    pings=*) pings=${word#pings=};; esac; done
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for module in net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    ! grep -q virtio_uml /proc/cmdline || busybox insmod $modules/$module.ko
done
for device in eth0 vec0; do [ ! -e /sys/class/net/$device ] || break; done
ip link set lo up; ip addr add 10.0.0.$host/24 dev $device; ip link set $device up
if [ $host = 1 ]; then exec iperf3 -s >/dev/null; fi
until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done
# Once sent, ping gives replies up soon; the kernel counts those that come later, too.
lost() { awk '/^IcmpMsg/ {if (n++) {for (i = 2; i <= NF; i++) v[name[i]] = $i} else split($0, name)}
    END {print v["OutType8"] - v["InType0"]}' /proc/net/snmp; }
before=$(lost)
ping -q -c $pings -i 0.002 10.0.0.1 >/dev/null
late=0
until [ $(($(lost) - before)) = 0 ] || [ $late = 1000 ]; do sleep 0.01; late=$((late + 1)); done
echo "PINGS $(($(lost) - before)) lost, the last one at most $((late + 1))0 ms late"
# The other machine answers before its server listens.
until iperf3 -c 10.0.0.1 -t $seconds -f m -i 1 --bidir >/tmp/rate; do sleep 0.1; done
# A line of an interval ends in '0.00-1.00 sec 1 MBytes 8 Mbits/sec ...'; the last interval may be a fraction.
awk '/TX-C|RX-C/ && !/sender|receiver/ && match($0, /[0-9.]+-[0-9.]+ +sec/) {
        split(substr($0, RSTART, RLENGTH), part, /[- ]+/)
        if (part[2] - part[1] < 0.5) next
        for (i = 1; i < NF; i++) if ($(i + 1) ~ /bits\/sec/) rate = $i
        count++; if (count == 1 || rate + 0 < least) least = rate + 0 }
    /receiver/ {for (i = 1; i < NF; i++) if ($(i + 1) ~ /bits\/sec/) sum += $i}
    END {print "RATES " count + 0 " intervals, least " least + 0 " Mbit/s, both ways " sum + 0 " END"}' /tmp/rate
exec sleep 1000
INIT
chmod +x "$work/init"

# Starts a command in a session of its own, to be ended with all it has started.
begin() { setsid "$@" >>"$work/log" 2>&1 </dev/null & groups="${groups:-} $!"; last=$!; disown; }
await() {
    for _ in $(seq 300); do ! "$@" >/dev/null 2>&1 || return 0; sleep 0.1; done
    cat "$work/log" >&2; echo "boots.sh: $kind: gave up waiting for: $*" >&2; exit 1
}

boot() {
    dir=$(mktemp -d "$work/XXXXXX") word=
    case $kind in
    bridge)
        ip link add br0 type bridge; ip link set br0 up
        for n in 1 2; do ip tuntap add dev tap$n mode tap; ip link set tap$n master br0 up; done
        word='vec0:transport=tap,ifname=tap@,gro=1,mac=02:00:00:00:00:0@' ;;
    vhost | bess)
        begin "$switchd" --dir "$dir/h" run ${FLAGS:-}
        await "$switchd" --dir "$dir/h" domain add A --mode switch
        at=$(echo "$dir"/h/vhub_*_A.cnct); at=${at%.cnct}
        word=virtio_uml.device=$at.vhost:1
        [ $kind = vhost ] || word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@ ;;
    *) echo "boots.sh: no kind '$kind'" >&2; exit 2 ;;
    esac
    kernels=
    for n in 1 2; do
        setsid linux.uml mem=192M root=/dev/root rootfstype=hostfs rootflags=/ ro "init=$work/init" con=null con0=null,fd:1 \
            "umid=g$n" "uml_dir=$dir/u" "host=$n" "seconds=$seconds" "pings=$pings" "${word//@/$n}" >"$dir/console$n" 2>&1 </dev/null &
        groups="${groups:-} $!" kernels="$kernels $!"; disown
    done
    for _ in $(seq $(((seconds + 60) * 4))); do
        ! grep -q 'RATES.*END' "$dir/console2" || break
        for kernel in $kernels; do kill -0 "$kernel" 2>/dev/null || break 2; done
        sleep 0.25
    done
    said=$(sed -n 's/\r$//; /^PINGS\|^RATES/s/ END//p; /^PINGS/p' "$dir/console2" | tr '\n' ' ')
    fault=
    if ! grep -q 'RATES.*END' "$dir/console2"; then fault='no result'
    elif ! [[ $said == 'PINGS 0 lost,'* ]]; then fault='pings lost'
    elif [[ $said == *'least 0 '* || $said == *'RATES 0 '* ]]; then fault='a second without a byte'; fi
    # While they boot on a busy machine, kernels may warn of their own cryptography.
    complaint=$(sed -s '1,/as init process/d' "$dir"/console[12] | grep -oE "$complaints" | head -n 1 || true)
    [ -z "$complaint" ] || fault="${fault:+$fault, }$complaint"
    if [ $kind = vhost ] && grep -qE 'ERROR|WARN|panicked' "$work/log"; then
        fault="${fault:+$fault, }switchd: $(grep -E 'ERROR|WARN|panicked' "$work/log" | head -n 1)"
    fi
    echo "$kind $turn: ${fault:+FAILED ($fault): }$said"
    if [ -n "$fault" ]; then
        failed=$((failed + 1))
        [ ! -d "${KEEP:-}" ] || for n in 1 2; do cp "$dir/console$n" "$KEEP/$kind-$$-$turn-console$n"; done
        for n in 1 2; do echo "--- console of guest $n"; grep -vE '^(PINGS|RATES)' "$dir/console$n" | tail -n 60; done
        [ "$kind" = bridge ] || "$switchd" --dir "$dir/h" port ls A || true
        tail -n 20 "$work/log"
    fi
    cleanup
    : > "$work/log"
    rm -rf "$dir"
}

complaints='bad:.*|BUG.*|WARNING.*|Kernel panic.*|Call Trace|[Ss]tall(s|ed)? .*|hung_task.*|blocked for more.*|NETDEV WATCHDOG.*|err=-[0-9]+'
failures=0 sum=
for kind; do
    failed=0
    for turn in $(seq "$boots"); do boot; done
    sum="$sum$kind: $boots boots of two guests, $failed failed; "
    failures=$((failures + failed))
done
echo "${sum%; }"
[ "$failures" = 0 ]

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
. "$(dirname "$0")/common.sh"
enter "" "$@"
boots=${1:-20} seconds=${2:-2} pings=${PINGS:-1000}
whole_seconds "$seconds"
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- vhost bridge
switchd=${SWITCHD:-target/release/switchd}

make_init <<'INIT'
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
INIT

boot() {
    dir=$(mktemp -d "$work/XXXXXX") word=
    case $kind in
    bridge)
        make_bridge
        word='vec0:transport=tap,ifname=tap@,gro=1,mac=02:00:00:00:00:0@' ;;
    vhost | bess)
        start_switchd "${FLAGS:-}"
        word=virtio_uml.device=$at.vhost:1
        [ $kind = vhost ] || word=vec0:transport=bess,dst=$at.bess,mac=02:00:00:00:00:0@ ;;
    *) echo "boots.sh: no kind '$kind'" >&2; exit 2 ;;
    esac
    boot_guests "1 2" mem=192M "seconds=$seconds" "pings=$pings" "$word"
    await_rates $((seconds + 60))
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
    end
    remove_links br0 tap1 tap2
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

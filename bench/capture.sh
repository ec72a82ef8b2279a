#!/bin/bash
# What captures cost the data path: processor time of the forwarding threads for each frame, and frames lost on the
# wire, and the rate delivered, without a capture and with one of each kind, in turns; then the medians of the rates
# beside the median without. Over sequenced-packet ports (bess), 1514-byte frames, unicast through a learning switch.
#
# usage: bench/capture.sh [ROUNDS]        programs from target/release, or from $BIN
set -eu
bin=${BIN:-target/release}
rounds=${1:-5}
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT

"$bin/switchd" --dir "$dir" run 2>/dev/null &
daemon=$!
until "$bin/switchd" --dir "$dir" domain add A --mode switch 2>/dev/null; do sleep 0.05; done
control=$(echo "$dir"/vhub_*_A.bess)

worker_ns() {
    for task in /proc/$daemon/task/*; do
        case $(cat "$task/comm") in worker-*) cut -d' ' -f1 "$task/schedstat" ;; esac
    done | awk '{ sum += $1 } END { printf "%.0f", sum }'
}

frames() { "$bin/switchd" --dir "$dir" domain show A --json | sed -n 's/.*"rx_frames": \([0-9]*\).*/\1/p'; }

one() {
    mode=$1
    rm -f "$dir/said" "$dir/pipe"
    case $mode in
    none) ;;
    full) "$bin/switchd" --dir "$dir" capture A -w "$dir/x.pcapng" 2>"$dir/said" & ;;
    snap) "$bin/switchd" --dir "$dir" capture A --snap 96 -w "$dir/x.pcapng" 2>"$dir/said" & ;;
    stuck)
        mkfifo "$dir/pipe"
        sleep 1000 <"$dir/pipe" &
        sleeper=$!
        "$bin/switchd" --dir "$dir" capture A >"$dir/pipe" 2>"$dir/said" &
        ;;
    esac
    client=$!
    if [ "$mode" != none ]; then until grep -q capturing "$dir/said" 2>/dev/null; do sleep 0.02; done; fi
    ns=$(worker_ns) before=$(frames)
    report=$("$bin/hubload" --attach bess --switch --seconds 1.5 --json "$control")
    lost=$(echo "$report" | sed -n 's/.*"lost": *\([0-9]*\).*/\1/p' | head -1)
    rate=$(echo "$report" | sed -n 's/.*"delivered_per_s": *\([0-9]*\).*/\1/p' | head -1)
    ns=$(($(worker_ns) - ns)) before=$(($(frames) - before))
    echo "$mode $((ns / before)) $before ${lost:-?} ${rate:-0}" | tee -a "$dir/rows"
    case $mode in
    none) ;;
    stuck) kill "$client" "$sleeper" ; wait "$client" "$sleeper" 2>/dev/null || true ;;
    *) kill -INT "$client"; wait "$client" || true ;;
    esac
    rm -f "$dir/x.pcapng"
}

echo "mode, worker ns for each frame, frames, lost on the wire, delivered frames/s"
for _ in $(seq "$rounds"); do
    for mode in none full snap stuck; do one $mode; done
done
echo
for mode in none full snap stuck; do
    grep "^$mode " "$dir/rows" | sort -n -k5 | awk -v mode=$mode '{ rate[NR] = $5; lost += $4 }
        END { print mode, rate[int((NR + 1) / 2)], lost }'
done | awk 'NR == 1 { base = $2 } { printf "%s: %d frames/s, ratio %.2f, %d lost on the wire\n", $1, $2, $2 / base, $3 }'

#!/bin/bash
# What each of switchd's optimisations is good for: the rates of a load with all of them and without one, in turns:
# bench/gains.sh [SECONDS [ROUNDS]]. BIN is where hubload and switchd are. As root, taps are measured too (taps.sh).
set -eu
. "$(dirname "$0")/common.sh"
seconds=${1:-1} rounds=${2:-5} bin=${BIN:-target/release}
work=$(mktemp -d) && chmod 700 "$work"
trap 'kill "${daemon:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# Delivered frames a second of a load of switchd without something: WITHOUT WAY HUBLOAD-ARGUMENTS...
rate() {
    local without=$1 way=$2; shift 2
    "$bin/switchd" --dir "$work/h" run ${without:+--without "$without"} 2>>"$work/log" & daemon=$!
    until "$bin/switchd" --dir "$work/h" domain add A --mode hub >/dev/null 2>&1; do kill -0 "$daemon"; done
    "$bin/hubload" --seconds "$seconds" --json "$@" "$work"/h/vhub_*_A."$way" |
        grep -o '"delivered_per_s":[0-9]*' | head -n 1 | cut -d: -f2
    kill "$daemon"; wait "$daemon" || true; daemon=
}
loads=("cnct --attach uml" "cnct --attach uml --ports 8 --traffic flood" "bess --attach bess" "bess --attach bess --ports 8 --traffic flood")
names=("2 ports, unconnected" "8 ports, flood, unconnected" "2 ports, bess" "8 ports, flood, bess")
for _ in $(seq "$rounds"); do
    for i in "${!loads[@]}"; do
        for without in '' batches look help; do rate "$without" ${loads[$i]} >>"$work/$i-$without"; done
    done
done
echo "| load, 1514 bytes | frames/s | without \`batches\` | gain | without \`look\` | gain | without \`help\` | gain |"
echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
for i in "${!loads[@]}"; do
    line="| ${names[$i]} | $(median <"$work/$i-") |"
    for without in batches look help; do
        part=$(median <"$work/$i-$without")
        line="$line $part | $(awk "BEGIN {printf \"%.2f\", $(median <"$work/$i-") / $part}") |"
    done
    echo "$line"
done
[ "$(id -u)" = 0 ] || { echo "gains.sh: without root, taps are not measured" >&2; exit 0; }
with=$(SWITCHD=$bin/switchd "$(dirname "$0")/taps.sh" "$seconds" "$rounds" switchd | awk -F'|' '/switchd/ {print $3 + 0}')
part=$(SWITCHD=$bin/switchd WITHOUT=offload "$(dirname "$0")/taps.sh" "$seconds" "$rounds" switchd | awk -F'|' '/switchd/ {print $3 + 0}')
printf '\n| TCP between two taps | Mbit/s | without `offload` | gain |\n| --- | ---: | ---: | ---: |\n'
awk "BEGIN {printf \"| 1 stream | %d | %d | %.2f |\n\", $with, $part, $with / $part}"

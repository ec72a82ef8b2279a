#!/bin/bash
# A soak: frames checked one by one between ports of three kinds, while other ports and domains come and go and clients are
# killed: bench/soak.sh [SECONDS [FRAMES_PER_SECOND]]. BIN is where hubload and switchd are.
# Fails if a frame was lost, damaged, reordered or doubled, or if switchd has grown.
set -eu
seconds=${1:-600} rate=${2:-2000} bin=${BIN:-target/release}
work=$(mktemp -d) && chmod 700 "$work"
cleanup() { for pid in ${pids:-}; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
trap 'exit 1' INT TERM

"$bin/switchd" --dir "$work" run --hold-ms 500 2>"$work/log" & daemon=$! pids=$!
until "$bin/switchd" --dir "$work" domain add A --mode switch >/dev/null 2>&1; do kill -0 "$daemon"; done
"$bin/switchd" --dir "$work" domain add B --mode hub >/dev/null
ways() { echo --attach uml --attach connected --attach bess "$work"/vhub_*_"$1".cnct "$work"/vhub_*_"$1".vde "$work"/vhub_*_"$1".bess; }
resident() { awk '/^VmRSS/ {print $2}' "/proc/$daemon/status"; }

loads=
for domain in A B; do
    mode=--switch; [ "$domain" = A ] || mode=
    "$bin/hubload" $mode --ports 3 --senders 3 --rate "$rate" --seconds "$seconds" --drain 30 --json $(ways "$domain") \
        >"$work/$domain.json" & loads="$loads $!" pids="$pids $!"
done
turns=0 begin=$SECONDS early=0 most=0
while [ $((SECONDS - begin)) -lt $((seconds - 3)) ]; do
    turns=$((turns + 1))
    "$bin/switchd" --dir "$work" domain add "T$turns" >/dev/null
    # On the switch nobody else may send: hubload's stations always have the same addresses.
    for i in 1 2 3; do sleep 0.1 | vde_plug "$work"/vhub_*_A.vde >/dev/null; done
    for domain in B "T$turns"; do
        "$bin/hubload" --ports 3 --senders 1 --frames 200 --seconds 1 --drain 0.2 $(ways "$domain") >/dev/null || true
    done
    # One that is killed in the middle.
    "$bin/hubload" --ports 3 --rate 500 --seconds 60 $(ways B) >/dev/null 2>&1 & victim=$!
    sleep 0.3; kill -9 "$victim"; wait "$victim" 2>/dev/null || true
    "$bin/switchd" --dir "$work" domain rm "T$turns" >/dev/null
    now=$(resident)
    # The first tenth of the time is for what is allocated once.
    if [ "$turns" = 1 ] || [ $((SECONDS - begin)) -le $((seconds / 10)) ]; then [ "$now" -le "$early" ] || early=$now
    else [ "$now" -le "$most" ] || most=$now; fi
done
for load in $loads; do wait "$load"; done
ports=$("$bin/switchd" --dir "$work" stats | awk '$1 ~ /^[AB]$/ {sum += $4} END {print sum + 0}')
echo "$seconds s, $turns turns of ports, domains and killed clients; ports left: $ports"
echo "resident memory: at most $early KiB in the first tenth of the time, $most KiB after it"
for domain in A B; do
    sed -E "s/.*\"offered\":([0-9]+).*\"delivered\":([0-9]+),\"delivered_per_s\":[^,]*,\"lost\":([0-9]+),.*\"reordered\":([0-9]+),\"duplicates\":([0-9]+),\"damaged\":([0-9]+),\"foreign\":[0-9]+,\"strays\":[0-9]+,\"switch.*/domain $domain: \1 frames sent, \2 delivered, \3 lost, \4 reordered, \5 duplicate, \6 damaged/" "$work/$domain.json"
done | tee "$work/sums"
! grep -qE '[1-9][0-9]* (lost|reordered|duplicate|damaged)' "$work/sums" || { echo "soak.sh: frames went wrong" >&2; exit 1; }
[ "$most" -le $((early + 1024)) ] || { echo "soak.sh: switchd has grown" >&2; exit 1; }

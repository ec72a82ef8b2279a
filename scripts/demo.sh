#!/bin/sh
# The main job, shown: two machines boot, ping each other through switchd, the wire is watched, its rate is measured
# beside uml_switch's, and nothing is left behind. Takes about half a minute.
#
#   demo.sh DIRECTORY      of the programs
set -eu

bin=$(cd "$1" && pwd)
PATH=$bin:$PATH
say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

# A home of its own: the demo touches no machine, domain or file of the user's.
HOME=$(mktemp -d /tmp/hubbub-demo.XXXXXX)
export HOME
unset NETKIT_HUBS NETKIT_STATE NETKIT_HOME 2>/dev/null || true
capture=
clean_up() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$capture" ] || kill -INT "$capture" 2>/dev/null || true
    vcrash pc1 pc2 >/dev/null 2>&1 || true
    switchd stop >/dev/null 2>&1 || true
    rm -rf "$HOME"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    tries=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { echo "demo: waited too long for: $*" >&2; exit 1; }
        sleep 0.1
    done
}

say 'Boot a machine into collision domain A, and watch the domain'
run vstart pc1 --eth0=A -e 'ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up'
switchd capture A -w "$HOME/a.pcapng" 2>/dev/null &
capture=$!
wait_for 5 test -s "$HOME/a.pcapng"

say 'Boot another one, and let it ping the first'
run vstart pc2 --eth0=A -e 'ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; ping -c 5 -i 0.2 10.0.0.1 >/hosthome/ping.txt'
wait_for 20 grep -q 'packets transmitted' "$HOME/ping.txt"
cat "$HOME/ping.txt"
grep -q ' 0% packet loss' "$HOME/ping.txt"

say 'Who runs, who is attached, what has passed'
run vlist
run switchd port ls A

say 'What was on the wire'
kill -INT "$capture"
wait "$capture"
capture=
tshark -r "$HOME/a.pcapng" 'arp or icmp' 2>/dev/null | tee "$HOME/decoded.txt"
grep -q 'ARP' "$HOME/decoded.txt"
[ "$(grep -c 'Echo (ping)' "$HOME/decoded.txt")" -ge 10 ]

say 'Halt them'
run vhalt pc1 pc2
wait_for 15 sh -c '! test -e "$HOME/.netkit/hubs/switchd.sock"'
left=$(find "$HOME/.netkit" -mindepth 2 ! -name '*.lock' ! -name '*.log')
[ -z "$left" ] || { printf 'demo: left behind:\n%s\n' "$left" >&2; exit 1; }
echo 'No process, no socket, no domain is left.'

say 'How fast is the hub? Beside uml_switch and vde_switch, in one run'
hubbench --only hub/2/unicast/1514 --rounds 3 --seconds 1 --round-trips 0 --queue-length 0

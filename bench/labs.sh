#!/bin/sh
# Starts a lab of MACHINES machines by lstart, ends it by lhalt, and boots the very same kernels without vstart, in turns:
# the command lines are those that vstart prints, all kernels start at once, and both are done when every machine has
# made its .ready file. Prints a table; run it on a machine that has nothing else to do.
#
#   labs.sh DIRECTORY [MACHINES [ROUNDS]]      the directory of the programs, from a release build
set -eu

bin=$(cd "$1" && pwd)
machines=${2:-20}
rounds=${3:-3}
PATH=$bin:$PATH
HOME=$(mktemp -d /tmp/hubbub-labs.XXXXXX)
export HOME
unset NETKIT_HUBS NETKIT_STATE NETKIT_HOME 2>/dev/null || true
lab=$HOME/lab
hubs=$HOME/.netkit/hubs
mkdir "$lab"
pids=
clean_up() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    vclean -K -q 2>/dev/null || true
    rm -rf "$HOME"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A chain: each machine shares a domain with the one before and one with the next.
names=
number=0
while [ $number -lt "$machines" ]; do
    names="$names m$number"
    printf 'm%s[0]=D%s\nm%s[1]=D%s\n' $number $number $number $((number + 1))
    number=$((number + 1))
done >"$lab/lab.conf"
echo "LAB_MACHINES='${names# }'" >>"$lab/lab.conf"
printf 'ip link set eth0 up\nip link set eth1 up\n' >"$lab/shared.startup"

now() { date +%s%N; }
# Processor time of the whole host so far, in ticks: all of it but what was idle.
busy() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8; exit }' /proc/stat; }
all_ready() { for name in $names; do [ -e "$lab/$name.ready" ] || return 1; done; }
none_ready() { for name in $names; do rm -f "$lab/$name.ready"; done; }
row() { # WHAT FROM TO [BUSY_FROM BUSY_TO]
    awk -v what="$1" -v from="$2" -v to="$3" -v a="${4:-}" -v b="${5:-}" -v hz="$(getconf CLK_TCK)" -v n="$machines" '
        BEGIN { printf "| %s | %.2f |", what, (to - from) / 1e9
                if (a != "") printf " %.0f |\n", (b - a) * 1000 / hz / n; else print " |" }'
}

cd "$lab"
# What lstart would run, and what that would run: the last line is the kernel.
lstart --print >"$HOME/vstarts"
while read -r line; do
    eval "$line -p" | tail -n 1 |
        sed 's/ con0=fd:0,fd:1 / con0=pts /; s/ ssl0=fd:[0-9]*,fd:[0-9]* / ssl0=pts /; s/ mconsole=[^ ]* / /'
done <"$HOME/vstarts" >"$HOME/kernels"
[ "$(wc -l <"$HOME/kernels")" -eq "$machines" ]

echo "| $machines machines | s | processor ms a machine |"
echo '| --- | ---: | ---: |'
round=0
while [ $round -lt "$rounds" ]; do
    from=$(now) busy_from=$(busy)
    lstart --quiet
    row lstart "$from" "$(now)" "$busy_from" "$(busy)"
    all_ready
    from=$(now)
    lhalt --quiet
    row lhalt "$from" "$(now)"
    switchd stop

    none_ready
    mkdir -p "$hubs" "$HOME/.netkit/mconsole"
    switchd run --dir "$hubs" </dev/null >/dev/null 2>&1 &
    daemon=$!
    until switchd domain ls >/dev/null 2>&1; do :; done
    number=0
    while [ $number -le "$machines" ]; do
        switchd domain add "D$number" >/dev/null
        number=$((number + 1))
    done
    from=$(now) busy_from=$(busy)
    while read -r line; do
        # In a session each, so that all of its processes can be ended.
        eval "setsid $line </dev/null >/dev/null 2>&1 &"
        pids="$pids -$!"
    done <"$HOME/kernels"
    until all_ready; do sleep 0.02; done
    row kernels "$from" "$(now)" "$busy_from" "$(busy)"
    # shellcheck disable=SC2086 # a list of process groups
    kill -KILL $pids
    pids=
    none_ready
    switchd stop
    wait "$daemon" || true
    round=$((round + 1))
done

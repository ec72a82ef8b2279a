# What the scripts beside this one have in common, to be sourced by them. They are for bash and run with `set -eu`.
# shellcheck shell=bash

# Ends the script with a message.
fail() { echo "${0##*/}: $*" >&2; exit 1; }

# iperf3 takes a fraction of a second for no limit.
whole_seconds() { [[ $1 =~ ^[1-9][0-9]*$ ]] || { echo "${0##*/}: whole seconds, please, not '$1'" >&2; exit 2; }; }

# Starts the script again in a network namespace of its own (WORDS: further words of unshare) that ends with it, in which
# $work is a directory for what it makes: enter WORDS "$@"
enter() {
    local words=$1 && shift
    # shellcheck disable=SC2086 # words
    [ -n "${INSIDE:-}" ] || INSIDE=1 exec unshare --net $words --kill-child "$BASH" "$0" "$@"
    work=$(mktemp -d)
    trap 'end; rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM
    ip link set lo up
}

# Starts a command in a session of its own, to be ended with all it has started; its process is $!. The shell forgets it, so
# as not to tell of its end.
begin() { setsid "$@" >>"$work/log" 2>&1 </dev/null & groups="${groups:-} $!"; disown; }
# The same with a standard input that stays open: the end of that is the end of some.
begin_open() { begin sh -c 'sleep infinity | "$@"' - "$@"; }
# Ends all that was begun, and waits until what was begun itself is gone.
end() {
    local group
    for group in ${groups:-}; do kill -9 -- "-$group" 2>/dev/null || true; done
    for group in ${groups:-}; do while kill -0 "$group" 2>/dev/null; do sleep 0.01; done; done
    groups=
}

# Tries a command until it succeeds; a minute is enough for anything here.
await() {
    for _ in $(seq 600); do ! "$@" >/dev/null 2>&1 || return 0; sleep 0.1; done
    find "$work" -name '*log' -exec tail -n 20 {} + >&2
    fail "gave up waiting for: $*"
}

# Starts switchd in $dir/h, WORDS being of its `run`, with a switch (MORE words of `domain add`) whose sockets are $at.cnct and
# so on: [by="COMMAND THAT STARTS IT"] start_switchd WORDS [MORE...]
start_switchd() {
    # shellcheck disable=SC2086 # words
    begin ${by:-} "$switchd" --dir "$dir/h" run $1
    await "$switchd" --dir "$dir/h" domain add A --mode switch "${@:2}"
    at=$(echo "$dir"/h/vhub_*_A.cnct)
    at=${at%.cnct}
}

# Makes the host's bridge with two taps.
make_bridge() {
    ip link add br0 type bridge; ip link set br0 up
    for n in 1 2; do ip tuntap add dev tap$n mode tap; ip link set tap$n master br0 up; done
}
# Removes links that are there; a namespace's own go some time after it.
remove_links() { for link; do ip link del "$link" 2>/dev/null || true; done; }

# Makes $work/init, by which guests come up: the first serves iperf3, the others do what is read from standard input once the
# first answers. The words host, seconds, pings and mtu of the kernel's are variables there.
make_init() {
    {
        cat <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for word in $(cat /proc/cmdline); do case $word in host=* | seconds=* | pings=* | mtu=*) export "$word";; esac; done
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for module in net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    ! grep -q virtio_uml /proc/cmdline || busybox insmod $modules/$module.ko
done
for device in eth0 vec0; do [ ! -e /sys/class/net/$device ] || break; done
ip link set lo up; ip addr add 10.0.0.$host/24 dev $device; ip link set $device mtu ${mtu:-1500}; ip link set $device up
if [ $host = 1 ]; then exec iperf3 -s >/dev/null; fi
until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done
INIT
        cat
        echo 'exec sleep 1000'
    } >"$work/init"
    chmod +x "$work/init"
}
# What vstart loads into kernels if the processor is too much for them; it does no harm where it is not.
xstate=$(realpath "$(dirname "$0")/../target/release/libhubbub_xstate.so")
# Boots guests with further words of the kernel's, in which @ is the guest's number; what they say goes to $dir/console1
# and so on: boot_guests NUMBERS WORD...
boot_guests() {
    local n guests=$1 && shift
    kernels=
    for n in $guests; do
        LD_PRELOAD=$xstate setsid linux.uml root=/dev/root rootfstype=hostfs rootflags=/ ro "init=$work/init" con=null con0=null,fd:1 \
            "umid=g$n" "uml_dir=$dir/u" "host=$n" "${@//@/$n}" >"$dir/console$n" 2>&1 </dev/null &
        groups="${groups:-} $!" kernels="$kernels $!"; disown
    done
}
# Waits until the second guest has said 'RATES ... END', for a time, and as long as all guests live: await_rates SECONDS
await_rates() {
    local kernel
    for _ in $(seq $(($1 * 4))); do
        ! grep -q 'RATES.*END' "$dir/console2" || break
        for kernel in $kernels; do kill -0 "$kernel" 2>/dev/null || break 2; done
        sleep 0.25
    done
}

# The median of the numbers that are read, one a line.
median() { sort -n | awk '{v[NR] = $1} END {print NR ? v[int((NR + 1) / 2)] : ""}'; }

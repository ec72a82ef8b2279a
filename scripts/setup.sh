#!/bin/sh
# Installs the Debian packages that the demo and the tests need. Asks for sudo only when not root; does nothing
# when everything is there.
set -eu

packages='
    build-essential
    libpcap-dev
    user-mode-linux
    uml-utilities
    vde2
    tshark
    uidmap
    iproute2
    iptables
    nftables
    slirp4netns
    passt
    dnsmasq-base
    iperf3
    iputils-ping
    procps
    libcap2-bin
    sudo
    e2fsprogs
    busybox-static
    qemu-system-x86
    xvfb
    xterm
    tmux
'

missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi
echo "installing:$missing"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing

//! Stations of every kind in one domain: everyone's data reach everyone else whole, in frames as long as both take.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::process::Command;
use std::thread;

use tests::netns::Net;
use tests::ports::{bulk, only_late, wait_ports};
use tests::program::{self, Process, tool};
use tests::station::{HOST, Station};
use tests::switchd::Switchd;
use tests::wait;

/// The MTU of the domain and of those that take jumbo frames.
const JUMBO: u32 = 9000;

/// The MTU of the others.
const SMALL: u32 = 1500;

/// Bytes that everyone sends everyone.
const DATA: usize = 2 << 20;

/// The address of a station ends in its place here, counted from one.
const KINDS: [&str; 5] = ["vhost", "bess", "tap", "daemon", "vde"];

/// What the interface of a kind takes.
fn mtu(kind: &str) -> u32 {
    if matches!(kind, "daemon" | "vde") {
        SMALL
    } else {
        JUMBO
    }
}

/// The lines of a script that bring a station's interface up, with routes of their own to those that take less.
fn configure(kind: &str, interface: &str) -> String {
    let place = |kind: &str| KINDS.iter().position(|other| *other == kind).unwrap() + 1;
    let (own, n) = (mtu(kind), place(kind));
    let mut script = format!(
        "ip addr add 10.0.0.{n}/24 dev {interface}\n\
         ip link set {interface} mtu {own} up\n"
    );
    for other in KINDS.iter().filter(|other| mtu(other) < own) {
        let n = place(other);
        script += &format!("ip route add 10.0.0.{n}/32 dev {interface} mtu {SMALL}\n");
    }
    script
}

/// Answers with the checksum of what it is sent.
const SERVER: &str = "busybox nc -ll -p 5000 -e md5sum";

/// A guest, or the machine a tap leads to.
enum Machine {
    Guest(Station),
    Tap { net: Net, _server: Process },
}

impl Machine {
    fn boot(net: &Net, daemon: &Switchd, kind: &str) -> Self {
        let place = |kind: &str| daemon.domain("A").sockets[kind].clone();
        let (interface, word) = match kind {
            "vhost" => ("eth0", format!("virtio_uml.device={}:1", place("vhost"))),
            "bess" => (
                "vec0",
                format!("vec0:transport=bess,dst={},mtu={JUMBO}", place("bess")),
            ),
            "daemon" => ("eth0", format!("eth0=daemon,,unix,{}", place("uml"))),
            "vde" => ("eth0", format!("eth0=vde,{}", place("vde"))),
            _ => return Self::tap(net, daemon),
        };
        let setup = format!(
            "{}{SERVER} &\nuntil grep -q :1388 /proc/net/tcp*; do true; done",
            configure(kind, interface)
        );
        // A guest finds only datagram sockets of its own network namespace.
        let kernel = net.command(tool("linux.uml"));
        Self::Guest(Station::boot_by(kernel, daemon.home(), kind, &setup, &[word]))
    }

    fn tap(net: &Net, daemon: &Switchd) -> Self {
        net.ok("ip tuntap add dev nk1 mode tap");
        daemon.run(&["port", "add", "A", "--tap", "nk1"]).ok();
        let machine = Net::new();
        net.ok(&format!("ip link set nk1 netns {}", machine.pid()));
        machine.script(&configure("tap", "nk1"));
        let server = machine.start(SERVER);
        wait::until_true("the server", || machine.ok("ss -ltnH").contains(":5000"));
        Self::Tap {
            net: machine,
            _server: server,
        }
    }

    /// Pings `address` with 8000 bytes until there are three replies; what ping says.
    fn ping(&self, address: &str, fragments: bool) -> String {
        let way = if fragments { "dont" } else { "do" };
        let ping = format!("ping -q -M {way} -s 8000 -c 3 -i 0.02 -w 20 {address} 2>&1 || true");
        match self {
            Self::Guest(station) => station.run(&format!("{HOST} {ping}")),
            Self::Tap { net, .. } => net.script(&ping),
        }
    }

    /// Sends the data to the server at `address`; the checksum it has found.
    fn send(&self, daemon: &Switchd, address: &str) -> String {
        let send = format!("busybox nc {address} 5000 <");
        match self {
            Self::Guest(station) => station.run(&format!("{send} /mnt/data")),
            Self::Tap { net, .. } => {
                let data = daemon.home().join("data");
                net.script(&format!("{send} {}", data.display()))
            }
        }
    }
}

#[test]
fn stations_of_every_kind_reach_each_other_in_one_domain() {
    let net = Net::new();
    let daemon = Switchd::start_in(&net, &[]);
    daemon.add(&["A", "--mode", "switch", "--mtu", &JUMBO.to_string()]);
    let data = daemon.home().join("data");
    fs::write(&data, &bulk()[..DATA]).unwrap();
    let sum = program::run(Command::new(tool("md5sum")).arg(&data)).ok();
    let sum = sum.split_whitespace().next().unwrap();
    let machines: Vec<_> = thread::scope(|scope| {
        let boot = KINDS.map(|kind| scope.spawn(|| Machine::boot(&net, &daemon, kind)));
        boot.into_iter().map(|machine| machine.join().unwrap()).collect()
    });
    wait_ports(&daemon, "A", KINDS.len());
    for (from, machine) in KINDS.into_iter().zip(&machines) {
        for (to, n) in KINDS.into_iter().zip(1..).filter(|(to, _)| *to != from) {
            let address = format!("10.0.0.{n}");
            let pings = machine.ping(&address, mtu(from).min(mtu(to)) < JUMBO);
            assert!(pings.contains(" 3 received"), "{from} to {to}: {pings}");
            let found = machine.send(&daemon, &address);
            let found = found.split_whitespace().next();
            assert_eq!(found, Some(sum), "{from} to {to}");
        }
    }
    let sent = (4 * DATA) as u64;
    for port in daemon.ports("A") {
        assert!(only_late(&port) && port.rx_bytes > sent, "{port:?}");
    }
}

//! Tap devices as ports: super-frames between those that take them, finished frames for all others.
//!
//! The host is a network namespace of the test's; a tap that a daemon there holds is moved on into another namespace,
//! which then is a machine of its own on the domain.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::capture::{Capture, fields, file};
use tests::netns::Net;
use tests::ports::{Guest, bulk, load_modules, only_late, wait_ports};
use tests::program::{Process, start_until, tool};
use tests::switchd::Switchd;
use tests::wait;

/// A daemon in a network of its own.
struct Host {
    daemon: Switchd,
    net: Net,
}

impl Host {
    fn start() -> Self {
        let net = Net::new();
        let daemon = Switchd::start_in(&net, &[]);
        Self { daemon, net }
    }

    /// Makes a tap, attaches it to domain A and moves it into a network of its own, where it has addresses ending in
    /// `n`.
    fn machine(&self, n: u8) -> Net {
        self.net.ok(&format!("ip tuntap add dev nk{n} mode tap"));
        self.daemon
            .run(&["port", "add", "A", "--tap", &format!("nk{n}")])
            .ok();
        let machine = Net::new();
        self.net.ok(&format!("ip link set nk{n} netns {}", machine.pid()));
        configure(&machine, n);
        machine
    }

    /// The same over a vde_plug2tap, which takes finished frames only.
    fn vde_machine(&self, n: u8) -> (Net, Process) {
        let machine = Net::new();
        let place = &self.daemon.domain("A").sockets["vde"];
        let plug = start_until(
            "the tap of vde_plug2tap",
            || machine.start(&format!("vde_plug2tap -s {place} nk{n}")),
            || machine.run(&format!("ip link show nk{n}")).status.success(),
        );
        configure(&machine, n);
        (machine, plug)
    }
}

fn configure(machine: &Net, n: u8) {
    machine.script(&format!(
        "ip link set nk{n} up
         ip addr add 10.0.0.{n}/24 dev nk{n}
         ip addr add fd00::{n}/64 dev nk{n} nodad"
    ));
}

/// Sends over TCP for a second from one machine to another; returns bits per second and retransmissions.
fn iperf(from: &Net, to: &Net, address: &str) -> (f64, u64) {
    let _server = to.start("iperf3 -s -1");
    wait::until_true("iperf3", || to.ok("ss -ltnH").contains(":5201"));
    let said: Value = from.json(&format!("iperf3 -c {address} -t 1 -J"));
    let sum = &said["end"];
    let (rate, again) = (
        sum["sum_received"]["bits_per_second"].as_f64(),
        sum["sum_sent"]["retransmits"].as_u64(),
    );
    (
        rate.unwrap_or_else(|| panic!("{said}")),
        again.unwrap_or_else(|| panic!("{said}")),
    )
}

#[test]
fn two_taps_exchange_super_frames() {
    let host = Host::start();
    host.daemon.add(&["A", "--mode", "switch"]);
    let (a, b) = (host.machine(1), host.machine(2));
    for address in ["10.0.0.2", "fd00::2"] {
        let (rate, again) = iperf(&a, &b, address);
        assert!(
            rate > 100e6 && again < 1000,
            "{address}: {rate} bit/s, {again} again"
        );
    }
    let row = host.daemon.domain("A");
    assert!(
        row.rx_bytes / row.rx_frames > 5000,
        "frames have been cut: {row:?}"
    );
    for reason in ["giant", "malformed", "too-big", "runt"] {
        assert!(!row.drops.contains_key(reason), "{row:?}");
    }
}

#[test]
fn a_port_that_takes_finished_frames_only_gets_them() {
    let host = Host::start();
    host.daemon.add(&["A"]);
    let a = host.machine(1);
    let (b, _plug) = host.vde_machine(2);
    for address in ["10.0.0.2", "fd00::2"] {
        let (rate, again) = iperf(&a, &b, address);
        assert!(
            rate > 20e6 && again < 5000,
            "{address}: {rate} bit/s, {again} again"
        );
    }
    let (rate, _) = iperf(&b, &a, "10.0.0.1");
    assert!(rate > 20e6, "{rate}");
    let ports = host.daemon.ports("A");
    let port = |kind: &str| ports.iter().find(|port| port.kind == kind).unwrap();
    let (tap, vde) = (port("tap"), port("vde"));
    assert!(
        tap.rx_frames > 0 && vde.tx_frames > tap.rx_frames * 3,
        "nothing was cut: {ports:#?}"
    );
    assert!(vde.tx_bytes / vde.tx_frames <= 1514);
    for reason in ["giant", "malformed", "too-big", "runt"] {
        assert!(!vde.drops.contains_key(reason) && !tap.drops.contains_key(reason));
    }
    // The kernel has found no wrong checksum in what was finished for it.
    let errors = b.script("awk '/^Tcp:/ {line = $0} END {print line}' /proc/net/snmp");
    assert_eq!(errors.split_whitespace().last(), Some("0"), "{errors}");
}

/// Bulk data between a tap and a guest, both ways, while all of it is captured; the longest captured segment of each.
fn guest_and_tap(word: impl Fn(&Switchd) -> String) -> [usize; 2] {
    let host = Host::start();
    host.daemon.add(&["A", "--mode", "switch"]);
    let machine = host.machine(1);
    let dir = host.daemon.home();
    fs::write(dir.join("bulk"), bulk()).unwrap();
    let word = word(&host.daemon);
    let (interface, modules) = match word.starts_with("virtio_uml") {
        true => ("eth0", load_modules(dir)),
        false => (&word[..4], String::new()),
    };
    let script = format!(
        "{modules}mkfifo /tmp/open; nc -l -p 5000 <> /tmp/open > /tmp/bulk &\n\
         until grep -q :1388 /proc/net/tcp*; do true; done\n\
         ip addr add 10.0.0.2/24 dev {interface}; ip link set {interface} up\n\
         until ping -c 1 -w 1 10.0.0.1; do true; done; echo READY\n\
         wait; md5sum < /tmp/bulk; echo RECEIVED\n\
         until nc 10.0.0.1 6000 < /mnt/bulk; do true; done; echo SENT\n\
         sleep 100"
    );
    let received = dir.join("received");
    let captured = file(&host.daemon, "a.pcapng");
    let capture = Capture::start(
        &host.daemon,
        "A",
        &["capture", "A", "-w", captured.to_str().unwrap()],
    );
    let kernel = host.net.command(tool("linux.uml"));
    let mut guest = Guest::boot_by(kernel, dir, "b", &script, std::slice::from_ref(&word));
    guest.wait_console("READY");
    let mut server = machine.command(tool("sh"));
    server
        .args(["-c", "sleep 1000 | busybox nc -l -p 6000 > \"$0\""])
        .arg(&received);
    let _server = Process::start(server.stdin(Stdio::null()));
    let mut send = machine.command(tool("sh"));
    send.args(["-c", "busybox nc 10.0.0.2 5000 < \"$0\""])
        .arg(dir.join("bulk"));
    Process::start(&mut send).outcome().ok();
    guest.wait_console("SENT");
    let size = fs::metadata(dir.join("bulk")).unwrap().len();
    wait::until_true("all of it at the tap", || {
        fs::metadata(&received).is_ok_and(|file| file.len() == size)
    });
    assert!(
        fs::read(&received).unwrap() == bulk(),
        "damaged on the way to the tap"
    );
    let sum = tests::program::run(Command::new("md5sum").arg(dir.join("bulk"))).ok();
    let sum = sum.split_whitespace().next().unwrap();
    assert!(guest.console().contains(sum), "damaged on the way to the guest");
    for port in host.daemon.ports("A") {
        assert!(only_late(&port), "{port:?}");
    }
    capture.interrupt().ok();
    longest_captured(&captured)
}

/// The longest segment of TCP that each of the two has sent, of those in a capture, where every checksum is right.
fn longest_captured(captured: &Path) -> [usize; 2] {
    let mut longest = [0; 2];
    let names = [
        "ip.src",
        "frame.len",
        "ip.checksum.status",
        "tcp.checksum.status",
        "tcp.checksum",
    ];
    for row in fields(captured, &names) {
        let Ok(sender) = row[0].trim_start_matches("10.0.0.").parse::<usize>() else {
            continue;
        };
        if row[3].is_empty() {
            continue;
        }
        // A sum of zero is written as 0xffff (Linux does it in skb_checksum_help), which is as good; tshark has its doubts.
        let sum = if row[4] == "0xffff" { GOOD } else { &row[3] };
        assert_eq!([&row[2], sum], [GOOD, GOOD], "{row:?}");
        longest[sender - 1] = longest[sender - 1].max(row[1].parse().unwrap());
    }
    longest
}

/// What tshark says of a checksum that is right.
const GOOD: &str = "1";

#[test]
fn bulk_between_a_tap_and_an_old_guest() {
    let longest = guest_and_tap(|daemon| format!("eth0=daemon,,unix,{}", daemon.domain("A").sockets["uml"]));
    assert!(longest[0] > 2000 && longest[1] == 1514, "{longest:?}");
}

#[test]
fn bulk_between_a_tap_and_a_vector_guest() {
    let longest =
        guest_and_tap(|daemon| format!("vec0:transport=bess,dst={}", daemon.domain("A").sockets["bess"]));
    assert!(longest[0] > 2000 && longest[1] == 1514, "{longest:?}");
}

#[test]
fn bulk_between_a_tap_and_a_guest_that_shares_its_memory() {
    let longest =
        guest_and_tap(|daemon| format!("virtio_uml.device={}:1", daemon.domain("A").sockets["vhost"]));
    assert!(longest[0] > 2000 && longest[1] > 2000, "{longest:?}");
}

#[test]
fn a_tap_is_a_port_until_the_device_is_gone() {
    let net = Net::new();
    net.script("ip tuntap add dev nk0 mode tap; ip tuntap add dev nk9 mode tap multi_queue");
    let mut daemon = Switchd::prepared();
    let config = daemon.home().join("switchd.toml");
    let text = "[[domain]]\nname = \"A\"\nports = [{ kind = \"tap\", interface = \"nk0\" }]\n";
    fs::write(&config, text).unwrap();
    daemon.launch_in(&net, &["--config", config.to_str().unwrap()]);
    let ports = wait_ports(&daemon, "A", 1);
    assert_eq!((ports[0].kind.as_str(), ports[0].name.as_str()), ("tap", "nk0"));
    daemon.run(&["port", "add", "A", "--tap", "nk9"]).ok();
    wait_ports(&daemon, "A", 2);
    // A device that is down, or goes down, stays a port.
    net.script(
        "ip link set nk0 up; ip link set nk0 down; ip link set nk0 up; ip addr add 10.0.0.1/24 dev nk0",
    );
    net.run("ping -c 2 -W 1 -i 0.2 10.0.0.9");
    assert!(
        daemon
            .ports("A")
            .iter()
            .any(|port| port.name == "nk0" && port.rx_frames > 0)
    );
    net.ok("ip link del nk0");
    assert_eq!(wait_ports(&daemon, "A", 1)[0].name, "nk9");
    let id = daemon.ports("A")[0].id.to_string();
    daemon.run(&["port", "rm", "A", &id]).ok();
    wait_ports(&daemon, "A", 0);
    let refusal = daemon.run(&["port", "rm", "A", &id]).failed(1);
    assert!(refusal.contains("there is no port"), "{refusal}");
    // It is free again.
    daemon.run(&["port", "add", "A", "--tap", "nk9"]).ok();
    wait_ports(&daemon, "A", 1);
}

#[test]
fn what_cannot_be_attached_is_said() {
    let host = Host::start();
    host.daemon.add(&["A"]);
    host.net.ok("ip tuntap add dev nk0 mode tap");
    host.daemon.run(&["port", "add", "A", "--tap", "nk0"]).ok();
    for (device, why) in [
        ("nk0", "another program has it"),
        ("nk1", "there is no such device"),
        ("lo", "it is no tap device"),
        ("a/b", "not allowed"),
    ] {
        let said = host.daemon.run(&["port", "add", "A", "--tap", device]).failed(1);
        assert!(said.contains(why), "{device}: {said}");
    }
    assert!(!host.net.run("ip link show nk1").status.success());
    assert_eq!(host.daemon.ports("A").len(), 1);
}

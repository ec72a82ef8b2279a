//! Interfaces of the host as ports: a daemon without any privilege, packet sockets that tapctl has opened for it, real
//! machines at the other end of the wire.
//!
//! Hosts are network namespaces of the test's, wires are veth pairs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use proto::ctl::PortRow;
use serde_json::Value;
use tests::netns::{Net, uid};
use tests::ports::{Guest, bulk, exchange, only_late};
use tests::program::{self, Outcome, Process, binary, listens, tool};
use tests::wait;

/// A host whose interface `nic0` is wired to `wire0` of another, and a daemon of alice's on it.
struct Host {
    net: Net,
    far: Net,
    home: tempfile::TempDir,
    _daemon: Process,
}

impl Host {
    #[track_caller]
    fn new(domains: &[&str]) -> Self {
        let (net, far) = (Net::new(), Net::new());
        net.cable("nic0", &far, "wire0");
        let home = tempfile::Builder::new()
            .prefix("nic-")
            .tempdir_in("/tmp")
            .unwrap();
        let user = uid("alice");
        std::os::unix::fs::chown(home.path(), Some(user), Some(user)).unwrap();
        // A user may not see the directory the programs were built in.
        for name in ["switchd", "tapctl"] {
            let (from, to) = (binary(name), home.path().join(name));
            net.script(&format!("cp '{}' '{}'", from.display(), to.display()));
        }
        let mut daemon = net.command(tool("setpriv"));
        daemon.args(as_alice()).arg(home.path().join("switchd"));
        daemon.arg("--dir").arg(home.path().join("hubs")).arg("run");
        let daemon = Process::start(daemon.stdin(Stdio::null()));
        let socket = home.path().join("hubs/switchd.sock");
        wait::until_true("switchd", || listens(&socket));
        let host = Self {
            net,
            far,
            home,
            _daemon: daemon,
        };
        for domain in domains {
            host.switchd(&format!("domain add {domain}")).ok();
        }
        host
    }

    fn hubs(&self) -> PathBuf {
        self.home.path().join("hubs")
    }

    /// `switchd` as root has it, in the network of the daemon or in another one.
    fn client(&self, net: &Net, line: &str) -> Command {
        let mut command = net.command(self.home.path().join("switchd"));
        command.arg("--dir").arg(self.hubs());
        command.args(line.split_whitespace());
        command
    }

    #[track_caller]
    fn switchd(&self, line: &str) -> Outcome {
        program::run(&mut self.client(&self.net, line))
    }

    /// `switchd` as alice has it.
    #[track_caller]
    fn switchd_of_alice(&self, line: &str) -> Outcome {
        let mut command = self.net.command(tool("setpriv"));
        command.args(as_alice()).arg(self.home.path().join("switchd"));
        command.arg("--dir").arg(self.hubs());
        program::run(command.args(line.split_whitespace()))
    }

    #[track_caller]
    fn ports(&self, domain: &str) -> Vec<PortRow> {
        serde_json::from_str(&self.switchd(&format!("port ls {domain} --json")).ok()).unwrap()
    }

    #[track_caller]
    fn port(&self, domain: &str, kind: &str) -> PortRow {
        let ports = self.ports(domain);
        let found = ports.iter().find(|port| port.kind == kind).cloned();
        found.unwrap_or_else(|| panic!("no port of kind {kind} in {ports:?}"))
    }

    /// A machine on a domain, with this address.
    #[track_caller]
    fn machine(&self, domain: &str, address: &str) -> Net {
        let net = Net::new();
        let line = format!(
            "port add {domain} --netns /proc/{}/ns/net --ifname eth0",
            net.pid()
        );
        self.switchd(&line).ok();
        net.ok(&format!("ip addr add {address} dev eth0"));
        net
    }

    /// Where a vector guest attaches to a domain.
    fn bess(&self, domain: &str) -> String {
        let row = self.switchd(&format!("domain show {domain} --json")).ok();
        let row: Value = serde_json::from_str(&row).unwrap();
        format!(
            "vec0:transport=bess,dst={}",
            row["sockets"]["bess"].as_str().unwrap()
        )
    }

    /// Gives interfaces to users, in an `/etc` of the test's own.
    #[track_caller]
    fn give(&self, list: &str) {
        self.net.script(&format!(
            "if ! [ -d /run/etc ]; then mkdir /run/etc; cp -a /etc/. /run/etc; mount --bind /run/etc /etc; fi
             mkdir -p /etc/hubbub; chmod 755 /etc/hubbub; printf '%s\\n' '{list}' >/etc/hubbub/interfaces
             chmod 644 /etc/hubbub/interfaces"
        ));
    }
}

fn as_alice() -> [String; 4] {
    let user = uid("alice");
    [
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".to_owned(),
        "--".to_owned(),
    ]
}

/// Waits until one network reaches an address.
#[track_caller]
fn wait_ping(from: &Net, address: &str) {
    wait::until_true(&format!("an answer of {address}"), || {
        from.run(&format!("ping -c 1 -W 1 {address}")).code() == Some(0)
    });
}

/// Sends over TCP for a second; returns bits per second.
#[track_caller]
fn iperf(from: &Net, to: &Net, address: &str) -> f64 {
    let _server = to.start("iperf3 -s -1");
    wait::until_true("iperf3", || to.ok("ss -ltnH").contains(":5201"));
    let said: Value = from.json(&format!("iperf3 -c {address} -t 1 -J"));
    said["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or_else(|| panic!("{said}"))
}

/// Sends over TCP both ways, and checks that nothing arrived damaged.
#[track_caller]
fn bulk_both_ways(a: (&Net, &str), b: (&Net, &str)) {
    for (from, to) in [(a, b), (b, a)] {
        let rate = iperf(from.0, to.0, to.1);
        eprintln!("{} to {}: {:.0} Mbit/s", from.1, to.1, rate / 1e6);
        // Far less than any machine does; cut and damaged segments leave a few kilobytes.
        assert!(rate > 20e6, "{} to {}: {rate}", from.1, to.1);
    }
    for (net, address) in [a, b] {
        // The kernel's count of segments with a wrong checksum, or otherwise broken.
        let errors = net.script("awk '/^Tcp:/ {n = $14} END {print n}' /proc/net/snmp");
        assert_eq!(errors.trim(), "0", "{address} has received broken segments");
    }
}

/// True if nothing was lost but what somebody read too late on a busy machine.
fn clean(port: &PortRow) -> bool {
    let mut port = port.clone();
    port.drops.remove("overrun");
    only_late(&port)
}

#[test]
fn a_domain_reaches_through_an_interface() {
    let host = Host::new(&["A"]);
    let said = host.switchd("port add A --nic nic0 --promisc --json").ok();
    assert!(
        said.contains("\"nic\"") && said.contains("\"name\": \"nic0\""),
        "{said}"
    );
    let machine = host.machine("A", "10.0.0.2/24");
    host.far.ok("ip addr add 10.0.0.1/24 dev wire0");
    wait_ping(&machine, "10.0.0.1");
    bulk_both_ways((&machine, "10.0.0.2"), (&host.far, "10.0.0.1"));
    for port in host.ports("A") {
        assert!(clean(&port), "{port:?}");
    }
    let nic = host.port("A", "nic");
    // Long frames come as they are.
    assert!(nic.rx_bytes / nic.rx_frames > 2000, "{nic:?}");
    // For as long as the port is there, and no longer, the interface takes everything.
    let promiscuous = || host.net.ok("ip -d link show nic0").contains("promiscuity 1");
    assert!(promiscuous());
    // Being down does not end it.
    host.net.ok("ip link set nic0 down");
    assert_eq!(machine.run("ping -c 1 -W 1 10.0.0.1").code(), Some(1));
    host.net.ok("ip link set nic0 up");
    wait_ping(&machine, "10.0.0.1");
    host.switchd(&format!("port rm A {}", nic.id)).ok();
    wait::until_true("the mode to go with the port", || !promiscuous());
    // Its end does.
    host.switchd("port add A --nic nic0").ok();
    host.net.ok("ip link del nic0");
    wait::until_true("the interface's port to go", || {
        host.ports("A").iter().all(|port| port.kind != "nic")
    });
}

#[test]
fn one_vlan_of_an_interface() {
    let host = Host::new(&["B", "C", "D"]);
    host.switchd("port add B --nic nic0 --vlan 100 --promisc").ok();
    host.switchd("port add D --nic nic0 --vlan 200 --promisc").ok();
    assert_eq!(host.port("B", "nic").name, "nic0.100");
    // The other end of the wire.
    program::run(&mut host.client(&host.far, "port add C --nic wire0 --vlan 100 --promisc")).ok();
    let (b, c) = (host.machine("B", "10.1.0.2/24"), host.machine("C", "10.1.0.1/24"));
    // Not in alice's directory: tshark gives up root's right to write there.
    let captured = tempfile::tempdir().unwrap();
    let file = captured.path().join("wire.pcap");
    let line = format!("tshark -q -i wire0 -c 60 -w {}", file.display());
    let judge = program::start_until(
        "tshark listens",
        || host.far.start(&line),
        || fs::metadata(&file).is_ok_and(|file| file.len() > 0),
    );
    wait_ping(&b, "10.1.0.1");
    bulk_both_ways((&b, "10.1.0.2"), (&c, "10.1.0.1"));
    judge.outcome().ok();
    for port in [host.ports("B"), host.ports("C")].concat() {
        assert!(clean(&port), "{port:?}");
    }
    // Another VLAN has seen nothing of it, not even broadcasts.
    assert_eq!(host.port("D", "nic").rx_frames, 0);
    let mut tags = Command::new(tool("tshark"));
    tags.arg("-r").arg(&file);
    tags.args(["-T", "fields", "-e", "vlan.id", "-Y", "arp || tcp || icmp"]);
    let tags = program::run(&mut tags).ok();
    assert!(
        tags.lines().count() > 20 && tags.lines().all(|tag| tag == "100"),
        "{tags}"
    );
}

#[test]
fn a_raw_guest_at_the_other_end_of_a_wire() {
    let host = Host::new(&["A"]);
    host.switchd("port add A --nic nic0 --promisc").ok();
    let kernel = || host.far.command(tool("linux.uml"));
    let raw = "vec0:transport=raw,ifname=wire0";
    let _guests = exchange(kernel, host.home.path(), raw, &host.bess("A"), 1500);
    for port in host.ports("A") {
        assert!(clean(&port) && port.rx_frames > 20, "{port:?}");
    }
}

/// The guest makes the VLAN itself, by Linux's own module. Over a tap, because UML's raw transport knows no tags: the
/// kernel takes them out before it sees a frame.
#[test]
fn a_guest_with_a_vlan() {
    let host = Host::new(&["B"]);
    host.net
        .script("ip tuntap add dev tap0 mode tap vnet_hdr; ip link set tap0 up");
    host.switchd("port add B --nic tap0 --vlan 7 --promisc").ok();
    let machine = host.machine("B", "10.0.0.1/24");
    let dir = host.home.path();
    fs::write(dir.join("bulk"), bulk()).unwrap();
    let mut script = String::new();
    let release = fs::read_dir("/usr/lib/uml/modules").expect("package user-mode-linux");
    let modules = release.flatten().next().unwrap().path().join("kernel/net");
    for module in ["llc/llc", "802/stp", "802/garp", "802/mrp", "8021q/8021q"] {
        let name = module.rsplit('/').next().unwrap();
        let from = modules.join(format!("{module}.ko"));
        fs::copy(from, dir.join(format!("{name}.ko"))).unwrap();
        script += &format!("insmod /mnt/{name}.ko\n");
    }
    script += "ip link set vec0 up; vconfig add vec0 7\n\
               ip addr add 10.0.0.2/24 dev vec0.7; ip link set vec0.7 up\n\
               until ping -c 1 -w 1 10.0.0.1; do true; done; echo READY\n\
               until nc 10.0.0.1 6000 < /mnt/bulk; do true; done; echo SENT\n\
               sleep 100";
    let kernel = host.net.command(tool("linux.uml"));
    let word = "vec0:transport=tap,ifname=tap0".to_owned();
    let mut guest = Guest::boot_by(kernel, dir, "tagging", &script, &[word]);
    guest.wait_console("READY");
    let received = dir.join("received");
    let mut server = machine.command(tool("sh"));
    server
        .args(["-c", "sleep 1000 | busybox nc -l -p 6000 > \"$0\""])
        .arg(&received);
    let _server = Process::start(server.stdin(Stdio::null()));
    guest.wait_console("SENT");
    let size = fs::metadata(dir.join("bulk")).unwrap().len();
    wait::until_true("all of it", || {
        fs::metadata(&received).is_ok_and(|file| file.len() == size)
    });
    assert!(fs::read(&received).unwrap() == bulk(), "damaged on its way");
    assert!(clean(&host.port("B", "nic")), "{:?}", host.ports("B"));
}

#[test]
fn a_hybrid_guest_at_the_other_end_of_a_tap() {
    let host = Host::new(&["A"]);
    host.net
        .script("ip tuntap add dev tap0 mode tap vnet_hdr; ip link set tap0 up");
    host.switchd("port add A --nic tap0 --promisc").ok();
    let kernel = || host.net.command(tool("linux.uml"));
    let hybrid = "vec0:transport=hybrid,ifname=tap0";
    let _guests = exchange(kernel, host.home.path(), hybrid, &host.bess("A"), 1500);
    for port in host.ports("A") {
        assert!(clean(&port) && port.rx_frames > 20, "{port:?}");
    }
}

#[test]
fn listening_takes_part_in_nothing() {
    let host = Host::new(&["S"]);
    let mut sniff = host.client(&host.net, "port add S --sniff nic0 --promisc --filter");
    program::run(sniff.arg("icmp or icmp6[0] = 128")).ok();
    let machine = host.machine("S", "10.0.0.9/24");
    host.net.ok("ip addr add 10.0.0.1/24 dev nic0");
    host.far.ok("ip addr add 10.0.0.2/24 dev wire0");
    wait_ping(&host.net, "10.0.0.2");
    // What comes in and what the host itself sends, and nothing but pings: the two had to find each other by ARP.
    wait::until_true("a ping and its answer", || host.port("S", "sniff").rx_frames >= 2);
    host.net.ok("ping -c 3 -i 0.2 -W 5 10.0.0.2");
    wait::until_true("three more", || host.port("S", "sniff").rx_frames >= 8);
    let row = host.port("S", "sniff");
    assert_eq!(row.rx_frames % 2, 0, "{row:?}");
    assert_eq!(row.rx_bytes, row.rx_frames * 98, "{row:?}");
    // Nothing goes out.
    assert_eq!(machine.run("ping -c 1 -W 1 10.0.0.2").code(), Some(1));
    let row = host.port("S", "sniff");
    assert_eq!((row.tx_frames, row.drops.len()), (0, 0), "{row:?}");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_opened() {
    let host = Host::new(&["A"]);
    for (line, code, why) in [
        (
            "port add A --nic nic7",
            1,
            "cannot open nic7: there is no such interface",
        ),
        ("port add A --nic nic0 --vlan 0", 2, "'0' is no VLAN"),
        ("port add A --nic nic0 --vlan 4095", 2, "'4095' is no VLAN"),
        ("port add A --sniff nic0 --vlan 5", 2, "--vlan"),
        ("port add A --nic nic0 --filter icmp", 2, "--filter"),
        ("port add A --uplink --promisc", 2, "--promisc"),
        (
            "port add A --nic an-interface-with-a-long-name",
            1,
            "interface name",
        ),
        (
            "port add A --sniff nic0 --filter nonsense",
            1,
            "cannot use filter 'nonsense'",
        ),
        ("port add A --sniff nic0 --filter vlan", 1, "VLAN tags"),
        ("port add Z --nic nic0", 1, "there is no domain Z"),
    ] {
        let said = host.switchd(line);
        assert_eq!(said.code(), Some(code), "{line}: {said:?}");
        assert!(said.stderr.contains(why), "{line}: {said:?}");
    }
    let said = host.net.tap("open nic0").failed(1);
    assert!(said.contains("standard output is no Unix socket"), "{said}");
    for program in ["", "1,6 0 0", "2,6 0 0 1"] {
        let mut command = host.net.tapctl("open nic0 --bytecode");
        assert_eq!(program::run(command.arg(program)).code(), Some(2), "{program}");
    }
    // The kernel knows no such instruction.
    let mut command = host.net.tapctl("open nic0 --bytecode");
    let said = program::run(command.arg("1,255 0 0 1")).failed(1);
    assert!(said.contains("cannot open nic0"), "{said}");
    assert!(host.ports("A").is_empty());
}

#[test]
fn interfaces_are_roots_to_give() {
    let host = Host::new(&["A"]);
    let refused = |said: Outcome, why: &str| {
        let said = said.failed(1);
        assert!(said.contains(why), "{said}");
    };
    // Nobody has anything, whoever may run tapctl by sudo.
    let not_given = "cannot open nic0: root has not given it to alice";
    refused(host.net.tap_for("alice", "open nic0"), not_given);
    host.give("nic1 alice\nnic0 bob @root");
    refused(host.net.tap_for("alice", "open nic0"), not_given);
    refused(
        host.net.tap_for("bob", "open nic0"),
        "standard output is no Unix socket",
    );
    host.give("nic0");
    refused(
        host.net.tap_for("alice", "open nic0"),
        "/etc/hubbub/interfaces:1: it does not say",
    );
    // A list that others can change is no list.
    host.give("nic0 alice");
    host.net.ok("chmod 666 /etc/hubbub/interfaces");
    refused(
        host.net.tap_for("alice", "open nic0"),
        "cannot trust /etc/hubbub/interfaces",
    );
    host.net
        .script("chmod 644 /etc/hubbub/interfaces; chmod 777 /etc/hubbub");
    refused(
        host.net.tap_for("alice", "open nic0"),
        "cannot trust /etc/hubbub:",
    );
    host.net
        .script("chmod 755 /etc/hubbub; chown alice /etc/hubbub/interfaces");
    refused(host.net.tap_for("alice", "open nic0"), "cannot trust");

    // The way of a user: switchd asks sudo, sudo lets tapctl be run, tapctl finds the user in the list.
    let why = host.switchd_of_alice("port add A --nic nic0");
    assert_eq!(why.code(), Some(1), "{why:?}");
    let tapctl = host.home.path().join("tapctl");
    // sudo runs for users only what they cannot change.
    host.net.script(&format!(
        "chown root:root /etc/hubbub/interfaces '{0}'; chmod 755 '{0}'
         mkdir -p /var/lib/sudo; rm -rf /etc/sudoers.d
         printf 'Defaults !use_pty, !syslog\\nalice ALL=(root) NOPASSWD: {0}\\n' >/etc/sudoers; chmod 440 /etc/sudoers",
        tapctl.display()
    ));
    let said = host.switchd_of_alice("port add A --nic nic0");
    assert!(said.stderr.contains("using sudo to open nic0"), "{said:?}");
    said.ok();
    assert_eq!(host.port("A", "nic").name, "nic0");
    let machine = host.machine("A", "10.0.0.2/24");
    host.far.ok("ip addr add 10.0.0.1/24 dev wire0");
    wait_ping(&machine, "10.0.0.1");
    // Another one is still not hers.
    host.net.ok("ip link add other0 type veth peer name other1");
    let said = host.switchd_of_alice("port add A --sniff other0").failed(1);
    assert!(
        said.contains("root has not given it to alice") && said.contains("hint: "),
        "{said}"
    );
}

/// What tapctl hands over lets its holder read one interface, and cannot be widened.
#[test]
fn what_is_handed_over_is_tied_to_its_interface() {
    let net = Net::new();
    net.ok("ip link add nic0 type veth peer name nic1");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = net.tapctl("open nic0");
    let status = command
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .status();
    assert!(status.unwrap().success());
    let mut fds = Vec::new();
    netio::unix::receive_with_fds(ours.as_fd(), &mut [0; 16], &mut fds).unwrap();
    let socket = socket2::Socket::from(fds.pop().expect("a descriptor"));
    let accept_all = [socket2::SockFilter::new(6, 0, 0, 0xffff)];
    for changed in [socket.attach_filter(&accept_all), socket.detach_filter()] {
        assert_eq!(changed.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
    }
}

#[test]
fn interfaces_and_namespaces_of_the_configuration() {
    let host = Host::new(&[]);
    let (net, dir) = (Net::new(), host.home.path().join("other"));
    let config = host.home.path().join("switchd.toml");
    let write = |ports: &str| {
        let text = format!("[[domain]]\nname = \"A\"\nmode = \"switch\"\nports = [{ports}]\n");
        fs::write(&config, text).unwrap();
    };
    let run = || {
        let mut command = host.net.command(host.home.path().join("switchd"));
        command
            .arg("--dir")
            .arg(&dir)
            .arg("run")
            .arg("--config")
            .arg(&config);
        command.stdin(Stdio::null());
        command
    };
    for (ports, why) in [
        (
            "{ kind = \"nic\", interface = \"nic7\" }",
            "cannot open nic7: there is no such interface",
        ),
        (
            "{ kind = \"nic\", interface = \"nic0\", vlan = 5000 }",
            "is no VLAN: a number from 1 to 4094",
        ),
        (
            "{ kind = \"sniff\", interface = \"nic0\", filter = \"x\" }",
            "cannot use filter 'x'",
        ),
        (
            "{ kind = \"netns\", path = \"/nonexistent\", ifname = \"eth0\" }",
            "cannot use network namespace /nonexistent",
        ),
    ] {
        write(ports);
        let said = program::run(&mut run()).failed(1);
        assert!(said.contains(why), "{ports}: {said}");
    }
    write("{ kind = \"nic\", interface = \"nic0\", promiscuous = true }");
    let said = program::run(&mut run());
    assert!(
        said.code() == Some(2) && said.stderr.contains("promiscuous"),
        "{said:?}"
    );

    write(&format!(
        "{{ kind = \"nic\", interface = \"nic0\", promisc = true }},
         {{ kind = \"nic\", interface = \"nic0\", vlan = 5 }},
         {{ kind = \"sniff\", interface = \"lo\", filter = \"icmp\" }},
         {{ kind = \"netns\", path = \"/proc/{}/ns/net\", ifname = \"eth0\" }},
         {{ kind = \"uplink\", publish = [\"tcp:8080:10.0.2.15:80\"] }}",
        net.pid()
    ));
    let _daemon = Process::start(&mut run());
    wait::until_true("the daemon", || listens(&dir.join("switchd.sock")));
    let mut list = host.net.command(host.home.path().join("switchd"));
    let rows = program::run(list.arg("--dir").arg(&dir).args(["port", "ls", "--json"])).ok();
    let rows: Vec<PortRow> = serde_json::from_str(&rows).unwrap();
    let mut kinds: Vec<_> = rows
        .iter()
        .map(|row| (row.kind.as_str(), row.name.as_str()))
        .collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            ("nic", "nic0"),
            ("nic", "nic0.5"),
            ("sniff", "lo"),
            ("tap", "eth0"),
            ("uplink", "slirp4netns")
        ]
    );
    net.ok("ip addr add 10.0.0.2/24 dev eth0");
    host.far.ok("ip addr add 10.0.0.1/24 dev wire0");
    wait_ping(&net, "10.0.0.1");
}

//! Real VDE programs, QEMU and UML guests attach to a domain's `.vde` directory.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::ports::{transfer, wait_ports};
use tests::program::{Process, tool};
use tests::switchd::Switchd;
use tests::wait;

fn directory(daemon: &Switchd, domain: &str) -> String {
    daemon.domain(domain).sockets["vde"].clone()
}

/// Attaches to a domain over its VDE directory as UML does with `unix,DIR/ctl`.
fn client(daemon: &Switchd, domain: &str) -> Client {
    Client::attach(&Path::new(&directory(daemon, domain)).join("ctl"))
}

/// A vde_plug that reads and writes frames with two bytes of length before each.
struct Plug {
    child: Child,
}

impl Plug {
    fn start(place: &str) -> Self {
        let child = Command::new(tool("vde_plug"))
            .arg(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn send(&mut self, frame: &[u8]) {
        let length = u16::try_from(frame.len()).unwrap();
        let whole = [&length.to_be_bytes()[..], frame].concat();
        self.child.stdin.as_mut().unwrap().write_all(&whole).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let out = self.child.stdout.as_mut().unwrap();
        let mut length = [0; 2];
        out.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::from(u16::from_be_bytes(length))];
        out.read_exact(&mut frame).unwrap();
        frame
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn vde_plug_carries_frames_both_ways() {
    let daemon = Switchd::with_domain(&["A"]);
    let mut plug = Plug::start(&directory(&daemon, "A"));
    let ports = wait_ports(&daemon, "A", 1);
    assert_eq!((ports[0].kind.as_str(), ports[0].id), ("vde", 1));
    assert!(ports[0].name.contains("user="), "{}", ports[0].name);
    assert_eq!(ports[0].peer.unwrap().pid, plug.child.id());
    let client = client(&daemon, "A");
    for (seed, length) in [(1, 60), (2, 1514)] {
        let there = frame(BROADCAST, mac(1), length, seed);
        plug.send(&there);
        assert_eq!(client.recv(), there);
        let back = frame(mac(1), mac(2), length, seed + 10);
        client.send(&back);
        assert_eq!(plug.receive(), back);
    }
    drop(plug);
    wait_ports(&daemon, "A", 1);
    assert!(daemon.domain("A").drops.is_empty());
}

#[test]
fn a_plug_gets_the_port_it_asks_for() {
    let daemon = Switchd::with_domain(&["A"]);
    let place = directory(&daemon, "A");
    let _third = Plug::start(&format!("{place}[3]"));
    assert_eq!(wait_ports(&daemon, "A", 1)[0].id, 3);
    // VDE's port 0, which is a port like any other.
    let _any = Plug::start(&format!("{place}[0]"));
    wait_ports(&daemon, "A", 2);
    let _refused = Plug::start(&format!("{place}[3]"));
    wait::until_true("the refusal", || daemon.refused("port-taken") > 0);
    assert_eq!(daemon.ports("A").len(), 2);
}

/// One process that joins two domains: what is broadcast in one is heard in the other.
fn is_joined(daemon: &Switchd) {
    wait_ports(daemon, "A", 1);
    wait_ports(daemon, "B", 1);
    let (a, b) = (client(daemon, "A"), client(daemon, "B"));
    for (from, to, n) in [(&a, &b, 1), (&b, &a, 2)] {
        let sent = frame(BROADCAST, mac(n), 1000, u32::from(n));
        from.send(&sent);
        assert_eq!(to.recv(), sent);
    }
}

#[test]
fn dpipe_joins_two_domains() {
    let daemon = Switchd::with_domain(&["A"]);
    daemon.add(&["B", "--mode", "switch"]);
    let plug = tool("vde_plug");
    let (a, b) = (directory(&daemon, "A"), directory(&daemon, "B"));
    let _pipe = Process::start(
        Command::new(tool("dpipe"))
            .arg(&plug)
            .arg(a)
            .arg("=")
            .arg(&plug)
            .arg(b)
            .stdin(Stdio::null()),
    );
    is_joined(&daemon);
}

#[test]
fn one_qemu_attaches_to_two_domains() {
    let daemon = Switchd::with_domain(&["A"]);
    daemon.add(&["B"]);
    let mut command = Command::new(tool("qemu-system-x86_64"));
    command.args(["-machine", "none", "-display", "none", "-nodefaults"]);
    for (id, domain) in [("a", "A"), ("b", "B")] {
        let place = directory(&daemon, domain);
        command.arg("-netdev").arg(format!("vde,id={id},sock={place}"));
        command
            .arg("-netdev")
            .arg(format!("hubport,id=h{id},hubid=0,netdev={id}"));
    }
    let _qemu = Process::start(command.stdin(Stdio::null()));
    is_joined(&daemon);
}

/// A vde_plug2tap in a network namespace of its own, with an address.
fn namespace(daemon: &Switchd, n: u8, then: &str) -> Process {
    let script = format!(
        "vde_plug2tap -s '{}' nk0 & until ip link set nk0 up 2>&-; do sleep 0.1; done\n\
         ip addr add 10.9.0.{n}/24 dev nk0\n{then}",
        directory(daemon, "A")
    );
    let mut command = Command::new(tool("unshare"));
    command.args([
        "--user",
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    Process::start(command.args(["sh", "-c", &script]).stdin(Stdio::null()))
}

#[test]
fn two_namespaces_ping_through_vde_plug2tap() {
    let daemon = Switchd::with_domain(&["A", "--mode", "switch"]);
    let _other = namespace(&daemon, 1, "sleep 1000");
    wait_ports(&daemon, "A", 1);
    let ping = namespace(
        &daemon,
        2,
        "until ping -c 1 -W 1 10.9.0.1 >&2; do :; done; ping -c 3 -i 0.2 -s 1472 -M do 10.9.0.1",
    );
    let said = ping.outcome().ok();
    assert!(said.contains(" 0% packet loss"), "{said}");
}

#[test]
fn old_guests_attach_over_vde_too() {
    let daemon = Switchd::with_domain(&["A"]);
    let vde = format!("eth0=vde,{}", directory(&daemon, "A"));
    let bess = format!("vec0:transport=bess,dst={}", daemon.domain("A").sockets["bess"]);
    let _guests = transfer(&daemon, &vde, &bess, 1500);
    let mut kinds: Vec<_> = daemon.ports("A").into_iter().map(|port| port.kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["bess", "vde"]);
}

#[test]
fn guests_with_old_drivers_of_both_kinds_share_a_domain() {
    let daemon = Switchd::with_domain(&["A", "--mode", "switch"]);
    let vde = format!("eth0=vde,{}", directory(&daemon, "A"));
    let uml = format!("eth0=daemon,,unix,{}", daemon.domain("A").sockets["uml"]);
    let _guests = transfer(&daemon, &uml, &vde, 1500);
}

#[test]
fn mode_and_group_are_those_asked_for() {
    let mut daemon = Switchd::prepared();
    let gid = nix::unistd::getegid();
    let group = nix::unistd::Group::from_gid(gid).unwrap().unwrap().name;
    let config = daemon.home().join("switchd.toml");
    let text = format!(
        "[[domain]]\nname = \"A\"\n\n[[domain]]\nname = \"B\"\nvde = {{ mode = \"0660\", group = \"{group}\" }}\n"
    );
    fs::write(&config, text).unwrap();
    daemon.launch(&["--config", config.to_str().unwrap()]);
    daemon.add(&["C", "--vde-mode", "0666"]);
    for (domain, mode) in [("A", 0o600), ("B", 0o660), ("C", 0o666)] {
        let place = directory(&daemon, domain);
        let _plug = Plug::start(&place);
        wait_ports(&daemon, domain, 1);
        let place = Path::new(&place);
        let execute = (mode & 0o222) >> 1;
        for (path, wanted) in [
            (place.to_owned(), mode | execute),
            (place.join("ctl"), mode),
            (place.join("p001"), mode),
        ] {
            let metadata = fs::metadata(&path).unwrap();
            let got = metadata.permissions().mode() & 0o777;
            // libvdeplug widens the data socket of its port as far as it thinks right.
            assert!(
                got == wanted || path.ends_with("p001"),
                "{}: {got:o}",
                path.display()
            );
            assert_eq!(metadata.gid(), gid.as_raw());
        }
    }
    let refusal = daemon
        .run(&["domain", "add", "D", "--vde-group", "no-such-group"])
        .failed(1);
    assert!(refusal.contains("there is no group 'no-such-group'"), "{refusal}");
    let refusal = daemon
        .run(&["domain", "add", "D", "--vde-mode", "0066"])
        .failed(2);
    assert!(refusal.contains("octal"), "{refusal}");
    assert!(
        !daemon
            .files()
            .iter()
            .any(|path| path.to_string_lossy().contains("_D"))
    );
}

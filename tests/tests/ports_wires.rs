//! Wires to somewhere else: guests at the other end of tunnels, multicast groups, streams and cables ping and transfer
//! through a domain whose other port is a vector guest; foreign datagrams change nothing but counters.
//!
//! Addresses are those of a network namespace of the test's.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use proto::ctl::{PortRow, Reply, Request};
use socket2::{Domain, Protocol, Socket, Type};
use tests::netns::Net;
use tests::ports::{Guest, exchange, only_late, vector_client, wait_ports};
use tests::program::{self, Outcome, Process, binary, tool};
use tests::switchd::Switchd;
use tests::wait;

/// A daemon in a network of its own.
struct Host {
    daemon: Switchd,
    net: Net,
}

impl Host {
    fn start(domains: &[&str]) -> Self {
        let net = Net::new();
        let daemon = Switchd::start_in(&net, &[]);
        for domain in domains {
            daemon.add(&[domain]);
        }
        // Between two ends of one host, the route to a group leads over the loopback device.
        net.ok("ip route add 224.0.0.0/4 dev lo");
        Self { daemon, net }
    }

    /// `port add` with these words.
    fn attach(&self, words: &str) -> Outcome {
        let words: Vec<_> = words.split_whitespace().collect();
        self.daemon.run(&[&["port", "add"], &words[..]].concat())
    }

    fn bess(&self, domain: &str) -> String {
        format!(
            "vec0:transport=bess,dst={}",
            self.daemon.domain(domain).sockets["bess"]
        )
    }

    /// A guest with a wire of its own sends to a vector guest of domain A.
    fn exchange(&self, wire: &str) -> [Guest; 2] {
        let kernel = || self.net.command(tool("linux.uml"));
        let guests = exchange(kernel, self.daemon.home(), wire, &self.bess("A"), 1500);
        for port in self.daemon.ports("A") {
            assert!(clean(&port) && port.rx_frames > 20, "{port:?}");
        }
        guests
    }

    /// Two vector guests exchange from one domain to another.
    fn exchange_between(&self, a: &str, b: &str) {
        let kernel = || self.net.command(tool("linux.uml"));
        let _guests = exchange(kernel, self.daemon.home(), &self.bess(a), &self.bess(b), 1500);
        for port in [self.daemon.ports(a), self.daemon.ports(b)].concat() {
            assert!(clean(&port) && port.rx_frames > 20, "{port:?}");
        }
    }

    /// QEMU without a machine: a hub between two network devices.
    fn qemu(&self, a: &str, b: &str) -> Process {
        let mut command = self.net.command(tool("qemu-system-x86_64"));
        command.args(["-nodefaults", "-machine", "none", "-display", "none"]);
        for (id, device) in [("a", a), ("b", b)] {
            command.args(["-netdev", &device.replacen(',', &format!(",id={id},"), 1)]);
            command.args(["-netdev", &format!("hubport,hubid=0,id=h{id},netdev={id}")]);
        }
        Process::start(command.stdin(Stdio::null()))
    }

    fn kind(&self, domain: &str, kind: &str) -> PortRow {
        let ports = self.daemon.ports(domain);
        let found = ports.iter().find(|port| port.kind == kind).cloned();
        found.unwrap_or_else(|| panic!("no port of kind {kind} in {ports:?}"))
    }
}

/// True if nothing was lost but to guests that were late, or not there yet.
fn clean(port: &PortRow) -> bool {
    let mut port = port.clone();
    port.drops.remove("unreachable");
    only_late(&port)
}

#[test]
fn l2tpv3_over_udp() {
    let host = Host::start(&["A"]);
    host.attach(
        "A --l2tpv3 127.0.0.1:1702,127.0.0.1:1701 --tx-session 0x11 --rx-session 0x22 \
         --tx-cookie 0x1122334455667788 --rx-cookie 7 --cookie64 --counter",
    )
    .ok();
    host.exchange(
        "vec0:transport=l2tpv3,udp=1,src=127.0.0.1,srcport=1701,dst=127.0.0.1,dstport=1702,\
         tx_session=34,rx_session=17,tx_cookie=7,rx_cookie=1234605616436508552,cookie64=1,counter=1",
    );
    assert_eq!(
        host.kind("A", "l2tpv3").name,
        "l2tpv3 127.0.0.1:1702 to 127.0.0.1:1701"
    );
}

#[test]
fn l2tpv3_over_ip() {
    let host = Host::start(&["A"]);
    host.attach("A --l2tpv3 127.0.0.2,127.0.0.1 --tx-session 1 --rx-session 2 --tx-cookie 3 --rx-cookie 4")
        .ok();
    host.exchange(
        "vec0:transport=l2tpv3,src=127.0.0.1,dst=127.0.0.2,tx_session=2,rx_session=1,tx_cookie=4,rx_cookie=3",
    );
}

#[test]
fn l2tpv3_over_ipv6() {
    let host = Host::start(&["A"]);
    host.attach("A --l2tpv3 [::1]:1702,[::1]:1701 --tx-session 1 --rx-session 2 --pin-counter")
        .ok();
    host.exchange(
        "vec0:transport=l2tpv3,udp=1,v6=1,src=::1,srcport=1701,dst=::1,dstport=1702,\
         tx_session=2,rx_session=1,counter=1,pin_counter=1",
    );
}

/// Two addresses for what has no ports.
fn two_addresses(host: &Host) {
    host.net
        .script("ip addr add fd00::1/128 dev lo nodad; ip addr add fd00::2/128 dev lo nodad");
}

#[test]
fn guests_over_ipv6_alone() {
    let host = Host::start(&["A"]);
    two_addresses(&host);
    host.attach("A --l2tpv3 fd00::2,fd00::1 --tx-session 1 --rx-session 2")
        .ok();
    host.exchange("vec0:transport=l2tpv3,v6=1,src=fd00::1,dst=fd00::2,tx_session=2,rx_session=1");
    let host = Host::start(&["A"]);
    two_addresses(&host);
    host.attach("A --gre fd00::2,fd00::1 --tx-key 1 --rx-key 2").ok();
    host.exchange("vec0:transport=gre,v6=1,src=fd00::1,dst=fd00::2,tx_key=2,rx_key=1");
}

#[test]
fn gre_with_key_and_sequence() {
    let host = Host::start(&["A"]);
    host.attach("A --gre 127.0.0.2,127.0.0.1 --tx-key 1 --rx-key 2 --counter")
        .ok();
    host.exchange("vec0:transport=gre,src=127.0.0.1,dst=127.0.0.2,tx_key=2,rx_key=1,sequence=1");
}

#[test]
fn gre_over_ipv6_without_anything() {
    let host = Host::start(&["A", "B"]);
    two_addresses(&host);
    host.attach("A --gre fd00::1,fd00::2").ok();
    host.attach("B --gre fd00::2,fd00::1").ok();
    host.exchange_between("A", "B");
}

#[test]
fn a_multicast_group_is_one_hub() {
    let host = Host::start(&["A", "B"]);
    // Two switches and a guest, all with one address.
    host.attach("A --mcast 239.192.168.1:1102").ok();
    host.attach("B --mcast 239.192.168.1:1102").ok();
    let own = || {
        let row = host.kind("A", "mcast");
        (row.rx_frames, row.tx_frames)
    };
    assert_eq!(own(), (0, 0));
    host.exchange("eth0=mcast,,239.192.168.1,1102,1");
    let (a, b) = (host.kind("A", "mcast"), host.kind("B", "mcast"));
    // The switch of B hears both of them, that of A only the guest.
    assert!(b.rx_frames > a.rx_frames && b.tx_frames == 0, "{a:?} {b:?}");
    assert!(!b.drops.contains_key("malformed") && b.rx_frames <= a.rx_frames + a.tx_frames);
}

#[test]
fn unicast_datagrams_of_a_guest() {
    let host = Host::start(&["A"]);
    host.attach("A --udp 127.0.0.1:1103,127.0.0.1:1104").ok();
    host.exchange("eth0=ucast,,127.0.0.1,1104,1103");
}

#[test]
fn a_stream_to_qemu_and_datagrams_from_it() {
    let host = Host::start(&["A", "B"]);
    let home = host.daemon.home().display().to_string();
    host.attach(&format!("A --stream unix:{home}/s --listen")).ok();
    host.attach(&format!("B --dgram {home}/d,{home}/q")).ok();
    let carriers = (
        format!("stream,server=off,addr.type=unix,addr.path={home}/s"),
        format!("dgram,local.type=unix,local.path={home}/q,remote.type=unix,remote.path={home}/d"),
    );
    let qemu = host.qemu(&carriers.0, &carriers.1);
    host.exchange_between("A", "B");
    drop(qemu);
    // Both ports outlive their peer, and find the next one.
    std::fs::remove_file(Path::new(&home).join("q")).unwrap();
    let before = host.kind("B", "dgram").rx_frames;
    let _qemu = host.qemu(&carriers.0, &carriers.1);
    let mut probe = vector_client(&host.daemon, "A");
    wait::until_true("frames over the next QEMU", || {
        probe.send(&broadcast(9)).unwrap();
        host.kind("B", "dgram").rx_frames > before
    });
    // A second client of a port that is taken is turned away.
    let mut refused = std::os::unix::net::UnixStream::connect(format!("{home}/s")).unwrap();
    let mut byte = [0];
    assert_eq!(std::io::Read::read(&mut refused, &mut byte).unwrap(), 0);
    probe = vector_client(&host.daemon, "A");
    drop(probe);
    let id = host.kind("A", "stream").id.to_string();
    host.daemon.run(&["port", "rm", "A", &id]).ok();
    assert!(!Path::new(&home).join("s").exists(), "the socket is left");
    let id = host.kind("B", "dgram").id.to_string();
    host.daemon.run(&["port", "rm", "B", &id]).ok();
    wait::until_true("the file goes", || !Path::new(&home).join("d").exists());
}

#[test]
fn a_stream_from_qemu_and_udp_to_it() {
    let host = Host::start(&["A", "B"]);
    // It connects as soon as somebody listens.
    host.attach("A --stream tcp:127.0.0.1:5000").ok();
    host.attach("B --udp 127.0.0.1:5001,127.0.0.1:5002").ok();
    let _qemu = host.qemu(
        "stream,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=5000",
        "socket,udp=127.0.0.1:5001,localaddr=127.0.0.1:5002",
    );
    host.exchange_between("A", "B");
}

#[test]
fn the_older_words_of_qemu() {
    let host = Host::start(&["A", "B"]);
    host.attach("A --stream tcp:127.0.0.1:5000 --listen").ok();
    host.attach("B --mcast 239.192.168.1:1102").ok();
    let _qemu = host.qemu(
        "socket,connect=127.0.0.1:5000",
        "socket,mcast=239.192.168.1:1102,localaddr=127.0.0.1",
    );
    host.exchange_between("A", "B");
}

#[test]
fn the_tunnel_of_qemu_and_a_socket_it_listens_at() {
    let host = Host::start(&["A", "B"]);
    host.attach(
        "A --l2tpv3 127.0.0.1:1702,127.0.0.1:1701 --tx-session 1 --rx-session 2 --tx-cookie 3 --rx-cookie 4 --counter",
    )
    .ok();
    host.attach("B --stream tcp:127.0.0.1:5000").ok();
    let _qemu = host.qemu(
        "l2tpv3,udp=on,src=127.0.0.1,srcport=1701,dst=127.0.0.1,dstport=1702,txsession=2,rxsession=1,\
         txcookie=4,rxcookie=3,counter=on",
        "socket,listen=127.0.0.1:5000",
    );
    host.exchange_between("A", "B");
}

#[test]
fn cables_and_links_join_domains() {
    let host = Host::start(&["A", "B", "C", "D"]);
    let daemon = &host.daemon;
    daemon.run(&["link", "A", "B"]).ok();
    daemon.run(&["link", "C", "D"]).ok();
    let circle = daemon.run(&["link", "B", "A"]).failed(1);
    assert!(circle.contains("frames would circle"), "{circle}");
    daemon.run(&["link", "A", "A"]).failed(1);
    let far = daemon.command();
    let mut cable = daemon.command();
    cable
        .args(["cable", "B", "--"])
        .arg(far.get_program())
        .args(far.get_args());
    let mut cable = Process::start(cable.args(["cable", "C"]).stdin(Stdio::null()));
    wait_ports(daemon, "B", 2);
    wait_ports(daemon, "C", 2);
    host.exchange_between("A", "D");
    let (near, far) = (host.kind("A", "link"), host.kind("B", "link"));
    assert_eq!((near.tx_frames, near.tx_bytes), (far.rx_frames, far.rx_bytes));
    // Whichever end goes takes the other along, and then there may be another.
    daemon.run(&["port", "rm", "B", &far.id.to_string()]).ok();
    wait::until_true("the other end goes", || {
        daemon.ports("A").iter().all(|port| port.kind != "link")
    });
    wait::until_true("another link", || {
        daemon.run(&["link", "B", "A"]).status.success()
    });
    let id = host.kind("C", "fd").id.to_string();
    daemon.run(&["port", "rm", "C", &id]).ok();
    assert!(cable.wait().success());
    wait::until_true("the cable's end in B", || {
        daemon.ports("B").iter().all(|port| port.kind != "fd")
    });
}

fn broadcast(n: u8) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].fill(0xff);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, n, 0x88, 0xb5]);
    frame
}

#[test]
fn foreign_datagrams_change_nothing_but_counters() {
    let host = Host::start(&["A"]);
    let home = host.daemon.home().to_owned();
    let (own_path, far_path) = (home.join("d"), home.join("q"));
    for words in [
        "A --l2tpv3 127.0.0.1:1702,127.0.0.1:1701 --tx-session 1 --rx-session 2 --tx-cookie 3 --rx-cookie 4",
        "A --l2tpv3 127.0.0.4,127.0.0.3 --tx-session 1 --rx-session 2 --tx-cookie 3 --rx-cookie 4",
        "A --gre 127.0.0.2,127.0.0.1 --tx-key 1 --rx-key 2",
        "A --udp 127.0.0.1:5001,127.0.0.1:5002",
        "A --mcast 239.192.168.1:1102",
        &format!("A --dgram {},{}", own_path.display(), far_path.display()),
    ] {
        host.attach(words).ok();
    }
    let receiver = vector_client(&host.daemon, "A");
    wait_ports(&host.daemon, "A", 7);
    let frame = broadcast(7);
    let join = |parts: &[&[u8]]| parts.concat();
    let giant = vec![0xff; 65_400];
    let session: [(&[u8], &[u8]); 5] = [
        (&[0, 0, 0, 9, 0, 0, 0, 4], &frame),
        (&[0, 0, 0, 2, 0, 0, 0, 9], &frame),
        (&[0, 0], &[]),
        (&[0, 0, 0, 2, 0, 0, 0, 4], &[1; 5]),
        (&[0, 0, 0, 2, 0, 0, 0, 4], &giant),
    ];
    let over_ip = session.map(|(header, frame)| join(&[header, frame]));
    let mut over_udp = over_ip
        .each_ref()
        .map(|bytes| join(&[&[0, 3, 0, 0], bytes]))
        .to_vec();
    over_udp.push(join(&[&[0x80, 3, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4], &frame]));
    let gre = [
        join(&[&[0x20, 0, 0x65, 0x58, 0, 0, 0, 9], &frame]),
        join(&[&[0, 0, 0x65, 0x58], &frame]),
        vec![0x20, 0, 0x65],
        join(&[&[0x20, 0, 0x65, 0x58, 0, 0, 0, 2], &giant]),
    ];
    let no_header = [vec![], vec![1; 13], giant];
    const TIMES: u64 = 200;
    let far = UnixDatagram::bind(&far_path).unwrap();
    let good = frame.clone();
    // Somebody is there until the end, or the good frame would not arrive.
    let from_far = far.try_clone().unwrap();
    let mut control = host.daemon.connect();
    let mut discarded = move || match control.ask(&Request::PortLs { domain: None }) {
        Reply::Ports(ports) => ports
            .iter()
            .map(|port| port.drops.values().sum::<u64>())
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    host.net.inside(move || {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let udp = |from: &str| UdpSocket::bind(address(from)).unwrap();
        let (tunnel, plain, stranger) = (
            udp("127.0.0.1:1701"),
            udp("127.0.0.1:5002"),
            udp("127.0.0.1:6666"),
        );
        let raw = |protocol: i32, from: &str, to: &str| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(protocol))).unwrap();
            raw.bind(&address(from).into()).unwrap();
            raw.connect(&address(to).into()).unwrap();
            raw
        };
        let gre_socket = raw(47, "127.0.0.1:0", "127.0.0.2:0");
        let l2tpv3_socket = raw(115, "127.0.0.3:0", "127.0.0.4:0");
        for _ in 0..TIMES {
            let before = discarded();
            for bytes in &over_udp {
                tunnel.send_to(bytes, "127.0.0.1:1702").unwrap();
                stranger.send_to(bytes, "127.0.0.1:1702").unwrap();
            }
            for bytes in &over_ip {
                l2tpv3_socket.send(bytes).unwrap();
            }
            for bytes in &gre {
                gre_socket.send(bytes).unwrap();
            }
            for bytes in &no_header {
                plain.send_to(bytes, "127.0.0.1:5001").unwrap();
                stranger.send_to(bytes, "127.0.0.1:5001").unwrap();
                stranger.send_to(bytes, "239.192.168.1:1102").unwrap();
                from_far.send_to(bytes, &own_path).unwrap();
            }
            // So that no queue overflows: what is counted is to be known. The first port is the receiver's.
            wait::until_true("something of it at every wire", || {
                let now = discarded();
                before
                    .iter()
                    .zip(&now)
                    .filter(|(before, now)| now > before)
                    .count()
                    == before.len() - 1
            });
        }
        plain.send_to(&good, "127.0.0.1:5001").unwrap();
    });
    let mut bytes = [std::mem::MaybeUninit::uninit(); 2000];
    receiver.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let count = receiver.recv(&mut bytes).unwrap();
    assert_eq!(
        count,
        frame.len(),
        "the first frame to arrive is the only good one"
    );
    let ports = host.daemon.ports("A");
    let expect = |name: &str, reasons: &[&str]| {
        let row = ports.iter().find(|port| port.name.starts_with(name)).unwrap();
        let known: Vec<&str> = row.drops.keys().map(String::as_str).collect();
        assert_eq!(known, reasons, "{row:?}");
        // A queue may overflow on a busy machine, but hardly all the time.
        assert!(
            row.drops.values().all(|&count| 0 < count && count <= 2 * TIMES),
            "{row:?}"
        );
        let said = host.daemon.run(&["port", "ls", "A"]).ok();
        for (reason, count) in &row.drops {
            assert!(said.contains(&format!("{count} {reason}")), "{said}");
        }
    };
    let session = ["bad-cookie", "foreign-session", "giant", "runt", "truncated"];
    let over_udp = [
        "bad-cookie",
        "foreign-session",
        "giant",
        "malformed",
        "runt",
        "truncated",
    ];
    expect("l2tpv3 127.0.0.1:1702", &over_udp);
    expect("l2tpv3 127.0.0.4", &session);
    expect("gre", &["bad-key", "giant", "truncated"]);
    for name in ["udp", "mcast", "dgram"] {
        expect(name, &["giant", "runt"]);
    }
    wait::until_true("the good frame at the six others", || {
        host.daemon.domain("A").tx_frames >= 6
    });
    let row = host.daemon.domain("A");
    assert_eq!((row.tx_frames, row.ports), (6, 7), "{row:?}");
    drop(far);
}

#[test]
fn each_kind_may_stand_in_the_configuration() {
    let net = Net::new();
    net.ok("ip route add 224.0.0.0/4 dev lo");
    let mut daemon = Switchd::prepared();
    let home = daemon.home().display().to_string();
    let file = daemon.home().join("switchd.toml");
    let ports = format!(
        r#"
[[domain]]
name = "A"
ports = [
    {{ kind = "l2tpv3", local = "127.0.0.1:1702", remote = "127.0.0.1:1701", tx_session = 1, rx_session = 2, tx_cookie = 3, rx_cookie = 4, cookie64 = true, counter = "count" }},
    {{ kind = "gre", local = "127.0.0.2", remote = "127.0.0.1", tx_key = 1, rx_key = 2, sequence = "zero" }},
    {{ kind = "mcast", group = "239.192.168.1:1102", ttl = 2, via = "127.0.0.1" }},
    {{ kind = "udp", local = "127.0.0.1:5001", remote = "127.0.0.1:5002", secure = ["10.0.0.0/24"] }},
    {{ kind = "stream", address = "tcp:127.0.0.1:5000", listen = true }},
    {{ kind = "dgram", local = "{home}/d", remote = "{home}/q" }},
    {{ kind = "link", to = "B" }},
]
[[domain]]
name = "B"
"#
    );
    // What is wrong is said, and nothing is left behind.
    for (good, bad, why) in [
        ("tx_session = 1", "tx_session = 0", "session 0"),
        ("tx_key = 1", "rx_kay = 1", "rx_kay"),
        ("group = \"239", "group = \"139", "no multicast group"),
        ("kind = \"link\", to = \"B\"", "kind = \"fd\"", "no descriptor"),
        ("to = \"B\"", "to = \"C\"", "no domain C"),
    ] {
        assert!(ports.contains(good), "{good}");
        std::fs::write(&file, ports.replace(good, bad)).unwrap();
        let mut command = net.command(binary("switchd"));
        command
            .arg("--dir")
            .arg(daemon.dir())
            .args(["run", "--config"])
            .arg(&file);
        let ended = program::run(&mut command);
        assert!(
            !ended.status.success() && ended.stderr.contains(why),
            "{why}: {ended:?}"
        );
        assert!(!Path::new(&home).join("d").exists(), "the socket is left");
    }
    std::fs::write(&file, &ports).unwrap();
    daemon.launch_in(&net, &["--config", file.to_str().unwrap()]);
    let rows = daemon.ports("A");
    let mut kinds: Vec<_> = rows.iter().map(|port| port.kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        ["dgram", "gre", "l2tpv3", "link", "mcast", "stream", "udp"]
    );
    let secure = rows.iter().find(|port| port.kind == "udp").unwrap();
    assert_eq!(secure.secure[0].to_string(), "10.0.0.0/24");
    assert_eq!(daemon.ports("B").len(), 1);
}

#[test]
fn a_socket_is_handed_over_by_its_number() {
    let host = Host::start(&["A", "B"]);
    host.attach("B --stream tcp:127.0.0.1:5000 --listen").ok();
    let words = host.daemon.command();
    let script = "exec 3<>/dev/tcp/127.0.0.1/5000; exec \"$@\" port add A --fd 3";
    let mut shell = host.net.command(tool("bash"));
    shell.args(["-c", script, "bash"]);
    shell.arg(words.get_program()).args(words.get_args());
    assert!(shell.status().unwrap().success());
    let (a, mut b) = (vector_client(&host.daemon, "A"), vector_client(&host.daemon, "B"));
    wait_ports(&host.daemon, "B", 2);
    let mut bytes = [0; 2000];
    b.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    a.send(&broadcast(3)).unwrap();
    assert_eq!(std::io::Read::read(&mut b, &mut bytes).unwrap(), 60);
    // Whoever ends it hangs up, although it is not the only one who could.
    let id = host.kind("A", "fd").id.to_string();
    host.daemon.run(&["port", "rm", "A", &id]).ok();
    host.daemon.run(&["port", "ls", "A"]).ok();
    wait_ports(&host.daemon, "A", 1);
}

#[test]
fn what_cannot_be_attached_is_said() {
    let host = Host::start(&["A"]);
    for (words, code, why) in [
        ("A", 2, "required"),
        ("A --udp 127.0.0.1:1,127.0.0.1:2 --tap x", 2, "cannot be used"),
        ("A --l2tpv3 127.0.0.1:1,127.0.0.1:2", 2, "--tx-session"),
        (
            "A --l2tpv3 127.0.0.1,[::1] --tx-session 1 --rx-session 1",
            2,
            "no address",
        ),
        (
            "A --l2tpv3 127.0.0.1:1,127.0.0.1 --tx-session 1 --rx-session 1",
            1,
            "both have a port",
        ),
        (
            "A --l2tpv3 127.0.0.1:1,127.0.0.1:2 --tx-session 0 --rx-session 1",
            1,
            "session 0",
        ),
        (
            "A --l2tpv3 127.0.0.1:1,127.0.0.1:2 --tx-session 1 --rx-session 1 --tx-cookie 1",
            1,
            "one direction",
        ),
        ("A --gre 127.0.0.1,::1", 1, "two families"),
        ("A --mcast 127.0.0.1:1102", 1, "no multicast group"),
        ("A --udp 192.0.2.7:1,127.0.0.1:2", 1, "none of this host's"),
        ("A --udp 127.0.0.1:1", 2, "LOCAL,REMOTE"),
        ("A --udp 127.0.0.1:1,127.0.0.1:2 --counter", 2, "cannot be used"),
        ("A --stream /tmp/x", 2, "no stream"),
        ("A --stream unix:/nonexistent/x --listen", 1, "No such file"),
        ("A --fd 99", 1, "descriptor 99"),
        ("A --tap nk0 --secure 10.0.0", 2, "10.0.0"),
    ] {
        let said = host.attach(words).failed(code);
        assert!(said.contains(why), "{words}: {said}");
    }
    assert_eq!(host.daemon.ports("A").len(), 0);
    host.attach("A --udp 127.0.0.1:1,127.0.0.1:2").ok();
    let said = host.attach("A --udp 127.0.0.1:1,127.0.0.1:2").failed(1);
    assert!(said.contains("has that address and port"), "{said}");
}

#[test]
fn without_the_right_raw_ip_is_refused() {
    // A daemon whose root is somebody else outside has no right to the network it is in.
    let mut daemon = Switchd::prepared();
    let mut command = Command::new(tool("setpriv"));
    command
        .args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--"])
        .arg(binary("switchd"))
        .arg("--dir")
        .arg(daemon.dir());
    daemon.launch_by(command, &[]);
    daemon.add(&["A"]);
    let said = daemon
        .run(&["port", "add", "A", "--gre", "127.0.0.1,127.0.0.2"])
        .failed(1);
    assert!(said.contains("needs CAP_NET_RAW"), "{said}");
}

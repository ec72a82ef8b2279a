//! Secure ports: a guest gets along within its range, and nothing else gets in.

use std::io::Read;
use std::process::Command;

use tests::netns::Net;
use tests::ports::{Guest, exchange_after, only_late, vector_client, wait_ports};
use tests::program::tool;
use tests::switchd::Switchd;
use tests::wait;

fn frame(src: u8, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, src]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(60, 0);
    frame
}

fn arp(src: u8, ip: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, src];
    payload.extend(ip);
    payload.extend([0; 10]);
    frame(src, 0x0806, &payload)
}

fn ipv4(src: u8, ip: [u8; 4], protocol: u8) -> Vec<u8> {
    let mut payload = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0];
    payload.extend(ip);
    payload.extend([10, 0, 0, 9]);
    frame(src, 0x0800, &payload)
}

#[test]
fn what_is_not_theirs_does_not_get_in() {
    let daemon = Switchd::with_domain(&["A"]);
    let [a, b, mut gateway] = [(); 3].map(|()| vector_client(&daemon, "A"));
    wait_ports(&daemon, "A", 3);
    for id in ["1", "2"] {
        daemon.run(&["port", "secure", "A", id, "10.0.0.0/24"]).ok();
    }
    let said = daemon.run(&["port", "secure", "A", "9", "10.0.0.0/24"]).failed(1);
    assert!(said.contains("there is no port 9"), "{said}");
    assert_eq!(daemon.port("A", 1).secure[0].to_string(), "10.0.0.0/24");

    gateway.send(&arp(3, [10, 0, 0, 254])).unwrap();
    let mut bytes = [0; 2000];
    assert_eq!(
        (&b).read(&mut bytes).unwrap(),
        60,
        "an open port sends what it likes"
    );
    a.send(&arp(1, [10, 0, 0, 1])).unwrap();
    // Its place is known before the other claims it.
    assert_eq!(gateway.read(&mut bytes).unwrap(), 60);
    for bad in [
        frame(2, 0x88b5, &[0; 46]),
        ipv4(2, [10, 0, 0, 2], 89),
        ipv4(2, [192, 0, 2, 1], 6),
        arp(2, [10, 0, 1, 1]),
        arp(2, [10, 0, 0, 1]),
        arp(2, [10, 0, 0, 254]),
        ipv4(1, [10, 0, 0, 2], 6),
    ] {
        b.send(&bad).unwrap();
    }
    b.send(&ipv4(2, [10, 0, 0, 2], 6)).unwrap();
    assert_eq!(gateway.read(&mut bytes).unwrap(), 60);
    assert_eq!(
        bytes[..60],
        ipv4(2, [10, 0, 0, 2], 6)[..],
        "nothing else came before"
    );
    let drops = daemon.port("A", 2).drops;
    assert_eq!(
        (drops.get("not-allowed"), drops.get("spoofed"), drops.len()),
        (Some(&2), Some(&5), 2),
        "{drops:?}"
    );
    daemon.run(&["port", "secure", "A", "2", "--open"]).ok();
    b.send(&frame(2, 0x88b5, &[0; 46])).unwrap();
    assert_eq!(gateway.read(&mut bytes).unwrap(), 60);
    assert!(daemon.port("A", 2).secure.is_empty());
}

#[test]
fn guests_within_their_range_ping_and_transfer() {
    let daemon = Switchd::with_domain(&["A"]);
    let word = format!("vec0:transport=bess,dst={}", daemon.domain("A").sockets["bess"]);
    let secure = || {
        for port in wait_ports(&daemon, "A", 2) {
            let id = port.id.to_string();
            daemon
                .run(&["port", "secure", "A", &id, "10.0.0.0/24", "fd00::/64"])
                .ok();
        }
    };
    let kernel = || Command::new(tool("linux.uml"));
    let _guests = exchange_after(secure, kernel, daemon.home(), &word, &word, 1500);
    for port in daemon.ports("A") {
        let ranges: Vec<_> = port.secure.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/24", "fd00::/64"]);
        assert!(only_late(&port) && port.rx_frames > 20, "{port:?}");
    }
}

#[test]
fn guests_outside_their_range_are_alone() {
    let net = Net::new();
    let daemon = Switchd::start_in(&net, &[]);
    daemon.add(&["A"]);
    // It is a secure port from its first frame on.
    let words = "port add A --l2tpv3 127.0.0.1:1702,127.0.0.1:1701 --tx-session 1 --rx-session 2 --secure 10.0.7.0/24";
    daemon.run(&words.split(' ').collect::<Vec<_>>()).ok();
    let script = |own: &str, device: &str, other: &str| {
        format!(
            "ip addr add {own}/24 dev {device}; ip link set {device} up\n\
             while true; do ping -c 1 -w 1 {other}; done"
        )
    };
    let wire = "vec0:transport=l2tpv3,udp=1,src=127.0.0.1,srcport=1701,dst=127.0.0.1,dstport=1702,tx_session=2,rx_session=1";
    let bess = format!("vec0:transport=bess,dst={}", daemon.domain("A").sockets["bess"]);
    let kernel = || net.command(tool("linux.uml"));
    let boot = |name: &str, script: &str, word: &str| {
        Guest::boot_by(kernel(), daemon.home(), name, script, &[word.to_owned()])
    };
    let honest = boot("b", &script("10.0.0.2", "vec0", "10.0.0.1"), &bess);
    let liar = boot("a", &script("10.0.0.1", "vec0", "10.0.0.2"), wire);
    let spoofed = || {
        let ports = daemon.ports("A");
        let wire = ports.iter().find(|port| port.kind == "l2tpv3").expect("the wire");
        wire.drops.get("spoofed").copied().unwrap_or_default()
    };
    // It asks who has the address, and is asked, and never answers.
    wait::until_true("refused frames", || spoofed() > 3);
    for guest in [&honest, &liar] {
        wait::until_true("a lost ping", || guest.console().contains("0 packets received"));
        assert!(
            !guest.console().contains("1 packets received"),
            "{}",
            guest.console()
        );
    }
}

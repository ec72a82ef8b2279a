//! Secure ports: a guest gets along within its range, and nothing else gets in.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::io::Read;

use socket2::{Domain, SockAddr, Socket, Type};
use tests::ports::{transfer, wait_ports};
use tests::switchd::Switchd;
use tests::wait;

fn client(daemon: &Switchd) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    let path = &daemon.domain("A").sockets["bess"];
    socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    socket
}

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
    let (a, b, mut gateway) = (client(&daemon), client(&daemon), client(&daemon));
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
    // Ports of that number, whenever they come: clients of now go, their ports' settings with them.
    let word = format!("vec0:transport=bess,dst={}", daemon.domain("A").sockets["bess"]);
    let guests = transfer(&daemon, &word, &word, 1500);
    for id in ["1", "2"] {
        daemon
            .run(&["port", "secure", "A", id, "10.0.0.0/24", "fd00::/64"])
            .ok();
    }
    drop(guests);
}

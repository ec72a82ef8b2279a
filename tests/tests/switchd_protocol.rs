//! Clients of every request version are served as the uml_switch protocol says, and frames pass byte for byte.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::uml::{self, Kind, Version};
use tests::client::{self, Client, data_socket, wait_for_hangup};
use tests::frame::{BROADCAST, frame, mac, tagged, text};
use tests::switchd::Switchd;
use tests::wait::until_true;

/// A whole request and the socket it names.
fn request(version: Version) -> (Vec<u8>, UnixDatagram, uml::Address) {
    let (socket, address) = data_socket().unwrap();
    (
        uml::request(version, Kind::Port { number: None }, address),
        socket,
        address,
    )
}

/// Two ports that know each other; frames go both ways.
#[track_caller]
fn assert_connected(a: &Client, b: &Client) {
    let there = frame(mac(2), mac(1), 100, 1);
    let back = frame(mac(1), mac(2), 100, 2);
    a.send(&there);
    assert_eq!(b.recv(), there);
    b.send(&back);
    assert_eq!(a.recv(), back);
}

/// Sends a request that must not be answered.
#[track_caller]
fn assert_refused(control: &Path, bytes: &[u8]) {
    let stream = UnixStream::connect(control).unwrap();
    let error = client::ask(&stream, bytes).unwrap_err();
    let hung_up = matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
    );
    assert!(hung_up, "answered or ignored: {error}");
}

#[test]
fn versions_1_and_3_are_answered_with_the_path_of_a_data_socket() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    for version in [Version::V1, Version::V3] {
        let a = Client::try_attach(&control, version, None).unwrap();
        let b = Client::try_attach(&control, version, None).unwrap();
        assert!(a.switch_path().starts_with(switchd.dir()), "{:?}", a.switch());
        assert_ne!(a.switch_path(), b.switch_path());
        assert_connected(&a, &b);
        drop((a, b));
        until_true("the ports have left", || switchd.ports("A").is_empty());
    }
}

#[test]
fn a_reply_has_110_bytes_and_nothing_follows() {
    let switchd = Switchd::with_domain(&["A"]);
    for version in [Version::V1, Version::V3] {
        let (bytes, _socket, _) = request(version);
        let mut stream = UnixStream::connect(switchd.uml_socket("A")).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut reply = [0; 4096];
        // UML takes one read(2) for the whole reply.
        let length = std::io::Read::read(&mut stream, &mut reply).unwrap();
        assert_eq!(length, uml::ADDRESS_BYTES);
        assert_eq!(reply[..2], 1u16.to_ne_bytes());
        let end = reply[2..110]
            .iter()
            .position(|&b| b == 0)
            .expect("a NUL behind the path");
        assert!(
            reply[2 + end..110].iter().all(|&b| b == 0),
            "garbage behind the path"
        );
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let more = std::io::Read::read(&mut stream, &mut reply).unwrap_err();
        assert_eq!(more.kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn version_0_clients_share_a_socket_at_a_path_and_talk_to_the_others() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    let shared = control.with_extension("data");
    let modern = switchd.attach("A");
    let old = [(); 2].map(|()| Client::attach_v0(&control, &shared).unwrap());
    until_true("three ports", || switchd.ports("A").len() == 3);

    let sent = frame(BROADCAST, mac(1), 60, 7);
    old[0].send(&sent);
    assert_eq!(old[1].recv(), sent);
    assert_eq!(modern.recv(), sent);
    let answer = frame(mac(1), mac(3), 1514, 8);
    modern.send(&answer);
    for client in &old {
        assert_eq!(client.recv(), answer);
    }
    // A stranger's frames are not taken, not even from a process of the same user.
    let (stranger, _) = data_socket().unwrap();
    stranger
        .send_to(&frame(BROADCAST, mac(9), 60, 9), &shared)
        .unwrap();
    let marker = frame(BROADCAST, mac(1), 60, 10);
    old[0].send(&marker);
    assert_eq!((modern.recv(), old[1].recv()), (marker.clone(), marker));

    let [gone, stays] = old;
    drop(gone);
    until_true("it has left", || switchd.ports("A").len() == 2);
    modern.send(&answer);
    assert_eq!(stays.recv(), answer);
}

#[test]
fn a_request_may_arrive_in_pieces() {
    let switchd = Switchd::with_domain(&["A"]);
    let b = switchd.attach("A");
    for version in [Version::V1, Version::V3] {
        for size in [1, 7, 50] {
            let (bytes, socket, address) = request(version);
            let mut stream = UnixStream::connect(switchd.uml_socket("A")).unwrap();
            for piece in bytes.chunks(size) {
                stream.write_all(piece).unwrap();
                std::thread::yield_now();
            }
            let reply = client::reply(&stream).unwrap();
            let a = Client::answered(stream, socket, address, &reply).unwrap();
            assert_connected(&a, &b);
        }
    }
}

#[test]
fn what_no_switch_serves_is_closed_not_ignored() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    let with_word = |at: usize, value: u32| {
        let (mut bytes, _, _) = request(Version::V3);
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let unsupported = [
        with_word(4, 2),
        with_word(4, 4),
        with_word(4, u32::MAX),
        with_word(8, 7),
    ];
    for bytes in &unsupported {
        assert_refused(&control, bytes);
    }
    assert_eq!(switchd.refused("bad-request"), unsupported.len() as u64);
    assert!(switchd.ports("A").is_empty());
}

#[test]
fn bytes_after_the_request_do_no_harm() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let garbage = [0xee; 10_000];
    a.control().write_all(&garbage).unwrap();
    assert_connected(&a, &b);
    a.control().write_all(&garbage).unwrap();
    assert_connected(&a, &b);
    assert_eq!(switchd.ports("A").len(), 2);
}

#[test]
fn a_port_gets_the_number_it_asks_for_if_it_is_free() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    let ask = |number| Client::try_attach(&control, Version::V3, Some(number));
    let five = ask(5).unwrap();
    let _lowest = switchd.attach("A");
    let ids = || switchd.ports("A").iter().map(|port| port.id).collect::<Vec<_>>();
    assert_eq!(ids(), [1, 5]);
    assert!(ask(5).is_err());
    // A number so high that tables would become huge is not given out.
    assert!(ask(0x00ff_ffff).is_err());
    assert_eq!(switchd.refused("port-taken"), 2);
    drop(five);
    until_true("it has left", || ids() == [1]);
    let _again = ask(5).unwrap();
    assert_eq!(ids(), [1, 5]);
}

#[test]
fn a_data_socket_has_the_same_path_after_a_restart() {
    let mut switchd = Switchd::with_domain(&["A"]);
    let paths = |switchd: &Switchd| {
        let clients = [Some(1), Some(2), Some(77)]
            .map(|number| Client::try_attach(&switchd.uml_socket("A"), Version::V3, number).unwrap());
        let paths = clients.each_ref().map(Client::switch_path);
        (clients, paths)
    };
    let (before, first) = paths(&switchd);
    assert!(switchd.stop(Signal::SIGTERM).success());
    drop(before);
    switchd.launch(&[]);
    switchd.add(&["A"]);
    assert_eq!(paths(&switchd).1, first);
}

#[test]
fn frames_pass_byte_for_byte() {
    let switchd = Switchd::start();
    for mode in ["hub", "switch"] {
        switchd.add(&[mode, "--mode", mode]);
        let (a, b) = (switchd.attach(mode), switchd.attach(mode));
        for low in 0..16 {
            // Spanning tree, link aggregation, LLDP and the rest of the addresses that bridges keep to themselves.
            let sent = frame([0x01, 0x80, 0xc2, 0, 0, low], mac(1), 60, low.into());
            a.send(&sent);
            assert_eq!(b.recv(), sent, "reserved address {low:#x} in a {mode}");
        }
        let customer = (0x8100, 0x6064);
        let service = (0x88a8, 0x0fff);
        for sent in [
            frame(mac(2), mac(1), 14, 1),
            frame(mac(2), mac(1), 15, 2),
            frame(mac(2), mac(1), 60, 3),
            frame(mac(2), mac(1), 1514, 4),
            tagged(mac(2), mac(1), &[customer], 1518, 5),
            tagged(mac(2), mac(1), &[service, customer], 1522, 6),
            tagged(BROADCAST, mac(1), &[customer], 64, 7),
        ] {
            a.send(&sent);
            assert_eq!(b.recv(), sent, "{} bytes in a {mode}", sent.len());
        }
        assert!(switchd.domain(mode).drops.is_empty());
    }
}

#[test]
fn frames_too_short_or_too_long_are_dropped_and_counted() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let whole = frame(mac(2), mac(1), 2000, 1);
    for length in [0, 1, 13] {
        a.send(&whole[..length]);
    }
    // A tag makes room for itself, not for payload.
    a.send(&whole[..1515]);
    a.send(&whole);
    a.send(&tagged(mac(2), mac(1), &[(0x8100, 1)], 1519, 2));
    let marker = frame(mac(2), mac(1), 1514, 3);
    a.send(&marker);
    assert_eq!(b.recv_until(&marker), [[0; 0]; 0]);

    let sender = switchd.port("A", 1);
    assert_eq!(
        sender
            .drops
            .iter()
            .map(|(k, &n)| (k.as_str(), n))
            .collect::<Vec<_>>(),
        [("giant", 3), ("runt", 3)]
    );
    assert_eq!(sender.rx_frames, 7);
    assert_eq!(sender.rx_bytes, 14 + 1515 + 2000 + 1519 + 1514);
    let receiver = switchd.port("A", 2);
    assert!(receiver.drops.is_empty());
    assert_eq!((receiver.tx_frames, receiver.tx_bytes), (1, 1514));
    assert_eq!(switchd.domain("A").drops, sender.drops);
}

#[test]
fn a_jumbo_domain_carries_what_its_mtu_says() {
    let switchd = Switchd::with_domain(&["J", "--mtu", "65521"]);
    let (a, b) = (switchd.attach("J"), switchd.attach("J"));
    let largest = frame(mac(2), mac(1), 65_535, 1);
    let tagged = tagged(mac(2), mac(1), &[(0x88a8, 2), (0x8100, 1)], 65_543, 2);
    for sent in [&largest, &tagged, &frame(mac(2), mac(1), 60, 3)] {
        a.send(sent);
        assert!(b.recv() == *sent, "{} bytes", sent.len());
    }
    a.send(&frame(mac(2), mac(1), 65_536, 4));
    let marker = frame(mac(2), mac(1), 60, 5);
    a.send(&marker);
    assert_eq!(b.recv_until(&marker).len(), 0);
    assert_eq!(switchd.port("J", 1).drops["giant"], 1);
}

#[test]
fn a_hub_reaches_all_but_the_sender() {
    let switchd = Switchd::with_domain(&["A"]);
    let clients = [(); 5].map(|()| switchd.attach("A"));
    for (sender, client) in clients.iter().enumerate() {
        let n = u8::try_from(sender).unwrap();
        // To one station, seen before or not: a hub does not care.
        client.send(&frame(mac(0), mac(n), 100, 100 + u32::from(n)));
    }
    let expected: Vec<_> = (0..5u8)
        .map(|n| frame(mac(0), mac(n), 100, 100 + u32::from(n)))
        .collect();
    for (receiver, client) in clients.iter().enumerate() {
        let mut got: Vec<_> = (0..4).map(|_| client.recv()).collect();
        got.sort_by_key(|frame| tests::frame::seed(frame));
        let mut others = expected.clone();
        others.remove(receiver);
        assert_eq!(got, others, "at port {receiver}");
    }
    let domain = switchd.domain("A");
    assert_eq!((domain.rx_frames, domain.tx_frames), (5, 20));
    assert_eq!(domain.stations, 0, "a hub learns nothing");
}

#[test]
fn a_switch_learns_floods_and_follows_a_station_that_moves() {
    let switchd = Switchd::with_domain(&["S", "--mode", "switch"]);
    let [a, b, c] = [(); 3].map(|()| switchd.attach("S"));
    let unknown = frame(mac(2), mac(1), 60, 1);
    a.send(&unknown);
    assert_eq!((b.recv(), c.recv()), (unknown.clone(), unknown));
    let answer = frame(mac(1), mac(2), 60, 2);
    b.send(&answer);
    assert_eq!(a.recv(), answer);
    let known = frame(mac(2), mac(1), 60, 3);
    a.send(&known);
    assert_eq!(b.recv(), known);
    for (n, group) in [BROADCAST, [0x33, 0x33, 0, 0, 0, 1]].into_iter().enumerate() {
        let flooded = frame(group, mac(1), 60, 10 + u32::try_from(n).unwrap());
        a.send(&flooded);
        assert_eq!(b.recv(), flooded);
        // Neither the answer nor the known one came here.
        assert_eq!(c.recv(), flooded);
    }

    // Station 2 moves from b to c; from then on only c is told.
    let moved = frame(mac(1), mac(2), 60, 20);
    c.send(&moved);
    assert_eq!(a.recv(), moved);
    let after = frame(mac(2), mac(1), 60, 21);
    a.send(&after);
    assert_eq!(c.recv(), after);
    let marker = frame(BROADCAST, mac(1), 60, 22);
    a.send(&marker);
    assert_eq!(b.recv(), marker);
    assert_eq!(c.recv(), marker);

    // A frame for a station behind the port it came from is not sent back, nor anywhere else.
    a.send(&frame(mac(1), mac(1), 60, 23));
    a.send(&marker);
    assert_eq!((b.recv(), c.recv()), (marker.clone(), marker));
    assert_eq!(switchd.port("S", 1).drops["same-port"], 1);

    let stations = |id| switchd.port("S", id).stations;
    assert_eq!(stations(1), [text(mac(1))]);
    assert!(stations(2).is_empty());
    assert_eq!(stations(3), [text(mac(2))]);
    drop(c);
    until_true("its stations are forgotten", || switchd.domain("S").stations == 1);
}

#[test]
fn a_station_is_forgotten_after_the_ageing_time() {
    let switchd = Switchd::with_domain(&["S", "--mode", "switch", "--ageing", "1"]);
    let [a, b, c] = [(); 3].map(|()| switchd.attach("S"));
    b.send(&frame(BROADCAST, mac(2), 60, 1));
    a.recv();
    c.recv();
    let mut sent = 0;
    until_true("frames for it are flooded again", || {
        let probe = frame(mac(2), mac(1), 60, 100 + sent);
        sent += 1;
        a.send(&probe);
        assert_eq!(b.recv(), probe);
        c.recv_within(Duration::from_millis(20))
            .is_some_and(|flooded| flooded == probe)
    });
    assert!(sent > 1, "it was never known");
    // Station 1 has been sending all the time.
    assert_eq!(switchd.port("S", 1).stations, [text(mac(1))]);
    until_true("a silent switch forgets as well", || switchd.fdb("S").is_empty());
}

#[test]
fn the_forwarding_table_is_edited_from_the_command_line() {
    let switchd = Switchd::with_domain(&["S", "--mode", "switch", "--ageing", "1"]);
    let [a, b, c] = [(); 3].map(|()| switchd.attach("S"));
    let station = text(mac(7));
    switchd.run(&["fdb", "S", "--add", &station, "--port", "2"]).ok();
    let rows = switchd.fdb("S");
    assert_eq!(
        rows.iter()
            .map(|row| (row.mac.as_str(), row.port, row.age_s))
            .collect::<Vec<_>>(),
        [(station.as_str(), 2, None)]
    );
    // A static station is told without having spoken, and does not move when somebody else claims its address.
    let first = frame(mac(7), mac(1), 60, 1);
    a.send(&first);
    assert_eq!(b.recv(), first);
    c.send(&frame(BROADCAST, mac(7), 60, 2));
    a.recv();
    b.recv();
    let second = frame(mac(7), mac(1), 60, 3);
    a.send(&second);
    assert_eq!(b.recv(), second);
    until_true("the learnt ones are forgotten", || switchd.fdb("S").len() == 1);
    assert_eq!(switchd.fdb("S")[0].mac, station);

    switchd.run(&["fdb", "S", "--rm", &station]).ok();
    let third = frame(mac(7), mac(1), 60, 4);
    a.send(&third);
    assert_eq!((b.recv(), c.recv()), (third.clone(), third));
    assert!(switchd.fdb("S").iter().all(|row| row.mac != station));

    let text = switchd.run(&["fdb", "S", "--rm", &station]).failed(1);
    assert!(text.contains(&station), "{text}");
    for bad in [
        ["--add", "02:00", "--port", "2"],
        ["--add", &station, "--port", "99"],
        ["--add", "ff:ff:ff:ff:ff:ff", "--port", "2"],
    ] {
        let mut arguments = vec!["fdb", "S"];
        arguments.extend(bad);
        let text = switchd.run(&arguments).failed(1);
        assert!(text.contains(bad[1]), "{text}");
    }
    switchd.run(&["fdb", "S", "--add", &station]).failed(2);
}

#[test]
fn a_client_that_hangs_up_frees_its_port_and_one_whose_domain_goes_is_told() {
    let switchd = Switchd::with_domain(&["A"]);
    let a = switchd.attach("A");
    let path = a.switch_path();
    assert!(path.exists());
    drop(a);
    until_true("the port has left", || switchd.ports("A").is_empty());
    assert!(!path.exists());

    let b = switchd.attach("A");
    switchd.run(&["domain", "rm", "A"]).ok();
    b.wait_for_hangup();
    assert!(b.try_send(&frame(BROADCAST, mac(1), 60, 1)).is_err());
    assert!(!b.switch_path().exists());
    assert_eq!(switchd.files(), [switchd.socket()]);
    wait_for_hangup(b.control());
}

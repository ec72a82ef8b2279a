//! Malformed requests are refused and counted, and change nothing for others.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::uml::{self, ADDRESS_BYTES, Address, Kind, Version};
use tests::client::{Client, ask, data_socket, wait_for_hangup};
use tests::frame::{BROADCAST, frame, mac, seed};
use tests::switchd::Switchd;
use tests::wait::{PATIENCE, until_true};

fn good_request() -> (UnixDatagram, Vec<u8>) {
    let (socket, address) = data_socket().unwrap();
    let bytes = uml::request(Version::V3, Kind::Port { number: None }, address);
    (socket, bytes)
}

/// A version 3 request with whatever stands in the place of the address.
fn with_address(address: [u8; ADDRESS_BYTES]) -> Vec<u8> {
    let (_, mut bytes) = good_request();
    bytes[12..12 + ADDRESS_BYTES].copy_from_slice(&address);
    bytes
}

/// Sends bytes and the end of what we have to say; the switch must hang up without an answer.
#[track_caller]
fn assert_refused(control: &Path, bytes: &[u8], what: &str) {
    let stream = UnixStream::connect(control).unwrap();
    // The switch may hang up before it has read all.
    let _ = (&stream).write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let error = ask(&stream, &[]).expect_err(what);
    let hung_up = matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    );
    assert!(hung_up, "{what}: {error}");
}

#[test]
fn nonsense_is_refused_by_reason_and_good_ports_lose_nothing() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let (_socket, good) = good_request();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let family = |family: u16, path: &[u8]| {
        let mut address = [0; ADDRESS_BYTES];
        address[..2].copy_from_slice(&family.to_ne_bytes());
        address[2..2 + path.len()].copy_from_slice(path);
        with_address(address)
    };
    let path = |path: &Path| {
        with_address(
            Address::from_path(path.as_os_str().as_encoded_bytes())
                .unwrap()
                .to_bytes(),
        )
    };
    let plain_file = switchd.home().join("file");
    std::fs::write(&plain_file, "").unwrap();
    let stream_socket = switchd.socket();

    let cases: [(&str, &str, Vec<u8>); 19] = [
        ("hung-up", "nothing at all", Vec::new()),
        ("hung-up", "one byte", good[..1].to_vec()),
        ("hung-up", "the magic alone", good[..4].to_vec()),
        ("hung-up", "all but a byte", good[..121].to_vec()),
        (
            "bad-request",
            "too long",
            [good.clone(), vec![b'x'; 4000]].concat(),
        ),
        ("bad-request", "zeros: version 0 without an address", vec![0; 124]),
        ("bad-request", "text", b"GET / HTTP/1.1\r\n".repeat(10)),
        ("bad-request", "wrong magic", changed(0, 0xcf)),
        ("bad-request", "version 2", changed(4, 2)),
        ("bad-request", "version 259", changed(5, 1)),
        // A dump port's type, which version 1 does not have.
        ("bad-request", "type 1 of version 1", changed(4, 1)),
        ("bad-request", "type 255", changed(8, 255)),
        ("bad-request", "an internet address", family(2, b"/tmp/x")),
        ("bad-request", "an empty path", family(1, b"")),
        (
            "no-data-socket",
            "no such socket",
            path(Path::new("/nonexistent/socket")),
        ),
        ("no-data-socket", "a directory", path(switchd.home())),
        ("no-data-socket", "a plain file", path(&plain_file)),
        ("no-data-socket", "a stream socket", path(&stream_socket)),
        ("no-data-socket", "108 bytes without NUL", family(1, &[b'x'; 108])),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (n, (reason, what, bytes)) in cases.iter().enumerate() {
        assert_refused(&control, bytes, what);
        let count = expected.entry((*reason).to_owned()).or_insert(0);
        *count += 1;
        until_true(&format!("{what} is counted as {reason}"), || {
            switchd.refused(reason) == *count
        });
        let sent = frame(mac(2), mac(1), 200, u32::try_from(n).unwrap());
        a.send(&sent);
        assert_eq!(b.recv(), sent);
    }
    assert_eq!(switchd.stats().daemon.refused, expected);
    assert_eq!(switchd.ports("A").len(), 2);
    assert!(switchd.domain("A").drops.is_empty());
    // No number is lost with a client that was refused.
    drop(Client::try_attach(&control, Version::V3, Some(3)).unwrap());
}

/// Sends numbered frames from one port to the other until the end, waiting for each tenth to arrive so that nothing
/// depends on how fast this machine is; then tells how many.
fn ping_pong(a: &Client, b: &Client, stop: &std::sync::atomic::AtomicBool) -> u32 {
    let mut n = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        for _ in 0..10 {
            a.send(&frame(mac(2), mac(1), 300, n));
            n += 1;
        }
        for wanted in n - 10..n {
            assert_eq!(seed(&b.recv()), wanted, "lost or swapped");
        }
    }
    n
}

#[test]
fn three_thousand_half_open_connections_keep_nobody_out() {
    const HALF_OPEN: u16 = 3000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        hard > u64::from(HALF_OPEN) + 200,
        "this test needs 'ulimit -n' of 3,200 or more, not {hard}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();

    let switchd = Switchd::with_domain(&["A", "--mode", "switch"]);
    let control = switchd.uml_socket("A");
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    b.send(&frame(BROADCAST, mac(2), 60, 0));
    a.recv();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| ping_pong(&a, &b, &stop));
        let half_open: Vec<_> = (0..HALF_OPEN)
            .map(|n| {
                let mut stream = UnixStream::connect(&control).unwrap();
                if n % 2 == 0 {
                    // It may have been sent away already.
                    let _ = stream.write_all(&[0xce, 0xfa, 0xed]);
                }
                stream
            })
            .collect();
        // All of them are there and silent. A client that speaks up is served in between.
        let begun = Instant::now();
        let good = Client::attach(&control);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "attaching took {took:?}");
        assert_eq!(switchd.ports("A").len(), 3);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(pinging.join().unwrap() > 0);
        let sent = frame(BROADCAST, mac(1), 60, 7);
        a.send(&sent);
        assert_eq!(good.recv(), sent);

        // Every one of them is refused in the end, and counted.
        for stream in &half_open {
            wait_for_hangup(stream);
        }
    });
    until_true("all of them are counted", || {
        switchd.stats().daemon.refused.values().sum::<u64>() == u64::from(HALF_OPEN)
    });
    assert!(switchd.refused("crowded") > 0);
    assert!(
        switchd.log().lines().count() < 50,
        "a flood of refusals floods the log"
    );
    assert!(switchd.domain("A").drops.is_empty());
}

#[test]
fn a_crowd_of_good_clients_is_served_to_the_last() {
    const CLIENTS: usize = 600;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    // All connections wait in the listener's queue before the daemon sees the first.
    nix::sys::signal::kill(switchd.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let crowd: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (socket, bytes) = good_request();
            let mut stream = UnixStream::connect(&control).unwrap();
            stream.write_all(&bytes).unwrap();
            (stream, socket)
        })
        .collect();
    nix::sys::signal::kill(switchd.pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    let deadline = Instant::now() + PATIENCE;
    for (n, (stream, _)) in crowd.iter().enumerate() {
        let reply = tests::client::reply(stream);
        assert!(
            reply.is_ok(),
            "client {n}: {reply:?}, {:?}",
            switchd.stats().daemon.refused
        );
        assert!(Instant::now() < deadline);
    }
    assert_eq!(switchd.domain("A").ports, CLIENTS);
    assert!(switchd.stats().daemon.refused.is_empty());
}

#[test]
fn a_client_that_dies_in_the_middle_of_attaching_leaves_nothing() {
    let switchd = Switchd::with_domain(&["A"]);
    let control = switchd.uml_socket("A");
    for _ in 0..200 {
        let (_socket, bytes) = good_request();
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.write_all(&bytes).unwrap();
        // Gone before or after the reply, with or without its data socket: whichever comes first.
    }
    let _settled = Client::attach(&control);
    until_true("only the one that stayed is left", || {
        switchd.ports("A").len() == 1
    });
    until_true("only its data socket is left", || {
        std::fs::read_dir(control.with_extension("port")).unwrap().count() == 1
    });
}

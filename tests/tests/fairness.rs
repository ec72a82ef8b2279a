//! Many senders to one receiver that cannot take all they have: each gets its share of it, of whatever kind it is.
//!
//! The senders always have more to send: their queues are filled up each time the receiver has taken a few frames. So
//! what arrives tells in which turns switchd serves them, and nothing else, on a busy machine as on an idle one.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read as _};
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::{SockRef, Socket};
use tests::client::Client;
use tests::frame::{frame, mac};
use tests::netns::Net;
use tests::ports::vector_socket;
use tests::switchd::Switchd;
use tests::wait::{PATIENCE, until_true};

/// As long as switchd allows, so that a test that is not served for a while by a busy machine is not taken for stuck.
const PATIENT: &[&str] = &["--hold-ms", "500"];
/// Frames the receiver takes before the senders fill their queues up again: fewer than any queue has.
const SIP: usize = 8;
/// What switchd asks for, too, and both get less of where the system's limit is lower. So a sender has more frames
/// waiting than its share of what goes to the receiver at once.
const SOCKET_BUFFER: usize = 4 << 20;
/// More frames than a socket keeps.
const QUEUE: usize = 20_000;
const RECEIVER: u8 = 100;

/// The test's end of a port.
enum End {
    Datagrams(Box<Client>),
    Records(Socket),
}

impl End {
    /// An end of the kind that has this word.
    fn attach(daemon: &Switchd, kind: &str) -> Self {
        let path = &daemon.domain("A").sockets[kind];
        match kind {
            "uml" => Self::Datagrams(Box::new(Client::attach(path.as_ref()))),
            "vde" => Self::Datagrams(Box::new(Client::attach(format!("{path}/ctl").as_ref()))),
            _ => Self::Records(vector_socket(path)),
        }
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Datagrams(client) => SockRef::from(client.data()),
            Self::Records(socket) => SockRef::from(socket),
        }
    }

    /// The same to send from, without ever waiting.
    fn sender(daemon: &Switchd, kind: &str) -> Self {
        let sender = Self::attach(daemon, kind);
        sender.socket().set_nonblocking(true).unwrap();
        sender.socket().set_send_buffer_size(SOCKET_BUFFER).unwrap();
        sender
    }

    /// The same to receive at; all others have heard of it.
    fn receiver(daemon: &Switchd, kind: &str) -> Self {
        let receiver = Self::attach(daemon, kind);
        receiver.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        receiver.send(&frame([0xff; 6], mac(RECEIVER), 60, 0)).unwrap();
        until_true("the receiver's address to be known", || {
            daemon.domain("A").stations > 0
        });
        receiver
    }

    /// Sends what there is room for, at most what a queue has.
    fn fill(&self, frame: &[u8]) {
        for _ in 0..QUEUE {
            match self.send(frame) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot send: {error}"),
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<usize> {
        match self {
            Self::Datagrams(client) => client.data().send_to_addr(frame, client.switch()),
            Self::Records(socket) => socket.send(frame),
        }
    }

    /// Waits for a frame, and tells which sender's it is.
    #[track_caller]
    fn heard(&self) -> usize {
        let mut frame = [0; 2000];
        let length = (&*self.socket()).read(&mut frame).unwrap();
        assert!(length >= 60, "no frame");
        usize::from(frame[11])
    }
}

/// Each within 20 % of its share.
#[track_caller]
fn assert_fair(counts: &[u32]) {
    let fair = f64::from(counts.iter().sum::<u32>()) / f64::from(u32::try_from(counts.len()).unwrap());
    let unfair = counts.iter().any(|&n| (f64::from(n) / fair - 1.0).abs() > 0.2);
    assert!(!unfair, "{counts:?}");
}

/// Senders of every kind and frame size share a receiver of this kind.
fn share(kind: &str) {
    let mut daemon = Switchd::prepared();
    daemon.launch(PATIENT);
    daemon.add(&["A", "--mode", "switch"]);
    let receiver = End::receiver(&daemon, kind);
    let kinds = ["uml", "vde", "bess"].into_iter().cycle().take(9);
    let senders: Vec<End> = kinds.map(|kind| End::sender(&daemon, kind)).collect();
    let fill = || {
        for (n, sender) in (0u8..).zip(&senders) {
            sender.fill(&frame(mac(RECEIVER), mac(n), if n < 5 { 60 } else { 1514 }, 0));
        }
    };
    // The first to send fill the receiver's queue before the last begin.
    let mut unheard: HashSet<usize> = (0..senders.len()).collect();
    while !unheard.is_empty() {
        fill();
        for _ in 0..SIP {
            unheard.remove(&receiver.heard());
        }
    }
    let mut counts = vec![0; senders.len()];
    // A turn is 64 frames: 100 of them for each.
    for _ in 0..100 * 64 * senders.len() / SIP {
        fill();
        for _ in 0..SIP {
            counts[receiver.heard()] += 1;
        }
    }
    assert_fair(&counts);
}

#[test]
fn senders_share_a_receiver_of_the_uml_switch_protocol() {
    share("uml");
}

#[test]
fn senders_share_a_receiver_of_bess() {
    share("bess");
}

#[test]
fn a_tap_with_super_frames_has_no_more_than_others() {
    let net = Net::new();
    let daemon = Switchd::start_in(&net, PATIENT);
    daemon.add(&["A", "--mode", "switch"]);
    net.ok("ip tuntap add dev nk1 mode tap");
    daemon.run(&["port", "add", "A", "--tap", "nk1"]).ok();
    net.script(&format!(
        "ip link set nk1 up; ip addr add 10.0.0.1/24 dev nk1
         ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:{RECEIVER:02x} dev nk1"
    ));
    // Datagram sockets are found by those in the same network only.
    let sockets = daemon.domain("A").sockets;
    let (uml, bess) = (sockets["uml"].clone(), sockets["bess"].clone());
    let (tap, other) = net.inside(move || {
        let receiver = Client::attach(uml.as_ref());
        receiver.send(&frame([0xff; 6], mac(RECEIVER), 60, 0));
        let sender = vector_socket(&bess);
        sender.set_nonblocking(true).unwrap();
        let sender = End::Records(sender);
        let tap = UdpSocket::bind("10.0.0.1:1000").unwrap();
        setsockopt(&tap, UdpGsoSegment, &1400).unwrap();
        tap.set_nonblocking(true).unwrap();
        let (mut from_tap, mut from_other) = (0, 0);
        while from_tap + from_other < 2 * 100 * 64 {
            for _ in 0..SIP {
                match tap.send_to(&[7; 40 * 1400], "10.0.0.2:1000") {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("cannot send: {error}"),
                }
            }
            sender.fill(&frame(mac(RECEIVER), mac(1), 1442, 0));
            for _ in 0..SIP {
                let Some(frame) = receiver.recv_within(Duration::from_secs(60)) else {
                    panic!("nothing comes: {from_tap} and {from_other}");
                };
                match (frame[11], frame.len()) {
                    (1, _) => from_other += 1,
                    (_, 1442) => from_tap += 1,
                    // What a host sends of its own accord.
                    _ => {}
                }
            }
        }
        (from_tap, from_other)
    });
    let ports = daemon.ports("A");
    let port = ports.iter().find(|port| port.kind == "tap").unwrap();
    assert!(port.rx_bytes / port.rx_frames > 5000, "no super-frames: {port:?}");
    assert_fair(&[tap, other]);
}

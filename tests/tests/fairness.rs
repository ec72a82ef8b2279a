//! Many senders to one receiver that cannot take all they have: each gets its share of it, of whatever kind it is.
//!
//! The senders always have more to send: their queues are filled up each time the receiver has taken a few frames. So
//! what arrives tells in which turns switchd serves them, and nothing else, on a busy machine as on an idle one.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use socket2::Socket;
use tests::client::Client;
use tests::frame::{frame, mac};
use tests::netns::Net;
use tests::ports::vector_socket;
use tests::switchd::Switchd;
use tests::wait::until_true;

/// As long as switchd allows, so that a test that is not served for a while by a busy machine is not taken for stuck.
const PATIENT: &[&str] = &["--hold-ms", "500"];
/// Frames the receiver takes before the senders fill their queues up again: fewer than any queue has.
const SIP: usize = 8;
/// More frames than a socket keeps.
const QUEUE: usize = 1000;
const RECEIVER: u8 = 100;

/// A sender of the test's own.
enum Sender {
    Datagrams(Box<Client>),
    Connection(Socket),
}

impl Sender {
    /// Sends what there is room for, at most what a queue has.
    fn fill(&self, frame: &[u8]) {
        for _ in 0..QUEUE {
            let sent = match self {
                Self::Datagrams(client) => client.data().send_to_addr(frame, client.switch()),
                Self::Connection(socket) => socket.send(frame),
            };
            match sent {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot send: {error}"),
            }
        }
    }
}

/// Clients of the uml_switch protocol, of VDE's and of BESS's.
fn senders(daemon: &Switchd, each: usize) -> Vec<Sender> {
    let sockets = daemon.domain("A").sockets;
    let mut senders = Vec::new();
    for _ in 0..each {
        for control in [sockets["uml"].clone(), format!("{}/ctl", sockets["vde"])] {
            let client = Client::attach(control.as_ref());
            client.data().set_nonblocking(true).unwrap();
            senders.push(Sender::Datagrams(Box::new(client)));
        }
        let socket = vector_socket(&sockets["bess"]);
        socket.set_nonblocking(true).unwrap();
        senders.push(Sender::Connection(socket));
    }
    senders
}

/// The receiver's port, which all others have heard of.
fn receiver(daemon: &Switchd) -> Client {
    let receiver = daemon.attach("A");
    receiver.send(&frame([0xff; 6], mac(RECEIVER), 60, 0));
    until_true("the receiver's address to be known", || {
        daemon.domain("A").stations > 0
    });
    receiver
}

/// Each within 20 % of its share.
#[track_caller]
fn assert_fair(counts: &[u32]) {
    let fair = f64::from(counts.iter().sum::<u32>()) / f64::from(u32::try_from(counts.len()).unwrap());
    let unfair = counts.iter().any(|&n| (f64::from(n) / fair - 1.0).abs() > 0.2);
    assert!(!unfair, "{counts:?}");
}

#[test]
fn senders_of_every_kind_and_frame_size_share_a_receiver() {
    let mut daemon = Switchd::prepared();
    daemon.launch(PATIENT);
    daemon.add(&["A", "--mode", "switch"]);
    let receiver = receiver(&daemon);
    let senders = senders(&daemon, 3);
    let mut counts = vec![0; senders.len()];
    // A turn is 64 frames: 100 of them for each.
    let wanted = 100 * 64 * senders.len();
    let mut got = 0;
    while got < wanted {
        for (n, sender) in (0u8..).zip(&senders) {
            sender.fill(&frame(mac(RECEIVER), mac(n), if n < 5 { 60 } else { 1514 }, 0));
        }
        for _ in 0..SIP {
            let frame = receiver.recv();
            counts[usize::from(frame[11])] += 1;
            got += 1;
        }
    }
    assert_fair(&counts);
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
        let sender = Sender::Connection(sender);
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

//! Proof that domains take turns, and the senders to one port: rounds of a real worker, one by one, between real sockets
//! that are full of frames.

use std::io::Read;

use fabric::{MacAddr, Mode, Settings};
use socket2::Socket;
use tokio::sync::oneshot;

use super::*;
use crate::datapath::flow::TURN;
use crate::datapath::testing::{attach, attach_tap};

/// Rounds in which every sender has more to send: a socket has room for 200 short frames and more.
const ROUNDS: usize = 3;
const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

/// The guests' ends of a domain: the receiver's, and those of the senders.
struct Guests {
    receiver: Socket,
    senders: Vec<Socket>,
    /// Dropped, they would tell of ports that have gone.
    _alive: Vec<oneshot::Receiver<std::convert::Infallible>>,
}

impl Guests {
    fn new(worker: &mut Worker, id: DomainId, senders: u32) -> Self {
        let settings = Settings {
            mode: Mode::Switch,
            ..Settings::default()
        };
        worker.obey(Command::AddDomain(id, settings));
        let mut alive = Vec::new();
        let mut attach = |port| {
            let (guest, gone) = attach(worker, id, port);
            alive.push(gone);
            guest
        };
        let receiver = attach(1);
        let senders = (0..senders).map(|n| attach(n + 2)).collect();
        let (answer, _) = oneshot::channel();
        worker.obey(Command::FdbAdd(id, MacAddr(RECEIVER), PortId(1), answer));
        Self {
            receiver,
            senders,
            _alive: alive,
        }
    }

    /// Sends as many frames as there is room for.
    fn fill(&self) {
        let mut frame = [7; 60];
        frame[..6].copy_from_slice(&RECEIVER);
        for (n, sender) in (0u8..).zip(&self.senders) {
            frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, n]);
            while sender.send(&frame).is_ok() {}
        }
    }

    /// Takes what has arrived, so many frames at most; tells which senders' they are.
    fn take(&self, frames: usize) -> Vec<usize> {
        let mut frame = [0; 2048];
        let taken = (0..frames).map_while(|_| {
            let sender = (&self.receiver).read(&mut frame).is_ok().then_some(frame[11]);
            sender.map(usize::from)
        });
        taken.collect()
    }
}

fn worker() -> Worker {
    let common = Common::new(Duration::from_millis(500));
    Worker::new(&common).unwrap().0
}

#[test]
fn a_domain_with_many_senders_has_no_more_than_others() {
    let mut worker = worker();
    let loud = Guests::new(&mut worker, DomainId(1), 8);
    let others = [2, 3].map(|id| Guests::new(&mut worker, DomainId(id), 1));
    // What there was to find out about ports that have come is found out: nothing.
    assert!(worker.round());
    loud.fill();
    others.iter().for_each(Guests::fill);
    for _ in 0..ROUNDS {
        assert!(worker.round());
    }
    let taken = |guests: &Guests| guests.take(usize::MAX).len();
    let (loud, others) = (taken(&loud), others.each_ref().map(taken));
    assert_eq!((loud, others), (ROUNDS * TURN, [ROUNDS * TURN; 2]));
}

#[test]
fn super_frames_are_no_longer_turns() {
    let mut worker = worker();
    let guests = Guests::new(&mut worker, DomainId(1), 1);
    let (tap, _gone) = attach_tap(&mut worker, DomainId(1), 9);
    assert!(worker.round());
    let super_frame = super_frame();
    let mut counts = [0; 2];
    // Room for a few frames at a time, as guests with short queues have it.
    while counts.iter().sum::<usize>() < 100 * TURN {
        guests.fill();
        while tap.send(&super_frame).is_ok() {}
        for sender in guests.take(11) {
            counts[sender.min(1)] += 1;
        }
        worker.context.roomy.push_back((0, PortId(1)));
        while !worker.context.roomy.is_empty() || !worker.context.ready.is_empty() {
            assert!(worker.round());
        }
    }
    let [one, other] = counts;
    assert!(one.abs_diff(other) <= 4 * TURN, "{counts:?}");
}

/// What a tap device gives of 40 datagrams of 1000 bytes for the receiver.
fn super_frame() -> Vec<u8> {
    const SEGMENT: u16 = 1000;
    const BYTES: u16 = 40 * SEGMENT;
    let udp = (BYTES + 8).to_be_bytes();
    let ip = (BYTES + 28).to_be_bytes();
    // A checksum to be completed, UDP to be cut (GSO_UDP_L4), header bytes, segment bytes, where the checksum is.
    let mut frame = vec![1, 5];
    for number in [42, SEGMENT, 34, 6] {
        frame.extend_from_slice(&number.to_le_bytes());
    }
    frame.extend_from_slice(&RECEIVER);
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend_from_slice(&[
        0x45, 0, ip[0], ip[1], 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend_from_slice(&[0, 7, 0, 7, udp[0], udp[1], 0, 0]);
    frame.resize(frame.len() + usize::from(BYTES), 7);
    frame
}

//! Proof that domains take turns: rounds of a real worker, one by one, between real sockets that are full of frames.

use std::sync::mpsc::channel;

use fabric::{MacAddr, Mode, Settings};
use netio::poll::Poller;
use socket2::Socket;
use tokio::sync::oneshot;

use super::*;
use crate::datapath::flow::TURN;
use crate::datapath::testing::attach;

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
            let sent = (0..100_000).take_while(|_| sender.send(&frame).is_ok()).count();
            assert!(sent >= ROUNDS * TURN, "a queue of {sent} frames is no proof");
        }
    }

    /// Takes what has arrived.
    fn take(&self) -> usize {
        let mut room = [std::mem::MaybeUninit::uninit(); 2048];
        (0..100_000)
            .take_while(|_| self.receiver.recv(&mut room).is_ok())
            .count()
    }
}

#[test]
fn a_domain_with_many_senders_has_no_more_than_others() {
    let (_, inbox) = channel();
    let common = Common::new(Duration::from_millis(500));
    let mut worker = Worker::new(Poller::new().unwrap(), inbox, common);
    let loud = Guests::new(&mut worker, DomainId(1), 8);
    let others = [2, 3].map(|id| Guests::new(&mut worker, DomainId(id), 1));
    // What there was to find out about ports that have come is found out: nothing.
    assert!(worker.round());
    loud.fill();
    others.iter().for_each(Guests::fill);
    for _ in 0..ROUNDS {
        assert!(worker.round());
    }
    let (loud, others) = (loud.take(), others.each_ref().map(Guests::take));
    assert_eq!((loud, others), (ROUNDS * TURN, [ROUNDS * TURN; 2]));
}

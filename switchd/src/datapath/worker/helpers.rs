//! Proof that a port may be read by another worker, and by its own again, without a frame lost, overtaken or forgotten.

use std::convert::Infallible;
use std::io::Read;

use allocation_counter::measure;
use fabric::{Mode, Settings};
use socket2::Socket;
use tokio::sync::oneshot;

use super::*;
use crate::datapath::Mailbox;
use crate::datapath::testing::attach;

const DOMAIN: DomainId = DomainId(3);
const VECTOR: u32 = 16;

/// A worker that is stepped by hand.
struct Stepped {
    worker: Worker,
    mailbox: Mailbox,
}

impl Stepped {
    fn new(common: &Common) -> Self {
        let (worker, mailbox) = Worker::new(common).unwrap();
        Self { worker, mailbox }
    }

    /// Does what there is to do, without waiting for more.
    fn step(&mut self) {
        loop {
            self.mailbox.bell.ring();
            assert!(self.worker.round());
            if self.worker.timeout() != Some(Duration::ZERO) {
                return;
            }
        }
    }
}

/// Two workers, and a domain of the first, in which one guest sends numbered frames to another.
struct Pair {
    owner: Stepped,
    helper: Stepped,
    sender: Option<Socket>,
    receiver: Socket,
    gone: oneshot::Receiver<Infallible>,
    _other: oneshot::Receiver<Infallible>,
    sent: u32,
    received: u32,
}

impl Pair {
    fn new() -> Self {
        let common = Common::new(Duration::from_secs(60));
        let (mut owner, helper) = (Stepped::new(&common), Stepped::new(&common));
        let settings = Settings {
            mode: Mode::Hub,
            ..Settings::default()
        };
        owner.worker.obey(Command::AddDomain(DOMAIN, settings));
        let (sender, gone) = attach(&mut owner.worker, DOMAIN, 1);
        let (receiver, other) = attach(&mut owner.worker, DOMAIN, 2);
        Self {
            owner,
            helper,
            sender: Some(sender),
            receiver,
            gone,
            _other: other,
            sent: 0,
            received: 0,
        }
    }

    /// Has the other worker read the sender's port.
    fn share(&mut self) {
        let Self { owner, helper, .. } = self;
        let worker = &mut owner.worker;
        let slot = worker.slots[&DOMAIN];
        let domain = domain(&mut worker.domains, slot).unwrap();
        domain.share(PortId(1), &worker.bell, &helper.mailbox, &mut worker.context);
        assert_eq!(worker.context.helped.len(), 1);
        helper.step();
        assert_eq!(helpers(&helper.worker), 1);
    }

    /// Sends frames as long as there is room, at most so many.
    fn send(&mut self, frames: u32) {
        let sender = self.sender.as_ref().unwrap();
        for _ in 0..frames {
            if sender.send(&frame(self.sent)).is_err() {
                return;
            }
            self.sent += 1;
        }
    }

    /// Takes frames that have arrived, which must be the next ones.
    fn take(&mut self) {
        let mut room = [0; 256];
        while let Ok(length) = (&self.receiver).read(&mut room) {
            assert_eq!(room[..length], frame(self.received), "frame {}", self.received);
            self.received += 1;
        }
    }

    fn pass(&mut self, vectors: u32) {
        for _ in 0..vectors {
            self.send(VECTOR);
            self.helper.step();
            self.owner.step();
            self.take();
        }
    }

    /// All that was sent has arrived, and nothing was dropped.
    fn check(&mut self) {
        self.helper.step();
        self.owner.step();
        self.take();
        assert_eq!(self.received, self.sent);
        let (answer, mut snapshot) = oneshot::channel();
        self.owner.worker.obey(Command::Snapshot(DOMAIN, answer));
        let total = snapshot.try_recv().unwrap().total;
        assert_eq!(
            (total.rx_frames, total.tx_frames),
            (self.sent.into(), self.sent.into())
        );
        assert!(total.drops.is_empty());
    }
}

fn helpers(worker: &Worker) -> usize {
    worker.helpers.iter().flatten().count()
}

fn frame(number: u32) -> [u8; 100] {
    let mut frame = [7; 100];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

#[test]
fn frames_keep_their_order_when_help_begins_and_ends() {
    let mut pair = Pair::new();
    for round in 0..20 {
        pair.pass(3);
        // Some are there that nobody has read yet.
        pair.send(VECTOR);
        pair.share();
        pair.pass(5);
        pair.send(VECTOR);
        match round % 2 {
            0 => pair.helper.worker.stop_helping(0),
            _ => pair.owner.worker.context.helped[0].end(),
        }
        pair.pass(1);
        pair.check();
        assert_eq!(helpers(&pair.helper.worker), 0);
        assert!(pair.owner.worker.context.helped.is_empty());
    }
}

#[test]
fn a_helper_does_not_read_more_than_the_owner_takes() {
    let mut pair = Pair::new();
    pair.share();
    // The receiver takes nothing.
    let mut last = None;
    while last != Some(pair.sent) {
        last = Some(pair.sent);
        pair.send(1000);
        pair.helper.step();
        pair.owner.step();
    }
    assert!(pair.sent < 3000, "{}", pair.sent);
    assert!(pair.owner.worker.timeout().is_some(), "somebody is held back");
    for _ in 0..100 {
        pair.take();
        pair.owner.step();
        pair.helper.step();
    }
    pair.check();
}

#[test]
fn all_that_a_client_has_sent_arrives_before_its_port_goes() {
    let mut pair = Pair::new();
    pair.share();
    pair.pass(2);
    pair.send(VECTOR);
    pair.sender = None;
    pair.check();
    assert_eq!(helpers(&pair.helper.worker), 0);
    pair.owner.step();
    assert!(matches!(
        pair.gone.try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    ));
}

#[test]
fn a_port_is_read_to_its_end_before_it_is_detached() {
    let mut pair = Pair::new();
    pair.share();
    pair.send(VECTOR);
    let (done, mut detached) = oneshot::channel();
    pair.owner.worker.obey(Command::Detach(DOMAIN, PortId(1), done));
    pair.owner.step();
    assert!(
        detached.try_recv().is_err(),
        "the other worker has not let go of it"
    );
    pair.check();
    assert_eq!(detached.try_recv(), Ok(()));
}

#[test]
fn a_port_that_is_removed_is_read_no_more() {
    let mut pair = Pair::new();
    pair.share();
    let (done, mut removed) = oneshot::channel();
    pair.owner.worker.obey(Command::RemoveDomain(DOMAIN, done));
    assert_eq!(removed.try_recv(), Ok(()));
    pair.helper.step();
    assert_eq!(helpers(&pair.helper.worker), 0);
    pair.owner.step();
    assert!(pair.owner.worker.context.helped.is_empty());
    assert!(pair.sender.unwrap().send(&frame(0)).is_err(), "nobody is left");
}

#[test]
fn a_domain_moves_while_a_port_is_read_by_another() {
    let mut pair = Pair::new();
    for _ in 0..10 {
        pair.share();
        pair.pass(2);
        pair.send(VECTOR);
        // To the helper itself, and from there to the one that was helped.
        let domain = pair.owner.worker.give(DOMAIN);
        std::mem::swap(&mut pair.owner, &mut pair.helper);
        pair.owner.worker.obey(Command::Adopt(DOMAIN, domain));
        pair.owner.step();
        pair.pass(2);
        pair.check();
        assert_eq!(
            (helpers(&pair.owner.worker), helpers(&pair.helper.worker)),
            (0, 0)
        );
    }
}

#[test]
fn help_allocates_nothing() {
    let mut pair = Pair::new();
    pair.share();
    pair.pass(20);
    assert_eq!(measure(|| pair.pass(200)).count_total, 0);
    pair.check();
}

#[test]
fn who_has_much_to_do_is_helped_by_who_sleeps() {
    let mut pair = Pair::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while pair.owner.worker.context.helped.is_empty() {
        assert!(Instant::now() < deadline, "nobody has helped");
        pair.helper.mailbox.bell.lie_down();
        pair.send(VECTOR);
        pair.owner.step();
        pair.take();
    }
    pair.helper.step();
    assert_eq!(helpers(&pair.helper.worker), 1);
    pair.pass(10);
    pair.check();
    // Hardly anything comes any more.
    while helpers(&pair.helper.worker) == 1 {
        assert!(Instant::now() < deadline, "help has not ended");
        std::thread::sleep(Duration::from_millis(100));
        pair.pass(1);
    }
    pair.check();
}

#[test]
fn who_has_much_to_do_helps_nobody() {
    let mut pair = Pair::new();
    let begun = Instant::now();
    while begun.elapsed() < 4 * Duration::from_millis(50) {
        // Asleep for once, but not idle.
        let moment = pair.owner.worker.context.fabric_now().as_millis();
        pair.helper.mailbox.bell.was_busy(u64::try_from(moment).unwrap());
        pair.helper.mailbox.bell.lie_down();
        pair.send(VECTOR);
        pair.owner.step();
        pair.take();
    }
    assert!(pair.owner.worker.context.helped.is_empty());
}

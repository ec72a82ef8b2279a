//! Long frames are copied from guest to guest, and for those who have no room are kept. What if something happens
//! meanwhile: to the frames, the memory, the rings, or either port.
//!
//! A frame is kept for half a second at most. On a busy machine that may be over before anything happens, so that frames
//! may be lost here, and are counted; what arrives is right, and everybody goes on.

use socket2::{Domain, SockAddr, Socket, Type};
use tests::ports::wait_ports;
use tests::switchd::Switchd;
use tests::vhost::{FrontEnd, GUEST, longs, words};
use tests::wait;
use virtio::Memory;
use virtio::config::OFFERED;

/// Frames of so many bytes are lent, and take three buffers.
const BYTES: usize = 9000;

/// A broadcast frame from station `n`.
fn frame(n: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..251_u8).cycle().take(BYTES).collect();
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, n]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A switch that keeps frames as long as it can for whoever has no room; a sender, of whose frames it keeps some; and
/// the receiver without buffers that they wait for.
fn held(frames: u8) -> (Switchd, FrontEnd, FrontEnd) {
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mtu", "9000"]);
    let receiver = card(&daemon, 1);
    let mut sender = card(&daemon, 2);
    for n in 0..frames {
        assert!(sender.send(&frame(n)), "frame {n}");
    }
    wait::until_true("a frame to be read", || daemon.domain("A").rx_frames > 0);
    (daemon, sender, receiver)
}

/// One more guest, which makes so many.
fn card(daemon: &Switchd, ports: usize) -> FrontEnd {
    let front_end = FrontEnd::with_card(&daemon.domain("A").sockets["vhost"], OFFERED);
    wait_ports(daemon, "A", ports);
    front_end
}

/// Sends one frame after the other until one has arrived.
fn passes(from: &mut FrontEnd, to: &mut FrontEnd) {
    to.give_buffers();
    wait::until_true("a frame to pass", || {
        from.send(&frame(99));
        to.try_receive().is_some_and(|(_, got)| got == frame(99))
    });
}

/// Everything that arrives until so many frames have arrived or were dropped.
fn all_that_arrives(daemon: &Switchd, to: &mut FrontEnd, frames: u64) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    wait::until_true("every frame to arrive or to be dropped", || {
        while let Some((_, frame)) = to.try_receive() {
            got.push(frame);
        }
        let drops = daemon.domain("A").drops;
        got.len() as u64 + drops.values().sum::<u64>() == frames
    });
    got
}

#[test]
fn frames_that_wait_are_not_changed_and_leave_their_guest_its_buffers() {
    // As many as it has buffers for.
    let (daemon, mut sender, mut receiver) = held(21);
    wait::until_true("the buffers to come back", || sender.send(&frame(21)));
    let empty = vec![0xaa; 0x8_0000];
    sender
        .memory
        .write(GUEST + 0x10_0000, &empty)
        .expect("our own memory");
    receiver.give_buffers();
    for got in all_that_arrives(&daemon, &mut receiver, 22) {
        // The last one may not have been read by then.
        assert!(
            got == frame(got[11]) || got[BYTES - 1] == 0xaa,
            "frame {}",
            got[11]
        );
    }
    for _ in 0..3 * 21 {
        passes(&mut sender, &mut receiver);
    }
}

#[test]
fn frames_go_to_whoever_takes_them_as_they_are_and_to_others() {
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mtu", "9000"]);
    let mut cards = [1, 2, 3].map(|ports| card(&daemon, ports));
    let old = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    old.connect(&SockAddr::unix(&daemon.domain("A").sockets["bess"]).expect("a path"))
        .expect("a port");
    old.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
    wait_ports(&daemon, "A", 4);
    cards.iter_mut().for_each(FrontEnd::give_buffers);
    // Lent and others in one batch, so many that the rings go round.
    for round in 0..40 {
        for n in 0..3 {
            let bytes = if n == 1 { 100 } else { BYTES };
            let sent = &frame(round * 3 + n)[..bytes];
            assert!(cards[0].send(sent), "round {round}");
        }
        for n in 0..3 {
            let bytes = if n == 1 { 100 } else { BYTES };
            let sent = &frame(round * 3 + n)[..bytes];
            let mut buffer = vec![0; BYTES + 1];
            let got = std::io::Read::read(&mut &old, &mut buffer).expect("a frame");
            assert!(buffer[..got] == *sent, "round {round}");
            assert!(
                cards[1].receive() == *sent && cards[2].receive() == *sent,
                "round {round}"
            );
        }
    }
    assert!(daemon.domain("A").drops.is_empty());
}

#[test]
fn memory_that_is_gone_when_lent_frames_are_copied_costs_its_guest_the_port_and_nobody_else_anything() {
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mtu", "9000"]);
    let (mut receiver, mut sender) = (card(&daemon, 1), card(&daemon, 2));
    receiver.give_buffers();
    // The head is there, of the rest not all.
    let (first, lost) = (GUEST + 0x10_0000, GUEST + 0x10_1000);
    sender
        .memory
        .write(first + 12, &frame(1)[..2000])
        .expect("our own memory");
    sender.memory.0.set_len(0x10_1000).expect("a shorter file");
    let layout = sender.layouts[1];
    let memory = &sender.memory;
    virtio::driver::describe(memory, layout.descriptors, first, 4096, 1, 1).expect("our own memory");
    virtio::driver::describe(memory, layout.descriptors + 16, lost, 4096, 0, 0).expect("our own memory");
    memory.store(layout.available + 4, 0).expect("our own memory");
    memory.store(layout.available + 2, 1).expect("our own memory");
    sender.kick(1);
    sender.wait_closed();
    wait_ports(&daemon, "A", 1);
    assert!(receiver.try_receive().is_none());
    passes(&mut card(&daemon, 2), &mut receiver);
    assert_eq!(daemon.stats().daemon.refused.get("bad-guest"), Some(&1));
}

#[test]
fn memory_that_goes_while_lent_frames_are_written_there_costs_that_guest_the_port() {
    let (daemon, mut sender, mut receiver) = held(1);
    passes(&mut sender, &mut receiver);
    receiver.memory.0.set_len(0x8_0000).expect("a shorter file");
    wait::until_true("a frame to be sent", || sender.send(&frame(3)));
    receiver.wait_closed();
    wait_ports(&daemon, "A", 1);
    passes(&mut sender, &mut card(&daemon, 2));
}

#[test]
fn a_guest_that_leaves_while_its_frames_wait_leaves_nothing_behind() {
    let (daemon, sender, mut receiver) = held(2);
    drop(sender);
    wait_ports(&daemon, "A", 1);
    passes(&mut card(&daemon, 2), &mut receiver);
}

#[test]
fn those_that_frames_wait_for_may_leave_or_take_too_long() {
    let (daemon, mut sender, receiver) = held(21);
    drop(receiver);
    wait_ports(&daemon, "A", 1);
    let mut receiver = card(&daemon, 2);
    wait::until_true("frames to be dropped for want of buffers", || {
        sender.send(&frame(22));
        daemon.domain("A").drops.contains_key("queue-full")
    });
    passes(&mut sender, &mut receiver);
}

#[test]
fn a_ring_that_is_stopped_while_its_frames_wait_goes_on_behind_them() {
    let (daemon, mut sender, mut receiver) = held(2);
    // The answer comes when the frames have gone or were given up.
    assert_eq!(sender.answered(11, &words(&[1, 0])), words(&[1, 2]));
    assert_eq!(sender.answered(11, &words(&[0, 0])), words(&[0, 0]));
    wait_ports(&daemon, "A", 1);
    for queue in 0..2 {
        let number = u32::try_from(queue).expect("0 or 1");
        if queue == 1 {
            sender.acknowledged(10, &words(&[number, 2]), &[]);
        }
        sender.acknowledged(12, &longs(&[number.into()]), &[sender.kick_fd(queue)]);
    }
    wait_ports(&daemon, "A", 2);
    passes(&mut sender, &mut receiver);
    // New memory, with nothing of the old.
    sender.share_memory();
    passes(&mut sender, &mut receiver);
}

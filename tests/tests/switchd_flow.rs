//! A guest that does not read costs the others a bounded wait and nothing else; one that is gone frees its port.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::ctl::PortRow;
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac, seed};
use tests::program::Process;
use tests::switchd::Switchd;
use tests::wait::{PATIENCE, until_true};

/// As long as switchd allows, so that a test that is not served for a while by a busy machine is not taken for stuck.
const PATIENT: &[&str] = &["--hold-ms", "500"];

/// Frames a socket takes that is not connected to the sender: `net.unix.max_dgram_qlen` and one.
fn queue() -> u64 {
    let limit = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").expect("a Linux system");
    limit.trim().parse::<u64>().expect("a number") + 1
}

fn drop_count(port: &PortRow, reason: &str) -> u64 {
    port.drops.get(reason).copied().unwrap_or(0)
}

/// Receives frames with seeds from `first` on, so many, in order and without a gap.
#[track_caller]
fn receive_all(client: &Client, first: u32, count: u32) {
    let mut longest = Duration::ZERO;
    for wanted in first..first + count {
        let begun = Instant::now();
        let Some(got) = client.recv_within(PATIENCE) else {
            panic!("frame {wanted} has not come; the longest wait before it was {longest:?}");
        };
        assert_eq!(
            seed(&got),
            wanted,
            "lost or swapped; the longest wait was {longest:?}"
        );
        longest = longest.max(begun.elapsed());
    }
}

/// A client process; dropping it ends it and its helper.
struct Peer {
    process: Process,
    helper: Option<Pid>,
}

impl Peer {
    fn start(what: &str, switchd: &Switchd, domain: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peer"));
        command.arg(what).arg(switchd.uml_socket(domain));
        let mut process = Process::start_as_is(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut lines = BufReader::new(process.child().stdout.take().expect("a pipe")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        let helper = (what == "abandon").then(|| Pid::from_raw(line().parse().expect("a process number")));
        let attached = line();
        assert!(attached.starts_with("attached "), "{attached}");
        Self { process, helper }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(helper) = self.helper {
            // It may have been ended by the test.
            let _ = kill(helper, Signal::SIGKILL);
        }
    }
}

#[test]
fn the_others_get_everything_after_a_bounded_wait_and_the_stuck_one_is_served_again() {
    const FRAMES: u32 = 2000;
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    switchd.add(&["A"]);
    let [sender, reader, stuck] = [(); 3].map(|()| switchd.attach("A"));
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| receive_all(&reader, 0, FRAMES));
        for n in 0..FRAMES {
            sender.send(&frame(BROADCAST, mac(1), 100, n));
        }
    });
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(500), "nobody waited: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");

    let row = switchd.port("A", 3);
    assert_eq!(row.tx_frames, queue());
    let (full, bypassed) = (drop_count(&row, "queue-full"), drop_count(&row, "bypassed"));
    assert!(full > 0 && bypassed > 0, "{row:?}");
    assert_eq!(row.tx_frames + full + bypassed, u64::from(FRAMES), "{row:?}");
    assert!(switchd.port("A", 2).drops.is_empty());
    assert_eq!(switchd.port("A", 2).tx_frames, u64::from(FRAMES));

    // What it kept is the beginning, in order.
    receive_all(&stuck, 0, u32::try_from(queue()).expect("a small number"));
    let mut n = FRAMES;
    until_true("it is served again", || {
        sender.send(&frame(BROADCAST, mac(1), 100, n));
        receive_all(&reader, n, 1);
        n += 1;
        stuck.recv_within(Duration::from_millis(1)).is_some()
    });
    // And from now on with everything.
    for n in n..n + 100 {
        sender.send(&frame(BROADCAST, mac(1), 100, n));
        receive_all(&reader, n, 1);
        while seed(&stuck.recv()) != n {}
    }
}

#[test]
fn without_a_hold_time_frames_for_a_full_queue_are_dropped_at_once() {
    let mut switchd = Switchd::prepared();
    switchd.launch(&["--hold-ms", "0"]);
    switchd.add(&["A"]);
    let [sender, reader, stuck] = [(); 3].map(|()| switchd.attach("A"));
    for n in 0..200 {
        sender.send(&frame(BROADCAST, mac(1), 100, n));
        receive_all(&reader, n, 1);
    }
    let row = switchd.port("A", 3);
    assert_eq!(row.tx_frames, queue());
    assert_eq!(
        row.drops.into_iter().collect::<Vec<_>>(),
        [("queue-full".to_owned(), 200 - queue())]
    );
    // There is room again: no bypass to wait for.
    receive_all(&stuck, 0, u32::try_from(queue()).expect("a small number"));
    sender.send(&frame(BROADCAST, mac(1), 100, 200));
    receive_all(&stuck, 200, 1);
}

#[test]
fn a_stopped_guest_does_not_stop_the_others() {
    const FRAMES: u32 = 1000;
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    switchd.add(&["A"]);
    let [sender, reader] = [(); 2].map(|()| switchd.attach("A"));
    let peer = Peer::start("hold", &switchd, "A");
    peer.process.freeze();
    thread::scope(|scope| {
        scope.spawn(|| receive_all(&reader, 0, FRAMES));
        for n in 0..FRAMES {
            sender.send(&frame(BROADCAST, mac(1), 100, n));
        }
    });
    let stopped = switchd.port("A", 3);
    assert!(stopped.tx_frames <= queue() + 1, "{stopped:?}");
    assert_eq!(
        stopped.tx_frames + stopped.drops.values().sum::<u64>(),
        u64::from(FRAMES)
    );
    peer.process.signal(Signal::SIGCONT);
    let mut n = FRAMES;
    until_true("it is served again", || {
        sender.send(&frame(BROADCAST, mac(1), 100, n));
        receive_all(&reader, n, 1);
        n += 1;
        switchd.port("A", 3).tx_frames > stopped.tx_frames
    });
}

#[test]
fn a_killed_guest_frees_its_port_although_its_helpers_keep_its_sockets() {
    let switchd = Switchd::with_domain(&["A"]);
    let [sender, reader] = [(); 2].map(|()| switchd.attach("A"));
    let mut peer = Peer::start("abandon", &switchd, "A");
    let path = switchd.uml_socket("A").with_extension("port").join("3");
    assert_eq!(
        switchd.port("A", 3).peer.map(|peer| peer.pid),
        Some(peer.process.child().id())
    );
    assert!(path.exists());
    peer.process.signal(Signal::SIGKILL);
    until_true("the port is free", || switchd.ports("A").len() == 2);
    let helper = peer.helper.expect("a helper");
    kill(helper, None).expect("the helper is alive and has the sockets");
    assert!(!path.exists());
    // The number is free, and nobody is held back by the queue of the dead.
    let next = switchd.attach("A");
    assert_eq!(next.switch_path(), path.canonicalize().expect("a socket"));
    for n in 0..100 {
        sender.send(&frame(BROADCAST, mac(1), 100, n));
        receive_all(&reader, n, 1);
        receive_all(&next, n, 1);
    }
    assert!(switchd.ports("A").iter().all(|port| port.drops.is_empty()));
}

#[test]
fn flows_keep_their_order_under_back_pressure_and_nothing_is_lost() {
    const FRAMES: u32 = 1500;
    const SENDERS: u8 = 3;
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    switchd.add(&["S", "--mode", "switch"]);
    let receivers = [switchd.attach("S"), switchd.attach("S")];
    for (n, receiver) in (100u8..).zip(&receivers) {
        receiver.send(&frame(BROADCAST, mac(n), 60, 0));
    }
    // Each has the other's.
    for receiver in &receivers {
        receiver.recv();
    }
    until_true("both are known", || switchd.domain("S").stations == 2);
    let senders: Vec<Client> = (0..SENDERS).map(|_| switchd.attach("S")).collect();
    thread::scope(|scope| {
        for (n, sender) in (1u8..).zip(&senders) {
            scope.spawn(move || {
                for seed in 0..FRAMES {
                    let to = 100 + u8::from(seed % 2 == 1);
                    sender.send(&frame(mac(to), mac(n), 60 + (seed as usize * 7) % 1400, seed));
                }
            });
        }
        for (parity, receiver) in (0..).zip(&receivers) {
            scope.spawn(move || {
                let mut next = [parity; SENDERS as usize];
                for _ in 0..u32::from(SENDERS) * FRAMES / 2 {
                    let got = receiver.recv();
                    let sender = usize::from(got[11] - 1);
                    assert_eq!(
                        seed(&got),
                        next[sender],
                        "of sender {sender} at receiver {parity}"
                    );
                    next[sender] += 2;
                }
            });
        }
    });
    assert!(switchd.domain("S").drops.is_empty(), "{:?}", switchd.domain("S"));
}

/// A sender that is held back because one receiver is full and has more to say.
fn held_back(switchd: &Switchd, frames: u32) -> [Client; 3] {
    switchd.add(&["A"]);
    let clients = [(); 3].map(|()| switchd.attach("A"));
    for n in 0..frames {
        clients[0].send(&frame(BROADCAST, mac(1), 100, n));
    }
    until_true("the queue is full", || switchd.port("A", 3).tx_frames == queue());
    clients
}

#[test]
fn whoever_waits_for_a_port_that_leaves_goes_on() {
    const FRAMES: u32 = 60;
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    let [sender, reader, stuck] = held_back(&switchd, FRAMES);
    drop(stuck);
    receive_all(&reader, 0, FRAMES);
    until_true("two are left", || switchd.ports("A").len() == 2);
    sender.send(&frame(BROADCAST, mac(1), 100, FRAMES));
    receive_all(&reader, FRAMES, 1);
    // Every copy is accounted for, also those of the port that has left.
    let domain = switchd.domain("A");
    let dropped: u64 = domain.drops.values().sum();
    assert!(dropped > 0, "{domain:?}");
    assert_eq!(domain.rx_frames, u64::from(FRAMES) + 1);
    assert!(
        domain.tx_frames + dropped <= 2 * u64::from(FRAMES) + 1,
        "{domain:?}"
    );
    assert!(domain.tx_frames >= u64::from(FRAMES) + 1 + queue(), "{domain:?}");
    assert!(switchd.ports("A").iter().all(|port| port.drops.is_empty()));
}

#[test]
fn a_port_that_leaves_while_it_is_held_back_loses_nothing_uncounted() {
    const FRAMES: u32 = 60;
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    let [sender, reader, stuck] = held_back(&switchd, FRAMES);
    drop(sender);
    receive_all(&reader, 0, FRAMES);
    until_true("the sender has left", || switchd.ports("A").len() == 2);
    let mut next = 0;
    while let Some(got) = stuck.recv_within(Duration::from_millis(100)) {
        assert!(seed(&got) >= next, "swapped");
        next = seed(&got) + 1;
    }
    let row = switchd.port("A", 3);
    let dropped: u64 = row.drops.values().sum();
    assert_eq!(row.tx_frames + dropped, u64::from(FRAMES), "{row:?}");
    // The port that was full works for the next sender.
    let newcomer = switchd.attach("A");
    let mut n = 1000;
    until_true("it is served again", || {
        newcomer.send(&frame(BROADCAST, mac(4), 100, n));
        n += 1;
        receive_all(&reader, n - 1, 1);
        stuck.recv_within(Duration::from_millis(1)).is_some()
    });
}

#[test]
fn a_domain_that_is_removed_while_ports_wait_lets_them_go() {
    let mut switchd = Switchd::prepared();
    switchd.launch(PATIENT);
    let clients = held_back(&switchd, 60);
    switchd.add(&["B"]);
    let begun = Instant::now();
    switchd.run(&["domain", "rm", "A"]).ok();
    for client in &clients {
        client.wait_for_hangup();
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    let (a, b) = (switchd.attach("B"), switchd.attach("B"));
    a.send(&frame(BROADCAST, mac(1), 100, 1));
    receive_all(&b, 1, 1);
}

#[test]
fn everything_arrives_without_what_makes_it_fast() {
    const FRAMES: u32 = 500;
    let mut switchd = Switchd::prepared();
    switchd.launch(&["--hold-ms", "500", "--without", "batches,look,offload"]);
    switchd.add(&["A"]);
    let [sender, reader] = [(); 2].map(|()| switchd.attach("A"));
    thread::scope(|scope| {
        scope.spawn(|| receive_all(&reader, 0, FRAMES));
        for n in 0..FRAMES {
            sender.send(&frame(BROADCAST, mac(1), 1514, n));
        }
    });
    assert!(switchd.port("A", 2).drops.is_empty());
}

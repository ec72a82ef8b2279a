//! Vector guests attach to a domain's `.bess` socket, alone and among others.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::Socket;
use tests::ports::{Guest, transfer, vector_client, wait_ports};
use tests::switchd::Switchd;
use tests::wait;

/// The words that give a guest its only interface in domain A.
fn vector(daemon: &Switchd, more: &str) -> String {
    let socket = &daemon.domain("A").sockets["bess"];
    format!("vec0:transport=bess,dst={socket}{more}")
}

fn legacy(daemon: &Switchd) -> String {
    format!("eth0=daemon,,unix,{}", daemon.domain("A").sockets["uml"])
}

#[test]
fn two_vector_guests_ping_and_transfer() {
    let daemon = Switchd::with_domain(&["A"]);
    let word = vector(&daemon, "");
    transfer(&daemon, &word, &word, 1500);
    assert!(daemon.ports("A").iter().all(|port| port.kind == "bess"));
}

#[test]
fn old_and_new_guests_share_a_domain() {
    let daemon = Switchd::with_domain(&["A", "--mode", "switch"]);
    transfer(&daemon, &vector(&daemon, ""), &legacy(&daemon), 1500);
}

#[test]
fn old_guests_send_to_new_ones() {
    let daemon = Switchd::with_domain(&["A"]);
    transfer(&daemon, &legacy(&daemon), &vector(&daemon, ""), 1500);
}

#[test]
fn jumbo_frames_pass_where_the_domain_has_them() {
    let daemon = Switchd::with_domain(&["A", "--mtu", "9000"]);
    let word = vector(&daemon, ",mtu=9000");
    transfer(&daemon, &word, &word, 9000);
    let row = daemon.domain("A");
    assert!(
        row.rx_bytes / row.rx_frames > 2000,
        "frames stayed small: {row:?}"
    );
}

#[test]
fn a_guest_comes_back_with_its_interface_and_goes_with_its_process() {
    let daemon = Switchd::with_domain(&["A"]);
    let script = "ip link set vec0 up; echo FIRST\n\
                  until [ -e /mnt/down ]; do true; done\n\
                  ip link set vec0 down\n\
                  until [ -e /mnt/up ]; do true; done\n\
                  ip link set vec0 up; echo SECOND\n\
                  sleep 100";
    let mut guest = Guest::boot(daemon.home(), "a", script, &[vector(&daemon, "")]);
    guest.wait_console("FIRST");
    wait_ports(&daemon, "A", 1);
    fs::write(daemon.home().join("down"), "").unwrap();
    wait_ports(&daemon, "A", 0);
    fs::write(daemon.home().join("up"), "").unwrap();
    guest.wait_console("SECOND");
    let ports = wait_ports(&daemon, "A", 1);
    assert_eq!(ports[0].peer.unwrap().pid, guest.pid());
    // Its helper processes live on with the connection open; the port goes all the same.
    guest.kill_main();
    wait_ports(&daemon, "A", 0);
}

fn receive(mut socket: &Socket) -> Vec<u8> {
    let mut frame = vec![0; 70_000];
    let count = socket.read(&mut frame).unwrap();
    frame.truncate(count);
    frame
}

/// A broadcast frame from station `n` with a sequence number.
fn frame(n: u8, sequence: u32, bytes: usize) -> Vec<u8> {
    let mut frame = vec![n; bytes];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, n]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&sequence.to_be_bytes());
    frame
}

#[test]
fn what_a_client_sent_last_arrives_and_bad_records_are_counted() {
    let daemon = Switchd::with_domain(&["A"]);
    let (mut sender, receiver) = (vector_client(&daemon, "A"), vector_client(&daemon, "A"));
    wait_ports(&daemon, "A", 2);
    let longest = frame(1, 0, 1514);
    for bytes in [&longest[..], &[], &[1; 13], &frame(1, 1, 1515), &frame(1, 2, 60)] {
        sender.write_all(bytes).unwrap();
        if bytes.is_empty() {
            // Writing nothing with `write_all` does nothing.
            sender.send(bytes).unwrap();
        }
    }
    drop(sender);
    assert_eq!(receive(&receiver), longest);
    assert_eq!(receive(&receiver), frame(1, 2, 60));
    wait_ports(&daemon, "A", 1);
    let drops = daemon.domain("A").drops;
    assert_eq!(
        (drops.get("runt"), drops.get("giant"), drops.len()),
        (Some(&2), Some(&1), 2),
        "{drops:?}"
    );
}

#[test]
fn the_socket_is_the_users_alone_and_goes_with_the_domain() {
    let daemon = Switchd::with_domain(&["A"]);
    let path = daemon.domain("A").sockets["bess"].clone();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let waiting = vector_client(&daemon, "A");
    wait_ports(&daemon, "A", 1);
    daemon.run(&["domain", "rm", "A"]).ok();
    assert!(!fs::exists(&path).unwrap());
    assert_eq!((&waiting).read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn a_reader_that_stops_leaves_no_sender_unread() {
    // Half a second is the promise. On a busy machine anything may be held up for longer, but not every time.
    let limit = Duration::from_millis(800);
    let mut waits = Vec::new();
    while waits.last().is_none_or(|wait| *wait >= limit) {
        assert!(waits.len() < 5, "{waits:?}");
        waits.push(longest_wait_beside_a_stuck_reader());
    }
}

fn longest_wait_beside_a_stuck_reader() -> Duration {
    let daemon = Switchd::with_domain(&["A"]);
    let (mut sender, stuck) = (vector_client(&daemon, "A"), vector_client(&daemon, "A"));
    wait_ports(&daemon, "A", 2);
    sender.set_write_timeout(Some(wait::PATIENCE)).unwrap();
    let (mut longest, start) = (Duration::ZERO, Instant::now());
    let mut sequence = 0;
    while start.elapsed() < Duration::from_secs(2) {
        let before = Instant::now();
        sender.write_all(&frame(1, sequence, 1514)).unwrap();
        longest = longest.max(before.elapsed());
        sequence += 1;
    }
    let port = daemon
        .ports("A")
        .into_iter()
        .find(|port| port.tx_frames > 0)
        .unwrap();
    assert!(port.drops.contains_key("bypassed"), "{port:?}");
    drop(stuck);
    longest
}

#[test]
fn many_senders_share_one_receiver_evenly() {
    const SENDERS: u8 = 5;
    // On a busy machine the receiver may not run for a while.
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mode", "switch"]);
    let receiver = vector_client(&daemon, "A");
    let mut senders: Vec<_> = (0..SENDERS).map(|_| vector_client(&daemon, "A")).collect();
    wait_ports(&daemon, "A", usize::from(SENDERS) + 1);
    // The switch learns where the receiver is, so that the senders do not have to read.
    (&receiver).write_all(&frame(99, 0, 60)).unwrap();
    for sender in &senders {
        assert_eq!(receive(sender)[11], 99);
    }
    let over = AtomicBool::new(false);
    let mut counts = [0_u32; SENDERS as usize];
    std::thread::scope(|scope| {
        for (n, sender) in (0..).zip(&mut senders) {
            let over = &over;
            scope.spawn(move || {
                let mut sequence = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut bytes = frame(n, sequence, 1514);
                    bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 99]);
                    sender.write_all(&bytes).unwrap();
                    sequence += 1;
                }
            });
        }
        let mut expected = [0_u32; SENDERS as usize];
        let start = Instant::now();
        let mut in_order = true;
        // Slower than one sender, so that all of them wait for it. A busy machine may favour one for a while, not for long.
        while start.elapsed() < Duration::from_secs(3)
            || (!is_fair(&counts) && start.elapsed() < Duration::from_secs(15))
        {
            let bytes = receive(&receiver);
            let n = usize::from(bytes[11]);
            let sequence = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
            in_order &= sequence == expected[n];
            expected[n] = sequence + 1;
            if start.elapsed() > Duration::from_secs(1) {
                counts[n] += 1;
            }
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_micros(20) {
                std::hint::spin_loop();
            }
        }
        let drops = daemon.domain("A").drops;
        over.store(true, Ordering::Relaxed);
        // The senders see the flag only when they are not blocked.
        drop(receiver);
        assert!(in_order && drops.is_empty(), "out of order, or lost: {drops:?}");
    });
    assert!(is_fair(&counts), "unequal shares: {counts:?}");
    wait_ports(&daemon, "A", usize::from(SENDERS));
}

/// True if every count is within 20 % of its share.
fn is_fair(counts: &[u32]) -> bool {
    let share = counts.iter().sum::<u32>() / u32::try_from(counts.len()).unwrap();
    counts.iter().all(|count| count.abs_diff(share) * 5 <= share)
}

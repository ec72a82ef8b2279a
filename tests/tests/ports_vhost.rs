//! Guests that share their memory with the switch (vhost-user): real ones, and front ends that keep to the rules or not.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use fabric::offload::VNET_HEADER_BYTES;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::ctl::PortRow;
use tests::ports::{Guest, load_modules, transfer, vector_client, wait_ports};
use tests::switchd::Switchd;
use tests::vhost::{FrontEnd, GUEST, MEMORY, Resources, SIZE, USER, longs, no_eventfd, resources, words};
use tests::wait;
use virtio::Memory;
use virtio::config::{OFFERED, feature};

/// Where guests of domain A connect.
fn socket(daemon: &Switchd) -> String {
    daemon.domain("A").sockets["vhost"].clone()
}

/// The word that gives a guest its only interface in domain A.
fn word(daemon: &Switchd) -> String {
    format!("virtio_uml.device={}:1", socket(daemon))
}

fn bess(daemon: &Switchd, more: &str) -> String {
    format!(
        "vec0:transport=bess,dst={}{more}",
        daemon.domain("A").sockets["bess"]
    )
}

#[test]
fn two_guests_ping_and_transfer() {
    let daemon = Switchd::with_domain(&["A"]);
    let word = word(&daemon);
    transfer(&daemon, &word, &word, 1500);
    for port in daemon.ports("A") {
        assert_eq!(port.kind, "vhost");
    }
}

#[test]
fn jumbo_frames_pass_between_kinds() {
    let daemon = Switchd::with_domain(&["A", "--mtu", "9000"]);
    transfer(&daemon, &word(&daemon), &bess(&daemon, ",mtu=9000"), 9000);
}

#[test]
fn super_frames_are_cut_for_old_guests() {
    let daemon = Switchd::with_domain(&["A", "--mode", "switch"]);
    let old = format!("eth0=daemon,,unix,{}", daemon.domain("A").sockets["uml"]);
    transfer(&daemon, &word(&daemon), &old, 1500);
}

#[test]
fn vde_guests_send_to_new_ones() {
    let daemon = Switchd::with_domain(&["A"]);
    let old = format!("eth0=vde,{}", daemon.domain("A").sockets["vde"]);
    transfer(&daemon, &old, &word(&daemon), 1500);
}

#[test]
fn a_guest_is_known_by_name_and_address_and_goes_with_its_process() {
    let daemon = Switchd::with_domain(&["A"]);
    let modules = load_modules(daemon.home());
    let script = format!("{modules}cat /sys/class/net/eth*/address; echo CARDS; sleep 100");
    // Two cards in one domain have two addresses.
    let mut guest = Guest::boot(daemon.home(), "pc1", &script, &[word(&daemon), word(&daemon)]);
    guest.wait_console("CARDS");
    let console = guest.console();
    assert!(
        console.contains("6e:5f:98:37:0c:07"),
        "netkit's address of pc1's eth0: {console}"
    );
    let ports = wait_ports(&daemon, "A", 2);
    let mut names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["pc1:eth0", "pc1:eth1"]);
    assert_eq!(ports[0].peer.expect("a process").pid, guest.pid());
    // Its helper processes live on with the connection open; the port goes all the same.
    guest.kill_main();
    wait_ports(&daemon, "A", 0);
}

/// A broadcast frame from station `n`.
fn frame(n: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![n; bytes];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, n]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A TCP frame of so many payload bytes, to be cut into segments of 1,000, and its header.
fn super_frame(payload: usize) -> ([u8; VNET_HEADER_BYTES + 2], Vec<u8>) {
    let mut frame = frame(1, 14);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = u16::try_from(40 + payload).expect("an IP packet");
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([
        0x12, 0x34, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame.extend((0..payload).map(|i| u8::try_from(i % 251).expect("a byte")));
    let mut header = [0; VNET_HEADER_BYTES + 2];
    let fields = [54_u16, 1000, 34, 16];
    header[..2].copy_from_slice(&[1, 1]);
    for (place, word) in header[2..].chunks_exact_mut(2).zip(fields) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    (header, frame)
}

#[test]
fn frames_pass_whatever_was_agreed_on() {
    pass_whatever_was_agreed_on(&Switchd::with_domain(&["A"]));
}

#[test]
fn a_worker_that_looks_for_frames_misses_none_and_sleeps_when_there_are_none() {
    let daemon = Switchd::start_with(&["--poll-us", "1000", "--workers", "1"]);
    daemon.add(&["A"]);
    pass_whatever_was_agreed_on(&daemon);
    // The card that is left has sent; a worker that still looked would use a processor, or half of a busy one.
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (mut since, mut before) = (Instant::now(), used());
    wait::until_true("a second without work", || {
        if used() > before + 1 {
            (since, before) = (Instant::now(), used());
        }
        since.elapsed() >= Duration::from_secs(1)
    });
}

/// Frames between cards that agree on one thing and another.
fn pass_whatever_was_agreed_on(daemon: &Switchd) {
    let socket = socket(daemon);
    let other = FrontEnd::with_card(&socket, OFFERED);
    let mut other = wait_given(daemon, other, 1);
    let base = feature::PROTOCOL_FEATURES;
    for bits in [
        base,
        base | feature::MRG_RXBUF,
        base | feature::VERSION_1,
        base | feature::VERSION_1 | feature::EVENT_INDEX,
        OFFERED & !feature::EVENT_INDEX,
        OFFERED,
    ] {
        let mut card = wait_given(daemon, FrontEnd::with_card(&socket, bits), 2);
        // More than the ring has entries, in both directions.
        for n in 0..2 * SIZE {
            let bytes = 60 + usize::from(n) * 11;
            wait::until_true("room in the ring", || card.send(&frame(1, bytes)));
            assert_eq!(other.receive(), frame(1, bytes), "{bits:#x}");
            wait::until_true("room in the ring", || other.send(&frame(2, bytes)));
            assert_eq!(card.receive(), frame(2, bytes), "{bits:#x}");
        }
        drop(card);
        wait_ports(daemon, "A", 1);
    }
    assert!(daemon.domain("A").drops.is_empty());
}

/// A front end whose port is there, with all its buffers given.
fn wait_given(daemon: &Switchd, mut front_end: FrontEnd, ports: usize) -> FrontEnd {
    wait_ports(daemon, "A", ports);
    front_end.give_buffers();
    front_end
}

#[test]
fn a_super_frame_goes_whole_to_those_who_take_it_and_in_segments_to_others() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mut sender = FrontEnd::with_card(&socket, OFFERED);
    let mut able = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 2);
    let plain =
        OFFERED & !(feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_USO4 | feature::GUEST_USO6);
    let mut plain = wait_given(&daemon, FrontEnd::with_card(&socket, plain), 3);
    let old = vector_client(&daemon, "A");
    wait_ports(&daemon, "A", 4);

    let (header, frame) = super_frame(40_500);
    assert!(sender.send_with(&header, &frame));
    let (got_header, got) = wait::until("the super-frame", || able.try_receive());
    assert_eq!(got, frame);
    // The count of buffers is ours: 4096 bytes each.
    assert_eq!(got_header[..10], header[..10]);
    assert_eq!(got_header[10..], [10, 0]);
    let mut from_plain = Vec::new();
    let mut from_old = Vec::new();
    for n in 0..41 {
        let payload = if n == 40 { 500 } else { 1000 };
        let segment = plain.receive();
        let mut buffer = vec![0; 2000];
        let bytes = std::io::Read::read(&mut &old, &mut buffer).unwrap();
        assert_eq!(
            (segment.len(), bytes),
            (54 + payload, 54 + payload),
            "segment {n}"
        );
        assert_eq!(segment, buffer[..bytes]);
        from_plain.extend_from_slice(&segment[54..]);
        from_old.extend_from_slice(&buffer[54..bytes]);
    }
    assert_eq!(
        (from_plain.as_slice(), from_old.as_slice()),
        (&frame[54..], &frame[54..])
    );
    let ports = daemon.ports("A");
    let frames = |port: &PortRow| (port.rx_frames, port.tx_frames);
    let mut counted: Vec<_> = ports.iter().map(frames).collect();
    counted.sort_unstable();
    assert_eq!(counted, [(0, 1), (0, 41), (0, 41), (1, 0)]);
    assert!(ports.iter().all(|port| port.drops.is_empty()), "{ports:?}");
}

#[test]
fn a_guest_without_buffers_holds_its_senders_back_and_gets_what_was_not_dropped() {
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A"]);
    let socket = socket(&daemon);
    let mut receiver = FrontEnd::with_card(&socket, OFFERED);
    let mut sender = FrontEnd::with_card(&socket, OFFERED);
    wait_ports(&daemon, "A", 2);
    for n in 0..10 {
        assert!(sender.send(&frame(1, 100 + n)));
    }
    wait::until_true("a frame to be read", || daemon.domain("A").rx_frames > 0);
    receiver.give_buffers();
    // On a busy machine the buffers may come too late for some.
    let mut got = Vec::new();
    wait::until_true("every frame to arrive or to be dropped", || {
        while let Some((_, frame)) = receiver.try_receive() {
            got.push(frame.len());
        }
        let drops = daemon.domain("A").drops;
        got.len() as u64 + drops.values().sum::<u64>() == 10
    });
    assert!(
        got.is_sorted() && got.iter().all(|bytes| (100..110).contains(bytes)),
        "{got:?}"
    );
    // Whatever has been, the guest has room now and gets what comes.
    wait::until_true("a frame to arrive", || {
        sender.send(&frame(1, 200));
        receiver
            .try_receive()
            .is_some_and(|(_, frame)| frame.len() == 200)
    });
}

#[test]
fn a_queue_that_was_stopped_goes_on_where_it_was() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mut receiver = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 1);
    let mut sender = FrontEnd::with_card(&socket, OFFERED);
    wait_ports(&daemon, "A", 2);
    for n in 1..4 {
        assert!(sender.send(&frame(n, 60)));
        assert_eq!(receiver.receive(), frame(n, 60));
    }
    assert_eq!(sender.answered(11, &words(&[1, 0])), words(&[1, 3]));
    assert_eq!(sender.answered(11, &words(&[0, 0])), words(&[0, 0]));
    wait_ports(&daemon, "A", 1);
    // Sent while it stands still.
    assert!(sender.send(&frame(4, 60)));
    for queue in 0..2 {
        let number = u32::try_from(queue).unwrap();
        if queue == 1 {
            sender.acknowledged(10, &words(&[number, 3]), &[]);
        }
        sender.acknowledged(12, &longs(&[number.into()]), &[sender.kick_fd(queue)]);
    }
    assert_eq!(receiver.receive(), frame(4, 60));
    // The same with new memory: the port is another one, in the same place.
    sender.share_memory();
    assert!(sender.send(&frame(5, 60)));
    assert_eq!(receiver.receive(), frame(5, 60));
    assert!(daemon.domain("A").drops.is_empty());
}

#[test]
fn the_socket_is_the_users_alone_and_goes_with_the_domain() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut running = FrontEnd::with_card(&socket, OFFERED);
    let mut waiting = FrontEnd::connect(&socket);
    wait_ports(&daemon, "A", 1);
    daemon.run(&["domain", "rm", "A"]).ok();
    assert!(!fs::exists(&socket).unwrap());
    running.wait_closed();
    waiting.wait_closed();
}

#[test]
fn a_port_that_is_ended_hangs_up() {
    let daemon = Switchd::with_domain(&["A"]);
    let mut card = FrontEnd::with_card(socket(&daemon), OFFERED);
    let id = wait_ports(&daemon, "A", 1)[0].id.to_string();
    daemon.run(&["port", "rm", "A", &id]).ok();
    card.wait_closed();
    wait_ports(&daemon, "A", 0);
}

/// Something a front end does that it must not; it has a running card and another beside it.
type Crime = (&'static str, fn(&mut FrontEnd));

/// What is wrong with rings and memory while they are used.
const CRIMES: [Crime; 12] = [
    ("a buffer is said to be where no memory is", |it| {
        send_descriptor(it, GUEST + MEMORY - 10, 100, 0, 0);
    }),
    ("a buffer wraps around", |it| {
        send_descriptor(it, u64::MAX - 10, 100, 0, 0)
    }),
    ("a chain is a loop", |it| send_descriptor(it, GUEST, 100, 1, 0)),
    ("a chain leaves its table", |it| {
        send_descriptor(it, GUEST, 100, 1, SIZE)
    }),
    ("a table is within itself", |it| {
        send_descriptor(it, it.layouts[1].descriptors, 16, 4, 0);
    }),
    ("a table is of no size", |it| send_descriptor(it, GUEST, 17, 4, 0)),
    ("a buffer to be written is sent", |it| {
        send_descriptor(it, GUEST, 100, 2, 0)
    }),
    ("a head is beyond the table", |it| {
        it.memory.store(it.layouts[1].available + 4, SIZE).unwrap();
        it.memory.store(it.layouts[1].available + 2, 1).unwrap();
        it.kick(1);
    }),
    ("more is available than there can be", |it| {
        it.memory.store(it.layouts[1].available + 2, 40_000).unwrap();
        it.kick(1);
    }),
    ("the memory is cut short", |it| {
        it.memory.0.set_len(0).unwrap();
        it.kick(1);
    }),
    ("the memory ends within a buffer", |it| {
        send_descriptor_quietly(it, GUEST + 0x8_0000, 1500, 0, 0);
        it.memory.0.set_len(0x8_0000).unwrap();
        it.kick(1);
    }),
    ("queues are moved to where nothing is", |it| {
        let mut place = it.place(1);
        place[8..16].copy_from_slice(&(USER + MEMORY).to_ne_bytes());
        it.say(9, 9, &place, &[]).unwrap();
    }),
];

fn send_descriptor(it: &mut FrontEnd, address: u64, bytes: u32, flags: u16, next: u16) {
    send_descriptor_quietly(it, address, bytes, flags, next);
    it.kick(1);
}

fn send_descriptor_quietly(it: &mut FrontEnd, address: u64, bytes: u32, flags: u16, next: u16) {
    let layout = it.layouts[1];
    virtio::driver::describe(&it.memory, layout.descriptors, address, bytes, flags, next).unwrap();
    it.memory.store(layout.available + 4, 0).unwrap();
    it.memory.store(layout.available + 2, 1).unwrap();
}

#[test]
fn a_guest_that_breaks_the_rules_loses_its_port_and_the_others_notice_nothing() {
    let mut daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mut a = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 1);
    let mut b = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 2);
    for (count, (crime, commit)) in (1..).zip(CRIMES) {
        let mut criminal = FrontEnd::with_card(&socket, OFFERED);
        wait_ports(&daemon, "A", 3);
        assert!(a.send(&frame(1, 60)), "{crime}");
        commit(&mut criminal);
        criminal.wait_closed();
        wait_ports(&daemon, "A", 2);
        assert!(a.send(&frame(2, 60)), "{crime}");
        assert_eq!(
            (b.receive(), b.receive()),
            (frame(1, 60), frame(2, 60)),
            "{crime}"
        );
        let refused = daemon.stats().daemon.refused;
        assert_eq!(refused.get("bad-guest"), Some(&count), "{crime}: {refused:?}");
    }
    let reasons = daemon.log();
    assert!(reasons.contains("is not in the memory it shares"), "{reasons}");
    assert!(daemon.process().is_running());
    let drops = daemon.domain("A").drops;
    assert!(
        drops
            .keys()
            .all(|reason| ["peer-gone", "detached"].contains(&reason.as_str())),
        "{drops:?}"
    );
}

#[test]
fn memory_that_goes_while_frames_are_sent_there_is_noticed() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mut a = FrontEnd::with_card(&socket, OFFERED);
    let mut criminal = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 2);
    criminal.memory.0.set_len(0x8_0000).unwrap();
    assert!(a.send(&frame(1, 1500)));
    criminal.wait_closed();
    wait_ports(&daemon, "A", 1);
}

#[test]
fn what_is_not_said_as_it_should_be_ends_the_connection() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let pipe = no_eventfd();
    let region = |bytes: u64, offset: u64| [words(&[1, 0]), longs(&[GUEST, bytes, USER, offset])].concat();
    let memory = tests::vhost::Shared::new();
    let (pipe, file) = (pipe.as_raw_fd(), memory.0.as_raw_fd());
    let mut count = 0;
    // Request, flags, payload, descriptors.
    for (request, flags, payload, fds) in [
        (1, 2, vec![], vec![]),
        (1, 5, vec![], vec![]),
        (0, 1, vec![], vec![]),
        (35, 9, words(&[0, 0]), vec![]),
        (99, 9, vec![], vec![]),
        (2, 9, longs(&[1 << 26]), vec![]),
        (2, 9, vec![1], vec![]),
        (5, 9, vec![], vec![]),
        (5, 9, region(MEMORY, 0), vec![]),
        (5, 9, region(MEMORY, 0), vec![pipe]),
        (5, 9, region(MEMORY, 0), vec![file, file]),
        (5, 9, region(MEMORY + 1, 0), vec![file]),
        (5, 9, region(MEMORY, 4096), vec![file]),
        (5, 9, region(u64::MAX, 0), vec![file]),
        (5, 9, region(0, 0), vec![file]),
        (6, 9, longs(&[0, 0]), vec![file]),
        (8, 9, words(&[2, 64]), vec![]),
        (9, 9, [words(&[0, 1]), longs(&[0; 4])].concat(), vec![]),
        (12, 9, longs(&[0]), vec![]),
        (12, 9, longs(&[0]), vec![pipe]),
        (12, 9, longs(&[0x100]), vec![]),
        (13, 9, longs(&[0]), vec![]),
        (16, 9, longs(&[1]), vec![]),
        (24, 1, words(&[0, 300, 0]), vec![]),
    ] {
        let mut it = FrontEnd::connect(&socket);
        it.say(request, flags, &payload, &fds).unwrap();
        it.wait_closed();
        count += 1;
        let refused = daemon.stats().daemon.refused;
        assert_eq!(
            refused.get("bad-guest"),
            Some(&count),
            "request {request} {payload:?}: {refused:?}"
        );
    }
    // Too long, and nine descriptors, which is one more than any message has.
    let nine = [words(&[5, 1, 8]), longs(&[9])].concat();
    for (bytes, fds) in [(words(&[1, 1, 273]), vec![]), (nine, vec![file; 9])] {
        let mut it = FrontEnd::connect(&socket);
        it.say_raw(&bytes, &fds).unwrap();
        it.wait_closed();
    }
    // Half a message and the end.
    let half = FrontEnd::connect(&socket);
    half.say_raw(&[1, 0, 0], &[]).unwrap();
    drop(half);
    // In pieces, it is understood.
    let mut slow = FrontEnd::connect(&socket);
    for byte in words(&[1, 1, 0]) {
        slow.say_raw(&[byte], &[]).unwrap();
    }
    assert_eq!(slow.hear(), Some(longs(&[OFFERED])));
    assert_eq!(daemon.ports("A").len(), 0);
}

#[test]
fn a_thousand_guests_that_come_and_go_leave_nothing_behind() {
    let daemon = Switchd::with_domain(&["A"]);
    let socket = socket(&daemon);
    let mut a = wait_given(&daemon, FrontEnd::with_card(&socket, OFFERED), 1);
    let settled = |expected: Option<Resources>| {
        wait::until("descriptors and mappings to be given back", || {
            let now = resources(daemon.pid());
            let known = expected.is_none_or(|then| now.fds <= then.fds && now.guests <= then.guests);
            (known && daemon.ports("A").len() == 1).then_some(now)
        })
    };
    let before = settled(None);
    for n in 0..1000 {
        let mut card = FrontEnd::with_card(&socket, OFFERED);
        card.give_buffers();
        // Some go with frames under way in both directions, and some by breaking the rules.
        a.send(&frame(1, 1000));
        card.send(&frame(2, 1000));
        if n % 7 == 0 {
            card.memory.0.set_len(0).unwrap();
            card.kick(1);
        }
        while a.try_receive().is_some() {}
    }
    // A descriptor more or less is a connection of ours that is just being answered.
    let after = settled(Some(Resources {
        fds: before.fds + 1,
        ..before
    }));
    assert_eq!(after.guests, before.guests, "{before:?} {after:?}");
    // The allocator may have some more; each of 143 guests has left a mapping of ours in place of its memory.
    assert!(after.mappings <= before.mappings + 20, "{before:?} {after:?}");
}

#[test]
fn a_flood_from_a_guest_that_is_stopped_or_killed_costs_the_others_nothing() {
    let daemon = Switchd::with_domain(&["A", "--mode", "switch"]);
    let modules = load_modules(daemon.home());
    let script = |n: u8, more: &str| {
        format!(
            "{modules}ip addr add 10.0.0.{n}/24 dev eth0; ip link set eth0 up\n\
             echo READY; {more}; sleep 100"
        )
    };
    let sink = script(1, "while true; do nc -l -p 5000 > /dev/null; done");
    let mut one = Guest::boot(daemon.home(), "one", &sink, &[word(&daemon)]);
    let flood = script(2, "while true; do nc 10.0.0.1 5000 < /dev/zero; done");
    let mut two = Guest::boot(daemon.home(), "two", &flood, &[word(&daemon)]);
    one.wait_console("READY");
    two.wait_console("READY");
    let frames = || {
        let ports = daemon.ports("A");
        let two = ports.iter().find(|port| port.name == "two:eth0");
        two.map_or(0, |port| port.rx_frames)
    };
    wait::until_true("the flood", || frames() > 1000);
    let mut a = wait_given(&daemon, FrontEnd::with_card(socket(&daemon), OFFERED), 3);
    let mut b = wait_given(&daemon, FrontEnd::with_card(socket(&daemon), OFFERED), 4);
    let mut check = || {
        for n in 0..100_u8 {
            let sent = frame(n, 60);
            wait::until_true("room", || a.send(&sent));
            loop {
                // Questions of the guests for addresses are broadcast too.
                let got = b.receive();
                if got[12..14] == [0x88, 0xb5] {
                    assert_eq!(got, sent);
                    break;
                }
            }
        }
    };
    check();
    // Stopped, it reads nothing. Then it goes on.
    let kernel = Pid::from_raw(two.pid().cast_signed());
    kill(kernel, Signal::SIGSTOP).unwrap();
    check();
    kill(kernel, Signal::SIGCONT).unwrap();
    let now = frames();
    wait::until_true("the flood to go on", || frames() > now + 1000);
    two.kill_main();
    wait_ports(&daemon, "A", 3);
    check();
}

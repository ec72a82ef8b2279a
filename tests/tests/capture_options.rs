//! `switchd capture` and its options, on the real daemon, judged by tshark.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use tests::capture::{Capture, field, fields, file, frames};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac, tagged};
use tests::program::{Process, run};
use tests::switchd::Switchd;
use tests::wait;

/// Two domains, a sender and a receiver in each.
fn two_domains() -> (Switchd, [Client; 2], [Client; 2]) {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B", "--mode", "switch"]);
    let pair = |domain: &str| [switchd.attach(domain), switchd.attach(domain)];
    let (a, b) = (pair("A"), pair("B"));
    (switchd, a, b)
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

/// Sends frames of seeds `from..to` and waits until the other end has them.
fn exchange(ports: &[Client; 2], from: u32, to: u32) -> Vec<Vec<u8>> {
    let sent: Vec<_> = (from..to)
        .map(|seed| frame(BROADCAST, mac(1), 60 + seed as usize % 1400, seed))
        .collect();
    for frame in &sent {
        ports[0].send(frame);
        assert_eq!(&ports[1].recv(), frame);
    }
    sent
}

#[test]
fn several_domains_make_one_file_in_the_order_of_time() {
    let (switchd, a, b) = two_domains();
    let whole = file(&switchd, "ab.pcapng");
    let capture = Capture::start(&switchd, "A", &["capture", "A", "B", "-w", path(&whole)]);
    let mut sent = Vec::new();
    for round in 0..50 {
        sent.extend(exchange(&a, 2 * round, 2 * round + 1));
        sent.extend(exchange(&b, 2 * round + 1, 2 * round + 2));
    }
    let outcome = capture.interrupt();
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(
        outcome.stderr.contains("100 frames captured, 0 dropped"),
        "{outcome:?}"
    );
    assert_eq!(frames(&whole), sent);
    let rows = fields(
        &whole,
        &[
            "frame.time_epoch",
            "frame.interface_name",
            "frame.packet_flags_direction",
        ],
    );
    assert!(rows.is_sorted_by(|a, b| a[0] <= b[0]), "{rows:?}");
    for (index, row) in rows.iter().enumerate() {
        let port = ["A:1", "B:1"][index % 2];
        assert!(row[1].starts_with(port), "{row:?}");
    }
    assert_eq!(fs::metadata(&whole).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn all_means_all_and_names_are_needed_otherwise() {
    let (switchd, a, b) = two_domains();
    let whole = file(&switchd, "all.pcapng");
    let capture = Capture::start(&switchd, "B", &["capture", "--all", "-w", path(&whole)]);
    exchange(&a, 0, 3);
    exchange(&b, 0, 3);
    assert!(capture.interrupt().stderr.contains("6 frames captured"));
    let error = switchd.run(&["capture", "-w", path(&whole)]).failed(1);
    assert!(error.contains("no domain is named\nhint: "), "{error}");
    let error = switchd.run(&["capture", "A", "C", "-w", path(&whole)]).failed(1);
    assert!(error.contains("domain C"), "{error}");
    assert_eq!(switchd.domain("A").captures, 0);
}

#[test]
fn a_filter_and_a_snap_length_apply_before_the_copy() {
    let (switchd, a, _) = two_domains();
    let whole = file(&switchd, "f.pcapng");
    let arguments = [
        "capture",
        "A",
        "--filter",
        "vlan 7 or ether[14:4] = 3",
        "--snap",
        "40",
        "-w",
        path(&whole),
    ];
    let capture = Capture::start(&switchd, "A", &arguments);
    exchange(&a, 0, 10);
    let vlan = tagged(BROADCAST, mac(1), &[(0x8100, 7)], 100, 99);
    a[0].send(&vlan);
    assert_eq!(a[1].recv(), vlan);
    assert!(capture.interrupt().stderr.contains("2 frames captured"));
    let lengths = fields(&whole, &["frame.len", "frame.cap_len"]);
    assert_eq!(lengths, [["63", "40"], ["100", "40"]]);
    let error = switchd
        .run(&["capture", "A", "--filter", "tcp prot 80", "-w", path(&whole)])
        .failed(1);
    assert!(error.contains("cannot use filter 'tcp prot 80': "), "{error}");
    assert!(error.contains("\nhint: "), "{error}");
}

#[test]
fn a_port_is_captured_in_both_directions() {
    let (switchd, _, b) = two_domains();
    let third = switchd.attach("B");
    let learn = frame(BROADCAST, mac(3), 60, 1);
    third.send(&learn);
    assert_eq!((b[0].recv(), b[1].recv()), (learn.clone(), learn));
    let whole = file(&switchd, "p.pcapng");
    let capture = Capture::start(
        &switchd,
        "B",
        &["capture", "B", "--port", "3", "-w", path(&whole)],
    );
    let to = frame(mac(3), mac(1), 60, 2);
    let elsewhere = frame(mac(1), mac(2), 60, 3);
    let back = frame(mac(1), mac(3), 60, 4);
    b[0].send(&to);
    assert_eq!(third.recv(), to);
    b[1].send(&elsewhere);
    assert_eq!(b[0].recv(), elsewhere);
    third.send(&back);
    assert_eq!(b[0].recv(), back);
    assert!(capture.interrupt().stderr.contains("2 frames captured"));
    assert_eq!(frames(&whole), [to, back]);
    assert!(
        field(&whole, "frame.interface_name")
            .iter()
            .all(|name| name.starts_with("B:3"))
    );
    // tshark's words for in and out.
    assert_eq!(
        field(&whole, "frame.packet_flags_direction"),
        ["0x00000002", "0x00000001"]
    );
}

#[test]
fn a_count_and_a_duration_end_a_capture() {
    let (switchd, a, _) = two_domains();
    let whole = file(&switchd, "c.pcapng");
    let capture = Capture::start(
        &switchd,
        "A",
        &["capture", "A", "--count", "7", "-w", path(&whole)],
    );
    let sent = exchange(&a, 0, 20);
    let outcome = capture.outcome();
    assert!(
        outcome.status.success() && outcome.stderr.contains("7 frames captured"),
        "{outcome:?}"
    );
    assert_eq!(frames(&whole), sent[..7]);
    let outcome = switchd.run(&["capture", "A", "--duration", "100ms", "-w", path(&whole)]);
    assert!(
        outcome.status.success() && outcome.stderr.contains("0 frames captured"),
        "{outcome:?}"
    );
    wait::until_true("no capture is left", || switchd.domain("A").captures == 0);
}

#[test]
fn files_rotate_by_size_and_the_oldest_go() {
    let (switchd, a, _) = two_domains();
    let base = file(&switchd, "r.pcapng");
    let arguments = [
        "capture",
        "A",
        "-w",
        path(&base),
        "--rotate-size",
        "4Ki",
        "--files",
        "3",
    ];
    let capture = Capture::start(&switchd, "A", &arguments);
    let sent: Vec<_> = (0..20).map(|seed| frame(BROADCAST, mac(1), 1000, seed)).collect();
    for frame in &sent {
        a[0].send(frame);
        assert_eq!(&a[1].recv(), frame);
    }
    let outcome = capture.interrupt();
    assert!(outcome.stderr.contains("20 frames captured"), "{outcome:?}");
    let mut names: Vec<_> = fs::read_dir(switchd.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("r_"))
        .collect();
    names.sort();
    // Three frames of 1044 bytes and the headers fill 4 KiB.
    assert_eq!(names, ["r_00005.pcapng", "r_00006.pcapng", "r_00007.pcapng"]);
    let kept: Vec<_> = names
        .iter()
        .flat_map(|name| frames(&file(&switchd, name)))
        .collect();
    assert_eq!(kept, sent[12..]);
    for name in names {
        let path = file(&switchd, &name);
        assert!(fs::metadata(&path).unwrap().len() <= 4096, "{name}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn files_rotate_by_time_without_further_frames() {
    let (switchd, a, _) = two_domains();
    let base = file(&switchd, "t.pcap");
    let arguments = [
        "capture",
        "A",
        "--pcap",
        "-w",
        path(&base),
        "--rotate-time",
        "200ms",
    ];
    let capture = Capture::start(&switchd, "A", &arguments);
    let first = exchange(&a, 0, 1);
    wait::until_true("a second file", || file(&switchd, "t_00002.pcap").exists());
    let second = exchange(&a, 1, 2);
    let outcome = capture.interrupt();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(frames(&file(&switchd, "t_00001.pcap")), first);
    assert_eq!(frames(&file(&switchd, "t_00002.pcap")), second);
}

#[test]
fn classic_pcap_has_the_same_frames() {
    let (switchd, a, b) = two_domains();
    let whole = file(&switchd, "c.pcap");
    let capture = Capture::start(
        &switchd,
        "A",
        &["capture", "A", "B", "--pcap", "-w", path(&whole)],
    );
    let sent = [exchange(&a, 0, 5), exchange(&b, 5, 10)].concat();
    let outcome = capture.interrupt();
    assert!(outcome.stderr.contains("10 frames captured"), "{outcome:?}");
    assert_eq!(frames(&whole), sent);
    assert_eq!(fs::read(&whole).unwrap()[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
}

#[test]
fn dropped_frames_have_their_reason() {
    let (switchd, _, b) = two_domains();
    let (all, only) = (file(&switchd, "all.pcapng"), file(&switchd, "only.pcapng"));
    let with = Capture::start(&switchd, "B", &["capture", "B", "--drops", "-w", path(&all)]);
    let alone = Capture::start(
        &switchd,
        "B",
        &["capture", "B", "--drops=only", "-w", path(&only)],
    );
    let runt = [0xee; 13];
    let giant = frame(BROADCAST, mac(1), 1515, 1);
    let own = frame(mac(1), mac(1), 60, 2);
    let good = frame(BROADCAST, mac(1), 60, 3);
    for frame in [&runt[..], &giant, &own, &good] {
        b[0].send(frame);
    }
    assert_eq!(b[1].recv(), good);
    assert!(with.interrupt().status.success());
    assert!(alone.interrupt().status.success());
    let expected = [
        (runt.to_vec(), "dropped: runt"),
        (giant, "dropped: giant"),
        (own, "dropped: same-port"),
    ];
    let read = |file: &Path| {
        let mut rows: Vec<_> = frames(file)
            .into_iter()
            .zip(field(file, "frame.comment"))
            .collect();
        rows.sort_by_key(|(frame, _)| frame.len());
        rows
    };
    let mut rows = read(&all);
    let whole = rows
        .iter()
        .position(|(frame, _)| *frame == good)
        .expect("the frame that passed");
    assert_eq!(rows.remove(whole).1, "");
    let mut expected: Vec<_> = expected.map(|(frame, why)| (frame, why.to_owned())).into();
    expected.sort_by_key(|(frame, _)| frame.len());
    assert_eq!(rows, expected);
    assert_eq!(read(&only), expected);
}

#[test]
fn frames_dropped_at_a_full_port_are_captured_there() {
    let switchd = Switchd::start_with(&["--hold-ms", "0"]);
    switchd.add(&["A"]);
    let (sender, deaf) = (switchd.attach("A"), switchd.attach("A"));
    let whole = file(&switchd, "full.pcapng");
    let capture = Capture::start(
        &switchd,
        "A",
        &["capture", "A", "--drops=only", "-w", path(&whole)],
    );
    for seed in 0..200 {
        sender.send(&frame(BROADCAST, mac(1), 60, seed));
    }
    let dropped = wait::until("all of them are through", || {
        let port = switchd.port("A", 2);
        let dropped: u64 = port.drops.values().sum();
        (port.tx_frames + dropped == 200).then_some(dropped)
    });
    let outcome = capture.interrupt();
    assert!(
        outcome.stderr.contains(&format!("{dropped} frames captured")),
        "{outcome:?}"
    );
    assert!(dropped > 0);
    let rows = fields(
        &whole,
        &[
            "frame.interface_name",
            "frame.comment",
            "frame.packet_flags_direction",
        ],
    );
    for row in rows {
        assert!(row[0].starts_with("A:2"), "{row:?}");
        assert!(
            ["dropped: queue-full", "dropped: bypassed"].contains(&&*row[1]),
            "{row:?}"
        );
        assert_eq!(row[2], "0x00000002");
    }
    drop(deaf);
}

#[test]
fn a_full_disk_ends_the_capture_and_nothing_else() {
    let (switchd, a, _) = two_domains();
    let error = switchd.run(&["capture", "A", "-w", "/dev/full"]).failed(1);
    assert!(
        error.contains("cannot write the capture any further, 0 frames are saved: No space left"),
        "{error}"
    );
    exchange(&a, 0, 5);
    assert_eq!(switchd.domain("A").captures, 0);
}

#[test]
fn a_killed_client_frees_everything_though_the_reader_stays() {
    let (switchd, a, _) = two_domains();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = switchd.command();
    command
        .args(["capture", "A", "B"])
        .stdout(Stdio::from(writer))
        .stderr(Stdio::null());
    let mut client = Process::start_as_is(&mut command);
    drop(command);
    wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
    let threads = || {
        fs::read_dir(format!("/proc/{}/task", switchd.pid()))
            .unwrap()
            .count()
    };
    let with = threads();
    // More than the pipe holds: the recorder waits for a reader that never reads.
    exchange(&a, 0, 300);
    client.signal(Signal::SIGKILL);
    client.wait();
    wait::until_true("the capture is gone", || {
        switchd.domain("A").captures == 0 && switchd.domain("B").captures == 0
    });
    wait::until_true("its thread is gone", || threads() < with);
    exchange(&a, 0, 5);
    drop(reader);
}

#[test]
fn a_killed_daemon_leaves_a_readable_file() {
    let (mut switchd, a, _) = two_domains();
    let whole = file(&switchd, "k.pcapng");
    let capture = Capture::start(&switchd, "A", &["capture", "A", "-w", path(&whole)]);
    let sent = exchange(&a, 0, 20);
    wait::until_true("all of it is written", || frames(&whole) == sent);
    switchd.stop(Signal::SIGKILL);
    let outcome = capture.outcome();
    assert!(
        !outcome.status.success() && outcome.stderr.contains("switchd has gone"),
        "{outcome:?}"
    );
    wait::until_true("every frame is in the file", || frames(&whole) == sent);
}

#[test]
fn misuse_is_refused() {
    let switchd = Switchd::with_domain(&["A"]);
    for arguments in [
        &["capture", "A", "--rotate-size", "1M"][..],
        &["capture", "A", "--count", "0"],
        &["capture", "A", "--snap", "0"],
        &["capture", "A", "--drops=some"],
        &["capture", "A", "--duration", "long"],
        &["capture", "A", "-w", "x", "--files", "0"],
    ] {
        let outcome = run(switchd.command().args(arguments));
        assert_eq!(outcome.code(), Some(2), "{arguments:?}: {outcome:?}");
    }
    let error = switchd.run(&["capture", "A", "-w", "/nowhere/x"]).failed(1);
    assert!(error.contains("cannot write /nowhere/x: "), "{error}");
}

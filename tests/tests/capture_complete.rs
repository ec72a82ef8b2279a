//! A capture is complete: many frames, judged by tshark and capinfos.

use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tests::capture::{Capture, file};
use tests::client::Client;
use tests::frame::{BROADCAST, EXPERIMENTAL};
use tests::program::{run, tool};
use tests::switchd::Switchd;
use tests::wait;

/// Frames of the long capture.
const FRAMES: u32 = 1_000_000;

/// Frames under way at most: no more than the socket of a receiver that is late has room for, or the switch would drop
/// some after a while. Linux keeps ten for a datagram socket, unless told otherwise.
const WINDOW: u32 = 8;

/// The frames are sent in so many parts.
const PARTS: u32 = 40;

/// A frame whose source address is its number.
fn numbered(number: u32) -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &[2, 0], &number.to_be_bytes()].concat();
    frame.extend(EXPERIMENTAL.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// Sends frames of the given numbers and has the other end take each of them, in order.
fn exchange(sender: &Client, receiver: &Client, numbers: Range<u32>) {
    let taken = AtomicU32::new(numbers.start);
    std::thread::scope(|scope| {
        let expected = numbers.clone();
        let taker = scope.spawn(|| {
            for number in expected {
                assert_eq!(receiver.recv()[8..12], number.to_be_bytes());
                taken.store(number + 1, Ordering::Release);
            }
        });
        for number in numbers {
            while number - taken.load(Ordering::Acquire) >= WINDOW {
                if taker.is_finished() {
                    // It has failed, and says why.
                    return;
                }
                std::thread::yield_now();
            }
            sender.send(&numbered(number));
        }
    });
}

#[test]
fn a_million_frames_are_all_there_in_order() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let whole = file(&switchd, "million.pcapng");
    let path = whole.to_str().expect("a path in UTF-8");
    let capture = Capture::start(&switchd, "A", &["capture", "A", "-w", path]);
    // At a rate the recorder can hold, whatever else the machine does: it has written one part before the next is sent.
    for part in 0..PARTS {
        let end = (part + 1) * (FRAMES / PARTS);
        exchange(&a, &b, part * (FRAMES / PARTS)..end);
        let least = u64::from(end) * 60;
        wait::until_true("the part is written", || {
            fs::metadata(&whole).is_ok_and(|file| file.len() > least)
        });
    }
    let outcome = capture.interrupt();
    assert!(
        outcome
            .stderr
            .contains(&format!("{FRAMES} frames captured, 0 dropped")),
        "{outcome:?}"
    );
    let summary = run(Command::new(tool("capinfos"))
        .args(["-M", "-c", "-o"])
        .arg(&whole))
    .ok();
    assert!(summary.contains("Strict time order:   True"), "{summary}");
    let mut tshark = Command::new("timeout")
        .args(["300", "tshark", "-n", "-T", "fields", "-e", "eth.src", "-r"])
        .arg(&whole)
        .env("HOME", "/nonexistent")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("timeout of coreutils, and tshark");
    let lines = BufReader::new(tshark.stdout.take().expect("a pipe")).lines();
    let mut expected = 0;
    for line in lines {
        let line = line.expect("text");
        let [a, b, c, d] = u32::to_be_bytes(expected);
        assert_eq!(line, format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
        expected += 1;
    }
    assert_eq!(expected, FRAMES);
    assert!(tshark.wait().expect("an end").success());
}

#[test]
fn captures_come_and_go_under_load_and_the_wire_loses_nothing() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let (c, d) = (switchd.attach("B"), switchd.attach("B"));
    let files: Vec<_> = (0..3).map(|n| file(&switchd, &format!("{n}.pcapng"))).collect();
    std::thread::scope(|scope| {
        let load = [
            scope.spawn(|| exchange(&a, &b, 0..60_000)),
            scope.spawn(|| exchange(&c, &d, 0..60_000)),
        ];
        for _ in 0..5 {
            let captures: Vec<_> = ["A", "A", "B"]
                .iter()
                .zip(&files)
                .map(|(domain, file)| {
                    let path = file.to_str().expect("a path in UTF-8");
                    Capture::start(&switchd, domain, &["capture", domain, "-w", path])
                })
                .collect();
            for capture in captures {
                let outcome = capture.interrupt();
                assert!(outcome.status.success(), "{outcome:?}");
            }
            for file in &files {
                run(Command::new(tool("capinfos")).arg("-c").arg(file)).ok();
            }
        }
        // Every frame arrived, in order: the receivers check.
        for thread in load {
            thread.join().expect("frames in order");
        }
    });
    wait::until_true("no capture is left", || {
        switchd.stats().domains.iter().all(|domain| domain.captures == 0)
    });
    for domain in ["A", "B"] {
        let row = switchd.domain(domain);
        assert_eq!((row.rx_frames, row.tx_frames), (60_000, 60_000));
        assert!(row.drops.is_empty(), "{row:?}");
    }
}

//! However a capture ends, its file ends with what each interface has seen, kept and lost.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use tests::capture::{Capture, Sum, file, frames, sums};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{run, tool};
use tests::switchd::Switchd;
use tests::wait;

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

/// Sends ten frames each way, every other one of which has an even length.
fn traffic(ports: &[Client; 2]) {
    for seed in 0..20_u32 {
        let (from, to) = if seed < 10 { (0, 1) } else { (1, 0) };
        let station = u8::try_from(from + 1).expect("a small number");
        let next = frame(BROADCAST, mac(station), 60 + seed as usize, seed);
        ports[from].send(&next);
        assert_eq!(ports[to].recv(), next);
    }
}

/// libpcap's `len` is the length of the frame.
const EVEN: &str = "len & 1 = 0";

fn pair(switchd: &Switchd, domain: &str) -> [Client; 2] {
    [switchd.attach(domain), switchd.attach(domain)]
}

/// What is said of an interface all of whose frames are there.
fn whole(name: &str, received: u64, accepted: u64) -> Sum {
    Sum {
        name: name.to_owned(),
        frames: accepted,
        received,
        accepted,
        dropped: 0,
        written: accepted,
    }
}

/// Names without those of the test's process.
fn read(file: &Path) -> Vec<Sum> {
    capinfos(file);
    let mut sums = sums(file);
    for sum in &mut sums {
        sum.name.truncate("A:1".len());
    }
    sums
}

/// An independent reader finds no fault.
fn capinfos(file: &Path) {
    run(std::process::Command::new(tool("capinfos")).arg("-c").arg(file)).ok();
}

#[test]
fn a_capture_that_is_interrupted_has_them() {
    let switchd = Switchd::with_domain(&["A"]);
    let ports = pair(&switchd, "A");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let into = file(&switchd, "a.pcapng");
        let arguments = ["capture", "A", "--filter", EVEN, "-w", path(&into)];
        let mut capture = Capture::start(&switchd, "A", &arguments);
        traffic(&ports);
        capture.process().signal(signal);
        let outcome = capture.outcome();
        assert!(outcome.status.success(), "{signal}: {outcome:?}");
        assert_eq!(
            read(&into),
            [whole("A:1", 10, 5), whole("A:2", 10, 5)],
            "{signal}"
        );
    }
}

#[test]
fn a_capture_whose_time_is_over_has_them() {
    let switchd = Switchd::with_domain(&["A"]);
    let ports = pair(&switchd, "A");
    let into = file(&switchd, "a.pcapng");
    let arguments = [
        "capture",
        "A",
        "--filter",
        EVEN,
        "--duration",
        "2s",
        "-w",
        path(&into),
    ];
    let capture = Capture::start(&switchd, "A", &arguments);
    ports[0].send(&frame(BROADCAST, mac(1), 60, 1));
    ports[1].recv();
    ports[0].send(&frame(BROADCAST, mac(1), 61, 1));
    ports[1].recv();
    let outcome = capture.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    // A busy machine may have taken longer than that to send them.
    let sums = read(&into);
    assert!(
        sums.is_empty() || sums == [whole("A:1", 1, 1)] || sums == [whole("A:1", 2, 1)],
        "{sums:?}"
    );
}

#[test]
fn a_capture_that_has_its_count_has_them() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let (a, b) = (pair(&switchd, "A"), pair(&switchd, "B"));
    for domains in [&["A"][..], &["A", "B"]] {
        for more in [&[][..], &["--rotate-size", "1M"]] {
            let into = file(&switchd, "a.pcapng");
            let arguments = [
                &["capture", "--count", "7", "--filter", EVEN, "-w", path(&into)],
                domains,
                more,
            ]
            .concat();
            let capture = Capture::start(&switchd, "A", &arguments);
            traffic(&a);
            traffic(&b);
            let outcome = capture.outcome();
            assert!(outcome.status.success(), "{outcome:?}");
            assert!(
                outcome.stderr.contains("7 frames captured, 0 dropped"),
                "{outcome:?}"
            );
            let into = if more.is_empty() {
                into
            } else {
                file(&switchd, "a_00001.pcapng")
            };
            let sums = read(&into);
            assert_eq!(sums.iter().map(|sum| sum.frames).sum::<u64>(), 7, "{sums:?}");
            for sum in sums {
                assert_eq!((sum.written, sum.dropped), (sum.frames, 0), "{sum:?}");
                // What came behind the last frame, until the capture had ended, was seen too.
                assert!((sum.frames..=5).contains(&sum.accepted), "{sum:?}");
                assert!((sum.accepted..=10).contains(&sum.received), "{sum:?}");
            }
            fs::remove_file(into).expect("the file is there");
        }
    }
    wait::until_true("no capture is left", || {
        switchd.stats().domains.iter().all(|domain| domain.captures == 0)
    });
}

#[test]
fn a_capture_whose_domain_or_daemon_ends_has_them() {
    for arguments in [&["domain", "rm", "A"][..], &["stop"], &[]] {
        for more in [&[][..], &["--rotate-size", "1M"]] {
            let mut switchd = Switchd::with_domain(&["A"]);
            let ports = pair(&switchd, "A");
            let into = file(&switchd, "a.pcapng");
            let capture = Capture::start(
                &switchd,
                "A",
                &[&["capture", "A", "--filter", EVEN, "-w", path(&into)], more].concat(),
            );
            traffic(&ports);
            match arguments {
                [] => assert!(switchd.stop(Signal::SIGTERM).success()),
                ["stop"] => {
                    switchd.run(arguments).ok();
                    assert!(switchd.wait().success());
                }
                _ => drop(switchd.run(arguments).ok()),
            }
            let outcome = capture.outcome();
            assert!(outcome.status.success(), "{arguments:?}: {outcome:?}");
            assert!(
                outcome.stderr.contains("10 frames captured, 0 dropped"),
                "{outcome:?}"
            );
            let into = if more.is_empty() {
                into
            } else {
                file(&switchd, "a_00001.pcapng")
            };
            assert_eq!(
                read(&into),
                [whole("A:1", 10, 5), whole("A:2", 10, 5)],
                "{arguments:?}"
            );
        }
    }
}

#[test]
fn a_daemon_that_ends_does_not_wait_for_readers_that_do_not_read() {
    let mut switchd = Switchd::with_domain(&["A", "--mtu", "65521"]);
    let ports = pair(&switchd, "A");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = switchd.command();
    command
        .args(["capture", "A"])
        .stdout(writer)
        .stderr(std::process::Stdio::null());
    let mut client = tests::program::Process::start_as_is(&mut command);
    drop(command);
    wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
    for seed in 0..100 {
        ports[0].send(&frame(BROADCAST, mac(1), 60_000, seed));
        ports[1].recv();
    }
    assert!(switchd.stop(Signal::SIGTERM).success());
    assert!(!client.wait().success());
    drop(reader);
}

#[test]
fn each_of_several_files_has_its_own() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let (a, b) = (pair(&switchd, "A"), pair(&switchd, "B"));
    let base = file(&switchd, "r.pcapng");
    let arguments = [
        "capture",
        "A",
        "B",
        "--filter",
        EVEN,
        "-w",
        path(&base),
        "--rotate-size",
        "2k",
    ];
    let capture = Capture::start(&switchd, "A", &arguments);
    for _ in 0..5 {
        traffic(&a);
        traffic(&b);
    }
    let outcome = capture.interrupt();
    assert!(
        outcome.stderr.contains("100 frames captured, 0 dropped"),
        "{outcome:?}"
    );
    let mut files: Vec<_> = fs::read_dir(switchd.home())
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "pcapng"))
        .collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    let mut total = std::collections::BTreeMap::<String, (u64, u64)>::new();
    for file in &files {
        let length = fs::metadata(file).expect("the file is there").len();
        assert!(length <= 2000, "{} has {length} bytes", file.display());
        for sum in read(file) {
            assert_eq!((sum.written, sum.dropped), (sum.frames, 0), "{sum:?}");
            assert_eq!(sum.accepted, sum.frames, "{sum:?}");
            let (frames, received) = total.entry(sum.name).or_default();
            *frames += sum.frames;
            *received += sum.received;
        }
    }
    let expected = ["A:1", "A:2", "B:1", "B:2"].map(|name| (name.to_owned(), (25, 50)));
    assert_eq!(total, expected.into());
    assert_eq!(files.iter().map(|file| frames(file).len()).sum::<usize>(), 100);
}

#[test]
fn a_capture_that_cannot_keep_up_says_what_it_lost() {
    // More than the ring of 32 MiB and the pipe hold.
    const FRAMES: u64 = 700;
    let switchd = Switchd::with_domain(&["A", "--mtu", "65521"]);
    let ports = pair(&switchd, "A");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let said = file(&switchd, "said");
    let mut command = switchd.command();
    command
        .args(["capture", "A"])
        .stdout(writer)
        .stderr(fs::File::create(&said).expect("a new file"));
    let client = tests::program::Process::start_as_is(&mut command);
    drop(command);
    wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
    for seed in 0..FRAMES {
        let seed = u32::try_from(seed).expect("a small number");
        ports[0].send(&frame(BROADCAST, mac(1), 60_000, seed));
        ports[1].recv();
    }
    client.signal(Signal::SIGINT);
    let into = file(&switchd, "late.pcapng");
    let mut late = fs::File::create(&into).expect("a new file");
    std::io::copy(&mut reader, &mut late).expect("the rest can be read");
    assert!(client.outcome().status.success());
    let sums = read(&into);
    let sum = &sums[0];
    assert_eq!(
        (sums.len(), sum.received, sum.accepted),
        (1, FRAMES, FRAMES),
        "{sum:?}"
    );
    assert!(sum.dropped > 0 && sum.frames > 0, "{sum:?}");
    assert_eq!((sum.frames, sum.frames + sum.dropped), (sum.written, FRAMES));
    let said = fs::read_to_string(&said).expect("the file is there");
    let expected = format!("{} frames captured, {} dropped", sum.frames, sum.dropped);
    assert!(said.contains(&expected), "{expected}: {said}");
}

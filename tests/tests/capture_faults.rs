//! What can go wrong with a capture costs that capture alone, and leaves a file that can be read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::capture::{Capture, file, frames, sums};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{Outcome, in_namespaces, run, tool};
use tests::switchd::Switchd;
use tests::wait;

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

fn numbered(seed: u32) -> Vec<u8> {
    frame(BROADCAST, mac(1), 1000, seed)
}

/// Sends frames, each of which must arrive.
fn pass(ports: &[Client; 2], seeds: std::ops::Range<u32>) {
    for seed in seeds {
        let next = numbered(seed);
        ports[0].send(&next);
        assert_eq!(ports[1].recv(), next);
    }
}

/// A file system with room for a few hundred frames, in namespaces of the test's.
fn small_disk(switchd: &Switchd) -> PathBuf {
    let disk = file(switchd, "disk");
    fs::create_dir(&disk).expect("a new directory");
    let mut mount = Command::new(tool("mount"));
    run(mount.args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&disk)).ok();
    disk
}

/// The frames of a file that is read without any complaint.
fn whole(file: &Path) -> Vec<Vec<u8>> {
    let outcome = run(Command::new(tool("tshark"))
        .env("HOME", "/nonexistent")
        .args(["-n", "-r"])
        .arg(file));
    assert!(
        outcome.status.success() && !outcome.stderr.contains("cut short"),
        "{}: {}",
        file.display(),
        outcome.stderr
    );
    frames(file)
}

fn expected(seeds: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    seeds.map(numbered).collect()
}

#[test]
fn a_disk_that_fills_up_ends_the_capture_with_a_message_and_nothing_else() {
    let test = "a_disk_that_fills_up_ends_the_capture_with_a_message_and_nothing_else";
    in_namespaces(test, &["--user", "--map-root-user", "--mount"], || {
        for options in [
            &[][..],
            &["--rotate-size", "100k"],
            &["--pcap"],
            &["--pcap", "--rotate-size", "100k"],
        ] {
            let switchd = Switchd::with_domain(&["A"]);
            let ports = [switchd.attach("A"), switchd.attach("A")];
            let disk = small_disk(&switchd);
            let other = file(&switchd, "other.pcapng");
            let other_capture = Capture::start(&switchd, "A", &["capture", "A", "-w", path(&other)]);
            let into = disk.join("a.cap");
            let arguments = [&["capture", "A", "-w", path(&into)], options].concat();
            let mut capture = Capture::start(&switchd, "A", &arguments);
            let mut sent = 0;
            while capture.process().is_running() {
                assert!(sent < 10_000, "{options:?}: the disk does not fill up");
                pass(&ports, sent..sent + 10);
                sent += 10;
            }
            let outcome = capture.outcome();
            assert_eq!(outcome.code(), Some(1), "{options:?}: {outcome:?}");
            assert!(
                outcome.stderr.contains("cannot write ")
                    && outcome.stderr.contains("No space left on device"),
                "{options:?}: {outcome:?}"
            );
            // What was saved is what passed first.
            let mut files: Vec<_> = fs::read_dir(&disk)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            let saved: Vec<_> = files
                .iter()
                .filter(|file| fs::metadata(file).unwrap().len() > 0)
                .flat_map(|file| whole(file))
                .collect();
            let count = u32::try_from(saved.len()).unwrap();
            assert!(count > 100, "{options:?}: {count} frames");
            assert!(saved == expected(0..count), "{options:?}");
            if options.is_empty() {
                assert!(
                    outcome.stderr.contains(&format!(" {count} frames are saved")),
                    "{count}: {outcome:?}"
                );
            }
            // The wire and the other capture have lost nothing.
            wait::until_true("one capture is left", || switchd.domain("A").captures == 1);
            pass(&ports, sent..sent + 10);
            assert!(switchd.domain("A").drops.is_empty());
            assert!(other_capture.interrupt().status.success());
            assert!(whole(&other) == expected(0..sent + 10), "{options:?}");
            run(Command::new(tool("umount")).arg(&disk)).ok();
        }
    });
}

#[test]
fn a_daemon_killed_under_load_leaves_every_finished_block_readable() {
    for options in [&[][..], &["--rotate-size", "100M"]] {
        let mut switchd = Switchd::with_domain(&["A"]);
        let ports = [switchd.attach("A"), switchd.attach("A")];
        let into = file(&switchd, "k.pcapng");
        let arguments = [&["capture", "A", "-w", path(&into)], options].concat();
        let capture = Capture::start(&switchd, "A", &arguments);
        let into = if options.is_empty() {
            into
        } else {
            file(&switchd, "k_00001.pcapng")
        };
        pass(&ports, 0..500);
        // A frame takes 1044 bytes or more: these are at least 390 of them.
        wait::until_true("a part of it is written", || {
            fs::metadata(&into).is_ok_and(|file| file.len() > 420_000)
        });
        // More is under way when it dies.
        for seed in 500..550 {
            ports[0].send(&numbered(seed));
        }
        switchd.stop(Signal::SIGKILL);
        let outcome = capture.outcome();
        assert!(
            outcome.code() == Some(1) && outcome.stderr.contains("switchd has gone"),
            "{outcome:?}"
        );
        // The last block may be cut; all before it are read.
        let lines = tshark_lines(&into);
        let sent = expected(0..550);
        assert!(
            lines.len() >= 390 && lines.len() <= sent.len(),
            "{} frames",
            lines.len()
        );
        for (line, frame) in lines.iter().zip(&sent) {
            assert_eq!(*line, hex(&frame[14..]));
        }
        if !options.is_empty() {
            // The client has lived on, and ended the file.
            assert!(
                sums(&into).iter().all(|sum| sum.written == sum.frames),
                "{:?}",
                sums(&into)
            );
        }
    }
}

#[test]
fn a_capture_that_cannot_begin_leaves_the_file_alone() {
    let switchd = Switchd::start();
    let precious = file(&switchd, "precious.pcapng");
    fs::write(&precious, "captured before").unwrap();
    let refused = |arguments: &[&str], why: &str| {
        let error = switchd
            .run(&[&["capture", "-w", path(&precious)], arguments].concat())
            .failed(1);
        assert!(error.contains(why), "{arguments:?}: {error}");
        assert_eq!(
            fs::read_to_string(&precious).unwrap(),
            "captured before",
            "{arguments:?}"
        );
    };
    refused(&["--all"], "there is no domain to capture");
    switchd.add(&["A"]);
    refused(&["B"], "domain B");
    refused(&["A", "B"], "domain B");
    refused(&["A", "--pcap", "B"], "domain B");
    refused(&["A", "--filter", "arp orr"], "cannot use filter 'arp orr'");
    refused(&["--lab", "/nowhere"], "cannot capture the lab in /nowhere");
    refused(&[], "no domain is named");
}

fn tshark_lines(file: &Path) -> Vec<String> {
    let mut command = Command::new(tool("tshark"));
    command
        .env("HOME", "/nonexistent")
        .args(["-n", "-T", "fields", "-e", "data.data", "-r"])
        .arg(file);
    let Outcome { stdout, stderr, .. } = run(&mut command);
    assert!(
        stderr
            .lines()
            .all(|line| line.contains("cut short") || line.starts_with("Running as user")),
        "{stderr}"
    );
    stdout.lines().map(str::to_owned).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn killed_clients_of_every_kind_leave_nothing_in_the_daemon() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let ports = [switchd.attach("A"), switchd.attach("A")];
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", switchd.pid()))
            .unwrap()
            .count()
    };
    let threads = || {
        fs::read_dir(format!("/proc/{}/task", switchd.pid()))
            .unwrap()
            .count()
    };
    let watches_a_process = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .and_then(|entry| fs::read_link(entry.path()))
            .is_ok_and(|target| target.to_string_lossy().contains("pidfd"))
    };
    let watched = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", switchd.pid())).unwrap();
        descriptors
            .map(watches_a_process)
            .filter(|&watches| watches)
            .count()
    };
    // A client has its answer before its process is watched.
    wait::until_true("the clients are watched", || watched() == ports.len());
    // The connections of `domain show` come and go.
    let before = (descriptors(), threads());
    let into = file(&switchd, "x.pcapng");
    for arguments in [
        &["capture", "A", "B", "-w", path(&into)][..],
        &["capture", "A", "-w", path(&into), "--rotate-size", "10k"],
        &["capture", "A", "--pcap", "-w", path(&into)],
        &["vdump", "-t", "A"],
        &["vdump", "--stats", "A"],
        &["capture", "A"],
    ] {
        let mut command = switchd.command();
        command.args(arguments);
        let mut capture = Capture::start_command(&switchd, "A", command.stdin(Stdio::null()));
        pass(&ports, 0..50);
        capture.process().signal(Signal::SIGKILL);
        capture.outcome();
        wait::until_true("all of it is gone", || {
            switchd.domain("A").captures == 0
                && switchd.domain("B").captures == 0
                && threads() <= before.1
                && descriptors() <= before.0
        });
    }
    pass(&ports, 50..60);
}

//! `switchd replay`: the golden captures go through a domain and come out as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::capture::{Capture, field, fields, file, frames};
use tests::golden;
use tests::program::Process;
use tests::switchd::Switchd;
use tests::wait;

fn pcap(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pcaps").join(name)
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

#[test]
fn the_files_are_what_the_program_makes() {
    let mut known = vec!["README.md".to_owned()];
    for golden in golden::all() {
        let bytes = fs::read(pcap(golden.file)).unwrap();
        assert!(
            bytes == golden.bytes(),
            "{}: write it anew with 'cargo run -p tests --bin golden-captures'",
            golden.file
        );
        known.push(golden.file.to_owned());
    }
    for entry in fs::read_dir(pcap("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "{name} is nobody's");
    }
}

#[test]
fn tshark_finds_what_they_are_for_and_no_fault() {
    for golden in golden::all() {
        let names = [
            "frame.protocols",
            "_ws.malformed",
            "ip.checksum.status",
            "tcp.checksum.status",
        ];
        let rows = fields(&pcap(golden.file), &names);
        assert_eq!(rows.len(), golden.frames.len(), "{}", golden.file);
        for row in rows {
            let protocols: Vec<_> = row[0].split(':').collect();
            assert!(protocols.contains(&golden.protocol), "{}: {row:?}", golden.file);
            assert_eq!(row[1], "", "{}: malformed", golden.file);
        }
    }
}

#[test]
fn replayed_and_captured_again_they_are_the_same() {
    let switchd = Switchd::with_domain(&["A", "--mode", "switch", "--mtu", "9000"]);
    let other = switchd.attach("A");
    for golden in golden::all() {
        let again = file(&switchd, golden.file);
        let arguments = ["capture", "A", "--drops", "-w", path(&again)];
        let capture = Capture::start(&switchd, "A", &arguments);
        let outcome = switchd.run(&["replay", "A", path(&pcap(golden.file)), "--asap"]);
        let expected = format!("{} frames (", golden.frames.len());
        assert!(
            outcome.clone().ok().starts_with(&expected),
            "{}: {outcome:?}",
            golden.file
        );
        assert!(capture.interrupt().status.success());
        let read = frames(&again);
        assert!(read == frames(&pcap(golden.file)), "{}", golden.file);
        assert!(read == golden.frames, "{}", golden.file);
    }
    // Nothing of it was sent back, and what is for everybody has reached the other port.
    assert_eq!(other.recv(), golden::all()[0].frames[0]);
}

/// A capture of five frames, 100 ms apart.
fn spaced(switchd: &Switchd) -> PathBuf {
    use pcap_file::pcap::{PcapPacket, PcapWriter};
    let path = file(switchd, "spaced.pcap");
    let mut writer = PcapWriter::new(fs::File::create(&path).expect("a new file")).expect("room for it");
    for n in 0..5_u8 {
        let time = Duration::from_millis(1_000_000 + 100 * u64::from(n));
        let frame = tests::frame::frame(tests::frame::BROADCAST, tests::frame::mac(1), 60, n.into());
        let packet = PcapPacket::new(time, 60, &frame);
        writer.write_packet(&packet).expect("room for it");
    }
    path
}

#[test]
fn the_time_between_frames_is_kept_or_scaled() {
    let switchd = Switchd::with_domain(&["A"]);
    let spaced = spaced(&switchd);
    for (options, least_ms) in [
        (&[][..], 100.0),
        (&["--speed", "4"], 25.0),
        (&["--pps", "20"], 50.0),
    ] {
        let again = file(&switchd, "again.pcapng");
        let capture = Capture::start(&switchd, "A", &["capture", "A", "-w", path(&again)]);
        let began = Instant::now();
        switchd
            .run(&[&["replay", "A", path(&spaced)][..], options].concat())
            .ok();
        let took = began.elapsed();
        assert!(capture.interrupt().status.success());
        let times: Vec<f64> = field(&again, "frame.time_epoch")
            .iter()
            .map(|time| time.parse().unwrap())
            .collect();
        assert_eq!(times.len(), 5, "{options:?}");
        // A frame is seen when a busy machine gets round to it, so a late first one makes the others look early: what
        // cannot be early is the end of it all.
        let least = Duration::from_secs_f64(4.0 * least_ms / 1000.0);
        assert!(took >= least, "{options:?}: {took:?} for frames of {least:?}");
        assert!(times.is_sorted(), "{options:?}: {times:?}");
        let spread = times[4] - times[0];
        assert!(spread > 0.0 && spread < 5.0, "{options:?}: {times:?}");
    }
}

#[test]
fn files_are_repeated_under_a_name_of_ones_own() {
    let switchd = Switchd::with_domain(&["A"]);
    let other = switchd.attach("A");
    let (arp, icmp) = (pcap("arp.pcap"), pcap("icmp.pcap"));
    let capture = Capture::start(&switchd, "A", &["capture", "A", "-w", path(&file(&switchd, "n"))]);
    let arguments = [
        "replay",
        "A",
        path(&arp),
        path(&icmp),
        "--asap",
        "--loop",
        "3",
        "--as",
        "generator",
    ];
    let text = switchd.run(&arguments).ok();
    assert!(text.starts_with("24 frames ("), "{text}");
    assert!(capture.interrupt().status.success());
    let names = field(&file(&switchd, "n"), "frame.interface_name");
    assert_eq!(names, vec!["A:2 generator"; 24]);
    drop(other);
    wait::until_true("no port is left", || switchd.ports("A").is_empty());
}

#[test]
fn a_signal_ends_it_with_a_summary() {
    let switchd = Switchd::with_domain(&["A"]);
    let mut command = switchd.command();
    command.args([
        "replay",
        "A",
        path(&pcap("arp.pcap")),
        "--loop",
        "0",
        "--pps",
        "100",
    ]);
    let replay = Process::start(&mut command);
    wait::until_true("frames come", || switchd.domain("A").rx_frames > 3);
    let asked = Instant::now();
    replay.signal(Signal::SIGINT);
    let outcome = replay.outcome();
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert!(outcome.clone().ok().contains(" frames/s"), "{outcome:?}");
}

#[test]
fn a_pipe_can_be_replayed_once() {
    let switchd = Switchd::with_domain(&["A"]);
    let mut cat = Process::start_as_is(
        std::process::Command::new("cat")
            .arg(pcap("tcp.pcap"))
            .stdout(std::process::Stdio::piped()),
    );
    let pipe = cat.child().stdout.take().unwrap();
    let mut command = switchd.command();
    let replay = Process::start(command.args(["replay", "A", "-", "--asap"]).stdin(pipe));
    let text = replay.outcome().ok();
    let expected = golden::all().into_iter().find(|golden| golden.file == "tcp.pcap");
    let expected = expected.map(|golden| format!("{} frames (", golden.frames.len()));
    assert!(text.starts_with(&expected.unwrap()), "{text}");
    // An ordinary file as standard input is a file.
    let mut command = switchd.command();
    let stdin = fs::File::open(pcap("arp.pcap")).unwrap();
    let replay = Process::start(
        command
            .args(["replay", "A", "-", "--asap", "--loop", "2"])
            .stdin(stdin),
    );
    assert!(replay.outcome().ok().contains(" frames ("));
    let mut command = switchd.command();
    let (reader, _writer) = std::io::pipe().unwrap();
    let replay = Process::start(command.args(["replay", "A", "-", "--loop", "2"]).stdin(reader));
    let error = replay.outcome().failed(1);
    assert!(error.contains("cannot send - more than once"), "{error}");
}

#[test]
fn cut_frames_are_left_out_and_counted() {
    let switchd = Switchd::with_domain(&["A"]);
    let (whole, cut) = (pcap("tcp.pcap"), file(&switchd, "cut.pcapng"));
    let capture = Capture::start(&switchd, "A", &["capture", "A", "--snap", "54", "-w", path(&cut)]);
    switchd.run(&["replay", "A", path(&whole), "--asap"]).ok();
    assert!(capture.interrupt().status.success());
    let all = frames(&whole);
    let short = all.iter().filter(|frame| frame.len() <= 54).count();
    assert!(
        short > 0 && short < all.len(),
        "the file has long and short frames"
    );
    let text = switchd.run(&["replay", "A", path(&cut), "--asap"]).ok();
    assert!(text.starts_with(&format!("{short} frames (")), "{text}");
    let left = format!(
        "{} frames not sent: the file has only a part of them",
        all.len() - short
    );
    assert!(text.contains(&left), "{text}");
}

#[test]
fn progress_is_shown_on_a_terminal() {
    use std::io::Read;
    let switchd = Switchd::with_domain(&["A"]);
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = switchd.command();
    command
        .args(["replay", "A", path(&spaced(&switchd)), "--loop", "20"])
        .env("TERM", "xterm")
        .stdout(std::process::Stdio::null())
        .stderr(pty.slave);
    let mut replay = Process::start_as_is(&mut command);
    drop(command);
    let mut shown = String::new();
    let mut terminal = fs::File::from(pty.master);
    while !shown.contains(" eta ") {
        let mut text = [0; 4096];
        let count = terminal.read(&mut text).unwrap();
        assert!(count > 0, "{shown}");
        shown += &String::from_utf8_lossy(&text[..count]);
    }
    replay.signal(Signal::SIGINT);
    assert!(replay.wait().success());
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let switchd = Switchd::with_domain(&["A"]);
    let text = file(&switchd, "text");
    fs::write(&text, "this is no capture").unwrap();
    let error = switchd.run(&["replay", "A", path(&text)]).failed(1);
    assert!(error.contains("text is no capture"), "{error}");
    let error = switchd.run(&["replay", "A", "/nowhere"]).failed(1);
    assert!(error.contains("cannot read /nowhere: "), "{error}");
    let error = switchd.run(&["replay", "B", path(&pcap("arp.pcap"))]).failed(1);
    assert!(error.contains("domain B"), "{error}");
    // A jumbo frame in an ordinary domain is dropped there, and said to be.
    let text = switchd
        .run(&["replay", "A", path(&pcap("jumbo.pcap")), "--asap"])
        .ok();
    assert!(
        text.contains("\n2 frames dropped by the domain on their way in"),
        "{text}"
    );
    for wrong in [
        &["--speed", "0"][..],
        &["--pps", "-1"],
        &["--as", "x"],
        &["--asap", "--pps", "1"],
    ] {
        let arguments = [&["replay", "A", "x"][..], wrong].concat();
        assert_eq!(switchd.run(&arguments).code(), Some(2), "{wrong:?}");
    }
    assert!(switchd.ports("A").is_empty());
}

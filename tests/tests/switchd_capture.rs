//! A capture is what passed: frames, times and ports, as real tshark and capinfos read them; it never costs a frame.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac, seed, tagged};
use tests::program::{Process, run, tool};
use tests::switchd::Switchd;
use tests::wait::{until, until_true};

/// One frame as tshark reads it.
#[derive(Debug)]
struct Row {
    /// Seconds and nanoseconds since 1970.
    time: (u64, u32),
    length: usize,
    interface: String,
    source: String,
    payload: String,
}

fn tshark(arguments: &[&str]) -> String {
    run(Command::new(tool("tshark")).args(arguments)).ok()
}

fn rows(file: &Path) -> Vec<Row> {
    let fields = [
        "frame.time_epoch",
        "frame.len",
        "frame.interface_name",
        "eth.src",
        "data.data",
    ];
    let mut arguments = vec!["-r", file.to_str().expect("a path in ASCII"), "-T", "fields"];
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    let text = tshark(&arguments);
    let row = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        let mut next = || words.next().expect("a field");
        let time = next();
        let (seconds, fraction) = time.split_once('.').expect("a fraction of a second");
        assert_eq!(fraction.len(), 9, "nanoseconds: {time}");
        Row {
            time: (
                seconds.parse().expect("a number"),
                fraction.parse().expect("a number"),
            ),
            length: next().parse().expect("a number"),
            interface: next(),
            source: next(),
            payload: next(),
        }
    };
    text.lines().map(row).collect()
}

/// What `capinfos` says, by its words.
fn capinfos(file: &Path) -> BTreeMap<String, String> {
    let text = run(Command::new(tool("capinfos")).arg("-M").arg(file)).ok();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// Starts `switchd capture` and waits until the domain is captured.
fn capture(switchd: &Switchd, arguments: &[&str], stdout: Stdio) -> Process {
    let captures = switchd.domain("A").captures;
    let mut command = switchd.command();
    command.arg("capture").args(arguments).stdin(Stdio::null());
    let log = fs::File::create(switchd.home().join("capture.log")).expect("a log file");
    let process = Process::start_as_is(command.stdout(stdout).stderr(log));
    until_true("it is capturing", || switchd.domain("A").captures == captures + 1);
    process
}

fn said(switchd: &Switchd) -> String {
    fs::read_to_string(switchd.home().join("capture.log")).expect("a log file")
}

fn pass(from: &Client, to: &Client, frame: &[u8]) {
    from.send(frame);
    assert_eq!(to.recv(), frame);
}

#[test]
fn a_file_has_every_frame_in_order_with_its_port_and_time() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let file = switchd.home().join("a.pcapng");
    let path = file.to_str().expect("a path in ASCII");
    pass(&a, &b, &frame(BROADCAST, mac(1), 60, 1_000_000));
    let mut capturing = capture(&switchd, &["A", "-w", path], Stdio::null());
    let mut sent = Vec::new();
    for n in 0..200u32 {
        let length = 60 + (n as usize * 37) % 1455;
        let (from, to, station) = if n % 3 == 0 { (&b, &a, 2) } else { (&a, &b, 1) };
        let next = frame(mac(3 - station), mac(station), length, n);
        pass(from, to, &next);
        sent.push(next);
    }
    for odd in [
        frame(mac(2), mac(1), 14, 0),
        tagged(mac(2), mac(1), &[(0x8100, 5)], 1518, 9),
        frame([0x01, 0x80, 0xc2, 0, 0, 0], mac(1), 60, 10),
    ] {
        pass(&a, &b, &odd);
        sent.push(odd);
    }
    // What is dropped on arrival is not part of what passed.
    a.send(&[0; 10]);
    a.send(&frame(mac(2), mac(1), 1600, 11));
    let last = frame(mac(2), mac(1), 60, 12);
    pass(&a, &b, &last);
    sent.push(last);
    capturing.signal(Signal::SIGINT);
    assert_eq!(capturing.wait().code(), Some(0));
    assert!(
        said(&switchd).contains("204 frames captured, 0 dropped"),
        "{}",
        said(&switchd)
    );
    until_true("the capture has gone", || switchd.domain("A").captures == 0);
    let mode = fs::metadata(&file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let rows = rows(&file);
    assert_eq!(rows.len(), sent.len());
    for (row, frame) in rows.iter().zip(&sent) {
        assert_eq!(row.length, frame.len());
        let source: Vec<String> = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(row.source, source.join(":"));
        let port = if frame[11] == 1 { "A:1" } else { "A:2" };
        let name = row.interface.split(' ').next().expect("a name");
        assert_eq!(name, port, "{row:?}");
        if frame[12..14] == [0x88, 0xb5] {
            let payload: String = frame[14..].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(row.payload, payload);
        }
    }
    assert!(rows.is_sorted_by_key(|row| row.time), "time goes back");
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    assert!(rows.iter().all(|row| now - row.time.0 < 600));
    assert!(
        rows.iter().any(|row| row.time.1 % 1000 != 0),
        "times in whole microseconds"
    );

    let inbound = tshark(&[
        "-r",
        path,
        "-Y",
        "frame.packet_flags_direction == 1",
        "-T",
        "fields",
        "-e",
        "frame.number",
    ]);
    assert_eq!(inbound.lines().count(), sent.len());
    let infos = capinfos(&file);
    assert!(infos["File type"].contains("pcapng"), "{infos:#?}");
    assert_eq!(infos["Number of packets"], "204");
    assert_eq!(infos["Number of interfaces in file"], "2");
    assert!(infos["File timestamp precision"].contains("nanoseconds"));
    assert_eq!(infos["Strict time order"], "True");
}

#[test]
fn a_snap_length_keeps_the_beginning_and_tells_the_whole_length() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let file = switchd.home().join("a.pcapng");
    let path = file.to_str().expect("a path in ASCII");
    let mut capturing = capture(&switchd, &["A", "--write", path, "--snap", "20"], Stdio::null());
    pass(&a, &b, &frame(BROADCAST, mac(1), 1000, 1));
    pass(&a, &b, &frame(BROADCAST, mac(1), 14, 1));
    capturing.signal(Signal::SIGTERM);
    assert_eq!(capturing.wait().code(), Some(0));
    let text = tshark(&[
        "-r",
        path,
        "-T",
        "fields",
        "-e",
        "frame.len",
        "-e",
        "frame.cap_len",
    ]);
    assert_eq!(text, "1000\t20\n14\t14\n");
}

#[test]
fn tshark_reads_along() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let mut capturing = capture(&switchd, &["A"], Stdio::piped());
    let pipe = capturing.child().stdout.take().expect("a pipe");
    let mut command = Command::new(tool("tshark"));
    command.args(["-l", "-n", "-r", "-", "-T", "fields", "-e", "data.data"]);
    let mut reading = Process::start_as_is(command.stdin(pipe).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut text = reading.child().stdout.take().expect("a pipe");
    // Each frame is shown before the next is sent.
    for n in 0..5 {
        let sent = frame(BROADCAST, mac(1), 60, n);
        pass(&a, &b, &sent);
        let wanted: String = sent[14..].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut line = vec![0; wanted.len() + 1];
        text.read_exact(&mut line).expect("a line of tshark");
        assert_eq!(String::from_utf8_lossy(&line).trim_end(), wanted);
    }
    capturing.signal(Signal::SIGINT);
    assert_eq!(capturing.wait().code(), Some(0));
    assert_eq!(reading.wait().code(), Some(0));
}

#[test]
fn a_reader_that_stalls_costs_counted_captured_frames_only() {
    let switchd = Switchd::with_domain(&["A", "--mtu", "65521"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let mut capturing = capture(&switchd, &["A", "-w", "-"], Stdio::piped());
    let mut pipe = capturing.child().stdout.take().expect("a pipe");
    // Far more than the pipe and the chunks of a capture hold; all of it must be forwarded meanwhile.
    const FRAMES: u32 = 1000;
    for n in 0..FRAMES {
        let sent = frame(BROADCAST, mac(1), 60_000, n);
        a.send(&sent);
        assert!(b.recv() == sent, "frame {n}");
    }
    assert!(switchd.domain("A").drops.is_empty());
    assert_eq!(switchd.domain("A").tx_frames, u64::from(FRAMES));
    // Now it reads again, and the capture goes on.
    capturing.signal(Signal::SIGINT);
    let file = switchd.home().join("late.pcapng");
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).expect("the rest of the capture");
    fs::write(&file, bytes).expect("room for it");
    assert_eq!(capturing.wait().code(), Some(0));
    let text = said(&switchd);
    let line = text
        .lines()
        .find(|line| line.contains("frames captured"))
        .expect("a report");
    let numbers: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(numbers[0] + numbers[1], u64::from(FRAMES), "{line}");
    assert!(numbers[0] > 0 && numbers[1] > 0, "{line}");
    let infos = capinfos(&file);
    assert_eq!(infos["Number of packets"], numbers[0].to_string());
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_capture() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let mut capturing = capture(&switchd, &["A"], Stdio::piped());
    let mut pipe = capturing.child().stdout.take().expect("a pipe");
    pipe.read_exact(&mut [0; 28]).expect("a section header");
    drop(pipe);
    assert_eq!(capturing.wait().code(), Some(0), "{}", said(&switchd));
    until_true("the capture has gone", || switchd.domain("A").captures == 0);
    pass(&a, &b, &frame(BROADCAST, mac(1), 60, 1));
}

#[test]
fn a_capture_ends_with_its_domain_and_with_the_daemon() {
    for arguments in [&["domain", "rm", "A"][..], &["stop"]] {
        let mut switchd = Switchd::with_domain(&["A"]);
        let (a, b) = (switchd.attach("A"), switchd.attach("A"));
        let file = switchd.home().join("a.pcapng");
        let path = file.to_str().expect("a path in ASCII");
        let mut capturing = capture(&switchd, &["A", "-w", path], Stdio::null());
        for n in 0..10 {
            pass(&a, &b, &frame(BROADCAST, mac(1), 60, n));
        }
        switchd.run(arguments).ok();
        let status = capturing.wait().code();
        if arguments == ["stop"] {
            assert!(switchd.wait().success());
        } else {
            assert_eq!(status, Some(0), "{}", said(&switchd));
            assert!(
                said(&switchd).contains("10 frames captured"),
                "{}",
                said(&switchd)
            );
        }
        assert_eq!(rows(&file).len(), 10);
    }
}

#[test]
fn a_full_disk_ends_the_capture_with_a_message_and_nothing_else() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let text = switchd.run(&["capture", "A", "-w", "/dev/full"]).failed(1);
    assert!(
        text.contains("cannot write the capture") && text.contains("No space left on device"),
        "{text}"
    );
    until_true("the capture has gone", || switchd.domain("A").captures == 0);
    for n in 0..10 {
        pass(&a, &b, &frame(BROADCAST, mac(1), 60, n));
    }
    assert!(switchd.domain("A").drops.is_empty());
}

#[test]
fn several_captures_of_a_domain_do_not_disturb_each_other() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let files = ["1", "2", "3"].map(|name| switchd.home().join(name));
    let mut captures = Vec::new();
    for (n, file) in (0..).zip(&files) {
        let path = file.to_str().expect("a path in ASCII");
        captures.push(capture(&switchd, &["A", "-w", path], Stdio::null()));
        pass(&a, &b, &frame(BROADCAST, mac(1), 60, n));
    }
    for process in &mut captures {
        process.signal(Signal::SIGINT);
        assert_eq!(process.wait().code(), Some(0));
    }
    assert_eq!(files.map(|file| rows(&file).len()), [3, 2, 1]);
}

#[test]
fn a_port_that_comes_back_is_another_interface() {
    let switchd = Switchd::with_domain(&["A"]);
    let a = switchd.attach("A");
    let file = switchd.home().join("a.pcapng");
    let path = file.to_str().expect("a path in ASCII");
    let mut capturing = capture(&switchd, &["A", "-w", path], Stdio::null());
    for n in 0..3 {
        let b = switchd.attach("A");
        pass(&b, &a, &frame(BROADCAST, mac(2), 60, n));
        drop(b);
        until_true("it has left", || switchd.ports("A").len() == 1);
    }
    capturing.signal(Signal::SIGINT);
    assert_eq!(capturing.wait().code(), Some(0));
    let rows = rows(&file);
    assert_eq!(rows.len(), 3);
    assert_eq!(capinfos(&file)["Number of interfaces in file"], "3");
    let payload = until("a payload", || Some(rows[2].payload.clone()));
    assert_eq!(
        payload[..8],
        format!("{:08x}", seed(&frame(BROADCAST, mac(2), 60, 2)))
    );
}

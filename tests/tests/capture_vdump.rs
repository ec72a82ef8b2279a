//! `vdump`: a capture stream, lines of text, and a table of talkers.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::capture::{Capture, file, frames};
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{Process, binary};
use tests::switchd::Switchd;
use tests::wait;

/// An ARP request for 10.0.0.2.
fn arp() -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac(1)].concat();
    frame.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    frame
}

/// The program under its other name.
fn vdump(switchd: &Switchd) -> Command {
    let link = file(switchd, "vdump");
    if !link.exists() {
        symlink(binary("switchd"), &link).expect("a link in a directory of our own");
    }
    let mut command = Command::new(link);
    command.env("NETKIT_HUBS", switchd.dir()).env_remove("NO_COLOR");
    command
}

#[test]
fn under_its_own_name_it_writes_a_stream() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let whole = file(&switchd, "stream");
    let mut command = vdump(&switchd);
    command
        .arg("A")
        .stdout(File::create(&whole).unwrap())
        .stderr(Stdio::null());
    let mut process = Process::start_as_is(&mut command);
    wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
    let sent = frame(BROADCAST, mac(1), 77, 1);
    a.send(&sent);
    b.recv();
    process.signal(Signal::SIGINT);
    assert!(process.wait().success());
    assert_eq!(frames(&whole), [sent]);
}

#[test]
fn frames_are_put_into_words() {
    let switchd = Switchd::with_domain(&["A", "--mode", "switch"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let capture = Capture::start_command(&switchd, "A", vdump(&switchd).args(["-t", "A", "--drops"]));
    a.send(&arp());
    a.send(&frame(mac(1), mac(1), 60, 1));
    let last = frame(BROADCAST, mac(1), 60, 2);
    a.send(&last);
    b.recv_until(&last);
    let outcome = capture.interrupt();
    assert!(outcome.stderr.contains("3 frames captured"), "{outcome:?}");
    assert!(!outcome.stdout.contains('\x1b'), "{outcome:?}");
    let mut lines: Vec<_> = outcome.stdout.lines().collect();
    lines.sort_by_key(|line| line.len());
    assert_eq!(lines.len(), 3, "{lines:?}");
    let port = |line: &str| line.split(' ').nth(1).map(str::to_owned);
    assert!(
        lines.iter().all(|line| port(line).as_deref() == Some("A:1")),
        "{lines:?}"
    );
    let arp = lines.iter().find(|line| line.contains("ARP")).unwrap();
    assert!(
        arp.ends_with(
            "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff ARP    who has 10.0.0.2, tell 10.0.0.1, 42 bytes"
        ),
        "{arp}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("0x88b5, 60 bytes [dropped: same-port]")),
        "{lines:?}"
    );
}

#[test]
fn a_terminal_gets_colours_unless_no_color_is_set() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    for (no_color, coloured) in [("", true), ("1", false)] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = vdump(&switchd);
        command.args(["-t", "A", "-c", "1"]).env("NO_COLOR", no_color);
        command.stdout(pty.slave).stderr(Stdio::null());
        let mut process = Process::start_as_is(&mut command);
        drop(command);
        wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
        a.send(&arp());
        b.recv();
        assert!(process.wait().success());
        let mut text = [0; 4096];
        let count = File::from(pty.master).read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..count]);
        assert!(text.contains("who has 10.0.0.2"), "{text}");
        assert_eq!(text.contains("\x1b[33mARP"), coloured, "{text}");
    }
}

#[test]
fn talkers_and_protocols_are_counted() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let capture = Capture::start_command(&switchd, "A", vdump(&switchd).args(["--stats", "A"]));
    for seed in 0..5 {
        a.send(&frame(mac(2), mac(1), 100, seed));
        b.recv();
    }
    b.send(&arp());
    a.recv();
    let outcome = capture.interrupt();
    let words: Vec<Vec<_>> = outcome
        .stdout
        .lines()
        .map(|line| line.split_whitespace().take(4).collect())
        .collect();
    for row in [
        &["02:00:00:00:00:01", "02:00:00:00:00:02", "5", "500"][..],
        &["02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "1", "42"],
    ] {
        assert!(words.iter().any(|words| words == row), "{outcome:?}");
    }
    assert!(
        words
            .iter()
            .any(|words| words.starts_with(&["0x88b5", "5", "500"])),
        "{outcome:?}"
    );
}

#[test]
fn the_table_is_live_on_a_terminal() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = vdump(&switchd);
    command
        .args(["--stats", "A"])
        .stdout(pty.slave)
        .stderr(Stdio::null());
    let mut process = Process::start_as_is(&mut command);
    drop(command);
    wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
    a.send(&arp());
    b.recv();
    // It shows itself again and again, and has not been told to end.
    let mut shown = String::new();
    let mut terminal = File::from(pty.master);
    while !(shown.contains("ARP") && shown.matches("\x1b[H\x1b[J").count() >= 2) {
        let mut text = [0; 4096];
        let count = terminal.read(&mut text).unwrap();
        shown += &String::from_utf8_lossy(&text[..count]);
    }
    process.signal(Signal::SIGINT);
    assert!(process.wait().success());
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let switchd = Switchd::with_domain(&["A"]);
    for arguments in [&["A"][..], &["-t", "A"], &["--pcap", "A"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = vdump(&switchd);
        command
            .args(arguments)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::null());
        let mut process = Process::start_as_is(&mut command);
        drop(command);
        wait::until_true("the capture has begun", || switchd.domain("A").captures == 1);
        drop(reader);
        assert!(process.wait().success(), "{arguments:?}");
        wait::until_true("the capture is gone", || switchd.domain("A").captures == 0);
    }
}

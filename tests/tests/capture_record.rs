//! `switchd record`: the last frames of a domain, written when something has happened.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tests::capture::{field, file, frames};
use tests::frame::{BROADCAST, frame, mac};
use tests::switchd::Switchd;
use tests::wait;

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

/// Frames kept of domain A.
fn kept(switchd: &Switchd) -> u64 {
    let rows = switchd.run(&["record", "A", "--json"]).ok();
    let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
    rows[0]["frames"].as_u64().expect("a number of frames")
}

#[test]
fn what_just_happened_is_saved_and_recording_goes_on() {
    let switchd = Switchd::with_domain(&["A", "--mode", "switch"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    switchd.run(&["record", "A", "--last", "1h"]).ok();
    let mut sent = Vec::new();
    for round in 0..3 {
        let good = frame(BROADCAST, mac(1), 100, round);
        let own = frame(mac(1), mac(1), 60, round);
        a.send(&good);
        assert_eq!(b.recv(), good);
        a.send(&own);
        sent.extend([good, own]);
        wait::until_true("both are kept", || kept(&switchd) == sent.len() as u64);
        let saved = file(&switchd, "saved.pcapng");
        let outcome = switchd.run(&["record", "A", "--save", path(&saved)]);
        assert!(
            outcome
                .stderr
                .contains(&format!("{} frames captured", sent.len())),
            "{outcome:?}"
        );
        assert_eq!(frames(&saved), sent);
        assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
        let comments = field(&saved, "frame.comment");
        assert_eq!(
            comments
                .iter()
                .filter(|text| *text == "dropped: same-port")
                .count()
                * 2,
            sent.len()
        );
    }
    switchd.run(&["record", "A", "--stop"]).ok();
    wait::until_true("the domain is left alone", || switchd.domain("A").captures == 0);
}

#[test]
fn old_frames_and_too_many_bytes_are_forgotten() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    switchd.run(&["record", "A", "--last", "50k"]).ok();
    let sent: Vec<_> = (0..200)
        .map(|seed| frame(BROADCAST, mac(1), 1000, seed))
        .collect();
    for frame in &sent {
        a.send(frame);
        assert_eq!(&b.recv(), frame);
    }
    let saved = file(&switchd, "saved.pcapng");
    // The last frame is kept a moment after it was forwarded.
    wait::until_true("the last frame is kept", || {
        switchd.run(&["record", "A", "--save", path(&saved)]).ok();
        frames(&saved).last() == sent.last()
    });
    let kept_frames = frames(&saved);
    assert!(
        (20..=50).contains(&kept_frames.len()),
        "{} frames",
        kept_frames.len()
    );
    assert_eq!(kept_frames, sent[sent.len() - kept_frames.len()..]);
    switchd.run(&["record", "A", "--last", "300ms"]).ok();
    // On a busy machine a frame may be forgotten before it was asked for.
    wait::until_true("one is kept", || {
        a.send(&sent[0]);
        assert_eq!(b.recv(), sent[0]);
        kept(&switchd) > 0
    });
    wait::until_true("it is forgotten", || kept(&switchd) == 0);
    assert_eq!(switchd.domain("A").captures, 1);
}

#[test]
fn it_is_listed_and_saved_to_a_pipe() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    switchd.run(&["record", "A", "--last", "64M"]).ok();
    switchd.run(&["record", "B", "--last", "30s"]).ok();
    let sent = frame(BROADCAST, mac(1), 100, 1);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
    wait::until_true("it is kept", || kept(&switchd) == 1);
    let table = switchd.run(&["record"]).ok();
    for (domain, limit) in [("A", "64000000"), ("B", "30 s")] {
        let row = table.lines().find(|line| line.trim_start().starts_with(domain));
        assert!(row.is_some_and(|row| row.contains(limit)), "{domain}: {table}");
    }
    assert_eq!(
        switchd.run(&["record", "A"]).ok().lines().count(),
        2,
        "a header and a row"
    );
    let mut command = switchd.command();
    let saved = file(&switchd, "piped.pcapng");
    let mut process = tests::program::Process::start_as_is(
        command
            .args(["record", "A", "--save", "-"])
            .stdout(fs::File::create(&saved).unwrap())
            .stderr(std::process::Stdio::null()),
    );
    assert!(process.wait().success());
    assert_eq!(frames(&saved), [sent]);
}

#[test]
fn what_is_not_recorded_cannot_be_saved_and_loses_nothing() {
    let switchd = Switchd::with_domain(&["A"]);
    let precious = file(&switchd, "precious");
    fs::write(&precious, "saved before").unwrap();
    let error = switchd.run(&["record", "A", "--save", path(&precious)]).failed(1);
    assert!(error.contains("domain A is not recorded\nhint: "), "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "saved before");
    let left = fs::read_dir(switchd.home()).unwrap().count();
    assert_eq!(left, 3, "the daemon's directory, its log and this file");
    let error = switchd.run(&["record", "B", "--last", "1s"]).failed(1);
    assert!(error.contains("domain B"), "{error}");
    for wrong in [
        &["--last", "some"][..],
        &["--last", "0"],
        &["--stop", "--save", "x"],
    ] {
        let arguments = [&["record", "A"][..], wrong].concat();
        assert_eq!(switchd.run(&arguments).code(), Some(2), "{wrong:?}");
    }
    // A recorder goes with its domain.
    switchd.run(&["record", "A", "--last", "1h"]).ok();
    switchd.run(&["domain", "rm", "A"]).ok();
    assert_eq!(switchd.run(&["record", "--json"]).ok().trim(), "[]");
}

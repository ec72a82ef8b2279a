//! Domains as interfaces of tshark, by the extcap program.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tests::capture::{file, frames};
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{Process, binary, run, tool};
use tests::switchd::Switchd;
use tests::wait;

/// tshark with our extcap program in its user's directory.
fn tshark(switchd: &Switchd) -> Command {
    let directory = file(switchd, ".config/wireshark/extcap");
    if !directory.exists() {
        std::fs::create_dir_all(&directory).expect("a new directory");
        symlink(binary("switchd"), directory.join("hubbub-extcap")).expect("a new link");
    }
    let mut command = Command::new(tool("tshark"));
    command
        .env("HOME", switchd.home())
        .env("NETKIT_HUBS", switchd.dir())
        .env_remove("XDG_CONFIG_HOME");
    command
}

/// Our program itself.
fn extcap(switchd: &Switchd, arguments: &[&str]) -> tests::program::Outcome {
    tshark(switchd);
    let program = file(switchd, ".config/wireshark/extcap/hubbub-extcap");
    run(Command::new(program)
        .env("NETKIT_HUBS", switchd.dir())
        .args(arguments))
}

#[test]
fn tshark_lists_the_domains() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["lan-2"]);
    let list = run(tshark(&switchd).arg("-D")).ok();
    for line in [
        "hubbub:A (Hubbub domain A)",
        "hubbub:lan-2 (Hubbub domain lan-2)",
        "hubbub (All Hubbub domains)",
    ] {
        assert!(
            list.lines().any(|row| row.ends_with(line)),
            "{line} is not in\n{list}"
        );
    }
}

#[test]
fn tshark_captures_a_domain_with_a_filter() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let whole = file(&switchd, "t.pcapng");
    let mut command = tshark(&switchd);
    command.args([
        "-i",
        "hubbub:A",
        "-f",
        "ether src 02:00:00:00:00:01",
        "-c",
        "3",
        "-w",
    ]);
    let process = Process::start(command.arg(&whole));
    wait::until_true("tshark captures", || switchd.domain("A").captures == 1);
    let sent: Vec<_> = (0..3).map(|seed| frame(BROADCAST, mac(1), 60, seed)).collect();
    for frame in &sent {
        b.send(&tests::frame::frame(BROADCAST, mac(2), 60, 9));
        a.recv();
        a.send(frame);
        b.recv();
    }
    let outcome = process.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(frames(&whole), sent);
    wait::until_true("the capture is gone", || switchd.domain("A").captures == 0);
}

#[test]
fn all_domains_are_one_interface() {
    let switchd = Switchd::with_domain(&["A"]);
    switchd.add(&["B"]);
    let ports = [
        switchd.attach("A"),
        switchd.attach("A"),
        switchd.attach("B"),
        switchd.attach("B"),
    ];
    let whole = file(&switchd, "all.pcapng");
    let process = Process::start(
        tshark(&switchd)
            .args(["-i", "hubbub", "-c", "2", "-w"])
            .arg(&whole),
    );
    wait::until_true("tshark captures", || switchd.domain("B").captures == 1);
    let sent = [frame(BROADCAST, mac(1), 60, 1), frame(BROADCAST, mac(2), 60, 2)];
    ports[0].send(&sent[0]);
    ports[1].recv();
    ports[2].send(&sent[1]);
    ports[3].recv();
    assert!(process.outcome().status.success());
    assert_eq!(frames(&whole), sent);
}

#[test]
fn questions_are_answered() {
    let switchd = Switchd::with_domain(&["A"]);
    let dlts = extcap(&switchd, &["--extcap-dlts", "--extcap-interface", "hubbub:A"]).ok();
    assert!(dlts.contains("{number=1}{name=EN10MB}"), "{dlts}");
    let config = extcap(&switchd, &["--extcap-config", "--extcap-interface", "hubbub:A"]).ok();
    assert!(
        config.contains("{call=--snap}") && config.contains("{call=--drops}"),
        "{config}"
    );
    let check = |filter: &str| {
        let arguments = [
            "--extcap-interface",
            "hubbub:A",
            "--extcap-capture-filter",
            filter,
        ];
        extcap(&switchd, &arguments).ok()
    };
    assert_eq!(check("arp or icmp"), "");
    assert!(check("arp orr").contains("syntax error"));
    let error = extcap(
        &switchd,
        &["--capture", "--extcap-interface", "eth0", "--fifo", "/dev/null"],
    )
    .failed(1);
    assert!(error.contains("interface eth0 is none of Hubbub's"), "{error}");
    assert_eq!(extcap(&switchd, &["--fly"]).code(), Some(2));
}

#[test]
fn without_a_daemon_there_are_no_interfaces_and_no_error() {
    let switchd = Switchd::prepared();
    let list = extcap(&switchd, &["--extcap-interfaces"]).ok();
    assert!(
        list.starts_with("extcap {version=") && !list.contains("interface {"),
        "{list}"
    );
    assert!(!Path::new(&switchd.dir()).exists());
}

#[test]
fn tshark_sets_the_snap_length_and_shows_dropped_frames() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let whole = file(&switchd, "t.pcapng");
    let mut command = tshark(&switchd);
    command.args(["-i", "hubbub:A", "-o", "extcap.hubbub_a.snap:40"]);
    command.args(["-o", "extcap.hubbub_a.drops:also", "-c", "2", "-w"]);
    let process = Process::start(command.arg(&whole));
    wait::until_true("tshark captures", || switchd.domain("A").captures == 1);
    let (runt, next) = (vec![1; 13], frame(BROADCAST, mac(1), 60, 1));
    a.send(&runt);
    a.send(&next);
    b.recv();
    let outcome = process.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(frames(&whole), [runt, next[..40].to_vec()]);
    let shown = run(Command::new(tool("tshark")).arg("-r").arg(&whole).args([
        "-T",
        "fields",
        "-e",
        "frame.len",
        "-e",
        "frame.comment",
    ]))
    .ok();
    assert_eq!(shown, "13\tdropped: runt\n60\t\n");
}

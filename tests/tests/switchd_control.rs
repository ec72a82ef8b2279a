//! The daemon is asked and told over its control socket and its command line.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use proto::ctl::{DomainSpec, ErrorCode, Mode, Reply, Request};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac, text};
use tests::program::Process;
use tests::switchd::Switchd;
use tests::wait::{until, until_true};

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
}

#[test]
fn domains_are_made_listed_shown_and_removed() {
    let switchd = Switchd::start();
    assert_eq!(switchd.run(&["domain", "ls", "--json"]).ok(), "[]\n");
    assert_eq!(switchd.run(&["domain", "add", "A"]).ok(), "");
    switchd
        .run(&[
            "domain", "add", "B", "--mode", "switch", "--mtu", "9000", "--ageing", "7",
        ])
        .ok();

    let a = switchd.domain("A");
    assert_eq!(
        (a.mode, a.mtu, a.ageing_s, a.transient),
        (Mode::Hub, 1500, 100, false)
    );
    assert_eq!((a.ports, a.stations, a.captures), (0, 0, 0));
    let b = switchd.domain("B");
    assert_eq!((b.mode, b.mtu, b.ageing_s), (Mode::Switch, 9000, 7));
    let table = switchd.run(&["domain", "ls"]).ok();
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..3], ["DOMAIN", "MODE", "MTU"]);
    assert_eq!(lines[1], ["A", "hub", "1500", "0", "0", "0", "0", "0"]);
    assert_eq!(lines[2], ["B", "switch", "9000", "0", "0", "0", "0", "0"]);
    let shown = switchd.run(&["domain", "show", "B"]).ok();
    assert_has(&shown, &["switch", "9000", "ageing: 7 s", &b.sockets["uml"]]);
    let all: Vec<proto::ctl::DomainRow> =
        serde_json::from_str(&switchd.run(&["domain", "ls", "--json"]).ok()).unwrap();
    assert_eq!(all, [a, b]);

    assert_eq!(switchd.run(&["domain", "rm", "A"]).ok(), "");
    let text = switchd.run(&["domain", "show", "A"]).failed(1);
    assert_eq!(text, "switchd: there is no domain A\n");
}

#[test]
fn ports_and_counters_are_listed() {
    let switchd = Switchd::with_domain(&["S", "--mode", "switch"]);
    switchd.add(&["T"]);
    let (a, b) = (switchd.attach("S"), switchd.attach("S"));
    let _elsewhere = switchd.attach("T");
    a.send(&frame(BROADCAST, mac(1), 100, 1));
    b.recv();
    a.send(&[0; 5]);
    b.send(&frame(mac(1), mac(2), 60, 2));
    a.recv();
    let port = switchd.port("S", 1);
    assert_eq!((port.domain.as_str(), port.kind.as_str()), ("S", "uml"));
    let peer = port.peer.unwrap();
    assert_eq!(
        (peer.pid, peer.uid),
        (std::process::id(), nix::unistd::geteuid().as_raw())
    );
    let own = std::env::args().next().unwrap();
    assert_eq!(port.name, Path::new(&own).file_name().unwrap().to_str().unwrap());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(now.as_secs().abs_diff(port.since) < 60, "{port:?}");
    assert_eq!(
        (port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes),
        (2, 105, 1, 60)
    );
    assert_eq!(
        port.drops.into_iter().collect::<Vec<_>>(),
        [("runt".to_owned(), 1)]
    );
    assert_eq!(port.stations, [text(mac(1))]);

    let table = switchd.run(&["port", "ls"]).ok();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert_has(&table, &["DOMAIN", "PORT", "KIND", "1 runt"]);
    assert_eq!(switchd.run(&["port", "ls", "T"]).ok().lines().count(), 2);
    let fdb = switchd.run(&["fdb", "S"]).ok();
    assert_has(&fdb, &["STATION", &text(mac(1)), &text(mac(2)), " s"]);
    assert_eq!(switchd.fdb("S").len(), 2);

    let stats = switchd.stats();
    assert_eq!(stats.daemon.pid, switchd.pid().as_raw().unsigned_abs());
    assert_eq!(stats.domains.len(), 2);
    assert_eq!((stats.domains[0].rx_frames, stats.domains[0].tx_frames), (3, 2));
    assert_has(&switchd.run(&["stats"]).ok(), &["switchd ", "S", "1 runt"]);

    // What a port that has left has carried stays in its domain's sum.
    drop(a);
    until_true("it has left", || switchd.ports("S").len() == 1);
    let after = switchd.domain("S");
    assert_eq!((after.rx_frames, after.tx_frames, after.drops["runt"]), (3, 2, 1));
}

#[test]
fn stats_are_shown_until_interrupted_and_a_closed_pipe_is_no_error() {
    let switchd = Switchd::with_domain(&["A"]);
    let mut command = switchd.command();
    let mut watching = Process::start_as_is(
        command
            .args(["stats", "--watch", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let stdout = watching.child().stdout.take().unwrap();
    let mut rows = serde_json::Deserializer::from_reader(stdout).into_iter::<proto::ctl::Stats>();
    let first = rows.next().unwrap().unwrap();
    let second = rows.next().unwrap().unwrap();
    assert!(second.daemon.uptime_s > first.daemon.uptime_s || second == first);
    drop(rows);
    // Nobody reads any more.
    assert_eq!(watching.wait().code(), Some(0));
}

#[test]
fn errors_say_what_failed_and_how_to_go_on() {
    let mut switchd = Switchd::prepared();
    let text = switchd.run(&["domain", "ls"]).failed(1);
    assert_has(
        &text,
        &["no switchd answers at", "switchd.sock", "hint: start one with"],
    );
    switchd.launch(&[]);
    switchd.add(&["A"]);
    for (arguments, code, parts) in [
        (&["domain", "add", "A"][..], 1, &["domain A is there already"][..]),
        (&["domain", "rm", "X"], 1, &["no domain X"]),
        (&["port", "ls", "X"], 1, &["no domain X"]),
        (&["fdb", "X"], 1, &["no domain X"]),
        (&["capture", "X", "-w", "/dev/null"], 1, &["no domain X"]),
        (
            &["capture", "A", "-w", "/nonexistent/x"],
            1,
            &["cannot write /nonexistent/x", "No such file"],
        ),
        (&["domain", "add", "B", "--mtu", "67"], 1, &["domain B", "68"]),
        (
            &["domain", "add", "B", "--mtu", "65522"],
            1,
            &["domain B", "65521"],
        ),
        (&["domain", "add", "a_b"], 2, &["a_b", "'_'"]),
        (&["domain", "add", "a b"], 2, &["a b"]),
        (&["domain", "add", ""], 2, &["empty"]),
        (
            &["domain", "add", "B", "--mode", "bridge"],
            2,
            &["'hub' or a 'switch'"],
        ),
        (&["domain", "add", "B", "--mtu", "many"], 2, &["many"]),
        (&["domain", "fly"], 2, &["fly"]),
        (&["capture", "A", "--snap", "0"], 2, &["snap"]),
        (&[], 2, &["Usage"]),
        (&["run", "--hold-ms", "501"], 2, &["501 ms", "500"]),
        (&["run", "--poll-us", "1001"], 2, &["1001 µs", "1000"]),
        (&["run", "--workers", "0"], 2, &["0 workers"]),
    ] {
        assert_has(&switchd.run(arguments).failed(code), parts);
    }
    assert_has(
        &switchd.run(&["--help"]).ok(),
        &["Examples:", "switchd capture A"],
    );
    assert_has(&switchd.run(&["--version"]).ok(), &["switchd "]);
    assert_eq!(switchd.stats().domains.len(), 1);
    assert_eq!(switchd.domain("A").captures, 0);
}

#[test]
fn malformed_control_lines_change_nothing() {
    let switchd = Switchd::with_domain(&["A"]);
    let before = switchd.stats().domains;
    for line in [
        &b"hello"[..],
        b"",
        b"{}",
        b"[]",
        b"null",
        br#"{"op":"fly"}"#,
        br#"{"op":"domain-add"}"#,
        br#"{"op":"domain-add","domain":"B","colour":"red"}"#,
        br#"{"op":"domain-add","domain":"../../x"}"#,
        br#"{"op":"domain-add","domain":"B","mtu":-1}"#,
        br#"{"op":"domain-add","domain":"B","mtu":1e99}"#,
        br#"{"op":"domain-rm","domain":"A"} {"op":"domain-rm","domain":"A"}"#,
        br#"{"op":"fdb-add","domain":"A","mac":"not a mac","port":1}"#,
        br#"{"op":"capture","domains":["A"]}"#,
        br#"{"op":"capture-stop"}"#,
        b"\x00\xff\xfe\x80\x80",
    ] {
        let mut control = switchd.connect();
        control.send(line).unwrap();
        control.send(b"\n").unwrap();
        let shown = line.escape_ascii();
        match control.reply() {
            Some(Reply::Error(error)) => assert_eq!(error.code, ErrorCode::Invalid, "{shown}: {error}"),
            other => panic!("{shown}: {other:?}"),
        }
        // The conversation goes on.
        assert!(
            matches!(control.ask(&Request::Hello), Reply::Daemon(_)),
            "{shown}"
        );
    }
    assert_eq!(switchd.stats().domains, before);

    // A line that does not end is refused and the connection closed.
    for byte in [b'x', b' ', 0xff] {
        let mut control = switchd.connect();
        let huge = vec![byte; 200 * 1024];
        // The daemon may hang up while we are still sending.
        let _ = control.send(&huge);
        match control.reply() {
            Some(Reply::Error(error)) => {
                assert!(error.message.contains("longer than"), "{error}");
                assert_eq!(control.reply(), None);
            }
            // It has hung up with some of our bytes unread, and so its words are lost.
            None => {}
            other => panic!("{other:?}"),
        }
    }
    // A client that hangs up in the middle of a line, or does not read its replies, is nobody's problem.
    switchd.connect().send(br#"{"op":"domain-rm","do"#).unwrap();
    let deaf = switchd.connect();
    deaf.stream().set_nonblocking(true).unwrap();
    while deaf.send(&b"{\"op\":\"stats\"}\n".repeat(100)).is_ok() {}
    assert_eq!(switchd.stats().domains, before);
}

#[test]
fn several_requests_may_come_at_once_and_in_pieces() {
    let switchd = Switchd::start();
    let mut control = switchd.connect();
    control
        .send(b"{\"op\":\"domain-add\",\"domain\":\"A\"}\n{\"op\":\"domain-ls\"}\n{\"op\":")
        .unwrap();
    assert!(matches!(control.reply(), Some(Reply::Domain(row)) if row.domain.as_str() == "A"));
    assert!(matches!(control.reply(), Some(Reply::Domains(rows)) if rows.len() == 1));
    control.send(b"\"hello\"}\n").unwrap();
    assert!(matches!(control.reply(), Some(Reply::Daemon(_))));
}

#[test]
fn a_held_domain_goes_with_its_last_holder_and_port() {
    let switchd = Switchd::start();
    let spec = DomainSpec::new("T".parse().unwrap());
    let hold = Request::DomainHold(spec);
    let there = || switchd.stats().domains.len() == 1;
    let (mut first, mut second) = (switchd.connect(), switchd.connect());
    for control in [&mut first, &mut second] {
        match control.ask(&hold) {
            Reply::Domain(row) => assert!(row.transient),
            other => panic!("{other:?}"),
        }
    }
    // Twice by the same one counts once.
    first.ask(&hold);
    let port = switchd.attach("T");
    drop(first);
    drop(second);
    let other = switchd.attach("T");
    drop(other);
    until_true("one port", || switchd.ports("T").len() == 1);
    assert!(there());
    drop(port);
    until_true("the domain has gone", || !there());
    assert_eq!(switchd.files(), [switchd.socket()]);

    // A hold without a port.
    let mut control = switchd.connect();
    control.ask(&hold);
    assert!(there());
    drop(control);
    until_true("the domain has gone", || !there());

    // Held, removed by somebody else, held again.
    let mut control = switchd.connect();
    control.ask(&hold);
    switchd.run(&["domain", "rm", "T"]).ok();
    assert!(matches!(control.ask(&hold), Reply::Domain(_)));
    assert!(there());

    // One that was made to stay stays.
    switchd.add(&["P"]);
    let mut control = switchd.connect();
    let hold = Request::DomainHold(DomainSpec::new("P".parse().unwrap()));
    assert!(matches!(control.ask(&hold), Reply::Domain(row) if !row.transient));
    drop(control);
    drop(switchd.attach("P"));
    until_true("no port", || switchd.ports("P").is_empty());
    assert_eq!(switchd.domain("P").ports, 0);
}

#[test]
fn a_domain_made_anew_under_the_same_name_is_not_disturbed_by_the_old_one() {
    let switchd = Switchd::start();
    for _ in 0..30 {
        switchd.add(&["A"]);
        let old = [(); 4].map(|()| switchd.attach("A"));
        let mut control = switchd.connect();
        control.ask(&Request::DomainRm {
            domain: "A".parse().unwrap(),
        });
        control.ask(&Request::DomainAdd(DomainSpec::new("A".parse().unwrap())));
        let control = old[0]
            .control()
            .peer_addr()
            .unwrap()
            .as_pathname()
            .unwrap()
            .to_owned();
        let new = [(); 4].map(|()| Client::attach(&control));
        for client in &old {
            client.wait_for_hangup();
        }
        // The old ports have been cleaned up by the time a command is answered.
        assert_eq!(switchd.ports("A").len(), 4);
        for client in &new {
            assert!(client.switch_path().exists(), "{:?}", client.switch());
        }
        switchd.run(&["domain", "rm", "A"]).ok();
    }
}

#[test]
fn a_running_daemon_uses_no_processor_time_when_nothing_happens() {
    let switchd = Switchd::with_domain(&["A"]);
    let client = switchd.attach("A");
    client.control().write_all(b"x").unwrap();
    let stat = format!("/proc/{}/stat", switchd.pid());
    let ticks = || -> u64 {
        let text = fs::read_to_string(&stat).unwrap();
        let fields: Vec<_> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // It may have something to do at first; then there is a whole second in which it does nothing.
    let mut window = (Instant::now(), ticks());
    until("a second without work", || {
        let now = ticks();
        if now > window.1 + 1 {
            window = (Instant::now(), now);
        }
        (window.0.elapsed() > Duration::from_secs(1)).then_some(())
    });
}

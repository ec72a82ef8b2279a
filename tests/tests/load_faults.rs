//! A client that dies or stops under full load costs the others nothing.
//!
//! The load is the bench's: senders that block, receivers that check every frame. The client that fails is a process of
//! its own, a `hubload` on the same domain.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::load::{Load, Running, Traffic};
use bench::report::Report;
use bench::stop::Stop;
use nix::sys::signal::Signal;
use proto::ctl::PortRow;
use tests::program::{Process, binary};
use tests::switchd::Switchd;
use tests::wait::{until, until_true};

/// Frames for a rate.
const ENOUGH: u64 = 30_000;

/// A client process with one port, which sends if `senders` is 1.
fn victim(switchd: &Switchd, senders: &str) -> Process {
    let mut command = Command::new(binary("hubload"));
    command
        .args(["--ports", "1", "--senders", senders, "--traffic", "flood"])
        .args(["--seconds", "600"])
        .arg(switchd.uml_socket("A"))
        .stdout(Stdio::null());
    let process = Process::start_as_is(&mut command);
    until_true("the client's port", || port_of(switchd, &process).is_some());
    process
}

fn port_of(switchd: &Switchd, process: &Process) -> Option<PortRow> {
    let pid = process.pid().as_raw().cast_unsigned();
    let is_its = |row: &PortRow| row.peer.is_some_and(|peer| peer.pid == pid);
    switchd.ports("A").into_iter().find(is_its)
}

/// A load of broadcast frames that lasts until it is stopped.
fn load(switchd: &Switchd, ports: u16, senders: u16) -> Running {
    let load = Load {
        ports,
        senders,
        traffic: Traffic::Flood,
        time: Duration::from_secs(600),
        drain: Duration::from_secs(20),
        ..Load::new(switchd.uml_socket("A"))
    };
    Running::start(load, &Stop::default()).unwrap()
}

/// Waits until every receiver has got `more` frames more than now.
#[track_caller]
fn go_on(running: &Running, more: u64) {
    let before = running.delivered();
    until_true("frames at every port", || {
        let now = running.delivered();
        let receiving = || before.iter().zip(&now).filter(|&(_, &now)| now > 0);
        receiving().count() > 0 && receiving().all(|(before, now)| now - before >= more)
    });
}

/// Frames delivered a second, all ports together, until there are enough of them for a rate.
#[track_caller]
fn rate(running: &Running) -> f64 {
    let sum = || running.delivered().iter().sum::<u64>();
    let (start, before) = (Instant::now(), sum());
    until("frames for a rate", || {
        let frames = sum() - before;
        #[expect(clippy::cast_precision_loss, reason = "a count below 2^52")]
        (frames >= ENOUGH).then(|| frames as f64 / start.elapsed().as_secs_f64())
    })
}

#[track_caller]
fn assert_clean(report: &Report) {
    let wrong = report.reordered + report.duplicates + report.damaged + report.strays;
    assert_eq!(wrong, 0, "{report:#?}");
}

#[test]
fn a_killed_client_takes_no_frame_of_the_others_along() {
    // The longest hold: receivers that get no processor time on a busy machine are no stuck receivers.
    let switchd = Switchd::start_with(&["--hold-ms", "500"]);
    switchd.add(&["A"]);
    let mut victims = [
        victim(&switchd, "1"),
        victim(&switchd, "1"),
        victim(&switchd, "0"),
    ];
    let running = load(&switchd, 4, 2);
    for victim in &mut victims {
        go_on(&running, 2000);
        let port = port_of(&switchd, victim).expect("its port");
        assert!(port.tx_frames > 0, "{port:#?}");
        victim.signal(Signal::SIGKILL);
        until_true("its port to go", || {
            switchd.ports("A").iter().all(|row| row.id != port.id)
        });
        victim.wait();
    }
    go_on(&running, 2000);
    assert_eq!(switchd.ports("A").len(), 4);
    running.stop_sending();
    let report = running.finish().unwrap();
    assert!(report.offered > 4 * 2000, "{report:#?}");
    assert_eq!(report.lost, 0, "{report:#?}");
    assert_clean(&report);
}

#[test]
fn a_stopped_client_does_not_slow_the_others() {
    let switchd = Switchd::with_domain(&["A"]);
    let victim = victim(&switchd, "0");
    let running = load(&switchd, 3, 1);
    go_on(&running, 1000);
    let id = port_of(&switchd, &victim).expect("its port").id;
    let bypassed = || switchd.port("A", id).drops.get("bypassed").copied().unwrap_or(0);

    // In turns, so that what else the machine does hits both alike. A busy machine makes single windows differ by much
    // more than is asserted: the measurement goes on until it is clear, and only a lasting loss of rate fails.
    let (mut reading, mut stopped) = (Vec::new(), Vec::new());
    while reading.len() < 5 || (median(&stopped) < 0.9 * median(&reading) && reading.len() < 35) {
        reading.push(rate(&running));
        let before = bypassed();
        victim.signal(Signal::SIGSTOP);
        until_true("the end of the bounded wait", || bypassed() > before);
        stopped.push(rate(&running));
        victim.signal(Signal::SIGCONT);
        let sent = switchd.port("A", id).tx_frames;
        until_true("the client to get frames again", || {
            switchd.port("A", id).tx_frames > sent + 100
        });
    }
    running.stop_sending();
    let report = running.finish().unwrap();
    assert_clean(&report);
    let (reading, stopped) = (median(&reading), median(&stopped));
    assert!(
        stopped >= 0.9 * reading,
        "{stopped:.0} frames/s beside a stopped client, {reading:.0} beside one that reads\n{report:#?}"
    );
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

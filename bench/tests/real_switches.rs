//! The generator against the switches Debian ships: what it sees must be what they are known to do.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::contestant::{Contestant, Kind};
use bench::load::{Calls, Delivery, Full, Load, LoadError, Traffic, run};
use bench::stop::Stop;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn contestants(mode: Delivery) -> [Contestant; 2] {
    [Kind::UmlSwitch, Kind::VdeSwitch].map(|kind| Contestant::start(&kind, mode).expect("the switch starts"))
}

#[test]
fn a_small_load_arrives_whole_at_every_port_of_a_hub() {
    for switch in contestants(Delivery::Hub) {
        for calls in [Calls::Single, Calls::Vector] {
            let load = Load {
                ports: 4,
                senders: 2,
                traffic: Traffic::Flood,
                // Both together fit into the queue of a receiver that gets no processor time.
                frames: Some(5),
                send: calls,
                receive: calls,
                time: Duration::from_secs(30),
                switch_pid: Some(switch.pid()),
                ..Load::new(switch.control())
            };
            let report = run(load, &Stop::default()).unwrap();
            assert_eq!((report.offered, report.refused), (10, 0));
            assert_eq!((report.delivered, report.lost), (30, 0), "{report:#?}");
            let wrong =
                report.reordered + report.duplicates + report.damaged + report.foreign + report.strays;
            assert_eq!(wrong, 0, "{report:#?}");
            let expected: Vec<u64> = report.receivers.iter().map(|row| row.expected).collect();
            assert_eq!(expected, [5, 5, 10, 10]);
            assert!(report.switch_cpu_s.is_some());
        }
    }
}

#[test]
fn a_learning_switch_tells_nobody_else() {
    for switch in contestants(Delivery::Switch) {
        let load = Load {
            ports: 4,
            senders: 4,
            frames: Some(10),
            delivery: Delivery::Switch,
            time: Duration::from_secs(30),
            ..Load::new(switch.control())
        };
        let report = run(load, &Stop::default()).unwrap();
        assert_eq!(
            (report.offered, report.delivered, report.strays),
            (40, 40, 0),
            "{report:#?}"
        );
    }
}

#[test]
fn a_hub_taken_for_a_switch_is_found_out() {
    let switch = Contestant::start(&Kind::UmlSwitch, Delivery::Hub).unwrap();
    let load = Load {
        ports: 3,
        frames: Some(10),
        delivery: Delivery::Switch,
        time: Duration::from_secs(30),
        ..Load::new(switch.control())
    };
    let report = run(load, &Stop::default()).unwrap();
    assert_eq!((report.delivered, report.strays), (10, 10), "{report:#?}");
}

#[test]
fn frames_that_uml_switch_cuts_are_damaged_and_lost() {
    let switch = Contestant::start(&Kind::UmlSwitch, Delivery::Hub).unwrap();
    let load = Load {
        size: 1518,
        frames: Some(10),
        time: Duration::from_secs(30),
        ..Load::new(switch.control())
    };
    let report = run(load, &Stop::default()).unwrap();
    assert_eq!(
        (report.offered, report.delivered, report.damaged, report.lost),
        (10, 0, 10, 10)
    );
}

#[test]
fn at_full_load_frames_are_lost_but_neither_swapped_nor_changed() {
    for switch in contestants(Delivery::Hub) {
        for full in [Full::Block, Full::Refuse] {
            let load = Load {
                full,
                time: Duration::from_millis(300),
                ..Load::new(switch.control())
            };
            let report = run(load, &Stop::default()).unwrap();
            assert!(report.delivered > 0, "{report:#?}");
            assert_eq!(report.delivered + report.lost, report.offered);
            assert_eq!(
                report.reordered + report.duplicates + report.damaged,
                0,
                "{report:#?}"
            );
        }
    }
}

#[test]
fn a_load_that_makes_no_sense_is_refused() {
    let errors = [
        Load {
            ports: 0,
            senders: 0,
            ..Load::new("/nonexistent")
        },
        Load {
            senders: 3,
            ..Load::new("/nonexistent")
        },
        Load {
            size: 59,
            ..Load::new("/nonexistent")
        },
        Load::new("/nonexistent"),
    ]
    .map(|load| run(load, &Stop::default()).unwrap_err());
    assert!(matches!(errors[0], LoadError::NoPort));
    assert!(matches!(errors[1], LoadError::Senders { .. }));
    assert!(matches!(errors[2], LoadError::Size(59)));
    assert!(matches!(errors[3], LoadError::Attach { port: 0, .. }));
}

#[test]
fn a_switch_that_dies_under_load_ends_the_run() {
    let switch = Contestant::start(&Kind::UmlSwitch, Delivery::Hub).unwrap();
    let load = Load {
        time: Duration::from_secs(60),
        ..Load::new(switch.control())
    };
    let running = bench::load::Running::start(load, &Stop::default()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.delivered()[1] == 0 {
        assert!(Instant::now() < deadline, "nothing arrives");
        std::thread::yield_now();
    }
    drop(switch);
    assert!(matches!(running.finish(), Err(LoadError::Send { port: 0, .. })));
}

#[test]
fn ctrl_c_ends_hubload_with_its_report() {
    let switch = Contestant::start(&Kind::UmlSwitch, Delivery::Hub).unwrap();
    let mut hubload = Command::new(env!("CARGO_BIN_EXE_hubload"))
        .args(["--json", "--seconds", "600", "--rate", "1000"])
        .arg(switch.control())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(hubload.id().cast_signed());
    let threads = format!("/proc/{pid}/task");
    let deadline = Instant::now() + Duration::from_secs(10);
    // The sender and two receivers beside the main thread: it is sending.
    while std::fs::read_dir(&threads).unwrap().count() < 4 {
        assert!(Instant::now() < deadline, "hubload does not begin");
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGINT).unwrap();
    let mut text = String::new();
    hubload.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(hubload.wait().unwrap().success());
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(report["seconds"].as_f64().unwrap() < 60.0, "{text}");
    assert_eq!(report["damaged"], 0);
}

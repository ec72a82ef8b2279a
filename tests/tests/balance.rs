//! Two domains with much to do do not stay with one thread while another one is idle, and lose nothing on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bench::control::Control;
use bench::load::{Delivery, Load, Running};
use bench::port::Attach;
use bench::stop::Stop;
use proto::ctl::{Reply, Request};
use tests::frame::{frame, mac};
use tests::switchd::Switchd;
use tests::wait::{PATIENCE, comes_true, until_true};

#[test]
fn busy_domains_part() {
    let mut daemon = Switchd::prepared();
    daemon.launch(&["--workers", "2", "--hold-ms", "500"]);
    // Every other domain is made on the same worker.
    for name in ["A", "idle", "B"] {
        daemon.add(&[name, "--mode", "switch"]);
    }
    // Not by a command: on a busy machine that takes its time.
    let mut control = Control::connect(&daemon.socket()).expect("a daemon");
    let mut worker = |name: &str| {
        let domain = name.parse().expect("a legal name");
        match control.ask(&Request::DomainShow { domain }) {
            Ok(Reply::Domain(row)) => row.worker,
            other => panic!("no domain {name}: {other:?}"),
        }
    };
    assert_eq!(worker("A"), worker("B"));
    let loads = ["A", "B"].map(|name| {
        let load = Load {
            attach: Attach::Bess,
            delivery: Delivery::Switch,
            time: PATIENCE * 4,
            drain: Duration::from_secs(30),
            ..Load::new(&daemon.domain(name).sockets["bess"])
        };
        Running::start(load, &Stop::default()).unwrap()
    });
    // Each of them has a sender more whose frames go nowhere, so that the worker always has something to do, however
    // busy the machine is.
    let parted = AtomicBool::new(false);
    thread::scope(|scope| {
        for name in ["A", "B"] {
            let client = daemon.attach(name);
            let parted = &parted;
            scope.spawn(move || {
                while !parted.load(Ordering::Relaxed) {
                    client.send(&frame(mac(9), mac(9), 60, 0));
                }
            });
        }
        comes_true(3 * PATIENCE, || worker("A") != worker("B"));
        parted.store(true, Ordering::Relaxed);
    });
    assert_ne!(worker("A"), worker("B"), "no domain has moved");
    for load in loads {
        // It goes on afterwards.
        let at_move: u64 = load.delivered().iter().sum();
        until_true("more frames", || {
            load.delivered().iter().sum::<u64>() > at_move + 1000
        });
        load.stop_sending();
        let report = load.finish().unwrap();
        assert_eq!(report.lost, 0, "{report:#?}");
        let wrong = report.reordered + report.duplicates + report.damaged + report.strays;
        assert_eq!(wrong, 0, "{report:#?}");
    }
}

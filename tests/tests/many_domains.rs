//! A thousand domains live in one process.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::ctl::{DomainSpec, Reply, Request};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::switchd::Switchd;

const DOMAINS: u32 = 1000;

#[test]
fn a_thousand_domains_with_two_ports_each_pass_a_frame_each() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    // A port is two descriptors here and three there.
    assert!(
        hard >= 8 * u64::from(DOMAINS),
        "this test needs 'ulimit -n' of 8,000 or more, not {hard}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("no more than the hard limit");

    let mut switchd = Switchd::start();
    let begun = Instant::now();
    let mut control = switchd.connect();
    let sockets: Vec<_> = (0..DOMAINS)
        .map(|n| {
            let name = format!("d{n}").parse().expect("a name");
            match control.ask(&Request::DomainAdd(DomainSpec::new(name))) {
                Reply::Domain(row) => row.sockets["uml"].clone(),
                other => panic!("domain {n}: {other:?}"),
            }
        })
        .collect();
    let ports: Vec<[Client; 2]> = sockets
        .iter()
        .map(|socket| [(); 2].map(|()| Client::attach(socket.as_ref())))
        .collect();
    for (n, [a, b]) in (0..).zip(&ports) {
        for (from, to) in [(a, b), (b, a)] {
            let sent = frame(BROADCAST, mac(1), 100, n);
            from.send(&sent);
            assert_eq!(to.recv(), sent, "in domain {n}");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());

    let stats = switchd.stats();
    assert_eq!(stats.domains.len(), DOMAINS as usize);
    for row in &stats.domains {
        assert_eq!((row.ports, row.rx_frames, row.tx_frames), (2, 2, 2), "{row:?}");
        assert!(row.drops.is_empty());
    }
    assert!(stats.daemon.refused.is_empty());
    let begun = Instant::now();
    assert!(switchd.stop(nix::sys::signal::Signal::SIGTERM).success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(switchd.files().is_empty());
}

/// A table that grows while threads share it keeps whoever opens a file waiting for all processors.
#[test]
fn there_is_room_for_descriptors_from_the_start() {
    let switchd = Switchd::with_domain(&["A"]);
    let read = |file: &str, key: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", switchd.pid())).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(key)).expect("the line");
        let number = line.split_whitespace().find_map(|word| word.parse().ok());
        number.expect("a number")
    };
    let limit = read("limits", "Max open files");
    assert!(read("status", "FDSize") >= limit.min(65_536));
}

//! What guests that share their memory are promised, with real kernels under load: nothing is lost, nothing stands still,
//! and whatever becomes of one of them, the others notice nothing and nothing of it stays.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bench::load::{Delivery, Load, Running};
use bench::port::Attach;
use bench::stop::Stop;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::frame::{EXPERIMENTAL, frame, mac};
use tests::ports::{only_late, wait_ports};
use tests::station::{HOST, Station};
use tests::switchd::Switchd;
use tests::vhost::{FrontEnd, resources};
use tests::wait;
use virtio::config::OFFERED;

/// The word that gives a guest a card in a domain.
fn word(daemon: &Switchd, domain: &str) -> String {
    format!("virtio_uml.device={}:1", daemon.domain(domain).sockets["vhost"])
}

/// The line of a script that brings a card up.
fn address(card: &str, subnet: u8, n: u8) -> String {
    format!("ip addr add 10.0.{subnet}.{n}/24 dev {card}; ip link set {card} up\n")
}

/// Seconds of TCP. `bench/boots.sh` does the same for longer.
const SECONDS: usize = 10;

#[test]
fn two_guests_lose_no_ping_and_tcp_both_ways_never_stands_still() {
    // On a busy machine a guest may not get its turn for a while.
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mode", "switch"]);
    let boot =
        |name: &str, n: u8| Station::boot(daemon.home(), name, &address("eth0", 0, n), &[word(&daemon, "A")]);
    let (a, b) = (boot("a", 1), boot("b", 2));
    wait_ports(&daemon, "A", 2);
    a.run("until ping -c 1 -w 1 10.0.0.2; do true; done");
    let before = a.unanswered_pings();
    let pings = a.run(&format!("{HOST} ping -q -c 1000 -i 0.002 10.0.0.2"));
    assert!(pings.contains("1000 packets transmitted"), "{pings}");
    wait::until_true("a reply to every ping", || a.unanswered_pings() == before);

    b.run(&format!(
        "{HOST} iperf3 -s >/dev/null 2>&1 & until grep -q :1451 /proc/net/tcp*; do true; done"
    ));
    a.run(&format!(
        "{HOST} iperf3 -c 10.0.0.2 -t {SECONDS} --bidir --json > /mnt/tcp.json"
    ));
    let said = std::fs::read_to_string(daemon.home().join("tcp.json")).unwrap();
    let tcp: Value = serde_json::from_str(&said).unwrap();
    let intervals = tcp["intervals"].as_array().unwrap();
    // What is left of a second at the end is none.
    let whole = |sum: &Value| sum["seconds"].as_f64().unwrap() > 0.5;
    for way in ["sum", "sum_bidir_reverse"] {
        let sums: Vec<_> = intervals
            .iter()
            .map(|interval| &interval[way])
            .filter(|sum| whole(sum))
            .collect();
        assert!(sums.len() + 1 >= SECONDS, "{way}: {said}");
        for sum in sums {
            assert!(sum["bytes"].as_u64().unwrap() > 0, "{way} stands still: {said}");
        }
    }
    for station in [&a, &b] {
        assert_eq!(station.complaints(), Vec::<String>::new());
    }
    for port in daemon.ports("A") {
        assert!(only_late(&port) && port.rx_frames > 1000, "{port:?}");
    }
}

/// A load of checked frames between a daemon's port, a VDE client's and two of sequenced packets, until it is stopped.
fn checked_load(daemon: &Switchd) -> Running {
    let sockets = daemon.domain("A").sockets;
    let load = Load {
        attach: Attach::Bess,
        also: vec![
            (sockets["uml"].clone().into(), Attach::Uml),
            (sockets["vde"].clone().into(), Attach::Connected),
        ],
        ports: 4,
        senders: 4,
        delivery: Delivery::Switch,
        rate: Some(2000),
        time: Duration::from_secs(600),
        drain: Duration::from_secs(30),
        ..Load::new(&sockets["bess"])
    };
    Running::start(load, &Stop::default()).unwrap()
}

/// Two cards that send each other what they get, some frames at once, until it is over. A frame lost stops them.
fn exchange(daemon: &Switchd, over: &Receiver<()>, exchanged: &AtomicU64) {
    let card = || FrontEnd::with_card(&daemon.domain("A").sockets["vhost"], OFFERED);
    let mut cards = [card(), card()];
    cards.iter_mut().for_each(FrontEnd::give_buffers);
    let addresses = [mac(101), mac(102)];
    let mut seed = 0;
    // Not without a pause: the guests need the processors, too.
    while over.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
        for (from, to) in [(0, 1), (1, 0)] {
            let bytes = |n: u32| 60 + (seed + n) as usize % 1440;
            let sent: Vec<_> = (0..16)
                .map(|n| frame(addresses[to], addresses[from], bytes(n), seed + n))
                .collect();
            seed += 16;
            for frame in &sent {
                wait::until_true("room", || cards[from].send(frame));
            }
            for frame in &sent {
                // Guests ask everybody for addresses.
                let got = std::iter::repeat_with(|| cards[to].receive());
                let ours =
                    |got: &Vec<u8>| got[12..14] == EXPERIMENTAL.to_be_bytes() && got[..6] == frame[..6];
                assert_eq!(got.into_iter().find(ours).as_ref(), Some(frame));
            }
            exchanged.fetch_add(16, Ordering::Relaxed);
        }
    }
}

/// The load of the guest that has a bad end: TCP to and from another one, by both cards, begun again whenever it breaks.
fn tcp_both_ways() -> String {
    let connect = |subnet: u8| {
        format!(
            "(while true; do nc 10.0.{subnet}.1 5000 < /dev/zero; sleep 0.1; done) > /dev/null 2>&1 &\n\
             (while true; do nc 10.0.{subnet}.1 5001 > /dev/null; sleep 0.1; done) > /dev/null 2>&1 &\n"
        )
    };
    connect(0) + &connect(1)
}

#[test]
fn whatever_becomes_of_a_guest_under_load_the_others_lose_nothing() {
    // On a busy machine a guest may not get its turn for a while.
    let daemon = Switchd::start_with(&["--hold-ms", "500"]);
    daemon.add(&["A", "--mode", "switch"]);
    daemon.add(&["B", "--mode", "switch"]);
    let before = resources(daemon.pid());
    let cards = |n: u8| address("eth0", 0, n) + &address("eth1", 1, n);
    let words = [word(&daemon, "A"), word(&daemon, "B")];
    let servers = "nc -ll -p 5000 -e sh -c 'cat > /dev/null' &\nnc -ll -p 5001 -e cat /dev/zero &\n";
    let server = Station::boot(daemon.home(), "server", &(cards(1) + servers), &words);
    let mut victim = Station::boot(daemon.home(), "victim", &(cards(2) + &tcp_both_ways()), &words);
    let port = |name: &str, domain: &str| {
        let ports = daemon.ports(domain);
        ports.into_iter().find(|port| port.name == name)
    };
    let frames = |domain: &str| {
        let port = port(
            if domain == "A" {
                "victim:eth0"
            } else {
                "victim:eth1"
            },
            domain,
        );
        port.map_or((0, 0), |port| (port.rx_frames, port.tx_frames))
    };
    let flows = |domain: &str| {
        let now = frames(domain);
        wait::until_true(&format!("TCP both ways in {domain}"), || {
            let then = frames(domain);
            then.0 > now.0 + 500 && then.1 > now.1 + 500
        });
    };
    // A test that fails ends that thread, too.
    let (ended, over) = channel();
    let exchanged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (daemon, exchanged) = (&daemon, &exchanged);
        let ended: Sender<()> = ended;
        scope.spawn(move || exchange(daemon, &over, exchanged));
        let load = checked_load(daemon);
        let others_go_on = || {
            let count = || {
                let mut all = load.delivered();
                all.push(exchanged.load(Ordering::Relaxed));
                all
            };
            let now = count();
            wait::until_true("more frames of the others", || {
                count().iter().zip(&now).all(|(then, now)| *then > now + 200)
            });
        };
        flows("A");
        flows("B");
        others_go_on();

        // Its domain is removed.
        daemon.run(&["domain", "rm", "B"]).ok();
        others_go_on();
        flows("A");

        // It is stopped, and goes on.
        let kernel = Pid::from_raw(victim.guest().pid().cast_signed());
        kill(kernel, Signal::SIGSTOP).unwrap();
        others_go_on();
        kill(kernel, Signal::SIGCONT).unwrap();
        flows("A");

        // It lets its card go and takes it again: the driver of its interface, then that of the connection as well.
        let card = ("virtio/drivers/virtio_net", "virtio0");
        for (driver, device) in [card, ("platform/drivers/virtio-uml", "virtio-uml.0")] {
            victim.run(&format!("echo {device} > /sys/bus/{driver}/unbind"));
            wait::until_true("its port to go", || port("victim:eth0", "A").is_none());
            others_go_on();
            let again = format!("echo {device} > /sys/bus/{driver}/bind");
            victim.run(&format!("{again}; {}", address("eth0", 0, 2)));
            flows("A");
        }
        assert_eq!(complaints_of_hang_up(&victim), Vec::<String>::new());

        // It is booted anew.
        let _ = victim.tell("reboot -f");
        victim.wait_boots(2);
        others_go_on();
        flows("A");

        // Its port is ended.
        let id = port("victim:eth0", "A").unwrap().id.to_string();
        daemon.run(&["port", "rm", "A", &id]).ok();
        wait::until_true("its port to go", || port("victim:eth0", "A").is_none());
        others_go_on();
        assert_eq!(complaints_of_hang_up(&server), Vec::<String>::new());
        assert_eq!(complaints_of_hang_up(&victim), Vec::<String>::new());
        let _ = victim.tell("reboot -f");
        victim.wait_boots(3);
        flows("A");

        // It is killed.
        victim.guest().kill_main();
        wait::until_true("its port to go", || port("victim:eth0", "A").is_none());
        others_go_on();
        assert_eq!(complaints_of_hang_up(&server), Vec::<String>::new());

        load.stop_sending();
        let report = load.finish().unwrap();
        let wrong = report.lost + report.reordered + report.duplicates + report.damaged + report.strays;
        assert_eq!(wrong, 0, "{report:#?}");
        drop(ended);
    });
    drop((server, victim));
    wait_ports(&daemon, "A", 0);
    let after = wait::until("descriptors and mappings to be given back", || {
        let now = resources(daemon.pid());
        (now.guests == 0 && now.fds <= before.fds).then_some(now)
    });
    assert!(after.mappings <= before.mappings + 20, "{before:?} {after:?}");
}

/// What a kernel we have hung up on complains of, but for what Linux always says then: it tells the one who is gone that
/// it goes, and warns that it cannot.
fn complaints_of_hang_up(station: &Station) -> Vec<String> {
    let mut complaints = station.complaints();
    complaints.retain(|line| !line.contains(" vu_del_vqs+") && line.trim_end() != "Call Trace:");
    complaints
}

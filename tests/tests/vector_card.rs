//! A card of the vector driver is removed and added by the kernel's management console while a load is on its domain.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::time::Duration;

use bench::load::{Load, Running};
use bench::port::Attach;
use bench::stop::Stop;
use proto::ctl::{DomainRow, PortRow};
use tests::program::Process;
use tests::uml::{Home, wait_for};

/// A load of checked frames through domain A between ports of every kind a socket leads to, until it is stopped.
fn load(domain: &DomainRow) -> Running {
    let load = Load {
        attach: Attach::Bess,
        also: vec![
            (domain.sockets["uml"].clone().into(), Attach::Uml),
            (domain.sockets["vde"].clone().into(), Attach::Connected),
        ],
        ports: 4,
        senders: 2,
        rate: Some(1000),
        time: Duration::from_secs(600),
        drain: Duration::from_secs(30),
        ..Load::new(&domain.sockets["bess"])
    };
    Running::start(load, &Stop::default()).unwrap()
}

#[test]
fn a_vector_card_comes_and_goes_under_load_and_the_others_lose_nothing() {
    const GUESTS: &str = "02:00:00:00:00:01";
    let home = Home::new();
    // On a busy machine a receiver may not get its turn for a while.
    let mut daemon = home.command("switchd");
    let _daemon = Process::start(daemon.args(["run", "--hold-ms", "500"]));
    wait_for("switchd to answer", || {
        home.run("switchd", ["stats"]).status.success()
    });
    home.ok("switchd", ["domain", "add", "A"]);
    let shown = home.ok("switchd", ["domain", "show", "A", "--json"]);
    let domain: DomainRow = serde_json::from_str(&shown).unwrap();
    let mac = format!("--mac=eth0={GUESTS}");
    home.start("pc1", &["-q", "--eth0=A", "--transport=bess", &mac]);
    let guest = |command: &str| home.ok("vexec", ["-n", "pc1", command]);
    // Frames for everybody, whenever there is an interface.
    guest("(while :; do ping -b -q -w 1 -i 0.002 10.0.0.255; sleep 0.2; done) </dev/null >/dev/null 2>&1 &");
    let port = || {
        let ports: Vec<PortRow> =
            serde_json::from_str(&home.ok("switchd", ["port", "ls", "A", "--json"])).unwrap();
        ports.into_iter().find(|port| port.name.starts_with("pc1:"))
    };

    let load = load(&domain);
    let others_go_on = || {
        let now = load.delivered();
        wait_for("more frames of the others", || {
            let then = load.delivered();
            then.iter().zip(&now).all(|(then, now)| *then > now + 200)
        });
    };
    let mut name = "eth0";
    let mut number = None;
    for _ in 0..2 {
        guest(&format!(
            "ip addr add 10.0.0.1/24 dev {name}; ip link set {name} up"
        ));
        wait_for("frames to and from the guest", || {
            port().is_some_and(|port| port.rx_frames > 50 && port.tx_frames > 500)
        });
        // The second time it has the place that became free.
        let id = port().map(|port| port.id);
        assert_eq!(*number.get_or_insert(id), id);
        others_go_on();

        // Not while it is up.
        let error = home.fails(1, "vmconsole", ["pc1", "remove", "vec0"]);
        assert!(error.ends_with(": Device is currently open\n"), "{error}");
        assert_eq!(port().map(|port| port.id), id);
        guest(&format!("ip link set {name} down"));
        wait_for("its port to go", || port().is_none());
        home.ok("vmconsole", ["pc1", "remove", "vec0"]);
        assert_eq!(guest("ls /sys/class/net"), "lo\n");
        others_go_on();
        let config = format!("vec0:transport=bess,dst={},mac={GUESTS}", domain.sockets["bess"]);
        home.ok("vmconsole", ["pc1", "config", &config]);
        assert_eq!(guest("cat /sys/class/net/vec0/address"), format!("{GUESTS}\n"));
        name = "vec0";
    }
    load.stop_sending();
    let report = load.finish().unwrap();
    let wrong = report.lost + report.reordered + report.duplicates + report.damaged + report.strays;
    assert_eq!(wrong, 0, "{report:#?}");
    home.ok("vhalt", ["pc1"]);
    home.assert_nothing_left();
}

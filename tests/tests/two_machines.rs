//! The main job: two real machines talk over a domain, anyone can watch, and nothing is left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::program::{Process, run, tool};
use tests::uml::{Home, wait_for};

/// What the second machine does: 100 pings, 10 ms apart, of the first.
const PINGS: &str = "ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; \
                     until ping -c 1 -W 1 10.0.0.1; do :; done; \
                     ping -q -c 100 -i 0.01 10.0.0.1 > /hosthome/pings 2>&1; touch /hosthome/done";

fn two_machines(home: &Home) {
    home.ok(
        "vstart",
        [
            "pc1",
            "-q",
            "--eth0=A",
            "-e",
            "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up",
        ],
    );
    let file = home.path().join("a.pcapng");
    let mut command = home.command("switchd");
    command
        .arg("capture")
        .arg("A")
        .arg("-w")
        .arg(&file)
        .stdin(Stdio::null());
    let mut capture = Process::start(&mut command);
    wait_for("the capture to begin", || {
        fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    });
    home.ok("vstart", ["pc2", "-q", "--eth0=A", "-e", &format!("({PINGS}) &")]);
    wait_for("100 pings", || home.path().join("done").exists());
    let pings = fs::read_to_string(home.path().join("pings")).expect("ping has reported");
    assert!(
        pings.contains("100 packets transmitted, 100 received, 0% packet loss"),
        "{pings}"
    );

    let ports: serde_json::Value =
        serde_json::from_str(&home.ok("switchd", ["port", "ls", "A", "--json"])).expect("a list of ports");
    let ports = ports.as_array().expect("a list of ports");
    let names: Vec<_> = ports
        .iter()
        .map(|port| port["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["pc1:eth0", "pc2:eth0"]);
    for port in ports {
        assert_eq!(port["drops"], serde_json::json!({}), "{port}");
        assert!(
            port["rx_frames"].as_u64().is_some_and(|frames| frames >= 101),
            "{port}"
        );
    }

    capture.signal(Signal::SIGINT);
    assert!(capture.wait().success());
    decode(&file);

    home.ok("vhalt", ["pc1", "pc2"]);
    for name in ["a.pcapng", "pings", "done"] {
        fs::remove_file(home.path().join(name)).expect("the file is there");
    }
    home.assert_nothing_left();
}

/// tshark is the judge: ARP both ways, and every echo with its reply.
fn decode(file: &Path) {
    let count = |filter: &str| {
        let mut command = Command::new(tool("tshark"));
        command
            .arg("-r")
            .arg(file)
            .args(["-2", "-Y", filter, "-T", "fields", "-e", "frame.number"]);
        run(&mut command).ok().lines().count()
    };
    assert!(count("arp.opcode == 1") >= 1);
    assert!(count("arp.opcode == 2") >= 1);
    let (requests, replies) = (count("icmp.type == 8"), count("icmp.type == 0"));
    assert!(
        requests >= 101 && replies >= 101,
        "{requests} echo requests, {replies} replies"
    );
    assert_eq!(count("icmp.type == 8 && !icmp.resp_in"), requests - replies);
    let mut names = Command::new(tool("tshark"));
    names
        .arg("-r")
        .arg(file)
        .args(["-T", "fields", "-e", "frame.interface_name"]);
    let names = run(&mut names).ok();
    assert!(
        names.contains("pc1:eth0") && names.contains("pc2:eth0"),
        "{names}"
    );
}

#[test]
fn two_machines_of_the_user_of_the_test() {
    two_machines(&Home::new());
}

#[test]
fn two_machines_of_an_ordinary_user() {
    two_machines(&Home::of_ordinary_user());
}

//! `lab.ext`: domains of a lab that lead to interfaces of the host, with real kernels.
//!
//! The host is a network namespace of the test's, the wire a veth pair.

use std::fs;

use tests::netns::Net;
use tests::uml::{Home, text, wait_for};

/// Writes a file of the lab.
fn write(home: &Home, name: &str, text: &str) {
    let path = home.path().join("lab").join(name);
    fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("the home is ours");
    fs::write(&path, text).expect("the home is ours");
}

/// Runs an l command in the lab; its standard error. It must end with the given code.
#[track_caller]
fn run(home: &Home, code: i32, command: &str, args: &[&str]) -> String {
    let output = home
        .command(command)
        .arg("-d")
        .arg(home.path().join("lab"))
        .args(args)
        .output()
        .expect("the program runs");
    let said = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command}: {}{said}",
        text(&output.stdout)
    );
    said
}

#[test]
fn domains_of_a_lab_lead_to_the_hosts_networks() {
    let (host, far) = (Net::new(), Net::new());
    host.cable("nic0", &far, "wire0");
    let home = Home::new().inside(&host);
    write(
        &home,
        "lab.conf",
        "LAB_MACHINES=\"a b\"\na[0]=left\nb[0]=right\nb[1]=left\n",
    );
    for (name, left) in [("a", "eth0"), ("b", "eth1")] {
        let number = if name == "a" { 2 } else { 3 };
        let script = format!("ip addr add 10.0.0.{number}/24 dev {left}; ip link set {left} up\n");
        write(&home, &format!("{name}.startup"), &script);
    }

    // What is wrong is told with its line, and nothing is started.
    write(
        &home,
        "lab.ext",
        "# the host's networks\nleft nic7\nleft nic0.5000\nmiddle nic0\nright\n",
    );
    for args in [&["--check"][..], &[]] {
        let said = run(&home, 1, "lstart", args);
        for wanted in [
            "lab.ext:2: this host has no interface nic7",
            "lab.ext:3: '5000' is no VLAN",
            "lab.ext:4: no machine of the lab is in domain middle",
            "lab.ext:5: it is not DOMAIN INTERFACE[.VLAN]",
        ] {
            assert!(said.contains(wanted), "{wanted} is missing in: {said}");
        }
    }
    assert_eq!(home.ok("vlist", ["--json"]).trim(), "[]");

    write(&home, "lab.ext", "left nic0\nright nic0.100\n");
    let said = run(&home, 0, "lstart", &["--check"]);
    assert!(said.contains("2 machines, no errors"), "{said}");
    assert!(!host.ok("ip -d link show nic0").contains("promiscuity 1"));
    // One machine needs but one of the ports.
    run(&home, 0, "lstart", &["a"]);
    far.ok("ip addr add 10.0.0.1/24 dev wire0");
    let reaches = |address: &str| far.run(&format!("ping -c 1 -W 1 {address}")).code() == Some(0);
    wait_for("machine a to answer from outside", || reaches("10.0.0.2"));
    let hubs = home.path().join(".netkit/hubs");
    let ports = || {
        let words = ["--dir", hubs.to_str().expect("text"), "port", "ls", "--json"];
        text(&home.run("switchd", words).stdout)
    };
    assert!(ports().contains("\"nic0\"") && !ports().contains("\"nic0.100\""));
    // The other one comes with the other machine, and what is there stays.
    run(&home, 0, "lstart", &[]);
    wait_for("machine b to answer from outside", || reaches("10.0.0.3"));
    assert_eq!(ports().matches("\"nic0\"").count(), 1, "{}", ports());
    assert!(ports().contains("\"nic0.100\""), "{}", ports());

    // They go with the last machine.
    run(&home, 0, "lhalt", &["a"]);
    assert!(ports().contains("\"nic0\""));
    run(&home, 0, "lhalt", &[]);
    wait_for("the interface to be left alone", || {
        host.ok("ip -d link show nic0").contains("promiscuity 0")
    });
    fs::remove_dir_all(home.path().join("lab")).expect("the lab is ours");
    home.assert_nothing_left();
}

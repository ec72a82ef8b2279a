//! Real kernels reach their domains by every driver they have, keep doing so when switchd is started again, and take
//! interfaces while they run.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use tests::program;
use tests::uml::{Home, text, wait_for};

/// Starts a machine whose interface has an address, and waits until it has.
fn start(home: &Home, name: &str, host: u8, args: &[&str]) {
    let exec = format!("ip addr add 10.0.0.{host}/24 dev eth0; ip link set eth0 up");
    home.start(name, &[&["-q", "--eth0=A", "-e", &exec], args].concat());
}

/// Whether three pings have three replies. The first ones may be what wakes everybody.
fn reaches(home: &Home, name: &str, address: &str) -> bool {
    let ping = format!("ping -q -c 3 -i 0.05 -W 2 {address}");
    let output = home.run("vexec", ["-n", name, &ping]);
    text(&output.stdout).contains(" 0% packet loss")
}

fn wait_until_reached(home: &Home, name: &str, address: &str) {
    wait_for(&format!("{name} to reach {address}"), || {
        reaches(home, name, address)
    });
}

fn in_guest(home: &Home, name: &str, command: &str) -> String {
    home.ok("vexec", ["-n", name, command])
}

/// Kinds of the ports of a domain, in alphabetical order; nothing if there is no such domain.
fn kinds(home: &Home, domain: &str) -> Vec<String> {
    let output = home.run("switchd", ["port", "ls", domain, "--json"]);
    let ports: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let ports = ports.as_array().cloned().unwrap_or_default();
    let mut kinds: Vec<_> = ports
        .iter()
        .filter_map(|port| port["kind"].as_str().map(str::to_owned))
        .collect();
    kinds.sort();
    kinds
}

fn domains(home: &Home) -> Vec<String> {
    let domains: serde_json::Value =
        serde_json::from_str(&home.ok("switchd", ["domain", "ls", "--json"])).expect("a list");
    let domains = domains.as_array().expect("a list");
    let name = |row: &serde_json::Value| row["domain"].as_str().expect("a name").to_owned();
    domains.iter().map(name).collect()
}

fn kill_switchd(home: &Home) {
    for (pid, line) in home.processes() {
        if line.contains("switchd run ") {
            kill(pid, Signal::SIGKILL).expect("it is ours");
        }
    }
}

#[test]
fn every_driver_reaches_every_other_and_survives_switchd() {
    let home = Home::new();
    start(&home, "pc1", 1, &["--transport=daemon"]);
    start(&home, "pc2", 2, &["--transport=eth0=bess"]);
    start(&home, "pc3", 3, &["--transport=vde"]);
    wait_for("three ports", || kinds(&home, "A") == ["bess", "uml", "vde"]);
    let check = || {
        for (from, to) in [("pc1", "10.0.0.2"), ("pc2", "10.0.0.3"), ("pc3", "10.0.0.1")] {
            wait_until_reached(&home, from, to);
        }
    };
    check();
    assert!(in_guest(&home, "pc2", "ip -br link").contains("eth0 "));
    for name in ["pc1", "pc2"] {
        in_guest(
            &home,
            name,
            "ip route add 10.9.0.0/16 via 10.0.0.3; ip link set lo up",
        );
    }

    kill_switchd(&home);
    wait_for("three ports again", || {
        kinds(&home, "A") == ["bess", "uml", "vde"]
    });
    check();
    for name in ["pc1", "pc2"] {
        let routes = in_guest(&home, name, "ip route");
        assert!(routes.contains("10.9.0.0/16 via 10.0.0.3 dev eth0"), "{routes}");
    }
    home.ok("vhalt", ["pc1", "pc2", "pc3"]);
    home.assert_nothing_left();
}

#[test]
fn a_vector_interface_that_could_not_connect_is_healed() {
    let home = Home::new();
    start(&home, "pc1", 1, &["--transport=bess"]);
    start(&home, "pc2", 2, &["--transport=bess"]);
    wait_until_reached(&home, "pc2", "10.0.0.1");
    // Without its domain, an interface fails to come up, and will for ever: a fault of Linux 6.1.
    home.ok("switchd", ["domain", "rm", "A"]);
    for name in ["pc1", "pc2"] {
        let output = home.run(
            "vexec",
            ["-n", name, "ip link set eth0 down; ip link set eth0 up"],
        );
        assert!(!output.status.success(), "{name}: {}", text(&output.stderr));
    }
    // One by hand, the other when switchd comes back.
    home.ok("vconf", ["pc1", "--eth0=", "--eth0=A", "--transport=bess"]);
    in_guest(
        &home,
        "pc1",
        "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up",
    );
    let output = home.run("vexec", ["-n", "pc2", "ip link set eth0 up"]);
    assert!(
        !output.status.success(),
        "the domain is there, but the fault should be, too"
    );
    kill_switchd(&home);
    wait_for("pc2 to come up", || {
        home.run("vexec", ["-n", "pc2", "ip link set eth0 up"])
            .status
            .success()
    });
    wait_until_reached(&home, "pc2", "10.0.0.1");
    assert_eq!(kinds(&home, "A"), ["bess", "bess"]);
    home.ok("vhalt", ["pc1", "pc2"]);
    home.assert_nothing_left();
}

#[test]
fn interfaces_come_and_go_while_a_machine_runs() {
    let home = Home::of_ordinary_user();
    home.start("pc1", &["-q"]);
    home.start("pc2", &["-q", "--eth0=A"]);
    let interfaces = |name: &str| {
        let row = home.machine(name);
        let all = row["interfaces"].as_array().expect("a list").clone();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().expect("text").to_owned();
        let each = all
            .iter()
            .map(|i| format!("{}@{}", text(i, "name"), text(i, "domain")));
        each.collect::<Vec<_>>().join(" ")
    };
    home.ok(
        "vconf",
        ["pc1", "--eth2=B", "--eth1=A", "--transport", "eth1=bess"],
    );
    assert_eq!(interfaces("pc1"), "eth1@A eth2@B");
    assert_eq!(domains(&home), ["A", "B"]);
    in_guest(
        &home,
        "pc1",
        "ip addr add 10.0.0.1/24 dev eth1; ip link set eth1 up",
    );
    in_guest(
        &home,
        "pc2",
        "ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up",
    );
    wait_until_reached(&home, "pc1", "10.0.0.2");
    assert_eq!(kinds(&home, "A"), ["bess", "uml"]);

    let error = home.fails(1, "vconf", ["pc1", "--eth1=C"]);
    assert!(
        error
            .starts_with("vconf: cannot add eth1 to machine pc1: it is attached to domain A already\nhint: "),
        "{error}"
    );
    let error = home.fails(1, "vconf", ["pc1", "--eth7="]);
    assert_eq!(error, "vconf: cannot remove eth7 of machine pc1: there is none\n");
    assert_eq!(domains(&home), ["A", "B"]);

    // A domain goes when nobody uses it: B now, A only with pc2.
    home.ok("vconf", ["pc1", "--eth2=", "--eth1="]);
    assert_eq!(interfaces("pc1"), "");
    wait_for("domain B to go", || domains(&home) == ["A"]);
    assert!(!in_guest(&home, "pc1", "ip -br link").contains("eth"));
    home.ok("vconf", ["pc2", "--eth0="]);
    // And switchd when it has none, which it says by not answering any more.
    wait_for("domain A to go", || {
        let output = home.run("switchd", ["domain", "ls"]);
        !text(&output.stdout).contains("A ")
    });
    home.ok("vconf", ["pc2", "--eth0=A"]);
    assert_eq!(domains(&home), ["A"]);
    home.ok("vhalt", ["pc1", "pc2"]);
    home.assert_nothing_left();
}

#[test]
fn transports_change_the_command_line_and_nothing_else() {
    let home = Home::new();
    let hubs = home.path().join(".netkit/hubs");
    let user = {
        let id = Command::new(program::tool("id"))
            .arg("-un")
            .output()
            .expect("id runs");
        text(&id.stdout).trim().to_owned()
    };
    let socket = |kind: &str| format!("{}/vhub_{user}_A.{kind}", hubs.display());
    let mac = "02:00:00:00:00:01";
    let word = |args: &[&str]| {
        let args = [&["pc1", "-p", "--eth3=A", "--mac=eth3=02:00:00:00:00:01"], args].concat();
        let printed = home.ok("vstart", args);
        let words = printed.lines().last().expect("a command").split(' ');
        let words: Vec<_> = words
            .filter(|word| word.contains("vhub_"))
            .map(str::to_owned)
            .collect();
        words.join(" ")
    };
    let daemon = format!("eth3=daemon,{mac},unix,{}", socket("cnct"));
    let vde = format!("eth3=vde,{},{mac}", socket("vde"));
    let bess = format!("vec3:transport=bess,dst={},mac={mac},depth=256", socket("bess"));
    assert_eq!(word(&[]), daemon);
    assert_eq!(word(&["--transport=auto"]), daemon);
    assert_eq!(word(&["--transport=vde"]), vde);
    assert_eq!(word(&["--transport=bess"]), bess);
    assert_eq!(word(&["--transport=bess", "--transport=eth3=vde"]), vde);

    // The kernel decides what is automatic, and what can be.
    let kernel = home.path().join("kernel");
    std::fs::write(&kernel, "#!/bin/sh\necho CONFIG_UML_NET_VECTOR=y\n").unwrap();
    std::fs::set_permissions(&kernel, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(word(&["-k", "kernel"]), bess);
    let error = home.fails(
        1,
        "vstart",
        ["pc1", "-p", "-k", "kernel", "--eth0=A", "--transport=vde"],
    );
    assert!(
        error.starts_with("vstart: cannot attach eth0: kernel ")
            && error.ends_with(" has no driver for transport vde\nhint: it has bess, fd\n"),
        "{error}"
    );
    let settings = home.path().join(".netkit");
    std::fs::create_dir(&settings).unwrap();
    std::fs::write(settings.join("netkit.conf"), "VM_TRANSPORT=vde\n").unwrap();
    assert_eq!(word(&[]), vde);
    let mut command = home.command("vstart");
    command
        .args(["pc1", "-p", "--eth3=A"])
        .env("NETKIT_TRANSPORT", "bess");
    assert!(text(&command.output().unwrap().stdout).contains(" vec3:transport=bess,dst="));
    let lab = home.path().join("lab");
    std::fs::create_dir(&lab).unwrap();
    std::fs::write(
        lab.join("lab.conf"),
        "LAB_MACHINES=m\nm[0]=A\nm[1]=A\nm[transport]=eth1=bess\n",
    )
    .unwrap();
    home.ok("lstart", ["-d", "lab", "--check"]);
    std::fs::write(
        lab.join("lab.conf"),
        "LAB_MACHINES=m\nm[0]=A\nm[transport]=radio\n",
    )
    .unwrap();
    let error = home.fails(1, "lstart", ["-d", "lab", "--check"]);
    assert!(
        error.contains("lab.conf:3: ") && error.contains("'radio'"),
        "{error}"
    );
}

#[test]
fn guests_share_their_memory_and_their_cards_are_called_what_was_asked_for() {
    let home = Home::of_ordinary_user();
    start(&home, "pc1", 1, &["--transport=vhost"]);
    // Cards in another order than the kernel's own, beside one of another kind, with an address that was chosen.
    let exec = "ip addr add 10.0.0.2/24 dev eth3; ip link set eth3 up";
    let mac = "02:00:00:00:00:33";
    home.start(
        "pc2",
        &[
            "-q",
            "--eth0=B",
            "--eth1=D",
            "--eth2=C",
            "--eth3=A",
            &format!("--mac=eth3={mac}"),
            "--transport=vhost",
            "--transport=eth0=daemon",
            "--transport=eth1=bess",
            "-e",
            exec,
        ],
    );
    wait_until_reached(&home, "pc1", "10.0.0.2");
    assert_eq!(kinds(&home, "A"), ["vhost", "vhost"]);
    assert_eq!(
        (kinds(&home, "B"), kinds(&home, "C")),
        (vec!["uml".into()], vec!["vhost".into()])
    );
    let ports = home.ok("switchd", ["port", "ls"]);
    for name in ["pc1:eth0", "pc2:eth2", "pc2:eth3"] {
        assert!(ports.contains(name), "no {name} in {ports}");
    }
    assert_eq!(
        in_guest(&home, "pc2", "cat /sys/class/net/eth3/address").trim(),
        mac
    );
    let links = in_guest(&home, "pc2", "ls /sys/class/net");
    assert_eq!(
        links.split_whitespace().collect::<Vec<_>>(),
        ["eth0", "eth1", "eth2", "eth3", "lo"]
    );

    // A kernel that runs takes none, and lets none go.
    let error = home.fails(1, "vconf", ["pc1", "--eth1=A", "--transport=vhost"]);
    assert!(
        error.contains("come and go with the machine only\nhint: "),
        "{error}"
    );
    let error = home.fails(1, "vconf", ["pc1", "--eth0="]);
    assert!(error.contains("come and go with the machine only"), "{error}");
    // Its management console knows nothing of such cards.
    for (command, answer) in [
        (["remove", "virtio_uml.0"], "Bad remove option"),
        (
            ["config", "virtio_uml.device=/nowhere:1"],
            "Bad configuration option",
        ),
        (["remove", "eth0"], "Device doesn't exist"),
    ] {
        let error = home.fails(1, "vmconsole", ["pc1"].iter().chain(&command));
        assert!(error.ends_with(&format!("answers: {answer}\n")), "{error}");
    }
    assert!(reaches(&home, "pc1", "10.0.0.2"));
    home.ok("vhalt", ["pc1", "pc2"]);
    home.assert_nothing_left();
}

#[test]
fn sockets_a_kernel_is_started_with_outlive_switchd() {
    let home = Home::of_ordinary_user();
    start(
        &home,
        "pc1",
        1,
        &["--eth2=B", "--con1=pty", "--transport=fd", "--transport=eth2=fd"],
    );
    start(&home, "pc2", 2, &["--transport=bess"]);
    wait_until_reached(&home, "pc1", "10.0.0.2");
    assert_eq!(
        (kinds(&home, "A"), kinds(&home, "B")),
        (vec!["bess".to_owned(), "fd".into()], vec!["fd".into()])
    );
    let ports = home.ok("switchd", ["port", "ls"]);
    for name in ["pc1:eth0", "pc1:eth2"] {
        assert!(ports.contains(name), "no {name} in {ports}");
    }
    assert!(!home.ok("vlist", ["pc1"]).contains("vhub_"), "there is a path");
    in_guest(&home, "pc2", "iperf3 -s -D");
    in_guest(&home, "pc1", "iperf3 -c 10.0.0.2 -n 8M");
    in_guest(&home, "pc1", "ip route add 10.9.0.0/16 via 10.0.0.2");

    // Guests of Linux 6.1 panic when nobody takes what they send for a second. Here, nobody can for longer.
    in_guest(
        &home,
        "pc1",
        "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:99 dev eth0; \
         bash -c 'until [ -e /tmp/stop ]; do dd bs=1400 count=1000 if=/dev/zero >/dev/udp/10.0.0.9/9; done' \
         >/dev/null 2>&1 </dev/null &",
    );
    let hubs = home.path().join(".netkit/hubs");
    let away = home.path().join(".netkit/away");
    let uptime = || -> f64 {
        let said = in_guest(&home, "pc1", "cut -d' ' -f1 /proc/uptime");
        said.trim().parse().expect("seconds")
    };
    std::fs::rename(&hubs, &away).unwrap();
    std::fs::write(&hubs, "in the way").unwrap();
    kill_switchd(&home);
    let begin = uptime();
    wait_for("four seconds of the guest", || uptime() > begin + 4.0);
    std::fs::remove_file(&hubs).unwrap();
    std::fs::rename(&away, &hubs).unwrap();
    wait_for("ports again", || {
        kinds(&home, "A") == ["bess", "fd"] && kinds(&home, "B") == ["fd"]
    });
    in_guest(&home, "pc1", "touch /tmp/stop");
    wait_until_reached(&home, "pc1", "10.0.0.2");
    assert_eq!(
        in_guest(
            &home,
            "pc1",
            "cat /sys/class/net/eth0/carrier_down_count; ip route show 10.9.0.0/16"
        )
        .trim(),
        "0\n10.9.0.0/16 via 10.0.0.2 dev eth0"
    );

    // A kernel that runs takes none, and lets none go.
    let error = home.fails(1, "vconf", ["pc1", "--eth0="]);
    assert!(error.contains("come and go with the machine only"), "{error}");
    // What is ended by hand is ended, although the supervisor has that socket, too.
    home.ok("switchd", ["port", "rm", "B", "1"]);
    wait_for("the port to go", || kinds(&home, "B").is_empty());
    wait_until_reached(&home, "pc1", "10.0.0.2");
    home.ok("vhalt", ["pc1", "pc2"]);
    home.assert_nothing_left();
}

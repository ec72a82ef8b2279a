//! Labs: started, tried out and ended with one command each, with real kernels.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::uml::{Home, text, wait_for};

/// Makes a lab below the home directory from its files.
fn lab(home: &Home, files: &[(&str, &str)]) -> PathBuf {
    let lab = home.path().join("lab");
    for (name, text) in files {
        let path = lab.join(name);
        fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("the home is ours");
        // A name that ends in / is a directory.
        if name.ends_with('/') {
            fs::create_dir_all(&path).expect("the home is ours");
        } else {
            fs::write(&path, text).expect("the home is ours");
        }
    }
    lab
}

/// The files of the lab, without those in directories.
fn files(lab: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(lab).expect("the lab is there").flatten();
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().into_string().expect("names are text"))
        .collect()
}

/// Runs an l command in the lab; its standard error. It must end with the given code.
#[track_caller]
fn run(home: &Home, code: i32, command: &str, args: &[&str]) -> (String, String) {
    let output = home
        .command(command)
        .args(args)
        .current_dir(home.path().join("lab"))
        .output()
        .expect("the program runs");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{command}: {out}{err}");
    (out, err)
}

fn names(home: &Home) -> BTreeSet<String> {
    let rows: Value = serde_json::from_str(&home.ok("vlist", ["--json"])).expect("vlist prints JSON");
    let rows = rows.as_array().expect("vlist prints an array").iter();
    rows.map(|row| row["name"].as_str().expect("a machine has a name").to_owned())
        .collect()
}

/// Hosts a and b, each on a domain of its own, and the router r between them.
const ABR: [(&str, &str); 11] = [
    (
        "lab.conf",
        "LAB_DESCRIPTION=\"two hosts and a router\"\nLAB_AUTHOR=nobody\n\n# the network\na[0]=left\n\
         r[0]=left\nr[1]=\"right/02:00:00:00:00:99\"\nb[0]=right\nb[mem]=96\n",
    ),
    ("lab.dep", "a: b r\n"),
    ("a/", ""),
    ("b/etc/motd", "I am b\n"),
    ("r/", ""),
    ("shared/etc/hub/everybody", "hello\n"),
    (
        "shared.startup",
        "cp /etc/hub/everybody /hostlab/$(hostname).saw\nip link set lo up\n",
    ),
    (
        "a.startup",
        "ip address add 10.0.1.2/24 dev eth0\nip link set eth0 up\nip route add default via 10.0.1.1\n\
         ping -c 3 -i 0.2 -W 10 10.0.2.2 >/hostlab/a.ping 2>&1\n",
    ),
    (
        "b.startup",
        "ip address add 10.0.2.2/24 dev eth0\nip link set eth0 up\nip route add default via 10.0.2.1\n\
         cat /etc/motd >/hostlab/b.motd\n",
    ),
    (
        "r.startup",
        "ip address add 10.0.1.1/24 dev eth0\nip address add 10.0.2.1/24 dev eth1\n\
         ip link set eth0 up\nip link set eth1 up\necho 1 >/proc/sys/net/ipv4/ip_forward\n\
         cat /sys/class/net/eth1/address >/hostlab/r.mac\n",
    ),
    ("b.shutdown", "echo bye >/hostlab/b.bye\n"),
];

#[test]
fn two_hosts_and_a_router_are_up_with_one_command_and_gone_with_one() {
    let home = Home::of_ordinary_user();
    let lab = lab(&home, &ABR);
    own(&home);
    let before = files(&lab);
    let (_, err) = run(&home, 0, "lstart", &[]);
    for name in [
        "a: ready after",
        "b: ready after",
        "r: ready after",
        "3 of 3 machines",
    ] {
        assert!(err.contains(name), "{err}");
    }
    let read = |name: &str| fs::read_to_string(lab.join(name)).unwrap();
    assert!(read("a.ping").contains(" 0% packet loss"), "{}", read("a.ping"));
    assert_eq!(
        (read("b.motd").as_str(), read("r.mac").trim()),
        ("I am b\n", "02:00:00:00:00:99")
    );
    for name in ["a", "b", "r"] {
        assert_eq!(read(&format!("{name}.saw")), "hello\n");
        assert!(lab.join(format!("{name}.ready")).exists());
        assert_eq!(home.machine(name)["status"], "ready");
    }
    assert!(
        !PathBuf::from("/etc/hub/everybody").exists(),
        "the host got a copy"
    );

    // All run already: that is what was asked for. None may be cleaned up after.
    let (_, err) = run(&home, 0, "lstart", &["a", "b"]);
    assert!(err.contains("a: runs already") && err.contains("2 of 2"), "{err}");
    let (_, err) = run(&home, 1, "lclean", &[]);
    assert!(err.contains("machine a is running\nhint: "), "{err}");

    let (_, err) = run(&home, 0, "lhalt", &[]);
    assert_eq!(err.matches(": halted").count(), 3, "{err}");
    assert_eq!(names(&home), BTreeSet::new());
    assert_eq!(read("b.bye"), "bye\n");
    for name in ["a.ping", "b.motd", "r.mac", "a.saw", "b.saw", "r.saw", "b.bye"] {
        fs::remove_file(lab.join(name)).unwrap();
    }
    assert_eq!(files(&lab), before);
    let (_, err) = run(&home, 0, "lhalt", &[]);
    assert!(err.starts_with("no machine of the lab in "), "{err}");
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

/// Gives the lab to the user of the home.
fn own(home: &Home) {
    if nix::unistd::getuid().is_root() {
        let owner = fs::metadata(home.path()).expect("the home is there");
        let owner = format!(
            "{}:{}",
            std::os::unix::fs::MetadataExt::uid(&owner),
            std::os::unix::fs::MetadataExt::gid(&owner)
        );
        let lab = home.path().join("lab");
        let status = std::process::Command::new("chown")
            .args(["-R", &owner])
            .arg(lab)
            .status();
        assert!(status.expect("chown runs").success());
    }
}

#[test]
fn machines_wait_for_those_they_need() {
    let home = Home::new();
    let lab = lab(
        &home,
        &[
            ("lab.conf", "LAB_MACHINES=\"a b c\"\n"),
            ("lab.dep", "a: b\nb: c\n"),
            (
                "shared.startup",
                "test $(hostname) = a || sleep 1\necho $(hostname) >>/hostlab/order\n",
            ),
        ],
    );
    run(&home, 0, "lstart", &["-q"]);
    assert_eq!(fs::read_to_string(lab.join("order")).unwrap(), "c\nb\na\n");
    let (_, err) = run(&home, 0, "lcrash", &["-q"]);
    assert_eq!(err, "");
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn one_that_does_not_boot_is_told_and_the_others_come_up() {
    let home = Home::new();
    let lab = lab(
        &home,
        &[
            (
                "lab.conf",
                "LAB_MACHINES=\"bad good needy\"\nbad[kernel]=/bin/false\nbad[0]=A\ngood[0]=A\n",
            ),
            ("lab.dep", "needy: bad\n"),
        ],
    );
    let (_, err) = run(&home, 1, "lstart", &[]);
    assert!(err.contains("lstart: cannot start bad: "), "{err}");
    assert!(err.contains("good: ready after"), "{err}");
    assert!(err.contains("needy is not started: it waits for bad"), "{err}");
    assert!(err.contains("1 of 3 machines"), "{err}");
    assert_eq!(names(&home), BTreeSet::from(["good".into()]));

    // A machine of a lab's name that is not the lab's is left alone.
    home.start("needy", &[]);
    let (_, err) = run(&home, 0, "lhalt", &[]);
    assert_eq!(err, "good: halted\n");
    assert_eq!(names(&home), BTreeSet::from(["needy".into()]));
    let (_, err) = run(&home, 1, "lstart", &["needy"]);
    assert!(err.contains("does not belong to this lab"), "{err}");
    home.ok("vcrash", ["needy"]);
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let home = Home::new();
    let lab = lab(
        &home,
        &[
            ("lab.conf", "a[0]=A\na[1]=B C\na[memory]=64\na[2] = D\nx[0]=A\n"),
            ("lab.dep", "a: b\nb: a\n"),
            ("a/", ""),
            ("b/", ""),
        ],
    );
    for args in [&["--check"][..], &[]] {
        let (_, err) = run(&home, 1, "lstart", args);
        for line in [
            "lab.conf:2: ",
            "lab.conf:3: vstart has no option --memory",
            "lab.conf:4: warning: there are blanks before '=': Netkit ignores such a line, and so do we",
            "lab.conf:5: warning: machine x has no directory",
            "lab.dep: machines wait for each other: a -> b -> a",
            "3 errors in its files",
        ] {
            assert!(err.contains(line), "{line}: {err}");
        }
    }
    assert_eq!(names(&home), BTreeSet::new());

    // Right in itself, but impossible here.
    fs::write(lab.join("lab.conf"), "a[kernel]=/nonexistent\nb[0]=A\n").unwrap();
    fs::remove_file(lab.join("lab.dep")).unwrap();
    let (_, err) = run(&home, 1, "lstart", &["--check"]);
    assert!(err.starts_with("a: cannot run kernel /nonexistent"), "{err}");
    let (_, err) = run(&home, 0, "lstart", &["--check", "b"]);
    assert!(err.ends_with(": 1 machines, no errors\n"), "{err}");
    let (out, _) = run(
        &home,
        0,
        "lstart",
        &["--print", "-o", "--mem=64 -e 'echo hi'", "b"],
    );
    let dir = lab.display();
    assert_eq!(
        out,
        format!("vstart b --eth0=A --hostlab={dir} --hostwd={dir} --mem=64 -e 'echo hi'\n")
    );
    for option in ["--tmux-attached", "--tmux-detached"] {
        let (out, _) = run(&home, 0, "lstart", &["--print", option, "b"]);
        assert!(out.trim_end().ends_with(option), "{out}");
    }

    fs::remove_file(lab.join("lab.conf")).unwrap();
    let (_, err) = run(&home, 1, "lstart", &[]);
    assert!(err.contains("it has no file lab.conf\nhint: "), "{err}");
    let (out, _) = run(&home, 0, "lstart", &["-F", "--print"]);
    assert_eq!(out.lines().count(), 2);
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn a_lab_is_described_and_drawn() {
    let home = Home::new();
    let lab = lab(&home, &ABR);
    let (out, _) = run(&home, 0, "linfo", &[]);
    for line in [
        "two hosts and a router",
        "machines     3",
        "domains      2",
        "  waits for b, r",
        "  mem=96",
    ] {
        assert!(out.contains(line), "{out}");
    }
    let (out, _) = run(&home, 0, "linfo", &["--json"]);
    let info: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(info["domains"], serde_json::json!(["left", "right"]));
    assert_eq!(
        info["machines"][2]["interfaces"][1]["address"],
        "02:00:00:00:00:99"
    );
    assert_eq!(info["machines"][0]["waits-for"], serde_json::json!(["b", "r"]));
    run(&home, 0, "linfo", &["-m", "map.svg"]);
    assert!(
        fs::read_to_string(lab.join("map.svg"))
            .unwrap()
            .starts_with("<svg ")
    );
    let (out, _) = run(&home, 0, "linfo", &["-m", "-", "--format", "mermaid"]);
    assert!(out.starts_with("graph TD\n"), "{out}");
    // As pixels if nothing else is said; another program reads it.
    for file in ["map.png", "map"] {
        run(&home, 0, "linfo", &["-m", file]);
        let shown = std::process::Command::new(tests::program::tool("tshark"))
            .args(["-V", "-r", file])
            .current_dir(&lab)
            .output()
            .unwrap();
        let shown = text(&shown.stdout);
        for line in [
            "Portable Network Graphics",
            "Height: 260",
            "Colour Type: Truecolour",
            "(IEND)",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
    }
    let (_, err) = run(&home, 1, "linfo", &["-m", "map.gif"]);
    assert!(err.contains("use svg, png, dot or mermaid\nhint: "), "{err}");
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn several_directories_are_one_lab() {
    let home = Home::new();
    for (dir, conf) in [
        ("lab3a", "LAB_MACHINES=a\na[0]=X\n"),
        ("lab3b", "LAB_MACHINES=b\nb[0]=X\nb[1]=Y\n"),
        ("lab4", "LAB_MACHINES=c\nc[0]=Z\n"),
    ] {
        fs::create_dir(home.path().join(dir)).unwrap();
        fs::write(home.path().join(dir).join("lab.conf"), conf).unwrap();
    }
    fs::create_dir(home.path().join("lab3 notes")).unwrap();
    let linfo = |here: &str, args: &[&str]| {
        let mut linfo = home.command("linfo");
        let output = linfo
            .args(args)
            .current_dir(home.path().join(here))
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let edges = |here: &str, args: &[&str]| {
        let (code, out, err) = linfo(here, &[args, &["-m", "-", "--format", "dot"]].concat());
        assert_eq!(code, Some(0), "{err}");
        out.lines()
            .filter(|line| line.contains(" -- "))
            .map(|line| line.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let (a, b) = (
        "\"m-a\" -- \"d-X\" [label=\"eth0\"];",
        "\"m-b\" -- \"d-X\" [label=\"eth0\"];",
    );
    let b1 = "\"m-b\" -- \"d-Y\" [label=\"eth1\"];";
    let c = "\"m-c\" -- \"d-Z\" [label=\"eth0\"];";
    assert_eq!(edges(".", &["-d", "lab3a", "-d", "lab4"]), [a, c]);
    assert_eq!(edges("lab3a", &["-a"]), [a, b, b1]);
    assert_eq!(edges("lab3a", &["--auto=../lab[34]*"]), [a, b, b1, c]);
    assert_eq!(edges("lab4", &["-a../lab3?", "-d", "../lab3a", "b"]), [b, b1]);
    let (_, out, _) = linfo("lab3a", &["-a"]);
    assert_eq!(out.matches("machines     1").count(), 2, "{out}");
    let (_, out, _) = linfo("lab3a", &["-a", "--json"]);
    let described: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(described[1]["machines"][0]["name"], "b");
    let (code, _, err) = linfo("lab4", &["-a../nothing*"]);
    assert!(code == Some(1) && err.contains("there is no lab in "), "{err}");
    let (code, _, err) = linfo("lab3a", &["-a", "c"]);
    assert!(
        code == Some(1) && err.contains("there is no machine c in the lab in "),
        "{err}"
    );
    for dir in ["lab3a", "lab3b", "lab4", "lab3 notes"] {
        fs::remove_dir_all(home.path().join(dir)).unwrap();
    }
    home.assert_nothing_left();
}

#[test]
fn what_machines_find_in_a_test_is_collected() {
    let home = Home::new();
    let lab = lab(
        &home,
        &[
            ("lab.conf", "LAB_MACHINES=\"a b\"\na[0]=A\nb[0]=A\n"),
            (
                "a.startup",
                "ip address add 10.0.0.1/24 dev eth0\nip link set eth0 up\n",
            ),
            (
                "b.startup",
                "ip address add 10.0.0.2/24 dev eth0\nip link set eth0 up\n",
            ),
            ("_test/a.test", "ping -c 1 -W 10 10.0.0.2\n"),
            ("_test/shared.test", "echo $(hostname) was here\n"),
        ],
    );
    let (out, _) = run(&home, 0, "ltest", &["--quiet"]);
    let results = lab.join("_test/results");
    assert_eq!(out.trim(), results.to_str().unwrap());
    let read = |name: &str| fs::read_to_string(results.join(name)).unwrap();
    assert!(read("a.user").contains(" 0% packet loss"), "{}", read("a.user"));
    assert!(!results.join("b.user").exists());
    assert_eq!(
        (read("a.shared").as_str(), read("b.shared").as_str()),
        ("a was here\n", "b was here\n")
    );
    assert!(
        read("b.default").contains("inet 10.0.0.2/24"),
        "{}",
        read("b.default")
    );
    assert_eq!(names(&home), BTreeSet::new());
    let expected = ["a.startup", "b.startup", "lab.conf"].map(str::to_owned);
    assert_eq!(files(&lab), BTreeSet::from(expected));
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn eight_machines_start_restart_and_leave_only_what_lclean_takes() {
    let home = Home::new();
    let machines: Vec<String> = (1..=8).map(|n| format!("pc{n}")).collect();
    let mut conf = format!("LAB_MACHINES='{}'\n", machines.join(" "));
    for name in &machines {
        conf.push_str(&format!("{name}[0]=LAN\n{name}[mem]=64\n"));
    }
    let lab = lab(&home, &[("lab.conf", &conf)]);
    let (out, err) = run(&home, 0, "lstart", &["-p4", "--list"]);
    assert!(err.contains("8 of 8 machines"), "{err}");
    assert_eq!(names(&home), machines.iter().cloned().collect());
    assert!(machines.iter().all(|name| out.contains(name.as_str())), "{out}");
    let kernel = home.pid("pc1", "pid");
    let (_, err) = run(&home, 0, "lrestart", &["pc1"]);
    assert!(err.contains("pc1: halted") && err.contains("pc1: ready"), "{err}");
    assert_ne!(home.pid("pc1", "pid"), kernel);
    let begun = Instant::now();
    run(&home, 0, "lhalt", &[]);
    // One after the other, at the two seconds each that a halt may take, they would need longer.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for name in ["pc1.log", "pc2.disk", "pc3.ready", "readyfor.test", "mine"] {
        fs::write(lab.join(name), "").unwrap();
    }
    run(&home, 0, "lclean", &[]);
    assert_eq!(files(&lab), ["lab.conf", "mine"].map(str::to_owned).into());
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn a_start_that_is_cut_short_leaves_no_half_machine() {
    let home = Home::new();
    let lab = lab(&home, &[("lab.conf", "LAB_MACHINES='a b c d'\n")]);
    let mut lstart = home
        .command("lstart")
        .args(["-p1", "-q"])
        .current_dir(&lab)
        .spawn()
        .unwrap();
    wait_for("the first machine", || lab.join("a.ready").exists());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(lstart.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    lstart.wait().unwrap();
    // Who was being started is either up or gone; nobody is started any more.
    wait_for("those under way", || {
        let rows: Value = serde_json::from_str(&home.ok("vlist", ["--json"])).unwrap();
        let mut rows = rows.as_array().unwrap().iter();
        rows.all(|row| row["status"] == "ready")
    });
    let up = names(&home);
    assert!(up.contains("a") && !up.contains("d"), "{up:?}");
    // One that was about to be recorded may come up, or go by itself, after the others have been halted.
    wait_for("all of them to be gone", || {
        run(&home, 0, "lhalt", &[]);
        names(&home).is_empty()
    });
    fs::remove_dir_all(&lab).unwrap();
    home.assert_nothing_left();
}

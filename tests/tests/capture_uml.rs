//! Real machines of a lab, watched in every way there is while one pings the other: tshark by the installed extcap
//! program, text, a table, and the whole lab in one file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::capture::{fields, sums};
use tests::program::{Outcome, Process, binary, run, tool};
use tests::uml::{Home, wait_for};

/// Echo requests.
const PINGS: usize = 5;

fn lab(home: &Home) -> PathBuf {
    let lab = home.path().join("lab");
    fs::create_dir(&lab).expect("the home is ours");
    for (name, text) in [
        (
            "lab.conf",
            "LAB_MACHINES=\"pc1 pc2\"\npc1[0]=A\npc2[0]=A\npc2[1]=B\n",
        ),
        (
            "pc1.startup",
            "ip address add 10.0.0.1/24 dev eth0\nip link set eth0 up\n",
        ),
        (
            "pc2.startup",
            "ip address add 10.0.0.2/24 dev eth0\nip address add 10.0.1.2/24 dev eth1\n\
             ip link set eth0 up\nip link set eth1 up\n",
        ),
    ] {
        fs::write(lab.join(name), text).expect("the home is ours");
    }
    lab
}

/// `make install-extcap`, with the programs that are to be tested.
fn install(home: &Home) {
    let programs = binary("switchd");
    let built = programs.parent().expect("a program lies in a directory");
    let mut make = Command::new(tool("make"));
    make.arg("-C").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // They are built already, and not as a release.
    make.args(["--old-file=release", "install-extcap"]);
    make.arg(format!("BUILT={}", built.display()));
    // A make that runs this test must not pass its own settings on.
    for name in [
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "XDG_CONFIG_HOME",
        "DESTDIR",
        "EXTCAP_DIR",
    ] {
        make.env_remove(name);
    }
    run(make.env("HOME", home.path())).ok();
}

/// Programs that watch, each of which has seen what it is to see once the others have.
struct Watchers<'a> {
    home: &'a Home,
}

impl Watchers<'_> {
    fn start(&self, program: &str, arguments: &[&str]) -> Process {
        let mut command = match program {
            "tshark" => {
                let mut command = Command::new(tool("tshark"));
                command
                    .env_clear()
                    .env("HOME", self.home.path())
                    .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
                command
            }
            program => self.home.command(program),
        };
        let before = self.captures();
        let process = Process::start(command.args(arguments).stdin(Stdio::null()));
        wait_for(&format!("{program} {arguments:?} to capture"), || {
            self.captures() > before
        });
        process
    }

    fn captures(&self) -> u64 {
        let row = self.home.ok("switchd", ["domain", "show", "A", "--json"]);
        let row: serde_json::Value = serde_json::from_str(&row).expect("JSON");
        row["captures"].as_u64().expect("a number")
    }
}

fn interrupt(process: Process) -> Outcome {
    process.signal(Signal::SIGINT);
    let outcome = process.outcome();
    assert!(outcome.status.success(), "{outcome:?}");
    outcome
}

#[test]
fn a_ping_is_seen_in_every_way() {
    let home = Home::new();
    let lab = lab(&home);
    home.ok("lstart", ["-d", "lab"]);
    home.ok("switchd", ["domain", "add", "C"]);
    install(&home);
    let watchers = Watchers { home: &home };

    let list = run(Command::new(tool("tshark"))
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", "/usr/bin:/bin")
        .arg("-D"))
    .ok();
    for line in [
        "hubbub:A (Hubbub domain A)",
        "hubbub:B (Hubbub domain B)",
        "hubbub (All Hubbub domains)",
    ] {
        assert!(
            list.lines().any(|row| row.ends_with(line)),
            "{line} is not in\n{list}"
        );
    }

    let whole = home.path().join("lab.pcapng");
    let whole_path = whole.to_str().expect("a path in UTF-8");
    let count = (2 * PINGS).to_string();
    let shark = watchers.start("tshark", &["-i", "hubbub:A", "-f", "icmp", "-c", &count, "-n"]);
    let text = watchers.start("vdump", &["-t", "A", "-f", "icmp"]);
    let table = watchers.start("vdump", &["--stats", "A", "-f", "icmp"]);
    let file = watchers.start("vdump", &["--lab", "lab", "-w", whole_path]);

    let pings = PINGS.to_string();
    home.ok("vexec", ["pc2", &format!("ping -c {pings} -i 0.1 10.0.0.1")]);
    // Nobody answers in B: what is seen there is the question.
    let _ = home.run("vexec", ["pc2", "ping -c 1 -W 1 10.0.1.9"]);
    let arp = concat!(env!("CARGO_MANIFEST_DIR"), "/../pcaps/arp.pcap");
    home.ok("switchd", ["replay", "C", arp, "--asap"]);

    // tshark has its count.
    let said = shark.outcome();
    assert!(said.status.success(), "{said:?}");
    for (what, way) in [
        ("Echo (ping) request", "10.0.0.2 → 10.0.0.1"),
        ("Echo (ping) reply", "10.0.0.1 → 10.0.0.2"),
    ] {
        let lines = said
            .stdout
            .lines()
            .filter(|line| line.contains(what) && line.contains(way));
        assert_eq!(lines.count(), PINGS, "{what}: {said:?}");
    }
    let said = interrupt(text);
    for (what, port) in [
        ("10.0.0.2 > 10.0.0.1 ICMP   echo request", "pc2:eth0"),
        ("10.0.0.1 > 10.0.0.2 ICMP   echo reply", "pc1:eth0"),
    ] {
        let lines = said
            .stdout
            .lines()
            .filter(|line| line.contains(what) && line.contains(port));
        assert_eq!(lines.count(), PINGS, "{what}: {said:?}");
    }
    let said = interrupt(table);
    let row = |words: &[&str]| {
        let rows = said
            .stdout
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.into_iter().any(|row| row.starts_with(words))
    };
    let bytes = (98 * PINGS).to_string();
    let both = (2 * PINGS).to_string();
    let all_bytes = (2 * 98 * PINGS).to_string();
    assert!(row(&["ICMP", &both, &all_bytes]), "{said:?}");
    let talkers = said.stdout.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.len() == 5 && words[2] == pings && words[3] == bytes
    });
    assert_eq!(talkers.count(), 2, "{said:?}");
    interrupt(file);
    the_lab_is_in_one_file(&whole);

    home.ok("lhalt", ["-d", "lab"]);
    fs::remove_dir_all(lab).expect("the lab is ours");
    fs::remove_file(whole).expect("the file is ours");
    // Wireshark 3 and 4 look in different places.
    let removed = [".config", ".local"].map(|name| fs::remove_dir_all(home.path().join(name)).is_ok());
    assert!(
        removed.contains(&true),
        "the extcap program was installed elsewhere"
    );
    home.assert_nothing_left();
}

/// Both domains of the lab, under the names of machines and interfaces, and nothing of the third.
fn the_lab_is_in_one_file(file: &Path) {
    let names: Vec<_> = sums(file).into_iter().map(|sum| sum.name).collect();
    for name in ["A:1 pc1:eth0", "A:2 pc2:eth0", "B:1 pc2:eth1"] {
        let same = |found: &&String| found[..1] == name[..1] && found[3..] == name[3..];
        assert!(
            names.iter().any(|found| same(&found)),
            "{name} is not in {names:?}"
        );
    }
    assert_eq!(names.len(), 3, "{names:?}");
    let rows = fields(
        file,
        &["frame.interface_name", "frame.protocols", "frame.time_epoch"],
    );
    let count = |name: &str, protocol: &str| {
        rows.iter()
            .filter(|row| row[0].ends_with(name) && row[1].contains(protocol))
            .count()
    };
    assert_eq!(
        (count("pc2:eth0", "icmp:"), count("pc1:eth0", "icmp:")),
        (PINGS, PINGS),
        "{rows:?}"
    );
    assert!(count("pc2:eth1", "arp") > 0, "{rows:?}");
    assert!(rows.is_sorted_by(|a, b| a[2] <= b[2]), "{rows:?}");
}

#[test]
fn a_lab_that_cannot_be_captured_is_said() {
    let home = Home::new();
    fs::create_dir(home.path().join("empty")).expect("the home is ours");
    let mut command = home.command("switchd");
    let mut daemon = Process::start(command.arg("run").stdin(Stdio::null()));
    wait_for("switchd to answer", || {
        home.run("switchd", ["stats"]).status.success()
    });
    let error = home.fails(1, "vdump", ["--lab", "empty", "-w", "x"]);
    assert!(
        error.contains("cannot capture the lab in empty: there is no lab in ") && error.contains("\nhint: "),
        "{error}"
    );
    fs::write(home.path().join("empty/lab.conf"), "LAB_MACHINES=pc1\npc1[0]=A\n").expect("the home is ours");
    let error = home.fails(1, "switchd", ["capture", "--lab", "empty", "-w", "x"]);
    assert!(error.contains("domain A"), "{error}");
    let error = home.fails(1, "vdump", ["--lab", "empty", "--all"]);
    assert!(error.contains("--all"), "{error}");
    assert!(!home.path().join("x").exists());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

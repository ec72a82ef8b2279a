//! The v* family beside vstart: what vlist knows, how hard machines are ended, whose they are, and what vclean takes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tests::model;
use tests::netns::Net;
use tests::program;
use tests::uml::{Home, text, wait_for};

/// Standard error of a command that must succeed.
#[track_caller]
fn said(home: &Home, program: &str, args: &[&str]) -> String {
    let output = home.run(program, args);
    let err = text(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {err}");
    err
}

fn rows(json: &str) -> Vec<Value> {
    let rows: Value = serde_json::from_str(json).expect("vlist prints JSON");
    rows.as_array().expect("vlist prints an array").clone()
}

fn name(row: &Value) -> &str {
    row["name"].as_str().expect("a machine has a name")
}

#[test]
fn vlist_knows_everything_about_a_machine() {
    let home = Home::new();
    fs::create_dir(home.path().join("lab")).unwrap();
    let mount = format!("--mount={},/extra", home.path().display());
    let options = [
        "--eth0=A",
        "-l",
        "lab",
        "-w",
        "lab",
        &mount,
        "--append=foo=bar",
        "--con1=pty",
    ];
    home.start("pc1", &[&options[..], &["-M", "96", "-e", "true"]].concat());
    let table = home.ok("vlist", [] as [&str; 0]);
    let pid = home.pid("pc1", "pid").to_string();
    let line = table.lines().nth(1).expect("a line for the machine");
    let fields: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        (fields[0], fields[1], fields[2], fields[3]),
        ("pc1", "ready", pid.as_str(), "96M")
    );
    assert_eq!(fields[5], "eth0@A");
    assert_eq!(home.ok("vlist", ["-n"]).lines().count(), 1);

    // In detail, and by the number of its process as well.
    let lab = home.path().join("lab");
    let socket = home.path().join(".netkit/hubs/vhub_");
    for id in ["pc1", &pid] {
        let detail = home.ok("vlist", [id]);
        for line in [
            format!("  kernel      /usr/bin/linux.uml (process {pid})\n"),
            "  memory      96 MB\n".to_owned(),
            format!(
                "  eth0        domain A, address {}",
                home.machine("pc1")["interfaces"][0]["mac"].as_str().unwrap()
            ),
            format!(", daemon socket {}", socket.display()),
            "  model fs    none: the host's own files\n".to_owned(),
            format!("  hosthome    {}\n", home.path().display()),
            format!("  hostlab     {}\n", lab.display()),
            format!("  hostwd      {}\n", lab.display()),
            format!("  mount       {} on /extra\n", home.path().display()),
            "  exec        true\n".to_owned(),
            "  console 0   detached\n".to_owned(),
            "  console 1   /dev/pts/".to_owned(),
            "  append      foo=bar\n".to_owned(),
            format!(
                "  mconsole    {}\n",
                home.path().join(".netkit/mconsole/pc1/mconsole").display()
            ),
        ] {
            assert!(detail.contains(&line), "{line}: {detail}");
        }
    }
    let used = rows(&home.ok("vlist", ["--json", "pc1"]))[0]["used_memory_kib"]
        .as_u64()
        .unwrap();
    assert!((4 * 1024..400 * 1024).contains(&used), "{used} KiB");
    assert!(
        home.fails(1, "vlist", ["999999"])
            .contains("no machine named 999999")
    );

    // What would be ended is shown, and not ended.
    let shown = said(&home, "vcrash", &["--test", &pid]);
    assert!(
        shown.starts_with("pc1: management console ") && shown.contains(&pid),
        "{shown}"
    );
    assert_eq!(home.machine("pc1")["status"], "ready");
    assert_eq!(said(&home, "vhalt", &[&pid]), "pc1: halted\n");
    fs::remove_dir_all(lab).unwrap();
    home.assert_nothing_left();
}

#[test]
fn machines_are_ended_as_hard_as_asked_for_and_disks_stay_or_go() {
    let home = Home::of_ordinary_user();
    let model = model::make(&home.path());
    let disk = home.path().join("pc1.disk");
    let start = || {
        home.ok("vstart", ["pc1", "-q", "-m", model.to_str().unwrap()]);
        wait_for("the guest's report", || home.path().join("report").exists());
        fs::remove_file(home.path().join("report")).unwrap();
    };
    for (command, options, stays) in [
        ("vcrash", &["-v"][..], true),
        ("vcrash", &["-k", "-F"], true),
        ("vcrash", &["-q"], true),
        ("vhalt", &["-q"], true),
        ("vhalt", &["--no-wait"], true),
        ("vhalt", &["-r"], false),
        ("vcrash", &["-r"], false),
    ] {
        start();
        let kernel = home.pid("pc1", "pid");
        let told = said(&home, command, &[options, &["pc1"]].concat());
        if options == ["-v"] {
            assert!(told.contains(&format!("processes {kernel}")), "{told}");
        }
        if options == ["-q"] && command == "vcrash" {
            assert_eq!(told, "");
        }
        home.assert_machine_gone("pc1");
        assert_eq!(disk.exists(), stays, "{command} {options:?}");
    }
    // Contradictions.
    home.fails(2, "vcrash", ["-r", "-F", "pc1"]);
    home.fails(2, "vhalt", ["-q", "-r", "pc1"]);
    fs::remove_file(model).unwrap();
    home.assert_nothing_left();
}

#[test]
fn a_kernel_that_hears_nothing_is_killed_in_the_end() {
    let home = Home::new();
    home.start("pc1", &[]);
    home.start("pc2", &[]);
    for name in ["pc1", "pc2"] {
        kill(home.pid(name, "pid"), Signal::SIGSTOP).unwrap();
    }
    // One by way of all stages, the other by the last two.
    home.ok("vcrash", ["pc1"]);
    home.ok("vcrash", ["-k", "pc2"]);
    home.assert_nothing_left();
}

/// Somebody at a terminal on which a program runs.
struct Typist {
    terminal: fs::File,
    shown: String,
}

impl Typist {
    /// Types, and waits until what is shown from then on has the text.
    #[track_caller]
    fn types(&mut self, keys: &str, answer: &str) {
        self.shown.clear();
        self.terminal
            .write_all(keys.as_bytes())
            .expect("a terminal takes what is typed");
        wait_for(&format!("'{answer}' after {keys:?}"), || {
            let mut buffer = [0; 4096];
            if let Ok(length) = self.terminal.read(&mut buffer) {
                self.shown.push_str(&text(&buffer[..length]));
            }
            self.shown.contains(answer)
        });
    }
}

#[test]
fn the_prompt_of_vmconsole_remembers_and_completes() {
    let home = Home::new();
    home.start("pc1", &[]);
    let sit_down = || {
        let pty = nix::pty::openpty(None, None).unwrap();
        let child = home
            .command("vmconsole")
            .arg("pc1")
            .env("TERM", "xterm")
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave)
            .spawn()
            .unwrap();
        nix::fcntl::fcntl(
            &pty.master,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .unwrap();
        let mut typist = Typist {
            terminal: pty.master.into(),
            shown: String::new(),
        };
        typist.types("", "pc1> ");
        (typist, child)
    };
    let (mut typist, child) = sit_down();
    typist.types("version\r", "Linux pc1 ");
    typist.types("\u{1b}[A\r", "Linux pc1 ");
    typist.types("sto\t\r", "stopped");
    typist.types("go\r", "pc1> ");
    typist.types("fly\r", "Unknown command");
    typist.types("half a line\u{3}", "pc1> ");
    typist.terminal.write_all(b"\x04").unwrap();
    assert!(tests::uml::output(child).status.success());
    // The next time, what was typed the last time is still there: before fly, go; before go, stop.
    let (mut typist, child) = sit_down();
    typist.types("\u{1b}[A\u{1b}[A\u{1b}[A\r", "stopped");
    typist.types("go\r", "pc1> ");
    typist.terminal.write_all(b"quit\r").unwrap();
    assert!(tests::uml::output(child).status.success());
    let history = home.path().join(".netkit/vmconsole_history");
    assert_eq!(fs::metadata(&history).unwrap().mode() & 0o777, 0o600);
    fs::remove_file(history).unwrap();
    home.ok("vhalt", ["pc1"]);
    home.assert_nothing_left();
}

/// Users of these tests alone, with no name.
const USERS: [u32; 2] = [65_531, 65_532];

#[test]
fn two_users_run_machines_of_one_name() {
    let [one, two] = USERS.map(Home::of_user);
    let root = Home::new();
    // Where the users of this test have their machines, there are no others.
    let addresses = ["10.0.0.1", "10.0.0.2"];
    for (home, address) in [&one, &two].into_iter().zip(addresses) {
        let up = format!("ip address add {address}/24 dev eth0; ip link set eth0 up");
        home.start("pc1", &["--eth0=A", "-e", &up]);
    }
    for (home, user) in [(&one, USERS[0]), (&two, USERS[1])] {
        let rows = rows(&home.ok("vlist", ["--json"]));
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["user"], user.to_string());
        let ports = home.ok("switchd", ["port", "ls", "--json"]);
        let ports: Value = serde_json::from_str(&ports).expect("switchd prints JSON");
        assert_eq!(ports.as_array().map(Vec::len), Some(1), "{ports}");
    }
    assert_ne!(one.pid("pc1", "pid"), two.pid("pc1", "pid"));
    // Both domains are called A, and no frame passes.
    let ping = one.run(
        "vexec",
        ["-n", "pc1", "ping", "-c", "2", "-i", "0.2", "-W", "1", "10.0.0.2"],
    );
    assert!(!ping.status.success(), "{}", text(&ping.stdout));

    // A user sees that another has one, and can do nothing about it.
    let (own, other) = (USERS[0].to_string(), USERS[1].to_string());
    let seen = one.ok("vlist", ["-u", &other]);
    let fields: Vec<_> = seen
        .lines()
        .nth(1)
        .expect("a machine")
        .split_whitespace()
        .collect();
    assert_eq!(fields[..3], [other.as_str(), "pc1", "running"], "{seen}");
    assert!(seen.contains("eth0@A"), "{seen}");
    for command in ["vhalt", "vcrash"] {
        let error = one.fails(1, command, ["-u", &other, "pc1"]);
        assert!(error.contains("that needs root\nhint: "), "{error}");
    }
    let error = one.fails(1, "vclean", ["-u", &other, "-K"]);
    assert!(error.contains("that needs root"), "{error}");

    // Root sees both, and acts for one.
    let all = rows(&root.ok("vlist", ["-u", "-", "--json"]));
    let users: BTreeSet<_> = all
        .iter()
        .filter(|row| name(row) == "pc1")
        .filter_map(|row| row["user"].as_str().map(str::to_owned))
        .filter(|user| *user == own || *user == other)
        .collect();
    assert_eq!(users.len(), 2, "{all:?}");
    let detail = root.ok("vlist", ["-u", &own, "pc1"]);
    assert!(detail.contains(&format!("  user        {own}\n")), "{detail}");
    assert!(detail.contains("  hosthome    "), "{detail}");
    root.ok("vhalt", ["-u", &own, "pc1"]);
    one.assert_machine_gone("pc1");
    assert_eq!(two.machine("pc1")["status"], "ready");
    root.ok("vclean", ["-u", &other, "-K"]);
    two.assert_machine_gone("pc1");
    for home in [&one, &two, &root] {
        home.assert_nothing_left();
    }
}

/// Files and directories below the state directory.
fn state(home: &Home) -> BTreeSet<String> {
    fn list(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                list(&entry.path(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    list(&home.path().join(".netkit"), &mut found);
    found
}

#[test]
fn vclean_takes_what_it_is_told_and_nothing_else() {
    let (home, other) = (Home::new(), Home::of_ordinary_user());
    other.start("pc1", &[]);
    let options = ["--eth0=A"];
    home.start("pc1", &options);
    home.start("pc2", &options);
    home.ok("switchd", ["domain", "add", "unused"]);
    let domains = || home.ok("switchd", ["domain", "ls"]);

    // By default nothing that somebody may want; -H takes unused domains, and only those.
    assert_eq!(said(&home, "vclean", &["-v"]), "");
    assert!(domains().contains("unused"));
    assert_eq!(said(&home, "vclean", &["-H", "-v"]), "removed domain unused\n");
    assert!(!domains().contains("unused") && domains().contains('A'));

    // Of one machine only processes are left, of the other a record.
    let (kernel, supervisor) = (home.pid("pc1", "pid"), home.pid("pc1", "supervisor_pid"));
    kill(supervisor, Signal::SIGSTOP).unwrap();
    kill(guard_of(&home, "pc1"), Signal::SIGKILL).unwrap();
    // A kernel that is killed leaves helpers, and nobody is there to end them.
    kill(kernel, Signal::SIGKILL).unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    wait_for("the crash to show", || home.machine("pc1")["status"] == "crashed");
    fs::remove_dir_all(home.path().join(".netkit/machines/pc1")).unwrap();
    kill(home.pid("pc2", "supervisor_pid"), Signal::SIGKILL).unwrap();
    home.wait_for_status("pc2", "crashed");
    // What ends by itself has ended: the kernel of pc2, and with it the domain.
    wait_for("the kernel of pc2 to end", || {
        home.processes()
            .iter()
            .all(|(_, line)| !line.contains("umid=pc2"))
    });
    wait_for("domain A to go", || {
        state(&home).iter().all(|file| !file.contains("vhub_"))
    });
    let before = state(&home);
    let told = said(&home, "vclean", &["--test"]);
    assert!(
        told.contains("pc2: has crashed; what is left of it would be cleared away\n"),
        "{told}"
    );
    assert!(told.contains("of machine pc1 would be removed\n"), "{told}");
    assert_eq!(state(&home), before);
    let told = said(&home, "vclean", &[]);
    assert_eq!(told, "pc2: had crashed; what was left of it is cleared away\n");
    home.assert_machine_gone("pc2");
    wait_for("stray kernels to end", || {
        home.processes().iter().all(|(_, line)| !line.contains("umid="))
    });

    // -K: machines and switch. Then nothing but locks is left in the directories, if they are to be emptied.
    home.start("pc3", &options);
    home.ok("switchd", ["domain", "add", "unused"]);
    let told = said(&home, "vclean", &["-K", "--test"]);
    assert!(
        told.contains("pc3: would be ended\n") && told.contains("switchd, process "),
        "{told}"
    );
    assert_eq!(home.machine("pc3")["status"], "ready");
    home.ok("vclean", ["-K", "-q"]);
    home.assert_machine_gone("pc3");
    fs::write(home.path().join(".netkit/netkit.conf"), "").unwrap();
    fs::create_dir_all(home.path().join(".netkit/mconsole/old")).unwrap();
    home.ok("vclean", ["-f", "--clean-directories"]);
    let hubs = home.path().join(".netkit/hubs");
    let left: BTreeSet<_> = [
        "hubs",
        "hubs/switchd.lock",
        "machines",
        "machines/.lock",
        "mconsole",
        "netkit.conf",
    ]
    .map(|name| home.path().join(".netkit").join(name).display().to_string())
    .into();
    assert_eq!(state(&home), left, "{}", hubs.display());
    fs::remove_file(home.path().join(".netkit/netkit.conf")).unwrap();
    home.assert_nothing_left();

    assert_eq!(other.machine("pc1")["status"], "ready");
    other.ok("vhalt", ["pc1"]);
    other.assert_nothing_left();
}

/// The process that guards a machine.
#[track_caller]
fn guard_of(home: &Home, name: &str) -> nix::unistd::Pid {
    let word = format!("@guard {name} ");
    let processes = home.processes();
    let guard = processes.iter().find(|(_, line)| line.contains(&word));
    guard.unwrap_or_else(|| panic!("no guard in {processes:?}")).0
}

#[test]
fn clean_all_is_the_panic_button() {
    let net = Net::new();
    let before = net.state();
    let home = Home::new();
    let inside = |program: &str, args: &[&str]| {
        let command = home.command(program);
        let mut inside = net.command(command.get_program());
        inside.args(command.get_args()).args(args);
        for (name, value) in command.get_envs() {
            inside.env(name, value.unwrap_or_default());
        }
        program::run(&mut inside)
    };
    let options = ["--eth0=tap,10.0.0.1,10.0.0.2", "--eth1=A"];
    inside("vstart", &[&["gw"][..], &options].concat()).ok();
    assert!(net.tap("ls").ok().contains("nk_tap_root"));
    let told = inside("vclean", &["--clean-all", "--test"]);
    assert!(told.stderr.contains("gw: would be ended"), "{told:?}");
    assert!(net.tap("ls").ok().contains("nk_tap_root"));
    assert!(home.machine("gw")["status"].is_string());
    inside("vclean", &["--clean-all"]).ok();
    home.assert_nothing_left();
    tests::netns::assert_same(&before, &net.state(), "after vclean --clean-all");
}

//! A machine starts in seconds for anybody, leaves the host as it was, and goes without a trace, however it goes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use tests::uml::{Home, text, wait_for};

/// What a guest is made to do to its files, none of which may be seen on the host.
const HAVOC: &str = "echo changed > /etc/hosts; rm /usr/bin/env; touch /usr/bin/hubbub-was-here /root/hubbub-was-here; \
                     chmod 0 /etc; { id -u; hostname; grep -c changed /etc/hosts; ls /usr/bin/env; \
                     ip -o link show up dev lo; } > /hosthome/report 2>&1";

#[track_caller]
fn boots_and_changes_nothing(home: &Home) {
    let before = etc();
    let begun = Instant::now();
    home.ok("vstart", ["pc1", "-e", HAVOC]);
    eprintln!("up after {:?}", begun.elapsed());
    home.wait_for_status("pc1", "ready");
    let report = fs::read_to_string(home.path().join("report")).expect("the guest has reported");
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(lines[..3], ["0", "pc1", "1"], "{report}");
    assert!(lines[3].contains("No such file"), "{report}");
    assert!(lines[4].contains("LOOPBACK"), "{report}");
    let after = etc();
    assert_eq!(before, after);
    assert!(fs::exists("/usr/bin/env").expect("the file can be looked for"));
    assert!(!fs::exists("/usr/bin/hubbub-was-here").expect("the file can be looked for"));
    assert!(!fs::exists("/root/hubbub-was-here").unwrap_or(false));
    home.ok("vhalt", ["pc1"]);
    fs::remove_file(home.path().join("report")).expect("the report is ours");
    home.assert_nothing_left();
}

/// What the guest changes of the host's, as the host sees it.
fn etc() -> (Vec<u8>, u32) {
    let mode = fs::metadata("/etc").expect("there is an /etc").mode();
    (fs::read("/etc/hosts").expect("there is an /etc/hosts"), mode)
}

#[test]
fn the_user_of_the_test_boots_a_machine() {
    boots_and_changes_nothing(&Home::new());
}

#[test]
fn an_ordinary_user_boots_a_machine() {
    boots_and_changes_nothing(&Home::of_ordinary_user());
}

#[test]
fn a_second_machine_of_the_name_is_refused() {
    let home = Home::new();
    home.start("pc1", &[]);
    let first = home.pid("pc1", "pid");
    let error = home.fails(1, "vstart", ["pc1", "-q"]);
    assert!(
        error.starts_with("vstart: a machine named pc1 is running already\nhint: "),
        "{error}"
    );
    assert_eq!(home.pid("pc1", "pid"), first);
    home.ok("vstart", ["pc1", "-p"]);
    home.ok("vcrash", ["pc1"]);
    home.assert_nothing_left();
}

#[test]
fn a_halt_is_clean() {
    let home = Home::new();
    let lab = home.path().join("lab");
    fs::create_dir(&lab).unwrap();
    fs::write(
        lab.join("pc1.startup"),
        "trap 'echo term >> /hostlab/log; exit' TERM\n",
    )
    .unwrap();
    fs::write(
        lab.join("shared.startup"),
        "(trap 'echo told >> /hostlab/log; exit' TERM; while :; do sleep 0.1; done) &\n",
    )
    .unwrap();
    fs::write(lab.join("pc1.shutdown"), "echo shutdown >> /hostlab/log\n").unwrap();
    home.start("pc1", &["-l", "lab"]);
    assert!(lab.join("pc1.ready").exists());
    home.ok("vhalt", ["pc1"]);
    assert_eq!(fs::read_to_string(lab.join("log")).unwrap(), "shutdown\ntold\n");
    home.assert_machine_gone("pc1");
    assert_eq!(home.machine("pc1"), serde_json::Value::Null);
    assert!(home.fails(1, "vhalt", ["pc1"]).contains("no machine named pc1"));
}

#[test]
fn a_crash_takes_every_process_along() {
    let home = Home::of_ordinary_user();
    home.start("pc1", &[]);
    home.ok("vcrash", ["pc1"]);
    home.assert_nothing_left();
    home.fails(1, "vcrash", ["pc1"]);
}

#[test]
fn a_stopped_kernel_is_ended_all_the_same() {
    let home = Home::new();
    home.start("pc1", &[]);
    kill(home.pid("pc1", "pid"), Signal::SIGSTOP).unwrap();
    let output = home.run("vhalt", ["pc1"]);
    assert!(output.status.success());
    assert!(
        text(&output.stderr).contains("cannot ask machine pc1 to halt"),
        "{}",
        text(&output.stderr)
    );
    home.assert_nothing_left();
}

#[test]
fn a_killed_kernel_leaves_nothing() {
    let home = Home::new();
    home.start("pc1", &["--eth0=A"]);
    kill(home.pid("pc1", "pid"), Signal::SIGKILL).unwrap();
    wait_for("vlist to show nothing", || home.machine("pc1").is_null());
    home.assert_machine_gone("pc1");
    home.assert_nothing_left();
}

#[test]
fn a_killed_supervisor_is_seen_and_cleared_away() {
    let home = Home::new();
    home.start("pc1", &["--eth0=A"]);
    kill(home.pid("pc1", "supervisor_pid"), Signal::SIGKILL).unwrap();
    wait_for("the kernel to follow", || {
        home.processes()
            .iter()
            .all(|(_, line)| !line.contains("umid=pc1"))
    });
    assert_eq!(home.machine("pc1")["status"], "crashed");
    home.start("pc1", &["--eth0=A"]);
    kill(home.pid("pc1", "supervisor_pid"), Signal::SIGKILL).unwrap();
    home.wait_for_status("pc1", "crashed");
    home.ok("vclean", [] as [&str; 0]);
    assert!(home.machine("pc1").is_null());
    home.assert_nothing_left();
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let home = Home::new();
    let mut vstart = home.command("vstart").args(["pc1", "--eth0=A"]).spawn().unwrap();
    wait_for("the kernel to start", || {
        home.machine("pc1")["status"] == "booting"
    });
    vstart.kill().unwrap();
    vstart.wait().unwrap();
    home.assert_machine_gone("pc1");
    home.assert_nothing_left();
}

#[test]
fn a_kernel_that_cannot_boot_is_explained() {
    let home = Home::new();
    let error = home.fails(1, "vstart", ["pc1", "-k", "/bin/false"]);
    assert!(
        error.contains("cannot start machine pc1: its kernel ended: exit status: 1"),
        "{error}"
    );
    let error = home.fails(1, "vstart", ["pc1", "-k", "/nonexistent"]);
    assert!(
        error.starts_with("vstart: cannot run kernel /nonexistent: "),
        "{error}"
    );
    let error = home.fails(1, "vstart", ["pc1", "--append=init=/nonexistent"]);
    assert!(error.contains("panic"), "{error}");
    home.assert_nothing_left();
}

#[test]
fn a_console_on_this_terminal_runs_in_the_foreground() {
    let home = Home::new();
    let mut vstart = home
        .command("vstart")
        .args(["pc1", "--con0=this"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    home.wait_for_status("pc1", "ready");
    vstart
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo $((6*7))-$(hostname)\npoweroff\n")
        .unwrap();
    let output = tests::uml::output(vstart);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("42-pc1"),
        "{}",
        text(&output.stdout)
    );
    assert!(
        !text(&output.stdout).contains("SELinux"),
        "kernel messages were not asked for"
    );
    home.assert_nothing_left();
}

#[test]
fn a_console_is_attached_to_and_left() {
    let home = Home::new();
    home.start("pc1", &["-e", "echo was-shown-before"]);
    let attach = |typed: &'static [u8]| {
        let mut vconnect = home
            .command("vconnect")
            .arg("pc1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        vconnect.stdin.take().unwrap().write_all(typed).unwrap();
        vconnect
    };
    let watcher = attach(b"");
    let worker = attach(b"echo $((6*7))-typed\npoweroff\n");
    for viewer in [watcher, worker] {
        let output = tests::uml::output(viewer);
        let shown = text(&output.stdout);
        assert!(
            shown.contains("was-shown-before") && shown.contains("42-typed"),
            "{shown}"
        );
        assert!(text(&output.stderr).contains("pc1: ended"));
    }
    home.assert_nothing_left();
}

#[test]
fn the_foreground_waits_for_the_end() {
    let home = Home::new();
    home.ok(
        "vstart",
        [
            "pc1",
            "-F",
            "--con0=detached",
            "-e",
            "echo \"ran\" > /hosthome/ran; poweroff",
        ],
    );
    assert_eq!(fs::read_to_string(home.path().join("ran")).unwrap(), "ran\n");
    fs::remove_file(home.path().join("ran")).unwrap();
    home.assert_nothing_left();
}

#[test]
fn machines_of_a_domain_reach_each_other_and_the_domain_goes_with_them() {
    let home = Home::of_ordinary_user();
    let start = |name: &'static str, commands: &'static str| {
        let args = [name, "--eth0=A", "-q", "-e", commands];
        home.command("vstart").args(args).spawn().unwrap()
    };
    // At once, with no switchd running: both want to start it.
    let mut both = [
        start("pc1", "ip a add 10.0.0.1/24 dev eth0; ip l set eth0 up"),
        start(
            "pc2",
            "ip a add 10.0.0.2/24 dev eth0; ip l set eth0 up; cat /sys/class/net/eth0/address > /hosthome/mac; \
                      ping -c 5 -i 0.2 -W 20 10.0.0.1 > /hosthome/ping",
        ),
    ];
    for vstart in &mut both {
        assert!(vstart.wait().unwrap().success());
    }
    home.wait_for_status("pc2", "ready");
    let ping = fs::read_to_string(home.path().join("ping")).unwrap();
    assert!(ping.contains(", 0% packet loss"), "{ping}");
    let mac = fs::read_to_string(home.path().join("mac")).unwrap();
    assert_eq!(home.machine("pc2")["interfaces"][0]["mac"], mac.trim());
    assert!(home.ok("switchd", ["domain", "ls"]).contains("\nA "));
    home.ok("vhalt", ["pc1", "pc2"]);
    wait_for("the domain to go", || {
        !home.ok("switchd", ["domain", "ls"]).contains("\nA ")
    });
    for file in ["ping", "mac"] {
        fs::remove_file(home.path().join(file)).unwrap();
    }
    home.assert_nothing_left();
}

#[test]
fn a_home_too_deep_is_told() {
    let home = Home::new();
    let deep = home.path().join("d".repeat(80));
    fs::create_dir(&deep).unwrap();
    let output = home
        .command("vstart")
        .arg("pc1")
        .env("HOME", &deep)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("bytes, 107 are possible\nhint: "),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
}

#[test]
fn the_kernel_obeys_its_management_console() {
    let home = Home::new();
    home.start("pc1", &[]);
    assert!(home.ok("vmconsole", ["pc1", "version"]).contains("Linux pc1 "));
    assert!(
        home.ok("vmconsole", ["pc1", "proc", "cmdline"])
            .contains("hostname=pc1")
    );
    home.ok("vmconsole", ["pc1", "stop"]);
    home.ok("vmconsole", ["pc1", "go"]);
    assert!(
        home.fails(1, "vmconsole", ["pc1", "fly"])
            .contains("the kernel answers: Unknown command")
    );
    let mut prompt = home
        .command("vmconsole")
        .arg("pc1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    prompt
        .stdin
        .take()
        .unwrap()
        .write_all(b"help\n\nlog hello\nquit\n")
        .unwrap();
    let output = tests::uml::output(prompt);
    assert!(
        output.status.success() && text(&output.stdout).contains("sysrq"),
        "{}",
        text(&output.stdout)
    );
    home.ok("vclean", ["pc1"]);
    home.wait_for_status("pc1", "ready");
    home.ok("vmconsole", ["pc1", "halt"]);
    wait_for("the machine to end", || home.machine("pc1").is_null());
    home.assert_nothing_left();
}

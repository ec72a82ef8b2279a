//! Every command of the kernel's management console, given by vmconsole to a real kernel.

use std::fs;

use tests::uml::{Home, wait_for};

/// The answer to a command that the kernel obeys.
#[track_caller]
fn ask(home: &Home, command: &[&str]) -> String {
    home.ok("vmconsole", ["pc1"].iter().chain(command))
}

/// The answer to one that it does not.
#[track_caller]
fn refused(home: &Home, command: &[&str]) -> String {
    home.fails(1, "vmconsole", ["pc1"].iter().chain(command))
}

/// What the guest's kernel has logged.
#[track_caller]
fn log(home: &Home) -> String {
    home.ok("vexec", ["-n", "pc1", "dmesg"])
}

#[test]
fn the_kernel_obeys_every_command() {
    const ARGS: &[&str] = &["--eth0=A", "--exec=echo >>/hosthome/boots"];
    let home = Home::new();
    home.start("pc1", ARGS);
    assert!(ask(&home, &["version"]).starts_with("Linux pc1 "));
    let help = ask(&home, &["help"]);
    for command in [
        "version", "help", "halt", "reboot", "config", "remove", "sysrq", "cad", "stop", "go", "log", "proc",
        "stack",
    ] {
        assert!(help.contains(&format!("\n    {command} ")), "{command}: {help}");
    }

    // Devices come and go, and tell what they are.
    assert_eq!(ask(&home, &["config", "con0"]), "fd:0,fd:1\n");
    let disk = home.path().join("disk");
    fs::write(&disk, vec![0; 64 * 1024]).unwrap();
    ask(&home, &["config", &format!("ubd1={}", disk.display())]);
    let sizes = || home.ok("vexec", ["-n", "pc1", "cat /proc/partitions"]);
    assert!(sizes().contains("64 ubdb\n"), "{}", sizes());
    ask(&home, &["remove", "ubd1"]);
    assert!(!sizes().contains("ubdb"), "{}", sizes());
    for (command, reason) in [
        (&["config", "eth0"][..], "No get_config routine defined"),
        (&["remove", "eth9"], "Device doesn't exist"),
        (&["config", "nothing=1"], "Bad configuration option"),
        (&["go"], "Not stopped"),
        (&["proc", "nosuch"], "Failed to open file"),
    ] {
        let error = refused(&home, command);
        assert_eq!(
            error,
            format!("vmconsole: cannot command machine pc1: the kernel answers: {reason}\n")
        );
    }

    // What it knows.
    assert!(ask(&home, &["proc", "version"]).starts_with("Linux version "));
    // The kernel answers by what it would show on its console, where a machine is quiet.
    assert_eq!(ask(&home, &["sysrq", "m"]), "sysrq: Show Memory\n");
    ask(&home, &["log", "two", "words"]);
    // Process 1 sleeps in a system call unless it has just been woken.
    wait_for("the stack of process 1", || {
        ask(&home, &["stack", "1"]);
        log(&home).contains("handle_syscall")
    });
    let logged = log(&home);
    for text in ["Mem-Info:", "two words\n"] {
        assert!(logged.contains(text), "{text}: {logged}");
    }

    // A machine that is stopped runs nothing until it may go on.
    let beat = "while :; do date +%s.%N >/hosthome/new; mv /hosthome/new /hosthome/beat; sleep 0.02; done >/dev/null 2>&1 &";
    home.ok("vexec", ["-n", "pc1", beat]);
    let file = home.path().join("beat");
    let beat = || fs::read(&file).unwrap_or_default();
    wait_for("a beat", || !beat().is_empty());
    assert_eq!(ask(&home, &["stop"]), "stopped\n");
    let first = beat();
    for _ in 0..20 {
        ask(&home, &["version"]);
    }
    assert_eq!(beat(), first);
    ask(&home, &["go"]);
    wait_for("the machine to go on", || beat() != first);

    // It starts again, as the same machine, and ends in both ways. A kernel with something to read may panic instead, which
    // ends the machine: docs/guest-line.md.
    let file = home.path().join("boots");
    let boots = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    let started_again = (0..5).any(|_| {
        if home.machine("pc1").is_null() {
            home.start("pc1", ARGS);
        }
        home.ok("vexec", ["-n", "pc1", "touch /run/before"]);
        let before = boots();
        ask(&home, &["reboot"]);
        wait_for("the machine to start again or to end", || {
            boots() > before || home.machine("pc1").is_null()
        });
        boots() > before
    });
    assert!(started_again);
    home.ok("vexec", ["-n", "pc1", "test ! -e /run/before"]);
    home.wait_for_status("pc1", "ready");
    ask(&home, &["cad"]);
    home.assert_machine_gone("pc1");
    home.start("pc1", &[]);
    ask(&home, &["halt"]);
    home.assert_machine_gone("pc1");
    let error = refused(&home, &["version"]);
    assert!(error.contains("no machine named pc1"), "{error}");
    for left in ["disk", "beat", "new", "boots"] {
        let _ = fs::remove_file(home.path().join(left));
    }
    home.assert_nothing_left();
}

//! Commands run in a machine from outside, with everything a command has, beside whatever the console does.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::model;
use tests::uml::{Home, output, text, wait_for};

fn piped(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

#[test]
fn a_command_has_input_outputs_and_an_exit_status() {
    let home = Home::of_ordinary_user();
    home.start("pc1", &[]);
    let output = home.run("vexec", ["pc1", "hostname; id -u; echo oops >&2; exit 7"]);
    assert_eq!(text(&output.stdout), "pc1\n0\n");
    assert_eq!(text(&output.stderr), "oops\n");
    assert_eq!(output.status.code(), Some(7));
    // Several words are not for the shell.
    assert_eq!(
        home.ok("vcommand", ["pc1", "echo", "$HOME;", "-n x"]),
        "$HOME; -n x\n"
    );
    assert_eq!(
        home.run("vexec", ["pc1", "kill -9 $$"]).status.code(),
        Some(128 + 9)
    );
    let error = home.fails(127, "vexec", ["pc1", "/nonexistent", "x"]);
    assert!(error.starts_with("cannot run /nonexistent: "), "{error}");
    assert!(
        home.fails(1, "vexec", ["pc2", "true"])
            .contains("no machine named pc2")
    );
    // What stays in the background does not hold the command up.
    home.ok("vexec", ["pc1", "sleep 1000 & echo started"]);
    home.ok("vhalt", ["pc1"]);
    home.assert_nothing_left();
}

#[test]
fn large_inputs_and_outputs_pass_unchanged_side_by_side() {
    let home = Home::new();
    home.start("pc1", &[]);
    let data: Vec<u8> = (0..500_000u32)
        .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap())
        .collect();
    let copies: Vec<_> = (0..3)
        .map(|_| {
            let mut child = piped(home.command("vexec").args(["pc1", "cat"])).spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            let data = data.clone();
            let writer = std::thread::spawn(move || input.write_all(&data));
            (child, writer)
        })
        .collect();
    for (child, writer) in copies {
        let output = output(child);
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(
            output.stdout == data,
            "{} of {} bytes",
            output.stdout.len(),
            data.len()
        );
    }
    // One whose output nobody reads does not stop the others.
    let mut stuck = piped(home.command("vexec").args(["pc1", "cat /dev/zero"]))
        .spawn()
        .unwrap();
    let mut one = [0];
    stuck.stdout.as_mut().unwrap().read_exact(&mut one).unwrap();
    assert_eq!(home.ok("vexec", ["pc1", "echo alive"]), "alive\n");
    kill(Pid::from_raw(i32::try_from(stuck.id()).unwrap()), Signal::SIGKILL).unwrap();
    stuck.wait().unwrap();
    let gone = || home.run("vexec", ["pc1", "pgrep -x cat"]).status.code() == Some(1);
    wait_for("the command to be hung up", gone);
    home.ok("vcrash", ["pc1"]);
    home.assert_nothing_left();
}

#[test]
fn signals_reach_the_command_and_the_end_of_the_machine_its_user() {
    let home = Home::new();
    home.start("pc1", &[]);
    let script =
        "trap 'echo caught; exit 3' TERM; echo ready > /hosthome/ready; while :; do sleep 0.05; done";
    let start = || {
        piped(home.command("vexec").args(["pc1", script]))
            .spawn()
            .unwrap()
    };
    let child = start();
    wait_for("the command to start", || home.path().join("ready").exists());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let output = tests::uml::output(child);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(3), "caught\n")
    );
    fs::remove_file(home.path().join("ready")).unwrap();

    let child = start();
    wait_for("the command to start", || home.path().join("ready").exists());
    home.ok("vcrash", ["pc1"]);
    let output = tests::uml::output(child);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("machine pc1 ended before the command did"),
        "{}",
        text(&output.stderr)
    );
    fs::remove_file(home.path().join("ready")).unwrap();
    home.assert_nothing_left();
}

#[test]
fn commands_run_again_after_the_guest_side_has_started_anew() {
    let home = Home::new();
    home.start("pc1", &[]);
    for end in ["pkill -KILL -f '[-]-agent'", "reboot; sleep 1000"] {
        let error = home.fails(1, "vexec", ["pc1", end]);
        assert!(
            error.contains("machine pc1 has started again before the command ended"),
            "{error}"
        );
        let again = || home.run("vexec", ["pc1", "cat /proc/sys/kernel/hostname"]);
        assert_eq!(text(&again().stdout), "pc1\n", "after {end}");
    }
    home.ok("vcrash", ["pc1"]);
    home.assert_nothing_left();
}

#[test]
fn commands_run_in_another_file_system_too() {
    let home = Home::new();
    model::make(&home.path());
    let start = |more: &[&str]| {
        let args = [
            &["pc1", "-q", "-D", "-m", "model", "--eth0=A", "--transport=bess"],
            more,
        ]
        .concat();
        home.ok("vstart", args);
        let report = home.path().join("report");
        wait_for("the guest's report", || report.exists());
        let told = fs::read_to_string(&report).unwrap();
        fs::remove_file(report).unwrap();
        told
    };
    let told = start(&["--agent"]);
    assert!(
        told.starts_with("1\n") && told.contains(" hubbub.root=/dev/ubda "),
        "{told}"
    );
    let inside = |command: &str| home.ok("vexec", ["-n", "pc1", command]);
    assert!(inside("cat /etc/inittab").contains("::ctrlaltdel:/sbin/poweroff"));
    let mounts = inside("cat /proc/mounts");
    assert!(
        mounts.contains("/dev/ubda / ext") && !mounts.contains("/dev/root"),
        "{mounts}"
    );
    let devices = inside("cat /proc/net/dev");
    assert!(
        devices.contains("eth0:") && !devices.contains("vec0:"),
        "{devices}"
    );
    assert_eq!(home.run("vexec", ["-n", "pc1", "exit 7"]).status.code(), Some(7));
    home.ok("vconf", ["pc1", "--eth1=A", "--transport=bess"]);
    home.ok("vhalt", ["pc1"]);

    // Without it, the system boots by itself, as ever.
    let told = start(&[]);
    assert!(
        told.contains(" root=98:0 ") && !told.contains("hubbub.root"),
        "{told}"
    );
    let error = home.fails(1, "vexec", ["-n", "pc1", "true"]);
    assert!(
        error.contains("there is no agent in it\nhint: 'vstart --agent'"),
        "{error}"
    );
    home.ok("vhalt", ["pc1"]);
    fs::remove_file(home.path().join("model")).unwrap();
    home.assert_nothing_left();
}

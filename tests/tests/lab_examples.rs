//! The labs of the folder `labs`, as they stand there: started with one command, used, gone with one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::netns::{Net, PAGE, World, assert_same};
use tests::program::{self, Outcome};
use tests::uml::{Home, text, wait_for};

/// A copy of a lab in the user's home.
fn lab(home: &Home, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../labs").join(name);
    let lab = home.path().join(name);
    let copied = Command::new("cp").arg("-R").arg(&source).arg(&lab).output();
    assert!(copied.expect("cp runs").status.success(), "{}", source.display());
    if let Some(user) = home.user() {
        let owner = format!("{user}:{user}");
        let given = Command::new("chown").args(["-R", &owner]).arg(&lab).status();
        assert!(given.expect("chown runs").success());
    }
    lab
}

fn files(lab: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(lab).expect("the lab is there").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Waits until nothing of the user's runs, switchd included, which ends by itself.
fn assert_idle(home: &Home) {
    wait_for("all processes to end", || home.processes().is_empty());
}

#[test]
fn abr_routes_between_two_hosts() {
    let home = Home::of_ordinary_user();
    let lab = lab(&home, "abr");
    let before = files(&lab);
    let run = |command: &str, args: &[&str]| {
        let output = home
            .command(command)
            .args(args)
            .current_dir(&lab)
            .output()
            .expect("it runs");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{command}: {out}{err}");
        out
    };
    run("lstart", &["--check"]);
    run("lstart", &[]);
    for (from, to) in [("a", "10.0.2.2"), ("b", "10.0.1.2")] {
        let ping = run(
            "vexec",
            &["-n", from, "ping", "-c", "3", "-i", "0.2", "-W", "10", to],
        );
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        // One router in between.
        assert!(ping.contains("ttl=63"), "{ping}");
    }
    run("lhalt", &[]);
    assert_eq!(files(&lab), before);
    assert_idle(&home);
    fs::remove_dir_all(&lab).expect("the lab is ours");
    home.assert_nothing_left();
}

/// Runs a command of the user in a network, in a directory.
fn inside(home: &Home, net: &Net, dir: &Path, name: &str, args: &[&str]) -> Outcome {
    let command = home.command(name);
    // nsenter goes to the root directory of the namespace.
    let mut inside = net.command(program::tool("env"));
    inside
        .arg("-C")
        .arg(dir)
        .arg(command.get_program())
        .args(command.get_args())
        .args(args);
    for (name, value) in command.get_envs() {
        inside.env(name, value.unwrap_or_default());
    }
    program::run(&mut inside)
}

#[test]
fn tapout_reaches_the_world_and_takes_its_tap_away() {
    let world = World::new();
    let home = Home::new();
    let lab = lab(&home, "tapout");
    let (before, host) = (files(&lab), world.host.state());
    let run = |name: &str, args: &[&str]| inside(&home, &world.host, &lab, name, args);
    run("lstart", &[]).ok();
    assert!(world.host.tap("ls").ok().contains("nk_tap_root"));
    // The page is the internet's, by way of NAT: it knows no way to 10.0.0.2.
    let fetch = "timeout 20 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'";
    let page = run("vexec", &["-n", "a", fetch]).ok();
    assert!(page.ends_with(PAGE), "{page}");
    run("lhalt", &[]).ok();
    assert_same(&host, &world.host.state(), "after lhalt");
    assert_eq!(files(&lab), before);
    assert_idle(&home);

    // A tap that the user has made stays; and so does one that another machine uses.
    world.host.tap("up --addr 10.0.0.1").ok();
    run("lstart", &[]).ok();
    run("lhalt", &[]).ok();
    assert!(world.host.tap("ls").ok().contains("nk_tap_root"));
    world.host.tap("down").ok();
    run("lstart", &[]).ok();
    run("vstart", &["-q", "other", "--eth0=tap,10.0.0.1,10.0.0.3"]).ok();
    run("lcrash", &[]).ok();
    assert!(world.host.tap("ls").ok().contains("nk_tap_root"));
    run("vhalt", &["other"]).ok();
    run("vclean", &["-T"]).ok();
    assert_same(&host, &world.host.state(), "after vclean -T");
    fs::remove_dir_all(&lab).expect("the lab is ours");
    home.assert_nothing_left();
}

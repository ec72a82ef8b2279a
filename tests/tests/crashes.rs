//! Whatever crashes, vlist tells the truth afterwards, and vclean puts things right. (Supervisors and kernels of single
//! machines: vstart_boot.rs. Stray processes and records: family.rs.)

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::uml::{Home, text, wait_for};

/// Two machines on a domain, which reach each other.
fn lab(home: &Home) -> PathBuf {
    let lab = home.path().join("lab");
    fs::create_dir(&lab).expect("the home is ours");
    let conf = "LAB_MACHINES='a b'\na[0]=A\nb[0]=A\n";
    let startup = "case $(hostname) in a) n=1;; b) n=2;; esac\n\
                   ip address add 10.0.0.$n/24 dev eth0\nip link set eth0 up\n";
    fs::write(lab.join("lab.conf"), conf).expect("the home is ours");
    fs::write(lab.join("shared.startup"), startup).expect("the home is ours");
    lab
}

/// Machines and how vlist says they are.
fn machines(home: &Home) -> BTreeMap<String, String> {
    let rows: Value = serde_json::from_str(&home.ok("vlist", ["--json"])).expect("vlist prints JSON");
    let rows = rows.as_array().expect("vlist prints an array").iter();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.map(|row| (word(row, "name"), word(row, "status"))).collect()
}

fn of<const N: usize>(machines: [(&str, &str); N]) -> BTreeMap<String, String> {
    machines
        .map(|(name, status)| (name.to_owned(), status.to_owned()))
        .into()
}

#[track_caller]
fn run(home: &Home, command: &str, args: &[&str]) -> String {
    let output = home
        .command(command)
        .args(args)
        .current_dir(home.path().join("lab"))
        .output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    text(&output.stderr)
}

fn ping(home: &Home) -> bool {
    let words = ["-n", "a", "ping", "-c", "1", "-W", "2", "10.0.0.2"];
    home.run("vexec", words).status.success()
}

#[test]
fn machines_live_on_without_switchd_and_reach_each_other_again() {
    let home = Home::new();
    let lab = lab(&home);
    run(&home, "lstart", &["-q"]);
    wait_for("a to reach b", || ping(&home));
    let all = of([("a", "ready"), ("b", "ready")]);
    for _ in 0..2 {
        let daemon = home.ok("switchd", ["stats", "--json"]);
        let daemon: Value = serde_json::from_str(&daemon).expect("switchd prints JSON");
        let pid = daemon["daemon"]["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.unwrap_or_else(|| panic!("no process in {daemon}")));
        kill(pid, Signal::SIGKILL).expect("switchd runs");
        // It is nobody's job but the supervisors' to start it again.
        wait_for("a to reach b again", || ping(&home));
        assert_eq!(machines(&home), all);
    }
    assert_eq!(run(&home, "vclean", &[]), "");
    assert_eq!(machines(&home), all);
    run(&home, "lhalt", &[]);
    fs::remove_dir_all(lab).expect("the lab is ours");
    home.assert_nothing_left();
}

#[test]
fn a_crash_in_a_lab_is_that_of_one_machine() {
    let home = Home::new();
    let lab = lab(&home);
    run(&home, "lstart", &["-q"]);
    let ready = lab.join("a.ready");
    // The supervisor of one goes, and its kernel with it.
    kill(home.pid("a", "supervisor_pid"), Signal::SIGKILL).expect("it runs");
    wait_for("the crash to show", || {
        machines(&home) == of([("a", "crashed"), ("b", "ready")])
    });
    let told = run(&home, "lstart", &[]);
    assert!(
        told.contains("a: ready after") && told.contains("b: runs already"),
        "{told}"
    );
    wait_for("a to reach b", || ping(&home));
    // The kernel of one goes, and its supervisor clears up.
    kill(home.pid("b", "pid"), Signal::SIGKILL).expect("it runs");
    wait_for("b to go", || machines(&home) == of([("a", "ready")]));
    // The guest of the other panics.
    home.run("vexec", ["-n", "a", "echo c >/proc/sysrq-trigger"]);
    wait_for("a to go", || machines(&home).is_empty());
    assert!(
        ready.exists(),
        "nobody but lclean, lhalt and lcrash removes the mark"
    );
    run(&home, "lclean", &[]);
    assert!(!ready.exists());
    fs::remove_dir_all(lab).expect("the lab is ours");
    home.assert_nothing_left();
}

#[test]
fn a_start_that_is_killed_leaves_what_vlist_shows_and_nothing_else() {
    let home = Home::new();
    let lab = lab(&home);
    let mut lstart = home
        .command("lstart")
        .arg("-q")
        .current_dir(&lab)
        .spawn()
        .expect("lstart runs");
    wait_for("a machine to boot", || !machines(&home).is_empty());
    lstart.kill().expect("it runs");
    lstart.wait().expect("it has ended");
    // Machines under way come up, or are given up with the vstart that was starting them.
    wait_for("all to have come up or gone", || {
        let starting = home
            .processes()
            .iter()
            .any(|(_, line)| line.contains("vstart vstart"));
        !starting && machines(&home).values().all(|status| status == "ready")
    });
    let kernels = || {
        let lines = home.processes();
        let running = lines.iter().filter_map(|(_, line)| line.split("umid=").nth(1));
        let names = running.filter_map(|rest| rest.split(' ').next().map(str::to_owned));
        names.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(kernels(), machines(&home).into_keys().collect());
    home.ok("vclean", ["-K", "-q"]);
    assert_eq!(machines(&home), of([]));
    fs::remove_dir_all(lab).expect("the lab is ours");
    home.assert_nothing_left();
}

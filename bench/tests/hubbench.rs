//! The runner as a program: its results, the README, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

fn hubbench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hubbench"));
    command
        .args(["--without-switchd", "--queue-length", "0"])
        .args(args)
        .env("TMPDIR", dir);
    command
}

fn is_empty(dir: &TempDir) -> bool {
    fs::read_dir(dir)
        .expect("the directory is there")
        .next()
        .is_none()
}

#[test]
fn one_cell_as_json_and_in_a_readme() {
    let (dir, readme) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let readme = readme.path().join("README.md");
    fs::write(
        &readme,
        "# Title\n<!-- hubbench:start -->\nold\n<!-- hubbench:end -->\nend\n",
    )
    .unwrap();
    let output = hubbench(dir.path(), &["--only", "hub/2/unicast/60", "--rounds", "2"])
        .args(["--round-trips", "100", "--seconds", "0.1", "--json", "--readme"])
        .arg(&readme)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = results["sections"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1);
    for (score, name) in rows[0]["scores"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["uml_switch", "vde_switch"])
    {
        assert_eq!(score["switch"], name);
        assert!(score["delivered_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(score["wrong"], 0);
    }
    let text = fs::read_to_string(&readme).unwrap();
    assert!(
        text.starts_with("# Title\n<!-- hubbench:start -->\nMeasured on "),
        "{text}"
    );
    assert!(
        text.contains("\n| hub | 2 | unicast | 60 | ") && !text.contains("old"),
        "{text}"
    );
    assert!(text.ends_with("\n<!-- hubbench:end -->\nend\n"), "{text}");
    assert!(is_empty(&dir));
}

#[test]
fn shares_are_measured_for_a_time_of_their_own() {
    let (dir, begin) = (TempDir::new().unwrap(), Instant::now());
    let output = hubbench(
        dir.path(),
        &["--only", "none", "--round-trips", "0", "--share-rounds", "1"],
    )
    .args(["--seconds", "100", "--converge", "2", "--share-seconds", "0.25"])
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(begin.elapsed() < Duration::from_secs(100));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, table) = text
        .split_once("\n#### 2 senders to one receiver\n")
        .expect("the table");
    assert!(
        table.contains(" Medians of 1 rounds of 0.25 s each.\n"),
        "{table}"
    );
    for switch in ["uml_switch", "vde_switch"] {
        assert!(table.contains(&format!("\n| {switch} | ")), "{table}");
    }
    assert!(is_empty(&dir));
}

#[test]
fn sigterm_ends_it_with_its_switch_and_files() {
    let dir = TempDir::new().unwrap();
    let mut bench = hubbench(dir.path(), &["--seconds", "600"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let own = Pid::from_raw(bench.id().cast_signed());
    let children = format!("/proc/{own}/task/{own}/children");
    // The sender and two receivers beside the main thread: a switch is up and loaded.
    while fs::read_dir(format!("/proc/{own}/task")).unwrap().count() < 4 {
        assert!(Instant::now() < deadline, "hubbench does not begin");
        std::thread::yield_now();
    }
    let switch = fs::read_to_string(children).unwrap().trim().to_owned();
    assert!(!switch.is_empty());
    kill(own, Signal::SIGTERM).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    assert!(!Path::new("/proc").join(switch).exists());
    assert!(is_empty(&dir));
}

#[test]
fn sigkill_takes_the_switch_along() {
    let dir = TempDir::new().unwrap();
    let mut bench = hubbench(dir.path(), &["--seconds", "600"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let own = bench.id();
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(format!("/proc/{own}/task")).unwrap().count() < 4 {
        assert!(Instant::now() < deadline, "hubbench does not begin");
        std::thread::yield_now();
    }
    let switch = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let switch = Path::new("/proc").join(switch.trim());
    bench.kill().unwrap();
    bench.wait().unwrap();
    while fs::read_to_string(switch.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the switch lives on");
        std::thread::yield_now();
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    let dir = TempDir::new().unwrap();
    let output = hubbench(dir.path(), &["--rounds", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = Command::new(env!("CARGO_BIN_EXE_hubbench"))
        .args(["--switchd", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text,
        "hubbench: cannot find switchd at /nonexistent\nhint: cargo build --release -p switchd, or --switchd PATH\n"
    );
}

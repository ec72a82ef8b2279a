//! A newcomer's minute: what `make install` puts in place works, and `make uninstall` removes all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::program::{self, binary, tool};
use tests::uml::{FAMILY, Home, text};

/// The workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `make` with what is built already: the programs of this test.
#[track_caller]
fn make(target: &str, prefix: &Path, dist: &Path) {
    let built = binary("vstart");
    let mut command = Command::new(tool("make"));
    command
        .arg("-C")
        .arg(workspace())
        .args([target, "TUNCTL=yes"])
        .arg(format!("PREFIX={}", prefix.display()))
        .arg(format!("DIST={}", dist.display()))
        .arg(format!(
            "BUILT={}",
            built.parent().expect("a directory").display()
        ))
        .arg(format!("XTASK={}", binary("xtask").display()))
        .env_remove("MAKEFLAGS");
    program::run(&mut command).ok();
}

/// All files and directories below one.
fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

const OTHERS: [&str; 4] = ["switchd", "tapctl", "tunctl", "uml_switch"];

/// The four commands of the README, a line each.
fn four_commands() -> Vec<String> {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("there is a README");
    let (_, rest) = readme
        .split_once("<!-- four commands")
        .expect("the README marks the commands");
    let block = rest.split("```").nth(1).expect("a block of commands");
    let lines: Vec<_> = block
        .lines()
        .map(str::to_owned)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    lines
}

#[test]
fn what_is_installed_works_and_can_be_removed() {
    let home = Home::new();
    let (prefix, dist) = (home.path().join("usr"), home.path().join("dist"));
    make("put", &prefix, &dist);
    // Again: an update forgets nothing of what the first one made.
    make("put", &prefix, &dist);
    fs::remove_dir_all(&dist).expect("it is ours");

    for name in FAMILY.into_iter().chain(OTHERS) {
        let program = prefix.join("bin").join(name);
        // uml_switch and tunctl have the options of their models: no --help.
        if !["uml_switch", "tunctl"].contains(&name) {
            let help = program::run(Command::new(&program).arg("--help").env("HOME", home.path())).ok();
            assert!(help.contains("Usage: "), "{name}: {help}");
        }
        assert!(program.exists(), "{name}");
        let page = prefix.join(format!("share/man/man1/{name}.1"));
        let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(
            page.contains(".TH ") || page.starts_with(".so man1/"),
            "{name}: {page}"
        );
        for completion in [
            format!("share/bash-completion/completions/{name}.bash"),
            format!("share/zsh/site-functions/_{name}"),
            format!("share/fish/vendor_completions.d/{name}.fish"),
        ] {
            let exists = prefix.join(&completion).is_file();
            assert!(exists || ["uml_switch", "tunctl"].contains(&name), "{completion}");
        }
    }

    // What the installation sets, counts for all its users.
    let settings = prefix.join("lib/hubbub/netkit.conf");
    fs::write(&settings, "VM_MEMORY=144\n").expect("it is ours");
    let shown = program::run(Command::new(prefix.join("bin/vconfig")).env("HOME", home.path())).ok();
    let line = format!("VM_MEMORY=144  # {}:1\n", settings.display());
    assert!(shown.contains(&line), "{shown}");
    fs::remove_file(settings).expect("it is ours");

    // From a clone of the project, with what is installed.
    let clone = home.path().join("clone");
    fs::create_dir(&clone).expect("the home is ours");
    let copied = Command::new("cp")
        .arg("-R")
        .arg(workspace().join("labs"))
        .arg(&clone)
        .status();
    assert!(copied.expect("cp runs").success());
    let before = tree(&clone);
    let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", prefix.join("bin").display());
    let script = four_commands().join("\n");
    let minute = Command::new("sh")
        .args(["-euc", &script])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", path)
        .current_dir(&clone)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let minute = tests::uml::output(minute.expect("sh runs"));
    let (out, err) = (text(&minute.stdout), text(&minute.stderr));
    assert!(minute.status.success(), "{out}{err}");
    assert!(out.contains(" 0% packet loss"), "{out}{err}");
    assert!(
        err.contains("3 of 3 machines") && err.matches(": halted").count() == 3,
        "{err}"
    );
    assert_eq!(tree(&clone), before);
    let stop = Command::new(prefix.join("bin/switchd"))
        .arg("stop")
        .env("HOME", home.path())
        .output();
    stop.expect("switchd runs");

    // Nothing but what somebody else has put there stays, and directories that were there before.
    fs::write(prefix.join("share/man/other"), "").expect("it is ours");
    make("uninstall", &prefix, &dist);
    let left: BTreeSet<PathBuf> = ["share", "share/man", "share/man/other"]
        .map(|name| prefix.join(name))
        .into();
    assert_eq!(tree(&prefix), left);
    fs::remove_dir_all(&prefix).expect("it is ours");
    fs::create_dir_all(prefix.join("bin")).expect("the home is ours");
    make("put", &prefix, &dist);
    make("uninstall", &prefix, &dist);
    assert_eq!(tree(&prefix), BTreeSet::from([prefix.join("bin")]));
    for dir in [prefix, dist, clone] {
        fs::remove_dir_all(dir).expect("it is ours");
    }
    home.assert_nothing_left();
}

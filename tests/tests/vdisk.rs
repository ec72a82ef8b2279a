//! Disks made, looked at and merged by vdisk are those that kernels and uml-utilities make and read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::uml::{Home, text, wait_for};
use tests::{model, program};

/// Runs a machine on a model once; how often the model has booted by then.
fn boots(home: &Home, args: &[&str]) -> String {
    home.ok("vstart", [&["pc1", "-q"], args].concat());
    let path = home.path().join("report");
    wait_for("the guest's report", || path.exists());
    let report = fs::read_to_string(&path).expect("it is there");
    fs::remove_file(&path).expect("it is ours");
    home.ok("vhalt", ["pc1"]);
    report.lines().next().unwrap_or_default().trim().to_owned()
}

fn info(home: &Home, file: &str) -> Value {
    let all: Value = serde_json::from_str(&home.ok("vdisk", ["info", "--json", file])).expect("JSON");
    all[0].clone()
}

fn tool(name: &str, args: &[&Path]) {
    let output = Command::new(program::tool(name))
        .args(args)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{name}: {}", text(&output.stderr));
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).expect("it is there") == fs::read(b).expect("it is there")
}

fn files(home: &Home) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(home.path())
        .expect("it is ours")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(".netkit"))
        .collect();
    names.sort();
    names
}

#[test]
fn changes_are_made_told_and_merged() {
    let home = Home::new();
    let path = |name: &str| -> PathBuf { home.path().join(name) };
    let model = model::make(&home.path());
    home.ok("vdisk", ["make", "pc1.disk", "--model-fs", "model"]);
    tool("uml_mkcow", &[&path("theirs.disk"), &model]);
    for disk in ["pc1.disk", "theirs.disk"] {
        let info = info(&home, disk);
        assert_eq!(info["kind"], "changes", "{info}");
        let changes = &info["changes"];
        assert_eq!(changes["model"], model.to_str().expect("text"), "{info}");
        assert_eq!(changes["model_is"], "unchanged", "{info}");
        assert_eq!(
            (changes["changed_bytes"].as_u64(), changes["model_bytes"].as_u64()),
            (Some(0), Some(16 << 20)),
            "{info}"
        );
    }
    assert_eq!(info(&home, "model")["kind"], "ext2");

    // The kernel takes what we have made.
    assert_eq!(boots(&home, &["-m", "model"]), "1");
    let changed = info(&home, "pc1.disk")["changes"]["changed_bytes"].as_u64();
    assert!(
        changed.is_some_and(|bytes| bytes > 0 && bytes < 4 << 20),
        "{changed:?}"
    );
    assert!(
        home.ok("vdisk", ["info", "pc1.disk"])
            .contains(&format!("changes to  {}\n", model.display()))
    );
    let told = home.run("vdisk", ["merge", "pc1.disk", "new"]);
    assert!(
        told.status.success() && text(&told.stderr).contains(" of changes\n"),
        "{}",
        text(&told.stderr)
    );
    tool("uml_moo", &[&path("pc1.disk"), &path("theirs")]);
    assert!(same(&path("new"), &path("theirs")));
    assert!(
        path("new").metadata().unwrap().blocks() * 512 < 12 << 20,
        "holes are kept"
    );
    assert_eq!(boots(&home, &["-D", "-m", "new"]), "2");
    assert_eq!(boots(&home, &["-D", "-m", "model"]), "1");

    home.ok("vdisk", ["merge", "pc1.disk", "--into-model"]);
    assert!(same(&model, &path("new")));
    assert_eq!(info(&home, "pc1.disk")["changes"]["model_is"], "changed");
    for file in ["pc1.disk", "theirs.disk", "theirs", "new", "model"] {
        fs::remove_file(path(file)).unwrap();
    }
    home.assert_nothing_left();
}

#[test]
fn what_is_in_use_or_does_not_fit_is_left_alone() {
    let home = Home::new();
    let path = |name: &str| -> PathBuf { home.path().join(name) };
    let model = model::make(&home.path());
    home.ok("vstart", ["pc1", "-q", "-m", "model"]);
    wait_for("the guest's report", || path("report").exists());
    fs::remove_file(path("report")).unwrap();
    let user = &info(&home, "pc1.disk")["used_by"][0];
    assert_eq!(user, "pc1");
    let error = home.fails(1, "vdisk", ["merge", "pc1.disk", "new"]);
    assert_eq!(error, "vdisk: cannot use pc1.disk: a machine is using it\n");
    let error = home.fails(1, "vstart", ["pc2", "-q", "-W", "-m", "model"]);
    assert!(error.ends_with("model: machine pc1 is using it\n"), "{error}");
    home.ok("vhalt", ["pc1"]);

    let before = files(&home);
    assert_eq!(before, ["model", "pc1.disk"]);
    let error = home.fails(1, "vdisk", ["merge", "pc1.disk", "model"]);
    assert_eq!(
        error,
        "vdisk: cannot make model: it is there already\nhint: --force replaces it\n"
    );
    let error = home.fails(1, "vdisk", ["merge", "model", "new"]);
    assert_eq!(
        error,
        "vdisk: cannot use model for changes: it is something else than a COW file\n"
    );
    let error = home.fails(1, "vdisk", ["info", "nowhere"]);
    assert!(error.starts_with("vdisk: cannot open nowhere: "), "{error}");
    let error = home.fails(2, "vdisk", ["make", "x", "--size", "1.5G"]);
    assert!(error.contains("'1.5G' is no size"), "{error}");
    home.fails(2, "vdisk", ["make", "x"]);

    // The model is another by its time alone: refused, as the kernel would, but before a machine without a disk runs.
    let time = model.metadata().unwrap().mtime();
    let touch = |seconds: i64| {
        tool(
            "touch",
            &[Path::new("-d"), Path::new(&format!("@{seconds}")), &model],
        )
    };
    touch(time + 1);
    for (command, args) in [
        ("vdisk", &["merge", "pc1.disk", "new"][..]),
        ("vstart", &["pc1", "-q", "-m", "model"]),
    ] {
        let error = home.fails(1, command, args);
        assert!(
            error.contains(": the model has changed since\nhint: ")
                && error.contains(&format!("touch -d @{time} ")),
            "{error}"
        );
    }
    assert_eq!(files(&home), before);
    home.ok("vdisk", ["merge", "--force", "pc1.disk", "new"]);
    touch(time);
    assert_eq!(boots(&home, &["-m", "model"]), "2");
    for file in ["pc1.disk", "new", "model"] {
        fs::remove_file(path(file)).unwrap();
    }
    home.assert_nothing_left();
}

#[test]
fn a_directory_becomes_a_model_that_boots() {
    let home = Home::of_ordinary_user();
    let tree = model::tree(&home.path());
    // Whoever runs the test has made it; the user of the home is to own it.
    tool(
        "chown",
        &[Path::new("-hR"), Path::new(&owner(&home.path())), &tree],
    );
    let error = home.fails(1, "vdisk", ["build", "small", "--from", "tree", "--size", "64K"]);
    assert!(
        error.starts_with("vdisk: cannot make a file system of 65536 bytes from tree: "),
        "{error}"
    );
    assert_eq!(files(&home), ["tree"]);
    home.ok("vdisk", ["build", "model", "--from", "tree"]);
    fs::remove_dir_all(tree).unwrap();
    assert_eq!(info(&home, "model")["kind"], "ext4");
    assert_eq!(boots(&home, &["-D", "-m", "model"]), "1");
    home.ok("vdisk", ["make", "empty", "-s", "1G"]);
    let data = home.path().join("empty").metadata().unwrap();
    assert_eq!((data.len(), data.blocks()), (1 << 30, 0));
    for file in ["model", "empty"] {
        fs::remove_file(home.path().join(file)).unwrap();
    }
    home.assert_nothing_left();
}

fn owner(path: &Path) -> String {
    let data = path.metadata().expect("it is there");
    format!("{}:{}", data.uid(), data.gid())
}

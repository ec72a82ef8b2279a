//! Real machines in a home directory of their own.
//!
//! A [`Home`] is a user's world for one test: directories, environment, programs. When it is dropped, everything
//! that was started in it is ended, whatever the test has left.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use serde_json::Value;

use crate::netns::Net;
use crate::program;
pub use crate::wait::{PATIENCE, until_true as wait_for};

/// A user's home directory with nothing in it, and the programs to be tested.
#[derive(Debug)]
pub struct Home {
    dir: tempfile::TempDir,
    programs: PathBuf,
    /// Runs programs as another user than the test's own.
    user: Option<u32>,
    /// Runs programs in the network of this process.
    net: Option<i32>,
    /// What the machines that were started say, for the one who looks into a failure: they may be gone by then.
    consoles: Mutex<Vec<(String, fs::File)>>,
}

/// The user that stands for all ordinary ones: nobody.
const ORDINARY: u32 = 65534;

impl Home {
    /// The home of the user who runs the test.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// The home of an ordinary user; of the user who runs the test, if that is one.
    pub fn of_ordinary_user() -> Self {
        Self::of(getuid().is_root().then_some(ORDINARY))
    }

    /// The home of a user of this number, which only root can make.
    pub fn of_user(user: u32) -> Self {
        assert!(getuid().is_root(), "this test needs root");
        Self::of(Some(user))
    }

    fn of(user: Option<u32>) -> Self {
        let programs = programs();
        // Not in TMPDIR, which may be too deep for socket paths.
        let dir = tempfile::Builder::new()
            .prefix("hub")
            .tempdir_in("/tmp")
            .expect("/tmp can be written to");
        if user.is_none() {
            return Self {
                dir,
                programs,
                user,
                net: None,
                consoles: Mutex::default(),
            };
        }
        // An ordinary user may not see the directory the programs were built in.
        let copies = dir.path().join("bin");
        fs::create_dir(&copies).expect("the directory is new");
        for name in PROGRAMS {
            fs::copy(programs.join(name), copies.join(name)).expect("the programs are built");
        }
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("the directory is new");
        std::os::unix::fs::chown(&home, user, user).expect("root can give files away");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the directory is ours");
        Self {
            dir,
            programs: copies,
            user,
            net: None,
            consoles: Mutex::default(),
        }
    }

    /// The same home on another host: commands run in that network.
    #[must_use]
    pub fn inside(mut self, net: &Net) -> Self {
        self.net = Some(net.pid());
        self
    }

    /// The user, if it is another than the test's own.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// The directory itself.
    pub fn path(&self) -> PathBuf {
        if self.user.is_some() {
            self.dir.path().join("home")
        } else {
            self.dir.path().to_owned()
        }
    }

    /// A command of the user: in the home directory, with nothing from the test's own environment.
    pub fn command(&self, program: &str) -> Command {
        let (program, words) = match FAMILY.contains(&program) {
            true => ("vstart", Some(program)),
            false => (program, None),
        };
        let path = self.programs.join(program);
        let mut line: Vec<OsString> = Vec::new();
        if let Some(pid) = self.net {
            line.extend(["nsenter", "--target", &pid.to_string(), "--net", "--mount", "--"].map(Into::into));
        }
        if let Some(uid) = self.user {
            let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
            line.extend(["setpriv", &uid, &gid, "--clear-groups", "--"].map(Into::into));
        }
        line.push(path.into());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .args(words)
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Output {
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        output(child)
    }

    /// Runs a command that must succeed; its standard output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> String {
        let output = self.run(program, args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{program} failed ({}):\n{out}{err}",
            output.status
        );
        out
    }

    /// Runs a command that must fail with the given exit code; its standard error.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn fails<S: AsRef<OsStr>>(
        &self,
        code: i32,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> String {
        let output = self.run(program, args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{program}:\n{out}{err}");
        err
    }

    /// What `vlist --json` says about one machine; `Value::Null` if nothing.
    pub fn machine(&self, name: &str) -> Value {
        let rows: Value = serde_json::from_str(&self.ok("vlist", ["--json"])).expect("vlist prints JSON");
        let rows = rows.as_array().expect("vlist prints an array");
        rows.iter()
            .find(|row| row["name"] == name)
            .cloned()
            .unwrap_or_default()
    }

    /// Starts a machine and waits until its start-up commands are through.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(&self, name: &str, args: &[&str]) {
        self.ok("vstart", std::iter::once(&name).chain(args));
        let console = self
            .path()
            .join(".netkit/machines")
            .join(name)
            .join("console.log");
        if let Ok(console) = fs::File::open(console) {
            self.consoles
                .lock()
                .expect("no panic")
                .push((name.into(), console));
        }
        self.wait_for_status(name, "ready");
    }

    /// Waits until `vlist` shows a machine in a status.
    ///
    /// # Panics
    /// When that does not happen.
    #[track_caller]
    pub fn wait_for_status(&self, name: &str, status: &str) {
        wait_for(&format!("{name} to be {status}"), || {
            self.machine(name)["status"] == status
        });
    }

    /// Process number of a machine's kernel or supervisor, by the key in `vlist --json`.
    ///
    /// # Panics
    /// When the machine does not run.
    #[track_caller]
    pub fn pid(&self, name: &str, key: &str) -> Pid {
        let row = self.machine(name);
        let pid = row[key].as_i64().and_then(|pid| i32::try_from(pid).ok());
        Pid::from_raw(pid.unwrap_or_else(|| panic!("no {key} in {row}")))
    }

    /// All processes that were started in this home and still run, and what they are.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let path = self.path();
        let needle = path.to_str().expect("the path is text").as_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let line = read("cmdline");
            let belongs = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            if belongs(&line) || (belongs(&read("environ")) && !line.is_empty()) {
                found.push((Pid::from_raw(pid), text(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// Waits until no process of this home is left, and no file but those that may stay.
    ///
    /// # Panics
    /// When something stays.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let _ = self.run("switchd", ["stop"]);
        wait_for("all processes to end", || self.processes().is_empty());
        let mut files = BTreeSet::new();
        list(&self.path(), &self.path(), &mut files);
        let left: Vec<_> = files
            .iter()
            .filter(|file| !MAY_STAY.contains(&file.as_str()))
            .collect();
        assert!(left.is_empty(), "files are left: {left:?}");
    }

    /// Waits until no process has the machine's name on its command line.
    ///
    /// # Panics
    /// When one has.
    #[track_caller]
    pub fn assert_machine_gone(&self, name: &str) {
        let word = format!("umid={name} ");
        wait_for(&format!("the processes of {name} to end"), || {
            self.processes().iter().all(|(_, line)| !line.contains(&word))
        });
        let dirs = ["machines", "mconsole"].map(|dir| self.path().join(".netkit").join(dir).join(name));
        wait_for(&format!("the files of {name} to go"), || {
            dirs.iter().all(|dir| !dir.exists())
        });
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = self.path().join(".netkit/hubs/switchd.log");
            eprintln!(
                "--- switchd.log\n{}",
                fs::read_to_string(path).unwrap_or_default()
            );
            let mut consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, console) in consoles.iter_mut() {
                let mut said = Vec::new();
                let _ = console.read_to_end(&mut said);
                eprintln!("--- console of {name}\n{}", text(&said));
            }
        }
        // Supervisors first: they would only tidy up after the others.
        crate::wait::comes_true(PATIENCE, || {
            let left = self.processes();
            for (pid, _) in &left {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            left.is_empty()
        });
    }
}

/// Waits for a program to end; one that takes too long is killed, and the test with it.
///
/// # Panics
/// When it takes longer than [`LONGEST_RUN`].
#[track_caller]
pub fn output(child: Child) -> Output {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process number"));
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match result.recv_timeout(LONGEST_RUN) {
        Ok(output) => output.expect("the output of a child"),
        Err(_) => {
            let _ = kill(pid, Signal::SIGKILL);
            panic!("process {pid} has not ended within {} s", LONGEST_RUN.as_secs());
        }
    }
}

/// No program that a test runs to its end takes longer, however busy the machine.
const LONGEST_RUN: Duration = Duration::from_secs(90);

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PROGRAMS: [&str; 4] = ["vstart", "hubbub-init", "switchd", "libhubbub_xstate.so"];
/// The names that `vstart` goes by.
pub const FAMILY: [&str; 21] = [
    "lclean",
    "lcrash",
    "lhalt",
    "linfo",
    "lrestart",
    "lstart",
    "ltest",
    "vclean",
    "vcommand",
    "vconf",
    "vconfig",
    "vconnect",
    "vcrash",
    "vdisk",
    "vdump",
    "vexec",
    "vhalt",
    "vlist",
    "vmconsole",
    "vplug",
    "vstart",
];
const MAY_STAY: [&str; 7] = [
    ".netkit",
    ".netkit/hubs",
    ".netkit/hubs/switchd.lock",
    ".netkit/hubs/switchd.log",
    ".netkit/machines",
    ".netkit/machines/.lock",
    ".netkit/mconsole",
];

/// The directory of the programs.
fn programs() -> PathBuf {
    program::tool("linux.uml");
    let mut dirs = PROGRAMS
        .map(program::binary)
        .into_iter()
        .filter_map(|path| path.parent().map(Path::to_owned));
    dirs.next().expect("a program lies in a directory")
}

fn list(root: &Path, dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("the directory can be read").flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).expect("the path is below the root");
        found.insert(name.display().to_string());
        if entry.metadata().is_ok_and(|data| data.is_dir()) {
            list(root, &path, found);
        }
    }
}

//! Programs that tests run: found or loudly missed, bounded in time, ended by their guard.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// The path of a program of this workspace, in the target directory of the running test.
///
/// # Panics
/// When it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let path = test
        .ancestors()
        .skip(1)
        .find(|directory| directory.file_name().is_some_and(|name| name != "deps"))
        .expect("a test lies in a target directory")
        .join(name);
    assert!(
        path.is_file(),
        "{} has not been built: run 'make test', or 'cargo build --workspace' before 'cargo test -p tests'",
        path.display()
    );
    path
}

/// The path of a program of the system.
///
/// # Panics
/// When it is not installed.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run scripts/setup.sh"))
}

/// How a program ended and what it said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its end.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The exit status, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Standard output of a program that ended well.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }

    /// Standard error of a program that ended with `code` and printed no result.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!((self.code(), self.stdout.as_str()), (Some(code), ""), "{self:#?}");
        self.stderr
    }
}

/// Runs a program to its end, without input.
///
/// # Panics
/// When it cannot be started or does not end in time.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    Process::start(command.stdin(Stdio::null())).outcome()
}

/// Starts a program and waits until it does what it is there for. One that ends before that is started again: what it
/// needs may only just come to be, like a socket whose file is there before anybody listens.
///
/// # Panics
/// When it is not `ready` in time, with what its last run said.
#[track_caller]
pub fn start_until(what: &str, start: impl Fn() -> Process, mut ready: impl FnMut() -> bool) -> Process {
    let mut process = start();
    let mut last = None;
    let came = wait::comes_true(wait::PATIENCE, || {
        let ready = ready();
        if !ready && !process.is_running() {
            last = Some(std::mem::replace(&mut process, start()).outcome());
        }
        ready
    });
    assert!(
        came,
        "waited {} s for this: {what}; how its program ended: {last:#?}",
        wait::PATIENCE.as_secs()
    );
    process
}

/// True if somebody listens on a Unix stream socket. That its file exists does not mean that: it is there first.
pub fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// A running program. Dropping it kills it, if it still runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: [Option<thread::JoinHandle<String>>; 2],
}

impl Process {
    /// Starts a program; what it prints is collected.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Self::start_as_is(piped);
        let collect = |mut from: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // A pipe can only fail by ending.
                let _ = from.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let (stdout, stderr) = (process.child.stdout.take(), process.child.stderr.take());
        process.output = [
            stdout.map(|pipe| collect(Box::new(pipe))),
            stderr.map(|pipe| collect(Box::new(pipe))),
        ];
        process
    }

    /// Starts a program with the standard streams as they are set.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start_as_is(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            child,
            name,
            output: [None, None],
        }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The running child, for its streams.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal)
            .unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.name));
    }

    /// Stops it, as SIGSTOP does, and waits until every thread of it has stopped.
    ///
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid());
        wait::until_true("every thread has stopped", || {
            let threads = fs::read_dir(&tasks).expect("a running process");
            threads.flatten().all(|thread| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ")
                    .is_none_or(|(_, rest)| rest.starts_with('T'))
            })
        });
    }

    /// True as long as it has not ended.
    ///
    /// # Panics
    /// When the system does not know.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the state of a child").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait::until(&what, || self.child.try_wait().expect("the state of a child"))
    }

    /// Waits for its end and takes what it printed.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let status = self.wait();
        let mut text = |stream: usize| match self.output[stream].take() {
            Some(thread) => thread.join().expect("a thread that only reads"),
            None => String::new(),
        };
        Outcome {
            status,
            stdout: text(0),
            stderr: text(1),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be stopped or have ended: killing does no harm then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Set in a test that runs in namespaces of its own.
const INSIDE: &str = "TESTS_INSIDE";

/// Runs a test body in namespaces of its own: starts the running test once more under unshare(1) with these options.
/// `test` is the name of the test; the host's own namespaces are left alone.
///
/// # Panics
/// When the test fails in there, or the system lets nobody make namespaces.
#[track_caller]
pub fn in_namespaces(test: &str, options: &[&str], body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        return body();
    }
    let mut command = Command::new(tool("unshare"));
    command
        .args(options)
        .arg("--")
        .arg(std::env::current_exe().expect("the path of the running test"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test);
    let mut inside = Process::start(command.stdin(Stdio::null()));
    // It waits for things itself, and what it says when they do not come is worth waiting for.
    wait::comes_true(3 * wait::PATIENCE, || !inside.is_running());
    let outcome = inside.outcome();
    assert!(
        outcome.status.success() && outcome.stdout.contains("1 passed"),
        "{test} has failed under 'unshare {}': {outcome:#?}",
        options.join(" ")
    );
}

/// Processes whose command line mentions `path`: what a program left running.
pub fn mentioning(path: &Path) -> Vec<Pid> {
    let wanted = path.to_string_lossy().into_owned().into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let found = line.windows(wanted.len()).any(|part| part == wanted);
            found.then(|| Pid::from_raw(pid))
        })
        .collect()
}

//! A real `switchd run` in a directory of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proto::ctl::{DomainRow, FdbRow, PortRow, Reply, Request, Stats};
use tempfile::TempDir;

use crate::client::Client;
use crate::netns::Net;
use crate::program::{Outcome, Process, binary, run};
use crate::wait;

/// The daemon. Dropping it ends it and, unless the test has failed already, checks that it ended well and left nothing.
#[derive(Debug)]
pub struct Switchd {
    process: Option<Process>,
    home: TempDir,
}

impl Switchd {
    /// Starts a daemon with default settings.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a daemon with further arguments of `run`.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut switchd = Self::prepared();
        switchd.launch(arguments);
        switchd
    }

    /// Starts a daemon in a network, with further arguments of `run`.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start_in(net: &Net, arguments: &[&str]) -> Self {
        let mut switchd = Self::prepared();
        switchd.launch_in(net, arguments);
        switchd
    }

    /// Starts a daemon with one domain, made with the given arguments of `domain add`.
    ///
    /// # Panics
    /// When either fails.
    #[track_caller]
    pub fn with_domain(arguments: &[&str]) -> Self {
        let switchd = Self::start();
        switchd.add(arguments);
        switchd
    }

    /// A place for a daemon that is yet to be started.
    ///
    /// # Panics
    /// When there is no room for temporary files.
    pub fn prepared() -> Self {
        let home = tempfile::Builder::new()
            .prefix("hub")
            .tempdir()
            .expect("a temporary directory");
        Self { process: None, home }
    }

    /// Starts the daemon here, for the first time or once more after [`Switchd::stop`] or [`Switchd::kill`].
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn launch(&mut self, arguments: &[&str]) {
        self.launch_by(self.command(), arguments);
    }

    /// The same in a network.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn launch_in(&mut self, net: &Net, arguments: &[&str]) {
        let mut command = net.command(binary("switchd"));
        command.env("HOME", self.home.path()).arg("--dir").arg(self.dir());
        self.launch_by(command, arguments);
    }

    /// The same by a command that becomes `switchd` for this directory.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn launch_by(&mut self, mut command: Command, arguments: &[&str]) {
        assert!(self.process.is_none(), "it runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        command
            .arg("run")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut process = Process::start_as_is(&mut command);
        wait::until_true("switchd answers", || {
            assert!(process.is_running(), "switchd has ended: {}", self.log());
            UnixStream::connect(self.socket()).is_ok()
        });
        self.process = Some(process);
    }

    /// The directory of its sockets. It makes that itself.
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("hubs")
    }

    /// A directory for files of the test.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("switchd.sock")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Its process number.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("it runs").pid()
    }

    /// The `switchd` program for this directory, without the caller's settings.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary("switchd"));
        command
            .env_remove("NETKIT_HUBS")
            .env_remove("SWITCHD_LOG")
            .env("HOME", self.home.path())
            .arg("--dir")
            .arg(self.dir());
        command
    }

    /// Runs one command of its command line.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        run(self.command().args(arguments))
    }

    /// `domain add` with these arguments.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn add(&self, arguments: &[&str]) {
        let mut command = self.command();
        run(command.args(["domain", "add"]).args(arguments)).ok();
    }

    /// `domain show`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn domain(&self, name: &str) -> DomainRow {
        self.json(&["domain", "show", name, "--json"])
    }

    /// `port ls` of a domain.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ports(&self, domain: &str) -> Vec<PortRow> {
        self.json(&["port", "ls", domain, "--json"])
    }

    /// One row of `port ls`.
    ///
    /// # Panics
    /// When there is no such port.
    #[track_caller]
    pub fn port(&self, domain: &str, id: u32) -> PortRow {
        let ports = self.ports(domain);
        let found = ports.iter().find(|port| port.id == id).cloned();
        found.unwrap_or_else(|| panic!("no port {id} in {ports:#?}"))
    }

    /// `fdb` of a domain.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn fdb(&self, domain: &str) -> Vec<FdbRow> {
        self.json(&["fdb", domain, "--json"])
    }

    /// `stats`.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        self.json(&["stats", "--json"])
    }

    /// Connections refused for a reason so far.
    ///
    /// # Panics
    /// When `stats` fails.
    #[track_caller]
    pub fn refused(&self, reason: &str) -> u64 {
        self.stats().daemon.refused.get(reason).copied().unwrap_or(0)
    }

    #[track_caller]
    fn json<T: for<'a> serde::Deserialize<'a>>(&self, arguments: &[&str]) -> T {
        let text = self.run(arguments).ok();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no such thing: {error}\n{text}"))
    }

    /// Where guests of a domain attach.
    ///
    /// # Panics
    /// When there is no such domain.
    #[track_caller]
    pub fn uml_socket(&self, domain: &str) -> PathBuf {
        PathBuf::from(&self.domain(domain).sockets["uml"])
    }

    /// Attaches to a domain.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn attach(&self, domain: &str) -> Client {
        Client::attach(&self.uml_socket(domain))
    }

    /// Opens a connection to the control socket.
    ///
    /// # Panics
    /// When nobody answers.
    #[track_caller]
    pub fn connect(&self) -> Control {
        Control::open(&self.socket())
    }

    /// Ends the daemon with a signal and tells how it ended.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal(signal);
        process.wait()
    }

    /// Waits for the daemon to end by itself.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.take().expect("it runs").wait()
    }

    /// Every file below its directory, but for the lock, which stays.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.dir());
        files.retain(|path| path.file_name().is_some_and(|name| name != "switchd.lock"));
        files
    }
}

impl Drop for Switchd {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        if std::thread::panicking() {
            eprintln!("what switchd said:\n{}", self.log());
            if let Ok(ports) = self.command().args(["port", "ls"]).output() {
                eprintln!("its ports:\n{}", String::from_utf8_lossy(&ports.stdout));
            }
            return;
        }
        assert!(
            process.is_running(),
            "switchd has ended before its time: {}",
            self.log()
        );
        process.signal(Signal::SIGTERM);
        let status = process.wait();
        assert!(status.success(), "switchd ended with {status}: {}", self.log());
        let left = self.files();
        assert!(left.is_empty(), "switchd has left {left:?}");
        assert!(
            !self.log().contains("panicked"),
            "switchd panicked: {}",
            self.log()
        );
    }
}

/// Every file and directory below a directory.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            files.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// A connection to the control socket.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects.
    ///
    /// # Panics
    /// When nobody answers.
    #[track_caller]
    pub fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", socket.display()));
        stream
            .set_read_timeout(Some(wait::PATIENCE))
            .expect("a time-out that is not zero");
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// As write(2).
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_ref().write_all(bytes)
    }

    /// The next reply; `None` at the end of the connection.
    ///
    /// # Panics
    /// When the daemon sends something else than a reply, or nothing.
    #[track_caller]
    pub fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("no reply: {line:?}: {error}")),
            ),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no reply: {error}"),
        }
    }

    /// Asks and waits for the reply.
    ///
    /// # Panics
    /// When the daemon hangs up.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Reply {
        let mut line = serde_json::to_vec(request).expect("a request is JSON");
        line.push(b'\n');
        self.send(&line).expect("a daemon that listens");
        self.reply().expect("a reply")
    }
}

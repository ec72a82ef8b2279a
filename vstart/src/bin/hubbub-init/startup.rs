//! From the first instruction of process 1 to its last: start-up, consoles, reaping.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::mounts::{self, report};
use crate::power::{self, Request};
use crate::words::Words;
use crate::{agent, lab_test, network, other_root, session};

/// Runs the machine. Returns only if it cannot come up.
pub(crate) fn run() -> Result<()> {
    let proc = Path::new("/proc");
    mounts::mount_type("proc", "proc", proc, MsFlags::empty(), None)?;
    let words = Words::parse(&fs::read_to_string("/proc/cmdline").context("cannot read the command line")?);
    if let Some(device) = words.value("hubbub.root") {
        return other_root::enter(&words, device);
    }
    // Blocked before there is a child, so that none is missed: they are taken one by one below.
    let signals = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]);
    signals.thread_block().context("cannot block signals")?;
    set_cad_enabled(false).context("cannot take over Ctrl-Alt-Del")?;

    tell("booting");
    // Read now: the root that follows hides the host's /tmp, where it may be.
    let commands = if words.has("single") {
        VecDeque::new()
    } else {
        start_commands(&words)?
    };
    mounts::writable_root(&words)?;
    mounts::load_cards(&words);
    network::name(&words);
    network::rename(&words);
    network::bring_up(&words);
    mounts::host_directories(&words);
    mounts::power_commands();
    copy_lab(&words);
    let mut machine = Machine::new(&words, commands);
    if let Some(agent) = &mut machine.agent {
        agent.start();
    }
    tell("up");
    machine.attend(&signals)
}

/// What keeps process 1 busy once the machine is up.
struct Machine {
    /// Start-up commands still to run, in order.
    commands: VecDeque<String>,
    running: Option<Pid>,
    consoles: Vec<Respawned>,
    /// Runs commands for users of the host.
    agent: Option<Respawned>,
    ready: bool,
    /// Touched when the start-up commands are through; lstart waits for it.
    ready_file: Option<String>,
    shutdown_scripts: Vec<String>,
    /// What ltest wants to be run when the start-up commands are through.
    test: Option<String>,
}

/// A program that is started again when it ends.
struct Respawned {
    /// What it runs on.
    tty: &'static str,
    start: fn(&str) -> io::Result<Child>,
    running: Option<Pid>,
    started: Option<Instant>,
}

impl Respawned {
    fn new(tty: &'static str, start: fn(&str) -> io::Result<Child>) -> Self {
        Self {
            tty,
            start,
            running: None,
            started: None,
        }
    }

    fn start(&mut self) {
        // One that ends at once would otherwise keep the machine busy for ever.
        if self.started.is_some_and(|at| at.elapsed() < RESPAWN_PAUSE) {
            std::thread::sleep(RESPAWN_PAUSE);
        }
        self.started = Some(Instant::now());
        let started = (self.start)(self.tty);
        self.running = started.as_ref().ok().and_then(|child| pid(child.id()));
        report(
            started
                .map(drop)
                .with_context(|| format!("cannot start a program on {}", self.tty)),
        );
    }
}

impl Machine {
    fn new(words: &Words, mut commands: VecDeque<String>) -> Self {
        let name = words.value("hostname").unwrap_or("uml");
        let (mut ready_file, mut shutdown_scripts) = (None, Vec::new());
        if words.value("hostlab").is_some() && !words.has("single") {
            for script in [
                format!("/hostlab/{name}.startup"),
                "/hostlab/shared.startup".into(),
            ] {
                if let Some(command) = script_command(&script) {
                    commands.push_front(command);
                }
            }
            ready_file = Some(format!("/hostlab/{name}.ready"));
            shutdown_scripts = vec![
                format!("/hostlab/{name}.shutdown"),
                "/hostlab/shared.shutdown".into(),
            ];
        }
        let test = ready_file.as_ref().and(words.value("test"));
        let test = test.map(|delay| lab_test::command(name, delay));
        let consoles = [(0, "/dev/tty0"), (1, "/dev/tty1")]
            .into_iter()
            .filter(|(number, _)| words.has_console(*number))
            .map(|(_, tty)| Respawned::new(tty, |tty| session::start(tty, None)))
            .collect();
        let agent = words
            .value("ssl0")
            .is_some_and(|channel| channel != "null")
            .then(|| Respawned::new(agent::LINE, agent::start));
        Self {
            commands,
            running: None,
            consoles,
            agent,
            ready: false,
            ready_file,
            shutdown_scripts,
            test,
        }
    }

    fn attend(mut self, signals: &SigSet) -> Result<()> {
        loop {
            self.go_on();
            let signal = signals.wait().context("cannot wait for a signal")?;
            if let Some(request) = Request::from_signal(signal) {
                let shells = self.consoles.iter().filter_map(|console| console.running);
                power::shut_down(request, &self.shutdown_scripts, shells);
            }
            self.reap();
        }
    }

    /// Starts what can be started: the next command, or after the last the shells.
    fn go_on(&mut self) {
        for agent in self.agent.iter_mut().filter(|agent| agent.running.is_none()) {
            agent.start();
        }
        while self.running.is_none() {
            let Some(command) = self.commands.pop_front() else {
                break;
            };
            let tty = if self.consoles.iter().any(|c| c.tty == "/dev/tty0") {
                "/dev/tty0"
            } else {
                "/dev/null"
            };
            let started = session::start(tty, Some(&command));
            self.running = started.as_ref().ok().and_then(|child| pid(child.id()));
            report(
                started
                    .map(drop)
                    .with_context(|| format!("cannot run '{command}'")),
            );
        }
        if self.running.is_some() {
            return;
        }
        if !self.ready {
            self.ready = true;
            if let Some(path) = &self.ready_file {
                report(fs::write(path, "").with_context(|| format!("cannot make {path}")));
            }
            tell("ready");
            if let Some(test) = self.test.take() {
                self.commands.push_back(test);
                return self.go_on();
            }
        }
        for console in self.consoles.iter_mut().filter(|c| c.running.is_none()) {
            console.start();
        }
    }

    fn reap(&mut self) {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => {
                    let Some(pid) = status.pid() else { return };
                    if self.running == Some(pid) {
                        self.running = None;
                    }
                    let programs = self.consoles.iter_mut().chain(&mut self.agent);
                    for program in programs.filter(|program| program.running == Some(pid)) {
                        program.running = None;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// What `-e` asked for: on the command line itself, or, if it does not fit there, in a file of the host.
fn start_commands(words: &Words) -> Result<VecDeque<String>> {
    let mut commands = VecDeque::new();
    if let Some(path) = words.value("hubbub.exec") {
        commands.push_back(
            fs::read_to_string(path).with_context(|| format!("cannot read the command in {path}"))?,
        );
    }
    commands.extend(words.value("exec").map(str::to_owned));
    Ok(commands)
}

/// How to run a script of the lab: by its own interpreter if it is executable, by the shell if not.
fn script_command(path: &str) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    Some(if metadata.permissions().mode() & 0o111 != 0 {
        path.to_owned()
    } else {
        format!(". {path}")
    })
}

/// Copies the lab's files for all machines, then those for this one, over the tree.
fn copy_lab(words: &Words) {
    let Some(name) = words
        .value("hostname")
        .filter(|_| words.value("hostlab").is_some())
    else {
        return;
    };
    for dir in ["/hostlab/shared".to_owned(), format!("/hostlab/{name}")] {
        if Path::new(&dir).is_dir() {
            let copy = Command::new("cp")
                .args(["-r", "--preserve=mode,timestamps", &format!("{dir}/."), "/"])
                .env("PATH", session::PATH)
                .status();
            if !copy.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("hubbub-init: cannot copy {dir} onto /");
            }
            // The copy gives the root directory the lab directory's mode: under a strict umask, nobody but root
            // could go anywhere.
            report(
                fs::set_permissions("/", fs::Permissions::from_mode(0o755))
                    .context("cannot open up the root directory"),
            );
        }
    }
}

/// Tells the machine's supervisor how far we are. It may not be listening, as with a kernel started by hand.
fn tell(what: &str) {
    let _ = fs::write("/proc/mconsole", format!("hubbub {what}"));
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().map(Pid::from_raw)
}

const RESPAWN_PAUSE: Duration = Duration::from_secs(1);

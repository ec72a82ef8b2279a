//! A switch as a process of its own, started and ended by the bench.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::ctl::{DomainSpec, Mode};
use tempfile::TempDir;

use crate::control::{Control, ControlError};
use crate::load::Delivery;
use crate::port::Attach;

/// How long a switch may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);

/// Which program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Debian's uml-utilities.
    UmlSwitch,
    /// Debian's vde2.
    VdeSwitch,
    /// Ours, at this path. Its file name is shown, which tells builds apart when there are several.
    Switchd(PathBuf),
    /// The same, loaded over sequenced-packet connections.
    SwitchdBess(PathBuf),
}

impl Kind {
    /// How ports attach to it where clients of the uml_switch protocol attach in this way.
    pub fn attach(&self, clients: Attach) -> Attach {
        match self {
            Self::SwitchdBess(_) => Attach::Bess,
            _ => clients,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.unwrap_or("switchd").to_owned()
        };
        match self {
            Self::UmlSwitch => f.pad("uml_switch"),
            Self::VdeSwitch => f.pad("vde_switch"),
            Self::Switchd(path) => f.pad(&program(path)),
            Self::SwitchdBess(path) => f.pad(&format!("{} bess", program(path))),
        }
    }
}

/// A running switch in a temporary directory; both go when this is dropped.
#[derive(Debug)]
pub struct Contestant {
    child: Child,
    control: PathBuf,
    dir: TempDir,
}

/// Why a switch does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No temporary directory, or the program is not there.
    #[error("cannot start {kind}")]
    Spawn {
        /// Which switch.
        kind: Kind,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended or did not open its socket.
    #[error("cannot start {kind}: {why}{}", if .said.is_empty() { String::new() } else { format!("; it said: {}", .said) })]
    NotUp {
        /// Which switch.
        kind: Kind,
        /// What happened instead.
        why: String,
        /// Its standard error.
        said: String,
    },
    /// switchd refused the domain.
    #[error("cannot add a domain to switchd")]
    Domain(#[source] ControlError),
}

impl Contestant {
    /// Starts a hub or a switch and waits until ports can attach to it.
    ///
    /// # Errors
    /// When the program is missing, ends, or does not open its control socket in time.
    pub fn start(kind: &Kind, mode: Delivery) -> Result<Self, StartError> {
        let mut contestant = Self::spawn(kind, mode)?;
        if let Kind::Switchd(_) | Kind::SwitchdBess(_) = kind {
            let spec = DomainSpec {
                mode: match mode {
                    Delivery::Hub => Mode::Hub,
                    Delivery::Switch => Mode::Switch,
                },
                ..DomainSpec::new("bench".parse().expect("a legal domain name"))
            };
            let mut control = contestant.switchd()?;
            let socket = control.add_domain(spec).map_err(StartError::Domain)?;
            contestant.control = socket.into();
            if let Kind::SwitchdBess(_) = kind {
                contestant.control.set_extension("bess");
            }
        }
        Ok(contestant)
    }

    /// Starts switchd without any domain.
    ///
    /// # Errors
    /// As for [`Contestant::start`].
    pub fn start_empty(switchd: &Path) -> Result<Self, StartError> {
        Self::spawn(&Kind::Switchd(switchd.to_owned()), Delivery::Hub)
    }

    /// Where ports attach.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A control connection, if this is switchd.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn switchd(&self) -> Result<Control, StartError> {
        let connected = Control::connect(&self.dir.path().join("switchd.sock"));
        connected.map_err(|e| StartError::Domain(e.into()))
    }

    fn spawn(kind: &Kind, mode: Delivery) -> Result<Self, StartError> {
        let spawn_error = |source| StartError::Spawn {
            kind: kind.clone(),
            source,
        };
        let dir = tempfile::Builder::new()
            .prefix("hubbench-")
            // switchd refuses a directory that others can look into.
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(spawn_error)?;
        let said = dir.path().join("stderr");
        let (mut command, control) = command(kind, mode, dir.path());
        // uml_switch writes a line for each frame it drops: like Netkit, which sends that to /dev/null.
        let stderr = match kind {
            Kind::UmlSwitch => Stdio::null(),
            _ => File::create(&said).map_err(spawn_error)?.into(),
        };
        // In a process group of its own: Ctrl-C is for the bench, which then ends the switch in its own time.
        let child = command
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        let mut contestant = Self {
            child: child.map_err(spawn_error)?,
            control,
            dir,
        };
        contestant.wait_until_up().map_err(|why| StartError::NotUp {
            kind: kind.clone(),
            why,
            said: std::fs::read_to_string(said)
                .unwrap_or_default()
                .trim()
                .replace('\n', "; "),
        })?;
        Ok(contestant)
    }

    fn wait_until_up(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // A connection without a request: every switch takes that for a client that changed its mind.
            if UnixStream::connect(&self.control).is_ok() {
                return Ok(());
            }
            match self.child.try_wait() {
                Ok(None) => thread::sleep(GLANCE),
                Ok(Some(status)) => return Err(format!("it ended with {status}")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("nobody listens at {}", self.control.display()))
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // Errors mean that it is gone already; `wait` finds out.
        let _ = kill(pid, Signal::SIGCONT);
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(GLANCE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of Debian's that switchd replaces: the first of that name in PATH that is not switchd itself.
pub fn debians(name: &str) -> PathBuf {
    debians_in(name, &std::env::var_os("PATH").unwrap_or_default())
}

fn debians_in(name: &str, path: &OsStr) -> PathBuf {
    let is_debians = |program: &PathBuf| {
        let target = program.canonicalize();
        target.is_ok_and(|target| target.is_file() && !target.ends_with("switchd"))
    };
    let mut programs = std::env::split_paths(path).map(|dir| dir.join(name));
    // If it is not there either, whoever starts it says so.
    programs
        .find(is_debians)
        .unwrap_or_else(|| Path::new("/usr/bin").join(name))
}

/// The command line, and the socket that shows that it is up. `setpriv` ends the switch if the bench is killed.
fn command(kind: &Kind, mode: Delivery, dir: &Path) -> (Command, PathBuf) {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).stdin(Stdio::null());
    let hub = mode == Delivery::Hub;
    let control = match kind {
        Kind::UmlSwitch => {
            let control = dir.join("ctl");
            command.arg(debians("uml_switch")).arg("-unix").arg(&control);
            command.args(hub.then_some("-hub"));
            control
        }
        Kind::VdeSwitch => {
            let sockets = dir.join("vde");
            command.arg("vde_switch").arg("-s").arg(&sockets);
            command.args(hub.then_some("-x"));
            // It ends at the end of its standard input.
            command.stdin(Stdio::piped());
            sockets.join("ctl")
        }
        Kind::Switchd(program) | Kind::SwitchdBess(program) => {
            command.arg(program).arg("run").arg("--dir").arg(dir);
            dir.join("switchd.sock")
        }
    };
    (command, control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn switchd_is_not_compared_with_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
        for (dir, program) in [(&ours, "switchd"), (&theirs, "uml_switch")] {
            std::fs::create_dir(dir).expect("it is new");
            File::create(dir.join(program)).expect("it is new");
        }
        symlink("switchd", ours.join("uml_switch")).expect("it is new");
        let path = std::env::join_paths([&ours, &theirs]).expect("no colons");
        let found = debians_in("uml_switch", &path);
        assert_eq!(found, theirs.join("uml_switch"));
        let found = debians_in("uml_switch", ours.as_os_str());
        assert_eq!(found, Path::new("/usr/bin/uml_switch"));
    }
}

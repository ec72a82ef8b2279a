//! The user's machines: one directory each, with a record and a lock.
//!
//! ```text
//! machines/.lock            held while directories come and go, and while they are looked at
//! machines/NAME/lock        held by the machine's supervisor for the machine's life
//! machines/NAME/state.json  the record, replaced whole
//! ```
//!
//! The kernel drops a lock with its holder, so a directory whose lock is free is what a killed supervisor left.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::machine::Machine;
use crate::name::MachineName;
use crate::processes::{self, Process};

/// What is known about a machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What it was started as.
    pub machine: Machine,
    /// How far it is.
    pub status: Status,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// Who looks after it.
    pub supervisor: Process,
    /// The kernel's main process, once there is one.
    pub kernel: Option<Process>,
    /// The kernel's command line.
    pub command: Vec<String>,
    /// Device of the host on which a console is shown, for consoles in mode pty.
    pub ptys: [Option<PathBuf>; 2],
}

/// How far a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Its domains are being made.
    Starting,
    /// The kernel runs.
    Booting,
    /// The guest can be used.
    Up,
    /// The start-up commands are through.
    Ready,
    /// It has been asked to halt.
    Halting,
    /// Its supervisor has died.
    Crashed,
}

impl Status {
    /// The word shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Booting => "booting",
            Self::Up => "up",
            Self::Ready => "ready",
            Self::Halting => "halting",
            Self::Crashed => "crashed",
        }
    }
}

/// Why the registry cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error(
        "a machine named {0} is running already\nhint: 'vconnect {0}' shows its console, 'vhalt {0}' ends it"
    )]
    Running(MachineName),
    /// There is no such machine.
    #[error("no machine named {0} is running\nhint: 'vlist' shows those that are")]
    Unknown(MachineName),
    /// Processes of a crashed machine do not go.
    #[error("cannot end what is left of machine {0}: its processes do not go")]
    Stuck(MachineName),
    /// Files cannot be used.
    #[error("cannot {0} {path}", path = .1.display())]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// A record is no record.
    #[error("cannot read {path}", path = .0.display())]
    Broken(PathBuf, #[source] serde_json::Error),
}

type Result<T> = std::result::Result<T, RegistryError>;

/// The machines of one user.
#[derive(Clone, Debug)]
pub struct Registry {
    dirs: Dirs,
}

/// The right to run a machine of a name: nobody else has it until it is dropped.
#[derive(Debug)]
pub struct Claim {
    registry: Registry,
    name: MachineName,
    lock: File,
}

impl Registry {
    /// The registry in these directories. Nothing is made before it is needed.
    pub const fn new(dirs: Dirs) -> Self {
        Self { dirs }
    }

    /// Where it keeps things.
    pub const fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Takes a name for a new machine, clearing away what a crashed one of that name has left.
    ///
    /// # Errors
    /// When a machine of that name is running.
    pub fn claim(&self, name: &MachineName) -> Result<Claim> {
        make_private_dir(&self.dirs.machines)?;
        let _guard = self.guard()?;
        let dir = self.dirs.machine(name);
        if dir.exists() && !self.is_abandoned(name)? {
            return Err(RegistryError::Running(name.clone()));
        }
        self.clear(name)?;
        make_private_dir(&dir)?;
        let lock = open_lock(&self.lock_path(name))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim {
                registry: self.clone(),
                name: name.clone(),
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(RegistryError::Running(name.clone())),
            Err(TryLockError::Error(error)) => Err(RegistryError::Io("lock", self.lock_path(name), error)),
        }
    }

    /// The record of one machine.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn find(&self, name: &MachineName) -> Result<Record> {
        if !self.dirs.machine(name).is_dir() {
            return Err(RegistryError::Unknown(name.clone()));
        }
        let _guard = self.guard()?;
        self.read(name)?
            .ok_or_else(|| RegistryError::Unknown(name.clone()))
    }

    /// The machine that is meant by a name or, as in Netkit, by the number of its kernel's process.
    ///
    /// # Errors
    /// When records cannot be read.
    pub fn resolve(&self, id: &MachineName) -> Result<MachineName> {
        let Ok(pid) = id.as_str().parse::<i32>() else {
            return Ok(id.clone());
        };
        if self.dirs.machine(id).is_dir() {
            return Ok(id.clone());
        }
        let running = |record: &Record| record.kernel.is_some_and(|kernel| kernel.pid == pid);
        let found = self.list()?.into_iter().find(running);
        Ok(found.map_or_else(|| id.clone(), |record| record.machine.name))
    }

    /// The records of all machines, by name. One that is just being made has none yet and is left out.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for name in self.names()? {
            let _guard = self.guard()?;
            records.extend(self.read(&name)?);
        }
        records.sort_by(|a, b| a.machine.name.cmp(&b.machine.name));
        Ok(records)
    }

    /// Whether a machine has crashed and something of it is left.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_crashed(&self, name: &MachineName) -> Result<bool> {
        if !self.dirs.machine(name).is_dir() {
            return Ok(false);
        }
        let _guard = self.guard()?;
        self.is_abandoned(name)
    }

    /// Clears away what a crashed machine has left; false if there is nothing or the machine is running.
    ///
    /// # Errors
    /// When something cannot be cleared away.
    pub fn clear_crashed(&self, name: &MachineName) -> Result<bool> {
        if !self.dirs.machine(name).is_dir() {
            return Ok(false);
        }
        let _guard = self.guard()?;
        let crashed = self.is_abandoned(name)?;
        if crashed {
            self.clear(name)?;
        }
        Ok(crashed)
    }

    /// Ends the processes of a machine whose supervisor was killed, and leaves its record for the user to see.
    ///
    /// # Errors
    /// When something cannot be ended.
    pub fn end_abandoned(&self, name: &MachineName) -> Result<()> {
        // The lock may fall a moment after what woke us; if it does not, another machine has taken the name.
        if !self.wait_for_end(name, LOCK_PATIENCE, || {})? || !self.dirs.machine(name).is_dir() {
            return Ok(());
        }
        let _guard = self.guard()?;
        if self.is_abandoned(name)? && !processes::end_machine(&self.dirs, name) {
            return Err(RegistryError::Stuck(name.clone()));
        }
        Ok(())
    }

    /// Waits until nobody looks after a machine any more; false if that takes longer than `patience`.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub fn wait_for_end(
        &self,
        name: &MachineName,
        patience: Duration,
        mut tick: impl FnMut(),
    ) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if !self.dirs.machine(name).is_dir() {
                return Ok(true);
            }
            {
                let _guard = self.guard()?;
                if self.is_abandoned(name)? {
                    return Ok(true);
                }
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tick();
            std::thread::sleep(POLL);
        }
    }

    /// Names of all machines there is a directory of, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<MachineName>> {
        let entries = match fs::read_dir(&self.dirs.machines) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RegistryError::Io("read", self.dirs.machines.clone(), error)),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Reads a record; `None` while there is none. The guard must be held.
    fn read(&self, name: &MachineName) -> Result<Option<Record>> {
        let path = self.state_path(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RegistryError::Io("read", path, error)),
        };
        let mut record: Record =
            serde_json::from_slice(&text).map_err(|error| RegistryError::Broken(path, error))?;
        if self.is_abandoned(name)? {
            record.status = Status::Crashed;
        } else if self.dirs.machine(name).join(HALTING).exists() {
            record.status = Status::Halting;
        }
        Ok(Some(record))
    }

    /// Whether nobody holds the machine's lock. The guard must be held.
    fn is_abandoned(&self, name: &MachineName) -> Result<bool> {
        let path = self.lock_path(name);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(RegistryError::Io("open", path, error)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(RegistryError::Io("lock", path, error)),
        }
    }

    /// Ends what runs of a machine and removes its files. The guard must be held.
    fn clear(&self, name: &MachineName) -> Result<()> {
        if !processes::end_machine(&self.dirs, name) {
            return Err(RegistryError::Stuck(name.clone()));
        }
        remove_tree(&self.dirs.umid(name))?;
        remove_tree(&self.dirs.machine(name))
    }

    fn guard(&self) -> Result<File> {
        let path = self.dirs.machines.join(".lock");
        let lock = open_lock(&path)?;
        lock.lock()
            .map_err(|error| RegistryError::Io("lock", path, error))?;
        Ok(lock)
    }

    fn lock_path(&self, name: &MachineName) -> PathBuf {
        self.dirs.machine(name).join("lock")
    }

    fn state_path(&self, name: &MachineName) -> PathBuf {
        self.dirs.machine(name).join("state.json")
    }

    /// Notes that a machine has been asked to halt, so that a guest that starts again instead is ended.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_halting(&self, name: &MachineName) -> Result<()> {
        let path = self.dirs.machine(name).join(HALTING);
        fs::write(&path, "").map_err(|error| RegistryError::Io("write", path, error))
    }
}

impl Claim {
    /// Replaces the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.registry.state_path(&self.name);
        let new = path.with_extension("new");
        let text = serde_json::to_vec(record).expect("a record has only text keys");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| RegistryError::Io("write", path, error))
    }

    /// Whether the machine has been asked to halt.
    pub fn is_halting(&self) -> bool {
        self.registry.dirs.machine(&self.name).join(HALTING).exists()
    }

    /// Ends what runs of the machine, removes its files and gives the name back.
    ///
    /// # Errors
    /// When something cannot be cleared away.
    pub fn release(self) -> Result<()> {
        let _guard = self.registry.guard()?;
        let result = self.registry.clear(&self.name);
        drop(self.lock);
        result
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Makes a directory that only its owner can enter, unless it is there already.
///
/// # Errors
/// When it cannot be made.
pub fn make_private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| RegistryError::Io("make directory", path.to_owned(), error))
}

const HALTING: &str = "halting";
/// Time the system may take to close a killed process's files.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| RegistryError::Io("open", path.to_owned(), error))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RegistryError::Io("remove", path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Root;

    fn registry() -> (tempfile::TempDir, Registry) {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::from_environment(|name| (name == "HOME").then(|| home.path().into())).unwrap();
        (home, Registry::new(dirs))
    }

    fn record(name: &str) -> Record {
        let root = Root::Host { init: "/init".into() };
        let machine = Machine {
            interfaces: vec!["0=A".parse().unwrap()],
            ..Machine::new(name.parse().unwrap(), "/usr/bin/linux.uml".into(), root)
        };
        Record {
            machine,
            status: Status::Up,
            started: now(),
            supervisor: Process::own(),
            kernel: None,
            command: vec!["linux.uml".into()],
            ptys: [None, None],
        }
    }

    #[test]
    fn a_name_is_held_once() {
        let (_home, registry) = registry();
        let name = "pc1".parse().unwrap();
        assert!(matches!(registry.find(&name), Err(RegistryError::Unknown(_))));
        assert_eq!(registry.list().unwrap(), []);
        let claim = registry.claim(&name).unwrap();
        assert!(matches!(registry.claim(&name), Err(RegistryError::Running(_))));
        assert_eq!(registry.list().unwrap(), []);
        claim.write(&record("pc1")).unwrap();
        assert_eq!(registry.find(&name).unwrap(), record("pc1"));
        registry
            .claim(&"pc0".parse().unwrap())
            .unwrap()
            .write(&record("pc0"))
            .unwrap();
        claim.release().unwrap();
        assert!(matches!(registry.find(&name), Err(RegistryError::Unknown(_))));
        registry.claim(&name).unwrap();
    }

    #[test]
    fn a_crash_is_seen_and_cleared_away() {
        let (_home, registry) = registry();
        let name = "pc1".parse().unwrap();
        let claim = registry.claim(&name).unwrap();
        claim.write(&record("pc1")).unwrap();
        assert!(!registry.clear_crashed(&name).unwrap());
        fs::create_dir_all(registry.dirs().umid(&name)).unwrap();
        drop(claim); // what becomes of a lock when its holder is killed
        // Tests beside this one start programs, which have our files open for a moment.
        assert!(
            registry
                .wait_for_end(&name, Duration::from_secs(10), || {})
                .unwrap()
        );
        assert_eq!(registry.find(&name).unwrap().status, Status::Crashed);
        assert_eq!(registry.list().unwrap()[0].status, Status::Crashed);
        assert!(registry.wait_for_end(&name, Duration::ZERO, || {}).unwrap());
        assert!(registry.clear_crashed(&name).unwrap());
        assert!(!registry.clear_crashed(&name).unwrap());
        assert!(!registry.dirs().umid(&name).exists());
        assert_eq!(registry.list().unwrap(), []);
    }

    #[test]
    fn a_halt_is_noted() {
        let (_home, registry) = registry();
        let name = "pc1".parse().unwrap();
        let claim = registry.claim(&name).unwrap();
        claim.write(&record("pc1")).unwrap();
        assert!(!claim.is_halting());
        registry.note_halting(&name).unwrap();
        assert!(claim.is_halting());
        assert_eq!(registry.find(&name).unwrap().status, Status::Halting);
        assert!(!registry.wait_for_end(&name, Duration::ZERO, || {}).unwrap());
    }

    #[test]
    fn one_of_many_claims_wins() {
        let (_home, registry) = registry();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let registry = registry.clone();
                std::thread::spawn(move || registry.claim(&"pc1".parse().unwrap()))
            })
            .collect();
        let claims: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
    }
}

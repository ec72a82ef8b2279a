//! What tapctl has changed on this host, written down before it is changed.
//!
//! One JSON document in a directory only root can enter, replaced as a whole: written to a new file, synced, renamed,
//! directory synced. So it is always either the old or the new one, and whoever finds it can undo all that may have
//! been done. An entry says how to undo a step, not that the step was made: undoing what never happened does nothing.
//!
//! Devices are remembered with their interface index, which the kernel does not use twice, and the document with the
//! boot and the network namespace it speaks of: nothing that merely has the same name is ever touched.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::firewall::{Backend, Fresh};
use crate::name::Device;
use crate::sysctl::Key;

/// Where the journal is kept. There is no option and no variable to change it: whoever could choose the journal could
/// choose what root undoes.
pub(crate) const DIRECTORY: &str = "/var/lib/hubbub/tapctl";

/// Everything tapctl has changed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Layout of this document.
    pub(crate) version: u32,
    /// The boot it speaks of (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot: String,
    /// The network namespace it speaks of (inode of `/proc/self/ns/net`).
    pub(crate) netns: u64,
    /// The taps.
    pub(crate) taps: Vec<Tap>,
    /// How to undo each step made or about to be made, oldest first.
    pub(crate) entries: Vec<Entry>,
    /// True if the firewall may still have rules for a tap that is gone.
    pub(crate) rules_outdated: bool,
}

/// Which command made a tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// `tapctl up`.
    Up,
    /// `tapctl attach`.
    Attach,
    /// `tunctl`.
    Tunctl,
}

/// A tap and what it is for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tap {
    pub(crate) device: Device,
    pub(crate) user: String,
    pub(crate) uid: u32,
    /// The collision domain, for the taps of `up`.
    pub(crate) domain: Option<String>,
    pub(crate) origin: Origin,
    /// The host's address and the subnet behind the tap.
    pub(crate) address: Option<Ipv4Net>,
    pub(crate) address6: Option<Ipv6Net>,
    /// Addresses behind the tap besides the subnet.
    pub(crate) routes: Vec<IpAddr>,
    pub(crate) bridge: Option<Device>,
    pub(crate) firewall: Backend,
    pub(crate) nat: bool,
    pub(crate) forward4: bool,
    pub(crate) forward6: bool,
    pub(crate) allow_host: bool,
    pub(crate) allow_taps: bool,
    /// False from the first step to the last: a tap that was left like that is taken down before it is made anew.
    pub(crate) complete: bool,
}

/// What a step was made for; it is undone when that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// One tap.
    Tap(Device),
    /// A bridge, shared by the taps in it.
    Bridge(Device),
    /// IPv4 forwarding, shared by all taps that need it.
    Forward4,
    /// IPv6 forwarding.
    Forward6,
    /// The firewall rules, shared by all taps under that firewall.
    Firewall(Backend),
}

/// One step, by what undoes it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) scope: Scope,
    pub(crate) undo: Undo,
}

/// A device that cannot be mistaken for another of the same name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct On {
    pub(crate) device: Device,
    pub(crate) index: u32,
}

/// How a step is undone. Each does nothing if there is nothing (any longer) to undo.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Undo {
    RemoveTap(On),
    /// The hardware address was chosen by tapctl: it tells our bridge from another of the same name.
    RemoveBridge {
        device: Device,
        mac: String,
    },
    /// What was set on a device of ours goes with the device.
    WithDevice {
        device: Device,
        what: String,
    },
    RemoveAddress {
        on: On,
        address: IpNet,
    },
    LinkDown(On),
    LeaveBridge {
        on: On,
        bridge: Device,
    },
    RemoveRoute {
        on: On,
        to: IpAddr,
    },
    RemoveProxy {
        on: On,
        address: IpAddr,
    },
    /// Puts `old` back if the value still is `ours`.
    Restore {
        key: Key,
        old: String,
        ours: String,
    },
    /// Switches forwarding off again and puts back what the switch changed besides.
    Unforward {
        key: Key,
        old: String,
        around: BTreeMap<Key, String>,
    },
    /// Takes our rules away, and the tables and chains that came into being for them.
    RemoveRules {
        fresh: Vec<Fresh>,
    },
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("cannot open the journal in {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    #[error("cannot write the journal in {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("{} does not belong to root alone", .0.display())]
    Shared(PathBuf),
    #[error("cannot read the journal {}", .0.display())]
    Parse(PathBuf, #[source] serde_json::Error),
    #[error("the journal {} has layout {layout}, which this tapctl does not know", .0.display(), layout = .1)]
    Version(PathBuf, u32),
    #[error("the journal {} speaks of another network namespace", .0.display())]
    Namespace(PathBuf),
    #[error("another tapctl has been at work for {} seconds", PATIENCE.as_secs())]
    Busy,
}

/// The journal, held by one process at a time.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    record: Record,
    /// Held until the end; absent for a mere reader.
    _lock: Option<Flock<File>>,
}

impl Journal {
    /// Opens the journal for changing, waiting for another tapctl to finish.
    pub(crate) fn open(directory: &Path) -> Result<Self, JournalError> {
        let failed = |error| JournalError::Open(directory.to_owned(), error);
        if let Some(parent) = directory.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed)?;
        }
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => check_directory(directory)?,
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(failed)?;
        let lock = lock(file, directory)?;
        let record = load(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            record,
            _lock: Some(lock),
        })
    }

    /// Reads the journal; what is read is whole even while another tapctl is at work.
    pub(crate) fn read(directory: &Path) -> Result<Record, JournalError> {
        match check_directory(directory) {
            Err(JournalError::Open(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(Record::now()),
            Err(error) => Err(error),
            Ok(()) => load(directory),
        }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the journal; the change is on the disk when this returns.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), JournalError> {
        let mut record = self.record.clone();
        change(&mut record);
        if record != self.record {
            store(&self.directory, &record)
                .map_err(|error| JournalError::Write(self.directory.clone(), error))?;
            self.record = record;
        }
        Ok(())
    }
}

impl Record {
    /// An empty journal of this boot and network namespace.
    fn now() -> Self {
        Self {
            version: VERSION,
            boot: boot_id(),
            netns: netns(),
            ..Self::default()
        }
    }

    /// The tap of that name.
    pub(crate) fn tap(&self, device: &Device) -> Option<&Tap> {
        self.taps.iter().find(|tap| tap.device == *device)
    }

    /// A user's tap of that domain.
    pub(crate) fn tap_of(&self, uid: u32, domain: &str) -> Option<&Tap> {
        self.taps
            .iter()
            .find(|tap| tap.uid == uid && tap.domain.as_deref() == Some(domain))
    }

    /// True if some tap still needs what was made for `scope`.
    pub(crate) fn needs(&self, scope: &Scope) -> bool {
        self.taps.iter().any(|tap| match scope {
            Scope::Tap(device) => tap.device == *device,
            Scope::Bridge(bridge) => tap.bridge.as_ref() == Some(bridge),
            Scope::Forward4 => tap.forward4,
            Scope::Forward6 => tap.forward6,
            Scope::Firewall(backend) => tap.firewall == *backend,
        })
    }
}

const VERSION: u32 = 1;
/// How long one tapctl waits for another: firewall tools wait for each other too.
const PATIENCE: Duration = Duration::from_secs(30);

fn check_directory(directory: &Path) -> Result<(), JournalError> {
    let meta =
        fs::symlink_metadata(directory).map_err(|error| JournalError::Open(directory.to_owned(), error))?;
    if meta.is_dir() && meta.uid() == 0 && meta.permissions().mode().trailing_zeros() >= 6 {
        Ok(())
    } else {
        Err(JournalError::Shared(directory.to_owned()))
    }
}

fn lock(mut file: File, directory: &Path) -> Result<Flock<File>, JournalError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(JournalError::Busy),
            Err((_, error)) => return Err(JournalError::Open(directory.to_owned(), error.into())),
        }
    }
}

fn load(directory: &Path) -> Result<Record, JournalError> {
    let path = directory.join("journal.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::now()),
        Err(error) => return Err(JournalError::Open(path, error)),
    };
    let record: Record =
        serde_json::from_slice(&text).map_err(|error| JournalError::Parse(path.clone(), error))?;
    if record.version != VERSION {
        return Err(JournalError::Version(path, record.version));
    }
    let now = Record::now();
    if record.boot != now.boot {
        return Ok(after_reboot(&record, now));
    }
    if record.netns != now.netns && !(record.taps.is_empty() && record.entries.is_empty()) {
        return Err(JournalError::Namespace(path));
    }
    Ok(Record {
        netns: now.netns,
        ..record
    })
}

/// A reboot has undone everything, except that a firewall may have been saved with our rules in it and loaded again:
/// our own container is looked for, and nothing else.
fn after_reboot(old: &Record, now: Record) -> Record {
    let rules = |entry: &Entry| match entry.scope {
        Scope::Firewall(_) => Some(Entry {
            scope: entry.scope.clone(),
            undo: Undo::RemoveRules { fresh: Vec::new() },
        }),
        _ => None,
    };
    Record {
        entries: old.entries.iter().filter_map(rules).collect(),
        ..now
    }
}

fn store(directory: &Path, record: &Record) -> io::Result<()> {
    let path = directory.join("journal.json");
    let new = directory.join("journal.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    serde_json::to_writer_pretty(&mut file, record)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(directory)?.sync_all()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn netns() -> u64 {
    fs::metadata("/proc/self/ns/net")
        .map(|meta| meta.ino())
        .unwrap_or_default()
}

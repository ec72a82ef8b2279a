//! Ends the machines of a lab, all at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Lab, LabMachine};
use crate::halt::{Force, ask, crash, crash_by};
use crate::machine::Root;
use crate::name::MachineName;
use crate::registry::{Record, Registry, Status};

/// How machines are ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// They shut down, and have this long for it.
    Halt(Duration),
    /// As if their power were cut.
    Crash(Force),
}

/// How a machine has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As asked.
    Asked,
    /// It did not halt in time, or did not answer: it was ended at once.
    Forced,
    /// It had crashed before.
    Crashed,
}

/// The records of those machines of the lab that run or have crashed. One of the same name that was started
/// elsewhere is none of the lab's.
///
/// # Errors
/// When the registry cannot be read.
pub fn running(lab: &Lab, machines: &[&LabMachine], registry: &Registry) -> Result<Vec<Record>> {
    let mut records = registry.list()?;
    records.retain(|record| {
        record.machine.hostlab.as_ref() == Some(&lab.dir)
            && machines.iter().any(|machine| machine.name == record.machine.name)
    });
    Ok(records)
}

/// Ends machines, each in a thread of its own. With `remove_disks`, their changes go with them.
pub fn end(
    lab: &Lab,
    records: &[Record],
    manner: Manner,
    remove_disks: bool,
    registry: &Registry,
    tell: impl Fn(&MachineName, Result<Way>) + Sync,
) {
    std::thread::scope(|scope| {
        for record in records {
            let tell = &tell;
            scope.spawn(move || {
                let name = &record.machine.name;
                let way = end_one(registry, record, manner)
                    .and_then(|way| clear(lab, record, remove_disks).map(|()| way));
                tell(name, way);
            });
        }
    });
}

fn end_one(registry: &Registry, record: &Record, manner: Manner) -> Result<Way> {
    let name = &record.machine.name;
    if record.status == Status::Crashed {
        crash(registry, name)?;
        return Ok(Way::Crashed);
    }
    let patience = match manner {
        Manner::Halt(patience) => patience,
        Manner::Crash(force) => {
            crash_by(registry, name, force)?;
            return Ok(Way::Asked);
        }
    };
    // One that ended at this moment cannot be asked, and has nothing to wait for.
    let asked = ask(registry, name).is_ok() || registry.find(name).is_err();
    if asked && registry.wait_for_end(name, patience, || {})? {
        return Ok(if registry.clear_crashed(name)? {
            Way::Crashed
        } else {
            Way::Asked
        });
    }
    if registry.find(name).is_ok() {
        crash(registry, name)?;
    }
    Ok(Way::Forced)
}

/// Removes what tells that the machine runs, and if asked for the disk that lies in the lab.
fn clear(lab: &Lab, record: &Record, remove_disk: bool) -> Result<()> {
    remove(&lab.file(&record.machine.name, "ready"))?;
    if remove_disk
        && let Root::Disk {
            changes: Some(disk), ..
        } = &record.machine.root
        && disk.starts_with(&lab.dir)
    {
        remove(disk)?;
    }
    Ok(())
}

/// What Netkit's labs leave beside their own files: for lclean.
pub fn leftovers(lab: &Lab, machines: &[&LabMachine]) -> Vec<PathBuf> {
    let endings = ["disk", "log", "ready", "testdone"];
    let mut files: Vec<PathBuf> = machines
        .iter()
        .flat_map(|machine| endings.map(|ending| lab.file(&machine.name, ending)))
        .collect();
    files.push(lab.dir.join("readyfor.test"));
    files.retain(|file| file.is_file());
    files
}

/// Removes a file; true if it was there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(file: &Path) -> Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", file.display())),
    }
}

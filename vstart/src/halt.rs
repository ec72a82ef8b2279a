//! Ends machines, with and without their consent.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::machine::Root;
use crate::mconsole;
use crate::name::MachineName;
use crate::processes;
use crate::registry::{Record, Registry, RegistryError, Status};

/// What was found to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// A running machine.
    Running,
    /// What was left of one that had crashed.
    Leftovers,
}

/// Asks a machine to halt, as Ctrl-Alt-Del on its keyboard would. Does not wait for it.
///
/// # Errors
/// When there is no such machine, or its kernel does not answer.
pub fn ask(registry: &Registry, name: &MachineName) -> Result<()> {
    registry.note_halting(name)?;
    mconsole::command(&registry.dirs().mconsole_socket(name), "cad", ANSWER_PATIENCE)
        .with_context(|| format!("cannot ask machine {name} to halt"))?;
    Ok(())
}

/// How hard a machine is ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Force {
    /// Its kernel is told to stop; if it does not, as the following.
    Console,
    /// Its kernel gets SIGTERM, which lets it close its files; if it does not end, as the following.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// Ends a machine at once, without the guest's consent, and waits until nothing of it is left.
///
/// # Errors
/// When there is no such machine, or something of it does not go.
pub fn crash_by(registry: &Registry, name: &MachineName, force: Force) -> Result<Ended> {
    let record = match registry.find(name) {
        Ok(record) if record.status != Status::Crashed && force != Force::Kill => record,
        _ => return crash(registry, name),
    };
    let Some(kernel) = record.kernel else {
        return crash(registry, name);
    };
    registry.note_halting(name)?;
    let told = force == Force::Console
        && mconsole::command(&registry.dirs().mconsole_socket(name), "halt", GRACE).is_ok();
    if !(told && registry.wait_for_end(name, GRACE, || {})?) {
        kernel.signal(Signal::SIGTERM);
        if !registry.wait_for_end(name, GRACE, || {})? {
            return crash(registry, name);
        }
    }
    // Nothing to do, unless its supervisor was killed at this moment.
    registry.clear_crashed(name)?;
    Ok(Ended::Running)
}

/// Kills a machine, and does not wait for it to be gone: its supervisor clears up behind us.
///
/// # Errors
/// When there is no such machine.
pub fn kill(registry: &Registry, name: &MachineName) -> Result<Ended> {
    match registry.find(name)? {
        record if record.status != Status::Crashed && record.kernel.is_some() => {
            registry.note_halting(name)?;
            if let Some(kernel) = record.kernel {
                kernel.signal(Signal::SIGKILL);
            }
            Ok(Ended::Running)
        }
        _ => crash(registry, name),
    }
}

/// Removes the file with a machine's changes to its model file system; true if there was one.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_changes(record: &Record) -> Result<bool> {
    let Root::Disk {
        changes: Some(file), ..
    } = &record.machine.root
    else {
        return Ok(false);
    };
    match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", file.display())),
    }
}

/// Ends a machine at once, all its processes, and waits until nothing of it is left.
///
/// # Errors
/// When there is no such machine, or something of it does not go.
pub fn crash(registry: &Registry, name: &MachineName) -> Result<Ended> {
    let record = match registry.find(name) {
        // A supervisor that was killed before it could write has still left a directory.
        Err(RegistryError::Unknown(_)) if registry.clear_crashed(name)? => return Ok(Ended::Leftovers),
        other => other?,
    };
    if record.status == Status::Crashed {
        registry.clear_crashed(name)?;
        return Ok(Ended::Leftovers);
    }
    registry.note_halting(name)?;
    match record.kernel {
        Some(kernel) => kernel.signal(Signal::SIGKILL),
        None => record.supervisor.signal(Signal::SIGTERM),
    }
    if !registry.wait_for_end(name, SUPERVISOR_PATIENCE, || {})? {
        // The supervisor does not do its work: do it for it.
        record.supervisor.signal(Signal::SIGKILL);
        processes::end_machine(registry.dirs(), name);
        if !registry.wait_for_end(name, SUPERVISOR_PATIENCE, || {})? {
            return Err(RegistryError::Stuck(name.clone()).into());
        }
    }
    // Nothing to do, unless it was the supervisor that went first.
    registry.clear_crashed(name)?;
    Ok(Ended::Running)
}

/// Time a kernel has to end when it is told to, before it is ended.
const GRACE: Duration = Duration::from_secs(2);
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(5);

//! Ends machines, with and without their consent.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::mconsole;
use crate::name::MachineName;
use crate::processes;
use crate::registry::{Registry, RegistryError, Status};

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

const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(5);

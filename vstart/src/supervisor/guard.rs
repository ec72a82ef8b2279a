//! A second process that does one thing: when the supervisor is gone, it ends what is left of the machine.
//!
//! A kernel whose supervisor was killed is told by the system and obeys, but it may leave helper processes behind,
//! and nobody would be there to end them.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::dirs::Dirs;
use crate::name::MachineName;
use crate::registry::Registry;

/// The first argument that makes the binary a guard; name and directories follow.
pub const WORD: &str = "@guard";

/// A guard, from the supervisor's side.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Starts the guard of a machine. It wakes up when this process ends, however it ends.
    pub(super) fn start(dirs: &Dirs, name: &MachineName) -> Result<Self> {
        let dirs = serde_json::to_string(dirs).context("cannot write down the directories")?;
        let child = Command::new("/proc/self/exe")
            .args([WORD, name.as_str(), &dirs])
            // Out of reach of what may end the supervisor's group.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the machine's guard")?;
        Ok(Self(child))
    }

    /// Lets the guard go when there is nothing left to guard.
    pub(super) fn dismiss(mut self) {
        drop(self.0.stdin.take());
        // It has nothing to do but to end; if it cannot be waited for, that is nobody's loss.
        let _ = self.0.wait();
    }
}

/// Runs a guard.
pub fn main(name: Option<&str>, dirs: Option<&str>) -> ExitCode {
    let name = name.and_then(|name| name.parse::<MachineName>().ok());
    let dirs = dirs.and_then(|dirs| serde_json::from_str::<Dirs>(dirs).ok());
    let (Some(name), Some(dirs)) = (name, dirs) else {
        return ExitCode::from(2);
    };
    // Nothing is ever sent: this returns when the supervisor has closed its end.
    let _ = io::stdin().lock().read(&mut [0]);
    match Registry::new(dirs).end_abandoned(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

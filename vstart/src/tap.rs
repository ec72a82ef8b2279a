//! The tap of a machine's `--ethN=tap,...`: made by tapctl, with sudo where that is needed.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::dirs::Dirs;
use crate::machine::Attachment;
use crate::registry::{Record, Registry, RegistryError, Status};
use crate::switch::program;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The program is nowhere.
    #[error("cannot find the program tapctl beside vstart or in PATH\nhint: install Hubbub as a whole")]
    NoProgram,
    /// Neither root nor a way to become root.
    #[error(
        "cannot make a tap: that needs root, and there is no sudo\nhint: docs/tapctl.md tells other ways"
    )]
    NoSudo,
    /// It could not be started.
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] std::io::Error),
    /// It has said why.
    #[error("tapctl did not do it")]
    Refused,
    /// It cannot be noted that the tap is ours.
    #[error("cannot write {}", .0.display())]
    Mark(PathBuf, #[source] std::io::Error),
    /// The user's machines cannot be looked at.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It said what is not in its documentation.
    #[error("tapctl answers what cannot be understood")]
    Answer(#[from] serde_json::Error),
}

/// A tap that is there.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Tap {
    /// Its device.
    pub device: String,
    /// The host's address on it, with the length of the subnet.
    pub address: Option<String>,
    /// Whether it was made now, for us.
    #[serde(default)]
    pub made: bool,
}

impl Tap {
    /// The host's address, which is the guests' default route.
    pub fn host(&self) -> Option<IpAddr> {
        self.address.as_ref()?.split('/').next()?.parse().ok()
    }
}

/// The command that makes the tap: tapctl, by sudo unless root asks.
pub fn command(host: IpAddr) -> Vec<String> {
    tapctl(&["up", "--json", "--addr", &host.to_string()])
}

fn tapctl(arguments: &[&str]) -> Vec<String> {
    let path = |name: &str| program(name).map_or_else(|| name.to_owned(), |path| path.display().to_string());
    let mut words = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        words.extend([path("sudo"), "--".to_owned()]);
    }
    words.push(path("tapctl"));
    words.extend(arguments.iter().map(|&word| word.to_owned()));
    words
}

/// Tells the user what root is needed for, if it is.
fn announce(command: &str, purpose: &str) -> Result<(), TapError> {
    if program("tapctl").is_none() {
        return Err(TapError::NoProgram);
    }
    if !nix::unistd::geteuid().is_root() {
        program("sudo").ok_or(TapError::NoSudo)?;
        eprintln!(
            "{command}: using sudo to {purpose}: a device, forwarding and firewall rules (see: tapctl ls)"
        );
    }
    Ok(())
}

/// Takes a tap away, the user's own unless `whose` says more to tapctl, and all that was changed on the host for it. A
/// dry run only tells.
///
/// # Errors
/// When tapctl cannot be run or refuses.
pub fn remove(command: &str, whose: &[&str], dry: bool) -> Result<(), TapError> {
    announce(command, "remove the tap")?;
    let mut words = tapctl(&["down"]);
    words.extend(whose.iter().map(|&word| word.to_owned()));
    words.extend(dry.then(|| "--dry-run".to_owned()));
    let status = Command::new(&words[0])
        .args(&words[1..])
        .status()
        .map_err(|error| TapError::Run(PathBuf::from(&words[0]), error))?;
    if status.success() {
        Ok(())
    } else {
        Err(TapError::Refused)
    }
}

/// Takes the user's tap away if vstart has made it and no machine is attached to it any more; true if it did.
///
/// # Errors
/// When tapctl cannot be run or refuses.
pub fn release(command: &str, registry: &Registry) -> Result<bool, TapError> {
    let mark = mark(registry.dirs());
    let on_tap = |record: &Record| {
        let mut interfaces = record.machine.interfaces.iter();
        record.status != Status::Crashed
            && interfaces.any(|interface| matches!(interface.attachment, Attachment::Tap { .. }))
    };
    if !mark.exists() || registry.list()?.iter().any(on_tap) {
        return Ok(false);
    }
    remove(command, &[], false)?;
    forget(registry.dirs());
    Ok(true)
}

/// Forgets that vstart has made a tap: it is gone.
pub fn forget(dirs: &Dirs) {
    // If it stays, the next one to look finds no tap to take away: that is no harm.
    let _ = fs::remove_file(mark(dirs));
}

/// The file that says that the tap is vstart's, and not one the user has made.
fn mark(dirs: &Dirs) -> PathBuf {
    dirs.machines.join(".tap")
}

/// Makes sure the user's tap is there. If it is there already it stays as it is, and tapctl says so.
///
/// # Errors
/// When tapctl cannot be run or refuses.
pub fn make(host: IpAddr, dirs: &Dirs) -> Result<Tap, TapError> {
    announce("vstart", "make the tap")?;
    let words = command(host);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .stderr(Stdio::inherit())
        .stdin(Stdio::inherit())
        .output()
        .map_err(|error| TapError::Run(PathBuf::from(&words[0]), error))?;
    if !output.status.success() {
        return Err(TapError::Refused);
    }
    let tap: Tap = serde_json::from_slice(&output.stdout)?;
    if tap.made {
        crate::registry::make_private_dir(&dirs.machines)?;
        let mark = mark(dirs);
        fs::write(&mark, &tap.device).map_err(|error| TapError::Mark(mark, error))?;
    }
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tapctl_prints_is_read() {
        let text = r#"{"device":"nk_tap_r1","user":"r1","address":"10.0.0.1/24","made":true,"notes":[]}"#;
        let tap: Tap = serde_json::from_str(text).unwrap();
        assert_eq!(tap.device, "nk_tap_r1");
        assert_eq!(tap.host(), "10.0.0.1".parse().ok());
        assert!(tap.made);
    }
}

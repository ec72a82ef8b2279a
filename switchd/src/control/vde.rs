//! The directory by which VDE clients know a domain: `ctl`, and a data socket `pNNN` for each of their ports.
//!
//! Clients bind their own sockets in it (`.PID-N`, removed once they are connected), so whoever may connect may write to
//! the directory too. The permissions of the files decide who may attach, as with vde_switch.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use fabric::PortId;
use nix::unistd::Group;
use proto::ctl::VdeAccess;

use super::domain::clear_directory;

/// The control socket in a VDE directory.
const CONTROL: &str = "ctl";

/// The longest name beside the control socket.
pub(super) const LONGEST_NAME: &str = "p65535";

/// Makes the directory anew and listens in it; on failure, nothing is left of it.
pub(super) fn listen(directory: &Path, access: &VdeAccess) -> io::Result<UnixListener> {
    let group = access.group.as_deref().map(group).transpose()?;
    clear_directory(directory)?;
    let result = listen_in(directory, access.mode.bits(), group);
    if result.is_err() {
        clear_directory(directory)?;
    }
    result
}

fn listen_in(directory: &Path, mode: u32, group: Option<u32>) -> io::Result<UnixListener> {
    fs::create_dir(directory)?;
    // Not open to others yet, but to be entered.
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    let control = directory.join(CONTROL);
    let listener = netio::unix::listen(&control)?;
    if group.is_some() {
        chown(&control, None, group)?;
        chown(directory, None, group)?;
    }
    fs::set_permissions(&control, Permissions::from_mode(mode & 0o666))?;
    fs::set_permissions(directory, Permissions::from_mode(directory_mode(mode)))?;
    Ok(listener)
}

/// Where the data socket of a port is.
pub(super) fn data_path(directory: &Path, port: PortId) -> PathBuf {
    directory.join(format!("p{:03}", port.0))
}

/// Lets those send to a port's data socket who could connect to the control socket.
pub(super) fn open_to_clients(data: &Path, access: &VdeAccess) -> io::Result<()> {
    if let Some(name) = &access.group {
        chown(data, None, Some(group(name)?))?;
    }
    fs::set_permissions(data, Permissions::from_mode(access.mode.bits() & 0o666))
}

/// True if the permissions, and not the user, decide who may attach.
pub(super) fn is_shared(access: &VdeAccess) -> bool {
    access.mode.bits() & 0o066 != 0
}

/// Whoever may use the control socket may enter the directory and make sockets in it.
fn directory_mode(control: u32) -> u32 {
    let used = control & 0o666;
    let entered = (used & 0o222) >> 1;
    used | entered
}

fn group(name: &str) -> io::Result<u32> {
    match Group::from_name(name)? {
        Some(group) => Ok(group.gid.as_raw()),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no group '{name}'"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_connect_may_enter() {
        for (control, directory) in [(0o600, 0o700), (0o660, 0o770), (0o666, 0o777), (0o640, 0o740)] {
            assert_eq!(directory_mode(control), directory, "{control:o}");
        }
    }
}

//! Taps placed into network namespaces.
//!
//! An open tap keeps the namespace alive that it was *made* in. So it is made in a namespace of its own, which nobody
//! else is in, and moved from there: then it goes with the namespace it was moved to, and whoever reads it is told.
//!
//! What is done here happens to the calling thread, which must be the process's only one.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netio::tap::{IfName, Tap};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};

/// Why there is no tap in the namespace.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file is no network namespace, or cannot be seen.
    #[error("cannot use network namespace {path}: {why}", path = .0.display(), why = .1)]
    Namespace(PathBuf, io::Error),
    /// The user has no rights in the namespace.
    #[error("cannot enter network namespace {path}: {why}\nhint: its owner or root may", path = .0.display(), why = .1)]
    Enter(PathBuf, io::Error),
    /// No namespace of our own.
    #[error(
        "cannot make a network namespace: {0}\nhint: the system may forbid it to its users (user.max_user_namespaces)"
    )]
    Unshare(io::Error),
    /// The kernel makes no tap.
    #[error("cannot make tap {name}: {error}{hint}", name = .0, error = .1, hint = hint(.1))]
    Tap(IfName, io::Error),
    /// It cannot be moved, or configured.
    #[error("'ip {0}' has failed: {1}")]
    Ip(String, String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "\nhint: /dev/net/tun has mode 0666 on most systems; root can give it that"
        }
        _ => "",
    }
}

/// Makes a tap in the namespace of a file such as `/run/netns/NAME` or `/proc/PID/ns/net`, and brings it up. Whoever
/// owns the namespace can do that.
///
/// # Errors
/// When the caller may not, or the namespace has a device of that name.
pub fn tap_in(path: &Path, name: &IfName) -> Result<OwnedFd, PlaceError> {
    let unusable = |error| PlaceError::Namespace(path.to_owned(), error);
    let target = File::open(path).map_err(unusable)?;
    let owner = File::from(netio::process::owner_namespace(&target).map_err(unusable)?);
    let ours = File::open("/proc/self/ns/user").map_err(unusable)?;
    let inode = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
    let enter = |error: io::Error| PlaceError::Enter(path.to_owned(), error);
    if inode(&owner).map_err(unusable)? != inode(&ours).map_err(unusable)? {
        setns(&owner, CloneFlags::CLONE_NEWUSER).map_err(|error| enter(error.into()))?;
    }
    // Says what is wrong with the file before anything is made.
    setns(&target, CloneFlags::CLONE_NEWNET).map_err(|error| enter(error.into()))?;
    place_tap(&target, name)
}

/// Makes a tap in a namespace the caller has rights in, and brings it up. The caller is in that namespace afterwards.
///
/// # Errors
/// As [`tap_in`].
pub fn place_tap(target: &File, name: &IfName) -> Result<OwnedFd, PlaceError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| PlaceError::Unshare(error.into()))?;
    let tap = Tap::open_offloaded(name).map_err(|error| PlaceError::Tap(name.clone(), error))?;
    let place = format!("/proc/self/fd/{}", target.as_raw_fd());
    // ip(8) has fewer rights than we may have, and so may not look at our descriptors: it gets this one.
    let enter = |error: Errno| PlaceError::Enter(PathBuf::from(&place), error.into());
    fcntl(target, FcntlArg::F_SETFD(FdFlag::empty())).map_err(enter)?;
    let moved = ip(&["link", "set", "dev", name.as_str(), "netns", &place]);
    fcntl(target, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(enter)?;
    moved?;
    setns(target, CloneFlags::CLONE_NEWNET).map_err(enter)?;
    ip(&["link", "set", "dev", name.as_str(), "up"])?;
    Ok(tap)
}

/// Runs ip(8) where we are.
///
/// # Errors
/// With what it complained about.
pub fn ip(arguments: &[&str]) -> Result<(), PlaceError> {
    let failed = |why: String| PlaceError::Ip(arguments.join(" "), why);
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("ip")
        .args(arguments)
        // It is an administrator's program on some systems.
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

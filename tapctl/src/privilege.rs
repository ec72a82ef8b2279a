//! Who is asking, and what is given up before anything is done.
//!
//! Stages, in this order, in [`settle`], before the command line is looked at twice:
//!
//! 1. work in `/` with umask 077; descriptors above stderr are closed to the programs we start;
//! 2. the capability sets shrink to what taps need, in the bounding set too:
//!    root keeps `CAP_NET_ADMIN` (devices, addresses, routes, rules, switches under `/proc/sys/net`) and
//!    `CAP_NET_RAW` (iptables over the old kernel interface opens a raw socket);
//!    another user with file capabilities keeps `CAP_DAC_OVERRIDE` besides (the journal is root's);
//! 3. without root the rest is made ambient, because firewall tools have no capabilities of their own;
//! 4. `no_new_privs`: nothing we start can gain what we gave up.
//!
//! Nothing of the environment is used but `SUDO_UID`, and that only by uid 0, to whom sudo gave it.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::Uid;

/// A user, by name and number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
}

impl User {
    /// The user of that number, named by the number if the system knows no name.
    pub(crate) fn of(uid: u32) -> Self {
        let known = nix::unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
        Self {
            name: known.map_or_else(|| uid.to_string(), |user| user.name),
            uid,
        }
    }

    /// The user of that name, or of that number.
    pub(crate) fn find(name: &str) -> Option<Self> {
        if let Ok(Some(user)) = nix::unistd::User::from_name(name) {
            return Some(Self {
                name: user.name,
                uid: user.uid.as_raw(),
            });
        }
        name.parse().ok().map(Self::of)
    }
}

/// Who runs this tapctl.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    pub(crate) user: User,
    /// True for root who is not acting for a user: such a caller may name any user.
    pub(crate) is_root: bool,
}

/// Why nothing can be done for this caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    #[error("cannot tell who is calling: SUDO_UID is '{0}'")]
    SudoUid(String),
    #[error("cannot give up privileges")]
    Caps(#[from] caps::errors::CapsError),
    #[error("cannot give up privileges")]
    System(#[from] nix::Error),
    #[error("cannot close inherited descriptors")]
    Descriptors(#[source] std::io::Error),
}

impl Caller {
    /// Root is root unless sudo tells for whom; whoever else runs us runs us for himself.
    pub(crate) fn find() -> Result<Self, PrivilegeError> {
        let real = Uid::current().as_raw();
        let sudo = std::env::var("SUDO_UID").ok();
        let uid = caller_uid(real, sudo.as_deref())?;
        Ok(Self {
            user: User::of(uid),
            is_root: uid == 0,
        })
    }
}

fn caller_uid(real: u32, sudo_uid: Option<&str>) -> Result<u32, PrivilegeError> {
    match sudo_uid {
        Some(text) if real == 0 => text.parse().map_err(|_| PrivilegeError::SudoUid(text.to_owned())),
        _ => Ok(real),
    }
}

/// Gives up what is not needed; see the top of this file.
pub(crate) fn settle() -> Result<(), PrivilegeError> {
    std::env::set_current_dir("/").map_err(PrivilegeError::Descriptors)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    netio::process::close_on_exec_from(3).map_err(PrivilegeError::Descriptors)?;

    let held = caps::read(None, CapSet::Permitted)?;
    let root = Uid::effective().is_root();
    let mut wanted: CapsHashSet = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]
        .into_iter()
        .collect();
    if !root {
        wanted.insert(Capability::CAP_DAC_OVERRIDE);
    }
    let keep: CapsHashSet = held.intersection(&wanted).copied().collect();
    if held.contains(&Capability::CAP_SETPCAP) {
        caps::set(None, CapSet::Effective, &held)?;
        for capability in caps::all() {
            if !keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    let inherit = if root { CapsHashSet::new() } else { keep.clone() };
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::set(None, CapSet::Inheritable, &inherit)?;
    for capability in &inherit {
        caps::raise(None, CapSet::Ambient, *capability)?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// True if this process can change the network at all.
pub(crate) fn can_change_network() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_is_asked_for_whom_it_acts() {
        assert_eq!(caller_uid(0, None).unwrap(), 0);
        assert_eq!(caller_uid(0, Some("1000")).unwrap(), 1000);
        assert_eq!(caller_uid(0, Some("0")).unwrap(), 0);
        assert_eq!(caller_uid(1001, Some("0")).unwrap(), 1001);
        assert_eq!(caller_uid(1001, Some("1000")).unwrap(), 1001);
        for text in ["", "root", "-1", "4294967296", "1 "] {
            assert!(caller_uid(0, Some(text)).is_err(), "{text:?}");
        }
    }
}

//! Machines of other users.
//!
//! Root acts as their owner: the command is run once more with the owner's rights, home and state directory, so that
//! nothing a user has put there is touched with root's rights. Everybody else sees of others what the host's process
//! list shows, and changes nothing.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User, geteuid};

use crate::processes::guards;

/// Whose machines a command is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The caller's.
    Own,
    /// Those of one other user.
    User(Owner),
    /// Everybody's.
    All,
}

/// A user who has, or may have, machines.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    /// Number of the user.
    pub uid: u32,
    /// Number of the user's own group.
    pub gid: u32,
    /// Name; the number where there is none.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Where the user's machines are recorded, if not below the home directory.
    pub state: Option<PathBuf>,
}

impl Whose {
    /// Reads the value of `--user`: a name, a number, or `-` for all.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn read(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else {
            return Ok(Self::Own);
        };
        if text == "-" {
            return Ok(Self::All);
        }
        let owner = Owner::named(text)?;
        Ok(if Uid::from_raw(owner.uid) == geteuid() {
            Self::Own
        } else {
            Self::User(owner)
        })
    }

    /// Those it is about who have, or may have, machines: with their state directories, more than once if they use
    /// several. Nobody for [`Whose::Own`].
    pub fn owners(&self) -> Vec<Owner> {
        let mut owners = BTreeSet::new();
        let known: Vec<Owner> = match self {
            Self::Own => return Vec::new(),
            Self::User(owner) => vec![owner.clone()],
            Self::All => all_users(),
        };
        let running = guards();
        for owner in &known {
            // Root looks into every home; others would be refused, and have the process list.
            if matches!(self, Self::User(_)) || owner.home.join(".netkit/machines").is_dir() {
                owners.insert(owner.clone());
            }
        }
        for guard in running {
            if let Self::User(owner) = self
                && guard.uid != owner.uid
            {
                continue;
            }
            let mut owner = known
                .iter()
                .find(|owner| owner.uid == guard.uid)
                .cloned()
                .unwrap_or_else(|| Owner::nameless(guard.uid));
            let state = guard.dirs.machines.parent().map(PathBuf::from);
            if state.as_deref() != Some(&*owner.home.join(".netkit")) {
                owner.state = state;
            }
            owners.insert(owner);
        }
        owners.into_iter().collect()
    }
}

impl Owner {
    /// The user of a name or number.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(text: &str) -> Result<Self> {
        let by_name = User::from_name(text).with_context(|| format!("cannot look up user '{text}'"))?;
        if let Some(user) = by_name {
            return Ok(user.into());
        }
        let Ok(uid) = text.parse() else {
            bail!("there is no user '{text}'\nhint: '-' stands for all users");
        };
        let by_number =
            User::from_uid(Uid::from_raw(uid)).with_context(|| format!("cannot look up user {uid}"))?;
        Ok(by_number.map_or_else(|| Self::nameless(uid), Self::from))
    }

    /// A user the host has no name for.
    fn nameless(uid: u32) -> Self {
        Self {
            uid,
            gid: uid,
            name: uid.to_string(),
            home: "/".into(),
            state: None,
        }
    }

    /// This program as this user runs it. Only root can.
    ///
    /// # Errors
    /// When we are not root.
    pub fn command(&self, words: &[String]) -> Result<Command> {
        if !geteuid().is_root() {
            bail!(
                "cannot act for user {}: that needs root\nhint: put 'sudo' before the command",
                self.name
            );
        }
        let mut command = Command::new("/proc/self/exe");
        command
            .args(words)
            .env_clear()
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
            // Without supplementary groups: that is what std does for root when it sets the user.
            .gid(Gid::from_raw(self.gid).as_raw())
            .uid(self.uid)
            .current_dir("/");
        for name in ["PATH", "LANG", "LC_ALL", "NETKIT_HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(state) = &self.state {
            command.env("NETKIT_STATE", state);
        }
        Ok(command)
    }
}

impl From<User> for Owner {
    fn from(user: User) -> Self {
        Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            name: user.name,
            home: user.dir,
            state: None,
        }
    }
}

/// The users of the host's own list. Those of a directory service are found by their machines.
fn all_users() -> Vec<Owner> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else {
                return None;
            };
            Some(Owner {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                name: name.to_owned(),
                home: home.into(),
                state: None,
            })
        })
        .collect()
}

/// The name of a user, or the number if there is no name.
pub fn name_of(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = Owner::named("root").unwrap();
        assert_eq!((root.uid, root.name.as_str()), (0, "root"));
        assert_eq!(Owner::named("0").unwrap(), root);
        assert_eq!(Owner::named("4000001").unwrap().name, "4000001");
        assert!(Owner::named("no such user").is_err());
        assert_eq!(Whose::read(None).unwrap(), Whose::Own);
        assert_eq!(Whose::read(Some("-")).unwrap(), Whose::All);
        let own = geteuid().to_string();
        assert_eq!(Whose::read(Some(&own)).unwrap(), Whose::Own);
    }

    #[test]
    fn only_root_acts_for_others() {
        let owner = Owner::named("4000001").unwrap();
        assert_eq!(owner.command(&[]).is_ok(), geteuid().is_root());
    }
}

//! `/etc/hubbub/interfaces`: which interfaces of the host root gives to whom.
//!
//! ```text
//! # INTERFACE  WHO...
//! eth1         alice bob
//! eth2         @netlab          # the members of a group
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Group, Uid, getgrouplist};

use crate::privilege::User;

/// Where it is.
pub(crate) const FILE: &str = "/etc/hubbub/interfaces";

/// More than anybody writes by hand.
const LONGEST: u64 = 1 << 20;

/// What the file says.
#[derive(Default, Debug)]
pub(crate) struct List(Vec<(String, Vec<Who>)>);

#[derive(PartialEq, Eq, Debug)]
enum Who {
    User(String),
    Group(String),
}

/// Why the file is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("cannot read {FILE}")]
    Read(#[source] io::Error),
    #[error("cannot trust {0}: others than root can change it")]
    Shared(&'static str),
    #[error("{FILE}:{0}: {1}")]
    Line(usize, String),
}

impl ListError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Shared(path) => Some(format!("as root: chown root {path}; chmod go-w {path}")),
            _ => None,
        }
    }
}

impl List {
    /// Reads the file; without one, nobody is given anything.
    pub(crate) fn read() -> Result<Self, ListError> {
        let file = match File::open(FILE) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ListError::Read(error)),
        };
        // Who may change the directory can put another file there.
        for path in ["/etc/hubbub", FILE] {
            let data = if path == FILE {
                file.metadata()
            } else {
                Path::new(path).metadata()
            };
            let data = data.map_err(ListError::Read)?;
            if data.uid() != 0 || data.mode() & 0o022 != 0 {
                return Err(ListError::Shared(path));
            }
        }
        let mut text = String::new();
        file.take(LONGEST)
            .read_to_string(&mut text)
            .map_err(ListError::Read)?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, ListError> {
        let mut list = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(interface) = words.next() else { continue };
            let who: Vec<_> = words
                .map(|word| match word.strip_prefix('@') {
                    Some(group) => Who::Group(group.to_owned()),
                    None => Who::User(word.to_owned()),
                })
                .collect();
            if who.is_empty() {
                let why = format!("it does not say to whom {interface} is given: INTERFACE USER|@GROUP...");
                return Err(ListError::Line(number + 1, why));
            }
            list.push((interface.to_owned(), who));
        }
        Ok(Self(list))
    }

    /// True if the interface is given to this user.
    pub(crate) fn allows(&self, interface: &str, user: &User) -> bool {
        let lines = self.0.iter().filter(|(name, _)| name == interface);
        lines.flat_map(|(_, who)| who).any(|who| match who {
            Who::User(name) => *name == user.name,
            Who::Group(group) => is_member(user, group),
        })
    }
}

fn is_member(user: &User, group: &str) -> bool {
    let Ok(Some(group)) = Group::from_name(group) else {
        return false;
    };
    let Ok(Some(known)) = nix::unistd::User::from_uid(Uid::from_raw(user.uid)) else {
        return false;
    };
    let groups = CString::new(known.name)
        .ok()
        .and_then(|name| getgrouplist(&name, known.gid).ok());
    groups.is_some_and(|groups| groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_nobodys() {
        let list = List::parse("# comment\n\neth1 alice bob # two\neth2\tcarol\neth1 dave\n").unwrap();
        let allows = |interface: &str, name: &str| {
            list.allows(
                interface,
                &User {
                    name: name.to_owned(),
                    uid: u32::MAX - 5,
                },
            )
        };
        assert!(
            allows("eth1", "alice")
                && allows("eth1", "bob")
                && allows("eth1", "dave")
                && allows("eth2", "carol")
        );
        for (interface, name) in [
            ("eth1", "carol"),
            ("eth2", "alice"),
            ("eth3", "alice"),
            ("eth", "alice"),
            ("eth1", "#"),
        ] {
            assert!(!allows(interface, name), "{interface} {name}");
        }
        assert!(!List::default().0.iter().any(|_| true));
        let text = List::parse("eth1 alice\neth2 # nobody\n")
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("/etc/hubbub/interfaces:2: "), "{text}");
    }

    #[test]
    fn groups_are_the_systems() {
        let root = User {
            name: "root".to_owned(),
            uid: 0,
        };
        let list = List::parse("eth1 @root\neth2 @nosuchgroup\n").unwrap();
        assert!(list.allows("eth1", &root) && !list.allows("eth2", &root));
    }
}

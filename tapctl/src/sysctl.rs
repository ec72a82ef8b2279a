//! Kernel switches under `/proc/sys/net`: read before written, written only if different.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::name::Device;

/// A switch, by its path below `/proc/sys/net`, such as `ipv4/conf/nk_tap_r1/rp_filter`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Key(String);

/// The text is not the path of a switch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is not a kernel switch")]
pub(crate) struct KeyError(String);

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    const fn directory(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Key {
    /// The switch that turns forwarding on for the whole host.
    pub(crate) fn forwarding(family: Family) -> Self {
        Self(
            match family {
                Family::V4 => "ipv4/ip_forward",
                Family::V6 => "ipv6/conf/all/forwarding",
            }
            .to_owned(),
        )
    }

    /// A device's own switch.
    pub(crate) fn of(device: &Device, family: Family, leaf: &'static str) -> Self {
        Self(format!("{}/conf/{device}/{leaf}", family.directory()))
    }

    fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.0)
    }

    /// The value, or `None` if the kernel has no such switch (any longer).
    pub(crate) fn read(&self) -> Option<String> {
        fs::read_to_string(self.path())
            .ok()
            .map(|text| text.trim_end().to_owned())
    }

    /// Sets the value unless it is set.
    ///
    /// # Errors
    /// When the kernel has no such switch or refuses the value.
    pub(crate) fn write(&self, value: &str) -> io::Result<()> {
        if self.read().as_deref() == Some(value) {
            return Ok(());
        }
        fs::write(self.path(), value)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let known = text.starts_with("ipv4/") || text.starts_with("ipv6/");
        if known
            && text
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..")
        {
            Ok(Self(text))
        } else {
            Err(KeyError(text))
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net/{}", self.0)
    }
}

/// Everything the kernel changes besides when the forwarding switch is turned: forwarding of each device and of those
/// to come, and (IPv4) whether redirects are believed (`inet_forward_change`, `addrconf_fixup_forwarding`).
pub(crate) fn around_forwarding(family: Family) -> BTreeMap<Key, String> {
    let conf = Path::new(ROOT).join(family.directory()).join("conf");
    let mut around = BTreeMap::new();
    for entry in fs::read_dir(conf).into_iter().flatten().flatten() {
        let device = entry.file_name();
        let Some(device) = device.to_str() else { continue };
        let leaves: &[&str] = match (family, device) {
            (Family::V4, "all") => &["accept_redirects"],
            (Family::V6, "all") => &[],
            _ => &["forwarding"],
        };
        for leaf in leaves {
            let key = Key(format!("{}/conf/{device}/{leaf}", family.directory()));
            if let Some(value) = key.read() {
                around.insert(key, value);
            }
        }
    }
    around
}

/// True if the kernel has this family at all.
pub(crate) fn present(family: Family) -> bool {
    Path::new(ROOT).join(family.directory()).join("conf").is_dir()
}

const ROOT: &str = "/proc/sys/net";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_cannot_name_a_path_outside() {
        for text in [
            "../kernel/core_pattern",
            "ipv4/../../kernel/x",
            "ipv4//x",
            "core/x",
            "",
            "/etc/passwd",
        ] {
            assert!(Key::try_from(text.to_owned()).is_err(), "{text}");
        }
        let key = Key::try_from("ipv4/conf/eth0.5/rp_filter".to_owned()).unwrap();
        assert_eq!(key.to_string(), "net/ipv4/conf/eth0.5/rp_filter");
    }
}

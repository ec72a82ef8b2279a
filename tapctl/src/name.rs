//! Names of devices: which are safe to hand to firewall tools, and what a user's tap is called.

use std::fmt;
use std::str::FromStr;

use netio::tap::{IfName, IfNameError};
use serde::{Deserialize, Serialize};

/// The name of a device tapctl works on: an interface name of letters, digits, `_`, `-` and `.` alone.
///
/// What the kernel allows besides has a meaning elsewhere: `+` ends a wildcard in iptables, `*` one in nft.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Device(IfName);

/// Why a text is not a device name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// Not the name of any interface.
    #[error(transparent)]
    Name(#[from] IfNameError),
    /// A character that firewall tools would read as something else.
    #[error("device name '{0}' contains {1:?}: only letters, digits, '_', '-' and '.' are allowed")]
    Character(String, char),
    /// It would be taken for an option.
    #[error("device name '{0}' begins with '-'")]
    Dash(String),
}

impl Device {
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn if_name(&self) -> &IfName {
        &self.0
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name: IfName = text.parse()?;
        if let Some(c) = text.chars().find(|&c| !plain(c)) {
            return Err(DeviceError::Character(text.to_owned(), c));
        }
        if text.starts_with('-') {
            return Err(DeviceError::Dash(text.to_owned()));
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.as_str().to_owned()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What every tap of a user's domain is called first.
pub(crate) const PREFIX: &str = "nk_tap_";

/// The name the Netkit manual gives a user's tap, if it is a name at all.
pub(crate) fn manual_name(user: &str) -> Option<Device> {
    format!("{PREFIX}{user}").parse().ok()
}

/// A name for what does not fit: the start of the user's name and five letters that stand for user and domain.
///
/// It depends on its arguments alone, so that it is the same after every restart; `attempt` is raised when another
/// user's tap has the name already.
pub(crate) fn short_name(user: &str, domain: &str, attempt: u32) -> Device {
    let start: String = user.chars().filter(char::is_ascii_alphanumeric).take(2).collect();
    let mut hash = fnv1a(format!("{user}\0{domain}\0{attempt}").as_bytes());
    let mut tag = String::new();
    for _ in 0..5 {
        let letter = usize::try_from(hash % 32).expect("a remainder below 32");
        tag.push(char::from(LETTERS[letter]));
        hash /= 32;
    }
    format!("{PREFIX}{start}-{tag}")
        .parse()
        .expect("at most 7 + 2 + 1 + 5 plain characters")
}

const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The FNV-1a hash: fixed for ever, unlike the standard library's. Collisions are looked for, not hoped away.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_users_keep_the_name_of_the_manual() {
        assert_eq!(manual_name("alice").unwrap().as_str(), "nk_tap_alice");
        assert_eq!(manual_name("12345678").unwrap().as_str(), "nk_tap_12345678");
        for user in ["123456789", "a+", "a*", "a b", "a/b", "DOM\\al", "é"] {
            assert_eq!(manual_name(user), None, "{user}");
        }
    }

    #[test]
    fn shortened_names_never_change_between_releases() {
        assert_eq!(short_name("maximilian", "tap", 0).as_str(), "nk_tap_ma-pqsan");
    }

    proptest! {
        #[test]
        fn any_user_and_domain_get_a_name(user in ".{0,40}", domain in ".{0,64}", attempt in 0u32..9) {
            let name = short_name(&user, &domain, attempt);
            prop_assert!(name.as_str().len() <= 15);
            prop_assert_eq!(&name, &short_name(&user, &domain, attempt));
            prop_assert_ne!(&name, &short_name(&user, &domain, attempt + 1));
        }

        #[test]
        fn accepted_names_have_no_character_with_a_meaning(text in ".{0,20}") {
            if let Ok(device) = text.parse::<Device>() {
                prop_assert!(device.as_str().len() <= 15 && device.as_str().chars().all(plain));
            }
        }
    }
}

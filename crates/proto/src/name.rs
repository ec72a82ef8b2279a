//! Names that users type and that become parts of paths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a collision domain.
///
/// It becomes part of a socket path, so it is 1 to 64 bytes without blanks, control characters and `/`, and (as
/// Netkit demands) without `_`, `,` and `.`; it does not begin with `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// Longest domain name, in bytes: what leaves room for the directory in a 107-byte socket path.
const LONGEST: usize = 64;

impl DomainName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a domain name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a domain name cannot be empty")]
    Empty,
    /// The text is too long to become part of a socket path.
    #[error("domain name '{0}' is longer than {LONGEST} bytes")]
    TooLong(String),
    /// The text has a character that Netkit reserves or that a path cannot hold.
    #[error("domain name '{0}' contains {1:?}: blanks, '_', ',', '.' and '/' are not allowed")]
    Character(String, char),
    /// The text would be taken for an option.
    #[error("domain name '{0}' begins with '-'")]
    Dash(String),
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > LONGEST {
            return Err(NameError::TooLong(text.to_owned()));
        }
        if text.starts_with('-') {
            return Err(NameError::Dash(text.to_owned()));
        }
        let reserved = |c: &char| c.is_whitespace() || c.is_control() || matches!(c, '_' | ',' | '.' | '/');
        match text.chars().find(reserved) {
            Some(c) => Err(NameError::Character(text.to_owned(), c)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for text in ["A", "tap", "lan-1", "core-a+b", "ÖPNV"] {
            assert_eq!(text.parse::<DomainName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn reserved_characters_are_named_in_the_error() {
        for (text, c) in [
            ("a_b", '_'),
            ("a,b", ','),
            ("a.b", '.'),
            ("a b", ' '),
            ("../x", '.'),
            ("a/b", '/'),
            ("a\n", '\n'),
        ] {
            assert_eq!(
                text.parse::<DomainName>(),
                Err(NameError::Character(text.to_owned(), c))
            );
        }
        assert_eq!("".parse::<DomainName>(), Err(NameError::Empty));
        assert!(matches!(
            "x".repeat(65).parse::<DomainName>(),
            Err(NameError::TooLong(_))
        ));
        assert!(matches!("-hub".parse::<DomainName>(), Err(NameError::Dash(_))));
    }
}

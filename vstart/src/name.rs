//! Names of machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a machine.
///
/// It becomes a directory, the kernel's `umid`, the guest's host name and a word of shell commands: 1 to 63 letters,
/// digits, `-`, `_`, `.` and `+`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

/// Longest name, in bytes: the kernel keeps 64 for its `umid`, the final NUL included.
const LONGEST: usize = 63;

impl MachineName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a machine name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a machine name cannot be empty")]
    Empty,
    /// The text is too long for the kernel.
    #[error("machine name '{0}' is longer than {LONGEST} bytes")]
    TooLong(String),
    /// The text has a character that cannot be part of a host name or path.
    #[error("machine name '{0}' contains {1:?}: only letters, digits, '-', '_', '.' and '+' are allowed")]
    Character(String, char),
    /// The text would be taken for an option or a hidden file.
    #[error("machine name '{0}' begins with {1:?}: it must begin with a letter or a digit")]
    First(String, char),
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        if text.len() > LONGEST {
            return Err(NameError::TooLong(text.to_owned()));
        }
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character(text.to_owned(), c));
        }
        if !first.is_alphanumeric() {
            return Err(NameError::First(text.to_owned(), first));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for MachineName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MachineName> for String {
    fn from(name: MachineName) -> Self {
        name.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for text in ["pc1", "r", "as20r1", "core.lan-1_a+b", "Zürich", "1"] {
            assert_eq!(text.parse::<MachineName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        for (text, c) in [
            ("a b", ' '),
            ("a/b", '/'),
            ("a\"b", '"'),
            ("a,b", ','),
            ("a\nb", '\n'),
            ("$x", '$'),
        ] {
            assert_eq!(
                text.parse::<MachineName>(),
                Err(NameError::Character(text.into(), c))
            );
        }
        for (text, c) in [(".", '.'), ("..", '.'), ("-q", '-'), ("_x", '_')] {
            assert_eq!(text.parse::<MachineName>(), Err(NameError::First(text.into(), c)));
        }
        assert_eq!("".parse::<MachineName>(), Err(NameError::Empty));
        assert!(matches!(
            "x".repeat(64).parse::<MachineName>(),
            Err(NameError::TooLong(_))
        ));
    }
}

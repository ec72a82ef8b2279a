//! `netkit.conf`: shell-style assignments, read and never executed. Pure.
//!
//! ```text
//! # a comment
//! VM_MEMORY=64
//! VM_MODEL_FS="$NETKIT_HOME/fs/netkit-fs"    # variables of the environment and of lines above
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Values of variables and where each comes from. Later ones replace earlier ones.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings(BTreeMap<String, Setting>);

/// One value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The value.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It is built in.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("built in"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

/// Why a file is no configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot read {}:{line}: {reason}", path.display())]
pub struct SettingsError {
    path: PathBuf,
    line: usize,
    reason: &'static str,
}

impl Settings {
    /// Sets a value.
    pub fn set(&mut self, name: &str, value: impl Into<String>, origin: Origin) {
        self.0.insert(
            name.to_owned(),
            Setting {
                value: value.into(),
                origin,
            },
        );
    }

    /// The value of a variable; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.get(name).filter(|setting| !setting.value.is_empty())
    }

    /// All values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(name, setting)| (name.as_str(), setting))
    }

    /// Takes in the text of a file.
    ///
    /// # Errors
    /// At the first line that is no assignment.
    pub fn read(
        &mut self,
        path: &Path,
        text: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(), SettingsError> {
        for (number, line) in text.lines().enumerate() {
            let error = |reason| SettingsError {
                path: path.to_owned(),
                line: number + 1,
                reason,
            };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| error("it is not NAME=VALUE"))?;
            let is_name = |name: &str| {
                name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                    && name.chars().next().is_some_and(|c| !c.is_ascii_digit())
            };
            if !is_name(name) {
                return Err(error("what stands before '=' is not the name of a variable"));
            }
            let variable = |name: &str| {
                self.0
                    .get(name)
                    .map(|setting| setting.value.clone())
                    .or_else(|| environment(name))
                    .unwrap_or_default()
            };
            let value = expand(value, &variable).map_err(error)?;
            self.set(name, value, Origin::File(path.to_owned(), number + 1));
        }
        Ok(())
    }
}

/// What a shell would make of the right side of an assignment.
fn expand(text: &str, variable: &impl Fn(&str) -> String) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut rest = text;
    if let Some(path) = rest
        .strip_prefix('~')
        .filter(|path| path.is_empty() || path.starts_with('/'))
    {
        out.push_str(&variable("HOME"));
        rest = path;
    }
    let mut chars = rest.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => out.push(c),
            (_, '\\') => out.push(chars.next().ok_or("it ends with a backslash")?),
            (_, '`') => return Err("commands in it are not run"),
            (_, '$') => match chars.peek() {
                Some('(') => return Err("commands in it are not run"),
                Some('{') => {
                    chars.next();
                    let name: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    out.push_str(&variable(&name));
                }
                _ => {
                    let mut name = String::new();
                    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        name.push(c);
                    }
                    out.push_str(&if name.is_empty() {
                        "$".to_owned()
                    } else {
                        variable(&name)
                    });
                }
            },
            // A word ends at a blank; what follows may only be a comment.
            (None, c) if c.is_whitespace() || c == ';' => {
                let tail: String = chars.collect();
                let tail = tail.trim_start_matches([' ', '\t', ';']);
                return if tail.is_empty() || tail.starts_with('#') {
                    Ok(out)
                } else {
                    Err("a value with blanks must be quoted")
                };
            }
            (_, c) => out.push(c),
        }
    }
    if quote.is_some() {
        Err("a quote is not closed")
    } else {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let mut settings = Settings::default();
        let environment = |name: &str| (name == "HOME").then(|| "/home/foo".to_owned());
        settings.read(Path::new("netkit.conf"), text, environment)?;
        Ok(settings)
    }

    #[test]
    fn assignments_are_read_as_a_shell_reads_them() {
        let settings = read(
            "# comment\n\nexport A=1\n B='x $A'   # why\nC=\"y $A ${A}2\"\nD=~/fs\nE=a\\ b\nF=\nG=$A;\nA=2\nH='a'b\"c\"\n",
        )
        .unwrap();
        let value = |name: &str| settings.get(name).map(|setting| setting.value.as_str());
        assert_eq!(value("A"), Some("2"));
        assert_eq!(value("B"), Some("x $A"));
        assert_eq!(value("C"), Some("y 1 12"));
        assert_eq!(value("D"), Some("/home/foo/fs"));
        assert_eq!(value("E"), Some("a b"));
        assert_eq!(value("F"), None);
        assert_eq!(value("G"), Some("1"));
        assert_eq!(value("H"), Some("abc"));
        assert_eq!(settings.get("B").unwrap().origin.to_string(), "netkit.conf:4");
    }

    #[test]
    fn bad_lines_are_told_by_number_and_never_run() {
        for (line, reason) in [
            ("echo hello", "it is not NAME=VALUE"),
            ("A B=1", "what stands before '=' is not the name of a variable"),
            ("=1", "what stands before '=' is not the name of a variable"),
            ("A=$(rm x)", "commands in it are not run"),
            ("A=`rm x`", "commands in it are not run"),
            ("A=\"$(rm x)\"", "commands in it are not run"),
            ("A=b c", "a value with blanks must be quoted"),
            ("A='b", "a quote is not closed"),
            ("A=b\\", "it ends with a backslash"),
        ] {
            let error = read(&format!("X=1\n{line}\n")).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("cannot read netkit.conf:2: {reason}"),
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(\\PC|\n){0,200}") {
            let _ = read(&text);
        }
    }
}

//! Where things are kept.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::name::MachineName;

/// The directories of one user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dirs {
    /// Sockets of switchd.
    pub hubs: PathBuf,
    /// Management consoles of the kernels: their `uml_dir`.
    pub mconsole: PathBuf,
    /// Records of running machines.
    pub machines: PathBuf,
}

/// Why directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// There is no home directory to put things in.
    #[error("HOME is not set to an absolute path\nhint: set it to a directory you can write to")]
    NoHome,
    /// The kernel limits the length of a socket's path.
    #[error(
        "socket path {0} has {1} bytes, {LONGEST_SOCKET_PATH} are possible\n\
         hint: use a shorter machine name, or set HOME (or NETKIT_STATE) to a shorter path"
    )]
    TooLong(PathBuf, usize),
    /// A path cannot be a word of the kernel's command line.
    #[error(
        "path {0:?} contains a blank, a quote or a control character, which a kernel command line cannot hold"
    )]
    Unspeakable(PathBuf),
}

/// What fits into `sun_path` with its final NUL (unix(7)).
pub const LONGEST_SOCKET_PATH: usize = 107;

impl Dirs {
    /// The user's directories: below `NETKIT_STATE` or `~/.netkit`.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn from_environment(var: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, DirsError> {
        let absolute = |name: &str| var(name).filter(|path| path.is_absolute());
        let state = absolute("NETKIT_STATE")
            .or_else(|| absolute("HOME").map(|home| home.join(".netkit")))
            .ok_or(DirsError::NoHome)?;
        Ok(Self {
            hubs: state.join("hubs"),
            mconsole: state.join("mconsole"),
            machines: state.join("machines"),
        })
    }

    /// Checks that every path a machine needs can exist: sockets are short enough, and the kernel can be told.
    ///
    /// # Errors
    /// With the first path that cannot be.
    pub fn check(&self, name: &MachineName) -> Result<(), DirsError> {
        for path in [
            self.mconsole_socket(name),
            self.console_socket(name),
            self.notify_socket(name),
            self.switch_socket(),
        ] {
            let bytes = path.as_os_str().as_bytes().len();
            if bytes > LONGEST_SOCKET_PATH {
                return Err(DirsError::TooLong(path, bytes));
            }
        }
        for path in [&self.hubs, &self.mconsole, &self.machines] {
            speakable(path)?;
        }
        Ok(())
    }

    /// The directory of a machine's record.
    pub fn machine(&self, name: &MachineName) -> PathBuf {
        self.machines.join(name.as_str())
    }

    /// Where viewers of a machine's consoles connect.
    pub fn console_socket(&self, name: &MachineName) -> PathBuf {
        self.machine(name).join("console.sock")
    }

    /// Where a machine's kernel tells how far it is.
    pub fn notify_socket(&self, name: &MachineName) -> PathBuf {
        self.machine(name).join("notify.sock")
    }

    /// The kernel's own directory for a machine.
    pub fn umid(&self, name: &MachineName) -> PathBuf {
        self.mconsole.join(name.as_str())
    }

    /// A kernel's management console.
    pub fn mconsole_socket(&self, name: &MachineName) -> PathBuf {
        self.umid(name).join("mconsole")
    }

    /// Where switchd takes requests.
    pub fn switch_socket(&self) -> PathBuf {
        self.hubs.join("switchd.sock")
    }

    /// The `uml_dir=` argument; the kernel wants the slash at its end.
    pub fn uml_dir_word(&self) -> String {
        format!("uml_dir={}/", self.mconsole.display())
    }
}

/// Checks that a path survives as an unquoted word of a kernel command line.
///
/// # Errors
/// When it does not.
pub fn speakable(path: &Path) -> Result<(), DirsError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '"';
    match path.to_str() {
        Some(text) if !text.contains(bad) => Ok(()),
        _ => Err(DirsError::Unspeakable(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(home: &str) -> Dirs {
        Dirs::from_environment(|name| (name == "HOME").then(|| home.into())).unwrap()
    }

    #[test]
    fn everything_is_below_the_home_directory() {
        let dirs = dirs("/home/foo");
        let name = "pc1".parse().unwrap();
        assert_eq!(
            dirs.switch_socket(),
            Path::new("/home/foo/.netkit/hubs/switchd.sock")
        );
        assert_eq!(
            dirs.mconsole_socket(&name),
            Path::new("/home/foo/.netkit/mconsole/pc1/mconsole")
        );
        assert_eq!(
            dirs.console_socket(&name),
            Path::new("/home/foo/.netkit/machines/pc1/console.sock")
        );
        assert_eq!(dirs.uml_dir_word(), "uml_dir=/home/foo/.netkit/mconsole/");
        assert!(dirs.check(&name).is_ok());
    }

    #[test]
    fn the_environment_moves_them() {
        let var = |name: &str| match name {
            "HOME" => Some("/home/foo".into()),
            "NETKIT_STATE" => Some("/run/foo".into()),
            _ => None,
        };
        let dirs = Dirs::from_environment(var).unwrap();
        assert_eq!(dirs.hubs, Path::new("/run/foo/hubs"));
        assert_eq!(dirs.machines, Path::new("/run/foo/machines"));
        assert!(matches!(
            Dirs::from_environment(|_| Some("x".into())),
            Err(DirsError::NoHome)
        ));
        assert!(matches!(Dirs::from_environment(|_| None), Err(DirsError::NoHome)));
    }

    #[test]
    fn a_home_too_deep_for_sockets_is_told() {
        let deep = format!("/{}", "d".repeat(90));
        assert!(matches!(
            dirs(&deep).check(&"pc1".parse().unwrap()),
            Err(DirsError::TooLong(..))
        ));
        let spaced = dirs("/home/a b");
        assert!(matches!(
            spaced.check(&"pc1".parse().unwrap()),
            Err(DirsError::Unspeakable(_))
        ));
    }
}

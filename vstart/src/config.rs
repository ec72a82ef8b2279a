//! The user's settings: built in, from files, from the environment; in that order.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::dirs::Dirs;
use crate::machine::Console;
use crate::settings::{Origin, Settings};
use crate::switch::in_path;
use crate::transport::Wanted;
use crate::windows::Emulator;

/// The checked settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The UML kernel; searched for if absent.
    pub kernel: Option<PathBuf>,
    /// The model file system; the host's own files if absent.
    pub model: Option<PathBuf>,
    /// Memory of a guest, in MB.
    pub memory_mb: u32,
    /// Memory added to that for what the guest's kernel itself takes, in MB.
    pub memory_skew_mb: u32,
    /// Least and most memory of a guest, in MB.
    pub memory_range_mb: (u32, u32),
    /// Number of interfaces a machine may have.
    pub max_interfaces: u32,
    /// How frames get from a guest to its domains.
    pub transport: Wanted,
    /// Whether our agent is started in other file systems.
    pub agent: bool,
    /// The primary and the secondary console.
    pub consoles: [Console; 2],
    /// The terminal emulator of consoles in windows.
    pub emulator: Emulator,
    /// Whether a console in tmux gets a window at once.
    pub tmux_opens_window: bool,
    /// How many machines of a lab may be starting at the same time.
    pub simultaneous: usize,
    /// The pause between the starts of two machines of a lab.
    pub pause: Duration,
    /// Where the commands that are run are written down.
    pub log: Option<PathBuf>,
    /// Where the user's things are kept.
    pub dirs: Dirs,
    /// What all that comes from.
    pub settings: Settings,
}

/// Settings that have an effect, and what they are if nobody says otherwise.
pub const DEFAULTS: [(&str, &str); 19] = [
    ("GRACE_TIME", "0"),
    ("HUB_SOCKET_DIR", ""),
    ("LOGFILENAME", ""),
    ("MAX_INTERFACES", "40"),
    ("MAX_MEM", "65536"),
    ("MAX_SIMULTANEOUS_VMS", "20"),
    ("MCONSOLE_DIR", ""),
    ("MIN_MEM", "8"),
    ("TERM_TYPE", "xterm"),
    ("TMUX_OPEN_TERMS", "FALSE"),
    ("USE_TMUX", "FALSE"),
    ("VM_AGENT", "FALSE"),
    ("VM_CON0", "xterm"),
    ("VM_CON1", "none"),
    ("VM_KERNEL", ""),
    ("VM_MEMORY", "128"),
    ("VM_MEMORY_SKEW", "4"),
    ("VM_MODEL_FS", ""),
    ("VM_TRANSPORT", "auto"),
];

/// Variables of the environment and the settings they change.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("NETKIT_CON0", "VM_CON0"),
    ("NETKIT_CON1", "VM_CON1"),
    ("NETKIT_FILESYSTEM", "VM_MODEL_FS"),
    ("NETKIT_HUBS", "HUB_SOCKET_DIR"),
    ("NETKIT_KERNEL", "VM_KERNEL"),
    ("NETKIT_MCONSOLE", "MCONSOLE_DIR"),
    ("NETKIT_MEMORY", "VM_MEMORY"),
    ("NETKIT_TERM", "TERM_TYPE"),
    ("NETKIT_TRANSPORT", "VM_TRANSPORT"),
];

impl Config {
    /// Reads everything there is: `netkit.conf` of the installation, of the host, of the user; the environment.
    ///
    /// # Errors
    /// When a file cannot be read or a setting cannot be.
    pub fn load(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = var("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let installation = var("NETKIT_HOME").map(PathBuf::from).or_else(installation);
        let installation = installation.map(|dir| dir.join(FILE));
        let user = home.map(|home| home.join(".netkit").join(FILE));
        let files = [installation, Some(Path::new("/etc").join(FILE)), user];
        let mut texts = Vec::new();
        for path in files.into_iter().flatten() {
            match std::fs::read_to_string(&path) {
                Ok(text) => texts.push((path, text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        }
        Self::new(&texts, var)
    }

    /// Puts the settings together from the texts of files and the environment.
    ///
    /// # Errors
    /// When a setting cannot be.
    pub fn new(files: &[(PathBuf, String)], var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut settings = Settings::default();
        for (name, value) in DEFAULTS {
            settings.set(name, value, Origin::Default);
        }
        for (path, text) in files {
            settings.read(path, text, &var)?;
        }
        for (variable, name) in ENVIRONMENT {
            if let Some(value) = var(variable).filter(|value| !value.is_empty()) {
                settings.set(name, value, Origin::Environment(variable));
            }
        }
        let mut consoles = [value(&settings, "VM_CON0")?, value(&settings, "VM_CON1")?];
        if flag(&settings, "USE_TMUX")? {
            consoles[0] = Console::Tmux;
        }
        let mut dirs = Dirs::from_environment(|name| var(name).map(PathBuf::from))?;
        for (name, dir) in [
            ("HUB_SOCKET_DIR", &mut dirs.hubs),
            ("MCONSOLE_DIR", &mut dirs.mconsole),
        ] {
            if let Some(path) = path(&settings, name)? {
                *dir = path;
            }
        }
        Ok(Self {
            kernel: path(&settings, "VM_KERNEL")?,
            model: path(&settings, "VM_MODEL_FS")?,
            memory_mb: value(&settings, "VM_MEMORY")?,
            memory_skew_mb: value(&settings, "VM_MEMORY_SKEW")?,
            memory_range_mb: (value(&settings, "MIN_MEM")?, value(&settings, "MAX_MEM")?),
            max_interfaces: value(&settings, "MAX_INTERFACES")?,
            transport: value(&settings, "VM_TRANSPORT")?,
            agent: flag(&settings, "VM_AGENT")?,
            consoles,
            emulator: value(&settings, "TERM_TYPE")?,
            tmux_opens_window: flag(&settings, "TMUX_OPEN_TERMS")?,
            simultaneous: match value(&settings, "MAX_SIMULTANEOUS_VMS")? {
                0 => usize::MAX,
                most => most,
            },
            pause: Duration::from_secs(value(&settings, "GRACE_TIME")?),
            log: path(&settings, "LOGFILENAME")?,
            dirs,
            settings,
        })
    }

    /// The kernel to use if no other is asked for.
    pub fn default_kernel(&self) -> Option<PathBuf> {
        self.kernel
            .clone()
            .or_else(|| ["linux.uml", "linux"].into_iter().find_map(in_path))
    }
}

/// The directory of what belongs to the program that runs.
fn installation() -> Option<PathBuf> {
    let bin = std::env::current_exe().ok()?;
    Some(bin.parent()?.parent()?.join("lib/hubbub"))
}

const FILE: &str = "netkit.conf";

fn value<T: FromStr>(settings: &Settings, name: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let setting = settings
        .get(name)
        .with_context(|| format!("cannot do without a value for {name}"))?;
    setting
        .value
        .parse()
        .with_context(|| format!("cannot use {name}='{}' ({})", setting.value, setting.origin))
}

fn path(settings: &Settings, name: &str) -> Result<Option<PathBuf>> {
    let Some(setting) = settings.get(name) else {
        return Ok(None);
    };
    let path = PathBuf::from(&setting.value);
    if path.is_relative() {
        bail!(
            "cannot use {name}='{}' ({}): it is not an absolute path",
            setting.value,
            setting.origin
        );
    }
    Ok(Some(path))
}

fn flag(settings: &Settings, name: &str) -> Result<bool> {
    let Some(setting) = settings.get(name) else {
        return Ok(false);
    };
    match setting.value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => bail!(
            "cannot use {name}='{}' ({}): it is neither TRUE nor FALSE",
            setting.value,
            setting.origin
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Config> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| ((*path).into(), (*text).to_owned()))
            .collect();
        Config::new(&files, |name| {
            let home = ("HOME", "/home/foo");
            let found = environment
                .iter()
                .chain([&home])
                .find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn later_sources_win() {
        let files = [
            (
                "/opt/netkit.conf",
                "VM_MEMORY=32\nMAX_MEM=512\nTERM_TYPE=konsole\nGRACE_TIME=2\nMAX_SIMULTANEOUS_VMS=0\n",
            ),
            (
                "/home/foo/.netkit/netkit.conf",
                "VM_MEMORY=48\nHUB_SOCKET_DIR=$HOME/hubs\nUSE_TMUX=yes\n",
            ),
        ];
        let config = config(&files, &[("NETKIT_CON1", "pty"), ("NETKIT_MEMORY", "64")]).unwrap();
        assert_eq!(config.memory_mb, 64);
        assert_eq!(config.memory_range_mb, (8, 512));
        assert_eq!(config.consoles, [Console::Tmux, Console::Pty]);
        assert_eq!(config.emulator, Emulator::Konsole);
        assert_eq!(
            (config.pause, config.simultaneous),
            (Duration::from_secs(2), usize::MAX)
        );
        assert_eq!(config.dirs.hubs, Path::new("/home/foo/hubs"));
        assert_eq!(config.dirs.mconsole, Path::new("/home/foo/.netkit/mconsole"));
        let origin = |name: &str| config.settings.get(name).unwrap().origin.to_string();
        assert_eq!(origin("VM_MEMORY"), "environment NETKIT_MEMORY");
        assert_eq!(origin("MAX_MEM"), "/opt/netkit.conf:2");
        assert_eq!(origin("MIN_MEM"), "built in");
    }

    #[test]
    fn values_that_cannot_be_are_told_with_their_origin() {
        let error = |text: &str| format!("{:#}", config(&[("/etc/netkit.conf", text)], &[]).unwrap_err());
        assert!(error("VM_MEMORY=much").starts_with("cannot use VM_MEMORY='much' (/etc/netkit.conf:1): "));
        assert!(error("VM_CON0=hdmi").starts_with("cannot use VM_CON0='hdmi' (/etc/netkit.conf:1): "));
        assert!(
            error("VM_TRANSPORT=radio").starts_with("cannot use VM_TRANSPORT='radio' (/etc/netkit.conf:1): ")
        );
        assert!(error("VM_KERNEL=linux").ends_with("it is not an absolute path"));
        assert!(error("USE_TMUX=maybe").ends_with("it is neither TRUE nor FALSE"));
        assert!(error("VM_MEMORY=").ends_with("cannot do without a value for VM_MEMORY"));
    }
}

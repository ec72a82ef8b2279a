//! From arguments and the configuration file to a checked [`Config`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::ctl::{DomainSpec, NewPort};
use serde::Deserialize;

use crate::cli::{Gain, RunOptions};
use crate::datapath::LONGEST_HOLD;

/// How long an ingress port is held back for a full egress port, unless it is set.
pub(crate) const DEFAULT_HOLD: Duration = Duration::from_millis(100);

/// How long workers look at guests that share their memory before these are to kick, unless it is set. TCP between two UML
/// kernels, two processors for all, seven rounds in turns with the host's bridge: 0.96, 1.12, 1.10 and 1.29 times its rate
/// one way with 50, 100, 200 and 400 µs, 1.00, 1.07, 1.03 and 0.97 times both ways at once; 0.8 to 0.9 one way with 0.
pub(crate) const DEFAULT_POLL: Duration = Duration::from_micros(100);

/// Longer than any sleep takes: what is polled so long had better sleep.
const LONGEST_POLL_US: u64 = 1000;

/// What `switchd run` runs with. Nothing in it can be wrong any more.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) directory: PathBuf,
    pub(crate) hold: Duration,
    pub(crate) poll: Duration,
    pub(crate) workers: usize,
    pub(crate) idle_exit: Option<Duration>,
    pub(crate) without: Vec<Gain>,
    pub(crate) domains: Vec<(DomainSpec, Vec<NewPort>)>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not what it should be; the message has the line.
    #[error("cannot understand {path}: {problem}")]
    Parse {
        path: PathBuf,
        problem: Box<toml::de::Error>,
    },
    /// Neither an option nor the environment says where the sockets are.
    #[error("cannot tell where the sockets belong: HOME is not set\nhint: give --dir DIR")]
    NoDirectory,
    /// A hold-back that could make a guest panic.
    #[error(
        "a hold-back of {0} ms is too long: at most {most} ms keep vector guests alive",
        most = LONGEST_HOLD.as_millis()
    )]
    Hold(u64),
    /// A look for frames that would be a busy loop.
    #[error("to look for frames for {0} µs is too long: at most {LONGEST_POLL_US}")]
    Poll(u64),
    /// A worker count out of range.
    #[error("{0} workers are not possible: from 1 to {MOST_WORKERS}")]
    Workers(usize),
}

/// More threads than any machine this runs on has processors for.
const MOST_WORKERS: usize = 256;

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    dir: Option<PathBuf>,
    hold_ms: Option<u64>,
    poll_us: Option<u64>,
    workers: Option<usize>,
    #[serde(default, rename = "domain")]
    domains: Vec<FileDomain>,
}

/// A `[[domain]]` of the file: the same words as on the control socket, but for its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDomain {
    name: proto::DomainName,
    mode: Option<proto::ctl::Mode>,
    mtu: Option<u32>,
    ageing_s: Option<u64>,
    #[serde(default)]
    vde: proto::ctl::VdeAccess,
    #[serde(default)]
    ports: Vec<NewPort>,
}

impl Config {
    /// Puts options over the file over the defaults.
    pub(crate) fn new(given: Option<PathBuf>, arguments: &RunOptions) -> Result<Self, ConfigError> {
        let file = arguments
            .config
            .as_deref()
            .map_or_else(|| Ok(File::default()), read)?;
        let hold = match arguments.hold_ms.or(file.hold_ms) {
            None => DEFAULT_HOLD,
            Some(ms) if Duration::from_millis(ms) <= LONGEST_HOLD => Duration::from_millis(ms),
            Some(ms) => return Err(ConfigError::Hold(ms)),
        };
        let poll = match arguments.poll_us.or(file.poll_us) {
            None => DEFAULT_POLL,
            Some(us @ 0..=LONGEST_POLL_US) => Duration::from_micros(us),
            Some(us) => return Err(ConfigError::Poll(us)),
        };
        let workers = match arguments.workers.or(file.workers) {
            None => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MOST_WORKERS),
            Some(workers @ 1..=MOST_WORKERS) => workers,
            Some(workers) => return Err(ConfigError::Workers(workers)),
        };
        Ok(Self {
            directory: directory(given.or(file.dir))?,
            hold,
            poll,
            workers,
            idle_exit: arguments.idle_exit.map(Duration::from_secs),
            without: arguments.without.clone(),
            domains: file.domains.into_iter().map(FileDomain::spec).collect(),
        })
    }
}

impl FileDomain {
    fn spec(self) -> (DomainSpec, Vec<NewPort>) {
        let spec = DomainSpec::new(self.name);
        let spec = DomainSpec {
            mode: self.mode.unwrap_or(spec.mode),
            mtu: self.mtu.unwrap_or(spec.mtu),
            ageing_s: self.ageing_s.unwrap_or(spec.ageing_s),
            vde: self.vde,
            ..spec
        };
        (spec, self.ports)
    }
}

/// The directory of the sockets: the one given, or Netkit's.
pub(crate) fn directory(given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    match given {
        Some(directory) => Ok(directory),
        None => match std::env::var_os("HOME") {
            Some(home) if !home.is_empty() => Ok(Path::new(&home).join(".netkit/hubs")),
            _ => Err(ConfigError::NoDirectory),
        },
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        problem: Box::new(source),
    })
}

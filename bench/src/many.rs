//! One switchd with very many domains: memory, time to make them and to attach, and whether each of them works.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, recv};
use proto::ctl::DomainSpec;
use serde::Serialize;

use crate::contestant::{Contestant, StartError};
use crate::control::ControlError;
use crate::frame::{Codec, SHORTEST, Seen, To};
use crate::load::LoadError;
use crate::port::{Attach, AttachError, Port};
use crate::process::resident_kib;
use crate::stop::Stop;

/// Descriptors of this process beside those of the ports.
const SPARE: u64 = 64;
/// How long a frame may take through a domain.
const DEADLINE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Many {
    /// Domains in the process; each has two ports.
    pub domains: u32,
    /// Resident memory of the switchd without any domain, in KiB.
    pub empty_kib: u64,
    /// With the domains, but no port.
    pub domains_kib: u64,
    /// With two ports in each domain.
    pub ports_kib: u64,
    /// After a frame each way through every domain.
    pub used_kib: u64,
    /// Time to make all domains, one request after the other.
    pub create_s: f64,
    /// Time to attach all ports, one after the other.
    pub attach_s: f64,
    /// Domains through which a frame got undamaged, each way.
    pub working: u32,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ManyError {
    /// The system does not let this process have so many sockets.
    #[error("cannot open {need} descriptors, the limit is {limit}")]
    Limit {
        /// Descriptors needed.
        need: u64,
        /// What the system allows.
        limit: u64,
    },
    /// switchd did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A domain was refused.
    #[error("cannot add domain {0}")]
    Domain(u32, #[source] ControlError),
    /// A port was refused.
    #[error("cannot attach to domain {0}")]
    Attach(u32, #[source] AttachError),
    /// A frame could not be sent, or did not come.
    #[error("cannot get a frame through domain {0}")]
    Exchange(u32, #[source] io::Error),
    /// switchd is gone.
    #[error("cannot read the memory of switchd")]
    Memory(#[source] io::Error),
    /// Ctrl-C.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Makes so many domains in one switchd, attaches two ports to each, and sends a frame each way.
///
/// # Errors
/// When any of that fails.
pub fn many_domains(switchd: &Path, domains: u32, stop: &Stop) -> Result<Many, ManyError> {
    // A port is a control connection and a data socket.
    allow_descriptors(u64::from(domains) * 4 + SPARE)?;
    let daemon = Contestant::start_empty(switchd)?;
    let memory = || resident_kib(daemon.pid()).map_err(ManyError::Memory);
    let mut control = daemon.switchd()?;
    let empty_kib = memory()?;

    let begin = Instant::now();
    let mut sockets = Vec::new();
    for i in 0..domains {
        let name = format!("d{i}").parse().expect("a legal domain name");
        let socket = control.add_domain(DomainSpec::new(name));
        sockets.push(socket.map_err(|e| ManyError::Domain(i, e))?);
    }
    let create = begin.elapsed();
    let domains_kib = memory()?;

    let begin = Instant::now();
    let mut pairs = Vec::new();
    for (i, socket) in (0..).zip(&sockets) {
        if stop.is_set() {
            return Err(LoadError::Interrupted.into());
        }
        let attach = || Port::attach(Path::new(socket), Attach::Uml).map_err(|e| ManyError::Attach(i, e));
        pairs.push((attach()?, attach()?));
    }
    let attach = begin.elapsed();
    let ports_kib = memory()?;

    let mut working = 0;
    for (i, (one, other)) in (0..).zip(&pairs) {
        let codec = Codec::new(i);
        let both = pass(&codec, one, other, 0).and_then(|there| Ok(there && pass(&codec, other, one, 1)?));
        working += u32::from(both.map_err(|e| ManyError::Exchange(i, e))?);
    }
    Ok(Many {
        domains,
        empty_kib,
        domains_kib,
        ports_kib,
        used_kib: memory()?,
        create_s: create.as_secs_f64(),
        attach_s: attach.as_secs_f64(),
        working,
    })
}

/// Sends a frame from one port to the other; false if something else arrives.
fn pass(codec: &Codec, from: &Port, to: &Port, sender: u16) -> io::Result<bool> {
    let seen = Seen { sender, sequence: 0 };
    let mut frame = [0; SHORTEST];
    codec.write(&mut frame, To::All, seen);
    to.set_timeouts(DEADLINE, DEADLINE)?;
    from.set_timeouts(DEADLINE, DEADLINE)?;
    from.send(&frame, MsgFlags::empty())?;
    let mut buffer = [0; SHORTEST + 1];
    let len = loop {
        match recv(to.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    Ok(codec.read(&buffer[..len], SHORTEST, |_| To::All) == Ok(seen))
}

pub(crate) fn allow_descriptors(need: u64) -> Result<(), ManyError> {
    let refused = |limit| ManyError::Limit { need, limit };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|_| refused(0))?;
    if soft >= need {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, need.min(hard), hard).map_err(|_| refused(soft))?;
    if hard < need { Err(refused(hard)) } else { Ok(()) }
}

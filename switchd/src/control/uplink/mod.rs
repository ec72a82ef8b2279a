//! Uplinks: a program of the user's own carries a domain's frames to the host's network and answers DHCP and DNS.
//!
//! ```text
//! domain ── port ── connection ── slirp4netns ── sockets of the user
//!                      ▲
//!   a task per uplink starts it, puts the port in, starts it again when it ends, and takes it away with the port
//! ```
//!
//! The program ends with switchd, however that ends: its standard input is a pipe or a connection whose other end
//! switchd holds.

mod helper;
mod passt;
mod slirp;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::PortId;
use proto::ctl::{Error, Peer};
use proto::uplink::{Carrier, FIRST_GUEST, Publish, UplinkSpec};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::attendant::Attendant;
use super::domain::Domain;
use super::registry::{Registry, exists, failed, invalid};
use crate::datapath::NewPort;
use crate::datapath::port::{Identity, Link};
use helper::Helper;

/// The first pause before the program is started again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A program that ran for so long is trusted again.
const STEADY: Duration = Duration::from_secs(10);

/// A program that is not ready by then never will be, however busy the machine.
const START_TIME: Duration = Duration::from_secs(20);

/// Why the program does not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("{0} has ended: {1}")]
    Ended(Carrier, String),
    #[error("{0} is not ready after {seconds} s", seconds = START_TIME.as_secs())]
    Late(Carrier),
    #[error("cannot publish {0}: {1}\nhint: another program may have the port, or it is one for root")]
    Publish(Publish, String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Everything decided.
struct Plan {
    carrier: Carrier,
    program: PathBuf,
    spec: UplinkSpec,
    mtu: u32,
    /// Where the program listens, if it does.
    socket: PathBuf,
    /// Where it takes orders, if it does.
    orders: PathBuf,
}

/// A program that runs, as a port.
struct Running {
    helper: Helper,
    /// Ends with the port's link.
    gone: oneshot::Receiver<Infallible>,
}

/// Leads a domain to the Internet.
pub(super) async fn add(
    registry: &Arc<Registry>,
    domain: &Arc<Domain>,
    spec: &UplinkSpec,
) -> Result<PortId, Error> {
    let name = &domain.spec.domain;
    let (carrier, program) = choose(spec)?;
    let stem = domain.sockets.control.clone();
    if !domain.claim_uplink() {
        return Err(exists(format!("domain {name} has an uplink already")));
    }
    let id = domain.reserve(None).map_err(|id| {
        domain.release_uplink();
        failed(format!(
            "cannot add an uplink to domain {name}: port {id} is not free"
        ))
    })?;
    let plan = Plan {
        carrier,
        program,
        spec: spec.clone(),
        mtu: domain.spec.mtu,
        socket: stem.with_extension(format!("up{id}")),
        orders: stem.with_extension(format!("api{id}")),
    };
    let running = match plan.start(registry, domain, id).await {
        Ok(running) => running,
        Err(error) => {
            plan.clear();
            domain.release(id);
            domain.release_uplink();
            return Err(failed(format!("cannot add an uplink to domain {name}: {error}")));
        }
    };
    let (ours, of) = (Arc::clone(registry), Arc::clone(domain));
    let attendant = Attendant::start(|stopped| keep(ours, of, id, plan, running, stopped));
    if let Err(attendant) = domain.attend(id, attendant) {
        attendant.end().await;
        return Err(failed(format!("domain {name} has just been removed")));
    }
    Ok(id)
}

/// The program that is to carry it, and where it is.
fn choose(spec: &UplinkSpec) -> Result<(Carrier, PathBuf), Error> {
    let wanted = spec.via.as_ref().map_or(&Carrier::ALL[..], std::slice::from_ref);
    let found = wanted
        .iter()
        .find_map(|&carrier| Some((carrier, in_path(carrier.program())?)));
    let Some((carrier, program)) = found else {
        let names: Vec<_> = wanted.iter().map(|carrier| carrier.program()).collect();
        return Err(failed(format!(
            "cannot add an uplink: {} is not installed\nhint: apt-get install {}",
            names.join(" or "),
            names[0]
        )));
    };
    if let (Carrier::Passt, Some(other)) = (
        carrier,
        spec.publish
            .iter()
            .find(|publish| *publish.guest.ip() != FIRST_GUEST),
    ) {
        return Err(invalid(format!(
            "cannot publish {other}: passt serves one machine, {FIRST_GUEST}\nhint: --via slirp4netns serves many"
        )));
    }
    Ok((carrier, program))
}

/// The first executable file of that name in PATH, or where administrators' programs are.
fn in_path(name: &str) -> Option<PathBuf> {
    use nix::unistd::{AccessFlags, access};
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}

impl Plan {
    /// Starts the program and makes it the port.
    async fn start(&self, registry: &Registry, domain: &Domain, id: PortId) -> Result<Running, StartError> {
        let start = async {
            match self.carrier {
                Carrier::Slirp4netns => slirp::start(self).await,
                Carrier::Passt => passt::start(self).await,
            }
        };
        let started = tokio::time::timeout(START_TIME, start).await;
        let (helper, link): (Helper, Link) = started.map_err(|_| StartError::Late(self.carrier))??;
        let peer = helper.pid().map(|pid| Peer {
            pid,
            uid: nix::unistd::geteuid().as_raw(),
        });
        let (alive, gone) = oneshot::channel();
        let port = NewPort {
            id,
            link,
            identity: Identity::now(self.carrier.to_string(), peer),
            alive,
        };
        registry.attach(domain, port).await?;
        Ok(Running { helper, gone })
    }

    /// Removes what the program leaves.
    fn clear(&self) {
        super::domain::remove_if_there(&self.socket);
        super::domain::remove_if_there(&self.orders);
    }
}

/// Looks after an uplink until it is told to end.
async fn keep(
    registry: Arc<Registry>,
    domain: Arc<Domain>,
    id: PortId,
    plan: Plan,
    running: Running,
    mut stopped: oneshot::Receiver<()>,
) {
    let name = domain.spec.domain.clone();
    let (carrier, mut pause) = (plan.carrier, FIRST_PAUSE);
    let mut running = Some(running);
    while let Some(Running { mut helper, gone }) = running.take() {
        let since = Instant::now();
        let why = tokio::select! {
            why = helper.ended() => Some(why),
            _ = gone => Some("it has hung up".to_owned()),
            _ = &mut stopped => None,
        };
        helper.end().await;
        let Some(why) = why else { break };
        tracing::warn!("domain {name}: {carrier} has ended and is started again: {why}");
        registry.unplug(&domain, id).await;
        if since.elapsed() >= STEADY {
            pause = FIRST_PAUSE;
        }
        running = tokio::select! {
            running = restart(&registry, &domain, id, &plan, &mut pause) => Some(running),
            _ = &mut stopped => None,
        };
    }
    plan.clear();
    domain.release_uplink();
    registry.detach(&domain, id).await;
}

/// Starts the program again, as often as it takes.
async fn restart(
    registry: &Registry,
    domain: &Domain,
    id: PortId,
    plan: &Plan,
    pause: &mut Duration,
) -> Running {
    loop {
        sleep(*pause).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        match plan.start(registry, domain, id).await {
            Ok(running) => return running,
            Err(error) => tracing::warn!("domain {}: {error}", domain.spec.domain),
        }
    }
}

//! Wires over byte streams (`-netdev stream` and `socket` of QEMU): a port that outlives its connections.
//!
//! ```text
//!            connected                    ended, or a length out of range
//!   Waiting ───────────► Stream(link) ─────────────────────────────────────► Waiting
//! ```
//!
//! While it waits, frames to it are dropped as unreachable. A listening port takes one connection at a time and turns
//! further ones away; a connecting one tries again after ever longer pauses.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fabric::PortId;
use nix::sys::eventfd::{EfdFlags, EventFd};
use proto::ctl::Error;
use proto::wire::{StreamAddress, StreamSpec};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::attendant::Attendant;
use super::domain::Domain;
use super::handshake::SOCKET_BUFFER;
use super::plug::{Place, attach};
use super::registry::{Registry, failed, invalid};
use super::{accept, peer};
use crate::datapath::port::Link;
use crate::datapath::stream;

/// The first pause before connecting is tried again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A silent TCP connection is probed after so long, and given up some three such times later.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Where connections come from.
enum Source {
    Unix(UnixListener),
    Tcp(TcpListener),
    Connect(StreamAddress),
}

/// Attaches a stream.
pub(super) async fn add(place: Place<'_>, spec: &StreamSpec) -> Result<PortId, Error> {
    let name = match spec.listen {
        true => format!("stream at {}", spec.address),
        false => format!("stream to {}", spec.address),
    };
    if let StreamAddress::Unix(path) = &spec.address
        && !path.is_absolute()
    {
        return Err(invalid(format!("cannot attach {name}: the path is not absolute")));
    }
    let cannot = |error: io::Error| failed(format!("cannot attach {name}: {error}"));
    let source = Source::open(spec).await.map_err(cannot)?;
    let file = match (&source, &spec.address) {
        (Source::Unix(_), StreamAddress::Unix(path)) => Some(path.clone()),
        _ => None,
    };
    let id = place.reserve(&name)?;
    if let Some(path) = file {
        place.domain.own_file(id, path);
    }
    let (registry, domain) = (Arc::clone(place.registry), Arc::clone(place.domain));
    let wire = Wire {
        registry,
        domain,
        id,
        name: name.clone(),
    };
    if let Err(error) = wire.wait().await {
        place.domain.release(id);
        return Err(cannot(error));
    }
    let attendant = Attendant::start(|stopped| wire.tend(source, stopped));
    if let Err(attendant) = place.domain.attend(id, attendant) {
        attendant.end().await;
        return Err(failed(format!(
            "cannot attach {name}: the domain is being removed"
        )));
    }
    Ok(id)
}

/// A port and what it is made anew with.
struct Wire {
    registry: Arc<Registry>,
    domain: Arc<Domain>,
    id: PortId,
    name: String,
}

impl Wire {
    /// Keeps the port until it is told to stop.
    async fn tend(self, source: Source, mut stopped: oneshot::Receiver<()>) {
        loop {
            let connection = tokio::select! {
                _ = &mut stopped => break,
                connection = source.next(&self.registry) => connection,
            };
            let gone = match self.connect(connection).await {
                Ok(gone) => gone,
                Err(error) => {
                    tracing::warn!("domain {}: {}: {error}", self.domain.spec.domain, self.name);
                    break;
                }
            };
            tokio::select! {
                _ = &mut stopped => break,
                () = source.turn_away() => unreachable!("goes on for ever"),
                _ = gone => {}
            }
            if self.wait().await.is_err() {
                break;
            }
        }
        self.registry.detach(&self.domain, self.id).await;
    }

    /// Puts a connection in the place of the port.
    async fn connect(&self, connection: OwnedFd) -> io::Result<oneshot::Receiver<std::convert::Infallible>> {
        let link = Link::Stream(stream::Link::new(connection)?);
        self.registry.unplug(&self.domain, self.id).await;
        attach(&self.registry, &self.domain, self.id, &self.name, link).await
    }

    /// Puts nothing in its place.
    async fn wait(&self) -> io::Result<()> {
        let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let link = Link::Waiting("stream", never);
        attach(&self.registry, &self.domain, self.id, &self.name, link)
            .await
            .map(drop)
    }
}

impl Source {
    async fn open(spec: &StreamSpec) -> io::Result<Self> {
        Ok(match (&spec.address, spec.listen) {
            (StreamAddress::Unix(path), true) => {
                let listener = netio::unix::listen(path)?;
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
            (StreamAddress::Tcp(address), true) => Self::Tcp(TcpListener::bind(address).await?),
            (address, false) => Self::Connect(address.clone()),
        })
    }

    /// The next connection, however long it takes.
    async fn next(&self, registry: &Registry) -> OwnedFd {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_next(registry).await {
                Ok(connection) => return connection,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_next(&self, registry: &Registry) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener) => {
                let stream = listener.accept().await?.0;
                let peer = peer::credentials(&stream)?;
                if !registry.admits(peer.uid) {
                    registry.refuse_control("foreign-user");
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                unix(stream)
            }
            Self::Tcp(listener) => tcp(listener.accept().await?.0),
            Self::Connect(StreamAddress::Unix(path)) => unix(UnixStream::connect(path).await?),
            Self::Connect(StreamAddress::Tcp(address)) => tcp(TcpStream::connect(address).await?),
        }
    }

    /// Closes further connections as they come; never returns.
    async fn turn_away(&self) {
        loop {
            let accepted = match self {
                Self::Unix(listener) => listener.accept().await.map(drop),
                Self::Tcp(listener) => listener.accept().await.map(drop),
                Self::Connect(_) => std::future::pending().await,
            };
            if accepted.is_err() {
                sleep(accept::PAUSE).await;
            }
        }
    }
}

fn unix(stream: UnixStream) -> io::Result<OwnedFd> {
    netio::unix::set_buffers(&stream, SOCKET_BUFFER)?;
    Ok(stream.into_std()?.into())
}

/// Frames go out at once, and a peer that has vanished is noticed.
fn tcp(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(2);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream.into_std()?.into())
}

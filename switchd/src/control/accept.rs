//! Clients of a domain: accepted, heard, made into ports, and watched until they end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::PortId;
use proto::ctl::Peer;
use proto::uml::{Kind, Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::domain::{Domain, Entry};
use super::handshake::{DataPath, Refusal, SOCKET_BUFFER, data_socket, read_request, unnamed_socket};
use super::peer;
use super::registry::Registry;
use super::vde;
use crate::datapath::port::{Identity, Link};
use crate::datapath::{NewPort, uml};

/// Connections of a domain that may be without a request at a time.
const PENDING: usize = 256;

/// Before one more of them is accepted, the oldest has had so long to speak up: more than a client needs that sends
/// its request at once, little enough that thousands of silent connections do not keep a client out.
const GRACE: Duration = Duration::from_millis(50);

/// After the system ran out of descriptors, nobody is accepted for so long.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// A connection whose request is awaited.
struct Pending {
    since: Instant,
    hearing: AbortHandle,
}

/// Accepts clients of a domain for as long as the domain exists.
pub(crate) async fn accept(
    registry: Arc<Registry>,
    domain: Arc<Domain>,
    listener: UnixListener,
    entry: Entry,
) {
    let mut pending: VecDeque<Pending> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("domain {}: cannot accept a client: {error}", domain.spec.domain);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        pending.retain(|client| !client.hearing.is_finished());
        if pending.len() >= PENDING {
            make_room(&registry, &domain, &mut pending).await;
        }
        let hearing = hear(Arc::clone(&registry), Arc::clone(&domain), stream, entry);
        pending.push_back(Pending {
            since: Instant::now(),
            hearing: tokio::spawn(hearing).abort_handle(),
        });
    }
}

/// Ends the oldest connections that have been silent for as long as a client may be when there is a crowd.
async fn make_room(registry: &Registry, domain: &Domain, pending: &mut VecDeque<Pending>) {
    while pending.len() >= PENDING {
        if let Some(oldest) = pending.front() {
            tokio::time::sleep_until((oldest.since + GRACE).into()).await;
        }
        let now = Instant::now();
        pending.retain(|client| !client.hearing.is_finished());
        while pending.front().is_some_and(|oldest| oldest.since + GRACE <= now) {
            if let Some(oldest) = pending.pop_front() {
                oldest.hearing.abort();
                registry.refuse(domain, &Refusal::Crowded);
            }
        }
    }
}

/// Hears a client. What follows its request is left to a task of its own, which nobody ends half-way.
async fn hear(registry: Arc<Registry>, domain: Arc<Domain>, mut stream: UnixStream, entry: Entry) {
    match request(&registry, &domain, &mut stream, entry).await {
        Ok((peer, request)) => {
            let client = Client { peer, request, entry };
            drop(tokio::spawn(serve(registry, domain, stream, client)));
        }
        Err(refusal) => registry.refuse(&domain, &refusal),
    }
}

async fn request(
    registry: &Registry,
    domain: &Domain,
    stream: &mut UnixStream,
    entry: Entry,
) -> Result<(Peer, Request), Refusal> {
    let peer = peer::credentials(&*stream)?;
    let by_permissions = entry == Entry::Vde && vde::is_shared(&domain.spec.vde);
    if !by_permissions && !registry.admits(peer.uid) {
        return Err(Refusal::Foreign(peer.uid));
    }
    Ok((peer, read_request(stream).await?))
}

/// A client that has made its request.
struct Client {
    peer: Peer,
    request: Request,
    entry: Entry,
}

/// Makes a client a port and stays with it to its end.
async fn serve(registry: Arc<Registry>, domain: Arc<Domain>, mut stream: UnixStream, client: Client) {
    match become_port(&registry, &domain, &mut stream, &client).await {
        Ok(port) => {
            port.live(&registry, &domain, hung_up(&mut stream)).await;
            if client.request.version == Version::V0 {
                domain.forget_shared(client.request.client);
            }
        }
        Err(refusal) => registry.refuse(&domain, &refusal),
    }
}

async fn become_port(
    registry: &Registry,
    domain: &Arc<Domain>,
    stream: &mut UnixStream,
    client: &Client,
) -> Result<LivePort, Refusal> {
    let number = match client.request.kind {
        Kind::Port { number } => number,
        Kind::Dump => None,
    };
    let id = domain.reserve(number).map_err(Refusal::Taken)?;
    match attach(registry, domain, stream, id, client).await {
        Ok(gone) => Ok(LivePort {
            id,
            peer: Some(client.peer),
            gone,
        }),
        Err(refusal) => {
            domain.release(id);
            Err(refusal)
        }
    }
}

/// Makes the port and tells the client where to send.
async fn attach(
    registry: &Registry,
    domain: &Arc<Domain>,
    stream: &mut UnixStream,
    id: PortId,
    client: &Client,
) -> Result<oneshot::Receiver<Infallible>, Refusal> {
    let Client { peer, request, entry } = client;
    let dump = *entry == Entry::Uml && is_dump(request);
    let queue = if dump { SOCKET_BUFFER } else { domain.queue_bytes() };
    let (link, reply) = if request.version == Version::V0 {
        let inbound = domain.shared_socket()?.route(request.client)?;
        (
            uml::Link::with_inbound(unnamed_socket(request.client, queue)?, inbound),
            None,
        )
    } else {
        let place = domain.data_path(*entry, id);
        let (socket, address) = data_socket(&place, request.client, queue)?;
        if let (Entry::Vde, DataPath::File(path)) = (entry, &place) {
            vde::open_to_clients(path, &domain.spec.vde)?;
        }
        (uml::Link::new(socket), Some(address))
    };
    let (link, socket) = match entry {
        Entry::Uml if dump => (Link::Dump(link), Some(&domain.sockets.control)),
        Entry::Uml => (Link::Uml(link), Some(&domain.sockets.control)),
        Entry::Vde => (Link::Vde(link), domain.sockets.vde.as_ref()),
    };
    let name = peer::name(
        *peer,
        socket.map_or(Path::new(""), |path| path),
        &request.description,
    );
    let (alive, gone) = oneshot::channel();
    let identity = Identity::now(name, Some(*peer));
    registry
        .attach(
            domain,
            NewPort {
                id,
                link,
                identity,
                alive,
            },
        )
        .await?;
    if let Some(address) = reply
        && stream.write_all(&address.to_bytes()).await.is_err()
    {
        registry.detach(domain, id).await;
        return Err(Refusal::HungUp);
    }
    Ok(gone)
}

/// True for netkit-jh's dump port. The same type of request with a path is a VDE client's for port 0, a port like any
/// other here.
fn is_dump(request: &Request) -> bool {
    request.kind == Kind::Dump && request.client.path().is_none()
}

/// A port as the control side sees it.
pub(super) struct LivePort {
    pub(super) id: PortId,
    /// The process whose end is the port's; a device has none.
    pub(super) peer: Option<Peer>,
    /// Ends with the port's link.
    pub(super) gone: oneshot::Receiver<Infallible>,
}

impl LivePort {
    /// Waits for the end of the client, by whichever sign it shows first, and removes the port.
    pub(super) async fn live(
        self,
        registry: &Registry,
        domain: &Arc<Domain>,
        hung_up: impl Future<Output = ()>,
    ) {
        let Self { id, peer, gone } = self;
        let name = &domain.spec.domain;
        tracing::debug!("domain {name}: port {id} attached");
        let ended = async {
            let Some(peer) = peer else {
                return std::future::pending().await;
            };
            if let Err(error) = peer::ended(peer).await {
                tracing::warn!("domain {name}: cannot watch pid {}: {error}", peer.pid);
                std::future::pending().await
            }
        };
        let why = tokio::select! {
            () = hung_up => "hung up",
            () = ended => "its process has ended",
            _ = gone => "its socket or device is closed",
        };
        tracing::debug!("domain {name}: port {id} has left: {why}");
        registry.detach(domain, id).await;
    }
}

/// Waits for the end of the connection. Whatever a client says after its request is ignored.
async fn hung_up(stream: &mut UnixStream) {
    let mut bytes = [0; 256];
    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
}

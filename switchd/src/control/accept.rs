//! Clients of a domain: accepted, heard, made into ports, and watched until they end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fabric::PortId;
use proto::ctl::Peer;
use proto::uml::{Kind, Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::domain::Domain;
use super::handshake::{Refusal, data_socket, read_request, unnamed_socket};
use super::peer;
use super::registry::Registry;
use crate::datapath::port::{Identity, Link};
use crate::datapath::{NewPort, uml};

/// Connections of a domain that have not sent their request yet. One more ends the oldest of them, so a flood of them
/// does not keep out a client that speaks up.
const PENDING: usize = 64;

/// After the system ran out of descriptors, nobody is accepted for so long.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients of a domain for as long as the domain exists.
pub(crate) async fn accept(registry: Arc<Registry>, domain: Arc<Domain>, listener: UnixListener) {
    let mut pending: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("domain {}: cannot accept a client: {error}", domain.spec.domain);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        pending.retain(|handshake| !handshake.is_finished());
        if pending.len() == PENDING
            && let Some(oldest) = pending.pop_front()
        {
            oldest.abort();
            registry.refuse(&domain, &Refusal::Crowded);
        }
        let handshake = shake_hands(Arc::clone(&registry), Arc::clone(&domain), stream);
        pending.push_back(tokio::spawn(handshake).abort_handle());
    }
}

/// Hears a client and, if it is to become a port, leaves that to a task of its own.
async fn shake_hands(registry: Arc<Registry>, domain: Arc<Domain>, mut stream: UnixStream) {
    match become_port(&registry, &domain, &mut stream).await {
        Ok(port) => drop(tokio::spawn(port.live(registry, domain, stream))),
        Err(refusal) => registry.refuse(&domain, &refusal),
    }
}

/// A port as its control connection sees it.
struct LivePort {
    id: PortId,
    peer: Peer,
    request: Request,
    gone: oneshot::Receiver<std::convert::Infallible>,
}

async fn become_port(
    registry: &Registry,
    domain: &Arc<Domain>,
    stream: &mut UnixStream,
) -> Result<LivePort, Refusal> {
    let peer = peer::credentials(stream)?;
    if !registry.admits(peer.uid) {
        return Err(Refusal::Foreign(peer.uid));
    }
    let request = read_request(stream).await?;
    let Kind::Port { number } = request.kind else {
        return Err(Refusal::Unsupported(
            "dump ports are not supported; use 'switchd capture'",
        ));
    };
    let id = domain.reserve(number).map_err(Refusal::Taken)?;
    match attach(registry, domain, stream, id, peer, &request).await {
        Ok(gone) => Ok(LivePort {
            id,
            peer,
            request,
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
    peer: Peer,
    request: &Request,
) -> Result<oneshot::Receiver<std::convert::Infallible>, Refusal> {
    let (link, reply) = if request.version == Version::V0 {
        let inbound = domain.shared_socket()?.route(request.client)?;
        (
            uml::Link::with_inbound(unnamed_socket(request.client)?, inbound),
            None,
        )
    } else {
        let (socket, address) = data_socket(&domain.data_path(id), request.client)?;
        (uml::Link::new(socket), Some(address))
    };
    let name = match request.description.as_str() {
        "" => peer::name(peer, &domain.sockets.control),
        description => description.to_owned(),
    };
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (alive, gone) = oneshot::channel();
    let identity = Identity {
        name,
        peer: Some(peer),
        since,
    };
    registry
        .attach(
            domain,
            NewPort {
                id,
                link: Link::Uml(link),
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

impl LivePort {
    /// Waits for the end of the client, by whichever sign it shows first, and removes the port.
    async fn live(self, registry: Arc<Registry>, domain: Arc<Domain>, mut stream: UnixStream) {
        let Self {
            id,
            peer,
            request,
            gone,
        } = self;
        tracing::debug!(
            "domain {}: port {id} attached by pid {}",
            domain.spec.domain,
            peer.pid
        );
        let why = tokio::select! {
            () = hung_up(&mut stream) => "hung up",
            result = peer::ended(peer) => match result {
                Ok(()) => "its process has ended",
                Err(error) => {
                    tracing::warn!("domain {}: cannot watch pid {}: {error}", domain.spec.domain, peer.pid);
                    hung_up(&mut stream).await;
                    "hung up"
                }
            },
            _ = gone => "its data socket is closed",
        };
        tracing::debug!("domain {}: port {id} has left: {why}", domain.spec.domain);
        if request.version == Version::V0 {
            domain.forget_shared(request.client);
        }
        registry.detach(&domain, id).await;
    }
}

/// Waits for the end of the connection. Whatever a client says after its request is ignored.
async fn hung_up(stream: &mut UnixStream) {
    let mut bytes = [0; 256];
    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
}

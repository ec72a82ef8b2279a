//! Vector guests of a domain (`vecN:transport=bess`): there is no handshake, a connection is a port.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::accept::{LivePort, PAUSE};
use super::domain::Domain;
use super::handshake::Refusal;
use super::peer;
use super::registry::Registry;
use crate::datapath::port::{Identity, Link};
use crate::datapath::{NewPort, bess};

/// Accepts clients of a domain for as long as the domain exists.
pub(crate) async fn accept(registry: Arc<Registry>, domain: Arc<Domain>, listener: OwnedFd) {
    let name = &domain.spec.domain;
    let listener = match netio::watch::readable(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("domain {name}: cannot wait for vector guests: {error}");
            return;
        }
    };
    loop {
        let accepted = match listener.readable().await {
            Ok(mut ready) => ready.try_io(|listener| netio::unix::accept(listener.get_ref())),
            Err(error) => Ok(Err(error)),
        };
        let connection = match accepted {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::warn!("domain {name}: cannot accept a vector guest: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // Somebody who was waiting has changed his mind.
            Err(_) => continue,
        };
        match become_port(&registry, &domain, connection).await {
            Ok(port) => {
                let (registry, domain) = (Arc::clone(&registry), Arc::clone(&domain));
                // The data path sees the connection's end.
                tokio::spawn(async move { port.live(&registry, &domain, std::future::pending()).await });
            }
            Err(refusal) => registry.refuse(&domain, &refusal),
        }
    }
}

async fn become_port(
    registry: &Registry,
    domain: &Arc<Domain>,
    connection: OwnedFd,
) -> Result<LivePort, Refusal> {
    let peer = peer::credentials(&connection)?;
    if !registry.admits(peer.uid) {
        return Err(Refusal::Foreign(peer.uid));
    }
    netio::unix::set_queue(&connection, domain.queue_bytes())?;
    let socket = domain.sockets.bess.as_deref().unwrap_or(Path::new(""));
    let id = domain.reserve(None).map_err(Refusal::Taken)?;
    let (alive, gone) = oneshot::channel();
    let port = NewPort {
        id,
        link: Link::Bess(bess::Link::new(connection)),
        identity: Identity::now(peer::name(peer, socket, ""), Some(peer)),
        alive,
    };
    match registry.attach(domain, port).await {
        Ok(()) => Ok(LivePort {
            id,
            peer: Some(peer),
            gone,
        }),
        Err(error) => {
            domain.release(id);
            Err(error.into())
        }
    }
}

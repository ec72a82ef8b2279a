//! Cables between two domains: a pair of sockets, one end a port here, the other a port there. A domain knows nothing
//! of the other, and whichever end goes takes the other along.

use std::collections::BTreeSet;
use std::sync::Arc;

use fabric::PortId;
use proto::DomainName;
use proto::ctl::Error;

use super::domain::Domain;
use super::handshake::SOCKET_BUFFER;
use super::plug::Place;
use super::registry::{Registry, exists, failed, invalid};
use crate::datapath::bess;
use crate::datapath::port::Link;

/// Ties the place's domain to another; the number is that of the port here.
pub(super) async fn add(place: Place<'_>, to: &DomainName) -> Result<PortId, Error> {
    let from = &place.domain.spec.domain;
    if from == to {
        return Err(invalid(format!(
            "cannot link {from} to itself: frames would circle"
        )));
    }
    let other = place.registry.find(to)?;
    if reaches(place.registry, &other, from) {
        return Err(exists(format!(
            "cannot link {from} and {to}: a cable leads from one to the other already, and frames would circle\n\
             hint: 'switchd port ls' shows the ports of kind link, 'switchd port rm' ends one"
        )));
    }
    let pair = || {
        let (a, b) = netio::unix::seqpacket_pair()?;
        netio::unix::set_buffers(&a, SOCKET_BUFFER)?;
        netio::unix::set_buffers(&b, SOCKET_BUFFER)?;
        Ok((a, b))
    };
    let (here, there) =
        pair().map_err(|error: std::io::Error| failed(format!("cannot link {from} and {to}: {error}")))?;
    let far = Place {
        registry: place.registry,
        domain: &other,
        secure: &[],
    };
    let far_id = far
        .plug(&format!("to {from}"), Link::Cable(bess::Link::new(there)))
        .await?;
    // If this fails, its end of the pair is closed, and the port over there goes.
    let id = place
        .plug(&format!("to {to}"), Link::Cable(bess::Link::new(here)))
        .await?;
    place.domain.set_cable(id, to.clone());
    other.set_cable(far_id, from.clone());
    Ok(id)
}

/// True if cables lead from a domain to another.
fn reaches(registry: &Registry, from: &Arc<Domain>, to: &DomainName) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![Arc::clone(from)];
    while let Some(domain) = next.pop() {
        for neighbour in domain.cables() {
            if neighbour == *to {
                return true;
            }
            if seen.insert(neighbour.clone())
                && let Ok(neighbour) = registry.find(&neighbour)
            {
                next.push(neighbour);
            }
        }
    }
    false
}

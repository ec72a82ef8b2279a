//! Interfaces of the host as ports. tapctl opens the packet socket: for the client, who hands it over, or for the daemon,
//! whose configuration wants it.

use std::os::fd::OwnedFd;

use fabric::PortId;
use proto::ctl::Error;
use proto::nic::{NicSpec, SniffSpec};

use super::plug::Place;
use super::registry::{failed, invalid};
use crate::datapath::nic;
use crate::datapath::port::Link;
use crate::handover::{self, Asker};

/// Joins a domain to an interface.
pub(super) async fn add(place: Place<'_>, spec: &NicSpec, socket: Option<OwnedFd>) -> Result<PortId, Error> {
    let name = match spec.vlan {
        Some(vlan) => format!("{}.{vlan}", spec.interface),
        None => spec.interface.clone(),
    };
    spec.check()
        .map_err(|error| invalid(format!("cannot attach {name}: {error}")))?;
    let wanted = spec.clone();
    let socket = opened(&name, socket, move || handover::nic(&wanted, Asker::Daemon)).await?;
    place
        .plug(&name, Link::Nic(nic::Link::new(socket, spec.vlan)))
        .await
}

/// Lets a domain listen to an interface.
pub(super) async fn sniff(
    place: Place<'_>,
    spec: &SniffSpec,
    socket: Option<OwnedFd>,
) -> Result<PortId, Error> {
    let name = &spec.interface;
    let wanted = spec.clone();
    let socket = opened(name, socket, move || handover::sniff(&wanted, Asker::Daemon)).await?;
    place.plug(name, Link::Sniff(nic::Link::new(socket, None))).await
}

/// The socket that has come with the request, or else one that is opened now.
async fn opened(
    name: &str,
    handed: Option<OwnedFd>,
    open: impl FnOnce() -> anyhow::Result<OwnedFd> + Send + 'static,
) -> Result<OwnedFd, Error> {
    let socket = match handed {
        Some(socket) => socket,
        None => super::plug::elsewhere(name, open).await?,
    };
    match netio::packet::interface(&socket) {
        Ok(Some(1..)) => Ok(socket),
        Ok(_) => Err(failed(format!(
            "cannot attach {name}: the interface has just gone"
        ))),
        Err(error) => Err(invalid(format!("cannot attach {name}: {error}"))),
    }
}

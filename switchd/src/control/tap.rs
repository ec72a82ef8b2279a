//! Tap devices of the host as ports: attached by request, gone when the device is.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use fabric::PortId;
use netio::tap::{IfName, Offload, Tap};
use proto::ctl::{Error, ErrorCode};

use super::plug::Place;
use super::registry::{failed, invalid};
use crate::datapath::port::Link;
use crate::datapath::tap;
use crate::handover;

/// Attaches a tap device that exists.
pub(super) async fn add(place: Place<'_>, name: &str) -> Result<PortId, Error> {
    let interface: IfName = name.parse().map_err(|error| invalid(format!("{error}")))?;
    // Opening would make a device that is not there, and root would never notice a slip of the pen.
    if nix::net::if_::if_nametoindex(interface.as_str()).is_err() {
        return Err(Error {
            code: ErrorCode::NotFound,
            message: format!(
                "cannot attach {name}: there is no such device\n\
                 hint: root can make it: ip tuntap add dev {name} mode tap user USER"
            ),
        });
    }
    let device = Tap::open_offloaded(&interface)
        .map_err(|error| failed(format!("cannot attach {name}: {error}{}", hint(name, &error))))?;
    if !place.registry.offload {
        Tap::set_offload(&device, Offload::default())
            .map_err(|error| failed(format!("cannot have {name} finish its frames: {error}")))?;
    }
    place.plug(name, Link::Tap(tap::Link::with_offload(device))).await
}

/// Attaches a tap device that somebody else has opened, by the name it is to have here.
pub(super) async fn add_handed(
    place: Place<'_>,
    name: &str,
    device: Option<OwnedFd>,
) -> Result<PortId, Error> {
    let device = device.ok_or_else(|| {
        invalid(format!(
            "cannot attach {name}: its descriptor is to come with the line"
        ))
    })?;
    Tap::check_offloaded(&device).map_err(|error| invalid(format!("cannot attach {name}: {error}")))?;
    place.plug(name, Link::Tap(tap::Link::with_offload(device))).await
}

/// Makes a tap in a network namespace.
pub(super) async fn add_placed(place: Place<'_>, path: &Path, name: &str) -> Result<PortId, Error> {
    let interface: IfName = name.parse().map_err(|error| invalid(format!("{error}")))?;
    let path = path.to_owned();
    let device = super::plug::elsewhere(name, move || handover::tap_in(&path, &interface)).await?;
    place.plug(name, Link::Tap(tap::Link::with_offload(device))).await
}

fn hint(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            format!(
                "\nhint: it belongs to somebody else; root can make one of yours: ip tuntap add dev {name} mode tap user USER"
            )
        }
        Some(libc::EBUSY) => "\nhint: another program has it".to_owned(),
        Some(libc::EINVAL) => "\nhint: it is no tap device".to_owned(),
        _ => String::new(),
    }
}

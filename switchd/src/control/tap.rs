//! Tap devices of the host as ports: attached by request, gone when the device is.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fabric::PortId;
use netio::tap::{IfName, Offload, Tap, TapFlags};
use proto::ctl::{Error, ErrorCode};
use tokio::sync::oneshot;

use super::accept::LivePort;
use super::domain::Domain;
use super::registry::{Registry, failed, invalid};
use crate::datapath::port::{Identity, Link};
use crate::datapath::{NewPort, tap};

/// Attaches a tap device that exists.
pub(super) async fn add(registry: &Arc<Registry>, domain: &Arc<Domain>, name: &str) -> Result<PortId, Error> {
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
    let link = open(&interface)
        .map_err(|error| failed(format!("cannot attach {name}: {error}{}", hint(name, &error))))?;
    let taken = |id| failed(format!("cannot attach {name}: port {id} is not free"));
    let id = domain.reserve(None).map_err(taken)?;
    let (alive, gone) = oneshot::channel();
    let port = NewPort {
        id,
        link: Link::Tap(link),
        identity: Identity::now(name.to_owned(), None),
        alive,
    };
    if let Err(error) = registry.attach(domain, port).await {
        domain.release(id);
        return Err(failed(format!("cannot attach {name}: {error}")));
    }
    let port = LivePort { id, peer: None, gone };
    let (registry, domain) = (Arc::clone(registry), Arc::clone(domain));
    // The data path sees the device's end.
    tokio::spawn(async move { port.live(&registry, &domain, std::future::pending()).await });
    Ok(id)
}

/// Opens a tap with as much offload as the kernel has.
fn open(name: &IfName) -> io::Result<tap::Link> {
    let device = match open_queue(name, false) {
        // It was made for several queues, of which we take one.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open_queue(name, true)?,
        result => result?,
    };
    let all = Offload {
        checksum: true,
        tso4: true,
        tso6: true,
        uso: true,
    };
    // UDP is cut by kernels from 6.2 on.
    for offload in [all, Offload { uso: false, ..all }] {
        if Tap::set_offload(&device, offload).is_ok() {
            break;
        }
    }
    Ok(tap::Link::with_offload(device))
}

fn open_queue(name: &IfName, multi_queue: bool) -> io::Result<OwnedFd> {
    let flags = TapFlags {
        vnet_hdr: true,
        multi_queue,
        exclusive: false,
    };
    let (device, _) = Tap::open(name, flags)?;
    Tap::set_vnet_hdr_len(&device, 10)?;
    Ok(device)
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

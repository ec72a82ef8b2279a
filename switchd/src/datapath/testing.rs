//! What unit tests of the data path share.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use socket2::{Domain as Family, Socket, Type};
use tokio::sync::oneshot;

use super::port::{Identity, Link};
use super::{NewPort, PortId, bess};

/// A vector guest's port, the guest's end of it, and what tells when the port has gone.
pub(crate) fn vector_port(id: u32) -> (NewPort, Socket, oneshot::Receiver<Infallible>) {
    let (ours, theirs) = Socket::pair(Family::UNIX, Type::SEQPACKET, None).unwrap();
    ours.set_nonblocking(true).unwrap();
    let (alive, gone) = oneshot::channel();
    let port = NewPort {
        id: PortId(id),
        link: Link::Bess(bess::Link::new(OwnedFd::from(ours))),
        identity: Identity::now(format!("pc{id}:eth0"), None),
        alive,
    };
    (port, theirs, gone)
}

//! What unit tests of the data path share.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use socket2::{Domain as Family, Socket, Type};
use tokio::sync::oneshot;

use super::port::{Identity, Link};
use super::worker::Worker;
use super::{Command, DomainId, NewPort, PortId, bess};

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

/// Attaches such a port to a domain of a worker that is stepped by hand; the guest's end of it does not wait.
pub(crate) fn attach(
    worker: &mut Worker,
    domain: DomainId,
    id: u32,
) -> (Socket, oneshot::Receiver<Infallible>) {
    let (port, guest, gone) = vector_port(id);
    guest.set_nonblocking(true).unwrap();
    let (done, mut attached) = oneshot::channel();
    worker.obey(Command::Attach(domain, Box::new(port), done));
    attached.try_recv().unwrap().unwrap();
    (guest, gone)
}

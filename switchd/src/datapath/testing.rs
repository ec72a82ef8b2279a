//! What unit tests of the data path share.

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use socket2::{Domain as Family, Socket, Type};
use tokio::sync::oneshot;

use super::port::{Identity, Link};
use super::worker::Worker;
use super::{Command, DomainId, NewPort, PortId, bess, tap};

/// A vector guest's port, the guest's end of it, and what tells when the port has gone.
pub(crate) fn vector_port(id: u32) -> (NewPort, Socket, oneshot::Receiver<Infallible>) {
    port(id, |fd| Link::Bess(bess::Link::new(fd)))
}

/// A port over one end of a pair of sockets that keeps records apart.
fn port(id: u32, link: impl Fn(OwnedFd) -> Link) -> (NewPort, Socket, oneshot::Receiver<Infallible>) {
    let (ours, theirs) = Socket::pair(Family::UNIX, Type::SEQPACKET, None).unwrap();
    ours.set_nonblocking(true).unwrap();
    let (alive, gone) = oneshot::channel();
    let port = NewPort {
        id: PortId(id),
        link: link(OwnedFd::from(ours)),
        identity: Identity::now(format!("pc{id}:eth0"), None),
        alive,
    };
    (port, theirs, gone)
}

/// Attaches a vector guest's port to a domain of a worker that is stepped by hand; the guest's end of it does not wait.
pub(crate) fn attach(
    worker: &mut Worker,
    domain: DomainId,
    id: u32,
) -> (Socket, oneshot::Receiver<Infallible>) {
    attach_port(worker, domain, vector_port(id))
}

/// The same with a port that takes each record for what a tap device gives: a frame behind a virtio header.
pub(crate) fn attach_tap(
    worker: &mut Worker,
    domain: DomainId,
    id: u32,
) -> (Socket, oneshot::Receiver<Infallible>) {
    let tap = port(id, |fd| Link::Tap(tap::Link::with_offload(fd)));
    attach_port(worker, domain, tap)
}

fn attach_port(
    worker: &mut Worker,
    domain: DomainId,
    (port, guest, gone): (NewPort, Socket, oneshot::Receiver<Infallible>),
) -> (Socket, oneshot::Receiver<Infallible>) {
    guest.set_nonblocking(true).unwrap();
    let (done, mut attached) = oneshot::channel();
    worker.obey(Command::Attach(domain, Box::new(port), done));
    attached.try_recv().unwrap().unwrap();
    (guest, gone)
}

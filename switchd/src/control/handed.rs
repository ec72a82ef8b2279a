//! Connected sockets that a client of the control socket hands over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use fabric::PortId;
use proto::ctl::Error;
use socket2::{Domain, SockRef, Type};

use super::handshake::SOCKET_BUFFER;
use super::plug::Place;
use super::registry::{failed, invalid};
use crate::datapath::port::Link;
use crate::datapath::{bess, stream, uml, wire};

/// Makes a port of a descriptor. What is called `name` says the client.
pub(super) async fn add(place: Place<'_>, name: &str, fd: Option<OwnedFd>) -> Result<PortId, Error> {
    let name = if name.is_empty() { "fd" } else { name };
    let fd = fd.ok_or_else(|| {
        invalid(format!(
            "cannot attach {name}: no descriptor came with the request"
        ))
    })?;
    let kept = fd
        .try_clone()
        .map_err(|error| failed(format!("cannot attach {name}: {error}")))?;
    let link = link(fd, place.domain.queue_bytes()).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::ENOTSOCK) => "\nhint: it must be one end of a socketpair, or another connected socket",
            _ => "",
        };
        invalid(format!("cannot attach {name}: {error}{hint}"))
    })?;
    let id = place.plug(name, link).await?;
    place.domain.own_socket(id, kept);
    Ok(id)
}

/// A record or a datagram is a frame; in a byte stream each frame stands behind its length.
fn link(fd: OwnedFd, queue: usize) -> io::Result<Link> {
    let socket = SockRef::from(&fd);
    let (kind, domain) = (socket.r#type()?, socket.domain()?);
    // Neither a listener nor a socket that leads nowhere.
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    match (kind, domain) {
        (Type::SEQPACKET | Type::DGRAM, Domain::UNIX) => netio::unix::set_queue(&fd, queue)?,
        (_, Domain::UNIX) => netio::unix::set_buffers(&fd, SOCKET_BUFFER)?,
        _ => {}
    }
    match (kind, domain) {
        (Type::SEQPACKET, Domain::UNIX) => Ok(Link::Fd(bess::Link::new(fd))),
        (Type::DGRAM, Domain::UNIX) => Ok(Link::FdDgram(uml::Link::new(UnixDatagram::from(fd)))),
        (Type::DGRAM, _) => Ok(Link::Wire(wire::Link::plain("fd", fd))),
        (Type::STREAM, _) => Ok(Link::FdStream(stream::Link::new(fd)?)),
        _ => Err(io::Error::from_raw_os_error(libc::ESOCKTNOSUPPORT)),
    }
}

//! Wires over datagrams: their sockets are opened here, and carry frames at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use fabric::PortId;
use proto::ctl::Error;
use proto::tunnel::{IP_GRE, IP_L2TPV3, Tunnel};
use proto::wire::{DgramSpec, GreSpec, L2tpv3Spec, McastSpec, SpecError, UdpSpec};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

use super::handshake::SOCKET_BUFFER;
use super::plug::Place;
use super::registry::{failed, invalid};
use crate::datapath::port::Link;
use crate::datapath::wire::{self, Outbound};

/// An L2TPv3 session.
pub(super) async fn l2tpv3(place: Place<'_>, spec: &L2tpv3Spec) -> Result<PortId, Error> {
    let name = format!("l2tpv3 {} to {}", spec.local, spec.remote);
    let tunnel = Tunnel::l2tpv3(spec).map_err(|error| wrong(&name, &error))?;
    let (local, remote) = (spec.local, spec.remote);
    let address = |end: proto::wire::Endpoint| SocketAddr::new(end.ip, end.port.unwrap_or(0));
    let carrier = match local.port {
        Some(_) => Carrier::Udp,
        None => Carrier::Raw(IP_L2TPV3),
    };
    let socket = connected(carrier, address(local), address(remote))
        .map_err(|error| cannot(&name, carrier, &error))?;
    let raw_ipv4 = local.port.is_none() && local.ip.is_ipv4();
    let link = wire::Link::tunnel("l2tpv3", socket, tunnel, raw_ipv4);
    place.plug(&name, Link::Wire(link)).await
}

/// A GRE tunnel.
pub(super) async fn gre(place: Place<'_>, spec: &GreSpec) -> Result<PortId, Error> {
    let name = format!("gre {} to {}", spec.local, spec.remote);
    let tunnel = Tunnel::gre(spec).map_err(|error| wrong(&name, &error))?;
    let address = |ip: IpAddr| SocketAddr::new(ip, 0);
    let carrier = Carrier::Raw(IP_GRE);
    let socket = connected(carrier, address(spec.local), address(spec.remote))
        .map_err(|error| cannot(&name, carrier, &error))?;
    let link = wire::Link::tunnel("gre", socket, tunnel, spec.local.is_ipv4());
    place.plug(&name, Link::Wire(link)).await
}

/// Datagrams to and from one other end.
pub(super) async fn udp(place: Place<'_>, spec: &UdpSpec) -> Result<PortId, Error> {
    let name = format!("udp {} to {}", spec.local, spec.remote);
    spec.check().map_err(|error| wrong(&name, &error))?;
    let socket = connected(Carrier::Udp, spec.local, spec.remote)
        .map_err(|error| cannot(&name, Carrier::Udp, &error))?;
    let link = wire::Link::plain("udp", socket);
    place.plug(&name, Link::Wire(link)).await
}

/// A multicast group.
pub(super) async fn mcast(place: Place<'_>, spec: &McastSpec) -> Result<PortId, Error> {
    let name = format!("mcast {}", spec.group);
    spec.check().map_err(|error| wrong(&name, &error))?;
    let (inbound, outbound) = join(spec).map_err(|error| cannot(&name, Carrier::Udp, &error))?;
    let link = wire::Link::with_outbound("mcast", inbound, Outbound::Connected(outbound));
    place.plug(&name, Link::Wire(link)).await
}

/// Datagrams of Unix sockets.
pub(super) async fn dgram(place: Place<'_>, spec: &DgramSpec) -> Result<PortId, Error> {
    let name = format!("dgram {} to {}", spec.local.display(), spec.remote.display());
    if !spec.local.is_absolute() || !spec.remote.is_absolute() {
        return Err(invalid(format!(
            "cannot attach {name}: the paths are not absolute"
        )));
    }
    let cannot = |error: io::Error| failed(format!("cannot attach {name}: {error}"));
    let outbound = UnixDatagram::unbound().map_err(cannot)?;
    outbound.set_nonblocking(true).map_err(cannot)?;
    netio::unix::set_queue(&outbound, place.domain.queue_bytes()).map_err(cannot)?;
    // Nobody needs to be there yet.
    let _ = outbound.connect(&spec.remote);
    let inbound = bind(&spec.local).map_err(cannot)?;
    let outbound = Outbound::Path(outbound.into(), spec.remote.clone());
    let link = wire::Link::with_outbound("dgram", inbound.into(), outbound);
    match place.plug(&name, Link::Wire(link)).await {
        Ok(id) => {
            place.domain.own_file(id, spec.local.clone());
            Ok(id)
        }
        Err(error) => {
            super::domain::remove_if_there(&spec.local);
            Err(error)
        }
    }
}

/// What a wire's datagrams are in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Udp,
    /// An IP protocol.
    Raw(u8),
}

/// A socket between two addresses. What comes from elsewhere never reaches it.
fn connected(carrier: Carrier, local: SocketAddr, remote: SocketAddr) -> io::Result<OwnedFd> {
    let (kind, protocol) = match carrier {
        Carrier::Udp => (Type::DGRAM, Protocol::UDP),
        Carrier::Raw(number) => (Type::RAW, Protocol::from(i32::from(number))),
    };
    let socket = Socket::new(Domain::for_address(local), kind.nonblocking(), Some(protocol))?;
    socket.bind(&local.into())?;
    socket.connect(&remote.into())?;
    netio::unix::set_buffers(&socket, SOCKET_BUFFER)?;
    Ok(socket.into())
}

/// A socket that receives what is sent to a group, and one to send with. They are two because all members of a group on
/// one host may have the same address and port: the second has a port of its own, by which our own datagrams are known.
fn join(spec: &McastSpec) -> io::Result<(OwnedFd, OwnedFd)> {
    let group = spec.group;
    let new = || {
        Socket::new(
            Domain::for_address(group),
            Type::DGRAM.nonblocking(),
            Some(Protocol::UDP),
        )
    };
    let (inbound, outbound) = (new()?, new()?);
    let via = spec.via.unwrap_or(Ipv4Addr::UNSPECIFIED);
    match group {
        SocketAddr::V4(_) => {
            outbound.set_multicast_if_v4(&via)?;
            outbound.set_multicast_ttl_v4(spec.ttl.into())?;
            outbound.bind(&SocketAddr::from((via, 0)).into())?;
        }
        SocketAddr::V6(group) => {
            outbound.set_multicast_if_v6(group.scope_id())?;
            outbound.set_multicast_hops_v6(spec.ttl.into())?;
            outbound.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
        }
    }
    outbound.connect(&group.into())?;
    let own = outbound
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    SockRef::from(&inbound).attach_filter(&all_but(own))?;
    inbound.set_reuse_address(true)?;
    inbound.bind(&SockAddr::from(group))?;
    match group {
        SocketAddr::V4(group) => inbound.join_multicast_v4(group.ip(), &via)?,
        SocketAddr::V6(group) => inbound.join_multicast_v6(group.ip(), group.scope_id())?,
    }
    netio::unix::set_buffers(&inbound, SOCKET_BUFFER)?;
    netio::unix::set_buffers(&outbound, SOCKET_BUFFER)?;
    Ok((inbound.into(), outbound.into()))
}

/// A program of classic BPF that takes every datagram but those from one address and port.
fn all_but(own: SocketAddr) -> Vec<SockFilter> {
    // Offsets from here on count from the IP header; others from the UDP header (SKF_NET_OFF of linux/filter.h).
    const NETWORK: u32 = 0xfff0_0000;
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let (source, words): (u32, Vec<u32>) = match own.ip() {
        IpAddr::V4(ip) => (12, vec![ip.to_bits()]),
        IpAddr::V6(ip) => (
            8,
            ip.octets()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|word| u32::from_be_bytes(*word))
                .collect(),
        ),
    };
    let loads = (NETWORK + source..).step_by(4).map(|at| (LOAD_WORD, at));
    let mut tests: Vec<_> = loads.zip(words).collect();
    tests.push(((LOAD_HALF, 0), own.port().into()));
    let mut program = Vec::new();
    let instruction = |code, jf, k| SockFilter::new(code, 0, jf, k);
    for (n, &((load, at), value)) in tests.iter().enumerate() {
        program.push(instruction(load, 0, at));
        // What differs is taken: behind the other tests and one instruction.
        let ahead = u8::try_from(2 * (tests.len() - n - 1) + 1).expect("five tests at most");
        program.push(instruction(JUMP_EQUAL, ahead, value));
    }
    program.push(instruction(RETURN, 0, 0));
    program.push(instruction(RETURN, 0, u32::MAX));
    program
}

/// A Unix datagram socket at a path; the file of one that nobody has any more is replaced.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    let socket = match UnixDatagram::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path)? => {
            std::fs::remove_file(path)?;
            UnixDatagram::bind(path)?
        }
        result => result?,
    };
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn is_stale(path: &Path) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let tried = UnixDatagram::unbound()?.connect(path);
    Ok(tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

fn wrong(name: &str, error: &SpecError) -> Error {
    invalid(format!("cannot attach {name}: {error}"))
}

fn cannot(name: &str, carrier: Carrier, error: &io::Error) -> Error {
    let hint = match (error.raw_os_error(), carrier) {
        (Some(libc::EPERM | libc::EACCES), Carrier::Raw(IP_L2TPV3)) => {
            "\nhint: a raw IP socket needs CAP_NET_RAW; with a port at both ends l2tpv3 goes over UDP, which needs nothing"
        }
        (Some(libc::EPERM | libc::EACCES), Carrier::Raw(_)) => {
            "\nhint: a raw IP socket needs CAP_NET_RAW; l2tpv3 over UDP needs nothing"
        }
        (Some(libc::EADDRINUSE), _) => "\nhint: another program, or another port, has that address and port",
        (Some(libc::EADDRNOTAVAIL), _) => "\nhint: the local address is none of this host's",
        (Some(libc::ENETUNREACH | libc::ENODEV), _) => "\nhint: there is no route to the other end",
        _ => "",
    };
    failed(format!("cannot attach {name}: {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_datagrams_are_told_from_others_of_the_same_address() {
        for host in ["127.0.0.1", "::1"] {
            let ip: IpAddr = host.parse().unwrap();
            let receiver = std::net::UdpSocket::bind((ip, 0)).unwrap();
            let (own, other) = (
                std::net::UdpSocket::bind((ip, 0)).unwrap(),
                std::net::UdpSocket::bind((ip, 0)).unwrap(),
            );
            SockRef::from(&receiver)
                .attach_filter(&all_but(own.local_addr().unwrap()))
                .unwrap();
            let to = receiver.local_addr().unwrap();
            own.send_to(b"own", to).unwrap();
            other.send_to(b"other", to).unwrap();
            let mut bytes = [0; 10];
            let (count, from) = receiver.recv_from(&mut bytes).unwrap();
            assert_eq!(
                (&bytes[..count], from),
                (&b"other"[..], other.local_addr().unwrap())
            );
            receiver.set_nonblocking(true).unwrap();
            assert!(receiver.recv(&mut bytes).is_err());
        }
    }
}

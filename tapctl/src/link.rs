//! Links, addresses, routes, proxied neighbours and bridges, by rtnetlink.
//!
//! Adding what is there is an error; removing what is not there is none, because teardown may come twice.

use std::future::Future;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::host::{Address, Kind, Link, Route};
use crate::name::Device;

/// The kernel's interface to links, addresses and routes.
#[derive(Debug)]
pub(crate) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// All interfaces.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<LinkMessage> = self.wait(self.handle.link().get().execute().try_collect())?;
        Ok(messages.iter().map(link).collect())
    }

    /// All addresses.
    pub(crate) fn addresses(&self) -> io::Result<Vec<Address>> {
        let messages: Vec<AddressMessage> = self.wait(self.handle.address().get().execute().try_collect())?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// The unicast routes of the main table.
    pub(crate) fn routes(&self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let found: Vec<RouteMessage> =
                self.wait(self.handle.route().get(message).execute().try_collect())?;
            routes.extend(found.iter().filter_map(route));
        }
        Ok(routes)
    }

    /// True if the device with that index still has that name.
    pub(crate) fn is(&self, index: u32, device: &Device) -> io::Result<bool> {
        Ok(self
            .links()?
            .iter()
            .any(|link| link.index == index && link.name == device.as_str()))
    }

    pub(crate) fn delete(&self, index: u32) -> io::Result<()> {
        gone(self.wait(self.handle.link().del(index).execute()))
    }

    pub(crate) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index);
        let message = if up { message.up() } else { message.down() };
        self.wait(self.handle.link().change(message.build()).execute())
    }

    /// Makes a bridge with a hardware address of our choice.
    pub(crate) fn add_bridge(&self, device: &Device, mac: &[u8; 6]) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkBridge>::new(device.as_str())
            .address(mac.to_vec())
            .build();
        self.wait(self.handle.link().add(message).execute())
    }

    /// Makes a device a port of a bridge, or (0) of none.
    pub(crate) fn set_master(&self, index: u32, bridge: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).build();
        self.wait(self.handle.link().change(message).execute())
    }

    pub(crate) fn add_address(&self, index: u32, net: IpNet) -> io::Result<()> {
        let mut request = self.handle.address().add(index, net.addr(), net.prefix_len());
        // The address is ours by decree; a guest that claimed it first could otherwise keep it from the host.
        if net.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.wait(request.execute())
    }

    pub(crate) fn delete_address(&self, index: u32, net: IpNet) -> io::Result<()> {
        let found: Vec<AddressMessage> = self.wait(self.handle.address().get().execute().try_collect())?;
        let is_it = |message: &AddressMessage| {
            address(message).is_some_and(|address| address.index == index && address.net == net)
        };
        match found.into_iter().find(is_it) {
            Some(message) => gone(self.wait(self.handle.address().del(message).execute())),
            None => Ok(()),
        }
    }

    /// Routes one address to a device.
    pub(crate) fn add_route(&self, index: u32, to: IpAddr) -> io::Result<()> {
        self.wait(self.handle.route().add(host_route(index, to)).execute())
    }

    pub(crate) fn delete_route(&self, index: u32, to: IpAddr) -> io::Result<()> {
        gone(self.wait(self.handle.route().del(host_route(index, to)).execute()))
    }

    /// Answers for an address on a device: proxy ARP or neighbour discovery for this one address.
    pub(crate) fn add_proxy(&self, index: u32, to: IpAddr) -> io::Result<()> {
        self.wait(
            self.handle
                .neighbours()
                .add(index, to)
                .flags(NeighbourFlags::Proxy)
                .execute(),
        )
    }

    pub(crate) fn delete_proxy(&self, index: u32, to: IpAddr) -> io::Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add(index, to)
            .flags(NeighbourFlags::Proxy);
        let message = request.message_mut().clone();
        gone(self.wait(self.handle.neighbours().del(message).execute()))
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        self.runtime.block_on(work).map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        })
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        mac: Vec::new(),
        kind: Kind::Other,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let mut kind = Kind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => kind = Kind::Bridge,
            LinkInfo::Data(InfoData::Tun(attributes)) => {
                let number = |wanted: u16| attributes.iter().find_map(|a| tun_number(a, wanted));
                if number(IFLA_TUN_TYPE) == Some(2) {
                    kind = Kind::Tap(number(IFLA_TUN_OWNER));
                }
            }
            _ => {}
        }
    }
    kind
}

// `include/uapi/linux/if_link.h`
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;

fn tun_number(attribute: &InfoTun, wanted: u16) -> Option<u32> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    if attribute.kind() != wanted {
        return None;
    }
    match *value.as_slice() {
        [byte] => Some(u32::from(byte)),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point link ADDRESS is the peer's; LOCAL, where there is one, is ours.
    let own = find(true).or_else(|| find(false))?;
    let net = IpNet::new(own, message.header.prefix_len).ok()?;
    Some(Address {
        index: message.header.index,
        net,
    })
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut index = None;
    let mut to = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Oif(id) => index = Some(*id),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::from(*address)),
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || message.header.kind != RouteType::Unicast {
        return None;
    }
    let any: IpAddr = match message.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let to = IpNet::new(to.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    // Every interface has link-local routes of its own; they are no one else's subnet.
    let local = match to.addr() {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    let advertised = message.header.protocol == RouteProtocol::Ra;
    (!local).then_some(Route {
        index,
        to,
        advertised,
    })
}

fn host_route(index: u32, to: IpAddr) -> RouteMessage {
    let scope = if to.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    match to {
        IpAddr::V4(to) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .output_interface(index)
            .protocol(RouteProtocol::Static)
            .scope(scope)
            .build(),
        IpAddr::V6(to) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(to, 128)
            .output_interface(index)
            .protocol(RouteProtocol::Static)
            .scope(scope)
            .build(),
    }
}

/// Success if the thing to be removed was not there (any longer).
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if error.raw_os_error().map(Errno::from_raw).is_some_and(|errno| {
                matches!(
                    errno,
                    Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO
                )
            }) =>
        {
            Ok(())
        }
        other => other,
    }
}

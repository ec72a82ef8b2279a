//! The host's network as it was found: plain data, and the questions a plan asks about it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall;
use crate::name::Device;
use crate::sysctl::{self, Family, Key};

/// Everything a plan looks at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) switches: Switches,
    pub(crate) firewall: firewall::Seen,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// The bridge (or bond) it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) mac: Vec<u8>,
    pub(crate) kind: Kind,
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A tap and the user it belongs to.
    Tap(Option<u32>),
    /// A bridge.
    Bridge,
    /// Anything else.
    Other,
}

/// An address of the host with its subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) net: IpNet,
}

/// A unicast route of the main table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) index: Option<u32>,
    pub(crate) to: IpNet,
    /// Learnt from a router advertisement.
    pub(crate) advertised: bool,
}

/// The kernel switches a plan may have to turn, with what else turns with them.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Switches {
    pub(crate) forward4: Forwarding,
    pub(crate) forward6: Forwarding,
    /// Devices whose routes come from advertisements and would go when forwarding is turned on, with `accept_ra`.
    pub(crate) advertised: Vec<(Key, String)>,
}

/// The state of forwarding in one family.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Forwarding {
    /// `None` if the kernel lacks the family.
    pub(crate) value: Option<String>,
    pub(crate) around: std::collections::BTreeMap<Key, String>,
}

impl Forwarding {
    fn look(family: Family) -> Self {
        if !sysctl::present(family) {
            return Self::default();
        }
        Self {
            value: Key::forwarding(family).read(),
            around: sysctl::around_forwarding(family),
        }
    }
}

impl Switches {
    /// Reads them; `routes` tells which devices live on router advertisements.
    pub(crate) fn look(links: &[Link], routes: &[Route]) -> Self {
        let mut advertised = Vec::new();
        for route in routes.iter().filter(|route| route.advertised) {
            let link = links.iter().find(|link| Some(link.index) == route.index);
            let Some(Ok(device)) = link.map(|link| link.name.parse::<Device>()) else {
                continue;
            };
            let key = Key::of(&device, Family::V6, "accept_ra");
            match key.read() {
                Some(value) if value != "2" && !advertised.contains(&(key.clone(), value.clone())) => {
                    advertised.push((key, value));
                }
                _ => {}
            }
        }
        Self {
            forward4: Forwarding::look(Family::V4),
            forward6: Forwarding::look(Family::V6),
            advertised,
        }
    }
}

impl Host {
    pub(crate) fn link(&self, device: &Device) -> Option<&Link> {
        self.links.iter().find(|link| link.name == device.as_str())
    }

    fn name_of(&self, index: u32) -> &str {
        self.links
            .iter()
            .find(|link| link.index == index)
            .map_or("?", |link| &link.name)
    }

    /// Where the host already has an address or a route within `net`, or one around it; `except` is a device whose
    /// own addresses and routes do not count.
    pub(crate) fn user_of(&self, net: IpNet, except: Option<u32>) -> Option<String> {
        let overlaps = |other: IpNet| {
            let (net, other) = (net.trunc(), other.trunc());
            net.contains(&other) || other.contains(&net)
        };
        let address = self
            .addresses
            .iter()
            .find(|address| Some(address.index) != except && overlaps(address.net));
        if let Some(address) = address {
            return Some(format!("{} on {}", address.net, self.name_of(address.index)));
        }
        // Default routes, whole or in halves as VPNs set them, are around everything.
        let route = self.routes.iter().find(|route| {
            (except.is_none() || route.index != except) && route.to.prefix_len() > 1 && overlaps(route.to)
        })?;
        Some(match route.index {
            Some(index) => format!("the route to {} by {}", route.to, self.name_of(index)),
            None => format!("the route to {}", route.to),
        })
    }
}

/// True for what nobody on the public network owns: what a user may put behind a tap without asking root.
pub(crate) fn is_private(net: IpNet) -> bool {
    let within = |text: &str| {
        let range: IpNet = text.parse().expect("a constant network");
        range.contains(&net.trunc())
    };
    PRIVATE.iter().any(|range| within(range))
}

/// RFC 1918, RFC 6598, RFC 2544, RFC 5737, RFC 4193, RFC 3849.
const PRIVATE: [&str; 10] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "fc00::/7",
    "2001:db8::/32",
];

/// Why an address cannot be the host's on a tap.
pub(crate) fn unfit_for_host(net: IpNet) -> Option<&'static str> {
    let address = net.addr();
    let special = match address {
        IpAddr::V4(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local()
        }
    };
    let (shortest, longest) = if address.is_ipv4() { (8, 31) } else { (16, 127) };
    if special {
        Some("is not the address of a host")
    } else if net.prefix_len() < shortest {
        Some("is too large a subnet")
    } else if net.prefix_len() > longest {
        Some("leaves no address for a guest")
    } else if net.prefix_len() < longest
        && (address == net.network() || (address.is_ipv4() && address == net.broadcast()))
    {
        Some("is the subnet's own or broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            up: true,
            master: None,
            mac: Vec::new(),
            kind: Kind::Other,
        };
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let route = |index, text: &str| Route {
            index: Some(index),
            to: net(text),
            advertised: false,
        };
        Host {
            links: vec![link(2, "eth0"), link(3, "vpn0")],
            addresses: vec![Address {
                index: 2,
                net: net("192.0.2.7/24"),
            }],
            routes: vec![
                route(2, "0.0.0.0/0"),
                route(3, "128.0.0.0/1"),
                route(2, "192.0.2.0/24"),
                route(3, "10.9.0.0/16"),
            ],
            ..Host::default()
        }
    }

    #[test]
    fn what_the_host_uses_is_named() {
        let host = host();
        for (text, user) in [
            ("192.0.2.1/24", "192.0.2.7/24 on eth0"),
            ("192.0.2.200/30", "192.0.2.7/24 on eth0"),
            ("192.0.0.1/16", "192.0.2.7/24 on eth0"),
            ("10.9.1.1/24", "the route to 10.9.0.0/16 by vpn0"),
            ("10.0.0.1/8", "the route to 10.9.0.0/16 by vpn0"),
        ] {
            assert_eq!(
                host.user_of(text.parse().unwrap(), None).as_deref(),
                Some(user),
                "{text}"
            );
        }
        for text in ["10.0.0.1/24", "203.0.113.1/24", "fd00::1/64"] {
            assert_eq!(host.user_of(text.parse().unwrap(), None), None, "{text}");
        }
        assert_eq!(host.user_of("10.9.1.1/24".parse().unwrap(), Some(3)), None);
    }

    #[test]
    fn only_addresses_a_host_can_have_are_taken() {
        for text in [
            "10.0.0.1/24",
            "10.0.0.0/31",
            "10.1.2.3/8",
            "fd00::1/64",
            "fd00::1/127",
        ] {
            assert_eq!(unfit_for_host(text.parse().unwrap()), None, "{text}");
        }
        for text in [
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.1/8",
            "0.0.0.0/24",
            "224.0.0.1/24",
            "10.0.0.1/32",
            "10.0.0.1/7",
            "fe80::1/64",
            "ff02::1/64",
            "::1/64",
            "fd00::/64",
        ] {
            assert!(unfit_for_host(text.parse().unwrap()).is_some(), "{text}");
        }
    }

    #[test]
    fn users_may_have_private_networks_alone() {
        for text in ["10.0.0.1/24", "172.31.255.1/24", "192.168.1.1/24", "fd12::1/64"] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in ["8.8.8.1/24", "172.32.0.1/24", "10.0.0.1/7", "2600::1/64"] {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }
}

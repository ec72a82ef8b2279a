//! `tapctl attach`: one guest, wired as vkernel's `-I` wires it.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use crate::firewall::Backend;
use crate::host::{self, Host, Kind};
use crate::journal::{Origin, Record, Scope, Tap};
use crate::name::{Device, DeviceError, PREFIX};
use crate::plan::{self, Decision, Plan, Refusal};
use crate::privilege::User;
use crate::step::Step;

/// `interface[:address1[:address2][/netmask]]`, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spec {
    /// The tap; the first free one if absent (`auto`).
    pub(crate) device: Option<Device>,
    pub(crate) link: Link,
    /// The guest's address, for the machine's own configuration.
    pub(crate) guest: Option<Ipv4Net>,
}

/// What the host's side of the tap is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// Nothing: it is only set up.
    Bare,
    /// An address.
    Address(Ipv4Net),
    /// A place in a bridge.
    Bridge(Device),
}

/// Why a text is no such specification.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("'{0}' is not an IPv4 address")]
    Address(String),
    #[error("'{0}' is neither an IPv4 address nor the name of a bridge")]
    Link(String),
    #[error("'{0}' is not a netmask: a length such as 24 or a mask such as 255.255.255.0 is")]
    Mask(String),
    #[error("a netmask needs an address")]
    MaskAlone,
    #[error("{0} {1}")]
    Unfit(Ipv4Net, &'static str),
    #[error("{1} is not in the subnet of {0}, or is the same address")]
    Apart(Ipv4Net, Ipv4Addr),
    #[error("too many ':' in '{0}'")]
    Parts(String),
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_prefix("/dev/").unwrap_or(text);
        let (words, mask) = match text.rsplit_once('/') {
            Some((words, mask)) => (words, Some(mask)),
            None => (text, None),
        };
        let words: Vec<&str> = words.split(':').collect();
        let (interface, first, second) = match *words.as_slice() {
            [interface] => (interface, None, None),
            [interface, first] => (interface, Some(first), None),
            [interface, first, second] => (interface, Some(first), Some(second)),
            _ => return Err(SpecError::Parts(text.to_owned())),
        };
        let device = if interface == "auto" {
            None
        } else {
            Some(interface.parse()?)
        };
        let length = mask.map(prefix_length).transpose()?;
        let net = |address: Ipv4Addr| {
            Ipv4Net::new(address, length.unwrap_or(24))
                .map_err(|_| SpecError::Mask(length.unwrap_or(0).to_string()))
        };
        let link = match first {
            None => Link::Bare,
            Some(word) => match word.parse::<Ipv4Addr>() {
                Ok(address) => Link::Address(net(address)?),
                // Digits and dots are an address gone wrong, not a bridge.
                Err(_) if word.chars().all(|c| c.is_ascii_digit() || c == '.') => {
                    return Err(SpecError::Link(word.to_owned()));
                }
                Err(_) => Link::Bridge(word.parse().map_err(|_| SpecError::Link(word.to_owned()))?),
            },
        };
        let guest = match second {
            None => None,
            Some(word) => Some(net(word
                .parse()
                .map_err(|_| SpecError::Address(word.to_owned()))?)?),
        };
        let host = if let Link::Address(host) = &link {
            Some(*host)
        } else {
            None
        };
        if length.is_some() && host.is_none() && guest.is_none() {
            return Err(SpecError::MaskAlone);
        }
        for net in [host, guest].into_iter().flatten() {
            if let Some(why) = host::unfit_for_host(net.into()) {
                return Err(SpecError::Unfit(net, why));
            }
        }
        match (host, guest) {
            (Some(host), Some(guest)) if host == guest || !host.contains(&guest.addr()) => {
                Err(SpecError::Apart(host, guest.addr()))
            }
            _ => Ok(Self { device, link, guest }),
        }
    }
}

fn prefix_length(text: &str) -> Result<u8, SpecError> {
    let wrong = || SpecError::Mask(text.to_owned());
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        return ipnet::ipv4_mask_to_prefix(mask).ok().ok_or_else(wrong);
    }
    text.parse().ok().filter(|length| *length <= 32).ok_or_else(wrong)
}

/// A request to attach a guest.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) spec: Spec,
    pub(crate) user: User,
    pub(crate) by_root: bool,
    pub(crate) create_bridge: bool,
    pub(crate) bridge_port: Option<Device>,
    pub(crate) firewall: Option<Backend>,
    pub(crate) allow_host: bool,
    pub(crate) allow_taps: bool,
    /// The hardware address of a bridge, if one has to be made.
    pub(crate) mac: [u8; 6],
}

/// Plans the tap, its address or bridge.
pub(crate) fn plan(request: &Request, record: &Record, host: &Host) -> Result<Decision, Refusal> {
    let spec = &request.spec;
    let device = match &spec.device {
        Some(device) => device.clone(),
        None => first_free(record, host)?,
    };
    let address = if let Link::Address(net) = spec.link {
        Some(net)
    } else {
        None
    };
    let bridge = if let Link::Bridge(bridge) = &spec.link {
        Some(bridge.clone())
    } else {
        None
    };
    if let Some(tap) = record.tap(&device) {
        if tap.uid != request.user.uid {
            return Err(Refusal::NotYours(device, request.user.name.clone()));
        }
        if tap.address == address && tap.bridge == bridge {
            return Ok(Decision::Present {
                tap: tap.clone(),
                notes: Vec::new(),
            });
        }
        if tap.origin != Origin::Tunctl || tap.address.is_some() || tap.bridge.is_some() {
            return Err(Refusal::Taken(device, tap.user.clone()));
        }
    }
    let existing = host.link(&device);
    check_device(request, &device, existing.map(|link| link.kind))?;
    if let Some(net) = address {
        plan::check_net(
            IpNet::V4(net),
            request.by_root,
            host,
            existing.map(|link| link.index),
        )?;
    }
    let firewall = match address {
        Some(_) => plan::choose_firewall(request.firewall, record, host)?,
        None => Backend::None,
    };
    let tap = Tap {
        device: device.clone(),
        user: request.user.name.clone(),
        uid: request.user.uid,
        domain: None,
        origin: record.tap(&device).map_or(Origin::Attach, |tap| tap.origin),
        address,
        address6: None,
        routes: Vec::new(),
        bridge: bridge.clone(),
        firewall,
        nat: false,
        forward4: false,
        forward6: false,
        allow_host: request.allow_host,
        allow_taps: request.allow_taps,
        complete: false,
    };
    let ours = existing.is_none();
    let mut plan = Plan {
        tap,
        steps: Vec::new(),
        notes: Vec::new(),
    };
    if ours {
        plan.make_tap(Some(request.user.uid), None, host);
    }
    plan.add_addresses(ours);
    plan.protect(record, host);
    if let Some(bridge) = bridge {
        join(&mut plan, request, &bridge, ours, host)?;
    }
    if existing.is_none_or(|link| !link.up) {
        plan.link_up(&device, ours);
    }
    Ok(Decision::Make(plan))
}

fn check_device(request: &Request, device: &Device, existing: Option<Kind>) -> Result<(), Refusal> {
    let name = device.as_str();
    match existing {
        Some(Kind::Tap(owner)) if request.by_root || owner == Some(request.user.uid) => Ok(()),
        Some(_) => Err(Refusal::NotYours(device.clone(), request.user.name.clone())),
        // A user's device must not pass for a network card, nor for the tap of somebody's domain.
        None if request.by_root && !name.starts_with(PREFIX) => Ok(()),
        None if name.starts_with("tap") => Ok(()),
        None => Err(Refusal::RootOnly(
            "make a tap whose name does not begin with 'tap'",
        )),
    }
}

fn join(plan: &mut Plan, request: &Request, bridge: &Device, ours: bool, host: &Host) -> Result<(), Refusal> {
    // In a bridge the tap is on the bridge's own network: no rule of ours stands in between.
    if !request.by_root {
        return Err(Refusal::RootOnly("put a tap into a bridge"));
    }
    let scope = Scope::Bridge(bridge.clone());
    let present = host.link(bridge);
    match present {
        Some(link) if link.kind == Kind::Bridge => {}
        Some(_) => return Err(Refusal::NotABridge(bridge.clone())),
        None if !request.create_bridge => return Err(Refusal::NotABridge(bridge.clone())),
        None => {
            plan.steps.push((
                scope.clone(),
                Step::MakeBridge {
                    device: bridge.clone(),
                    mac: request.mac,
                },
            ));
            plan.steps.push((
                scope.clone(),
                Step::LinkUp {
                    device: bridge.clone(),
                    ours: true,
                },
            ));
        }
    }
    if let Some(port) = &request.bridge_port {
        let link = host.link(port).ok_or_else(|| Refusal::NoDevice(port.clone()))?;
        let inside = link.master.is_some() && link.master == present.map(|bridge| bridge.index);
        if link.master.is_some() && !inside {
            return Err(Refusal::Enslaved(port.clone()));
        }
        if !inside {
            let step = Step::Join {
                device: port.clone(),
                bridge: bridge.clone(),
                ours: false,
            };
            plan.steps.push((scope.clone(), step));
        }
        if !link.up {
            plan.steps.push((
                scope.clone(),
                Step::LinkUp {
                    device: port.clone(),
                    ours: false,
                },
            ));
        }
    }
    let device = plan.tap.device.clone();
    let step = Step::Join {
        device: device.clone(),
        bridge: bridge.clone(),
        ours,
    };
    plan.steps.push((Scope::Tap(device), step));
    Ok(())
}

fn first_free(record: &Record, host: &Host) -> Result<Device, Refusal> {
    (0..10_000)
        .filter_map(|number| format!("tap{number}").parse::<Device>().ok())
        .find(|device| record.tap(device).is_none() && host.link(device).is_none())
        .ok_or_else(|| Refusal::NoName("tap".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_of_the_manual_are_read() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        for (text, device, link, guest) in [
            ("auto", None, Link::Bare, None),
            ("tap0", Some("tap0"), Link::Bare, None),
            ("/dev/tap0", Some("tap0"), Link::Bare, None),
            (
                "auto:bridge0",
                None,
                Link::Bridge("bridge0".parse().unwrap()),
                None,
            ),
            (
                "auto:br-lab:10.0.0.2",
                None,
                Link::Bridge("br-lab".parse().unwrap()),
                Some("10.0.0.2/24"),
            ),
            (
                "tap1:10.0.0.1",
                Some("tap1"),
                Link::Address(net("10.0.0.1/24")),
                None,
            ),
            (
                "tap1:10.0.0.1:10.0.0.2",
                Some("tap1"),
                Link::Address(net("10.0.0.1/24")),
                Some("10.0.0.2/24"),
            ),
            (
                "/dev/tap1:10.0.0.1:10.0.1.2/255.255.0.0",
                Some("tap1"),
                Link::Address(net("10.0.0.1/16")),
                Some("10.0.1.2/16"),
            ),
            ("auto:10.0.0.1/30", None, Link::Address(net("10.0.0.1/30")), None),
        ] {
            let device = device.map(|name| name.parse().unwrap());
            assert_eq!(
                text.parse(),
                Ok(Spec {
                    device,
                    link,
                    guest: guest.map(net)
                }),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_specification_is_refused() {
        for text in [
            "",
            ":10.0.0.1",
            "tap0:",
            "tap0:10.0.0",
            "tap0:10.0.0.1:",
            "tap0:10.0.0.1:10.0.1.2",
            "tap0:10.0.0.1:10.0.0.1",
            "tap0:10.0.0.1:10.0.0.2:x",
            "tap0:10.0.0.1/33",
            "tap0:10.0.0.1/255.0.255.0",
            "tap0:10.0.0.0",
            "tap0/24",
            "tap0:a b",
            "tap+:10.0.0.1",
            "../tap:10.0.0.1",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}

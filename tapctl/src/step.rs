//! One change to the host, what undoes it, and how both are told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::{Backend, Fresh, Rules};
use crate::journal::{On, Undo};
use crate::name::Device;
use crate::sysctl::Key;

/// One change to the host.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Step {
    /// Makes a persistent tap.
    MakeTap {
        device: Device,
        owner: Option<u32>,
        group: Option<u32>,
    },
    /// Makes a bridge.
    MakeBridge { device: Device, mac: [u8; 6] },
    /// Turns a switch of a device made by this plan.
    Configure {
        device: Device,
        key: Key,
        value: &'static str,
    },
    /// Turns a switch of the host.
    Set {
        key: Key,
        old: String,
        new: &'static str,
    },
    /// Turns forwarding on.
    Forward {
        key: Key,
        old: String,
        around: BTreeMap<Key, String>,
    },
    /// Puts the firewall rules of all taps in force.
    Protect {
        backend: Backend,
        rules: Rules,
        fresh: Vec<Fresh>,
    },
    /// Gives a device an address.
    AddAddress {
        device: Device,
        address: IpNet,
        ours: bool,
    },
    /// Puts a device into a bridge.
    Join {
        device: Device,
        bridge: Device,
        ours: bool,
    },
    /// Sets a device up.
    LinkUp { device: Device, ours: bool },
    /// Routes one address to a device.
    AddRoute { device: Device, to: IpAddr },
    /// Answers for an address on a device.
    AddProxy { device: Device, address: IpAddr },
}

impl Step {
    /// What undoes this step; `index` is that of the device it works on.
    pub(crate) fn undo(&self, index: u32) -> Undo {
        let on = |device: &Device| On {
            device: device.clone(),
            index,
        };
        let with = |device: &Device| Undo::WithDevice {
            device: device.clone(),
            what: self.to_string(),
        };
        match self {
            Self::MakeTap { device, .. } => Undo::RemoveTap(on(device)),
            Self::MakeBridge { device, mac } => Undo::RemoveBridge {
                device: device.clone(),
                mac: format_mac(mac),
            },
            Self::Configure { device, .. }
            | Self::AddAddress {
                device, ours: true, ..
            }
            | Self::Join {
                device, ours: true, ..
            }
            | Self::LinkUp { device, ours: true } => with(device),
            Self::Set { key, old, new } => Undo::Restore {
                key: key.clone(),
                old: old.clone(),
                ours: (*new).to_owned(),
            },
            Self::Forward { key, old, around } => Undo::Unforward {
                key: key.clone(),
                old: old.clone(),
                around: around.clone(),
            },
            Self::Protect { fresh, .. } => Undo::RemoveRules { fresh: fresh.clone() },
            Self::AddAddress { device, address, .. } => Undo::RemoveAddress {
                on: on(device),
                address: *address,
            },
            Self::Join { device, bridge, .. } => Undo::LeaveBridge {
                on: on(device),
                bridge: bridge.clone(),
            },
            Self::LinkUp { device, .. } => Undo::LinkDown(on(device)),
            Self::AddRoute { device, to } => Undo::RemoveRoute {
                on: on(device),
                to: *to,
            },
            Self::AddProxy { device, address } => Undo::RemoveProxy {
                on: on(device),
                address: *address,
            },
        }
    }

    /// The device whose index the undoing needs.
    pub(crate) fn device(&self) -> Option<&Device> {
        match self {
            Self::MakeTap { device, .. }
            | Self::Configure { device, .. }
            | Self::AddAddress { device, .. }
            | Self::Join { device, .. }
            | Self::LinkUp { device, .. }
            | Self::AddRoute { device, .. }
            | Self::AddProxy { device, .. } => Some(device),
            Self::MakeBridge { .. } | Self::Set { .. } | Self::Forward { .. } | Self::Protect { .. } => None,
        }
    }
}

/// A hardware address as it is written.
pub(crate) fn format_mac(mac: &[u8]) -> String {
    mac.iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeTap { device, owner, group } => {
                write!(f, "make tap {device}")?;
                if let Some(uid) = owner {
                    write!(f, " owned by uid {uid}")?;
                }
                group.map_or(Ok(()), |gid| write!(f, " for gid {gid}"))
            }
            Self::MakeBridge { device, mac } => {
                write!(f, "make bridge {device} with address {}", format_mac(mac))
            }
            Self::Configure { key, value, .. } => write!(f, "set {key} to {value}"),
            Self::Set { key, new, .. } => write!(f, "set {key} to {new}"),
            Self::Forward { key, .. } => write!(f, "set {key} to 1"),
            Self::Protect { backend, rules, .. } => {
                let devices: Vec<&str> = rules.guards.iter().map(|guard| guard.device.as_str()).collect();
                write!(f, "put the {backend} rules for {} in force", devices.join(", "))
            }
            Self::AddAddress { device, address, .. } => write!(f, "add {address} to {device}"),
            Self::Join { device, bridge, .. } => write!(f, "put {device} into {bridge}"),
            Self::LinkUp { device, .. } => write!(f, "set {device} up"),
            Self::AddRoute { device, to } => write!(f, "route {to} to {device}"),
            Self::AddProxy { device, address } => write!(f, "answer for {address} on {device}"),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveTap(on) => write!(f, "remove tap {}", on.device),
            Self::RemoveBridge { device, .. } => write!(f, "remove bridge {device}"),
            Self::WithDevice { device, .. } => write!(f, "goes with {device}"),
            Self::RemoveAddress { on, address } => write!(f, "remove {address} from {}", on.device),
            Self::LinkDown(on) => write!(f, "set {} down", on.device),
            Self::LeaveBridge { on, bridge } => write!(f, "take {} out of {bridge}", on.device),
            Self::RemoveRoute { on, to } => write!(f, "remove the route to {to} by {}", on.device),
            Self::RemoveProxy { on, address } => write!(f, "no longer answer for {address} on {}", on.device),
            Self::Restore { key, old, .. } | Self::Unforward { key, old, .. } => {
                write!(f, "set {key} back to {old}")
            }
            Self::RemoveRules { fresh } if fresh.is_empty() => write!(f, "remove our rules"),
            Self::RemoveRules { .. } => write!(f, "remove our rules and the tables made for them"),
        }
    }
}

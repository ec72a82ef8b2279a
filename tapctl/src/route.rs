//! `tapctl route`: a host route to a guest, and proxy ARP so that a LAN sees it.
//!
//! The 2002 UML HOWTO turns proxy ARP on for a whole interface; here the interface answers for the one address alone.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::host::Host;
use crate::journal::{Record, Scope};
use crate::name::Device;
use crate::plan::{self, Decision, Plan, Refusal};
use crate::privilege::Caller;
use crate::step::Step;
use crate::sysctl::{Family, Key};

/// Plans the route; `dev` must be a tap of the caller.
pub(crate) fn plan(
    caller: &Caller,
    to: IpAddr,
    dev: &Device,
    lan: Option<&Device>,
    record: &Record,
    host: &Host,
) -> Result<Decision, Refusal> {
    let yours = |tap: &&crate::journal::Tap| caller.is_root || tap.uid == caller.user.uid;
    let tap = record
        .tap(dev)
        .filter(yours)
        .ok_or_else(|| Refusal::NotYours(dev.clone(), caller.user.name.clone()))?;
    let link = host.link(dev).ok_or_else(|| Refusal::NoDevice(dev.clone()))?;
    let net = IpNet::from(to);
    let routed = host
        .routes
        .iter()
        .any(|route| route.index == Some(link.index) && route.to == net);
    if let (true, Some(_)) = (!caller.is_root, lan) {
        return Err(Refusal::RootOnly("have the host answer for an address on a LAN"));
    }
    if host.addresses.iter().any(|address| address.net.addr() == to) {
        return Err(Refusal::InUse(net, "an address of the host itself".to_owned()));
    }
    if !caller.is_root {
        // A user must not draw to his guests what the host sends elsewhere.
        plan::check_net(net, false, host, Some(link.index))?;
    }
    let mut tap = tap.clone();
    if !tap.routes.contains(&to) {
        tap.routes.push(to);
    }
    if to.is_ipv4() {
        tap.forward4 = true;
    } else {
        tap.forward6 = true;
    }
    let mut plan = Plan {
        tap,
        steps: Vec::new(),
        notes: Vec::new(),
    };
    plan.protect(record, host);
    plan.forward(host);
    let scope = Scope::Tap(dev.clone());
    if !routed {
        plan.steps.push((
            scope.clone(),
            Step::AddRoute {
                device: dev.clone(),
                to,
            },
        ));
    }
    if let Some(lan) = lan {
        host.link(lan).ok_or_else(|| Refusal::NoDevice(lan.clone()))?;
        // So that the guest, too, may take the LAN for its own link.
        if to.is_ipv4() {
            let key = Key::of(dev, Family::V4, "proxy_arp");
            plan.steps.push((
                scope.clone(),
                Step::Configure {
                    device: dev.clone(),
                    key,
                    value: "1",
                },
            ));
        }
        let known = record.entries.iter().any(|entry| {
            entry.scope == scope
                && matches!(&entry.undo, crate::journal::Undo::RemoveProxy { on, address }
                    if on.device == *lan && *address == to)
        });
        if !known {
            plan.steps.push((
                scope,
                Step::AddProxy {
                    device: lan.clone(),
                    address: to,
                },
            ));
        }
    } else if routed {
        return Ok(Decision::Present {
            tap: plan.tap,
            notes: Vec::new(),
        });
    }
    Ok(Decision::Make(plan))
}

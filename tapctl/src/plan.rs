//! Decides, without touching anything: a request and the host as it is make an ordered list of steps.
//!
//! Each step prints itself together with what undoes it: that is all `--dry-run` does.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::firewall::{Backend, Rules};
use crate::host::{self, Forwarding, Host};
use crate::journal::{Origin, Record, Scope, Tap};
use crate::name::{self, Device};
use crate::privilege::User;
use crate::step::Step;
use crate::sysctl::{Family, Key};

/// Steps towards one tap.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    /// The tap as it will be.
    pub(crate) tap: Tap,
    /// What to do, and what each step is for.
    pub(crate) steps: Vec<(Scope, Step)>,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

/// What has to be done for a request.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Decision {
    /// It is there already.
    Present { tap: Tap, notes: Vec<String> },
    /// These steps.
    Make(Plan),
}

/// A request for a tap domain's tap.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct UpRequest {
    pub(crate) user: User,
    /// True if the caller may take any address.
    pub(crate) by_root: bool,
    pub(crate) domain: String,
    pub(crate) address: Ipv4Net,
    pub(crate) address6: Option<Ipv6Net>,
    pub(crate) firewall: Option<Backend>,
    pub(crate) allow_host: bool,
    pub(crate) allow_taps: bool,
}

/// Why a request is refused. Nothing has been changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("cannot use {0}: it overlaps {1}")]
    InUse(IpNet, String),
    #[error("cannot use {0}: it is not a private network")]
    Public(IpNet),
    #[error("cannot make {0}: a device of that name exists and was not made by tapctl")]
    Foreign(Device),
    #[error("cannot make {0}: {1} has it already")]
    Taken(Device, String),
    #[error("cannot use {wanted} rules: the taps of this host are under {present}")]
    Mixed { wanted: Backend, present: Backend },
    #[error("cannot protect the host: {0}")]
    NoFirewall(&'static str),
    #[error("cannot use IPv6: this kernel has none")]
    NoV6,
    #[error("no device {0} on this host")]
    NoDevice(Device),
    #[error("no device name is left for user {0}")]
    NoName(String),
    #[error("{0} is not a tap of {1}")]
    NotYours(Device, String),
    #[error("only root may {0}")]
    RootOnly(&'static str),
    #[error("{0} is not a bridge")]
    NotABridge(Device),
    #[error("{0} is a port of another bridge already")]
    Enslaved(Device),
}

impl Refusal {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InUse(..) => "choose a subnet that the host has no address in and no route to".to_owned(),
            Self::Public(_) => {
                "choose one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7, or ask root".to_owned()
            }
            Self::Foreign(device) => format!("if nobody needs it, remove it: ip link delete {device}"),
            Self::Mixed { present, .. } => format!("use --firewall {present}, or take all taps down first"),
            Self::NoFirewall(_) => {
                "install nftables or iptables, or accept unprotected taps with --firewall none".to_owned()
            }
            Self::RootOnly(_) => "ask the administrator".to_owned(),
            Self::NotABridge(device) => {
                format!("if it should be made, add --create-bridge (no device {device} may exist)")
            }
            _ => return None,
        })
    }
}

/// Plans the tap of a user's domain.
pub(crate) fn up(request: &UpRequest, record: &Record, host: &Host) -> Result<Decision, Refusal> {
    if let Some(tap) = record.tap_of(request.user.uid, &request.domain) {
        return Ok(Decision::Present {
            tap: tap.clone(),
            notes: differences(request, tap),
        });
    }
    let device = choose_name(request, record, host)?;
    let mut nets = vec![IpNet::V4(request.address)];
    nets.extend(request.address6.map(IpNet::V6));
    for net in nets {
        check_net(net, request.by_root, host, None)?;
    }
    if request.address6.is_some() && host.switches.forward6.value.is_none() {
        return Err(Refusal::NoV6);
    }
    let firewall = choose_firewall(request.firewall, record, host)?;
    let tap = Tap {
        device: device.clone(),
        user: request.user.name.clone(),
        uid: request.user.uid,
        domain: Some(request.domain.clone()),
        origin: Origin::Up,
        address: Some(request.address),
        address6: request.address6,
        routes: Vec::new(),
        bridge: None,
        firewall,
        nat: true,
        forward4: true,
        forward6: request.address6.is_some(),
        allow_host: request.allow_host,
        allow_taps: request.allow_taps,
        complete: false,
    };
    let mut plan = Plan {
        tap,
        steps: Vec::new(),
        notes: Vec::new(),
    };
    if name::manual_name(&request.user.name).as_ref() != Some(&device) {
        plan.notes.push(format!(
            "the tap of user {}, domain {} is called {device}",
            request.user.name, request.domain
        ));
    }
    plan.make_tap(Some(request.user.uid), None, host);
    plan.add_addresses(true);
    plan.protect(record, host);
    plan.forward(host);
    plan.link_up(&device, true);
    Ok(Decision::Make(plan))
}

impl Plan {
    fn push(&mut self, step: Step) {
        self.steps.push((Scope::Tap(self.tap.device.clone()), step));
    }

    /// The device, with switches that keep the guests from telling the host where to send its own traffic.
    pub(crate) fn make_tap(&mut self, owner: Option<u32>, group: Option<u32>, host: &Host) {
        let device = self.tap.device.clone();
        let (forward4, has_v6) = (self.tap.forward4, self.tap.address6.is_some());
        self.push(Step::MakeTap {
            device: device.clone(),
            owner,
            group,
        });
        let mut set = |family, leaf, value| {
            let key = Key::of(&device, family, leaf);
            self.steps.push((
                Scope::Tap(device.clone()),
                Step::Configure {
                    device: device.clone(),
                    key,
                    value,
                },
            ));
        };
        set(Family::V4, "rp_filter", "1");
        set(Family::V4, "accept_redirects", "0");
        set(Family::V4, "send_redirects", "0");
        if forward4 {
            set(Family::V4, "forwarding", "1");
        }
        if host.switches.forward6.value.is_some() {
            if has_v6 {
                set(Family::V6, "accept_ra", "0");
                set(Family::V6, "accept_redirects", "0");
                set(Family::V6, "forwarding", "1");
            } else {
                set(Family::V6, "disable_ipv6", "1");
            }
        }
    }

    pub(crate) fn add_addresses(&mut self, ours: bool) {
        let device = self.tap.device.clone();
        let addresses = [self.tap.address.map(IpNet::V4), self.tap.address6.map(IpNet::V6)];
        for address in addresses.into_iter().flatten() {
            self.push(Step::AddAddress {
                device: device.clone(),
                address,
                ours,
            });
        }
    }

    /// The rules come before the device is set up: no frame passes unguarded.
    pub(crate) fn protect(&mut self, record: &Record, host: &Host) {
        let backend = self.tap.firewall;
        if backend == Backend::None {
            return;
        }
        let mut taps: Vec<Tap> = record
            .taps
            .iter()
            .filter(|tap| tap.device != self.tap.device)
            .cloned()
            .collect();
        taps.push(self.tap.clone());
        let rules = Rules::of(&taps, backend);
        let fresh = host.firewall.fresh(&rules, backend);
        self.steps.push((
            Scope::Firewall(backend),
            Step::Protect {
                backend,
                rules,
                fresh,
            },
        ));
        if self.tap.nat {
            self.notes
                .extend(host.firewall.obstacles(backend, &self.tap.device));
        }
    }

    pub(crate) fn forward(&mut self, host: &Host) {
        let off = |state: &Forwarding| state.value.clone().filter(|value| value != "1");
        let switches = &host.switches;
        if let Some(old) = off(&switches.forward4).filter(|_| self.tap.forward4) {
            self.switch_on(Scope::Forward4, Family::V4, old, &switches.forward4);
        }
        if let Some(old) = off(&switches.forward6).filter(|_| self.tap.forward6) {
            // A host that forwards forgets what routers advertised, unless it is told to listen all the same.
            for (key, old) in &switches.advertised {
                let step = Step::Set {
                    key: key.clone(),
                    old: old.clone(),
                    new: "2",
                };
                self.steps.push((Scope::Forward6, step));
            }
            self.switch_on(Scope::Forward6, Family::V6, old, &switches.forward6);
        }
    }

    fn switch_on(&mut self, scope: Scope, family: Family, old: String, state: &Forwarding) {
        let step = Step::Forward {
            key: Key::forwarding(family),
            old,
            around: state.around.clone(),
        };
        self.steps.push((scope, step));
    }

    pub(crate) fn link_up(&mut self, device: &Device, ours: bool) {
        self.push(Step::LinkUp {
            device: device.clone(),
            ours,
        });
    }
}

/// Refuses a subnet that the caller may not have or the host has in use.
pub(crate) fn check_net(net: IpNet, by_root: bool, host: &Host, except: Option<u32>) -> Result<(), Refusal> {
    if let Some(user) = host.user_of(net, except) {
        return Err(Refusal::InUse(net, user));
    }
    if !by_root && !host::is_private(net) {
        return Err(Refusal::Public(net));
    }
    Ok(())
}

/// The firewall asked for; else the one that serves the taps there are; else the one the host uses.
pub(crate) fn choose_firewall(
    wanted: Option<Backend>,
    record: &Record,
    host: &Host,
) -> Result<Backend, Refusal> {
    let present = record
        .taps
        .iter()
        .map(|tap| tap.firewall)
        .find(|backend| *backend != Backend::None);
    match (wanted, present) {
        (Some(Backend::None), _) => Ok(Backend::None),
        (Some(wanted), Some(present)) if wanted != present => Err(Refusal::Mixed { wanted, present }),
        (Some(wanted), _) if host.firewall.has(wanted) => Ok(wanted),
        (Some(Backend::Iptables), _) => Err(Refusal::NoFirewall("iptables is not installed")),
        (Some(_), _) => Err(Refusal::NoFirewall("nft is not installed")),
        (None, Some(present)) => Ok(present),
        (None, None) => host
            .firewall
            .in_use()
            .ok_or(Refusal::NoFirewall("neither nft nor iptables is installed")),
    }
}

/// The manual's name for a user's first tap; a shortened one for the others, and where the manual's does not fit.
fn choose_name(request: &UpRequest, record: &Record, host: &Host) -> Result<Device, Refusal> {
    let user = &request.user;
    let first = !record
        .taps
        .iter()
        .any(|tap| tap.uid == user.uid && tap.origin == Origin::Up);
    let manual = name::manual_name(&user.name).filter(|device| first && record.tap(device).is_none());
    if let Some(device) = manual {
        return match host.link(&device) {
            Some(_) => Err(Refusal::Foreign(device)),
            None => Ok(device),
        };
    }
    (0..100)
        .map(|attempt| name::short_name(&user.name, &request.domain, attempt))
        .find(|device| record.tap(device).is_none() && host.link(device).is_none())
        .ok_or_else(|| Refusal::NoName(user.name.clone()))
}

/// What a second `up` asked for and did not get.
fn differences(request: &UpRequest, tap: &Tap) -> Vec<String> {
    let mut notes = Vec::new();
    if tap.address != Some(request.address) {
        let has = tap
            .address
            .map_or_else(|| "no address".to_owned(), |net| net.to_string());
        notes.push(format!(
            "{} is up already with {has}: {} is ignored",
            tap.device, request.address
        ));
    }
    if let Some(wanted) = request.address6.filter(|wanted| tap.address6 != Some(*wanted)) {
        let has = tap
            .address6
            .map_or_else(|| "no IPv6 address".to_owned(), |net| net.to_string());
        notes.push(format!(
            "{} is up already with {has}: {wanted} is ignored",
            tap.device
        ));
    }
    let asked = (request.allow_host, request.allow_taps);
    if asked != (tap.allow_host, tap.allow_taps) {
        notes.push(format!(
            "{} is up already: what its guests may reach stays as it is until it is taken down",
            tap.device
        ));
    }
    if request.firewall.is_some_and(|wanted| wanted != tap.firewall) {
        notes.push(format!("{} is up already under {}", tap.device, tap.firewall));
    }
    notes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::{Address, Kind, Link};
    use crate::journal::Undo;

    fn request(user: &str, uid: u32, domain: &str, address: &str) -> UpRequest {
        UpRequest {
            user: User {
                name: user.to_owned(),
                uid,
            },
            by_root: false,
            domain: domain.to_owned(),
            address: address.parse().unwrap(),
            address6: None,
            firewall: Some(Backend::Nft),
            allow_host: false,
            allow_taps: false,
        }
    }

    fn host(forward: &str) -> Host {
        let mut host = Host::default();
        host.firewall.nft = Some(serde_json::json!({ "nftables": [] }));
        host.switches.forward4.value = Some(forward.to_owned());
        host.switches.forward6.value = Some("0".to_owned());
        host
    }

    fn make(request: &UpRequest, record: &mut Record, host: &Host) -> Plan {
        match up(request, record, host).unwrap() {
            Decision::Make(plan) => {
                record.taps.push(plan.tap.clone());
                plan
            }
            Decision::Present { .. } => panic!("there is no such tap yet"),
        }
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            master: None,
            mac: Vec::new(),
            kind: Kind::Other,
        }
    }

    #[test]
    fn the_rules_are_in_force_before_a_frame_can_pass() {
        let plan = make(
            &request("alice", 1000, "tap", "10.0.0.1/24"),
            &mut Record::default(),
            &host("0"),
        );
        let place = |wanted: fn(&Step) -> bool| plan.steps.iter().position(|(_, step)| wanted(step)).unwrap();
        let made = place(|step| matches!(step, Step::MakeTap { .. }));
        let ruled = place(|step| matches!(step, Step::Protect { .. }));
        let up = place(|step| matches!(step, Step::LinkUp { .. }));
        assert!(made == 0 && ruled < up && up == plan.steps.len() - 1);
        assert!(plan.steps.iter().any(|(scope, _)| *scope == Scope::Forward4));
    }

    #[test]
    fn forwarding_that_is_on_is_nobodys_to_switch_off() {
        let plan = make(
            &request("alice", 1000, "tap", "10.0.0.1/24"),
            &mut Record::default(),
            &host("1"),
        );
        assert!(
            !plan
                .steps
                .iter()
                .any(|(_, step)| matches!(step.undo(1), Undo::Unforward { .. }))
        );
        // The tap still counts as one that needs it, should another have switched it on.
        assert!(plan.tap.forward4);
    }

    #[test]
    fn the_first_tap_of_a_user_has_the_name_of_the_manual() {
        let mut record = Record::default();
        let first = make(
            &request("alice", 1000, "tap", "10.0.0.1/24"),
            &mut record,
            &host("1"),
        );
        let second = make(
            &request("alice", 1000, "lab", "10.0.1.1/24"),
            &mut record,
            &host("1"),
        );
        let other = make(
            &request("bob", 1001, "tap", "10.0.2.1/24"),
            &mut record,
            &host("1"),
        );
        let long = make(
            &request("maximilian", 1002, "tap", "10.0.3.1/24"),
            &mut record,
            &host("1"),
        );
        assert_eq!(first.tap.device.as_str(), "nk_tap_alice");
        assert!(first.notes.is_empty());
        assert!(second.tap.device.as_str().starts_with("nk_tap_al-"));
        assert_eq!(other.tap.device.as_str(), "nk_tap_bob");
        assert_eq!(long.tap.device.as_str(), "nk_tap_ma-pqsan");
        assert_eq!(
            long.notes,
            ["the tap of user maximilian, domain tap is called nk_tap_ma-pqsan"]
        );
        let again = up(
            &request("maximilian", 1002, "tap", "10.9.9.1/24"),
            &record,
            &host("1"),
        )
        .unwrap();
        assert!(matches!(again, Decision::Present { tap, notes }
            if tap.device == long.tap.device && notes.len() == 1 && notes[0].contains("10.9.9.1/24 is ignored")));
    }

    #[test]
    fn a_shortened_name_that_is_taken_is_not_taken_again() {
        let mut host = host("1");
        host.links.push(link(7, "nk_tap_ma-pqsan"));
        let wanted = request("maximilian", 1002, "tap", "10.0.3.1/24");
        let plan = make(&wanted, &mut Record::default(), &host);
        assert_eq!(plan.tap.device, name::short_name("maximilian", "tap", 1));
    }

    #[test]
    fn what_is_the_hosts_or_not_a_users_is_refused() {
        let mut host = host("0");
        host.links.push(link(2, "eth0"));
        host.addresses.push(Address {
            index: 2,
            net: "10.0.0.5/8".parse().unwrap(),
        });
        let refused = |request: &UpRequest, host: &Host| up(request, &Record::default(), host).unwrap_err();
        assert_eq!(
            refused(&request("alice", 1000, "tap", "10.0.0.1/24"), &host),
            Refusal::InUse("10.0.0.1/24".parse().unwrap(), "10.0.0.5/8 on eth0".to_owned())
        );
        let public = request("alice", 1000, "tap", "9.9.9.1/24");
        assert_eq!(
            refused(&public, &host),
            Refusal::Public("9.9.9.1/24".parse().unwrap())
        );
        assert!(
            up(
                &UpRequest {
                    by_root: true,
                    ..public
                },
                &Record::default(),
                &host
            )
            .is_ok()
        );
        host.links.push(link(3, "nk_tap_alice"));
        let foreign = refused(&request("alice", 1000, "tap", "192.168.0.1/24"), &host);
        assert_eq!(foreign, Refusal::Foreign("nk_tap_alice".parse().unwrap()));
        let mut without = request("bob", 1001, "tap", "192.168.0.1/24");
        without.firewall = Some(Backend::Iptables);
        assert!(matches!(refused(&without, &host), Refusal::NoFirewall(_)));
    }

    #[test]
    fn one_host_has_one_firewall() {
        let mut record = Record::default();
        make(
            &request("alice", 1000, "tap", "10.0.0.1/24"),
            &mut record,
            &host("1"),
        );
        let mut other = request("bob", 1001, "tap", "10.0.1.1/24");
        other.firewall = Some(Backend::Iptables);
        assert!(matches!(
            up(&other, &record, &host("1")),
            Err(Refusal::Mixed { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_step_can_be_undone_and_shows_how(
            forward in prop::bool::ANY,
            six in prop::bool::ANY,
            allow in prop::bool::ANY,
            third in 0u8..=255,
        ) {
            let mut wanted = request("alice", 1000, "tap", &format!("10.0.{third}.1/24"));
            wanted.address6 = six.then(|| "fd00::1/64".parse().unwrap());
            wanted.allow_host = allow;
            let mut record = Record::default();
            let plan = make(&wanted, &mut record, &host(if forward { "1" } else { "0" }));
            for (scope, step) in &plan.steps {
                prop_assert!(!step.to_string().is_empty() && !step.undo(3).to_string().is_empty());
                // What outlives the tap is in a scope of its own, so that the last user's leaving ends it.
                let shared = !matches!(scope, Scope::Tap(_));
                let outlives = matches!(step, Step::Forward { .. } | Step::Protect { .. } | Step::Set { .. });
                prop_assert_eq!(shared, outlives);
                prop_assert!(record.needs(scope));
            }
            record.taps.clear();
            prop_assert!(plan.steps.iter().all(|(scope, _)| !record.needs(scope)));
            let undone = serde_json::to_string(&plan.steps[0].1.undo(3)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Undo>(&undone).unwrap(), plan.steps[0].1.undo(3));
        }
    }
}

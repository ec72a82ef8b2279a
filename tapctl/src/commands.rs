//! The commands: who may, what is there, plan, apply, tell.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::apply::{self, Kernel};
use crate::cli::{Attach, Down, Ls, Route, Up};
use crate::firewall::{Backend, iptables, nft};
use crate::host::{Host, Link};
use crate::journal::{DIRECTORY, Entry, Journal, Origin, Record, Scope, Tap, Undo};
use crate::name::Device;
use crate::plan::{self, Decision, Plan, Refusal, UpRequest};
use crate::privilege::{self, Caller, User};
use crate::step::Step;
use crate::{Failure, attach, route};

/// One run of tapctl.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) caller: Caller,
    pub(crate) kernel: Kernel,
}

impl Session {
    pub(crate) fn begin() -> Result<Self, Failure> {
        Ok(Self {
            caller: Caller::find()?,
            kernel: Kernel::open().map_err(Failure::Kernel)?,
        })
    }

    pub(crate) fn up(&self, arguments: Up) -> Result<(), Failure> {
        let user = self.user(arguments.user.as_deref())?;
        let making = arguments.making;
        let request = UpRequest {
            by_root: self.caller.is_root,
            domain: arguments.domain.to_string(),
            address: arguments.addr,
            address6: arguments.addr6,
            firewall: making.firewall,
            allow_host: making.allow_host,
            allow_taps: making.allow_taps,
            user,
        };
        let mut journal = open()?;
        let host = self.kernel.look()?;
        let half_made = journal
            .record()
            .tap_of(request.user.uid, &request.domain)
            .filter(|tap| state(tap, &journal.record().entries, &host.links) != State::Up);
        let half_made = half_made.map(|tap| tap.device.clone());
        let host = match half_made {
            // Cut off by a crash, or removed behind our back: what is left of it goes first.
            Some(device) if !making.dry_run => {
                self.take_down(&[device], &mut journal)?;
                self.kernel.look()?
            }
            _ => host,
        };
        let decision = plan::up(&request, journal.record(), &host)?;
        self.carry_out(decision, None, &mut journal, making.dry_run, making.json)
    }

    pub(crate) fn attach(&self, arguments: Attach) -> Result<(), Failure> {
        let user = self.user(arguments.user.as_deref())?;
        let making = arguments.making;
        if !matches!(arguments.spec.link, attach::Link::Bridge(_))
            && (arguments.create_bridge || arguments.bridge_port.is_some())
        {
            return Err(Failure::Misuse(
                "--create-bridge and --bridge-port need a bridge in the specification".into(),
            ));
        }
        let guest = arguments.spec.guest;
        let request = attach::Request {
            by_root: self.caller.is_root,
            create_bridge: arguments.create_bridge,
            bridge_port: arguments.bridge_port,
            firewall: making.firewall,
            allow_host: making.allow_host,
            allow_taps: making.allow_taps,
            mac: random_mac().map_err(Failure::Kernel)?,
            spec: arguments.spec,
            user,
        };
        let mut journal = open()?;
        let host = self.kernel.look()?;
        let decision = attach::plan(&request, journal.record(), &host)?;
        self.carry_out(decision, guest, &mut journal, making.dry_run, making.json)
    }

    pub(crate) fn route(&self, arguments: &Route) -> Result<(), Failure> {
        let mut journal = open()?;
        let host = self.kernel.look()?;
        let lan = arguments.proxy_arp.as_ref();
        let decision = route::plan(
            &self.caller,
            arguments.address,
            &arguments.dev,
            lan,
            journal.record(),
            &host,
        )?;
        self.carry_out(decision, None, &mut journal, arguments.dry_run, arguments.json)
    }

    pub(crate) fn down(&self, arguments: Down) -> Result<(), Failure> {
        let named = arguments.user.is_some();
        let user = self.user(arguments.user.as_deref())?;
        let mut journal = open()?;
        let record = journal.record();
        let taps: Vec<Tap> = record
            .taps
            .iter()
            .filter(|tap| match &arguments.dev {
                Some(device) => tap.device == *device,
                None if arguments.all => tap.uid == user.uid || (self.caller.is_root && !named),
                None => {
                    let domain = arguments.domain.as_ref().map_or("tap", |domain| domain.as_str());
                    tap.uid == user.uid && tap.domain.as_deref() == Some(domain)
                }
            })
            .cloned()
            .collect();
        if let Some(tap) = taps
            .iter()
            .find(|tap| !self.caller.is_root && tap.uid != self.caller.user.uid)
        {
            return Err(Refusal::NotYours(tap.device.clone(), self.caller.user.name.clone()).into());
        }
        if arguments.dry_run {
            return print_undo(&taps, record, arguments.json);
        }
        self.powerful()?;
        let devices: Vec<Device> = taps.iter().map(|tap| tap.device.clone()).collect();
        // Even with no tap to take down: a killed tapctl may have left something that no tap needs.
        self.take_down(&devices, &mut journal)?;
        if devices.is_empty() && !arguments.json {
            eprintln!("tapctl: there is no such tap: nothing to take down");
        }
        let rows: Vec<Row> = taps.iter().map(|tap| Row::new(tap, State::Gone)).collect();
        print(arguments.json, &rows, |out| {
            rows.iter()
                .try_for_each(|row| writeln!(out, "{} is gone", row.device))
        })
    }

    pub(crate) fn ls(&self, arguments: &Ls) -> Result<(), Failure> {
        let record = Journal::read(Path::new(DIRECTORY))?;
        let links = self.kernel.look_at_links()?;
        let rows: Vec<Row> = record
            .taps
            .iter()
            .filter(|tap| arguments.all || self.caller.is_root || tap.uid == self.caller.user.uid)
            .map(|tap| Row::new(tap, state(tap, &record.entries, &links)))
            .collect();
        print(arguments.json, &rows, |out| {
            if !rows.is_empty() {
                writeln!(
                    out,
                    "{:<15} {:<12} {:<12} {:<18} {:<8} STATE",
                    "DEVICE", "USER", "DOMAIN", "ADDRESS", "FIREWALL"
                )?;
            }
            for row in &rows {
                let address = row
                    .address
                    .clone()
                    .or_else(|| row.bridge.clone())
                    .unwrap_or_else(|| "-".into());
                writeln!(
                    out,
                    "{:<15} {:<12} {:<12} {:<18} {:<8} {}",
                    row.device,
                    row.user,
                    row.domain.as_deref().unwrap_or("-"),
                    address,
                    row.firewall.to_string(),
                    row.state.as_str()
                )?;
                if let Some(address) = &row.address6 {
                    writeln!(out, "{:<41} {address}", "")?;
                }
                for route in &row.routes {
                    writeln!(out, "{:<41} {route}", "")?;
                }
            }
            Ok(())
        })
    }

    /// The user to act for: the caller, unless root names another.
    pub(crate) fn user(&self, name: Option<&str>) -> Result<User, Failure> {
        let Some(name) = name else {
            return Ok(self.caller.user.clone());
        };
        let user = User::find(name).ok_or_else(|| Failure::Misuse(format!("there is no user '{name}'")))?;
        if self.caller.is_root || user.uid == self.caller.user.uid {
            Ok(user)
        } else {
            Err(Refusal::RootOnly("act for another user").into())
        }
    }

    pub(crate) fn powerful(&self) -> Result<(), Failure> {
        if privilege::can_change_network() {
            Ok(())
        } else {
            Err(Failure::Powerless)
        }
    }

    pub(crate) fn take_down(&self, devices: &[Device], journal: &mut Journal) -> Result<(), Failure> {
        let errors = apply::down(devices, journal, &self.kernel);
        for error in &errors {
            eprintln!("tapctl: {}", crate::chain(error));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Failure::Left(errors.len()))
        }
    }

    fn carry_out(
        &self,
        decision: Decision,
        guest: Option<ipnet::Ipv4Net>,
        journal: &mut Journal,
        dry_run: bool,
        json: bool,
    ) -> Result<(), Failure> {
        let (tap, made, notes) = match decision {
            Decision::Present { tap, notes } => (tap, false, notes),
            Decision::Make(plan) if dry_run => return print_plan(&plan, json),
            Decision::Make(plan) => {
                self.powerful()?;
                let errors = apply::tidy(journal, &self.kernel);
                errors
                    .iter()
                    .for_each(|error| eprintln!("tapctl: {}", crate::chain(error)));
                apply::run(&plan, journal, &self.kernel)?;
                (plan.tap, true, plan.notes)
            }
        };
        for note in &notes {
            eprintln!("tapctl: note: {note}");
        }
        let done = Done {
            tap: Row::new(&tap, State::Up),
            made,
            guest: guest.map(|net| net.to_string()),
            notes,
        };
        print(json, &done, |out| {
            let row = &done.tap;
            writeln!(out, "device {}", row.device)?;
            for (word, value) in [
                ("host", &row.address),
                ("host6", &row.address6),
                ("bridge", &row.bridge),
                ("guest", &done.guest),
            ] {
                if let Some(value) = value {
                    writeln!(out, "{word} {value}")?;
                }
            }
            row.routes
                .iter()
                .try_for_each(|route| writeln!(out, "route {route}"))?;
            writeln!(out, "{}", if made { "made" } else { "present" })
        })
    }
}

/// What `--json` prints after `up`, `attach` and `route`.
#[derive(Debug, Serialize)]
struct Done {
    #[serde(flatten)]
    tap: Row,
    /// False if it was there already.
    made: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<String>,
    notes: Vec<String>,
}

/// One tap as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    device: String,
    user: String,
    uid: u32,
    domain: Option<String>,
    origin: Origin,
    address: Option<String>,
    address6: Option<String>,
    routes: Vec<String>,
    bridge: Option<String>,
    firewall: Backend,
    allow_host: bool,
    allow_taps: bool,
    state: State,
}

/// What has become of a tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Up,
    /// A crash came in between: `up` or `down` will put it right.
    Incomplete,
    /// The device is not there (any longer).
    Gone,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Incomplete => "incomplete",
            Self::Gone => "gone",
        }
    }
}

fn state(tap: &Tap, entries: &[Entry], links: &[Link]) -> State {
    let index = entries.iter().find_map(|entry| match &entry.undo {
        Undo::RemoveTap(on) if on.device == tap.device => Some(on.index),
        _ => None,
    });
    let there = links
        .iter()
        .any(|link| link.name == tap.device.as_str() && index.is_none_or(|index| link.index == index));
    match (tap.complete, there) {
        (true, true) => State::Up,
        (true, false) => State::Gone,
        (false, _) => State::Incomplete,
    }
}

impl Row {
    fn new(tap: &Tap, state: State) -> Self {
        Self {
            device: tap.device.to_string(),
            user: tap.user.clone(),
            uid: tap.uid,
            domain: tap.domain.clone(),
            origin: tap.origin,
            address: tap.address.map(|net| net.to_string()),
            address6: tap.address6.map(|net| net.to_string()),
            routes: tap.routes.iter().map(ToString::to_string).collect(),
            bridge: tap.bridge.as_ref().map(ToString::to_string),
            firewall: tap.firewall,
            allow_host: tap.allow_host,
            allow_taps: tap.allow_taps,
            state,
        }
    }
}

/// A step of `--dry-run --json`.
#[derive(Debug, Serialize)]
struct DryStep {
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    make: Option<String>,
    undo: String,
    /// What the firewall's tool would read.
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<String>,
}

fn print_plan(plan: &Plan, json: bool) -> Result<(), Failure> {
    let script = |step: &Step| match step {
        Step::Protect {
            backend: Backend::Nft,
            rules,
            ..
        } => Some(nft::script(rules)),
        Step::Protect {
            backend: Backend::Iptables,
            rules,
            ..
        } => Some(iptables::script(rules, false, "")),
        _ => None,
    };
    let steps: Vec<DryStep> = plan
        .steps
        .iter()
        .map(|(_, step)| DryStep {
            make: Some(step.to_string()),
            undo: step.undo(0).to_string(),
            script: script(step),
        })
        .collect();
    for note in &plan.notes {
        eprintln!("tapctl: note: {note}");
    }
    print(json, &steps, |out| {
        for step in &steps {
            writeln!(
                out,
                "{:<58} undo: {}",
                step.make.as_deref().unwrap_or_default(),
                step.undo
            )?;
            for line in step.script.iter().flat_map(|script| script.lines()) {
                writeln!(out, "    {line}")?;
            }
        }
        Ok(())
    })
}

fn print_undo(taps: &[Tap], record: &Record, json: bool) -> Result<(), Failure> {
    let mut after = record.clone();
    after
        .taps
        .retain(|tap| !taps.iter().any(|gone| gone.device == tap.device));
    let goes = |entry: &&Entry| match &entry.scope {
        Scope::Tap(device) => taps.iter().any(|tap| tap.device == *device),
        scope => !after.needs(scope),
    };
    let steps: Vec<DryStep> = record
        .entries
        .iter()
        .rev()
        .filter(goes)
        .map(|entry| DryStep {
            make: None,
            undo: entry.undo.to_string(),
            script: None,
        })
        .collect();
    print(json, &steps, |out| {
        steps.iter().try_for_each(|step| writeln!(out, "{}", step.undo))
    })
}

fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer(&mut out, value)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        text(&mut out)
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}

pub(crate) fn open() -> Result<Journal, Failure> {
    Ok(Journal::open(Path::new(DIRECTORY))?)
}

/// A hardware address nobody has: locally administered, unicast.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut mac)?;
    mac[0] = (mac[0] & 0xfc) | 0x02;
    Ok(mac)
}

impl Kernel {
    /// The interfaces alone, for a listing.
    fn look_at_links(&self) -> Result<Vec<Link>, Failure> {
        let host: Result<Host, _> = self.look();
        Ok(host?.links)
    }
}

//! Makes the steps of a plan, and undoes what the journal tells.
//!
//! What would undo a step is on the disk before the step is made. A step that fails has the finished ones undone;
//! undoing goes on when something cannot be undone, keeps that in the journal, and tells all of it.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};

use netio::tap::{Tap as TapDevice, TapFlags};
use nix::sys::signal::{SigSet, Signal};

use crate::firewall::{self, FirewallError, Fresh, Rules};
use crate::host::{Host, Kind, Switches};
use crate::journal::{Entry, Journal, JournalError, Record, Scope, Undo};
use crate::link::Netlink;
use crate::name::Device;
use crate::plan::Plan;
use crate::step::{Step, format_mac};
use crate::tool::ToolError;

/// Why a step was not made or not undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("cannot {0}")]
    Step(String, #[source] io::Error),
    #[error("cannot {0}")]
    Rules(String, #[source] FirewallError),
    #[error("cannot look at the host's network")]
    Look(#[from] io::Error),
    #[error("cannot look at the host's firewall")]
    LookRules(#[from] ToolError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("interrupted: what was done has been undone")]
    Interrupted,
}

/// The kernel, as far as taps go.
#[derive(Debug)]
pub(crate) struct Kernel {
    netlink: Netlink,
    signals: nix::sys::signalfd::SignalFd,
}

impl Kernel {
    /// Opens the kernel's interfaces. From here on signals wait until a step is done.
    pub(crate) fn open() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        let flags = nix::sys::signalfd::SfdFlags::SFD_NONBLOCK | nix::sys::signalfd::SfdFlags::SFD_CLOEXEC;
        let signals = nix::sys::signalfd::SignalFd::with_flags(&set, flags)?;
        Ok(Self {
            netlink: Netlink::open()?,
            signals,
        })
    }

    /// The host as it is now.
    pub(crate) fn look(&self) -> Result<Host, ApplyError> {
        let links = self.netlink.links()?;
        let routes = self.netlink.routes()?;
        Ok(Host {
            addresses: self.netlink.addresses()?,
            switches: Switches::look(&links, &routes),
            firewall: firewall::Seen::look()?,
            links,
            routes,
        })
    }

    fn interrupted(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }

    fn index(&self, device: &Device) -> io::Result<u32> {
        let links = self.netlink.links()?;
        let link = links.iter().find(|link| link.name == device.as_str());
        link.map(|link| link.index)
            .ok_or_else(|| io::Error::from(nix::Error::ENODEV))
    }
}

/// Makes all steps of a plan, or none.
pub(crate) fn run(plan: &Plan, journal: &mut Journal, kernel: &Kernel) -> Result<(), ApplyError> {
    let before = journal.record().clone();
    match make_all(plan, journal, kernel) {
        Ok(()) => Ok(()),
        Err(error) => {
            let mut errors = roll_back(&before, journal, kernel);
            match errors.pop() {
                None => Err(error),
                // The journal still knows what could not be undone; the first cause is what the user needs.
                Some(more) => {
                    eprintln!("tapctl: {}", crate::chain(&more));
                    Err(error)
                }
            }
        }
    }
}

fn make_all(plan: &Plan, journal: &mut Journal, kernel: &Kernel) -> Result<(), ApplyError> {
    let device = plan.tap.device.clone();
    journal.write(|record| {
        record.taps.retain(|tap| tap.device != device);
        record.taps.push(plan.tap.clone());
    })?;
    for (scope, step) in &plan.steps {
        if kernel.interrupted() {
            return Err(ApplyError::Interrupted);
        }
        crash_point();
        make(scope, step, journal, kernel)?;
    }
    crash_point();
    journal.write(|record| {
        for tap in &mut record.taps {
            tap.complete |= tap.device == device;
        }
    })?;
    crash_point();
    Ok(())
}

fn make(scope: &Scope, step: &Step, journal: &mut Journal, kernel: &Kernel) -> Result<(), ApplyError> {
    let failed = |error: io::Error| ApplyError::Step(step.to_string(), error);
    if let Step::MakeTap { device, owner, group } = step {
        // Until it is persistent the device dies with this process, so its index can be written down in between.
        let flags = TapFlags {
            exclusive: true,
            ..TapFlags::default()
        };
        let (fd, _) = TapDevice::open(device.if_name(), flags).map_err(failed)?;
        if let Some(uid) = owner {
            TapDevice::set_owner(&fd, *uid).map_err(failed)?;
        }
        if let Some(gid) = group {
            TapDevice::set_group(&fd, *gid).map_err(failed)?;
        }
        enter(scope, step, kernel.index(device).map_err(failed)?, journal)?;
        TapDevice::set_persist(fd.as_fd(), true).map_err(failed)?;
        crash_point();
        return Ok(());
    }
    let index = match step.device() {
        Some(device) => kernel.index(device).map_err(failed)?,
        None => 0,
    };
    enter(scope, step, index, journal)?;
    let netlink = &kernel.netlink;
    let done = match step {
        Step::MakeTap { .. } => Ok(()),
        Step::MakeBridge { device, mac } => netlink.add_bridge(device, mac),
        Step::Configure { key, value, .. } => key.write(value),
        Step::Set { key, new, .. } => key.write(new),
        Step::Forward { key, .. } => key.write("1"),
        Step::Protect { backend, .. } => {
            let rules = Rules::of(&journal.record().taps, *backend);
            firewall::install(*backend, &rules)
                .map_err(|error| ApplyError::Rules(step.to_string(), error))?;
            Ok(())
        }
        Step::AddAddress { address, .. } => netlink.add_address(index, *address),
        Step::Join { bridge, .. } => kernel
            .index(bridge)
            .and_then(|bridge| netlink.set_master(index, bridge)),
        Step::LinkUp { .. } => netlink.set_up(index, true),
        Step::AddRoute { to, .. } => netlink.add_route(index, *to),
        Step::AddProxy { address, .. } => netlink.add_proxy(index, *address),
    };
    done.map_err(failed)?;
    crash_point();
    Ok(())
}

/// Writes down how to undo a step that is about to be made.
fn enter(scope: &Scope, step: &Step, index: u32, journal: &mut Journal) -> Result<(), ApplyError> {
    let undo = step.undo(index);
    // One entry takes all our rules away; a further one is needed only for tables it does not know of.
    let known = matches!(&undo, Undo::RemoveRules { fresh } if fresh.is_empty())
        && journal.record().entries.iter().any(|entry| entry.scope == *scope);
    if !known {
        journal.write(|record| {
            record.entries.push(Entry {
                scope: scope.clone(),
                undo,
            })
        })?;
    }
    crash_point();
    Ok(())
}

/// Undoes what a failed plan has done.
fn roll_back(before: &Record, journal: &mut Journal, kernel: &Kernel) -> Vec<ApplyError> {
    let kept = before.entries.len();
    let mut errors = undo_where(journal, kernel, |position, entry| {
        position >= kept && !matches!(entry.scope, Scope::Firewall(_))
    });
    let taps = before.taps.clone();
    let result = journal.write(|record| {
        record.taps = taps;
        record.rules_outdated = true;
    });
    errors.extend(result.err().map(ApplyError::from));
    errors.extend(tidy(journal, kernel));
    errors
}

/// Takes taps down: undoes their steps, then what was made for them and is needed by no other.
pub(crate) fn down(devices: &[Device], journal: &mut Journal, kernel: &Kernel) -> Vec<ApplyError> {
    let mut errors = Vec::new();
    for device in devices {
        let scope = Scope::Tap(device.clone());
        let mut failed = undo_where(journal, kernel, |_, entry| entry.scope == scope);
        if failed.is_empty() {
            let result = journal.write(|record| {
                record.taps.retain(|tap| tap.device != *device);
                record.rules_outdated = true;
            });
            failed.extend(result.err().map(ApplyError::from));
            crash_point();
        }
        errors.append(&mut failed);
    }
    errors.extend(tidy(journal, kernel));
    errors
}

/// Undoes what no tap needs any longer and brings the rules up to date, whoever left that undone.
pub(crate) fn tidy(journal: &mut Journal, kernel: &Kernel) -> Vec<ApplyError> {
    let record = journal.record().clone();
    let mut errors = undo_where(journal, kernel, |_, entry| {
        !matches!(entry.scope, Scope::Tap(_)) && !record.needs(&entry.scope)
    });
    if journal.record().rules_outdated {
        for backend in [firewall::Backend::Nft, firewall::Backend::Iptables] {
            let scope = Scope::Firewall(backend);
            let record = journal.record();
            if record.entries.iter().any(|entry| entry.scope == scope) && record.needs(&scope) {
                let fresh: Vec<Fresh> = record
                    .entries
                    .iter()
                    .filter(|entry| entry.scope == scope)
                    .filter_map(|entry| match &entry.undo {
                        Undo::RemoveRules { fresh } => Some(fresh.clone()),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                let result = firewall::update(backend, &Rules::of(&record.taps, backend), &fresh);
                errors.extend(
                    result.err().map(|error| {
                        ApplyError::Rules(format!("bring the {backend} rules up to date"), error)
                    }),
                );
                crash_point();
            }
        }
        if errors.is_empty() {
            let result = journal.write(|record| record.rules_outdated = false);
            errors.extend(result.err().map(ApplyError::from));
        }
    }
    errors
}

/// Undoes the chosen entries, latest first. What is undone leaves the journal, what is not stays.
fn undo_where(
    journal: &mut Journal,
    kernel: &Kernel,
    chosen: impl Fn(usize, &Entry) -> bool,
) -> Vec<ApplyError> {
    let mut errors = Vec::new();
    for position in (0..journal.record().entries.len()).rev() {
        let entry = journal.record().entries[position].clone();
        if !chosen(position, &entry) {
            continue;
        }
        crash_point();
        let result = undo(&entry, kernel).and_then(|()| {
            crash_point();
            Ok(journal.write(|record| {
                record.entries.remove(position);
            })?)
        });
        errors.extend(result.err());
    }
    errors
}

fn undo(entry: &Entry, kernel: &Kernel) -> Result<(), ApplyError> {
    let failed = |error: io::Error| ApplyError::Step(entry.undo.to_string(), error);
    let netlink = &kernel.netlink;
    let still = |on: &crate::journal::On| netlink.is(on.index, &on.device).map_err(failed);
    match &entry.undo {
        Undo::WithDevice { .. } => Ok(()),
        Undo::RemoveTap(on) if still(on)? => netlink.delete(on.index).map_err(failed),
        Undo::RemoveAddress { on, address } if still(on)? => {
            netlink.delete_address(on.index, *address).map_err(failed)
        }
        Undo::LinkDown(on) if still(on)? => netlink.set_up(on.index, false).map_err(failed),
        Undo::RemoveRoute { on, to } if still(on)? => netlink.delete_route(on.index, *to).map_err(failed),
        Undo::RemoveProxy { on, address } if still(on)? => {
            netlink.delete_proxy(on.index, *address).map_err(failed)
        }
        Undo::LeaveBridge { on, bridge } if still(on)? => {
            let links = netlink.links().map_err(failed)?;
            let bridge = links
                .iter()
                .find(|link| link.name == bridge.as_str())
                .map(|link| link.index);
            let inside = links
                .iter()
                .any(|link| link.index == on.index && link.master.is_some() && link.master == bridge);
            if inside {
                netlink.set_master(on.index, 0).map_err(failed)
            } else {
                Ok(())
            }
        }
        Undo::RemoveBridge { device, mac } => {
            let links = netlink.links().map_err(failed)?;
            let ours = links.iter().find(|link| {
                link.name == device.as_str() && link.kind == Kind::Bridge && format_mac(&link.mac) == *mac
            });
            ours.map_or(Ok(()), |link| netlink.delete(link.index).map_err(failed))
        }
        Undo::Restore { key, old, ours } => match key.read() {
            Some(value) if value == *ours => key.write(old).map_err(failed),
            _ => Ok(()),
        },
        Undo::Unforward { key, old, around } => {
            match key.read() {
                // Already back: an earlier attempt may have been cut off before the rest was.
                Some(value) if value == *old => {}
                Some(value) if value == "1" => key.write(old).map_err(failed)?,
                _ => return Ok(()),
            }
            crash_point();
            for (key, value) in around {
                if key.read().is_some() {
                    key.write(value).map_err(failed)?;
                }
            }
            Ok(())
        }
        Undo::RemoveRules { fresh } => match entry.scope {
            Scope::Firewall(backend) => firewall::remove(backend, fresh)
                .map_err(|error| ApplyError::Rules(entry.undo.to_string(), error)),
            _ => Ok(()),
        },
        // The device is gone or another's by now.
        Undo::RemoveTap(_)
        | Undo::RemoveAddress { .. }
        | Undo::LinkDown(_)
        | Undo::RemoveRoute { .. }
        | Undo::RemoveProxy { .. }
        | Undo::LeaveBridge { .. } => Ok(()),
    }
}

/// A place where a test may have the process killed: the nth passed, by `TAPCTL_TEST_CRASH_AT=n`.
///
/// Only in debug builds: a release build has no such variable.
fn crash_point() {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    if cfg!(debug_assertions) {
        let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
        let wanted = std::env::var("TAPCTL_TEST_CRASH_AT")
            .ok()
            .and_then(|text| text.parse::<u32>().ok());
        if wanted == Some(passed) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGKILL);
        }
    }
}

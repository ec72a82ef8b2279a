//! Many senders to one receiver: the rate it takes, and the share each of them has of it.

use std::time::Duration;

use serde::Serialize;

use crate::cell::{CellError, median};
use crate::contestant::{Contestant, Kind};
use crate::load::{Delivery, Load, LoadError, Traffic, run};
use crate::port::Attach;
use crate::report::{Report, SenderRow};
use crate::stop::Stop;

/// What became of them at one switch.
#[derive(Clone, Debug, Serialize)]
pub struct Converge {
    /// The switch, and the kinds of its ports.
    pub name: String,
    /// Ports that send.
    pub senders: u16,
    /// Frames delivered a second: median of the rounds.
    pub delivered_per_s: f64,
    /// Lost frames, of a hundred: median of the rounds.
    pub loss_percent: f64,
    /// The smallest and the greatest share of a sender, 1 being an equal one: medians of the rounds.
    pub shares: (f64, f64),
}

/// Loads each switch, in turns: switchd by ports of the uml_switch protocol, of BESS, and of these and VDE mixed.
///
/// # Errors
/// When a switch does not start or goes away.
pub fn converge(
    kinds: &[Kind],
    senders: u16,
    rounds: u32,
    time: Duration,
    stop: &Stop,
) -> Result<Vec<Converge>, CellError> {
    let mixed = |kind: &Kind| match kind {
        Kind::SwitchdBess(program) => Some((Kind::Switchd(program.clone()), true)),
        _ => None,
    };
    let plain = kinds.iter().map(|kind| (kind.clone(), false));
    let all: Vec<(Kind, bool)> = plain.chain(kinds.iter().filter_map(mixed)).collect();
    let mut reports: Vec<Vec<Report>> = all.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((kind, mixed), reports) in all.iter().zip(&mut reports) {
            let switch = Contestant::start(kind, Delivery::Switch)?;
            let also = |(extension, attach)| (switch.control().with_extension(extension), attach);
            let ways = [("vde", Attach::Connected), ("bess", Attach::Bess)].map(also);
            let load = Load {
                attach: kind.attach(Attach::Uml),
                also: if *mixed { ways.to_vec() } else { Vec::new() },
                ports: senders + 1,
                senders,
                traffic: Traffic::Converge,
                delivery: Delivery::Switch,
                time,
                ..Load::new(switch.control())
            };
            let report = match run(load, stop) {
                Ok(_) if stop.is_set() => Err(LoadError::Interrupted),
                other => other,
            };
            reports.push(report.map_err(|source| CellError::Load {
                switch: kind.clone(),
                source,
            })?);
        }
    }
    let rows = all.iter().zip(&reports).map(|((kind, mixed), reports)| {
        let middle = |value: &dyn Fn(&Report) -> f64| {
            median(&mut reports.iter().map(value).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        let shares = |report: &Report, pick: fn(f64, f64) -> f64| {
            let share = |row: &SenderRow| row.share;
            report.senders.iter().map(share).reduce(pick).unwrap_or(0.0)
        };
        Converge {
            name: format!("{kind}{}", if *mixed { " uml, vde and bess" } else { "" }),
            senders,
            delivered_per_s: middle(&|report| report.delivered_per_s),
            loss_percent: middle(&|report| report.loss_percent),
            shares: (
                middle(&|report| shares(report, f64::min)),
                middle(&|report| shares(report, f64::max)),
            ),
        }
    });
    Ok(rows.collect())
}

//! The cells of the comparison: one combination of mode, ports, traffic and frame size each.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::contestant::{Contestant, Kind, StartError};
use crate::load::{Delivery, Load, LoadError, Traffic, run};
use crate::machine::wait_until_quiet;
use crate::port::Attach;
use crate::report::Report;
use crate::stop::Stop;

/// One combination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Cell {
    /// Hub or learning switch.
    pub mode: Delivery,
    /// Ports attached; one of them sends.
    pub ports: u16,
    /// To the second port, or to all.
    pub traffic: Traffic,
    /// Bytes of a frame without checksum.
    pub size: usize,
}

/// Frame sizes without checksum: what is called 64 and 1518 bytes on a wire.
const SIZES: [usize; 2] = [60, 1514];
const PORTS: [u16; 2] = [2, 8];

impl Cell {
    /// Every combination, in the order of the table.
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for mode in [Delivery::Hub, Delivery::Switch] {
            for ports in PORTS {
                for traffic in [Traffic::Unicast, Traffic::Flood] {
                    cells.extend(SIZES.map(|size| Self {
                        mode,
                        ports,
                        traffic,
                        size,
                    }));
                }
            }
        }
        cells
    }
}

/// The name that `--only` looks into, such as `hub/2/unicast/1514`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Delivery::Hub => "hub",
            Delivery::Switch => "switch",
        };
        let traffic = match self.traffic {
            Traffic::Unicast => "unicast",
            Traffic::Flood => "flood",
            Traffic::Converge => "converge",
        };
        write!(f, "{mode}/{}/{traffic}/{}", self.ports, self.size)
    }
}

/// What one switch did in one cell, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// Which switch.
    pub switch: String,
    /// Frames delivered a second, all receivers together: median of the rounds.
    pub delivered_per_s: f64,
    /// The slowest and the fastest round.
    pub range: (f64, f64),
    /// Lost frames of all rounds, of a hundred.
    pub loss_percent: f64,
    /// Frames reordered, duplicate, damaged, or delivered to the wrong port, of all rounds.
    pub wrong: u64,
    /// Processor time of the switch for one delivered frame, in microseconds: median of the rounds.
    pub cpu_us_per_frame: Option<f64>,
    /// Delivered rate by that of the first switch in the same round: median of the rounds.
    pub ratio: f64,
}

/// A cell with the scores of all switches, in the order they were given.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The combination.
    pub cell: Cell,
    /// Each switch.
    pub scores: Vec<Score>,
    /// Measurements made although the machine had other work to do.
    pub noisy: u32,
}

/// How thoroughly a cell is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Times each switch is loaded.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
    /// How long to wait before each for a machine without other work; zero is not at all.
    pub patience: Duration,
    /// How clients of the uml_switch protocol attach.
    pub clients: Attach,
}

/// Why a cell has no result.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// A switch did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The load could not be run.
    #[error("cannot load {switch}")]
    Load {
        /// Which switch.
        switch: Kind,
        /// Why.
        #[source]
        source: LoadError,
    },
}

/// Measures every switch in one cell: all of them in each round, one after the other, each freshly started.
///
/// # Errors
/// When a switch does not start or goes away.
pub fn measure(cell: Cell, kinds: &[Kind], effort: Effort, stop: &Stop) -> Result<Row, CellError> {
    let mut reports: Vec<Vec<Report>> = kinds.iter().map(|_| Vec::new()).collect();
    let mut noisy = 0;
    for _ in 0..effort.rounds {
        for (kind, reports) in kinds.iter().zip(&mut reports) {
            noisy += u32::from(!wait_until_quiet(effort.patience, stop));
            reports.push(once(cell, kind, effort, stop)?);
        }
    }
    let base: Vec<f64> = reports
        .first()
        .into_iter()
        .flatten()
        .map(|r| r.delivered_per_s)
        .collect();
    let scores = kinds.iter().zip(&reports);
    let scores = scores
        .map(|(kind, reports)| score(kind, reports, &base))
        .collect();
    Ok(Row { cell, scores, noisy })
}

fn once(cell: Cell, kind: &Kind, effort: Effort, stop: &Stop) -> Result<Report, CellError> {
    let switch = Contestant::start(kind, cell.mode)?;
    let load = Load {
        attach: kind.attach(effort.clients),
        ports: cell.ports,
        traffic: cell.traffic,
        size: cell.size,
        delivery: cell.mode,
        time: effort.time,
        switch_pid: Some(switch.pid()),
        ..Load::new(switch.control())
    };
    let report = run(load, stop);
    match report {
        Ok(_) if stop.is_set() => Err(LoadError::Interrupted),
        other => other,
    }
    .map_err(|source| CellError::Load {
        switch: kind.clone(),
        source,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn score(kind: &Kind, reports: &[Report], base: &[f64]) -> Score {
    let mut rates: Vec<f64> = reports.iter().map(|r| r.delivered_per_s).collect();
    let mut cpu: Vec<f64> = reports.iter().filter_map(|r| r.switch_cpu_us_per_frame).collect();
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    let lost = sum(|r| r.lost);
    let expected = lost + sum(|r| r.delivered);
    let mut ratios: Vec<f64> = rates.iter().zip(base).map(|(rate, base)| rate / base).collect();
    let delivered_per_s = median(&mut rates).unwrap_or(0.0);
    Score {
        switch: kind.to_string(),
        delivered_per_s,
        range: (
            rates.first().copied().unwrap_or(0.0),
            rates.last().copied().unwrap_or(0.0),
        ),
        loss_percent: lost as f64 * 100.0 / expected.max(1) as f64,
        wrong: sum(|r| r.reordered + r.duplicates + r.damaged + r.strays + r.foreign),
        cpu_us_per_frame: median(&mut cpu),
        ratio: median(&mut ratios).unwrap_or(0.0),
    }
}

/// Sorts, and returns the middle value or the mean of the two middle ones.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0]), Some(3.0));
        assert_eq!(median(&mut [3.0, 1.0]), Some(2.0));
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn names_tell_cells_apart() {
        let mut names: Vec<String> = Cell::all().iter().map(Cell::to_string).collect();
        assert_eq!(names[1], "hub/2/unicast/1514");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 16);
    }
}

//! What came of a load: for a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::flow::Flow;
use crate::load::{Load, Traffic};
use crate::threads::{Received, Sent};

/// What came of a load.
///
/// Rates are of the time in which the senders sent; counts are of everything, the frames that arrived later included.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was offered to whom.
    pub load: Load,
    /// How long the senders sent.
    pub seconds: f64,
    /// Frames the switch took from the senders.
    pub offered: u64,
    /// The same, a second.
    pub offered_per_s: f64,
    /// Frames given up because the switch's socket was full; only without blocking.
    pub refused: u64,
    /// Frames that arrived where they had to, at all ports together.
    pub delivered: u64,
    /// The same, a second.
    pub delivered_per_s: f64,
    /// Frames that should have arrived and did not.
    pub lost: u64,
    /// The same, of a hundred.
    pub loss_percent: f64,
    /// Frames that came after a later one of the same sender.
    pub reordered: u64,
    /// Frames that came again.
    pub duplicates: u64,
    /// Frames that came changed.
    pub damaged: u64,
    /// Frames of somebody else.
    pub foreign: u64,
    /// Frames that came to a port they should not have come to.
    pub strays: u64,
    /// Processor time of the switch while the senders sent.
    pub switch_cpu_s: Option<f64>,
    /// The same for one delivered frame, in microseconds.
    pub switch_cpu_us_per_frame: Option<f64>,
    /// Each port that had something to receive.
    pub receivers: Vec<ReceiverRow>,
    /// Each sender, where they have a receiver in common.
    pub senders: Vec<SenderRow>,
}

/// What became of the frames of one sender at the receiver all of them have in common.
#[derive(Clone, Debug, Serialize)]
pub struct SenderRow {
    /// Which.
    pub port: u16,
    /// Frames the switch took from it.
    pub offered: u64,
    /// Frames that arrived.
    pub delivered: u64,
    /// The same by what it would be if all senders had the same: 1 is a fair share.
    pub share: f64,
}

/// What one port received.
#[derive(Clone, Debug, Serialize)]
pub struct ReceiverRow {
    /// Which.
    pub port: u16,
    /// Frames it should have got.
    pub expected: u64,
    /// Frames it got, each counted once.
    pub delivered: u64,
    /// The same, a second.
    pub delivered_per_s: f64,
    /// Frames it did not get.
    pub lost: u64,
    /// Frames that came after a later one of the same sender.
    pub reordered: u64,
    /// Frames that came again.
    pub duplicates: u64,
    /// Frames that came changed.
    pub damaged: u64,
    /// Frames of somebody else.
    pub foreign: u64,
    /// Frames that should not have come here.
    pub strays: u64,
}

impl Report {
    pub(crate) fn new(
        load: Load,
        window: Duration,
        offered_in_window: u64,
        delivered_in_window: &[u64],
        cpu: Option<Duration>,
        sent: &[Sent],
        received: &[Received],
    ) -> Self {
        let seconds = window.as_secs_f64();
        let per_s = |n: u64| to_f64(n) / seconds.max(f64::MIN_POSITIVE);
        let rows = (0..load.ports)
            .zip(received.iter().zip(delivered_in_window))
            .map(|(port, (received, &in_window))| row(&load, port, sent, received, per_s(in_window)));
        let all: Vec<ReceiverRow> = rows.collect();
        let sum = |count: fn(&ReceiverRow) -> u64| all.iter().map(count).sum::<u64>();
        let lost = sum(|r| r.lost);
        let delivered_in_window = delivered_in_window.iter().sum::<u64>();
        let switch_cpu_s = cpu.map(|cpu| cpu.as_secs_f64());
        Self {
            seconds,
            offered: sent.iter().map(|s| s.offered).sum(),
            offered_per_s: per_s(offered_in_window),
            refused: sent.iter().map(|s| s.refused).sum(),
            delivered: sum(|r| r.delivered),
            delivered_per_s: per_s(delivered_in_window),
            lost,
            loss_percent: to_f64(lost) * 100.0 / to_f64(sum(|r| r.expected).max(1)),
            reordered: sum(|r| r.reordered),
            duplicates: sum(|r| r.duplicates),
            damaged: sum(|r| r.damaged),
            foreign: sum(|r| r.foreign),
            strays: sum(|r| r.strays),
            switch_cpu_s,
            switch_cpu_us_per_frame: switch_cpu_s
                .filter(|_| delivered_in_window > 0)
                .map(|s| s * 1e6 / to_f64(delivered_in_window)),
            senders: senders(&load, sent, received),
            receivers: all.into_iter().filter(|row| row.expected > 0).collect(),
            load,
        }
    }

    /// The heading for reports printed with `{}`.
    pub const HEADING: &str = "ports  size traffic  senders  offered/s delivered/s   lost % reordered duplicate damaged  cpu us/frame";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let traffic = format!("{:?}", self.load.traffic).to_lowercase();
        write!(
            f,
            "{:>5} {:>5} {traffic:<8} {:>7} {:>10.0} {:>11.0} {:>8.3} {:>9} {:>9} {:>7}",
            self.load.ports,
            self.load.size,
            self.load.senders,
            self.offered_per_s,
            self.delivered_per_s,
            self.loss_percent,
            self.reordered,
            self.duplicates,
            self.damaged,
        )?;
        match self.switch_cpu_us_per_frame {
            Some(us) => write!(f, " {us:>13.2}"),
            None => write!(f, " {:>13}", "-"),
        }
    }
}

impl fmt::Display for ReceiverRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  port {:<3} {:>9.0} delivered/s, {} lost of {}, {} reordered, {} duplicate, {} damaged, {} stray, {} foreign",
            self.port,
            self.delivered_per_s,
            self.lost,
            self.expected,
            self.reordered,
            self.duplicates,
            self.damaged,
            self.strays,
            self.foreign,
        )
    }
}

impl fmt::Display for SenderRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  port {:<3} had {:.2} of its share: {} delivered of {}",
            self.port, self.share, self.delivered, self.offered
        )
    }
}

fn senders(load: &Load, sent: &[Sent], received: &[Received]) -> Vec<SenderRow> {
    let (Traffic::Converge, Some(common)) = (load.traffic, received.last()) else {
        return Vec::new();
    };
    let all: u64 = common.flows.iter().map(Flow::received).sum();
    let fair = to_f64(all.max(1)) / f64::from(load.senders.max(1));
    let flows = (0..).zip(sent.iter().zip(&common.flows));
    flows
        .map(|(port, (sent, flow))| SenderRow {
            port,
            offered: sent.offered,
            delivered: flow.received(),
            share: to_f64(flow.received()) / fair,
        })
        .collect()
}

fn row(load: &Load, port: u16, sent: &[Sent], received: &Received, delivered_per_s: f64) -> ReceiverRow {
    let flows = || {
        (0..)
            .zip(sent.iter().zip(&received.flows))
            .filter(|&(sender, _)| load.reaches(sender, port))
            .map(|(_, flow)| flow)
    };
    ReceiverRow {
        port,
        expected: flows().map(|(sent, _)| sent.offered).sum(),
        delivered: flows().map(|(_, flow)| flow.received()).sum(),
        delivered_per_s,
        lost: flows().map(|(sent, flow)| flow.lost(sent.offered)).sum(),
        reordered: flows().map(|(_, flow)| flow.reordered()).sum(),
        duplicates: flows().map(|(_, flow)| flow.duplicates()).sum(),
        damaged: received.damaged,
        foreign: received.foreign,
        strays: received.strays,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn to_f64(n: u64) -> f64 {
    n as f64
}

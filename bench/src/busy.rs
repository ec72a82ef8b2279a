//! One switchd with 1 to 64 domains that are all loaded at once: what a frame costs, and who has what share.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cell::median;
use crate::contestant::Contestant;
use crate::crowd::Crowd;
use crate::load::{Delivery, Load, LoadError};
use crate::many::{ManyError, allow_descriptors};
use crate::port::Attach;
use crate::process::cpu_time;
use crate::stop::Stop;
use proto::ctl::{DomainSpec, Mode};

/// How many domains are loaded at once.
pub const DOMAINS: [u32; 4] = [1, 4, 16, 64];

/// What so many domains did.
#[derive(Clone, Debug, Serialize)]
pub struct Busy {
    /// Domains; each has one sender and one receiver.
    pub domains: u32,
    /// Frames delivered a second, all domains together: median of the rounds.
    pub delivered_per_s: f64,
    /// The same by that of the first row in the same round: median of the rounds.
    pub rate_by_one: f64,
    /// Processor time of switchd for one of them, in microseconds: median of the rounds.
    pub cpu_us_per_frame: f64,
    /// The same by that of the first row in the same round: median of the rounds.
    pub cpu_by_one: f64,
    /// The smallest and the greatest part a domain had, 1 being equal parts: medians of the rounds.
    pub shares: (f64, f64),
    /// Frames lost or otherwise wrong, of all rounds.
    pub wrong: u64,
}

/// One round with so many domains.
struct Round {
    rate: f64,
    cpu_us: f64,
    least: f64,
    greatest: f64,
    wrong: u64,
}

/// Loads 1 to 64 domains, in turns, over bess ports with full-size frames; each for `time`.
///
/// # Errors
/// When switchd does not start or a load cannot be run.
pub fn busy(switchd: &Path, rounds: u32, time: Duration, stop: &Stop) -> Result<Vec<Busy>, ManyError> {
    allow_descriptors(1024)?;
    let mut all: Vec<Vec<Round>> = DOMAINS.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (domains, done) in DOMAINS.into_iter().zip(&mut all) {
            done.push(once(switchd, domains, time, stop)?);
        }
    }
    let middle = |rounds: &[Round], value: fn(&Round) -> f64| {
        median(&mut rounds.iter().map(value).collect::<Vec<_>>()).unwrap_or(0.0)
    };
    let by_one = |rounds: &[Round], value: fn(&Round) -> f64| {
        let each = rounds
            .iter()
            .zip(&all[0])
            .map(|(round, one)| value(round) / value(one));
        median(&mut each.collect::<Vec<_>>()).unwrap_or(0.0)
    };
    let rows = DOMAINS.into_iter().zip(&all).map(|(domains, rounds)| Busy {
        domains,
        delivered_per_s: middle(rounds, |round| round.rate),
        rate_by_one: by_one(rounds, |round| round.rate),
        cpu_us_per_frame: middle(rounds, |round| round.cpu_us),
        cpu_by_one: by_one(rounds, |round| round.cpu_us),
        shares: (
            middle(rounds, |round| round.least),
            middle(rounds, |round| round.greatest),
        ),
        wrong: rounds.iter().map(|round| round.wrong).sum(),
    });
    Ok(rows.collect())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn once(switchd: &Path, domains: u32, time: Duration, stop: &Stop) -> Result<Round, ManyError> {
    let daemon = Contestant::start_empty(switchd)?;
    let mut control = daemon.switchd()?;
    let mut loads = Vec::new();
    for i in 0..domains {
        let name = format!("d{i}").parse().expect("a legal domain name");
        let spec = DomainSpec {
            mode: Mode::Switch,
            ..DomainSpec::new(name)
        };
        let socket = control.add_domain(spec).map_err(|e| ManyError::Domain(i, e))?;
        let load = Load {
            attach: Attach::Bess,
            delivery: Delivery::Switch,
            ..Load::new(Path::new(&socket).with_extension("bess"))
        };
        loads.push(load);
    }
    let crowd = Crowd::start(loads, stop)?;
    let cpu = || {
        cpu_time(daemon.pid()).map_err(|source| LoadError::Cpu {
            pid: daemon.pid(),
            source,
        })
    };
    // Until all have begun in earnest, and the domains are spread over the workers by what they do.
    thread::sleep(SETTLE);
    let (begin, before, cpu_before) = (Instant::now(), crowd.delivered(), cpu()?);
    thread::sleep(time);
    let (after, cpu_used, took) = (
        crowd.delivered(),
        cpu()?.saturating_sub(cpu_before),
        begin.elapsed(),
    );
    let parts: Vec<f64> = after.iter().zip(&before).map(|(a, b)| (a - b) as f64).collect();
    let sum = parts.iter().sum::<f64>().max(1.0);
    let share = |part: f64| part * f64::from(domains) / sum;
    let mut wrong = 0;
    for report in crowd.finish()? {
        wrong += report.lost + report.reordered + report.duplicates + report.damaged + report.strays;
    }
    if stop.is_set() {
        return Err(LoadError::Interrupted.into());
    }
    Ok(Round {
        rate: sum / took.as_secs_f64(),
        cpu_us: cpu_used.as_secs_f64() * 1e6 / sum,
        least: share(parts.iter().copied().fold(f64::INFINITY, f64::min)),
        greatest: share(parts.iter().copied().fold(0.0, f64::max)),
        wrong,
    })
}

/// Longer than a worker takes to find out that it has more to do than others.
const SETTLE: Duration = Duration::from_millis(2500);

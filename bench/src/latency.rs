//! The time a frame takes through a domain with nothing else to do.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::Serialize;

use crate::contestant::{Contestant, Kind, StartError};
use crate::load::Delivery;
use crate::port::{Attach, AttachError, Port};
use crate::stop::Stop;

/// Round trips before those that count: both ports become known, and caches warm.
const WARM_UP: usize = 50;
/// Between two round trips, so that everybody sleeps when a frame comes.
const PAUSE: Duration = Duration::from_micros(500);
/// How long an answer may take, at first and once the ports are known.
const PATIENCE: Duration = Duration::from_secs(5);
const BLOCKED: Duration = Duration::from_millis(500);
const FRAME_BYTES: usize = 60;

/// Round trips between two ports of one hub.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Which switch.
    pub switch: String,
    /// How many.
    pub round_trips: usize,
    /// The median, in microseconds.
    pub median_us: f64,
    /// The slowest but for one of a hundred, in microseconds.
    pub p99_us: f64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LatencyError {
    /// The switch did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A port could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A frame did not come back.
    #[error("no answer through {switch}")]
    Silent {
        /// Which switch.
        switch: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Measures round trips through all switches, by clients that are not connected to them and by such that are. They take
/// turns, one round trip each, in an order that is drawn anew each time: what else the machine does hits them alike.
///
/// # Errors
/// When a switch does not start or loses a frame.
pub fn latencies(kinds: &[Kind], round_trips: usize, stop: &Stop) -> Result<Vec<Latency>, LatencyError> {
    let ways: Vec<Way> = kinds
        .iter()
        .flat_map(|kind| {
            let attaches = [Attach::Uml, Attach::Connected].map(|clients| kind.attach(clients));
            let different = if attaches[0] == attaches[1] { 1 } else { 2 };
            attaches
                .into_iter()
                .take(different)
                .map(move |attach| Way::open(kind, attach))
        })
        .collect::<Result<_, _>>()?;
    let times = exchange(&ways, round_trips, stop)?;
    Ok(ways
        .iter()
        .zip(times)
        .map(|(way, times)| summary(way.name(), times))
        .collect())
}

/// A switch and two ports of it.
struct Way {
    kind: Kind,
    attach: Attach,
    here: Port,
    there: Port,
    _switch: Contestant,
}

impl Way {
    fn open(kind: &Kind, attach: Attach) -> Result<Self, LatencyError> {
        let switch = Contestant::start(kind, Delivery::Hub)?;
        let way = Self {
            kind: kind.clone(),
            attach,
            here: Port::attach(switch.control(), attach)?,
            there: Port::attach(switch.control(), attach)?,
            _switch: switch,
        };
        for port in [&way.here, &way.there] {
            port.set_timeouts(BLOCKED, PATIENCE)
                .map_err(|source| way.silent(source))?;
        }
        Ok(way)
    }

    fn name(&self) -> String {
        match self.attach {
            Attach::Connected => format!("{}, connected", self.kind),
            Attach::Uml | Attach::Bess => self.kind.to_string(),
        }
    }

    fn silent(&self, source: io::Error) -> LatencyError {
        LatencyError::Silent {
            switch: self.name(),
            source,
        }
    }
}

/// The times of each switch.
fn exchange(ways: &[Way], round_trips: usize, stop: &Stop) -> Result<Vec<Vec<Duration>>, LatencyError> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let echoes: Vec<_> = ways
            .iter()
            .map(|way| scope.spawn(|| echo(&way.there, &over)))
            .collect();
        let times = in_turns(ways, round_trips, stop);
        over.store(true, Ordering::Relaxed);
        for (way, echo) in ways.iter().zip(echoes) {
            let echoed = echo.join().expect("the echo does not panic");
            echoed.map_err(|errno| way.silent(errno.into()))?;
        }
        times
    })
}

fn in_turns(ways: &[Way], round_trips: usize, stop: &Stop) -> Result<Vec<Vec<Duration>>, LatencyError> {
    let mut times: Vec<Vec<Duration>> = ways.iter().map(|_| Vec::new()).collect();
    let mut order: Vec<usize> = (0..ways.len()).collect();
    for number in (0..WARM_UP + round_trips).take_while(|_| !stop.is_set()) {
        // Nobody is to come after the same one always, still less after itself, with what it needs still at hand.
        fastrand::shuffle(&mut order);
        for &index in &order {
            let (way, times) = (&ways[index], &mut times[index]);
            thread::sleep(PAUSE);
            let time = round_trip(&way.here, number).map_err(|errno| way.silent(errno.into()))?;
            if number >= WARM_UP {
                times.push(time);
            }
        }
    }
    Ok(times)
}

/// Sends back what comes until it is over.
fn echo(port: &Port, over: &AtomicBool) -> Result<(), Errno> {
    loop {
        match receive(port) {
            Ok(frame) => port.send(&frame, MsgFlags::empty())?,
            Err(Errno::EAGAIN) if over.load(Ordering::Relaxed) => return Ok(()),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Sends a frame until it comes back: the first may be too early for a port that is still being made. Later ones are sent
/// once, however long the machine has no time for them.
fn round_trip(port: &Port, number: usize) -> Result<Duration, Errno> {
    let mut frame = [0xff; FRAME_BYTES];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    let begun = Instant::now();
    let mut sent = begun;
    port.send(&frame, MsgFlags::empty())?;
    loop {
        match receive(port) {
            Ok(answer) if answer == frame => return Ok(sent.elapsed()),
            // An answer that was given up.
            Ok(_) => {}
            Err(Errno::EAGAIN) if begun.elapsed() < PATIENCE => {
                if number < WARM_UP {
                    sent = Instant::now();
                    port.send(&frame, MsgFlags::empty())?;
                }
            }
            Err(errno) => return Err(errno),
        }
    }
}

fn receive(port: &Port) -> Result<[u8; FRAME_BYTES], Errno> {
    let mut frame = [0; FRAME_BYTES];
    loop {
        match recv(port.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Ok(FRAME_BYTES) => return Ok(frame),
            Ok(_) => return Err(Errno::EBADMSG),
            Err(errno) => return Err(errno),
        }
    }
}

fn summary(switch: String, mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let at = |part: usize| {
        let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Latency {
        switch,
        round_trips: times.len(),
        median_us: at(50),
        p99_us: at(99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let found = summary("uml_switch".into(), times);
        assert!((found.median_us - 51.0).abs() < 0.01, "{found:?}");
        assert!((found.p99_us - 100.0).abs() < 0.01, "{found:?}");
    }
}

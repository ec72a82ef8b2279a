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
        switch: Kind,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Measures round trips through each switch, in turns of a tenth of them each.
///
/// # Errors
/// When a switch does not start or loses a frame.
pub fn latencies(kinds: &[Kind], round_trips: usize, stop: &Stop) -> Result<Vec<Latency>, LatencyError> {
    const TURNS: usize = 10;
    let mut times: Vec<Vec<Duration>> = kinds.iter().map(|_| Vec::new()).collect();
    for _ in 0..TURNS {
        for (kind, times) in kinds.iter().zip(&mut times) {
            if !stop.is_set() {
                times.append(&mut turn(kind, round_trips.div_ceil(TURNS))?);
            }
        }
    }
    Ok(kinds
        .iter()
        .zip(times)
        .map(|(kind, times)| summary(kind, times))
        .collect())
}

fn turn(kind: &Kind, round_trips: usize) -> Result<Vec<Duration>, LatencyError> {
    let switch = Contestant::start(kind, Delivery::Hub)?;
    let attach = kind.attach(Attach::Uml);
    let here = Port::attach(switch.control(), attach)?;
    let there = Port::attach(switch.control(), attach)?;
    exchange(&here, &there, round_trips).map_err(|errno| LatencyError::Silent {
        switch: kind.clone(),
        source: errno.into(),
    })
}

fn exchange(here: &Port, there: &Port, round_trips: usize) -> Result<Vec<Duration>, Errno> {
    for port in [here, there] {
        let timeouts = port.set_timeouts(BLOCKED, PATIENCE);
        timeouts.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| echo(there, &over));
        let times: Result<Vec<_>, _> = (0..WARM_UP + round_trips)
            .map(|number| {
                thread::sleep(PAUSE);
                round_trip(here, number)
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        echo.join().expect("the echo does not panic")?;
        Ok(times?.split_off(WARM_UP))
    })
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

/// Sends a frame until it comes back: the first may be too early for a port that is still being made.
fn round_trip(port: &Port, number: usize) -> Result<Duration, Errno> {
    let mut frame = [0xff; FRAME_BYTES];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    let begun = Instant::now();
    loop {
        let sent = Instant::now();
        port.send(&frame, MsgFlags::empty())?;
        match receive(port) {
            Ok(answer) if answer == frame => return Ok(sent.elapsed()),
            // An answer that was given up.
            Ok(_) => {}
            Err(Errno::EAGAIN) if begun.elapsed() < PATIENCE && number < WARM_UP => {}
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

fn summary(kind: &Kind, mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let at = |part: usize| {
        let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Latency {
        switch: kind.to_string(),
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
        let found = summary(&Kind::UmlSwitch, times);
        assert!((found.median_us - 51.0).abs() < 0.01, "{found:?}");
        assert!((found.p99_us - 100.0).abs() < 0.01, "{found:?}");
    }
}

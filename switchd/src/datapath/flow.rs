//! The one flow-control policy: hold the sender back for a while, then bypass the receiver that does not read.
//!
//! Per egress port:
//!
//! ```text
//!            queue full                    too little taken in `hold`
//!   Open ----------------> Full(waiting) ------------------------------> Stuck
//!     ^                      |                                            |
//!     |   waiting served     |                                            |
//!     +----------------------+<-------- writable, and bypass over --------+
//! ```
//!
//! * Open: frames are sent at once.
//! * Full: the ingress ports in `waiting` keep their batch and are not read, so nothing is lost; they are served in
//!   turn whenever the port takes frames again, each with as many ([`TURN`]), so that senders of whatever kind have
//!   equal shares of a receiver that cannot take all they have. No ingress is held longer than [`LONGEST_HOLD`].
//! * Stuck: frames are dropped untried and counted, until the port has room again. One that gets stuck once more
//!   without having kept up in between is bypassed for a hold time after that, then for two, four and so on: a reader
//!   that takes a frame now and then costs the others a few per cent at most, and one that was only kept from its
//!   processor for a moment is served again at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fabric::PortId;

/// No ingress port is left unread longer than this, whatever the setting: a vector guest of Linux 6.1 panics when its
/// frames are not taken for a second (`docs/protocols.md`).
pub(crate) const LONGEST_HOLD: Duration = Duration::from_millis(500);

/// How often it is looked whether one is about to be, at least.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// Frames each of the ports that wait for another may send it before the next has its turn: a full batch.
pub(crate) const TURN: usize = 64;

/// A port that takes fewer frames than this in one hold time counts as stuck: one full batch.
const LEAST_TAKEN: u32 = 64;

/// The bypass time grows up to so many hold times.
const LONGEST_BYPASS_FACTOR: u32 = 32;

/// What a port does with frames sent to it.
pub(crate) struct Egress {
    state: State,
    /// Ingress ports that hold frames for this one, the next to be served first.
    pub(crate) waiting: VecDeque<PortId>,
    /// How long the next bypass lasts, in hold times.
    bypass_factor: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// `taken` is of the hold time that began at `since`.
    Full {
        since: Instant,
        looked: Instant,
        taken: u32,
    },
    Stuck {
        until: Instant,
        writable: bool,
    },
}

/// What to do with frames for a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// Send them.
    Send,
    /// Keep them: others are waiting already.
    Wait,
    /// Drop them.
    Bypass,
}

impl Egress {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Open,
            waiting: VecDeque::new(),
            bypass_factor: 0,
        }
    }

    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Open => Admission::Send,
            State::Full { .. } => Admission::Wait,
            State::Stuck {
                until,
                writable: true,
            } if now >= until => {
                self.state = State::Open;
                Admission::Send
            }
            State::Stuck { .. } => Admission::Bypass,
        }
    }

    /// The port refused frames of `ingress`, which now waits for it.
    pub(crate) fn refused(&mut self, ingress: PortId, now: Instant) {
        if self.state == State::Open {
            self.state = full(now);
        }
        self.waiting.push_back(ingress);
    }

    /// The port took so many of the frames that waited.
    pub(crate) fn took(&mut self, frames: usize) {
        if let State::Full { taken, .. } = &mut self.state {
            *taken = taken.saturating_add(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }

    /// The system reports room.
    pub(crate) fn writable(&mut self) {
        if let State::Stuck { writable, .. } = &mut self.state {
            *writable = true;
        }
    }

    /// Nobody waits any more.
    pub(crate) fn served(&mut self) {
        if matches!(self.state, State::Full { .. }) {
            self.state = State::Open;
            self.bypass_factor = 0;
        }
    }

    /// True while ingress ports wait for this one.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.state, State::Full { .. })
    }

    /// True if a report of room is of interest.
    pub(crate) fn wants_room(&self) -> bool {
        !matches!(self.state, State::Open | State::Stuck { writable: true, .. })
    }

    /// When [`Egress::check`] is due.
    pub(crate) fn deadline(&self, hold: Duration) -> Option<Instant> {
        match self.state {
            State::Full { since, looked, .. } => Some((looked + LONGEST_LOOK).min(since + hold)),
            _ => None,
        }
    }

    /// Looks whether a hold time is over, and what it has shown.
    pub(crate) fn check(&mut self, now: Instant, hold: Duration) -> Verdict {
        let State::Full { since, taken, .. } = self.state else {
            return Verdict::Open;
        };
        if self.deadline(hold).is_some_and(|due| now < due) {
            return Verdict::Early;
        }
        if now < since + hold {
            let looked = now;
            self.state = State::Full { since, looked, taken };
            return Verdict::Slow;
        }
        if taken >= LEAST_TAKEN {
            self.state = full(now);
            self.bypass_factor = 0;
            return Verdict::Slow;
        }
        self.state = State::Stuck {
            until: now + hold * self.bypass_factor,
            writable: false,
        };
        self.bypass_factor = (self.bypass_factor * 2).clamp(1, LONGEST_BYPASS_FACTOR);
        Verdict::Stuck
    }
}

/// A port that others wait for from now on.
fn full(now: Instant) -> State {
    State::Full {
        since: now,
        looked: now,
        taken: 0,
    }
}

/// What [`Egress::check`] has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Nobody waits.
    Open,
    /// It is not time yet for another look.
    Early,
    /// The hold time is not over, or the port takes frames, if not fast, and has another one. Whoever would wait for too
    /// long by the next look is to be let go.
    Slow,
    /// The hold time is over, and the port has hardly taken a frame: whoever waits is to be let go.
    Stuck,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(100);

    #[test]
    fn a_port_that_takes_nothing_is_bypassed_until_it_has_room() {
        let start = Instant::now();
        let mut egress = Egress::new();
        egress.refused(PortId(1), start);
        assert_eq!(egress.admit(start), Admission::Wait);
        assert_eq!(egress.check(start + HOLD / 2, HOLD), Verdict::Early);
        assert_eq!(egress.check(start + HOLD, HOLD), Verdict::Stuck);
        assert_eq!(egress.check(start + HOLD * 2, HOLD), Verdict::Open);
        assert_eq!(egress.admit(start + HOLD * 50), Admission::Bypass);
        egress.writable();
        assert_eq!(egress.admit(start + HOLD * 50), Admission::Send);
    }

    #[test]
    fn a_port_that_was_stuck_once_is_served_as_soon_as_it_has_room() {
        let start = Instant::now();
        let mut egress = Egress::new();
        egress.refused(PortId(1), start);
        assert_eq!(egress.check(start + HOLD, HOLD), Verdict::Stuck);
        assert_eq!(egress.admit(start + HOLD), Admission::Bypass);
        egress.writable();
        assert_eq!(egress.admit(start + HOLD), Admission::Send);
        // Stuck again at once: now it is bypassed for a hold time, room or not.
        egress.refused(PortId(1), start + HOLD);
        assert_eq!(egress.check(start + HOLD * 2, HOLD), Verdict::Stuck);
        egress.writable();
        assert_eq!(egress.admit(start + HOLD * 2), Admission::Bypass);
        assert_eq!(egress.admit(start + HOLD * 3), Admission::Send);
    }

    #[test]
    fn a_port_that_keeps_up_a_batch_a_hold_is_waited_for() {
        let mut now = Instant::now();
        let mut egress = Egress::new();
        egress.refused(PortId(1), now);
        for _ in 0..100 {
            egress.took(64);
            now += HOLD;
            assert_eq!(egress.check(now, HOLD), Verdict::Slow);
        }
        egress.took(63);
        now += HOLD;
        assert_eq!(egress.check(now, HOLD), Verdict::Stuck);
    }

    #[test]
    fn it_is_looked_often_whether_somebody_waits_for_too_long() {
        let (start, hold) = (Instant::now(), LONGEST_HOLD);
        // Looks are late, as timers are.
        let late = Duration::from_micros(300);
        let mut egress = Egress::new();
        egress.refused(PortId(1), start);
        for _ in 0..20 {
            egress.took(64);
            let due = egress.deadline(hold).unwrap();
            assert_eq!(egress.check(due - late, hold), Verdict::Early);
            assert_eq!(egress.check(due + late, hold), Verdict::Slow);
            // Who has waited for a moment can wait until the next look.
            assert!(egress.deadline(hold).unwrap() <= due + late + LONGEST_LOOK);
        }
    }

    #[test]
    fn who_waits_for_a_port_that_takes_nothing_waits_for_the_whole_hold_time() {
        let (start, hold) = (Instant::now(), LONGEST_HOLD);
        let late = Duration::from_micros(300);
        let mut egress = Egress::new();
        egress.refused(PortId(1), start);
        loop {
            let due = egress.deadline(hold).unwrap();
            assert!(due <= start + hold, "it would be let go before");
            match egress.check(due + late, hold) {
                Verdict::Slow => {}
                verdict => {
                    assert_eq!((verdict, due), (Verdict::Stuck, start + hold));
                    return;
                }
            }
        }
    }

    #[test]
    fn a_dripping_reader_costs_less_and_less() {
        let start = Instant::now();
        let mut now = start;
        let mut egress = Egress::new();
        let mut held = Duration::ZERO;
        while now < start + HOLD * 2000 {
            match egress.admit(now) {
                Admission::Send => {
                    egress.refused(PortId(1), now);
                    now += HOLD;
                    held += HOLD;
                    assert_eq!(egress.check(now, HOLD), Verdict::Stuck);
                    egress.writable();
                }
                Admission::Bypass => now += HOLD / 4,
                Admission::Wait => unreachable!("nobody else waits"),
            }
        }
        assert!(held < (now - start) / 20, "{held:?} of {:?}", now - start);
    }
}

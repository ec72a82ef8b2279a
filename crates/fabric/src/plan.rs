//! What becomes of the frames of one batch: which port gets which, and why the others were dropped.

use std::fmt;

use crate::frames::FrameSet;
use crate::port::PortId;

/// Why a frame was dropped. The first few are decided here, the rest on the way out of the switch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    Runt,
    /// Longer than the domain's MTU allows.
    Giant,
    /// Its header cannot be read, or what that says is left undone on it cannot be done.
    Malformed,
    /// The destination is behind the port the frame came from.
    SamePort,
    /// The port it came from, or should go to, is no longer attached.
    Detached,
    /// The egress port stayed full for as long as the ingress port may be held back.
    QueueFull,
    /// The egress port is stuck; the frame was not even tried.
    Bypassed,
    /// Nobody is left at the other end of the egress port.
    PeerGone,
    /// The egress port cannot carry a frame of this length.
    TooBig,
    /// The kernel had no memory for it.
    NoBuffers,
    /// Too short for the header its carrier puts before a frame.
    Truncated,
    /// It came over a tunnel, but belongs to another session.
    ForeignSession,
    /// Its session has another cookie.
    BadCookie,
    /// Its tunnel has another key, or another form of header.
    BadKey,
    /// Its port is a secure one and may not send frames of this kind.
    NotAllowed,
    /// Its port is a secure one and the frame bears an address that is not its own.
    Spoofed,
    /// The network finds no way to the other end of the egress port.
    Unreachable,
    /// It came to a port that is one VLAN of an interface, but belongs to another one.
    ForeignVlan,
    /// The kernel's queue before the port was full.
    Overrun,
}

impl DropReason {
    /// Every reason, in the order of [`DropReason::index`].
    pub const ALL: [Self; 19] = [
        Self::Runt,
        Self::Giant,
        Self::Malformed,
        Self::SamePort,
        Self::Detached,
        Self::QueueFull,
        Self::Bypassed,
        Self::PeerGone,
        Self::TooBig,
        Self::NoBuffers,
        Self::Truncated,
        Self::ForeignSession,
        Self::BadCookie,
        Self::BadKey,
        Self::NotAllowed,
        Self::Spoofed,
        Self::Unreachable,
        Self::ForeignVlan,
        Self::Overrun,
    ];

    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();

    /// Position among [`DropReason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in listings and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runt => "runt",
            Self::Giant => "giant",
            Self::Malformed => "malformed",
            Self::SamePort => "same-port",
            Self::Detached => "detached",
            Self::QueueFull => "queue-full",
            Self::Bypassed => "bypassed",
            Self::PeerGone => "peer-gone",
            Self::TooBig => "too-big",
            Self::NoBuffers => "no-buffers",
            Self::Truncated => "truncated",
            Self::ForeignSession => "foreign-session",
            Self::BadCookie => "bad-cookie",
            Self::BadKey => "bad-key",
            Self::NotAllowed => "not-allowed",
            Self::Spoofed => "spoofed",
            Self::Unreachable => "unreachable",
            Self::ForeignVlan => "foreign-vlan",
            Self::Overrun => "overrun",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Dropped frames, counted by reason.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops([u64; DropReason::COUNT]);

impl Drops {
    /// Counts `n` more frames.
    pub fn add(&mut self, reason: DropReason, n: u64) {
        self.0[reason.index()] += n;
    }

    /// Frames dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()]
    }

    /// Frames dropped in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// True if no frame was dropped.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    /// The reasons there were, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = self.0.iter().copied();
        DropReason::ALL.into_iter().zip(counts).filter(|&(_, n)| n > 0)
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

impl fmt::Debug for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Per egress port, which frames of a batch go out. Written by [`Domain::forward`](crate::Domain::forward), and kept
/// by the caller to be used again.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// By port number; what is not in `ports` is empty.
    frames: Vec<FrameSet>,
    /// Ports that get a frame, each once.
    ports: Vec<PortId>,
    flooded: FrameSet,
    accepted: FrameSet,
    drops: Drops,
    discarded: [FrameSet; DropReason::COUNT],
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ports that get frames, and which: never none, never the port they came from.
    pub fn egress(&self) -> impl ExactSizeIterator<Item = (PortId, FrameSet)> + '_ {
        self.ports.iter().map(|&port| (port, self.frames[port.index()]))
    }

    /// The frames one port gets.
    pub fn frames_for(&self, port: PortId) -> FrameSet {
        self.frames.get(port.index()).copied().unwrap_or_default()
    }

    /// The frames the domain took in: those that came from an attached port and are neither runts nor giants.
    pub fn accepted(&self) -> FrameSet {
        self.accepted
    }

    /// The frames dropped on the way in.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Those frames, by reason.
    pub fn discarded(&self) -> impl Iterator<Item = (DropReason, FrameSet)> + '_ {
        let sets = DropReason::ALL.into_iter().zip(self.discarded);
        sets.filter(|(_, frames)| !frames.is_empty())
    }

    /// Starts over, for a domain whose port numbers are below `places`.
    pub(crate) fn begin(&mut self, places: usize) {
        for port in self.ports.drain(..) {
            self.frames[port.index()] = FrameSet::EMPTY;
        }
        if self.frames.len() < places {
            self.frames.resize(places, FrameSet::EMPTY);
        }
        self.flooded = FrameSet::EMPTY;
        self.accepted = FrameSet::EMPTY;
        self.drops = Drops::default();
        self.discarded = [FrameSet::EMPTY; DropReason::COUNT];
    }

    pub(crate) fn accept(&mut self, i: usize) {
        self.accepted.insert(i);
    }

    pub(crate) fn discard(&mut self, frames: FrameSet, reason: DropReason) {
        self.drops.add(reason, frames.len() as u64);
        self.discarded[reason.index()] |= frames;
    }

    pub(crate) fn send(&mut self, i: usize, port: PortId) {
        self.add(port, FrameSet(1 << i));
    }

    /// Frame `i` goes to every port [`Plan::flood_to`] will name.
    pub(crate) fn flood(&mut self, i: usize) {
        self.flooded.insert(i);
    }

    /// Ends the plan: whatever was flooded goes to these ports.
    pub(crate) fn flood_to(&mut self, ports: impl Iterator<Item = PortId>) {
        if self.flooded.is_empty() {
            return;
        }
        for port in ports {
            self.add(port, self.flooded);
        }
    }

    fn add(&mut self, port: PortId, more: FrameSet) {
        let frames = &mut self.frames[port.index()];
        if frames.is_empty() {
            self.ports.push(port);
        }
        *frames |= more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_indices_and_names() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
            let namesakes = DropReason::ALL
                .iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(namesakes.count(), 1, "{reason}");
            assert!(reason.name().bytes().all(|c| c.is_ascii_lowercase() || c == b'-'));
        }
    }

    #[test]
    fn drops_add_up() {
        let mut drops = Drops::default();
        assert!(drops.is_empty());
        drops.add(DropReason::Giant, 2);
        drops.add(DropReason::NoBuffers, 1);
        let mut sum = drops;
        sum.merge(&drops);
        assert_eq!(sum.get(DropReason::Giant), 4);
        assert_eq!(sum.total(), 6);
        assert!(
            sum.iter()
                .eq([(DropReason::Giant, 4), (DropReason::NoBuffers, 2)])
        );
    }

    #[test]
    fn a_plan_starts_over() {
        let mut plan = Plan::new();
        plan.begin(4);
        plan.send(0, PortId(1));
        plan.flood(1);
        plan.discard(FrameSet(0b10), DropReason::Runt);
        plan.accept(0);
        plan.accept(1);
        plan.flood_to([PortId(1), PortId(3)].into_iter());
        let egress: Vec<_> = plan.egress().collect();
        assert_eq!(egress, [(PortId(1), FrameSet(0b11)), (PortId(3), FrameSet(0b10))]);
        assert_eq!(
            (plan.frames_for(PortId(0)), plan.frames_for(PortId(3))),
            (FrameSet::EMPTY, FrameSet(0b10))
        );
        assert_eq!((plan.accepted(), plan.drops().total()), (FrameSet(0b11), 1));

        plan.begin(1);
        plan.flood_to([PortId(0)].into_iter());
        assert_eq!(plan.egress().len(), 0);
        assert_eq!(plan.frames_for(PortId(3)), FrameSet::EMPTY);
        assert_eq!((plan.accepted(), plan.drops().total()), (FrameSet::EMPTY, 0));
        assert_eq!(plan.frames_for(PortId(99)), FrameSet::EMPTY);
    }
}

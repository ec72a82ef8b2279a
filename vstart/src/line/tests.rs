//! A bad line, and what must come out of it all the same.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const HOURS: Duration = Duration::from_secs(100_000);

/// What happens to the bytes on their way, in one case of so many; 0 is never.
#[derive(Clone, Copy, Debug)]
struct Faults {
    lost: u64,
    cut: u64,
    damaged: u64,
    doubled: u64,
    late: u64,
}

const NONE: Faults = Faults {
    lost: 0,
    cut: 0,
    damaged: 0,
    doubled: 0,
    late: 0,
};

/// One direction: bytes arrive in order, some time later, or not as they were.
struct Way {
    faults: Faults,
    random: u64,
    travelling: VecDeque<(Duration, Vec<u8>)>,
    sent: usize,
}

impl Way {
    fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            random: seed | 1,
            travelling: VecDeque::new(),
            sent: 0,
        }
    }

    fn one_in(&mut self, cases: u64) -> bool {
        cases > 0 && self.below(cases) == 0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn position(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    fn send(&mut self, now: Duration, bytes: &[u8]) {
        self.sent += bytes.len();
        // What is written at once may be torn.
        for piece in bytes.chunks(700) {
            let mut piece = piece.to_vec();
            if self.one_in(self.faults.lost) {
                continue;
            }
            if self.one_in(self.faults.cut) {
                let (from, to) = (self.position(piece.len()), self.position(piece.len()));
                piece.drain(from.min(to)..from.max(to));
            }
            if self.one_in(self.faults.damaged) && !piece.is_empty() {
                let at = self.position(piece.len());
                piece[at] ^= 1 << self.below(8);
            }
            let delay = if self.one_in(self.faults.late) { 900 } else { 1 };
            let after = self.travelling.back().map_or(Duration::ZERO, |(at, _)| *at);
            let at = after.max(now + delay * MS);
            if self.one_in(self.faults.doubled) {
                self.travelling.push_back((at, piece.clone()));
            }
            self.travelling.push_back((at, piece));
        }
    }

    fn arrive(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.travelling
            .pop_front_if(|(at, _)| *at <= now)
            .map(|(_, bytes)| bytes)
    }
}

/// Two ends, the ways between them, and what has come out.
struct Pair {
    now: Duration,
    ends: [Line; 2],
    ways: [Way; 2],
    events: [Vec<Event>; 2],
}

impl Pair {
    fn new(faults: Faults, seed: u64) -> Self {
        Self {
            now: 5 * MS,
            // Numbers start anew soon.
            ends: [Line::calling(u32::MAX - 3000, TO_HOST), Line::answering(TO_GUEST)],
            ways: [Way::new(faults, seed), Way::new(faults, seed.rotate_left(17))],
            events: [Vec::new(), Vec::new()],
        }
    }

    /// Lets things happen until nothing is to be expected any more, or it has taken too long.
    fn run(&mut self, longest: Duration) -> bool {
        let end = self.now + longest;
        while self.now < end {
            for one in 0..2 {
                let other = 1 - one;
                while let Some(bytes) = self.ways[other].arrive(self.now) {
                    self.events[one].extend(self.ends[one].receive(self.now, &bytes));
                }
                let mut out = Vec::new();
                self.ends[one].transmit(self.now, &mut out);
                self.ways[one].send(self.now, &out);
            }
            let arrivals = self.ways.iter().filter_map(|way| Some(way.travelling.front()?.0));
            let next = self.ends.iter().filter_map(Line::deadline).chain(arrivals).min();
            let Some(next) = next else { return true };
            self.now = next.max(self.now + Duration::from_nanos(1));
        }
        false
    }

    fn heard(&self, end: usize) -> Vec<u8> {
        let bytes = self.events[end].iter().filter_map(|event| match event {
            Event::Bytes(bytes) => Some(bytes.as_slice()),
            Event::Connected => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }

    fn sent(&self) -> usize {
        self.ways.iter().map(|way| way.sent).sum()
    }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut way = Way::new(NONE, seed);
    // Markers are frequent.
    (0..length)
        .map(|_| match way.below(4) {
            0 => MARKER[0],
            1 => MARKER[1],
            _ => u8::try_from(way.below(256)).unwrap(),
        })
        .collect()
}

#[test]
fn a_good_line_carries_little_more_than_what_is_sent() {
    let mut pair = Pair::new(NONE, 1);
    let data = noise(100_000, 2);
    pair.ends[0].push(&data);
    assert!(pair.run(Duration::from_secs(10)));
    assert_eq!(pair.events[0], [Event::Connected]);
    assert_eq!(pair.events[1][0], Event::Connected);
    assert_eq!(pair.heard(1), data);
    assert!(pair.sent() < data.len() + data.len() / 20, "{}", pair.sent());
    assert!(pair.run(Duration::from_secs(1000)), "nothing is left to say");
}

#[test]
fn an_end_that_does_not_read_for_a_day_finds_less_than_a_kernel_can_hold() {
    let mut pair = Pair::new(NONE, 1);
    pair.run(MS * 20);
    let mut now = pair.now;
    let end = &mut pair.ends[1];
    end.push(&noise(100_000, 2));
    let mut unread = Vec::new();
    let day = now + Duration::from_secs(24 * 3600);
    while now < day {
        end.transmit(now, &mut unread);
        now = end.deadline().unwrap();
    }
    assert!(unread.len() < 3400, "{}", unread.len());
    // And when it reads again, all is well at once.
    pair.now = now;
    pair.ways[1].send(now, &unread);
    assert!(pair.run(Duration::from_secs(1)));
    assert_eq!(pair.heard(0), noise(100_000, 2));
}

#[test]
fn a_lost_end_is_noticed() {
    let mut pair = Pair::new(NONE, 1);
    pair.run(MS * 20);
    pair.ends[1].push(b"one");
    let mut lost = Vec::new();
    pair.ends[1].transmit(pair.now, &mut lost);
    // Half of the packet arrives, and probes must not be taken for the rest.
    pair.ways[1].send(pair.now, &lost[..lost.len() - 5]);
    assert!(pair.run(Duration::from_secs(1)));
    assert_eq!(pair.heard(0), b"one");
}

#[test]
fn a_new_caller_is_another_one() {
    let mut pair = Pair::new(NONE, 1);
    pair.run(MS * 20);
    pair.ends[1].push(&noise(50_000, 3));
    pair.run(MS * 3);
    // It ends in the middle of everything; what it has not read is still there.
    pair.ends[0] = Line::calling(7, TO_HOST);
    pair.events = [Vec::new(), Vec::new()];
    pair.run(MS * 50);
    assert_eq!(pair.events, [vec![Event::Connected], vec![Event::Connected]]);
    pair.ends[0].push(b"to");
    pair.ends[1].push(b"fro");
    assert!(pair.run(Duration::from_secs(1)));
    assert_eq!((pair.heard(0), pair.heard(1)), (b"fro".to_vec(), b"to".to_vec()));
}

#[test]
fn nobody_to_talk_to_costs_little() {
    let mut line = Line::calling(1, 2048);
    line.push(b"hello");
    let (mut now, mut out) = (Duration::ZERO, Vec::new());
    while now < Duration::from_secs(60) {
        line.transmit(now, &mut out);
        now = line.deadline().unwrap();
    }
    assert!(out.len() < 40 * HEADER, "{}", out.len());
}

fn faults() -> impl Strategy<Value = Faults> {
    let often = || prop_oneof![Just(0u64), 3..40u64];
    (
        often(),
        often(),
        often(),
        often(),
        prop_oneof![Just(0u64), 20..200u64],
    )
        .prop_map(|(lost, cut, damaged, doubled, late)| Faults {
            lost,
            cut,
            damaged,
            doubled,
            late,
        })
}

proptest! {
    #[test]
    fn everything_arrives_once_and_in_order(
        faults in faults(),
        seed in any::<u64>(),
        lengths in proptest::collection::vec((0..2usize, 1..5000usize, 0..300u32), 1..12),
    ) {
        let mut pair = Pair::new(faults, seed);
        let mut said = [Vec::new(), Vec::new()];
        // Whoever is called speaks when it has been.
        while pair.events[1].is_empty() {
            pair.run(MS * 10);
        }
        for (n, (end, length, pause)) in lengths.into_iter().enumerate() {
            let bytes = noise(length, seed ^ n as u64);
            pair.ends[end].push(&bytes);
            said[end].extend(bytes);
            pair.run(pause * MS);
        }
        prop_assert!(pair.run(HOURS), "{:?}", pair.ends);
        prop_assert_eq!(pair.heard(0), &said[1][..]);
        prop_assert_eq!(pair.heard(1), &said[0][..]);
        let connections = pair.events.iter().flatten().filter(|event| **event == Event::Connected);
        prop_assert_eq!(connections.count(), 2);
        // And then it is quiet.
        let sent = pair.sent();
        prop_assert!(pair.run(HOURS));
        prop_assert_eq!(pair.sent(), sent);
    }

    #[test]
    fn callers_come_and_go_on_a_bad_line(faults in faults(), seed in any::<u64>(), epochs in proptest::collection::vec(any::<u32>(), 1..6)) {
        let mut pair = Pair::new(faults, seed);
        for (n, epoch) in epochs.into_iter().enumerate() {
            pair.run(MS * 77);
            pair.ends[1].push(&noise(3000, seed));
            pair.run(MS * 7);
            pair.ends[0] = Line::calling(epoch.wrapping_mul(8).wrapping_add(u32::try_from(n).unwrap()), TO_HOST);
        }
        pair.events[0].clear();
        while pair.events[0].is_empty() {
            pair.run(MS * 10);
        }
        pair.events = [Vec::new(), Vec::new()];
        pair.ends[0].push(b"to");
        pair.ends[1].push(b"fro");
        prop_assert!(pair.run(HOURS));
        prop_assert_eq!((pair.heard(0), pair.heard(1)), (b"fro".to_vec(), b"to".to_vec()));
    }

    #[test]
    fn arbitrary_bytes_mean_nothing(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(MARKER[0]), Just(MARKER[1])], 0..3000)) {
        let mut line = Line::answering(TO_GUEST);
        prop_assert_eq!(line.receive(Duration::ZERO, &bytes), []);
        prop_assert!(line.input.len() < 2 * PIECE);
    }
}

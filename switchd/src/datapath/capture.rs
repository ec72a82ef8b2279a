//! Handing captured frames to the thread that writes them: one copy, bounded, never a wait.
//!
//! A [`Feed`] for each domain (data path) and one [`Drain`] (recorder) make a capture. A feed copies frames into a
//! chunk, already as the blocks of a pcapng file, and the chunks go round:
//!
//! ```text
//!            chunk in the making        full or wanted
//! frames ->  Feed -------------------------------------> Drain -> file
//!              ^                                           |
//!              +-------------------------------------------+
//!                                empty
//! ```
//!
//! While the recorder has something to do, the feed fills its chunk to the end; while it has not, each batch is handed
//! over at once. A feed makes chunks as it needs them, up to a limit; then it counts what it cannot keep.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fabric::offload::Work;
use fabric::{Batch, DropReason, Filter, FrameSet, Plan, PortId};

use super::port::Port;
use crate::pcapng::{self, Direction, Packet, Tally};

/// Bytes of a chunk: larger than the largest frame, small enough to stay in a processor's cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks of a capture: 32 MiB, the load of a busy domain for as long as a recorder may have to wait for a processor.
const CHUNKS: usize = 128;

/// A capture of very many domains still has so many chunks for each.
const FEWEST_CHUNKS: usize = 8;

/// With fewer chunks than this on their way, the recorder is waiting or about to.
const IDLE: usize = 2;

/// Names a capture.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FeedId(pub(crate) u64);

/// Which of a domain's frames are captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    /// Those it takes in.
    Carried,
    /// Those and the dropped ones.
    All,
    /// The dropped ones alone.
    Dropped,
}

/// What is captured of each domain.
pub(crate) struct Wanted {
    pub(crate) which: Which,
    /// Bytes kept of each frame.
    pub(crate) snap_len: usize,
    /// Ports whose frames are captured; all if empty.
    pub(crate) ports: Vec<PortId>,
    pub(crate) filter: Option<Filter>,
    /// The filter in words.
    pub(crate) filter_text: String,
    /// Statistics go with every chunk.
    pub(crate) sums: bool,
}

impl Wanted {
    fn selects(&self, port: PortId) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// The data path's end, one for each domain.
pub(crate) struct Feed {
    id: FeedId,
    source: usize,
    domain: String,
    wanted: Arc<Wanted>,
    chunk: Vec<u8>,
    full: SyncSender<(usize, Vec<u8>)>,
    empty: Receiver<Vec<u8>>,
    /// Chunks that may still be made.
    spare: usize,
    shared: Arc<Shared>,
    /// The interface of each port, and the serial number of the port it was announced for.
    interfaces: Vec<(u64, u32)>,
    tallies: Vec<Tally>,
    /// The statistics that went with the last chunk.
    told: Vec<Tally>,
    /// Why frames of the batch in hand were dropped; kept so that its memory is.
    reasons: Vec<(DropReason, FrameSet)>,
    last: Duration,
}

/// What the two ends of one domain have in common.
#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    /// Chunks with the drain.
    under_way: AtomicUsize,
    /// Left behind by a feed that has ended. Locked twice in its life, by each end.
    report: Mutex<Report>,
}

/// The last words of a feed.
#[derive(Default)]
pub(crate) struct Report {
    /// The last chunk, if it could not be handed over.
    pub(crate) rest: Vec<u8>,
    /// What each interface has seen, in the order they were announced.
    pub(crate) tallies: Vec<Tally>,
}

/// The recorder's end.
pub(crate) struct Drain {
    full: Receiver<(usize, Vec<u8>)>,
    sources: Vec<(SyncSender<Vec<u8>>, Arc<Shared>)>,
}

/// Makes the two ends of a capture of these domains.
pub(crate) fn feeds(id: FeedId, domains: &[String], wanted: &Arc<Wanted>) -> (Vec<Feed>, Drain) {
    let chunks = (CHUNKS / domains.len().max(1)).max(FEWEST_CHUNKS);
    // No more chunks exist than the channels have room for.
    let (full, drain_full) = sync_channel(chunks * domains.len().max(1));
    let mut feeds = Vec::new();
    let mut sources = Vec::new();
    for (source, domain) in domains.iter().enumerate() {
        let (give_back, empty) = sync_channel(chunks);
        let shared = Arc::<Shared>::default();
        sources.push((give_back, Arc::clone(&shared)));
        feeds.push(Feed {
            id,
            source,
            domain: domain.clone(),
            wanted: Arc::clone(wanted),
            chunk: Vec::new(),
            full: full.clone(),
            empty,
            spare: chunks,
            shared,
            interfaces: Vec::new(),
            tallies: Vec::new(),
            told: Vec::new(),
            reasons: Vec::new(),
            last: Duration::ZERO,
        });
    }
    let drain = Drain {
        full: drain_full,
        sources,
    };
    (feeds, drain)
}

impl Feed {
    pub(crate) fn id(&self) -> FeedId {
        self.id
    }

    /// Takes a copy of frames that came in from a port. True if some of them wait to be handed over.
    pub(super) fn offer(
        &mut self,
        batch: &Batch,
        plan: &Plan,
        ingress: PortId,
        ports: &[Option<Port>],
    ) -> bool {
        self.stamp();
        let wanted = Arc::clone(&self.wanted);
        let mut reasons = std::mem::take(&mut self.reasons);
        reasons.clear();
        let mut carried = plan.accepted();
        let mut dropped = FrameSet::EMPTY;
        if wanted.which != Which::Carried {
            reasons.extend(plan.discarded());
            dropped = reasons
                .iter()
                .fold(FrameSet::EMPTY, |all, &(_, frames)| all | frames);
            carried = carried.without(dropped);
        }
        if wanted.which == Which::Dropped {
            carried = FrameSet::EMPTY;
        }
        if wanted.selects(ingress) {
            self.take(batch, carried | dropped, ingress, ports, Direction::In, &reasons);
        } else {
            // A frame is captured once: with several of these ports to go to, for the first of them.
            for &egress in &wanted.ports {
                let frames = carried & plan.frames_for(egress);
                carried = carried.without(frames);
                self.take(batch, frames, egress, ports, Direction::Out, &[]);
            }
        }
        self.reasons = reasons;
        self.hand_over()
    }

    /// Takes a copy of frames that were dropped on their way out to a port. True if some of them wait to be handed over.
    pub(super) fn lost(
        &mut self,
        batch: &Batch,
        frames: FrameSet,
        reason: DropReason,
        egress: PortId,
        ports: &[Option<Port>],
    ) -> bool {
        if self.wanted.which == Which::Carried || !self.wanted.selects(egress) {
            return false;
        }
        self.stamp();
        self.take(batch, frames, egress, ports, Direction::Out, &[(reason, frames)]);
        self.hand_over()
    }

    /// The wall clock may be set back; times in a capture never go back.
    fn stamp(&mut self) {
        self.last = self.last.max(now());
    }

    fn take(
        &mut self,
        batch: &Batch,
        frames: FrameSet,
        id: PortId,
        ports: &[Option<Port>],
        direction: Direction,
        reasons: &[(DropReason, FrameSet)],
    ) {
        if frames.is_empty() {
            return;
        }
        let Some(port) = ports.get(id.index()).and_then(Option::as_ref) else {
            return;
        };
        let Some(interface) = self.interface(id, port.serial, &port.identity.name) else {
            self.count_dropped(frames.len());
            return;
        };
        for index in frames.iter() {
            let frame = batch.frame(index);
            let reason = reasons.iter().find(|(_, frames)| frames.contains(index));
            let packet = Packet {
                interface,
                time: self.last,
                wire_len: batch.wire_len(index),
                bytes: frame,
                sum: None,
                direction,
                comment: reason.map_or("", |&(reason, _)| comment(reason)),
            };
            self.record(packet, batch.work(index));
        }
    }

    fn record(&mut self, packet: Packet<'_>, work: Work) {
        let tally = &mut self.tallies[packet.interface as usize];
        tally.received += 1;
        if let Some(filter) = &self.wanted.filter
            && !filter.accepts(packet.bytes, packet.wire_len)
        {
            return;
        }
        tally.accepted += 1;
        let bytes = &packet.bytes[..packet.bytes.len().min(self.wanted.snap_len)];
        if self.make_room(pcapng::packet_len(bytes.len(), packet.comment.len())) {
            self.tallies[packet.interface as usize].written += 1;
            // Nobody can check the sum of a frame that is not there as a whole.
            let sum = (bytes.len() == packet.wire_len)
                .then(|| work.sum(bytes))
                .flatten();
            pcapng::packet(&mut self.chunk, Packet { bytes, sum, ..packet });
        } else {
            self.tallies[packet.interface as usize].dropped += 1;
            self.count_dropped(1);
        }
    }

    /// The interface of a port, announced if it is new; `None` if there is no room for that.
    fn interface(&mut self, id: PortId, serial: u64, name: &str) -> Option<u32> {
        if self.interfaces.len() <= id.index() {
            self.interfaces.resize(id.index() + 1, (0, 0));
        }
        let (announced, interface) = self.interfaces[id.index()];
        if announced == serial {
            return Some(interface);
        }
        let mut name = &name[..name.floor_char_boundary(LONGEST_NAME)];
        let domain = &self.domain;
        let title = if name.is_empty() {
            name = "unknown";
            format!("{domain}:{id}")
        } else {
            format!("{domain}:{id} {name}")
        };
        let description = format!("domain {domain}, port {id}: {name}");
        let room = 64 + title.len() + description.len() + self.wanted.filter_text.len();
        if !self.make_room(room) {
            return None;
        }
        let snap_len = u32::try_from(self.wanted.snap_len).unwrap_or(0);
        let filter = &self.wanted.filter_text;
        pcapng::interface(&mut self.chunk, &title, &description, snap_len, filter);
        let interface = u32::try_from(self.tallies.len()).ok()?;
        self.tallies.push(Tally::default());
        self.interfaces[id.index()] = (serial, interface);
        Some(interface)
    }

    /// Makes sure that so many bytes fit into the chunk; false if the recorder is too far behind.
    fn make_room(&mut self, bytes: usize) -> bool {
        let room = CHUNK_BYTES - self.sums_bytes();
        if self.chunk.capacity() > 0 && self.chunk.len() + bytes > room {
            self.swap();
        }
        if self.chunk.capacity() == 0 {
            let Some(chunk) = self.another() else { return false };
            self.chunk = chunk;
        }
        self.chunk.len() + bytes <= room
    }

    /// Room that is kept for statistics; with very many ports a chunk grows instead.
    fn sums_bytes(&self) -> usize {
        if self.wanted.sums {
            (self.tallies.len() * pcapng::STATISTICS_BYTES).min(CHUNK_BYTES / 2)
        } else {
            0
        }
    }

    /// Adds what has changed since the last chunk.
    fn sum_up(&mut self) {
        self.told.resize(self.tallies.len(), Tally::default());
        for (interface, (tally, told)) in (0..).zip(self.tallies.iter().zip(&mut self.told)) {
            if tally != told {
                pcapng::statistics(&mut self.chunk, interface, self.last, tally);
                *told = *tally;
            }
        }
    }

    /// Hands the chunk over if the recorder has nothing to do. True if something is left to be handed over.
    pub(super) fn hand_over(&mut self) -> bool {
        if !self.chunk.is_empty() && self.shared.under_way.load(Ordering::Relaxed) < IDLE {
            self.swap();
        }
        !self.chunk.is_empty()
    }

    /// Hands the chunk over whatever the recorder does: nothing may come after it for long. True if that failed.
    pub(super) fn flush(&mut self) -> bool {
        if !self.chunk.is_empty() {
            self.swap();
        }
        !self.chunk.is_empty()
    }

    /// Hands the chunk over, if there is another to go on with.
    fn swap(&mut self) {
        if let Some(next) = self.another() {
            if self.wanted.sums {
                self.sum_up();
            }
            let chunk = std::mem::replace(&mut self.chunk, next);
            self.send(chunk);
        }
    }

    /// An empty chunk: one that has come back, or a new one.
    fn another(&mut self) -> Option<Vec<u8>> {
        if let Ok(chunk) = self.empty.try_recv() {
            return Some(chunk);
        }
        self.spare = self.spare.checked_sub(1)?;
        Some(Vec::with_capacity(CHUNK_BYTES))
    }

    fn send(&mut self, chunk: Vec<u8>) {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        match self.full.try_send((self.source, chunk)) {
            Ok(()) => {}
            // The recorder is gone; the control side is about to remove the feed.
            Err(TrySendError::Disconnected(_) | TrySendError::Full(_)) => self.spare += 1,
        }
    }

    fn count_dropped(&self, frames: usize) {
        self.shared.dropped.fetch_add(frames as u64, Ordering::Relaxed);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut report = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.rest = std::mem::take(&mut self.chunk);
        report.tallies = std::mem::take(&mut self.tallies);
    }
}

/// What the drain waits for.
pub(crate) enum Next {
    /// A chunk, and the number of the domain it comes from.
    Chunk(usize, Vec<u8>),
    /// There was none in time.
    Late,
    /// There will be none: every feed has ended.
    End,
}

impl Drain {
    /// Waits for the next chunk.
    pub(crate) fn next(&self, time: Duration) -> Next {
        match self.full.recv_timeout(time) {
            Ok((source, chunk)) => Next::Chunk(source, chunk),
            Err(RecvTimeoutError::Timeout) => Next::Late,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }

    /// Gives a chunk back.
    pub(crate) fn give_back(&self, source: usize, mut chunk: Vec<u8>) {
        chunk.clear();
        let (empty, shared) = &self.sources[source];
        shared.under_way.fetch_sub(1, Ordering::Relaxed);
        // A feed that has ended wants it no more.
        let _ = empty.try_send(chunk);
    }

    /// Frames that found no room so far.
    pub(crate) fn dropped(&self) -> u64 {
        let dropped = |(_, shared): &(_, Arc<Shared>)| shared.dropped.load(Ordering::Relaxed);
        self.sources.iter().map(dropped).sum()
    }

    /// How many domains there are.
    pub(crate) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// What a feed has left behind; empty while it has not ended.
    pub(crate) fn report(&self, source: usize) -> Report {
        let shared = &self.sources[source].1;
        std::mem::take(&mut *shared.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The time of day.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// What is said about a dropped frame.
const fn comment(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Runt => "dropped: runt",
        DropReason::Giant => "dropped: giant",
        DropReason::Malformed => "dropped: malformed",
        DropReason::SamePort => "dropped: same-port",
        DropReason::Detached => "dropped: detached",
        DropReason::QueueFull => "dropped: queue-full",
        DropReason::Bypassed => "dropped: bypassed",
        DropReason::PeerGone => "dropped: peer-gone",
        DropReason::TooBig => "dropped: too-big",
        DropReason::NoBuffers => "dropped: no-buffers",
        DropReason::Truncated => "dropped: truncated",
        DropReason::ForeignSession => "dropped: foreign-session",
        DropReason::BadCookie => "dropped: bad-cookie",
        DropReason::BadKey => "dropped: bad-key",
        DropReason::NotAllowed => "dropped: not-allowed",
        DropReason::Spoofed => "dropped: spoofed",
        DropReason::Unreachable => "dropped: unreachable",
        DropReason::ForeignVlan => "dropped: foreign-vlan",
        DropReason::Overrun => "dropped: overrun",
    }
}

/// Bytes of a port's name that are kept.
const LONGEST_NAME: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(snap_len: usize, filter: Option<Filter>) -> (Feed, Drain) {
        let wanted = Wanted {
            which: Which::Carried,
            snap_len,
            ports: Vec::new(),
            filter,
            filter_text: String::new(),
            sums: false,
        };
        let (mut feeds, drain) = feeds(FeedId(1), &["A".to_owned()], &Arc::new(wanted));
        (feeds.pop().unwrap(), drain)
    }

    fn give(feed: &mut Feed, frames: usize, bytes: usize) {
        feed.last = Duration::from_nanos(17);
        let interface = feed.interface(PortId(3), 1, "pc1:eth0").unwrap();
        for n in 0..frames {
            let packet = Packet {
                interface,
                time: feed.last,
                wire_len: bytes,
                bytes: &vec![u8::try_from(n % 251).unwrap(); bytes],
                sum: None,
                direction: Direction::In,
                comment: "",
            };
            feed.record(packet, Work::default());
        }
        feed.hand_over();
    }

    /// Takes all there is; returns kept and real lengths.
    fn take(drain: &Drain) -> Vec<(usize, u32)> {
        let mut lengths = Vec::new();
        let mut look = |mut rest: &[u8]| {
            while let Some((block, next)) = pcapng::split(rest) {
                rest = next;
                if block.kind == pcapng::PACKET {
                    assert_eq!((block.interface(), block.time()), (0, Duration::from_nanos(17)));
                    lengths.push((block.frame().len(), block.wire_len()));
                }
            }
            assert!(rest.is_empty());
        };
        loop {
            match drain.next(Duration::from_secs(10)) {
                Next::Chunk(source, chunk) => {
                    look(&chunk);
                    drain.give_back(source, chunk);
                }
                Next::Late => panic!("nothing comes"),
                Next::End => break,
            }
        }
        look(&drain.report(0).rest);
        lengths
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (mut feed, drain) = pair(1000, None);
        give(&mut feed, 3, 60);
        give(&mut feed, 1, 1514);
        give(&mut feed, 1, 61);
        drop(feed);
        let expected = [(60, 60), (60, 60), (60, 60), (1000, 1514), (61, 61)];
        assert_eq!(take(&drain), expected);
        assert_eq!(drain.dropped(), 0);
    }

    #[test]
    fn what_the_filter_rejects_takes_no_room() {
        let reject = Filter::new(vec![fabric::Instruction {
            code: 6,
            jt: 0,
            jf: 0,
            k: 0,
        }]);
        let (mut feed, drain) = pair(usize::MAX, Some(reject.unwrap()));
        give(&mut feed, 3, 60);
        let tally = feed.tallies[0];
        assert_eq!((tally.received, tally.accepted, tally.written), (3, 0, 0));
        drop(feed);
        assert!(take(&drain).is_empty());
    }

    #[test]
    fn a_recorder_that_stalls_costs_counted_frames_only() {
        let (mut feed, drain) = pair(usize::MAX, None);
        let offered = 2 * CHUNKS * CHUNK_BYTES / 1514;
        for _ in 0..offered / 64 {
            give(&mut feed, 64, 1514);
        }
        let tally = feed.tallies[0];
        assert_eq!(tally.received, (offered / 64 * 64) as u64);
        assert_eq!(tally.received, tally.written + tally.dropped);
        drop(feed);
        let kept = take(&drain).len() as u64;
        assert!(kept > 0 && drain.dropped() > 0);
        assert_eq!((kept, drain.dropped()), (tally.written, tally.dropped));
    }

    #[test]
    fn a_recorder_that_keeps_up_needs_two_or_three_chunks() {
        let (mut feed, drain) = pair(usize::MAX, None);
        for _ in 0..1000 {
            give(&mut feed, 64, 1514);
            while let Next::Chunk(source, chunk) = drain.next(Duration::ZERO) {
                drain.give_back(source, chunk);
            }
        }
        assert!(feed.spare >= CHUNKS - 3, "{} chunks made", CHUNKS - feed.spare);
        assert_eq!(drain.dropped(), 0);
    }

    #[test]
    fn every_reason_has_its_comment() {
        for reason in DropReason::ALL {
            assert_eq!(comment(reason), format!("dropped: {}", reason.name()));
        }
    }
}

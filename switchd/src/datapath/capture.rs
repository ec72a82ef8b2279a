//! Handing captured frames to the thread that writes them: one copy, bounded, never a wait.
//!
//! A [`Feed`] (data path) and a [`Drain`] (recorder) share a fixed number of chunks that go round between them. While
//! the recorder is behind, the feed fills its current chunk to the end; then it counts what it cannot keep.
//!
//! A chunk is a row of records in the order of capture:
//!
//! ```text
//! port:   PORT  u8 | port u32 | length u16 | name            before the first frame of a port
//! frame:  FRAME u8 | port u32 | time u64 ns | wire u32 | kept u32 | bytes
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use fabric::{Batch, FrameSet, PortId};

use super::port::Port;

/// Bytes of a chunk, and how many go round: 16 MiB a capture at most, allocated as far as they are used.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS: usize = 64;

const PORT: u8 = 0;
const FRAME: u8 = 1;
const FRAME_HEADER: usize = 21;

/// Names a capture.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FeedId(pub(crate) u64);

/// The data path's end.
pub(crate) struct Feed {
    id: FeedId,
    snap_len: usize,
    chunk: Vec<u8>,
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// Serial number of the port that was announced last under each number.
    announced: Vec<u64>,
    last: Duration,
}

/// The recorder's end.
pub(crate) struct Drain {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

/// Makes the two ends of a capture that keeps at most `snap_len` bytes of each frame.
pub(crate) fn pair(id: FeedId, snap_len: usize) -> (Feed, Drain) {
    // One chunk is with the feed, the others wait in `empty`: a chunk that can be taken can also be sent.
    let (full_tx, full_rx) = sync_channel(CHUNKS);
    let (empty_tx, empty_rx) = sync_channel(CHUNKS);
    for _ in 1..CHUNKS {
        // The channel has room for all of them and its other end is here.
        let _ = empty_tx.send(Vec::new());
    }
    let dropped = Arc::new(AtomicU64::new(0));
    let feed = Feed {
        id,
        snap_len,
        chunk: Vec::new(),
        full: full_tx,
        empty: empty_rx,
        dropped: Arc::clone(&dropped),
        announced: Vec::new(),
        last: Duration::ZERO,
    };
    (
        feed,
        Drain {
            full: full_rx,
            empty: empty_tx,
            dropped,
        },
    )
}

impl Feed {
    pub(crate) fn id(&self) -> FeedId {
        self.id
    }

    /// Takes a copy of frames that came in from a port.
    pub(crate) fn offer(&mut self, batch: &Batch, frames: FrameSet, id: PortId, port: &Port) {
        if frames.is_empty() {
            return;
        }
        // The wall clock may be set back; times in a capture never go back.
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.last = self.last.max(now);
        self.announce(id, port);
        for index in frames.iter() {
            self.record(id, batch.frame(index), batch.wire_len(index));
        }
        self.hand_over();
    }

    fn announce(&mut self, id: PortId, port: &Port) {
        if self.announced.len() <= id.index() {
            self.announced.resize(id.index() + 1, 0);
        }
        let name = port.identity.name.as_bytes();
        let name = &name[..name.len().min(usize::from(u8::MAX))];
        if self.announced[id.index()] == port.serial || !self.make_room(7 + name.len()) {
            return;
        }
        self.announced[id.index()] = port.serial;
        self.chunk.push(PORT);
        self.chunk.extend_from_slice(&id.0.to_ne_bytes());
        self.chunk
            .extend_from_slice(&u16::try_from(name.len()).unwrap_or(0).to_ne_bytes());
        self.chunk.extend_from_slice(name);
    }

    fn record(&mut self, id: PortId, frame: &[u8], wire_len: usize) {
        let kept = &frame[..frame.len().min(self.snap_len)];
        if !self.make_room(FRAME_HEADER + kept.len()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let time = u64::try_from(self.last.as_nanos()).unwrap_or(u64::MAX);
        self.chunk.push(FRAME);
        self.chunk.extend_from_slice(&id.0.to_ne_bytes());
        self.chunk.extend_from_slice(&time.to_ne_bytes());
        self.chunk
            .extend_from_slice(&u32::try_from(wire_len).unwrap_or(u32::MAX).to_ne_bytes());
        self.chunk
            .extend_from_slice(&u32::try_from(kept.len()).unwrap_or(u32::MAX).to_ne_bytes());
        self.chunk.extend_from_slice(kept);
    }

    /// Makes sure that so many bytes fit into the chunk; false if the recorder is too far behind.
    fn make_room(&mut self, bytes: usize) -> bool {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(CHUNK_BYTES);
        }
        if self.chunk.len() + bytes > CHUNK_BYTES {
            self.hand_over();
            if self.chunk.capacity() == 0 {
                self.chunk.reserve_exact(CHUNK_BYTES);
            }
        }
        self.chunk.len() + bytes <= CHUNK_BYTES
    }

    /// Hands the chunk over, if there is another to go on with.
    fn hand_over(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let Ok(next) = self.empty.try_recv() else { return };
        match self.full.try_send(std::mem::replace(&mut self.chunk, next)) {
            Ok(()) => {}
            // The recorder is gone; the control side will remove the feed.
            Err(TrySendError::Disconnected(mut chunk) | TrySendError::Full(mut chunk)) => {
                chunk.clear();
                self.chunk = chunk;
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // What is in the last chunk is worth a place: the recorder frees one or has ended.
        self.hand_over();
        if !self.chunk.is_empty() {
            let lost = records(&self.chunk)
                .filter(|record| matches!(record, Record::Frame { .. }))
                .count();
            self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        }
    }
}

/// One record of a chunk.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Record<'a> {
    /// What a port is called from here on.
    Port { id: PortId, name: &'a str },
    /// A frame.
    Frame {
        id: PortId,
        time: Duration,
        wire_len: u32,
        bytes: &'a [u8],
    },
}

impl Drain {
    /// Waits for the next chunk; `None` when the capture has ended and all of it is taken.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        self.full.recv().ok()
    }

    /// The next chunk if there is one already.
    pub(crate) fn try_next(&self) -> Option<Vec<u8>> {
        self.full.try_recv().ok()
    }

    /// Gives a chunk back.
    pub(crate) fn give_back(&self, mut chunk: Vec<u8>) {
        chunk.clear();
        let _ = self.empty.try_send(chunk);
    }

    /// Frames that found no room so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The records of a chunk.
pub(crate) fn records(mut chunk: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let (record, rest) = split_record(chunk)?;
        chunk = rest;
        Some(record)
    })
}

fn split_record(chunk: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (&kind, rest) = chunk.split_first()?;
    let (id, rest) = rest.split_first_chunk::<4>()?;
    let id = PortId(u32::from_ne_bytes(*id));
    if kind == PORT {
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (name, rest) = rest.split_at_checked(usize::from(u16::from_ne_bytes(*length)))?;
        let name = std::str::from_utf8(name).unwrap_or_else(|error| {
            // A long name was cut inside a character.
            std::str::from_utf8(&name[..error.valid_up_to()]).unwrap_or_default()
        });
        return Some((Record::Port { id, name }, rest));
    }
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (wire_len, rest) = rest.split_first_chunk::<4>()?;
    let (kept, rest) = rest.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_ne_bytes(*kept) as usize)?;
    let frame = Record::Frame {
        id,
        time: Duration::from_nanos(u64::from_ne_bytes(*time)),
        wire_len: u32::from_ne_bytes(*wire_len),
        bytes,
    };
    Some((frame, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(feed: &mut Feed, frames: usize, bytes: usize) {
        feed.last = Duration::from_nanos(17);
        for n in 0..frames {
            feed.record(PortId(3), &vec![u8::try_from(n % 251).unwrap(); bytes], bytes);
        }
        feed.hand_over();
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (mut a, b) = pair(FeedId(1), 1000);
        feed(&mut a, 3, 60);
        feed(&mut a, 1, 1514);
        drop(a);
        let mut lengths = Vec::new();
        while let Some(chunk) = b.next() {
            for record in records(&chunk) {
                let Record::Frame {
                    id,
                    time,
                    wire_len,
                    bytes,
                } = record
                else {
                    panic!("{record:?}")
                };
                assert_eq!((id, time), (PortId(3), Duration::from_nanos(17)));
                lengths.push((bytes.len(), wire_len));
            }
            b.give_back(chunk);
        }
        assert_eq!(lengths, [(60, 60), (60, 60), (60, 60), (1000, 1514)]);
        assert_eq!(b.dropped(), 0);
    }

    #[test]
    fn a_recorder_that_stalls_costs_counted_frames_only() {
        let (mut a, b) = pair(FeedId(1), usize::MAX);
        let offered = 2 * CHUNKS * CHUNK_BYTES / 1514;
        for _ in 0..offered / 64 {
            feed(&mut a, 64, 1514);
        }
        drop(a);
        let mut kept = 0;
        while let Some(chunk) = b.next() {
            kept += records(&chunk).count();
            b.give_back(chunk);
        }
        assert!(kept > 0 && b.dropped() > 0);
        assert_eq!(kept as u64 + b.dropped(), (offered / 64 * 64) as u64);
    }
}

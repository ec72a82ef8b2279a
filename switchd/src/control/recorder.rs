//! The thread that writes a capture: a section header, then what the data path has made, then the statistics.
//!
//! One domain's chunks are written as they are. With several, frames are put in the order of their times: each waits
//! for [`LAG`], in which whatever was seen before it has arrived from the other domains.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proto::ctl::Captured;

use super::sink::Sink;
use crate::datapath::capture::{Drain, Next, now};
use crate::pcapng::{self, Tally};

/// Time from a frame's stamp to its arrival here, at most: that of a batch, and of a thread that had to wait for a
/// processor in between. A frame that comes later still is given the time of the one before it.
const LAG: Duration = Duration::from_millis(20);

/// With one domain there is nothing to wait for but the next chunk.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Bytes of merged frames that are written together.
const BUFFER_BYTES: usize = 256 * 1024;

/// What to write, and where to.
pub(crate) struct Recorder {
    pub(crate) drain: Drain,
    pub(crate) file: File,
    /// Frames after which the capture ends.
    pub(crate) limit: Option<u64>,
    /// Ends the feeds, once the limit is reached.
    pub(crate) stop: Box<dyn Fn() + Send>,
    /// Nobody waits for the end of the file any more.
    pub(crate) abandoned: Arc<AtomicBool>,
}

/// Why a capture could not go on, and what it had taken until then.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the capture any further, {frames} frames are saved")]
pub(crate) struct Broken {
    frames: u64,
    #[source]
    pub(crate) source: io::Error,
}

/// One domain's part of the capture.
#[derive(Default)]
struct Source {
    /// Chunks that are not written yet; the first from `at` on.
    chunks: VecDeque<Vec<u8>>,
    at: usize,
    /// The interfaces' numbers in the file, by those of the feed.
    interfaces: Vec<u32>,
}

/// Waits for chunks and writes none of them.
fn outlast(drain: &Drain) {
    loop {
        match drain.next(PATIENCE) {
            Next::Chunk(source, chunk) => drain.give_back(source, chunk),
            Next::Late => {}
            Next::End => return,
        }
    }
}

/// The work in hand.
struct Work {
    drain: Drain,
    sink: Sink,
    sources: Vec<Source>,
    /// Frames written of each interface of the file.
    interfaces: Vec<u64>,
    written: u64,
    limit: Option<u64>,
    stop: Box<dyn Fn() + Send>,
    merged: Vec<u8>,
    last: Duration,
    /// It cannot keep up with the wire, and has given way.
    behind: bool,
}

impl Recorder {
    /// Writes until the capture ends or the file cannot be written any more.
    ///
    /// # Errors
    /// The first failed write; what was written before is a valid file.
    pub(crate) fn run(self) -> Result<Captured, Broken> {
        let Self {
            drain,
            file,
            limit,
            stop,
            abandoned,
        } = self;
        let mut work = Work {
            sources: (0..drain.sources()).map(|_| Source::default()).collect(),
            drain,
            sink: Sink::new(file, abandoned),
            interfaces: Vec::new(),
            written: 0,
            limit,
            stop,
            merged: Vec::new(),
            last: Duration::ZERO,
            behind: false,
        };
        let result = work.run();
        result.map_err(|source| Broken {
            frames: work.written - work.sink.unwritten(),
            source,
        })
    }
}

impl Work {
    fn run(&mut self) -> io::Result<Captured> {
        // Begins the file at once: whoever reads along sees that the capture is on.
        let mut header = Vec::new();
        pcapng::section(&mut header);
        self.sink.write(&header)?;
        let single = self.sources.len() == 1;
        while !self.is_full() {
            let mut next = self.drain.next(if single { PATIENCE } else { LAG });
            if matches!(next, Next::End) {
                break;
            }
            while let Next::Chunk(source, chunk) = next {
                if single {
                    let end = self.walk(source, &chunk);
                    self.sink.write(&chunk[..end])?;
                    self.drain.give_back(source, chunk);
                } else {
                    self.sources[source].chunks.push_back(chunk);
                }
                self.give_way();
                if self.is_full() {
                    break;
                }
                next = self.drain.next(Duration::ZERO);
            }
            if !single {
                self.merge(now().saturating_sub(LAG))?;
            }
        }
        self.finish(single)
    }

    /// A capture that has lost frames loses more from now on, rather than take a processor from the wire it watches.
    fn give_way(&mut self) {
        if !self.behind && self.drain.dropped() > 0 {
            self.behind = true;
            if let Err(error) = netio::process::run_when_idle() {
                tracing::warn!("a capture that is behind goes on as it was: {error}");
            }
        }
    }

    fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.written >= limit)
    }

    /// Counts what is in a chunk of the only domain; returns how far it is to be written.
    fn walk(&mut self, source: usize, chunk: &[u8]) -> usize {
        let mut rest = chunk;
        while let Some((block, next)) = pcapng::split(rest) {
            match block.kind {
                pcapng::INTERFACE => self.announce(source),
                pcapng::PACKET if self.is_full() => break,
                pcapng::PACKET => self.count(block.interface()),
                _ => {}
            }
            rest = next;
        }
        chunk.len() - rest.len()
    }

    /// A block describes the next interface of the file.
    fn announce(&mut self, source: usize) {
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.sources[source].interfaces.push(number);
        self.interfaces.push(0);
    }

    fn count(&mut self, interface: u32) {
        self.written += 1;
        if let Some(frames) = self.interfaces.get_mut(interface as usize) {
            *frames += 1;
        }
    }

    /// Writes the waiting frames of all domains, in order, up to a time.
    fn merge(&mut self, until: Duration) -> io::Result<()> {
        while !self.is_full() {
            let fronts = self.sources.iter().enumerate();
            let times = fronts.filter_map(|(index, source)| Some((source.time()?, index)));
            let Some((time, index)) = times.min() else { break };
            if time > until {
                break;
            }
            self.merge_one(index);
            if self.merged.len() >= BUFFER_BYTES {
                self.sink.write(&std::mem::take(&mut self.merged))?;
            }
        }
        self.sink.write(&self.merged)?;
        self.merged.clear();
        Ok(())
    }

    /// Moves the first block of a domain to the file.
    fn merge_one(&mut self, index: usize) {
        let source = &mut self.sources[index];
        let Some(chunk) = source.chunks.front() else {
            return;
        };
        let Some((block, rest)) = pcapng::split(&chunk[source.at..]) else {
            return;
        };
        let start = self.merged.len();
        self.merged.extend_from_slice(block.bytes);
        let kind = block.kind;
        let interface = source.interfaces.get(block.interface() as usize).copied();
        let interface = interface.unwrap_or(0);
        if kind != pcapng::INTERFACE {
            pcapng::set_interface(&mut self.merged, start, interface);
        }
        if kind == pcapng::PACKET {
            self.last = self.last.max(block.time());
            pcapng::set_time(&mut self.merged, start, self.last);
        }
        source.at = chunk.len() - rest.len();
        if rest.is_empty()
            && let Some(chunk) = source.chunks.pop_front()
        {
            source.at = 0;
            self.drain.give_back(index, chunk);
        }
        match kind {
            pcapng::INTERFACE => self.announce(index),
            pcapng::PACKET => self.count(interface),
            _ => {}
        }
    }

    /// Writes what the feeds have left behind, and the sums.
    fn finish(&mut self, single: bool) -> io::Result<Captured> {
        if self.is_full() {
            // What comes behind the last frame is not written, but the sums are those of all that was seen.
            (self.stop)();
            outlast(&self.drain);
        }
        let mut tallies = Vec::new();
        for source in 0..self.sources.len() {
            let report = self.drain.report(source);
            if self.is_full() {
                // As above.
            } else if single {
                let end = self.walk(source, &report.rest);
                self.sink.write(&report.rest[..end])?;
            } else if !report.rest.is_empty() {
                self.sources[source].chunks.push_back(report.rest);
            }
            tallies.push(report.tallies);
        }
        if !single {
            self.merge(Duration::MAX)?;
        }
        let mut sums = Vec::new();
        for (source, tallies) in self.sources.iter().zip(tallies) {
            for (number, &interface) in source.interfaces.iter().enumerate() {
                let tally = tallies.get(number).copied().unwrap_or_default();
                let written = self.interfaces[interface as usize];
                sums.push((interface, Tally { written, ..tally }));
            }
        }
        sums.sort_by_key(|&(interface, _)| interface);
        let mut blocks = Vec::new();
        for (interface, tally) in &sums {
            pcapng::statistics(&mut blocks, *interface, now(), tally);
        }
        self.sink.write(&blocks)?;
        Ok(Captured {
            frames: self.written,
            dropped: self.drain.dropped(),
        })
    }
}

impl Source {
    /// When its first block is due: at once if it is no frame.
    fn time(&self) -> Option<Duration> {
        let (block, _) = pcapng::split(self.chunks.front()?.get(self.at..)?)?;
        Some(if block.kind == pcapng::PACKET {
            block.time()
        } else {
            Duration::ZERO
        })
    }
}

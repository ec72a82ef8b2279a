//! The flight recorder: the last frames of a domain, in memory, to be saved when something has happened.
//!
//! A thread for each recorded domain moves chunks into a ring of segments, oldest first. Sealed segments are shared,
//! not copied, when they are saved, so saving holds nobody up.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::DomainName;
use proto::ctl::{Captured, Error, ErrorCode, RecordSpec, RecorderRow};
use tokio::sync::oneshot;

use super::captures::next_feed;
use super::domain::Domain;
use super::registry::{Registry, failed, invalid};
use super::sink::Sink;
use crate::datapath::capture::{Drain, FeedId, Next, Wanted, Which, feeds, now};
use crate::pcapng;

/// A limit of age alone keeps so many bytes at most: what a busy domain carries in a second.
const MOST_BYTES: u64 = 256 * 1024 * 1024;

/// Frames are forgotten a segment at a time.
const SEGMENT_BYTES: usize = 1024 * 1024;

/// How often old frames are looked for while no new ones come.
const TICK: Duration = Duration::from_secs(1);

/// The recorders of all domains.
#[derive(Default)]
pub(crate) struct Flights(Mutex<BTreeMap<DomainName, Flight>>);

/// The recorder of one domain.
struct Flight {
    domain: Arc<Domain>,
    feed: FeedId,
    ring: Arc<Mutex<Ring>>,
}

impl Flights {
    /// Never held across an `.await`. Recorders of domains that are gone have ended by themselves.
    fn flights(&self) -> MutexGuard<'_, BTreeMap<DomainName, Flight>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| !flight.domain.is_removed());
        flights
    }

    /// Begins to record a domain, anew if it was recorded already.
    pub(crate) fn start(&self, registry: &Arc<Registry>, spec: &RecordSpec) -> Result<(), Error> {
        let domain = registry.find(&spec.domain)?;
        if spec.last_ms.is_none() && spec.last_bytes.is_none() {
            return Err(invalid("a recorder needs a limit of age or of size".to_owned()));
        }
        let wanted = Wanted {
            which: Which::All,
            snap_len: usize::MAX,
            ports: Vec::new(),
            filter: None,
            filter_text: String::new(),
            sums: false,
        };
        let feed = next_feed();
        let (feeds, drain) = feeds(feed, &[spec.domain.to_string()], &Arc::new(wanted));
        let ring = Arc::new(Mutex::new(Ring::new(
            spec.last_ms.map(Duration::from_millis),
            spec.last_bytes.unwrap_or(MOST_BYTES),
        )));
        let keep = Arc::clone(&ring);
        std::thread::Builder::new()
            .name("flight".to_owned())
            .spawn(move || fly(&drain, &keep))
            .map_err(|error| failed(format!("cannot record domain {}: {error}", spec.domain)))?;
        for feed in feeds {
            registry.add_capture(&domain, feed);
        }
        let flight = Flight { domain, feed, ring };
        if let Some(old) = self.flights().insert(spec.domain.clone(), flight) {
            registry.remove_capture(&old.domain, old.feed);
        }
        Ok(())
    }

    /// Forgets what is kept of a domain.
    pub(crate) fn stop(&self, registry: &Registry, domain: &DomainName) -> Result<(), Error> {
        let flight = self.flights().remove(domain).ok_or_else(|| missing(domain))?;
        registry.remove_capture(&flight.domain, flight.feed);
        Ok(())
    }

    /// Writes what is kept of a domain.
    pub(crate) async fn save(&self, domain: &DomainName, file: OwnedFd) -> Result<Captured, Error> {
        let kept = {
            let flights = self.flights();
            let flight = flights.get(domain).ok_or_else(|| missing(domain))?;
            lock(&flight.ring).kept(now())
        };
        let (done, saved) = oneshot::channel();
        std::thread::Builder::new()
            .name("save".to_owned())
            .spawn(move || drop(done.send(kept.write(File::from(file)))))
            .map_err(|error| failed(format!("cannot save domain {domain}: {error}")))?;
        match saved.await {
            Ok(Ok(captured)) => Ok(captured),
            Ok(Err(error)) => Err(failed(format!("cannot save domain {domain}: {error}"))),
            Err(_) => Err(failed(format!("domain {domain} could not be saved"))),
        }
    }

    /// What is kept.
    pub(crate) fn rows(&self) -> Vec<RecorderRow> {
        let flights = self.flights();
        let row = |(domain, flight): (&DomainName, &Flight)| {
            let mut ring = lock(&flight.ring);
            ring.forget(now());
            RecorderRow {
                domain: domain.clone(),
                last_ms: ring
                    .last
                    .map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX)),
                last_bytes: ring.most_bytes,
                frames: ring.segments().map(|segment| segment.frames).sum(),
                bytes: ring.segments().map(|segment| segment.bytes.len() as u64).sum(),
                dropped: ring.dropped,
            }
        };
        flights.iter().map(row).collect()
    }
}

fn missing(domain: &DomainName) -> Error {
    Error {
        code: ErrorCode::NotFound,
        message: format!(
            "domain {domain} is not recorded\nhint: begin with 'switchd record {domain} --last 30s'"
        ),
    }
}

fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what comes until nothing will.
fn fly(drain: &Drain, ring: &Mutex<Ring>) {
    loop {
        match drain.next(TICK) {
            Next::Chunk(source, chunk) => {
                let mut ring = lock(ring);
                ring.push(&chunk);
                ring.forget(now());
                ring.dropped = drain.dropped();
                drop(ring);
                drain.give_back(source, chunk);
            }
            Next::Late => lock(ring).forget(now()),
            Next::End => return,
        }
    }
}

/// The last frames of a domain.
struct Ring {
    last: Option<Duration>,
    most_bytes: u64,
    /// Section header and interfaces: whatever is kept, it begins with them.
    prelude: Vec<u8>,
    sealed: VecDeque<Arc<Segment>>,
    open: Segment,
    dropped: u64,
}

#[derive(Clone, Default)]
struct Segment {
    bytes: Vec<u8>,
    frames: u64,
    newest: Duration,
}

impl Ring {
    fn new(last: Option<Duration>, most_bytes: u64) -> Self {
        let mut prelude = Vec::new();
        pcapng::section(&mut prelude);
        Self {
            last,
            most_bytes,
            prelude,
            sealed: VecDeque::new(),
            open: Segment::default(),
            dropped: 0,
        }
    }

    /// Segments that hold frames, the oldest first.
    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.sealed.iter().map(|segment| &**segment).chain([&self.open])
    }

    fn push(&mut self, mut chunk: &[u8]) {
        let segment_bytes = SEGMENT_BYTES.min(usize::try_from(self.most_bytes / 4).unwrap_or(SEGMENT_BYTES));
        while let Some((block, rest)) = pcapng::split(chunk) {
            chunk = rest;
            if block.kind != pcapng::PACKET {
                self.prelude.extend_from_slice(block.bytes);
                continue;
            }
            if !self.open.bytes.is_empty() && self.open.bytes.len() + block.bytes.len() > segment_bytes {
                self.sealed.push_back(Arc::new(std::mem::take(&mut self.open)));
            }
            self.open.bytes.extend_from_slice(block.bytes);
            self.open.frames += 1;
            self.open.newest = block.time();
        }
    }

    /// Lets segments go that are too old or too many.
    fn forget(&mut self, now: Duration) {
        let oldest = self.oldest(now);
        let mut bytes: u64 = self.segments().map(|segment| segment.bytes.len() as u64).sum();
        while let Some(first) = self.sealed.front()
            && (first.newest < oldest || bytes > self.most_bytes)
        {
            bytes -= first.bytes.len() as u64;
            self.sealed.pop_front();
        }
        if self.open.newest < oldest {
            self.open = Segment::default();
        }
    }

    /// Frames from before this time are too old.
    fn oldest(&self, now: Duration) -> Duration {
        self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last))
    }

    /// What is kept at this moment.
    fn kept(&mut self, now: Duration) -> Kept {
        self.forget(now);
        let mut segments: Vec<_> = self.sealed.iter().cloned().collect();
        segments.push(Arc::new(self.open.clone()));
        Kept {
            prelude: self.prelude.clone(),
            segments,
            oldest: self.oldest(now),
            dropped: self.dropped,
        }
    }
}

/// What was kept at one moment.
struct Kept {
    prelude: Vec<u8>,
    segments: Vec<Arc<Segment>>,
    oldest: Duration,
    dropped: u64,
}

impl Kept {
    fn write(self, file: File) -> std::io::Result<Captured> {
        let mut sink = Sink::new(file, Arc::default());
        sink.write(&self.prelude)?;
        let mut frames = 0;
        for segment in &self.segments {
            // Times do not go back: what is too old stands at the beginning.
            let mut rest = &segment.bytes[..];
            let mut old = 0;
            while let Some((block, next)) = pcapng::split(rest)
                && block.time() < self.oldest
            {
                rest = next;
                old += 1;
            }
            sink.write(rest)?;
            frames += segment.frames - old;
        }
        Ok(Captured {
            frames,
            dropped: self.dropped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcapng::{Direction, Packet};
    use std::io::Read;

    fn chunk(seconds: std::ops::Range<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for second in seconds {
            let packet = Packet {
                interface: 0,
                time: Duration::from_secs(second),
                wire_len: 1000,
                bytes: &[1; 1000],
                sum: None,
                direction: Direction::In,
                comment: "",
            };
            pcapng::packet(&mut out, packet);
        }
        out
    }

    fn times(ring: &mut Ring, now: u64) -> Vec<u64> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let captured = ring
            .kept(Duration::from_secs(now))
            .write(file.reopen().unwrap())
            .unwrap();
        let mut bytes = Vec::new();
        file.reopen().unwrap().read_to_end(&mut bytes).unwrap();
        let mut rest = &bytes[..];
        let mut times = Vec::new();
        while let Some((block, next)) = pcapng::split(rest) {
            rest = next;
            if block.kind == pcapng::PACKET {
                times.push(block.time().as_secs());
            }
        }
        assert_eq!(captured.frames, times.len() as u64);
        times
    }

    #[test]
    fn what_is_too_old_is_forgotten() {
        let mut ring = Ring::new(Some(Duration::from_secs(10)), MOST_BYTES);
        ring.push(&chunk(0..5000));
        assert_eq!(times(&mut ring, 5000), (4990..5000).collect::<Vec<_>>());
        assert!(ring.sealed.len() <= 1, "{} segments", ring.sealed.len());
        assert!(times(&mut ring, 6000).is_empty());
        assert!(ring.open.bytes.is_empty());
    }

    #[test]
    fn what_is_too_much_is_forgotten() {
        let mut ring = Ring::new(None, 100_000);
        ring.push(&chunk(0..5000));
        let times = times(&mut ring, 5000);
        let expected: Vec<_> = (5000 - times.len() as u64..5000).collect();
        assert_eq!(times, expected);
        // A segment of a quarter is the grain.
        assert!((70..=96).contains(&times.len()), "{} frames", times.len());
    }
}

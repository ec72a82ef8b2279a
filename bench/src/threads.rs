//! What the threads of a load do: one per sender, one per receiver.

use std::array;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fabric::{BATCH_FRAMES, Batch};
use netio::mmsg;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, UnixAddr, recv, sendmmsg};

use crate::flow::Flow;
use crate::frame::{Bad, Codec, HELLO, LONGEST, SHORTEST, Seen, To};
use crate::load::{Calls, Full, Load, LoadError};
use crate::port::Port;
use crate::stop::Stop;

/// How long a blocked call may keep a thread from seeing that the load is over.
const BLOCKED: Duration = Duration::from_millis(100);
/// Time for one port's first frame to reach all others.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Frames taken with one call.
pub(crate) const VECTOR: usize = BATCH_FRAMES;
/// Frames sent with one call.
pub(crate) const SEND_VECTOR: usize = 32;
/// How long a sender sleeps that is ahead of its rate.
const PACE: Duration = Duration::from_micros(200);
/// Room for one byte more than any frame, so that a frame grown on the way is seen as such.
const BUFFER: usize = LONGEST + 1;

/// What all threads of a load see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) load: Load,
    codec: Codec,
    ports: Vec<Port>,
    offered: Vec<Counter>,
    delivered: Vec<Counter>,
    sending_over: AtomicBool,
    receiving_over: AtomicBool,
    failure: Mutex<Option<LoadError>>,
}

/// A counter with a cache line of its own: it has one writer, and no other core should pay for that.
#[derive(Default, Debug)]
#[repr(align(64))]
struct Counter(AtomicU64);

/// What a sender did.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sent {
    pub(crate) offered: u64,
    pub(crate) refused: u64,
}

/// What a receiver saw.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) flows: Vec<Flow>,
    pub(crate) damaged: u64,
    pub(crate) foreign: u64,
    pub(crate) strays: u64,
}

impl Shared {
    pub(crate) fn new(load: Load, ports: Vec<Port>) -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = std::process::id() << 10 | RUNS.fetch_add(1, Ordering::Relaxed) & 0x3ff;
        let counters = || (0..load.ports).map(|_| Counter::default()).collect();
        Self {
            codec: Codec::new(run),
            offered: counters(),
            delivered: counters(),
            load,
            ports,
            sending_over: AtomicBool::new(false),
            receiving_over: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    pub(crate) fn offered(&self) -> Vec<u64> {
        self.offered.iter().map(Counter::value).collect()
    }

    pub(crate) fn delivered(&self) -> Vec<u64> {
        self.delivered.iter().map(Counter::value).collect()
    }

    /// Frames each port must have in the end.
    pub(crate) fn expected(&self) -> Vec<u64> {
        let offered = self.offered();
        let from = |port| {
            (0..)
                .zip(&offered)
                .filter(move |&(s, _)| self.load.reaches(s, port))
        };
        (0..self.load.ports)
            .map(|port| from(port).map(|(_, n)| n).sum())
            .collect()
    }

    pub(crate) fn port(&self, number: u16) -> &Port {
        &self.ports[usize::from(number)]
    }

    /// A sender has had so many frames taken.
    pub(crate) fn publish_offered(&self, sender: u16, frames: u64) {
        self.offered[usize::from(sender)].set(frames);
    }

    pub(crate) fn stop_sending(&self) {
        self.sending_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stop_receiving(&self) {
        self.receiving_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.sending_over.load(Ordering::Relaxed)
    }

    pub(crate) fn take_failure(&self) -> Option<LoadError> {
        self.failure.lock().expect("nobody panics with the lock").take()
    }

    /// Ends the load; the first failure is the one that is reported.
    pub(crate) fn fail(&self, failure: LoadError) {
        self.failure
            .lock()
            .expect("nobody panics with the lock")
            .get_or_insert(failure);
        self.stop_sending();
        self.stop_receiving();
    }
}

impl Counter {
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets every port send one broadcast frame and waits until all others have it: a switch then knows every station,
/// and a switch that does not forward is found out before anything is measured.
pub(crate) fn introduce(shared: &Shared, stop: &Stop) -> Result<(), LoadError> {
    for (number, port) in (0..).zip(&shared.ports) {
        port.set_timeouts(BLOCKED, BLOCKED)
            .map_err(|source| LoadError::Prepare { port: number, source })?;
    }
    for from in 0..shared.load.ports {
        let deadline = Instant::now() + INTRODUCTION;
        let mut deaf: Vec<u16> = (0..shared.load.ports).filter(|&to| to != from).collect();
        while let Some(&to) = deaf.first() {
            if stop.is_set() {
                return Err(LoadError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(LoadError::Deaf { from, to });
            }
            say_hello(shared, from)?;
            for to in std::mem::take(&mut deaf) {
                if !hears(shared, to, from)? {
                    deaf.push(to);
                }
            }
        }
    }
    Ok(())
}

fn say_hello(shared: &Shared, from: u16) -> Result<(), LoadError> {
    let mut frame = [0; SHORTEST];
    let seen = Seen {
        sender: from,
        sequence: HELLO,
    };
    shared.codec.write(&mut frame, To::All, seen);
    match shared.ports[usize::from(from)].send(&frame, MsgFlags::empty()) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(source) => Err(LoadError::Send { port: from, source }),
    }
}

/// Reads until `from`'s hello is there or nothing comes any more.
fn hears(shared: &Shared, port: u16, from: u16) -> Result<bool, LoadError> {
    let mut buffer = [0; BUFFER];
    let mut others = 0;
    // What strangers send cannot keep this from ending.
    while others < 1000 {
        match recv(
            shared.ports[usize::from(port)].as_raw_fd(),
            &mut buffer,
            MsgFlags::empty(),
        ) {
            Ok(n) => {
                let seen = shared.codec.read(&buffer[..n], n, |_| To::All);
                if seen.is_ok_and(|seen| seen.sender == from) {
                    return Ok(true);
                }
                others += 1;
            }
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(LoadError::Receive { port, source }),
        }
    }
    Ok(false)
}

/// A sender: offers frames until it is told to stop or has sent enough.
pub(crate) fn send(shared: &Shared, number: u16) -> Sent {
    let load = &shared.load;
    let vector = match load.send {
        Calls::Single => 1,
        Calls::Vector => SEND_VECTOR,
    };
    let mut outbox = Outbox::new(shared.port(number));
    let mut sent = Sent::default();
    let started = Instant::now();
    while !shared.is_stopped() {
        let tried = sent.offered + sent.refused;
        let left = load.frames.map_or(u64::MAX, |most| most.saturating_sub(tried));
        let due = match load.rate {
            Some(rate) => due(rate, started, tried),
            None => u64::MAX,
        };
        let count = usize::try_from(left.min(due)).unwrap_or(vector).min(vector);
        if left == 0 {
            break;
        }
        if count == 0 {
            thread::sleep(PACE);
            continue;
        }
        match outbox.offer(shared, number, sent.offered, count) {
            Ok(taken) => {
                sent.offered += taken as u64;
                shared.publish_offered(number, sent.offered);
            }
            // What was not taken is made anew, with the same numbers.
            Err(Errno::EAGAIN) if load.full == Full::Refuse => sent.refused += 1,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(source) => {
                shared.fail(LoadError::Send { port: number, source });
                break;
            }
        }
    }
    sent
}

/// What a sender sends with, made once.
pub(crate) struct Outbox {
    headers: MultiHeaders<UnixAddr>,
    to: [Option<UnixAddr>; SEND_VECTOR],
    frames: Vec<u8>,
}

impl Outbox {
    /// For a port, or for any number of connected ones.
    pub(crate) fn new(port: &Port) -> Self {
        Self {
            headers: MultiHeaders::preallocate(SEND_VECTOR, None),
            to: [port.switch().copied(); SEND_VECTOR],
            frames: vec![0; SEND_VECTOR * LONGEST],
        }
    }

    /// Sends `count` frames, numbered from `first` on; returns how many the switch has taken.
    pub(crate) fn offer(
        &mut self,
        shared: &Shared,
        sender: u16,
        first: u64,
        count: usize,
    ) -> Result<usize, Errno> {
        let (load, port) = (&shared.load, shared.port(sender));
        let (to, size) = (load.to(sender), load.size);
        let flags = match load.full {
            Full::Block => MsgFlags::empty(),
            Full::Refuse => MsgFlags::MSG_DONTWAIT,
        };
        let seen = |sequence| Seen { sender, sequence };
        for (sequence, frame) in (first..).zip(self.frames.chunks_exact_mut(size).take(count)) {
            shared.codec.write(frame, to, seen(sequence));
        }
        if count == 1 {
            return port.send(&self.frames[..size], flags).map(|()| 1);
        }
        let mut frames = self.frames.chunks_exact(size);
        let slices: [_; SEND_VECTOR] =
            array::from_fn(|_| [IoSlice::new(frames.next().expect("room for a vector"))]);
        sendmmsg(
            port.as_raw_fd(),
            &mut self.headers,
            &slices[..count],
            &self.to[..count],
            [],
            flags,
        )
        .map(Iterator::count)
    }
}

/// Frames a sender has to send now to keep its rate.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number that is not negative"
)]
fn due(rate: u32, started: Instant, tried: u64) -> u64 {
    let by_now = (started.elapsed().as_secs_f64() * f64::from(rate)).floor() as u64 + 1;
    by_now.saturating_sub(tried)
}

/// A receiver: checks frames until it is told to stop.
pub(crate) fn receive(shared: &Shared, number: u16) -> Received {
    let mut books = Books::new(shared, number);
    let result = match shared.load.receive {
        Calls::Single => receive_single(shared, number, &mut books),
        Calls::Vector => receive_vector(shared, number, &mut books),
    };
    if let Err(source) = result {
        shared.fail(LoadError::Receive { port: number, source });
    }
    books.received
}

fn receive_single(shared: &Shared, number: u16, books: &mut Books<'_>) -> Result<(), Errno> {
    let fd = shared.ports[usize::from(number)].as_raw_fd();
    let mut buffer = vec![0; BUFFER];
    while !books.is_closed() {
        match recv(fd, &mut buffer, MsgFlags::empty()) {
            Ok(len) => {
                books.enter(&buffer[..len]);
                books.publish();
            }
            Err(Errno::EAGAIN) => books.silence(),
            Err(Errno::EINTR) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

fn receive_vector(shared: &Shared, number: u16, books: &mut Books<'_>) -> Result<(), Errno> {
    let port = shared.port(number);
    // One byte more than a frame has, so that a frame grown on the way is seen as such.
    let mut batch = Batch::new(shared.load.size + 1, VECTOR);
    while !books.is_closed() {
        match mmsg::receive_waiting(port.as_fd(), &mut batch) {
            Ok(_) => books.enter_all(&batch),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => books.silence(),
            Err(error) => return Err(Errno::try_from(error).unwrap_or(Errno::EIO)),
        }
    }
    Ok(())
}

/// What a receiver writes down about each frame.
pub(crate) struct Books<'a> {
    shared: &'a Shared,
    port: u16,
    delivered: u64,
    pub(crate) received: Received,
    /// Frames that may still be entered once the load is over.
    left: u32,
}

impl<'a> Books<'a> {
    pub(crate) fn new(shared: &'a Shared, port: u16) -> Self {
        Self {
            shared,
            port,
            delivered: 0,
            left: 1000,
            received: Received {
                flows: vec![Flow::default(); usize::from(shared.load.senders)],
                damaged: 0,
                foreign: 0,
                strays: 0,
            },
        }
    }

    /// True if the load is over and nothing comes any more: what a switch sends too often or to the wrong port may
    /// come after the last frame that was expected. What strangers go on sending cannot keep a load from ending.
    pub(crate) fn is_closed(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn silence(&mut self) {
        if self.is_over() {
            self.left = 0;
        }
    }

    fn is_over(&self) -> bool {
        self.shared.receiving_over.load(Ordering::Relaxed)
    }

    /// Checks frames that have arrived.
    pub(crate) fn enter_all(&mut self, batch: &Batch) {
        for i in batch.all() {
            self.enter(batch.frame(i));
        }
        self.publish();
    }

    fn enter(&mut self, frame: &[u8]) {
        if self.is_over() {
            self.left = self.left.saturating_sub(1);
        }
        let load = &self.shared.load;
        let to = |seen: Seen| {
            if seen.sequence == HELLO {
                To::All
            } else {
                load.to(seen.sender)
            }
        };
        let seen = match self.shared.codec.read(frame, load.size, to) {
            Ok(seen) => seen,
            Err(Bad::Foreign) => {
                self.received.foreign += 1;
                return;
            }
            Err(Bad::Damaged) => {
                self.received.damaged += 1;
                return;
            }
        };
        if seen.sequence == HELLO {
            return;
        }
        if !load.reaches(seen.sender, self.port) {
            self.received.strays += 1;
            return;
        }
        match self.received.flows.get_mut(usize::from(seen.sender)) {
            Some(flow) => {
                flow.see(seen.sequence);
                self.delivered += 1;
            }
            None => self.received.damaged += 1,
        }
    }

    fn publish(&self) {
        self.shared.delivered[usize::from(self.port)].set(self.delivered);
    }
}

//! What makes the guest's serial line reliable: bytes that go in at one end come out at the other, once and in order.
//! Pure: bytes and the time go in, bytes and the next time to look go out.
//!
//! ```text
//! push -> [ in flight | waiting ] -> transmit ~~ serial line ~~> receive -> bytes
//! packet: marker 2 | kind 1 | epoch 4 | sequence 4 | acknowledged 4 | length 2 | CRC-32 of these | contents | CRC-32
//! ```
//!
//! Sequence numbers count bytes. A receiver takes what comes next and acknowledges it; a packet that was damaged is
//! looked through for the beginning of another. When an acknowledgement is late the sender does not send its window
//! again, because it may all lie unread in the guest's kernel, which never recovers from more than it has room for
//! (see docs/guest-line.md). It sends a probe instead, a packet without contents. The answer to that says that
//! everything before it has been read or is lost, and the sender goes back to the first byte that was not
//! acknowledged.
//!
//! The agent *calls*: it says hello with a number of its own, the epoch, until it is answered. Whoever *answers* a
//! new epoch forgets everything about the one before, so that a machine that starts again finds a fresh line. Packets
//! of another epoch mean nothing. Without anything to deliver both ends are silent.

use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that may be in flight to a guest. Its kernel has 4096 for what was not read yet; when 128 are left, it stops
/// listening and never begins again (see docs/guest-line.md). Probes and acknowledgements need some of that.
pub const TO_GUEST: usize = 2048;
/// Bytes that may be in flight to the host. Its pseudo-terminal has room for 11 KiB and more; when that is full, the
/// guest's kernel may never find out that there is room again.
pub const TO_HOST: usize = 8 * 1024;

/// Bytes that may wait for the line; who has more to say waits until [`Line::has_room`].
const QUEUE: usize = 16 * 1024;
/// Bytes of contents that a packet has at most.
const PIECE: usize = 1024;

/// The shortest time after which an acknowledgement is late, and the longest.
const RTO: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Before anything has been measured.
const FIRST_RTO: Duration = Duration::from_millis(200);
/// Probes become rare in the course of time: the next one follows after this part of the silence so far.
const PATIENCE: u32 = 4;

const MARKER: [u8; 2] = [0xc5, 0x3a];
const HEADER: usize = 21;
const SUM: usize = 4;

/// What has come over the line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The other end is there, or there anew: nothing that went before has to do with what follows.
    Connected,
    /// Bytes it has sent.
    Bytes(Vec<u8>),
}

/// One end of a line. `now` is the time since any moment, the same one for every call.
#[derive(Debug)]
pub struct Line {
    /// `None` until the other end has called.
    epoch: Option<u32>,
    /// We call, and have not been answered.
    calling: bool,
    window: usize,
    /// Everything that is not acknowledged: first what is in flight, then what waits.
    queue: VecDeque<u8>,
    /// Sequence numbers: the first byte of the queue, the next to send, and the one behind all that was ever sent.
    acknowledged: u32,
    next: u32,
    highest: u32,
    /// The last probe's number, and what it waits for.
    probe: u32,
    probing: Option<Probing>,
    /// When to send a probe, or a hello.
    deadline: Option<Duration>,
    clock: Clock,
    /// Bytes that have come but were not understood yet.
    input: Vec<u8>,
    expected: u32,
    /// The last probe that was heard.
    heard: u32,
    answer: bool,
    /// What the data that came are to be answered with.
    owed: Option<Kind>,
}

/// Since when nothing is known about what is in flight.
#[derive(Clone, Copy, Debug)]
struct Probing {
    /// Answers to this probe and later ones count.
    first: u32,
    since: Duration,
}

/// How long an acknowledgement takes.
#[derive(Debug, Default)]
struct Clock {
    /// A byte whose acknowledgement is being timed, and when it was sent.
    sample: Option<(u32, Duration)>,
    /// The mean so far and the mean deviation.
    measured: Option<(Duration, Duration)>,
    /// Times that the last wait was in vain.
    late: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The caller is there.
    Hello,
    /// Bytes.
    Data,
    /// What was acknowledged; the sequence number is that of the last probe.
    Ack,
    /// The same, and something in between is missing.
    Gap,
    /// Asks for an acknowledgement.
    Probe,
}

const KINDS: [Kind; 5] = [Kind::Hello, Kind::Data, Kind::Ack, Kind::Gap, Kind::Probe];

struct Packet {
    kind: Kind,
    epoch: u32,
    sequence: u32,
    acknowledged: u32,
    contents: Vec<u8>,
}

impl Line {
    /// The end that calls. `epoch` must differ from that of the caller before; `window` is the number of bytes it may
    /// have in flight.
    pub fn calling(epoch: u32, window: usize) -> Self {
        Self {
            calling: true,
            deadline: Some(Duration::ZERO),
            ..Self::start(Some(epoch), window)
        }
    }

    /// The end that is called.
    pub fn answering(window: usize) -> Self {
        Self::start(None, window)
    }

    /// An end at the beginning of an epoch, which is the first sequence number as well.
    fn start(epoch: Option<u32>, window: usize) -> Self {
        let first = epoch.unwrap_or(0);
        Self {
            epoch,
            calling: false,
            window,
            queue: VecDeque::new(),
            acknowledged: first,
            next: first,
            highest: first,
            probe: 0,
            probing: None,
            deadline: None,
            clock: Clock::default(),
            input: Vec::new(),
            expected: first,
            heard: 0,
            answer: false,
            owed: None,
        }
    }

    /// Takes bytes to send.
    pub fn push(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
    }

    /// False when so much waits that nothing should be added.
    pub fn has_room(&self) -> bool {
        self.queue.len() < QUEUE
    }

    /// When [`Line::transmit`] has something to do even if nothing comes in; `None` if never.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Appends what is to be sent now.
    pub fn transmit(&mut self, now: Duration, out: &mut Vec<u8>) {
        let late = self.deadline.is_some_and(|deadline| deadline <= now);
        if self.calling {
            if late {
                self.put(out, Kind::Hello, 0, &[]);
                self.deadline = Some(now + self.clock.late());
            }
            return;
        }
        if self.epoch.is_none() {
            return;
        }
        if self.probing.is_none() && !late {
            self.send_data(now, out);
        }
        if late {
            self.probe = self.probe.wrapping_add(1);
            let probing = *self.probing.get_or_insert(Probing {
                first: self.probe,
                since: now,
            });
            // What is sent again cannot be timed: its acknowledgement may be that of the first time.
            self.clock.sample = None;
            let silence = now.saturating_sub(probing.since);
            self.deadline = Some(now + self.clock.late().max(silence / PATIENCE));
            self.put(out, Kind::Probe, self.probe, &[]);
        }
        let answer = std::mem::take(&mut self.answer).then_some(Kind::Ack);
        if let Some(kind) = self.owed.take().or(answer) {
            self.put(out, kind, self.heard, &[]);
        }
    }

    fn send_data(&mut self, now: Duration, out: &mut Vec<u8>) {
        loop {
            let flying = self.flying();
            let length = (self.queue.len() - flying)
                .min(self.window.saturating_sub(flying))
                .min(PIECE);
            if length == 0 {
                return;
            }
            let contents: Vec<u8> = self.queue.range(flying..flying + length).copied().collect();
            self.put(out, Kind::Data, self.next, &contents);
            self.next = self.next.wrapping_add(count(length));
            if ahead(self.next, self.highest) {
                self.highest = self.next;
                self.clock.sample.get_or_insert((self.next, now));
            }
            self.deadline.get_or_insert(now + self.clock.rto());
            // Every packet acknowledges.
            self.owed.take_if(|owed| *owed == Kind::Ack);
        }
    }

    /// Takes in what has come.
    pub fn receive(&mut self, now: Duration, bytes: &[u8]) -> Vec<Event> {
        self.input.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(packet) = next_packet(&mut self.input) {
            self.take(now, packet, &mut events);
        }
        events
    }

    fn take(&mut self, now: Duration, packet: Packet, events: &mut Vec<Event>) {
        if packet.kind == Kind::Hello && !self.calling {
            if self.epoch != Some(packet.epoch) {
                let input = std::mem::take(&mut self.input);
                *self = Self {
                    input,
                    ..Self::start(Some(packet.epoch), self.window)
                };
                events.push(Event::Connected);
            }
            self.answer = true;
            return;
        }
        if self.epoch != Some(packet.epoch) || packet.kind == Kind::Hello {
            return;
        }
        if std::mem::take(&mut self.calling) {
            self.deadline = None;
            self.clock = Clock::default();
            events.push(Event::Connected);
        }
        self.take_acknowledgement(now, packet.acknowledged);
        match packet.kind {
            Kind::Data => self.take_data(&packet, events),
            Kind::Probe => {
                self.heard = packet.sequence;
                self.answer = true;
            }
            Kind::Ack | Kind::Gap => {
                let answered = self
                    .probing
                    .is_some_and(|probing| !ahead(probing.first, packet.sequence));
                if answered && !ahead(packet.sequence, self.probe) {
                    // Nothing is in flight any more: once again from there.
                    self.probing = None;
                    self.next = self.acknowledged;
                    self.deadline = None;
                } else if packet.kind == Kind::Gap && self.probing.is_none() && self.flying() > 0 {
                    self.deadline = Some(now);
                }
            }
            Kind::Hello => {}
        }
    }

    fn take_acknowledgement(&mut self, now: Duration, acknowledged: u32) {
        let more = acknowledged.wrapping_sub(self.acknowledged);
        if more == 0 || more > self.highest.wrapping_sub(self.acknowledged) {
            return;
        }
        self.queue
            .drain(..usize::try_from(more).unwrap_or(usize::MAX).min(self.queue.len()));
        self.acknowledged = acknowledged;
        if ahead(acknowledged, self.next) {
            self.next = acknowledged;
        }
        self.clock.acknowledged(now, acknowledged);
        if self.flying() == 0 {
            self.probing = None;
            self.deadline = None;
        } else if self.probing.is_none() {
            self.deadline = Some(now + self.clock.rto());
        }
    }

    fn take_data(&mut self, packet: &Packet, events: &mut Vec<Event>) {
        if ahead(packet.sequence, self.expected) {
            self.owed = Some(Kind::Gap);
            return;
        }
        self.owed.get_or_insert(Kind::Ack);
        let known = usize::try_from(self.expected.wrapping_sub(packet.sequence)).unwrap_or(usize::MAX);
        let Some(fresh @ [_, ..]) = packet.contents.get(known..) else {
            return;
        };
        self.expected = self.expected.wrapping_add(count(fresh.len()));
        match events.last_mut() {
            Some(Event::Bytes(bytes)) => bytes.extend_from_slice(fresh),
            _ => events.push(Event::Bytes(fresh.to_vec())),
        }
    }

    /// Bytes in flight: the first ones of the queue.
    fn flying(&self) -> usize {
        usize::try_from(self.next.wrapping_sub(self.acknowledged)).unwrap_or(usize::MAX)
    }

    fn put(&self, out: &mut Vec<u8>, kind: Kind, sequence: u32, contents: &[u8]) {
        let start = out.len();
        out.extend(MARKER);
        out.push(kind as u8);
        out.extend(self.epoch.unwrap_or(0).to_be_bytes());
        out.extend(sequence.to_be_bytes());
        out.extend(self.expected.to_be_bytes());
        let length = u16::try_from(contents.len()).expect("a piece is short");
        out.extend(length.to_be_bytes());
        out.extend(crc32fast::hash(&out[start..]).to_be_bytes());
        if !contents.is_empty() {
            out.extend(contents);
            out.extend(crc32fast::hash(contents).to_be_bytes());
        }
    }
}

impl Clock {
    /// After how long an acknowledgement is late.
    fn rto(&self) -> Duration {
        let rto = self
            .measured
            .map_or(FIRST_RTO, |(mean, deviation)| mean + 4 * deviation);
        rto.saturating_mul(1 << self.late.min(5)).clamp(RTO.0, RTO.1)
    }

    /// One was late: how long to wait for the next sign of life.
    fn late(&mut self) -> Duration {
        let rto = self.rto();
        self.late = self.late.saturating_add(1);
        rto
    }

    /// Bytes were acknowledged up to a number.
    fn acknowledged(&mut self, now: Duration, number: u32) {
        self.late = 0;
        let Some((_, sent)) = self.sample.take_if(|(sampled, _)| !ahead(*sampled, number)) else {
            return;
        };
        let took = now.saturating_sub(sent);
        self.measured = Some(match self.measured {
            None => (took, took / 2),
            Some((mean, deviation)) => ((7 * mean + took) / 8, (3 * deviation + mean.abs_diff(took)) / 4),
        });
    }
}

/// Takes the first packet that is there as a whole, and whatever is before it.
fn next_packet(input: &mut Vec<u8>) -> Option<Packet> {
    loop {
        let start = input
            .windows(MARKER.len())
            .position(|bytes| bytes == MARKER)
            // The last byte may be half a marker.
            .unwrap_or_else(|| input.len().saturating_sub(1));
        input.drain(..start);
        if input.len() < HEADER {
            return None;
        }
        let Some((mut packet, length)) = header(input) else {
            input.drain(..1);
            continue;
        };
        let end = match length {
            0 => HEADER,
            _ => HEADER + length + SUM,
        };
        if let Some(rest) = input.get(HEADER..end) {
            let (contents, sum) = rest.split_at(length);
            if length > 0 && crc32fast::hash(contents).to_be_bytes() != sum {
                input.drain(..1);
                continue;
            }
            packet.contents = contents.to_vec();
            input.drain(..end);
            return Some(packet);
        }
        // Packets are sent whole: one without contents that begins inside of this one shows that its end was lost.
        let inside = (1..input.len()).find(|at| header(&input[*at..]).is_some_and(|(_, length)| length == 0));
        input.drain(..inside?);
    }
}

/// A packet's header and the length of its contents, if these bytes begin with one.
fn header(bytes: &[u8]) -> Option<(Packet, usize)> {
    let bytes = bytes.get(..HEADER)?;
    let (fields, sum) = bytes.split_at(HEADER - SUM);
    if !fields.starts_with(&MARKER) || crc32fast::hash(fields).to_be_bytes() != sum {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(*fields.get(at..)?.first_chunk()?));
    let length = usize::from(u16::from_be_bytes(*fields.get(15..)?.first_chunk()?));
    let kind = *KINDS.get(usize::from(fields[2]))?;
    if length > PIECE || (length > 0) != (kind == Kind::Data) {
        return None;
    }
    let packet = Packet {
        kind,
        epoch: word(3)?,
        sequence: word(7)?,
        acknowledged: word(11)?,
        contents: Vec::new(),
    };
    Some((packet, length))
}

/// True if the first of two sequence numbers is behind the second in the stream. They start anew after 4 GiB.
fn ahead(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).wrapping_sub(1) < u32::MAX / 2
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("a piece is short")
}

#[cfg(test)]
mod tests;

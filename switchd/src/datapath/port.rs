//! A port: one link of some kind, its counters, and what it owes or is owed.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fabric::{Batch, DropReason, Drops, FrameSet, Offloads, PortId};
use netio::poll::{Interest, Poller};
use nix::sys::eventfd::EventFd;
use proto::ctl::Peer;
use tokio::sync::oneshot;

use super::flow::{Egress, TURN};
use super::help::Help;
use super::worker::ROOM;
use super::{bess, nic, stream, tap, uml, vhost, wire};

/// The carrier of a port's frames, settled once per batch.
pub(crate) enum Link {
    /// The uml_switch protocol.
    Uml(uml::Link),
    /// A VDE client: the same frames in the same sockets.
    Vde(uml::Link),
    /// The uml_switch protocol, for a client that gets every frame (netkit-jh's `uml_dump`).
    Dump(uml::Link),
    /// A vector guest's connection.
    Bess(bess::Link),
    /// A tap device of the host.
    Tap(tap::Link),
    /// An interface of the host.
    Nic(nic::Link),
    /// The same, but nothing is ever sent there.
    Sniff(nic::Link),
    /// A program that leads to the Internet, over a vector guest's connection.
    Uplink(bess::Link),
    /// The same over a byte stream.
    UplinkStream(stream::Link),
    /// The rings of a guest that shares its memory.
    Vhost(Box<vhost::Link>),
    /// Datagrams to somewhere else.
    Wire(wire::Link),
    /// A byte stream.
    Stream(stream::Link),
    /// A connected pair of sockets that keeps records apart, of which we were given one.
    Fd(bess::Link),
    /// The same as a byte stream.
    FdStream(stream::Link),
    /// The same with datagrams.
    FdDgram(uml::Link),
    /// The end of a cable to another domain.
    Cable(bess::Link),
    /// Nothing, in place of a link that is yet to come.
    Waiting(&'static str, EventFd),
}

/// How receiving went.
pub(crate) enum Rx {
    /// The batch is full: there may be more.
    More,
    /// All there was.
    Drained,
    /// The link is dead.
    Closed,
}

/// Frames that are yet to go out.
#[derive(Clone, Copy)]
pub(crate) struct Rest {
    pub(crate) frames: FrameSet,
    /// Segments of the first of them that have gone out already.
    segment: usize,
    /// How much of their sender's turn is spent, in frames as they are on a wire.
    spent: usize,
}

impl Rest {
    pub(crate) const NONE: Self = Self::whole(FrameSet::EMPTY);

    /// Frames of which nothing has gone out.
    pub(crate) const fn whole(frames: FrameSet) -> Self {
        Self {
            frames,
            segment: 0,
            spent: 0,
        }
    }

    /// Splits off what may go out in the rest of a turn of [`TURN`] frames. More than that are in a batch only if some
    /// of them are super-frames. A turn ends with a whole one, and what that was too much is missing from the next.
    pub(crate) fn turn(self, batch: &Batch) -> (Self, Self) {
        if (self.frames & batch.unfinished()).is_empty() {
            return (self, Self::NONE);
        }
        let mut turn = Self {
            frames: FrameSet::EMPTY,
            ..self
        };
        let mut spent = self.spent;
        for i in self.frames.iter() {
            if spent >= TURN {
                break;
            }
            spent += batch.work(i).count(batch.wire_len(i));
            if turn.frames.is_empty() {
                spent -= self.segment;
            }
            turn.frames.insert(i);
        }
        let later = Self {
            spent: spent.saturating_sub(TURN),
            ..Self::whole(self.frames.without(turn.frames))
        };
        (turn, later)
    }

    /// What is left once a turn was cut short: this rest of it, before which so many frames have gone out, and what was
    /// split off from behind it. True if they were enough to end the turn all the same.
    pub(crate) fn resume(self, turn: Self, sent: usize, later: Self) -> (Self, bool) {
        let spent = turn.spent + sent;
        let over = spent >= TURN;
        let rest = Self {
            frames: self.frames | later.frames,
            spent: if over { spent - TURN } else { spent },
            ..self
        };
        (rest, over)
    }

    /// How many frames, as they are on a wire, less than this another rest of the same batch is.
    pub(crate) fn less(self, other: Self, batch: &Batch) -> usize {
        let gone = self.frames.without(other.frames);
        let gone = gone.iter().map(|i| batch.work(i).count(batch.wire_len(i)));
        gone.sum::<usize>() + other.segment - self.segment
    }
}

/// How sending went: what is left of the frames, if the port is full or gone.
pub(crate) enum Tx {
    /// All went out or were dropped for a counted reason.
    Done,
    /// The port's queue is full.
    Full(Rest),
    /// The other end is gone.
    Closed(FrameSet),
}

impl Link {
    /// The field's word for the kind of link.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Uml(_) => "uml",
            Self::Vde(_) => "vde",
            Self::Dump(_) => "dump",
            Self::Bess(_) => "bess",
            Self::Tap(_) => "tap",
            Self::Nic(_) => "nic",
            Self::Sniff(_) => "sniff",
            Self::Uplink(_) | Self::UplinkStream(_) => "uplink",
            Self::Vhost(_) => "vhost",
            Self::Wire(link) => link.kind(),
            Self::Stream(_) => "stream",
            Self::Fd(_) | Self::FdStream(_) | Self::FdDgram(_) => "fd",
            Self::Cable(_) => "link",
            Self::Waiting(kind, _) => kind,
        }
    }

    /// The descriptor frames come in at, and the one they go out at if it is another: one that becomes writable, or for
    /// a guest that shares its memory one that becomes readable.
    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        match self {
            Self::Uml(link) | Self::Vde(link) | Self::Dump(link) | Self::FdDgram(link) => link.fds(),
            Self::Bess(link) | Self::Fd(link) | Self::Cable(link) | Self::Uplink(link) => (link.fd(), None),
            Self::Tap(link) => (link.fd(), None),
            Self::Nic(link) | Self::Sniff(link) => (link.fd(), None),
            Self::Wire(link) => link.fds(),
            Self::Stream(link) | Self::FdStream(link) | Self::UplinkStream(link) => (link.fd(), None),
            Self::Waiting(_, fd) => (fd.as_fd(), None),
            Self::Vhost(link) => {
                let (rx, tx) = link.fds();
                (rx, Some(tx))
            }
        }
    }

    /// Has its descriptors watched.
    pub(crate) fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        let (rx, tx) = self.fds();
        poller.add(rx, token, Interest::Read)?;
        let added = match (tx, self) {
            (Some(tx), Self::Vhost(_)) => poller.add(tx, token | ROOM, Interest::Read),
            (Some(tx), _) => poller.add(tx, token, Interest::Nothing),
            (None, _) => Ok(()),
        };
        // What is not closed with the link, as others have it too, would be reported for ever.
        if added.is_err() {
            poller.remove(rx)?;
        }
        added
    }

    /// Has them watched no more.
    pub(crate) fn forget(&self, poller: &Poller) -> io::Result<()> {
        let (rx, tx) = self.fds();
        let removed = poller.remove(rx);
        tx.map_or(Ok(()), |tx| poller.remove(tx)).and(removed)
    }

    /// What makes another link that gives the same frames of a duplicate of its descriptor, if they are read with one system
    /// call for many and need nothing else.
    pub(super) fn reader(&self) -> Option<fn(OwnedFd) -> Self> {
        match (self, self.fds()) {
            (Self::Uml(_) | Self::Vde(_), (_, None)) => Some(|fd| Self::Uml(uml::Link::new(fd.into()))),
            (Self::Bess(_), _) => Some(|fd| Self::Bess(bess::Link::new(fd))),
            _ => None,
        }
    }

    /// What may be left undone on frames that go out there.
    fn offloads(&self) -> Offloads {
        match self {
            Self::Tap(link) => link.offloads(),
            Self::Nic(_) | Self::Sniff(_) => nic::Link::offloads(),
            Self::Vhost(link) => link.offloads(),
            _ => Offloads::NONE,
        }
    }

    /// The buffers it needs in a domain whose own frames need so many bytes.
    pub(crate) fn buffers(&self, longest_frame: usize) -> Buffers {
        match self {
            Self::Tap(link) => Buffers::Equal(link.frame_bytes(longest_frame)),
            Self::Nic(_) | Self::Sniff(_) => Buffers::Equal(nic::Link::frame_bytes(longest_frame)),
            Self::Vhost(link) => Buffers::Packed(link.frame_bytes(longest_frame)),
            _ => Buffers::Equal(longest_frame),
        }
    }

    /// Only what has been sent by now is still to be received, where more may come for ever.
    pub(crate) fn finish(&mut self) {
        if let Self::Vhost(link) = self {
            link.finish();
        }
    }

    /// Frames lost before they could be received, since this was last asked.
    fn overruns(&mut self) -> u64 {
        match self {
            Self::Nic(link) | Self::Sniff(link) => link.overruns().into(),
            _ => 0,
        }
    }

    /// Fills the batch with what has arrived.
    pub(crate) fn rx(&mut self, batch: &mut Batch) -> Rx {
        let received = match self {
            Self::Vhost(link) => return link.rx(batch),
            Self::Uml(link) | Self::Vde(link) | Self::Dump(link) | Self::FdDgram(link) => link.rx(batch),
            Self::Bess(link) | Self::Fd(link) | Self::Cable(link) | Self::Uplink(link) => link.rx(batch),
            Self::Tap(link) => link.rx(batch),
            Self::Nic(link) | Self::Sniff(link) => link.rx(batch),
            Self::Wire(link) => link.rx(batch),
            Self::Stream(link) | Self::FdStream(link) | Self::UplinkStream(link) => link.rx(batch),
            Self::Waiting(..) => Ok(0),
        };
        match received {
            Ok(count) if count == batch.capacity() => Rx::More,
            Ok(_) => Rx::Drained,
            Err(error) if is_final(&error) => Rx::Closed,
            Err(_) => Rx::Drained,
        }
    }

    /// Copies into a batch that was received here what is lent of these frames; false if that cannot be had any more.
    pub(crate) fn fetch(&mut self, batch: &mut Batch, frames: FrameSet) -> bool {
        match self {
            Self::Vhost(link) if !(batch.lent() & frames).is_empty() => link.fetch(batch, frames).is_ok(),
            _ => true,
        }
    }

    /// Gives back what is lent to the batch that was received here last; false if there is something wrong with whoever
    /// gets it.
    pub(crate) fn release(&mut self) -> bool {
        match self {
            Self::Vhost(link) => link.release().is_ok(),
            _ => true,
        }
    }

    fn send(&mut self, batch: &Batch, frames: FrameSet, lender: Option<&Self>) -> io::Result<usize> {
        match self {
            Self::Vhost(link) => {
                let lender = match lender {
                    Some(Self::Vhost(lender)) if !(batch.lent() & frames).is_empty() => Some(&**lender),
                    _ => None,
                };
                link.tx(batch, frames, lender)
            }
            Self::Uml(link) | Self::Vde(link) | Self::Dump(link) | Self::FdDgram(link) => {
                link.tx(batch, frames)
            }
            Self::Bess(link) | Self::Fd(link) | Self::Cable(link) | Self::Uplink(link) => {
                link.tx(batch, frames)
            }
            Self::Tap(link) => link.tx(batch, frames),
            Self::Nic(link) => link.tx(batch, frames),
            Self::Sniff(_) => Ok(frames.len()),
            Self::Wire(link) => link.tx(batch, frames),
            Self::Stream(link) | Self::FdStream(link) | Self::UplinkStream(link) => link.tx(batch, frames),
            Self::Waiting(..) => Err(io::Error::from_raw_os_error(libc::EHOSTUNREACH)),
        }
    }
}

/// What a link receives into: buffers for frames of up to so many bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// Of equal size, for the kernel to fill.
    Equal(usize),
    /// One behind the other, each as long as its frame.
    Packed(usize),
}

/// Counters of one port, from its first frame on.
#[derive(Clone, Default)]
pub(crate) struct Counters {
    pub(crate) rx_frames: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_frames: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) drops: Drops,
}

impl Counters {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.drops.merge(&other.drops);
    }
}

/// Who is at the other end.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Machine and interface, or the client's own description.
    pub(crate) name: String,
    /// The process.
    pub(crate) peer: Option<Peer>,
    /// Time of attachment since 1970.
    pub(crate) since: Duration,
}

impl Identity {
    /// Somebody who attaches now.
    pub(crate) fn now(name: String, peer: Option<Peer>) -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self { name, peer, since }
    }
}

/// A batch on its way. As long as ports are owed a part of it, its ingress port keeps it and is not read.
pub(crate) struct Parcel {
    pub(crate) batch: Batch,
    /// What each of those ports is still to get.
    pub(crate) owed: Vec<(PortId, Rest)>,
    /// When it was received.
    pub(crate) since: Instant,
}

/// A port of a domain.
pub(crate) struct Port {
    pub(crate) link: Link,
    pub(crate) identity: Identity,
    /// Told apart from an earlier port of the same number.
    pub(crate) serial: u64,
    pub(crate) counters: Counters,
    pub(crate) egress: Egress,
    /// Another worker that reads it.
    pub(super) help: Option<Arc<Help>>,
    /// Frames and bytes received when it was last asked which port receives most.
    pub(super) marked: (u64, u64),
    /// What others have not taken yet of the last batch received here.
    pub(crate) held: Option<Parcel>,
    /// There may be something to read.
    pub(crate) readable: bool,
    /// It stands in the worker's ready queue.
    pub(crate) queued: bool,
    /// Reports of room are switched on.
    pub(crate) armed: bool,
    /// Frames of the last batch sent that were dropped because of what they are.
    pub(crate) faults: Vec<(FrameSet, DropReason)>,
    /// Where frames are finished that go out here; made when the first such frame does.
    pub(crate) finisher: Option<Box<Batch>>,
    /// It is to go once it is drained, and whoever waits for that is told.
    pub(crate) closing: Option<oneshot::Sender<()>>,
    /// Dropped with the port, which its control task notices.
    pub(crate) _alive: oneshot::Sender<Infallible>,
}

impl Port {
    /// Fills the batch with what has arrived, from another worker that reads the port as long as one does.
    pub(super) fn rx(&mut self, batch: &mut Batch, poller: &Poller, token: u64) -> Rx {
        if let Some(help) = &self.help {
            if let Some(rx) = help.rx(batch) {
                return rx;
            }
            self.help = None;
            if let Err(error) = self.watch(poller, token) {
                tracing::error!("cannot watch port {}: {error}", self.identity.name);
            }
        }
        self.link.rx(batch)
    }

    /// Has the kernel report what is of interest now: frames, unless another worker reads them, and room.
    pub(super) fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        let (fd, interest) = match (self.link.fds(), self.armed) {
            ((_, Some(tx)), true) => (tx, Interest::Write),
            ((_, Some(tx)), false) => (tx, Interest::Nothing),
            ((rx, None), true) if self.help.is_some() => (rx, Interest::Write),
            ((rx, None), true) => (rx, Interest::ReadWrite),
            ((rx, None), false) if self.help.is_some() => (rx, Interest::Nothing),
            ((rx, None), false) => (rx, Interest::Read),
        };
        poller.modify(fd, token, interest)
    }

    /// Counts a received batch; returns its bytes.
    pub(crate) fn count_rx(&mut self, batch: &Batch) -> usize {
        let bytes = (0..batch.len()).map(|i| batch.wire_len(i)).sum();
        self.counters.rx_frames += batch.len() as u64;
        self.counters.rx_bytes += bytes as u64;
        self.counters.drops.add(DropReason::Overrun, self.link.overruns());
        bytes
    }

    /// Drops frames that were to go out here, and leaves none.
    pub(crate) fn discard(&mut self, frames: FrameSet, reason: DropReason) -> FrameSet {
        self.counters.drops.add(reason, frames.len() as u64);
        FrameSet::EMPTY
    }

    /// True if frames can be sent as they are, those whose rest is still with their lender included.
    pub(crate) fn takes_lent(&self, batch: &Batch, frames: FrameSet) -> bool {
        matches!(self.link, Link::Vhost(_))
            && (frames & batch.unfinished_beyond(self.link.offloads())).is_empty()
    }

    /// Sends frames: the only way out of the fabric. `frame_bytes` is the length of the domain's longest frame. Some of
    /// them may be lent if the port is one that [`Port::takes_lent`]; the lender is the link they came from.
    pub(crate) fn tx(&mut self, batch: &Batch, rest: Rest, frame_bytes: usize, lender: Option<&Link>) -> Tx {
        self.faults.clear();
        if matches!(self.link, Link::Sniff(_)) {
            return Tx::Done;
        }
        if !(rest.frames & batch.unfinished_beyond(self.link.offloads())).is_empty() {
            return self.tx_finished(batch, rest, frame_bytes);
        }
        let mut frames = rest.frames;
        while !frames.is_empty() {
            match self.link.send(batch, frames, lender) {
                Ok(sent) => {
                    let rest = frames.skip(sent);
                    self.count_tx(batch, frames.without(rest));
                    frames = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Tx::Full(Rest::whole(frames));
                }
                Err(error) if is_final(&error) => return Tx::Closed(frames),
                Err(error) => {
                    let rest = frames.skip(1);
                    let reason = frame_fault(&error);
                    self.counters.drops.add(reason, 1);
                    self.faults.push((frames.without(rest), reason));
                    frames = rest;
                }
            }
        }
        Tx::Done
    }

    fn count_tx(&mut self, batch: &Batch, frames: FrameSet) {
        self.counters.tx_frames += frames.len() as u64;
        self.counters.tx_bytes += frames.iter().map(|i| batch.wire_len(i) as u64).sum::<u64>();
    }

    /// Sends frames some of which are not finished, to a link that cannot finish them.
    fn tx_finished(&mut self, batch: &Batch, mut rest: Rest, frame_bytes: usize) -> Tx {
        let mut finished = self
            .finisher
            .take()
            .unwrap_or_else(|| Box::new(Batch::new(frame_bytes, fabric::BATCH_FRAMES)));
        let mut tx = Tx::Done;
        while !rest.frames.is_empty() {
            // Where the finished frames come from: what is left from each of them on.
            let mut origins = [rest; fabric::BATCH_FRAMES + 1];
            finished.clear();
            while let Some(index) = rest.frames.iter().next() {
                let (frame, work) = (batch.frame(index), batch.work(index));
                if !finished.push_finished(frame, work, rest.segment) {
                    break;
                }
                rest.segment += 1;
                if rest.segment == work.count(frame.len()) {
                    rest = Rest::whole(rest.frames.skip(1));
                }
                origins[finished.len()] = rest;
            }
            let known = self.faults.len();
            let sent = self.send_all(&finished);
            for (frames, _) in &mut self.faults[known..] {
                // A capture has the frame as it came in.
                if let Some(index) = frames.iter().next() {
                    let left = origins[index].frames;
                    *frames = left.without(left.skip(1));
                }
            }
            match sent {
                (_, None) => {}
                (sent, Some(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    tx = Tx::Full(origins[sent]);
                    break;
                }
                (sent, Some(_)) => {
                    tx = Tx::Closed(origins[sent].frames);
                    break;
                }
            }
        }
        self.finisher = Some(finished);
        tx
    }

    /// Sends a batch as far as the link takes it: how many of its frames are done with, and what stopped it.
    fn send_all(&mut self, batch: &Batch) -> (usize, Option<io::Error>) {
        let mut frames = batch.all();
        while !frames.is_empty() {
            match self.link.send(batch, frames, None) {
                Ok(sent) => {
                    let rest = frames.skip(sent);
                    self.count_tx(batch, frames.without(rest));
                    frames = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_final(&error) => {
                    return (batch.len() - frames.len(), Some(error));
                }
                Err(error) => {
                    let rest = frames.skip(1);
                    let reason = frame_fault(&error);
                    self.counters.drops.add(reason, 1);
                    self.faults.push((frames.without(rest), reason));
                    frames = rest;
                }
            }
        }
        (batch.len(), None)
    }
}

/// Why one frame could not go out although the port is well.
fn frame_fault(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        Some(libc::EHOSTUNREACH) => DropReason::Unreachable,
        Some(libc::EOWNERDEAD) => DropReason::Detached,
        _ => DropReason::NoBuffers,
    }
}

/// True if the link will never work again.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::ENOTCONN
                | libc::EPIPE
                | libc::EBADFD
                | libc::EBADF
                | libc::ENOTSOCK
                | libc::EPERM
                | libc::ENOENT
        )
    )
}

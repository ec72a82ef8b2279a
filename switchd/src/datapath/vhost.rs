//! A port of a guest that shares its memory (vhost-user): frames are copied out of and into its rings. Of a long frame, all
//! but the head stays in its memory, lent to the batch for as long as that is sent to others, and is copied to wherever it
//! goes: once, if that is another guest's memory. What is kept for others after that is copied into the batch, so that
//! rings and memory may change, and the port may go, whatever is still on its way.
//!
//! The guest kicks by eventfds: one when it has sent, one when it has given buffers and somebody waits for them. The
//! front end's messages are heard on the control side (`control/vhost.rs`), which takes the link away before it changes
//! anything about rings or memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use fabric::{Batch, FrameSet, Offloads};
use netio::shm::{Call, SharedMemory};
use virtio::net::{End, LONGEST_FRAME, Lender};
use virtio::{Device, Memory, RingError};

use super::port::Rx;

/// Bytes all frames of a batch share: as many super-frames as a socket port has frames in its.
pub(crate) const SLAB_BYTES: usize = 512 * 1024;

/// What the control side learns of a link that lives with the worker.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Where the rings are, in the order of their numbers.
    positions: [AtomicU16; 2],
    fault: OnceLock<Fault>,
}

impl Outcome {
    /// The next chain of a ring: once the link is gone, where the guest may have it taken up again.
    pub(crate) fn position(&self, queue: usize) -> u16 {
        self.positions[queue].load(Ordering::Acquire)
    }

    /// Why the link gave up, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }
}

/// What a guest has done that ends its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Its rings are not what they should be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Its memory has gone.
    #[error("a part of the memory it shares is gone")]
    Truncated,
}

/// Two rings in a guest's memory.
pub(crate) struct Link {
    device: Device,
    memory: Arc<SharedMemory>,
    /// In the order of the queues: to the guest, from the guest.
    kicks: [OwnedFd; 2],
    /// A guest that polls has none.
    calls: [Option<Call>; 2],
    outcome: Arc<Outcome>,
}

impl Link {
    pub(crate) fn new(
        device: Device,
        memory: Arc<SharedMemory>,
        kicks: [OwnedFd; 2],
        calls: [Option<Call>; 2],
        outcome: Arc<Outcome>,
    ) -> Self {
        let link = Self {
            device,
            memory,
            kicks,
            calls,
            outcome,
        };
        link.note();
        link
    }

    /// What tells that the guest has sent, and what tells that it has given buffers.
    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.kicks[1].as_fd(), self.kicks[0].as_fd())
    }

    /// What the guest takes unfinished.
    pub(crate) fn offloads(&self) -> Offloads {
        self.device.offloads()
    }

    /// Bytes of the longest frame in a domain whose own frames need so many.
    pub(crate) fn frame_bytes(&self, longest_frame: usize) -> usize {
        longest_frame.max(LONGEST_FRAME)
    }

    pub(crate) fn rx(&mut self, batch: &mut Batch) -> Rx {
        match self.check(|link| link.device.receive(&*link.memory, batch)) {
            Ok(received) => {
                self.call(1, received.call);
                if received.more { Rx::More } else { Rx::Drained }
            }
            Err(_) => {
                batch.clear();
                Rx::Closed
            }
        }
    }

    /// Copies into a batch what the guest has lent to it of these frames.
    ///
    /// # Errors
    /// `ECONNRESET` if there is something wrong with the guest; then the batch is as it was.
    pub(crate) fn fetch(&mut self, batch: &mut Batch, frames: FrameSet) -> io::Result<()> {
        self.check(|link| link.device.fetch(&*link.memory, batch, frames))?;
        batch.keep(frames);
        Ok(())
    }

    /// Gives the guest the buffers back that it has lent.
    ///
    /// # Errors
    /// `ECONNRESET` if there is something wrong with the guest.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        let call = self.check(|link| link.device.release(&*link.memory))?;
        self.call(1, call);
        Ok(())
    }

    /// Sends frames in order; returns how many went. Of frames that are lent, the lender is given.
    ///
    /// # Errors
    /// `WouldBlock` if the guest has not given enough buffers for the first, `EMSGSIZE` if it never will, `EOWNERDEAD` if
    /// the lender's memory is gone, `ECONNRESET` if there is something wrong with the guest.
    pub(crate) fn tx(&mut self, batch: &Batch, frames: FrameSet, lender: Option<&Self>) -> io::Result<usize> {
        let lender = lender.map(|lender| Lender {
            device: &lender.device,
            memory: &*lender.memory,
        });
        let sent = self.check(|link| link.device.send(&*link.memory, batch, frames, lender.as_ref()))?;
        self.call(0, sent.call);
        match sent.end {
            _ if sent.frames > 0 => Ok(sent.frames),
            End::Done => Ok(0),
            End::Full => Err(io::ErrorKind::WouldBlock.into()),
            End::TooBig => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            End::Torn => Err(io::Error::from_raw_os_error(libc::EOWNERDEAD)),
        }
    }

    /// Asks for a kick when the guest gives buffers, or not to be kicked; true if it has just given some.
    ///
    /// # Errors
    /// `ECONNRESET` if there is something wrong with the guest.
    pub(crate) fn watch_room(&mut self, wanted: bool) -> io::Result<bool> {
        self.check(|link| link.device.watch_room(&*link.memory, wanted))
    }

    /// From now on the guest is not asked for a kick as long as it sends: [`Link::listen`] does.
    pub(crate) fn poll(&mut self) {
        self.device.poll();
    }

    /// True if the guest may have sent something.
    ///
    /// # Errors
    /// `ECONNRESET` if there is something wrong with the guest.
    pub(crate) fn has_frames(&mut self) -> io::Result<bool> {
        self.check(|link| link.device.has_frames(&*link.memory))
    }

    /// Asks for a kick when the guest sends; true if it may just have sent something.
    ///
    /// # Errors
    /// `ECONNRESET` if there is something wrong with the guest.
    pub(crate) fn listen(&mut self) -> io::Result<bool> {
        self.check(|link| link.device.listen(&*link.memory))
    }

    /// From now on, only what the guest has sent by now is received.
    pub(crate) fn finish(&mut self) {
        // What is wrong with the ring will be found again when it is read.
        let _ = self.check(|link| link.device.finish(&*link.memory));
    }

    fn call(&self, queue: usize, wanted: bool) {
        if let (true, Some(call)) = (wanted, &self.calls[queue]) {
            call.ring();
        }
    }

    /// Does something with the rings, and believes it only if the memory was there.
    fn check<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, RingError>) -> io::Result<T> {
        let result = act(self);
        self.note();
        let fault = match result {
            Ok(value) if self.memory.is_whole() => return Ok(value),
            Err(error) if self.memory.is_whole() => Fault::Ring(error),
            _ => Fault::Truncated,
        };
        let _ = self.outcome.fault.set(fault);
        Err(io::Error::from_raw_os_error(libc::ECONNRESET))
    }

    fn note(&self) {
        for (place, position) in self.outcome.positions.iter().zip(self.device.positions()) {
            place.store(position, Ordering::Release);
        }
    }
}

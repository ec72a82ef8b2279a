//! A port that another worker reads, because its own has too much to do and the other nothing.
//!
//! ```text
//! socket -> rx -> filled -> forward -> tx
//!            ^--- empty <------'
//!          helper            owner
//! ```
//!
//! The domain stays with its worker, and so do its tables, the order of a port's frames, and the one flow-control policy: a
//! helper has no more than [`BATCHES`] batches, and does not read while all of them wait for their owner. Either side may
//! end it at any time; the owner takes what has been read, and then reads the socket itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use fabric::Batch;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Mailbox;
use super::port::{Link, Rx};

/// Batches that go to and fro: one that is filled, one that is sent, and one each that waits.
const BATCHES: usize = 4;

/// Wakes a worker.
#[derive(Debug)]
pub(crate) struct Bell {
    asleep: AtomicBool,
    /// When the worker last had much to do.
    busy: AtomicU64,
    wake: EventFd,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            asleep: AtomicBool::new(false),
            busy: AtomicU64::new(0),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Becomes readable anew whenever it is rung.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Ends the worker's next wait, if not this one.
    pub(super) fn ring(&self) {
        // It can only fail when the counter is full, and then the worker is about to wake anyway.
        let _ = self.wake.write(1);
    }

    /// The same for a worker that looks at everything it is nudged for between [`Bell::lie_down`] and its wait.
    fn nudge(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.ring();
        }
    }

    /// The worker is going to wait, unless it finds something to do now.
    pub(super) fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// The worker has had much to do until now, in milliseconds since a moment that all workers know.
    pub(super) fn was_busy(&self, now: u64) {
        self.busy.store(now, Ordering::Relaxed);
    }

    fn is_idle(&self, now: u64, long: u64) -> bool {
        self.asleep.load(Ordering::Relaxed) && now >= self.busy.load(Ordering::Relaxed) + long
    }
}

/// The workers that may help each other; none if they are not to.
#[derive(Clone, Debug)]
pub(super) struct Crew(Option<Arc<Mutex<Vec<Mailbox>>>>);

impl Crew {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// One in which nobody helps.
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn join(&self, worker: Mailbox) {
        if let Some(mut workers) = self.workers() {
            workers.push(worker);
        }
    }

    /// A worker that sleeps, and has not had much to do for so long.
    pub(super) fn idle(&self, now: u64, long: u64) -> Option<Mailbox> {
        let workers = self.workers()?;
        workers
            .iter()
            .find(|worker| worker.bell.is_idle(now, long))
            .cloned()
    }

    fn workers(&self) -> Option<MutexGuard<'_, Vec<Mailbox>>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What owner and helper share.
struct Exchange {
    filled: ArrayQueue<Batch>,
    empty: ArrayQueue<Batch>,
    /// The owner wants no more.
    unwanted: AtomicBool,
    /// The helper reads no more.
    over: AtomicBool,
}

/// The owner's side.
pub(crate) struct Help {
    exchange: Arc<Exchange>,
    helper: Arc<Bell>,
}

/// The helper's side.
pub(crate) struct Helper {
    exchange: Arc<Exchange>,
    owner: Arc<Bell>,
    link: Link,
    readable: bool,
}

/// Both sides, for a link of the owner's port that is not watched for frames any more.
pub(super) fn help(
    link: Link,
    batch: impl Fn() -> Batch,
    owner: Arc<Bell>,
    helper: Arc<Bell>,
) -> (Help, Helper) {
    let empty = ArrayQueue::new(BATCHES);
    while empty.push(batch()).is_ok() {}
    let exchange = Arc::new(Exchange {
        filled: ArrayQueue::new(BATCHES),
        empty,
        unwanted: AtomicBool::new(false),
        over: AtomicBool::new(false),
    });
    let reading = Helper {
        exchange: Arc::clone(&exchange),
        owner,
        link,
        // What has come before it is watched tells nobody.
        readable: true,
    };
    (Help { exchange, helper }, reading)
}

impl Help {
    /// Takes what has been read; none if the helper reads no more and everything is taken.
    pub(super) fn rx(&self, batch: &mut Batch) -> Option<Rx> {
        let over = self.is_over();
        let Some(mut read) = self.exchange.filled.pop() else {
            batch.clear();
            return (!over).then_some(Rx::Drained);
        };
        std::mem::swap(batch, &mut read);
        // There is room for all that there are.
        let _ = self.exchange.empty.push(read);
        self.helper.nudge();
        Some(if self.has_news() { Rx::More } else { Rx::Drained })
    }

    /// There is something to take, or it is over.
    pub(super) fn has_news(&self) -> bool {
        !self.exchange.filled.is_empty() || self.is_over()
    }

    pub(super) fn is_over(&self) -> bool {
        self.exchange.over.load(Ordering::Acquire)
    }

    /// The helper is to read no more.
    pub(super) fn end(&self) {
        self.exchange.unwanted.store(true, Ordering::Relaxed);
        self.helper.nudge();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.exchange.unwanted.load(Ordering::Relaxed)
    }
}

impl Helper {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.link.fds().0
    }

    /// There may be something to read.
    pub(super) fn readable(&mut self) {
        self.readable = true;
    }

    pub(super) fn has_work(&self) -> bool {
        self.is_unwanted() || self.readable && !self.exchange.empty.is_empty()
    }

    fn is_unwanted(&self) -> bool {
        self.exchange.unwanted.load(Ordering::Relaxed)
    }

    /// Reads a batch, if the owner is not behind; false if it is over.
    pub(super) fn read(&mut self) -> bool {
        if self.is_unwanted() {
            return false;
        }
        let Some(mut batch) = self.exchange.empty.pop() else {
            return true;
        };
        let rx = self.link.rx(&mut batch);
        self.readable = matches!(rx, Rx::More);
        // There is room for all that there are, here and there.
        if batch.is_empty() {
            let _ = self.exchange.empty.push(batch);
        } else {
            let _ = self.exchange.filled.push(batch);
            self.owner.nudge();
        }
        // The owner finds out for itself what is wrong with the link.
        !matches!(rx, Rx::Closed)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.exchange.over.store(true, Ordering::Release);
        self.owner.nudge();
    }
}

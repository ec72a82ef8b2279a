//! The data path: a thread that owns its domains outright and moves their frames.
//!
//! ```text
//! wait -> ready port -> rx (one vector) -> forward -> capture -> tx (one vector per egress port)   worker, domain
//!                                                                 |
//!                   full egress: the ingress keeps its batch and is not read until it is taken     flow
//! ```
//!
//! Commands from the control side are taken between two waits. Nothing here blocks but the wait itself, nothing is
//! shared with other threads, and in the steady state nothing is allocated.

pub(crate) mod bess;
pub(crate) mod capture;
mod domain;
mod flow;
pub(crate) mod port;
pub(crate) mod stream;
pub(crate) mod tap;
pub(crate) mod uml;
pub(crate) mod vhost;
pub(crate) mod wire;
mod worker;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fabric::{MacAddr, PortId, Range, StaticError};
use netio::poll::{Interest, Poller};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

pub(crate) use flow::LONGEST_HOLD;
use port::{Counters, Identity, Link};
use worker::{WAKE, Worker};

/// A domain, whatever its name; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct DomainId(pub(crate) u64);

/// A port to be attached.
pub(crate) struct NewPort {
    pub(crate) id: PortId,
    pub(crate) link: Link,
    pub(crate) identity: Identity,
    /// Dropped when the port goes, for whatever reason.
    pub(crate) alive: oneshot::Sender<Infallible>,
}

/// What the control side asks of a worker. A command for a domain that is gone is dropped, and its answer with it.
pub(crate) enum Command {
    AddDomain(DomainId, fabric::Settings),
    RemoveDomain(DomainId, oneshot::Sender<()>),
    Attach(DomainId, Box<NewPort>, oneshot::Sender<io::Result<()>>),
    /// Reads what the port still holds, then removes it.
    Detach(DomainId, PortId, oneshot::Sender<()>),
    /// Makes a port, or the next one of that number, a secure one; an open one without ranges.
    Secure(DomainId, PortId, Vec<Range>),
    Snapshot(DomainId, oneshot::Sender<Snapshot>),
    Fdb(DomainId, oneshot::Sender<Vec<fabric::FdbRow>>),
    FdbAdd(
        DomainId,
        MacAddr,
        PortId,
        oneshot::Sender<Result<(), StaticError>>,
    ),
    FdbRemove(DomainId, MacAddr, oneshot::Sender<bool>),
    AddCapture(DomainId, capture::Feed),
    RemoveCapture(DomainId, capture::FeedId),
    Stop,
}

/// A domain at one moment.
pub(crate) struct Snapshot {
    pub(crate) stations: usize,
    pub(crate) captures: usize,
    /// All ports together, those that have left included.
    pub(crate) total: Counters,
    pub(crate) ports: Vec<PortSnapshot>,
}

/// A port at one moment.
pub(crate) struct PortSnapshot {
    pub(crate) id: PortId,
    pub(crate) kind: &'static str,
    pub(crate) identity: Identity,
    pub(crate) counters: Counters,
    pub(crate) stations: Vec<MacAddr>,
}

/// The control side's end of a worker.
pub(crate) struct Handle {
    commands: Sender<Command>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts a worker thread. `hold` is how long an ingress port is held back for a full egress port.
    pub(crate) fn start(number: usize, hold: Duration) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let poller = Poller::new()?;
        poller.add(wake.as_fd(), WAKE, Interest::Read)?;
        let (commands, inbox) = channel();
        let worker = Worker::new(poller, inbox, hold);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(|| worker.run())?;
        Ok(Self {
            commands,
            wake,
            thread: Some(thread),
        })
    }

    /// Hands a command over. If the worker has stopped, the command's answer is dropped.
    pub(crate) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // It can only fail when the counter is full, and then the worker is about to wake anyway.
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! The data path: a thread that owns its domains outright and moves their frames.
//!
//! ```text
//! wait -> ready port -> rx (one vector) -> forward -> capture -> tx (one vector per egress port)   worker, domain
//!                                                                 |
//!                   full egress: the ingress keeps its batch and is not read until it is taken     flow
//! ```
//!
//! Commands from the control side are taken between two waits. Nothing here blocks but the wait itself, nothing is
//! shared with other threads but batches of a port that one of them reads for another (help), and in the steady state
//! nothing is allocated.

pub(crate) mod bess;
pub(crate) mod capture;
mod domain;
mod flow;
mod help;
pub(crate) mod nic;
mod pool;
pub(crate) mod port;
pub(crate) mod stream;
pub(crate) mod tap;
#[cfg(test)]
mod testing;
pub(crate) mod uml;
pub(crate) mod vhost;
pub(crate) mod wire;
mod worker;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric::{MacAddr, PortId, Range, StaticError};
use tokio::sync::{Notify, oneshot};

pub(crate) use flow::LONGEST_HOLD;
use help::{Bell, Crew, Helper};
use port::{Counters, Identity, Link};
use worker::{LOOK, Worker};

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
    /// Hands a domain over to another worker, which has been told to expect it.
    Move(DomainId, Mailbox),
    /// Another worker is going to hand a domain over; what is asked about it waits until then.
    Expect(DomainId),
    /// The domain that was expected; none if it is gone.
    Adopt(DomainId, Option<Box<domain::Domain>>),
    /// Reads a port of another worker for it.
    Help(Box<Helper>),
    Load(oneshot::Sender<Load>),
    Stop,
}

impl Command {
    /// The domain it is about, if it has to wait for one that is expected.
    fn domain(&self) -> Option<DomainId> {
        match *self {
            Self::AddDomain(id, _)
            | Self::RemoveDomain(id, _)
            | Self::Attach(id, ..)
            | Self::Detach(id, ..)
            | Self::Secure(id, ..)
            | Self::Snapshot(id, _)
            | Self::Fdb(id, _)
            | Self::FdbAdd(id, ..)
            | Self::FdbRemove(id, ..)
            | Self::AddCapture(id, _)
            | Self::RemoveCapture(id, _)
            | Self::Move(id, _) => Some(id),
            Self::Expect(_) | Self::Adopt(..) | Self::Help(_) | Self::Load(_) | Self::Stop => None,
        }
    }
}

/// What a worker has had to do since it was last asked.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Load {
    /// The time that is since then.
    pub(crate) time: Duration,
    /// The part of the time it was not waiting for frames: from 0 to 1.
    pub(crate) busy: f64,
    pub(crate) domains: Vec<DomainLoad>,
}

/// What a domain has had to do in that time.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct DomainLoad {
    pub(crate) id: DomainId,
    /// Frames received and sent.
    pub(crate) frames: u64,
    /// The part of its turns after which there was more to do: from 0 to 1.
    pub(crate) behind: f64,
    /// How long the worker has had it.
    pub(crate) stay: Duration,
}

/// What all workers have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    /// How long an ingress port is held back for a full egress port.
    hold: Duration,
    /// How long a worker looks for room, and for answers, before it sleeps.
    look: Duration,
    /// How long at most it looks at guests that share their memory, after they have sent, for more.
    poll: Duration,
    /// Frames of a batch at most.
    frames: usize,
    /// When the time of the forwarding tables began.
    epoch: Instant,
    /// Told when a worker was busy for a tenth of a second or more.
    busy: Arc<Notify>,
    crew: Crew,
}

impl Common {
    pub(crate) fn new(hold: Duration) -> Self {
        Self {
            hold,
            look: LOOK,
            poll: Duration::ZERO,
            frames: fabric::BATCH_FRAMES,
            epoch: Instant::now(),
            busy: Arc::default(),
            crew: Crew::new(),
        }
    }

    /// The same for workers that look for frames of guests that share their memory, before they ask for kicks and sleep.
    pub(crate) fn with_poll(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// The same for workers that do not look for anything before they sleep.
    pub(crate) fn without_look(self) -> Self {
        Self {
            look: Duration::ZERO,
            poll: Duration::ZERO,
            ..self
        }
    }

    /// The same for workers that do not read each other's ports.
    pub(crate) fn without_help(self) -> Self {
        Self {
            crew: Crew::none(),
            ..self
        }
    }

    /// The same for workers that move one frame with a system call.
    pub(crate) fn without_batches(self) -> Self {
        Self { frames: 1, ..self }
    }
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

/// Where a worker gets its commands.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    commands: Sender<Command>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// Hands a command over. If the worker has stopped, the command's answer is dropped.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.bell.ring();
        }
    }
}

/// The control side's end of a worker.
pub(crate) struct Handle {
    mailbox: Mailbox,
    busy: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts a worker thread.
    pub(crate) fn start(number: usize, common: &Common) -> io::Result<Self> {
        let (worker, mailbox) = Worker::new(common)?;
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(|| worker.run())?;
        Ok(Self {
            mailbox,
            busy: Arc::clone(&common.busy),
            thread: Some(thread),
        })
    }

    /// Hands a command over. If the worker has stopped, the command's answer is dropped.
    pub(crate) fn send(&self, command: Command) {
        self.mailbox.send(command);
    }

    /// Has a domain go over to another worker. Whatever is asked of that from now on, it does after what has been asked
    /// of this one.
    pub(crate) fn hand_over(&self, domain: DomainId, to: &Self) {
        to.send(Command::Expect(domain));
        self.send(Command::Move(domain, to.mailbox.clone()));
    }

    /// Waits until this worker, or one with the same [`Common`], was busy for a tenth of a second or more.
    pub(crate) async fn busy(&self) {
        self.busy.notified().await;
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

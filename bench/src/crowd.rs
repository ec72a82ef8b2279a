//! Many loads at once by two threads: one sends for all of them, one receives for all.
//!
//! With a thread for each port the kernel's scheduler decides which of a hundred threads has the processor, and so which
//! domain has what share. Here there are as many threads for one load as for a hundred. The sender offers a vector to
//! each connection that has room, in turn; one that has none is left out until the kernel says that it has. Who is served
//! less by the switch has less.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use fabric::Batch;
use netio::mmsg;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::load::{Full, Load, LoadError, drain, prepare};
use crate::report::Report;
use crate::stop::Stop;
use crate::threads::{Books, Outbox, Received, SEND_VECTOR, Sent, Shared, VECTOR};

/// Milliseconds a thread waits before it looks whether all is over.
const GLANCE: u8 = 20;
/// Reports of the kernel taken with one call.
const EVENTS: usize = 256;

/// Loads that are being offered. Their ports are connections (bess), whose state the kernel reports.
#[derive(Debug)]
pub struct Crowd {
    loads: Arc<[Shared]>,
    sender: JoinHandle<Vec<Vec<Sent>>>,
    receiver: JoinHandle<Vec<Vec<Received>>>,
    started: Instant,
    stop: Stop,
}

impl Crowd {
    /// Attaches the ports of all loads, makes sure that they hear each other, and begins.
    ///
    /// # Errors
    /// When a load makes no sense, a port cannot be attached, or the system has no threads.
    pub fn start(loads: impl IntoIterator<Item = Load>, stop: &Stop) -> Result<Self, LoadError> {
        // No call may block; what is refused is offered again.
        let full = Full::Refuse;
        let prepared = loads.into_iter().map(|load| prepare(Load { full, ..load }, stop));
        let loads: Result<Arc<[Shared]>, _> = prepared.collect();
        let loads = loads?;
        let spawn_error = |source| LoadError::Prepare { port: 0, source };
        let mine = Arc::clone(&loads);
        let receiver = thread::Builder::new()
            .name("rx".to_owned())
            .spawn(move || receive_all(&mine));
        let receiver = receiver.map_err(spawn_error)?;
        let mine = Arc::clone(&loads);
        let sender = thread::Builder::new()
            .name("tx".to_owned())
            .spawn(move || send_all(&mine));
        Ok(Self {
            loads,
            sender: sender.map_err(spawn_error)?,
            receiver,
            started: Instant::now(),
            stop: stop.clone(),
        })
    }

    /// Frames received so far, by load.
    pub fn delivered(&self) -> Vec<u64> {
        self.loads
            .iter()
            .map(|shared| shared.delivered().iter().sum())
            .collect()
    }

    /// Ends the sending, lets the last frames arrive, and counts.
    ///
    /// # Errors
    /// When sending or receiving failed, or the switch is gone.
    pub fn finish(self) -> Result<Vec<Report>, LoadError> {
        let window = self.started.elapsed();
        let delivered: Vec<Vec<u64>> = self.loads.iter().map(Shared::delivered).collect();
        self.loads.iter().for_each(Shared::stop_sending);
        let sent = self.sender.join().expect("threads of a load do not panic");
        self.loads.iter().for_each(|shared| drain(shared, &self.stop));
        self.loads.iter().for_each(Shared::stop_receiving);
        let received = self.receiver.join().expect("threads of a load do not panic");
        let reports = self.loads.iter().zip(&delivered).zip(sent.iter().zip(&received));
        reports
            .map(
                |((shared, delivered), (sent, received))| match shared.take_failure() {
                    Some(failure) => Err(failure),
                    None => {
                        let offered = sent.iter().map(|sent| sent.offered).sum();
                        let load = shared.load.clone();
                        Ok(Report::new(
                            load, window, offered, delivered, None, sent, received,
                        ))
                    }
                },
            )
            .collect()
    }
}

/// What all senders have sent.
fn send_all(loads: &[Shared]) -> Vec<Vec<Sent>> {
    let senders = |shared: &Shared| vec![Sent::default(); usize::from(shared.load.senders)];
    let mut sent: Vec<_> = loads.iter().map(senders).collect();
    offer_all(loads, &mut sent).unwrap_or_else(|failure| fail_all(loads, failure));
    sent
}

/// Offers a vector for each sender of each load that has room, in turn, until the loads are over.
fn offer_all(loads: &[Shared], sent: &mut [Vec<Sent>]) -> Result<(), LoadError> {
    let Some(first) = loads.first() else { return Ok(()) };
    let mut outbox = Outbox::new(first.port(0));
    let mut room: VecDeque<_> = ends(loads, |shared| shared.load.senders).collect();
    // Once each time that there is some again.
    let epoll = watch(
        loads,
        room.iter().copied(),
        EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
    )?;
    while !loads.iter().any(Shared::is_stopped) {
        for _ in 0..room.len() {
            let Some((of, port)) = room.pop_front() else { break };
            let (shared, sent) = (&loads[of], &mut sent[of][usize::from(port)]);
            match outbox.offer(shared, port, sent.offered, SEND_VECTOR) {
                Ok(taken) => {
                    sent.offered += taken as u64;
                    shared.publish_offered(port, sent.offered);
                    // What was not taken is made anew, with the same numbers.
                    if taken == SEND_VECTOR {
                        room.push_back((of, port));
                    }
                }
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => room.push_back((of, port)),
                Err(source) => return Err(LoadError::Send { port, source }),
            }
        }
        let timeout = if room.is_empty() { GLANCE } else { 0 };
        for end in reports(&epoll, timeout) {
            if !room.contains(&end) {
                room.push_back(end);
            }
        }
    }
    Ok(())
}

/// What all ports have received.
fn receive_all(loads: &[Shared]) -> Vec<Vec<Received>> {
    let mut books: Vec<_> = loads.iter().map(books).collect();
    take_all(loads, &mut books).unwrap_or_else(|failure| fail_all(loads, failure));
    let received = |books: Vec<Books<'_>>| books.into_iter().map(|books| books.received).collect();
    books.into_iter().map(received).collect()
}

fn books(shared: &Shared) -> Vec<Books<'_>> {
    (0..shared.load.ports)
        .map(|port| Books::new(shared, port))
        .collect()
}

/// Takes what arrives at any port of any load, and checks it, until the loads are over.
fn take_all(loads: &[Shared], books: &mut [Vec<Books<'_>>]) -> Result<(), LoadError> {
    let longest = loads.iter().map(|shared| shared.load.size).max().unwrap_or(0);
    // One byte more than a frame has, so that a frame grown on the way is seen as such.
    let mut batch = Batch::new(longest + 1, VECTOR);
    // As long as there is something.
    let epoll = watch(
        loads,
        ends(loads, |shared| shared.load.ports),
        EpollFlags::EPOLLIN,
    )?;
    while !books.iter().flatten().all(Books::is_closed) {
        let mut silence = true;
        for (of, port) in reports(&epoll, GLANCE) {
            silence = false;
            match mmsg::receive(loads[of].port(port).as_fd(), &mut batch) {
                Ok(_) => books[of][usize::from(port)].enter_all(&batch),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    let source = Errno::try_from(error).unwrap_or(Errno::EIO);
                    return Err(LoadError::Receive { port, source });
                }
            }
        }
        if silence {
            books.iter_mut().flatten().for_each(Books::silence);
        }
    }
    Ok(())
}

/// A port of a load.
type End = (usize, u16);

/// The first ports of each load, as many as `count` says.
fn ends(loads: &[Shared], count: fn(&Shared) -> u16) -> impl Iterator<Item = End> {
    let of = loads.iter().enumerate();
    of.flat_map(move |(of, shared)| (0..count(shared)).map(move |port| (of, port)))
}

/// Has the kernel report on them.
fn watch(loads: &[Shared], ends: impl Iterator<Item = End>, what: EpollFlags) -> Result<Epoll, LoadError> {
    let failure = |port, errno: Errno| LoadError::Prepare {
        port,
        source: errno.into(),
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| failure(0, errno))?;
    for (of, port) in ends {
        let token = (of as u64) << 16 | u64::from(port);
        epoll
            .add(loads[of].port(port), EpollEvent::new(what, token))
            .map_err(|errno| failure(port, errno))?;
    }
    Ok(epoll)
}

/// Whom the kernel reports.
fn reports(epoll: &Epoll, timeout: u8) -> impl Iterator<Item = End> {
    let mut events = [EpollEvent::empty(); EVENTS];
    // Interrupted: nobody, this time.
    let count = epoll.wait(&mut events, EpollTimeout::from(timeout)).unwrap_or(0);
    events.into_iter().take(count).map(|event| {
        let [_, _, _, _, a, b, c, d] = event.data().to_be_bytes();
        (
            usize::from(u16::from_be_bytes([a, b])),
            u16::from_be_bytes([c, d]),
        )
    })
}

fn fail_all(loads: &[Shared], failure: LoadError) {
    loads.iter().for_each(Shared::stop_sending);
    loads.iter().for_each(Shared::stop_receiving);
    if let Some(shared) = loads.first() {
        shared.fail(failure);
    }
}

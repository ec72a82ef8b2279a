//! epoll(7), edge-triggered, with time-outs finer than a millisecond.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::retry_eintr;

/// What is being waited for on a descriptor. Always edge-triggered: read or write until `WouldBlock`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Readable, hung up or failed.
    Read,
    /// The same, or writable.
    ReadWrite,
    /// Writable, hung up or failed.
    Write,
    /// Hung up or failed.
    Nothing,
}

/// One report of [`Poller::wait`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The token given with the descriptor.
    pub token: u64,
    /// There may be something to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The other end hung up or the descriptor failed.
    pub broken: bool,
}

/// Events taken from the kernel at once.
const EVENTS: usize = 128;

/// An epoll instance and its event buffer.
pub struct Poller {
    fd: OwnedFd,
    events: [libc::epoll_event; EVENTS],
    count: usize,
}

impl Poller {
    /// Makes an empty set.
    ///
    /// # Errors
    /// As epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before use.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just handed this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS],
            count: 0,
        })
    }

    /// Adds a descriptor; its reports carry `token`. Closing the descriptor removes it.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, interest)
    }

    /// Changes what is waited for, and reports anew what is ready already.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, interest)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, Interest::Nothing)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let flags = match interest {
            Interest::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::ReadWrite => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
            Interest::Write => libc::EPOLLOUT,
            Interest::Nothing => 0,
        } | libc::EPOLLET;
        let mut event = libc::epoll_event {
            events: flags.cast_unsigned(),
            u64: token,
        };
        // SAFETY: `event` lives through the call, which only reads it.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until something is ready or the time is over; `None` waits for ever. [`Poller::event`] has the reports.
    ///
    /// # Errors
    /// As epoll_pwait2(2).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.count = 0;
        let timeout = timeout.map(timespec);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let count = retry_eintr(|| {
            // SAFETY: the event array has EVENTS elements and outlives the call, as does the time; no signal mask.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.fd.as_raw_fd(),
                    self.events.as_mut_ptr(),
                    EVENTS,
                    timeout,
                    std::ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        })?;
        self.count = count;
        Ok(())
    }

    /// Report number `index` of the last [`Poller::wait`].
    pub fn event(&self, index: usize) -> Option<Event> {
        let event = self.events[..self.count].get(index)?;
        let flags = event.events.cast_signed();
        Some(Event {
            token: event.u64,
            readable: flags & libc::EPOLLIN != 0,
            writable: flags & libc::EPOLLOUT != 0,
            broken: flags & (libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP) != 0,
        })
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A time as the kernel takes it; what is too long for it waits as long as it can.
fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    #[test]
    fn an_edge_is_reported_once_and_again_after_modify() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(b.as_fd(), 7, Interest::Read).unwrap();
        a.send(b"x").unwrap();
        poller.wait(None).unwrap();
        let event = Event {
            token: 7,
            readable: true,
            writable: false,
            broken: false,
        };
        assert_eq!(poller.event(0), Some(event));
        poller.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(poller.event(0), None);
        poller.modify(b.as_fd(), 8, Interest::ReadWrite).unwrap();
        poller.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(
            poller.event(0),
            Some(Event {
                token: 8,
                writable: true,
                ..event
            })
        );
        poller.remove(b.as_fd()).unwrap();
        a.send(b"y").unwrap();
        poller.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(poller.event(0), None);
    }

    #[test]
    fn time_outs_may_be_microseconds() {
        let mut poller = Poller::new().unwrap();
        let start = Instant::now();
        poller.wait(Some(Duration::from_micros(200))).unwrap();
        assert!(start.elapsed() >= Duration::from_micros(200));
    }
}

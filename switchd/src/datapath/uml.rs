//! A port of the uml_switch or VDE protocol: a datagram socket of its own, connected to the client's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use fabric::{Batch, FrameSet};
use netio::mmsg;

/// The data socket.
pub(crate) struct Link {
    socket: UnixDatagram,
    /// Where frames come in for a client that sends to the domain's shared data socket (request version 0).
    inbound: Option<UnixDatagram>,
}

impl Link {
    /// A link over a socket that is connected to the client.
    pub(crate) fn new(socket: UnixDatagram) -> Self {
        Self {
            socket,
            inbound: None,
        }
    }

    /// A link whose frames come in over another socket than they go out.
    pub(crate) fn with_inbound(socket: UnixDatagram, inbound: UnixDatagram) -> Self {
        Self {
            socket,
            inbound: Some(inbound),
        }
    }

    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        match &self.inbound {
            Some(inbound) => (inbound.as_fd(), Some(self.socket.as_fd())),
            None => (self.socket.as_fd(), None),
        }
    }

    pub(crate) fn rx(&self, batch: &mut Batch) -> io::Result<usize> {
        mmsg::receive(self.fds().0, batch)
    }

    pub(crate) fn tx(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        mmsg::send(self.socket.as_fd(), batch, frames)
    }
}

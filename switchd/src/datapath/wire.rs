//! A port over datagrams to somewhere else: UDP, raw IP or Unix sockets, with or without the header of a tunnel.
//!
//! Such a wire knows no connection: that nobody is at its other end drops frames, and never ends the port.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use fabric::{Batch, DropReason, FrameSet};
use netio::mmsg::{self, Heads};
use proto::tunnel::Tunnel;
use socket2::{SockAddr, SockRef};

/// The header the kernel leaves before what comes in at a raw IPv4 socket; with options it is longer.
const IPV4_HEADER: usize = 20;

/// Reports of the network that may come between two datagrams: each is told once, before anything else is received.
const MOST_REPORTS: usize = 8;

/// Sockets of a wire, and what is before its frames.
pub(crate) struct Link {
    kind: &'static str,
    /// Receives, and sends unless there is another socket for that; connected if it sends.
    socket: OwnedFd,
    outbound: Option<Outbound>,
    tunnel: Option<Tunnel>,
    /// Bytes before the tunnel's header in what is received.
    ip_header: usize,
    /// Frames sent so far.
    sent: u32,
}

/// A socket for sending alone.
pub(crate) enum Outbound {
    /// It is connected for good.
    Connected(OwnedFd),
    /// A Unix socket, to be connected to this path whenever somebody else is there.
    Path(OwnedFd, PathBuf),
}

impl Link {
    /// Frames as they are, over a connected socket.
    pub(crate) fn plain(kind: &'static str, socket: OwnedFd) -> Self {
        Self {
            kind,
            socket,
            outbound: None,
            tunnel: None,
            ip_header: 0,
            sent: 0,
        }
    }

    /// Frames as they are, with a socket of its own for what goes out.
    pub(crate) fn with_outbound(kind: &'static str, socket: OwnedFd, outbound: Outbound) -> Self {
        Self {
            outbound: Some(outbound),
            ..Self::plain(kind, socket)
        }
    }

    /// Frames behind headers, over a connected socket. A raw IPv4 socket puts an IP header before those.
    pub(crate) fn tunnel(kind: &'static str, socket: OwnedFd, tunnel: Tunnel, is_raw_ipv4: bool) -> Self {
        Self {
            tunnel: Some(tunnel),
            ip_header: if is_raw_ipv4 { IPV4_HEADER } else { 0 },
            ..Self::plain(kind, socket)
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(crate) fn fds(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        let outbound = self.outbound.as_ref().map(|outbound| match outbound {
            Outbound::Connected(socket) | Outbound::Path(socket, _) => socket.as_fd(),
        });
        (self.socket.as_fd(), outbound)
    }

    pub(crate) fn rx(&self, batch: &mut Batch) -> io::Result<usize> {
        for _ in 0..MOST_REPORTS {
            match self.receive(batch) {
                // Something sent before did not arrive. What has been received stands behind that report.
                Err(error) if is_report(&error) => {}
                result => return result,
            }
        }
        // There may be more of them: the port is to be read again.
        batch.clear();
        Ok(batch.capacity())
    }

    fn receive(&self, batch: &mut Batch) -> io::Result<usize> {
        let Some(tunnel) = &self.tunnel else {
            return mmsg::receive(self.socket.as_fd(), batch);
        };
        let mut heads = Heads::new(self.ip_header + tunnel.header_bytes());
        let count = mmsg::receive_behind(self.socket.as_fd(), batch, &mut heads)?;
        for i in 0..count {
            let checked = match heads.received(i).split_at_checked(self.ip_header) {
                // With options the frame is not where it should be.
                Some((ip, _)) if ip.first().is_some_and(|first| first & 0x0f != 5) => {
                    Err(DropReason::Malformed)
                }
                Some((_, header)) => tunnel.check(header),
                None => Err(DropReason::Truncated),
            };
            if let Err(reason) = checked {
                batch.refuse(i, reason);
            }
        }
        Ok(count)
    }

    pub(crate) fn tx(&mut self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let sent = match self.send(batch, frames) {
            Err(error) if is_report(&error) => {
                // It is about an earlier frame, or the other end is to be looked for again.
                self.reconnect().and_then(|()| self.send(batch, frames))
            }
            result => result,
        };
        let sent = sent.map_err(|error| match is_report(&error) {
            true => io::Error::from_raw_os_error(libc::EHOSTUNREACH),
            false => error,
        })?;
        let more = u32::try_from(sent).expect("a batch is small");
        self.sent = self.sent.wrapping_add(more);
        Ok(sent)
    }

    fn send(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let (socket, outbound) = self.fds();
        let socket = outbound.unwrap_or(socket);
        let Some(tunnel) = &self.tunnel else {
            return mmsg::send(socket, batch, frames);
        };
        let mut heads = Heads::new(tunnel.header_bytes());
        let mut number = self.sent;
        for n in 0..frames.len() {
            number = number.wrapping_add(1);
            tunnel.write(number, heads.to_send(n));
        }
        mmsg::send_behind(socket, batch, frames, &heads)
    }

    fn reconnect(&self) -> io::Result<()> {
        match &self.outbound {
            Some(Outbound::Path(socket, path)) => SockRef::from(socket).connect(&SockAddr::unix(path)?),
            _ => Ok(()),
        }
    }
}

/// True if it says that somebody or something on the way was not there, which may change.
fn is_report(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EDESTADDRREQ
                | libc::ENOTCONN
                | libc::ENOENT
                | libc::EPERM
                | libc::EACCES
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EPROTO
                | libc::EADDRNOTAVAIL
                | libc::EPIPE
        )
    )
}

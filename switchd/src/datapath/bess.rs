//! A port of a vector guest (`vecN:transport=bess`): a connection that keeps records apart, one frame a record.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fabric::{Batch, FrameSet};
use netio::{mmsg, unix};

/// An accepted, non-blocking connection.
pub(crate) struct Link {
    connection: OwnedFd,
}

impl Link {
    pub(crate) fn new(connection: OwnedFd) -> Self {
        Self { connection }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Receives; once the client has hung up and everything is read, fails with `ENOTCONN`.
    pub(crate) fn rx(&self, batch: &mut Batch) -> io::Result<usize> {
        let count = match mmsg::receive(self.fd(), batch) {
            // The client has left frames of ours unread. That is said once, and then its own frames are to be had.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => mmsg::receive(self.fd(), batch)?,
            result => result?,
        };
        if !is_end(batch) || !unix::is_hung_up(self.fd()) {
            return Ok(count);
        }
        // Behind the last record the end is received over and over, as records without a byte.
        let frames = (0..count).rfind(|&i| batch.wire_len(i) > 0).map_or(0, |i| i + 1);
        batch.truncate(frames);
        match frames {
            0 => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
            // Not all of the batch: the next round meets the end again.
            _ => Ok(batch.capacity()),
        }
    }

    pub(crate) fn tx(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        mmsg::send(self.fd(), batch, frames)
    }
}

/// True if the batch looks like the end of a connection: full, with an empty record last. A client may send such
/// records too; they are runts.
fn is_end(batch: &Batch) -> bool {
    batch.len() == batch.capacity() && batch.wire_len(batch.len() - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    fn pair() -> (Link, Socket) {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        (Link::new(ours.into()), theirs)
    }

    #[test]
    fn the_last_frames_come_before_the_end() {
        let (link, client) = pair();
        client.send(&[1; 60]).unwrap();
        client.send(&[2; 60]).unwrap();
        drop(client);
        let mut batch = Batch::new(1522, 8);
        assert_eq!(link.rx(&mut batch).unwrap(), 8);
        assert_eq!((batch.len(), batch.frame(1)), (2, &[2; 60][..]));
        assert_eq!(
            link.rx(&mut batch).unwrap_err().raw_os_error(),
            Some(libc::ENOTCONN)
        );
        assert!(batch.is_empty());
    }

    #[test]
    fn a_client_that_left_frames_unread_is_heard_out() {
        let (link, client) = pair();
        let mut out = Batch::new(1522, 8);
        out.push(&[7; 60]);
        assert_eq!(link.tx(&out, out.all()).unwrap(), 1);
        client.send(&[1; 60]).unwrap();
        drop(client);
        let mut batch = Batch::new(1522, 8);
        assert_eq!(link.rx(&mut batch).unwrap(), 8);
        assert_eq!((batch.len(), batch.frame(0)), (1, &[1; 60][..]));
        assert!(link.rx(&mut batch).is_err());
    }

    #[test]
    fn empty_records_are_frames_while_the_client_is_there() {
        let (link, client) = pair();
        for _ in 0..8 {
            client.send(&[]).unwrap();
        }
        client.send(&[3; 60]).unwrap();
        let mut batch = Batch::new(1522, 8);
        assert_eq!((link.rx(&mut batch).unwrap(), batch.len()), (8, 8));
        assert_eq!((link.rx(&mut batch).unwrap(), batch.frame(0)), (1, &[3; 60][..]));
        assert_eq!(link.rx(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

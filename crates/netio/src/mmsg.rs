//! recvmmsg(2) and sendmmsg(2) straight into and out of a [`Batch`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use fabric::{BATCH_FRAMES, Batch, FrameSet};

use crate::retry_eintr;

/// Most bytes of a header in front of a frame.
pub const HEAD_BYTES: usize = 40;

/// Headers that are in front of the frames of a batch in their datagrams, but not in the batch.
pub struct Heads {
    bytes: [[u8; HEAD_BYTES]; BATCH_FRAMES],
    /// Bytes of each header in a datagram that has all of it.
    len: usize,
    /// Bytes of each datagram received.
    totals: [usize; BATCH_FRAMES],
}

impl Heads {
    /// Headers of so many bytes.
    ///
    /// # Panics
    /// If they are more than [`HEAD_BYTES`].
    pub fn new(len: usize) -> Self {
        assert!(len <= HEAD_BYTES, "a header has {HEAD_BYTES} bytes at most");
        Self {
            bytes: [[0; HEAD_BYTES]; BATCH_FRAMES],
            len,
            totals: [0; BATCH_FRAMES],
        }
    }

    /// The header received with frame `i`; shorter than the others if the datagram ended within.
    pub fn received(&self, i: usize) -> &[u8] {
        &self.bytes[i][..self.len.min(self.totals[i])]
    }

    /// The header to be sent with the `n`th frame of those that are sent.
    pub fn to_send(&mut self, n: usize) -> &mut [u8] {
        &mut self.bytes[n][..self.len]
    }
}

/// Receives as many frames as are there, at most a batch. Never waits.
///
/// The batch then holds exactly the frames received; fewer than its capacity mean that the socket is drained. A frame
/// longer than a buffer is cut, and [`Batch::wire_len`] tells its real length.
///
/// # Errors
/// As recvmmsg(2); `WouldBlock` if there is nothing.
pub fn receive(socket: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<usize> {
    receive_plain(socket, batch, libc::MSG_DONTWAIT)
}

/// The same as [`receive`], but waits for the first frame as long as the socket does.
///
/// # Errors
/// As recvmmsg(2); `WouldBlock` if the socket does not wait, or its time is over.
pub fn receive_waiting(socket: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<usize> {
    receive_plain(socket, batch, libc::MSG_WAITFORONE)
}

fn receive_plain(socket: BorrowedFd<'_>, batch: &mut Batch, wait: libc::c_int) -> io::Result<usize> {
    batch.clear();
    let mut parts = [[EMPTY_IOVEC]; BATCH_FRAMES];
    let mut count = 0;
    for (part, buffer) in parts.iter_mut().zip(batch.buffers_mut()) {
        *part = [iovec(buffer)];
        count += 1;
    }
    let mut messages = messages(&mut parts[..count]);
    // SAFETY: each message points at one whole buffer of `batch`, borrowed mutably and disjoint.
    let received = unsafe { receive_messages(socket, &mut messages[..count], wait) }?;
    batch.filled(lengths(&messages[..received], 0));
    Ok(received)
}

/// The same as [`receive`] for frames that have headers in front.
///
/// # Errors
/// As [`receive`].
pub fn receive_behind(socket: BorrowedFd<'_>, batch: &mut Batch, heads: &mut Heads) -> io::Result<usize> {
    batch.clear();
    let mut parts = [[EMPTY_IOVEC; 2]; BATCH_FRAMES];
    let mut count = 0;
    for ((part, head), buffer) in parts.iter_mut().zip(&mut heads.bytes).zip(batch.buffers_mut()) {
        *part = [iovec(&mut head[..heads.len]), iovec(buffer)];
        count += 1;
    }
    let mut messages = messages(&mut parts[..count]);
    // SAFETY: each message points at an element of `heads` and a whole buffer of `batch`, borrowed mutably and disjoint.
    let received = unsafe { receive_messages(socket, &mut messages[..count], libc::MSG_DONTWAIT) }?;
    for (total, length) in heads.totals.iter_mut().zip(lengths(&messages[..received], 0)) {
        *total = length;
    }
    batch.filled(lengths(&messages[..received], heads.len));
    Ok(received)
}

/// Sends the frames of `set` in order to the socket's peer and returns how many of them went out before it refused.
/// Never waits; all are sent, or the rest meets the error when sent again.
///
/// # Errors
/// As sendmmsg(2) for the first frame; `WouldBlock` if there is no room for it.
pub fn send(socket: BorrowedFd<'_>, batch: &Batch, set: FrameSet) -> io::Result<usize> {
    let mut parts = [[EMPTY_IOVEC]; BATCH_FRAMES];
    let mut count = 0;
    for (part, index) in parts.iter_mut().zip(set.iter()) {
        *part = [constant(batch.frame(index))];
        count += 1;
    }
    let mut messages = messages(&mut parts[..count]);
    // SAFETY: each message points at a frame of `batch`, borrowed as long as the call lasts.
    unsafe { send_messages(socket, &mut messages[..count]) }
}

/// The same as [`send`] for frames that have headers in front: that of the first frame is the first of `heads`.
///
/// # Errors
/// As [`send`].
pub fn send_behind(socket: BorrowedFd<'_>, batch: &Batch, set: FrameSet, heads: &Heads) -> io::Result<usize> {
    let mut parts = [[EMPTY_IOVEC; 2]; BATCH_FRAMES];
    let mut count = 0;
    for ((part, head), index) in parts.iter_mut().zip(&heads.bytes).zip(set.iter()) {
        *part = [constant(&head[..heads.len]), constant(batch.frame(index))];
        count += 1;
    }
    let mut messages = messages(&mut parts[..count]);
    // SAFETY: each message points at an element of `heads` and a frame of `batch`, borrowed as long as the call lasts.
    unsafe { send_messages(socket, &mut messages[..count]) }
}

/// A part of a message that is received into.
pub(crate) fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// A part of a message that is only sent.
pub(crate) fn constant(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// A part without bytes.
pub(crate) const EMPTY_IOVEC: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Messages of these parts, without names and ancillary data. They point at `parts`.
pub(crate) fn messages<const N: usize>(parts: &mut [[libc::iovec; N]]) -> [libc::mmsghdr; BATCH_FRAMES] {
    let mut messages = [EMPTY_MESSAGE; BATCH_FRAMES];
    for (message, part) in messages.iter_mut().zip(parts) {
        message.msg_hdr.msg_iov = part.as_mut_ptr();
        message.msg_hdr.msg_iovlen = N;
    }
    messages
}

/// Bytes of received messages behind so many of a header.
pub(crate) fn lengths(messages: &[libc::mmsghdr], header: usize) -> impl Iterator<Item = usize> {
    let lengths = messages.iter().map(|message| message.msg_len as usize);
    lengths.map(move |length| length.saturating_sub(header))
}

/// Receives as many messages as are there, with a flag that says how to wait for them.
///
/// # Safety
/// All that the messages point at outlives the call, and nobody else has it.
pub(crate) unsafe fn receive_messages(
    socket: BorrowedFd<'_>,
    messages: &mut [libc::mmsghdr],
    wait: libc::c_int,
) -> io::Result<usize> {
    let flags = wait | libc::MSG_TRUNC;
    // SAFETY: as the caller says; there are as many messages as are passed, and no time-out.
    retry_eintr(|| unsafe {
        count_of(libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            u32::try_from(messages.len()).unwrap_or(u32::MAX),
            flags,
            std::ptr::null_mut(),
        ))
    })
}

/// Sends messages up to the first that is refused. Never waits.
///
/// # Safety
/// All that the messages point at outlives the call, and nobody changes it meanwhile.
pub(crate) unsafe fn send_messages(
    socket: BorrowedFd<'_>,
    messages: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as the caller says; there are as many messages as are passed.
    retry_eintr(|| unsafe {
        count_of(libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            u32::try_from(messages.len()).unwrap_or(u32::MAX),
            flags,
        ))
    })
}

/// All pointers null and all lengths zero.
const EMPTY_MESSAGE: libc::mmsghdr = {
    // SAFETY: mmsghdr consists of integers and raw pointers, for which all zeros is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
};

pub(crate) fn count_of(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_batch_goes_through_in_order() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut out = Batch::new(1518, BATCH_FRAMES);
        for n in 0..10u8 {
            assert!(out.push(&[n; 60]));
        }
        let mut set = out.all();
        set.remove(3);
        assert_eq!(send(a.as_fd(), &out, set).unwrap(), 9);
        let mut batch = Batch::new(1518, BATCH_FRAMES);
        assert_eq!(receive(b.as_fd(), &mut batch).unwrap(), 9);
        let got: Vec<u8> = (0..9).map(|i| batch.frame(i)[0]).collect();
        assert_eq!(got, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert!(batch.frame(8).iter().all(|&b| b == 9) && batch.frame(8).len() == 60);
        let error = receive(b.as_fd(), &mut batch).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(batch.is_empty());
    }

    #[test]
    fn headers_go_beside_the_frames() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut out = Batch::new(1518, 4);
        for n in 0..3u8 {
            out.push(&[n; 60]);
        }
        let mut set = out.all();
        set.remove(1);
        let mut heads = Heads::new(8);
        for n in 0..2u8 {
            heads.to_send(usize::from(n)).fill(0xa0 + n);
        }
        assert_eq!(send_behind(a.as_fd(), &out, set, &heads).unwrap(), 2);
        a.send(&[1, 2, 3]).unwrap();
        a.send(&[9; 3000]).unwrap();
        let mut batch = Batch::new(1518, 4);
        let mut heads = Heads::new(8);
        assert_eq!(receive_behind(b.as_fd(), &mut batch, &mut heads).unwrap(), 4);
        assert_eq!(
            (heads.received(0), batch.frame(0)),
            (&[0xa0; 8][..], &[0; 60][..])
        );
        assert_eq!(
            (heads.received(1), batch.frame(1)),
            (&[0xa1; 8][..], &[2; 60][..])
        );
        assert_eq!((heads.received(2), batch.frame(2)), (&[1, 2, 3][..], &[][..]));
        assert_eq!((batch.wire_len(3), batch.is_cut(3)), (2992, true));
    }

    #[test]
    fn a_full_queue_takes_a_part() {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        let mut out = Batch::new(1518, BATCH_FRAMES);
        while out.push(&[7; 1514]) {}
        let mut sent = 0;
        let error = loop {
            match send(a.as_fd(), &out, out.all()) {
                Ok(n) => sent += n,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut batch = Batch::new(1518, BATCH_FRAMES);
        let mut received = 0;
        while let Ok(n) = receive(b.as_fd(), &mut batch) {
            received += n;
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn waiting_ends_with_the_first_frame_or_the_time() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut batch = Batch::new(1518, 4);
        let sender = std::thread::spawn(move || a.send(&[3; 60]).map(|_| a));
        assert_eq!(receive_waiting(b.as_fd(), &mut batch).unwrap(), 1);
        assert_eq!(batch.frame(0), [3; 60]);
        let _a = sender.join().unwrap().unwrap();
        b.set_read_timeout(Some(std::time::Duration::from_millis(10)))
            .unwrap();
        let error = receive_waiting(b.as_fd(), &mut batch).unwrap_err();
        assert_eq!((error.kind(), batch.len()), (io::ErrorKind::WouldBlock, 0));
    }

    #[test]
    fn a_frame_that_was_cut_tells_its_length() {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.send(&[1; 4000]).unwrap();
        a.send(&[]).unwrap();
        let mut batch = Batch::new(1518, 4);
        assert_eq!(receive(b.as_fd(), &mut batch).unwrap(), 2);
        assert_eq!(batch.wire_len(0), 4000);
        assert!(batch.frame(0).len() <= 4000 && batch.frame(1).is_empty());
    }
}

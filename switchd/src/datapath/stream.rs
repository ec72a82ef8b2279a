//! A port over a byte stream, as QEMU (`-netdev stream`) and passt have it: each frame behind its length, 32 bits in
//! network order.
//!
//! ```text
//! rx: socket ──read──► inbox ──whole frames──► batch        a frame in pieces waits in the inbox
//! tx: frames ──writev──► socket                             of a frame that went out in part, the rest waits in `torn`
//! ```

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fabric::{BATCH_FRAMES, Batch, FrameSet};

/// Bytes of the length in front of a frame.
const PREFIX: usize = 4;

/// QEMU's longest frame: 4,096 bytes more than 64 KiB. Whoever announces a longer one does not speak this protocol.
const LONGEST_FRAME: usize = 4096 + 65_536;

/// Bytes read at a time: two of the longest frames.
const INBOX: usize = 2 * (LONGEST_FRAME + PREFIX);

/// A connected stream.
pub(crate) struct Link {
    stream: UnixStream,
    inbox: Inbox,
    torn: Torn,
}

/// What has been read and is not a frame yet.
struct Inbox {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
    ended: bool,
}

/// A frame that has gone out in part. It counts as sent when all of it is, so that somebody waits for room; if it is
/// given up meanwhile, its rest goes out in front of the next.
#[derive(Default)]
struct Torn {
    /// The frame with its prefix.
    bytes: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Makes a connected socket non-blocking and a port.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        // Any stream will do: nothing is asked of it but to be read and written.
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Inbox {
                bytes: vec![0; INBOX].into_boxed_slice(),
                from: 0,
                to: 0,
                ended: false,
            },
            torn: Torn::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Fills the batch. A full batch, or one as full as the count says, means that there may be more.
    pub(crate) fn rx(&mut self, batch: &mut Batch) -> io::Result<usize> {
        let inbox = &mut self.inbox;
        batch.clear();
        loop {
            while let Some(frame) = inbox.next()? {
                if !batch.push(&inbox.bytes[frame.clone()]) {
                    return Ok(batch.capacity());
                }
                inbox.from = frame.end;
            }
            if inbox.ended {
                return match batch.len() {
                    0 => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
                    _ => Ok(batch.capacity()),
                };
            }
            match inbox.fill(&self.stream) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match batch.len() {
                        0 => Err(error),
                        frames => Ok(frames),
                    };
                }
                // What came before is to be had first.
                Err(_) => inbox.ended = true,
            }
        }
    }

    pub(crate) fn tx(&mut self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let torn = &mut self.torn;
        if !torn.bytes.is_empty() {
            torn.mend(&self.stream)?;
            let first = frames.iter().next();
            let same = first.is_some_and(|i| torn.bytes[PREFIX..] == *batch.frame(i));
            torn.bytes.clear();
            if same {
                return Ok(1);
            }
        }
        let mut prefixes = [[0; PREFIX]; BATCH_FRAMES];
        for (prefix, i) in prefixes.iter_mut().zip(frames.iter()) {
            let length = u32::try_from(batch.frame(i).len()).expect("a frame has no 4 GiB");
            *prefix = length.to_be_bytes();
        }
        let mut parts = [IoSlice::new(&[]); 2 * BATCH_FRAMES];
        for ((pair, prefix), i) in parts.chunks_exact_mut(2).zip(&prefixes).zip(frames.iter()) {
            pair[0] = IoSlice::new(prefix);
            pair[1] = IoSlice::new(batch.frame(i));
        }
        let mut written = (&self.stream).write_vectored(&parts[..2 * frames.len()])?;
        let mut sent = 0;
        for i in frames.iter() {
            let frame = batch.frame(i);
            if written < PREFIX + frame.len() {
                if written > 0 {
                    torn.bytes.extend_from_slice(&prefixes[sent]);
                    torn.bytes.extend_from_slice(frame);
                    torn.sent = written;
                    if sent == 0 {
                        return Err(io::Error::from(io::ErrorKind::WouldBlock));
                    }
                }
                break;
            }
            written -= PREFIX + frame.len();
            sent += 1;
        }
        Ok(sent)
    }
}

impl Inbox {
    /// Where the next whole frame is, if there is one.
    fn next(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let Some((prefix, rest)) = self.bytes[self.from..self.to].split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > LONGEST_FRAME {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let start = self.from + PREFIX;
        Ok((length <= rest.len()).then(|| start..start + length))
    }

    /// Reads what there is room for.
    fn fill(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        self.bytes.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        match stream.read(&mut self.bytes[self.to..]) {
            Ok(0) => self.ended = true,
            Ok(bytes) => self.to += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Torn {
    /// Sends the rest; an error leaves what is still to be sent.
    fn mend(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            self.sent += stream.write(&self.bytes[self.sent..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Link::new(ours.into()).unwrap(), theirs)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        bytes
    }

    #[test]
    fn frames_come_in_pieces_and_in_heaps() {
        let (mut link, mut peer) = pair();
        let mut batch = Batch::new(1522, 8);
        for &byte in &framed(&[1; 60])[..63] {
            peer.write_all(&[byte]).unwrap();
            assert_eq!(link.rx(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        peer.write_all(&[1]).unwrap();
        for n in 2..20_u8 {
            peer.write_all(&framed(&[n; 1514])).unwrap();
        }
        drop(peer);
        let mut got = Vec::new();
        let end = loop {
            match link.rx(&mut batch) {
                Ok(_) => got.extend((0..batch.len()).map(|i| batch.frame(i).to_vec())),
                Err(error) => break error,
            }
        };
        assert_eq!(end.raw_os_error(), Some(libc::ENOTCONN));
        let lengths: Vec<_> = got.iter().map(|frame| (frame[0], frame.len())).collect();
        let wanted: Vec<_> = (1..20).map(|n| (n, if n == 1 { 60 } else { 1514 })).collect();
        assert_eq!(lengths, wanted);
    }

    #[test]
    fn a_length_out_of_range_ends_the_port() {
        let (mut link, mut peer) = pair();
        peer.write_all(&u32::try_from(LONGEST_FRAME + 1).unwrap().to_be_bytes())
            .unwrap();
        let mut batch = Batch::new(1522, 8);
        assert_eq!(link.rx(&mut batch).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn a_torn_frame_arrives_whole_whether_it_is_waited_for_or_given_up() {
        for gives_up in [false, true] {
            let (mut link, mut peer) = pair();
            let socket = socket2::SockRef::from(&link.stream);
            socket.set_send_buffer_size(4096).unwrap();
            let mut out = Batch::new(65_000, 64);
            for n in 0..4_u8 {
                out.push(&[n; 60_000]);
            }
            let mut frames = out.all();
            let (mut got, mut given_up) = (Vec::new(), 0);
            let mut buffer = vec![0; 70_000];
            while !frames.is_empty() {
                match link.tx(&out, frames) {
                    Ok(sent) => frames = frames.skip(sent),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        if gives_up {
                            frames = frames.skip(1);
                            given_up += 1;
                        }
                        let count = peer.read(&mut buffer).unwrap();
                        got.extend_from_slice(&buffer[..count]);
                    }
                }
            }
            // What is left of the last goes in front of the next.
            let mut last = Batch::new(65_000, 1);
            last.push(&[9; 60]);
            peer.set_nonblocking(true).unwrap();
            let mut sent = false;
            loop {
                sent = sent || link.tx(&last, last.all()).is_ok();
                match peer.read(&mut buffer) {
                    Ok(count) => got.extend_from_slice(&buffer[..count]),
                    Err(_) if sent => break,
                    Err(_) => {}
                }
            }
            let mut frames = Vec::new();
            while let Some((prefix, rest)) = got.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap();
                frames.push((rest[0], length));
                assert!(rest[..length].iter().all(|&byte| byte == rest[0]));
                got = rest[length..].to_vec();
            }
            assert_eq!(frames.last(), Some(&(9, 60)));
            assert!(given_up > 0 || !gives_up);
            if !gives_up {
                assert_eq!(frames.len(), 5);
            }
        }
    }
}

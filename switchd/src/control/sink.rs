//! Where a capture goes: a file, or a pipe or socket whose reader may be slow, stuck or gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::pcapng;

/// How often a writer that waits for its reader looks whether anybody still wants the file.
const LOOK_MS: u16 = 100;

/// Bytes written at once. Kernels without preemption give a processor to forwarding only between system calls.
const WRITE_BYTES: usize = 16 * 1024;

/// A destination of whole blocks.
pub(crate) struct Sink {
    file: File,
    regular: bool,
    abandoned: Arc<AtomicBool>,
    unwritten: u64,
}

impl Sink {
    /// Takes a descriptor that somebody else opened, and may share. A pipe is opened once more, so that waiting for
    /// its reader can end: to make the shared description non-blocking would change it for its other users.
    pub(crate) fn new(file: File, abandoned: Arc<AtomicBool>) -> Self {
        let kind = file.metadata().map(|metadata| metadata.file_type());
        let regular = kind.as_ref().is_ok_and(std::fs::FileType::is_file);
        let pipe = kind.is_ok_and(|kind| kind.is_fifo());
        let again = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        };
        let file = if pipe { again().unwrap_or(file) } else { file };
        Self {
            file,
            regular,
            abandoned,
            unwritten: 0,
        }
    }

    /// Frames that a failed write has left out.
    pub(crate) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Writes blocks. If that fails half-way into a file, the file is cut back to its last whole block.
    pub(crate) fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < blocks.len() {
            let end = blocks.len().min(done + WRITE_BYTES);
            match self.file.write(&blocks[done..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.wait() {
                    Ok(()) => {}
                    Err(error) => return Err(self.failed(blocks, done, error)),
                },
                Err(error) => return Err(self.failed(blocks, done, error)),
            }
        }
        Ok(())
    }

    /// Leaves whole blocks behind, and counts the others.
    fn failed(&mut self, blocks: &[u8], done: usize, error: io::Error) -> io::Error {
        self.cut_back(blocks, done);
        let mut at = 0;
        while let Some((block, rest)) = pcapng::split(&blocks[at..]) {
            let end = blocks.len() - rest.len();
            if end > done && block.kind == pcapng::PACKET {
                self.unwritten += 1;
            }
            at = end;
        }
        error
    }

    /// Waits for the reader, but not for one that nobody waits for any more.
    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        loop {
            if self.abandoned.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn cut_back(&self, blocks: &[u8], done: usize) {
        if !self.regular {
            return;
        }
        let mut whole = &blocks[..done];
        while let Some((_, rest)) = pcapng::split(whole) {
            whole = rest;
        }
        if let Ok(metadata) = self.file.metadata()
            && !whole.is_empty()
        {
            let kept = metadata.len().saturating_sub(whole.len() as u64);
            // A reader copes with a cut last block: one that cannot be taken away is no further error.
            let _ = self.file.set_len(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        pcapng::packet(
            &mut out,
            pcapng::Packet {
                interface: 0,
                time: Duration::ZERO,
                wire_len: bytes.len(),
                bytes,
                sum: None,
                direction: pcapng::Direction::In,
                comment: "",
            },
        );
        out
    }

    #[test]
    fn a_reader_that_never_reads_can_be_given_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        let abandoned = Arc::new(AtomicBool::new(false));
        let mut sink = Sink::new(
            File::from(std::os::fd::OwnedFd::from(writer)),
            Arc::clone(&abandoned),
        );
        let thread = std::thread::spawn(move || sink.write(&frame(&[0; 65_000]).repeat(10)));
        // It waits for room in the pipe, or will find the flag at the first look.
        abandoned.store(true, Ordering::Relaxed);
        let error = thread.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        drop(reader);
    }

    #[test]
    fn a_slow_reader_gets_all() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let blocks = frame(&[5; 1514]).repeat(1000);
        let expected = blocks.clone();
        let thread = std::thread::spawn(move || {
            Sink::new(File::from(std::os::fd::OwnedFd::from(writer)), Arc::default()).write(&blocks)
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        thread.join().unwrap().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn half_a_block_is_taken_back() {
        let mut file = tempfile::tempfile().unwrap();
        let blocks = frame(&[5; 60]).repeat(3);
        let cut = blocks.len() - 10;
        file.write_all(&blocks[..cut]).unwrap();
        let sink = Sink::new(file, Arc::default());
        sink.cut_back(&blocks, cut);
        assert_eq!(sink.file.metadata().unwrap().len(), (blocks.len() / 3 * 2) as u64);
    }
}

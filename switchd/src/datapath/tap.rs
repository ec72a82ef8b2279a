//! A tap device of the host: one frame per system call, no header in front.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fabric::{Batch, FrameSet};

/// An attached, non-blocking tap device.
pub(crate) struct Link {
    device: File,
}

impl Link {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self {
            device: File::from(device),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    pub(crate) fn rx(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut lengths = [0; fabric::BATCH_FRAMES];
        let mut count = 0;
        batch.clear();
        for (buffer, length) in batch.buffers_mut().zip(&mut lengths) {
            match (&self.device).read(buffer) {
                Ok(bytes) => *length = bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && count > 0 => break,
                // The link is down: nothing comes until it is up again.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => return if count > 0 { break } else { Err(error) },
            }
            count += 1;
        }
        batch.filled(lengths[..count].iter().copied());
        Ok(count)
    }

    pub(crate) fn tx(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let mut sent = 0;
        for index in frames.iter() {
            match (&self.device).write(batch.frame(index)) {
                Ok(_) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(sent)
    }
}

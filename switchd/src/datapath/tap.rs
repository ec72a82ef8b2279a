//! A tap device of the host: one frame per system call, with or without a virtio header in front.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fabric::offload::VNET_HEADER_BYTES;
use fabric::{Batch, FrameSet, Offloads};

/// The longest frame a tap sends: 65,535 bytes behind an Ethernet header with two tags.
const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// An attached, non-blocking tap device.
pub(crate) struct Link {
    device: File,
    /// Frames are preceded by a header that says what is left undone on them.
    offload: bool,
}

impl Link {
    /// A device opened without virtio headers.
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self {
            device: File::from(device),
            offload: false,
        }
    }

    /// A device opened with virtio headers of 10 bytes.
    pub(crate) fn with_offload(device: OwnedFd) -> Self {
        Self {
            device: File::from(device),
            offload: true,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// What the kernel does to frames that are not finished.
    pub(crate) fn offloads(&self) -> Offloads {
        if self.offload {
            Offloads::ALL
        } else {
            Offloads::NONE
        }
    }

    /// Bytes a receive buffer needs in a domain whose own frames need so many.
    pub(crate) fn frame_bytes(&self, longest_frame: usize) -> usize {
        if self.offload {
            longest_frame.max(LONGEST_FRAME)
        } else {
            longest_frame
        }
    }

    pub(crate) fn rx(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut lengths = [0; fabric::BATCH_FRAMES];
        let mut headers = [[0; VNET_HEADER_BYTES]; fabric::BATCH_FRAMES];
        let mut count = 0;
        batch.clear();
        for (buffer, (length, header)) in batch.buffers_mut().zip(lengths.iter_mut().zip(&mut headers)) {
            match self.read(buffer, header) {
                Ok(bytes) => *length = bytes,
                // The link is down: nothing comes until it is up again.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
            count += 1;
        }
        batch.filled(lengths[..count].iter().copied());
        if self.offload {
            for (i, header) in headers[..count].iter().enumerate() {
                batch.set_header(i, *header);
            }
        }
        Ok(count)
    }

    pub(crate) fn tx(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let mut sent = 0;
        for index in frames.iter() {
            let written = if self.offload {
                let header = batch.work(index).header();
                let parts = [IoSlice::new(&header), IoSlice::new(batch.frame(index))];
                (&self.device).write_vectored(&parts)
            } else {
                (&self.device).write(batch.frame(index))
            };
            match written {
                Ok(_) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(sent)
    }

    fn read(&self, buffer: &mut [u8], header: &mut [u8; VNET_HEADER_BYTES]) -> io::Result<usize> {
        if !self.offload {
            return (&self.device).read(buffer);
        }
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(buffer)];
        let bytes = (&self.device).read_vectored(&mut parts)?;
        Ok(bytes.saturating_sub(VNET_HEADER_BYTES))
    }
}

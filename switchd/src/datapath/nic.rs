//! A network interface of the host, through a packet socket: long frames with unfinished checksums both ways, as with a
//! tap. Such a port may be one VLAN of the interface, whose tags are put on and taken off here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fabric::{BATCH_FRAMES, Batch, DropReason, FrameSet, Offloads};
use netio::packet::{self, Aside};

/// The longest frame: 65,535 bytes behind an Ethernet header with two tags.
const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// The VLAN protocol of 802.1Q.
const DOT1Q: u16 = 0x8100;

/// The bits of a tag that are the VLAN's number.
const VLAN_BITS: u16 = 0xfff;

/// Errors that may come before frames that can be received: each is told once.
const MOST_REPORTS: usize = 8;

/// A bound packet socket with virtio headers.
pub(crate) struct Link {
    socket: OwnedFd,
    /// The VLAN whose frames these are; they come and go without its tag here.
    vlan: Option<u16>,
    /// Frames the kernel has lost so far because its queue was full, and how many of them have been counted.
    overruns: u32,
    counted: u32,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd, vlan: Option<u16>) -> Self {
        Self {
            socket,
            vlan,
            overruns: 0,
            counted: 0,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes a receive buffer needs in a domain whose own frames need so many.
    pub(crate) fn frame_bytes(longest_frame: usize) -> usize {
        longest_frame.max(LONGEST_FRAME)
    }

    /// What the kernel does to frames that are not finished.
    pub(crate) fn offloads() -> Offloads {
        Offloads::ALL
    }

    /// Frames the kernel has lost since the last call because its queue was full.
    pub(crate) fn overruns(&mut self) -> u32 {
        self.overruns
            .wrapping_sub(std::mem::replace(&mut self.counted, self.overruns))
    }

    pub(crate) fn rx(&mut self, batch: &mut Batch) -> io::Result<usize> {
        let mut asides = [Aside::default(); BATCH_FRAMES];
        for _ in 0..MOST_REPORTS {
            match packet::receive(self.fd(), batch, &mut asides) {
                // Said once. An interface that is down comes up again; one that is gone does not.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                    if !matches!(packet::interface(&self.socket), Ok(Some(_))) {
                        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
                    }
                }
                // A frame of a kind that virtio headers have no words for is gone, but not those behind it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.settle(batch, &mut asides[..count]);
                    return Ok(count);
                }
            }
        }
        // There may be more of them: the port is to be read again.
        batch.clear();
        Ok(batch.capacity())
    }

    /// Puts the tags where they belong, and says what comes with each frame.
    fn settle(&mut self, batch: &mut Batch, asides: &mut [Aside]) {
        let mut lengths = [0; BATCH_FRAMES];
        let mut foreign = FrameSet::EMPTY;
        for (i, aside) in asides.iter_mut().enumerate() {
            lengths[i] = batch.wire_len(i);
            let shift = match (self.vlan, aside.tag) {
                (None, None) => 0,
                (None, Some(tag)) => put_tag(batch.buffer_mut(i), lengths[i], tag),
                (Some(vlan), tag) => match take_tag(batch.buffer_mut(i), lengths[i], tag, vlan) {
                    Some(shift) => shift,
                    None => {
                        foreign.insert(i);
                        0
                    }
                },
            };
            lengths[i] = lengths[i].saturating_add_signed(shift.into());
            aside.header = packet::shifted(aside.header, shift);
            self.overruns = aside.overruns;
        }
        batch.filled(lengths[..asides.len()].iter().copied());
        for (i, aside) in asides.iter().enumerate() {
            if foreign.contains(i) {
                batch.refuse(i, DropReason::ForeignVlan);
            } else {
                batch.set_header(i, aside.header);
            }
        }
    }

    pub(crate) fn tx(&self, batch: &Batch, frames: FrameSet) -> io::Result<usize> {
        let tag = self.vlan.map(|vlan| {
            let ([a, b], [c, d]) = (DOT1Q.to_be_bytes(), vlan.to_be_bytes());
            [a, b, c, d]
        });
        packet::send(self.fd(), batch, frames, tag).map_err(|error| match error.raw_os_error() {
            // It is down, and may come up again.
            Some(libc::ENETDOWN) => io::Error::from_raw_os_error(libc::EHOSTUNREACH),
            Some(libc::ENXIO) => io::Error::from_raw_os_error(libc::ENOTCONN),
            _ => error,
        })
    }
}

/// Puts a tag back where it was, into a buffer that has room behind a frame of so many bytes; how much longer it is.
fn put_tag(buffer: &mut [u8], length: usize, (protocol, control): (u16, u16)) -> i16 {
    let end = (length + 4).min(buffer.len());
    if end < 16 {
        return 0;
    }
    buffer.copy_within(12..end - 4, 16);
    buffer[12..14].copy_from_slice(&protocol.to_be_bytes());
    buffer[14..16].copy_from_slice(&control.to_be_bytes());
    4
}

/// Takes the tag of a VLAN out of a frame, unless the kernel has done so; how much longer the frame is. `None` if it
/// belongs to no VLAN, or another one.
fn take_tag(buffer: &mut [u8], length: usize, taken: Option<(u16, u16)>, vlan: u16) -> Option<i16> {
    if let Some((protocol, control)) = taken {
        return (protocol == DOT1Q && control & VLAN_BITS == vlan).then_some(0);
    }
    let end = length.min(buffer.len());
    let tag = buffer[..end].get(12..16)?;
    let (protocol, control) = (
        u16::from_be_bytes([tag[0], tag[1]]),
        u16::from_be_bytes([tag[2], tag[3]]),
    );
    if protocol != DOT1Q || control & VLAN_BITS != vlan {
        return None;
    }
    buffer.copy_within(16..end, 12);
    Some(-4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty bytes, each its own number, in a buffer with room behind.
    fn frame() -> [u8; 24] {
        let mut buffer = [0; 24];
        for (byte, n) in buffer.iter_mut().zip(0_u8..20) {
            *byte = n;
        }
        buffer
    }

    #[test]
    fn a_tag_is_put_behind_the_addresses() {
        let mut buffer = frame();
        assert_eq!(put_tag(&mut buffer, 20, (0x8100, 0x2007)), 4);
        assert_eq!(buffer[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(buffer[12..], [0x81, 0, 0x20, 7, 12, 13, 14, 15, 16, 17, 18, 19]);
        // And taken out again, whatever its priority.
        assert_eq!(take_tag(&mut buffer, 24, None, 8), None);
        assert_eq!(take_tag(&mut buffer, 24, None, 7), Some(-4));
        assert_eq!(buffer[..20], frame()[..20]);
        // Too short for a frame: nothing to tag.
        assert_eq!(put_tag(&mut buffer[..10], 5, (0x8100, 1)), 0);
        assert_eq!(take_tag(&mut buffer[..10], 5, None, 1), None);
    }

    #[test]
    fn a_tag_beside_the_frame_decides() {
        let mut buffer = frame();
        assert_eq!(take_tag(&mut buffer, 20, Some((0x8100, 0x6007)), 7), Some(0));
        assert_eq!(take_tag(&mut buffer, 20, Some((0x8100, 0x6007)), 6), None);
        // A provider's tag is another thing, and a frame without one is of no VLAN.
        assert_eq!(take_tag(&mut buffer, 20, Some((0x88a8, 7)), 7), None);
        assert_eq!(take_tag(&mut buffer, 20, None, 7), None);
        assert_eq!(buffer, frame());
    }
}

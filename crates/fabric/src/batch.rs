//! A fixed slab of frame buffers, allocated once and reused for ever.

use std::fmt;

use crate::frames::FrameSet;
use crate::offload::{BadHeader, VNET_HEADER_BYTES, Work};

/// Most frames a batch holds: one bit each in a [`FrameSet`].
pub const BATCH_FRAMES: usize = 64;

/// Buffers start on a multiple of this, so that no two of them share a cache line of the slab.
const STRIDE_BYTES: usize = 64;

/// Frames received together from one port.
///
/// The receiver fills buffers from the first on and then says how long each frame was ([`Batch::filled`]). Bytes of
/// earlier frames stay behind in the slab, but [`Batch::frame`] never shows them.
pub struct Batch {
    slab: Box<[u8]>,
    frame_bytes: usize,
    stride: usize,
    wire_lens: [usize; BATCH_FRAMES],
    len: usize,
    /// What is still to be done to the frames in `unfinished`.
    work: Box<[Work]>,
    unfinished: FrameSet,
    malformed: FrameSet,
}

impl Batch {
    /// Makes a batch of `frames` buffers of `frame_bytes` bytes.
    ///
    /// # Panics
    /// If `frames` is 0 or above [`BATCH_FRAMES`], or `frame_bytes` is 0.
    pub fn new(frame_bytes: usize, frames: usize) -> Self {
        assert!(
            (1..=BATCH_FRAMES).contains(&frames),
            "a batch holds 1 to 64 frames"
        );
        assert!(frame_bytes > 0, "a frame buffer holds at least one byte");
        let stride = frame_bytes.next_multiple_of(STRIDE_BYTES);
        Self {
            slab: vec![0; stride * frames].into_boxed_slice(),
            frame_bytes,
            stride,
            wire_lens: [0; BATCH_FRAMES],
            len: 0,
            work: vec![Work::default(); frames].into_boxed_slice(),
            unfinished: FrameSet::EMPTY,
            malformed: FrameSet::EMPTY,
        }
    }

    /// Number of buffers.
    pub fn capacity(&self) -> usize {
        self.slab.len() / self.stride
    }

    /// Usable bytes of one buffer.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Number of frames in the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no frame in the batch.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the frames.
    pub fn clear(&mut self) {
        self.len = 0;
        self.unfinished = FrameSet::EMPTY;
        self.malformed = FrameSet::EMPTY;
    }

    /// Forgets the frames from number `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Every frame of the batch.
    pub fn all(&self) -> FrameSet {
        FrameSet::first_n(self.len)
    }

    /// The bytes of frame `i`, as many as the buffer could hold.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn frame(&self, i: usize) -> &[u8] {
        let start = i * self.stride;
        &self.slab[start..start + self.wire_len(i).min(self.frame_bytes)]
    }

    /// Length of frame `i` as it was sent; more than [`Batch::frame`] has if the buffer was too small for it.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn wire_len(&self, i: usize) -> usize {
        self.wire_lens[..self.len][i]
    }

    /// True if the buffer was too small for frame `i` and its end is lost.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn is_cut(&self, i: usize) -> bool {
        self.wire_len(i) > self.frame_bytes
    }

    /// Every buffer, for a vector receive.
    pub fn buffers_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [u8]> {
        let usable = self.frame_bytes;
        self.slab
            .chunks_exact_mut(self.stride)
            .map(move |buffer| &mut buffer[..usable])
    }

    /// Buffer `i`, whether or not it holds a frame.
    ///
    /// # Panics
    /// If there is no buffer `i`.
    pub fn buffer_mut(&mut self, i: usize) -> &mut [u8] {
        let start = i * self.stride;
        &mut self.slab[start..start + self.frame_bytes]
    }

    /// Says what a receive put into the buffers: the lengths of the frames, from the first buffer on.
    ///
    /// The lengths are those on the wire (`MSG_TRUNC`), so that a frame the buffer was too small for is known as cut.
    /// What was in the batch before is gone.
    pub fn filled(&mut self, lengths: impl Iterator<Item = usize>) {
        self.clear();
        for length in lengths.take(self.capacity()) {
            self.wire_lens[self.len] = length;
            self.len += 1;
        }
    }

    /// Says what header came with frame `i`. One that does not go with the frame makes it malformed.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn set_header(&mut self, i: usize, header: [u8; VNET_HEADER_BYTES]) {
        match Work::new(header, self.frame(i)) {
            Ok(work) if work.is_done() => {}
            Ok(work) => {
                self.work[i] = work;
                self.unfinished.insert(i);
            }
            Err(BadHeader) => self.malformed.insert(i),
        }
    }

    /// The frames that are not finished: to be summed or cut before they go to a port that cannot do it.
    pub fn unfinished(&self) -> FrameSet {
        self.unfinished
    }

    /// What is to be done to frame `i`.
    pub fn work(&self, i: usize) -> Work {
        if self.unfinished.contains(i) {
            self.work[i]
        } else {
            Work::default()
        }
    }

    /// True if frame `i` came with a header that does not go with it.
    pub fn is_malformed(&self, i: usize) -> bool {
        self.malformed.contains(i)
    }

    /// Adds finished frame `n` of those that come of a frame with work to be done; false if the batch is full.
    ///
    /// # Panics
    /// If there is no frame `n`, or buffers are too small for what comes of the frame.
    pub fn push_finished(&mut self, frame: &[u8], work: Work, n: usize) -> bool {
        if self.len == self.capacity() {
            return false;
        }
        let length = work.write(frame, n, self.buffer_mut(self.len));
        self.wire_lens[self.len] = length;
        self.len += 1;
        true
    }

    /// Adds a copy of a frame; false if the batch is full. A frame longer than a buffer is kept as a cut one.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if self.len == self.capacity() {
            return false;
        }
        let kept = bytes.len().min(self.frame_bytes);
        self.buffer_mut(self.len)[..kept].copy_from_slice(&bytes[..kept]);
        self.wire_lens[self.len] = bytes.len();
        self.len += 1;
        true
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("capacity", &self.capacity())
            .field("frame_bytes", &self.frame_bytes)
            .field("wire_lens", &&self.wire_lens[..self.len])
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap() {
        let mut batch = Batch::new(100, 64);
        assert_eq!((batch.capacity(), batch.frame_bytes()), (64, 100));
        for (i, buffer) in (0_u8..).zip(batch.buffers_mut()) {
            assert_eq!(buffer.len(), 100);
            buffer.fill(i);
        }
        batch.buffer_mut(7).fill(0xee);
        batch.filled([100; 64].into_iter());
        assert_eq!(batch.all(), FrameSet::first_n(64));
        for (i, value) in (0..64).zip(0_u8..) {
            let value = if i == 7 { 0xee } else { value };
            assert_eq!(batch.frame(i), [value; 100]);
        }
    }

    #[test]
    fn push_until_full() {
        let mut batch = Batch::new(64, 2);
        assert!(batch.is_empty());
        assert!(batch.push(b"one"));
        assert!(batch.push(b"three"));
        assert!(!batch.push(b"more"));
        assert_eq!(
            (batch.len(), batch.frame(0), batch.frame(1)),
            (2, &b"one"[..], &b"three"[..])
        );
        batch.clear();
        assert_eq!((batch.len(), batch.all()), (0, FrameSet::EMPTY));
        assert!(batch.push(b""));
        assert_eq!((batch.len(), batch.frame(0)), (1, &b""[..]));
    }

    #[test]
    fn a_cut_frame_keeps_its_length() {
        let mut batch = Batch::new(20, 3);
        batch.filled([20, 21].into_iter());
        assert_eq!(
            (batch.frame(0).len(), batch.wire_len(0), batch.is_cut(0)),
            (20, 20, false)
        );
        assert_eq!(
            (batch.frame(1).len(), batch.wire_len(1), batch.is_cut(1)),
            (20, 21, true)
        );
        assert!(batch.push(&[9; 30]));
        assert_eq!((batch.frame(2), batch.wire_len(2)), (&[9; 20][..], 30));
    }

    #[test]
    fn filled_replaces_and_stops_at_the_capacity() {
        let mut batch = Batch::new(20, 2);
        batch.filled([1, 2, 3].into_iter());
        assert_eq!((batch.len(), batch.wire_len(1)), (2, 2));
        batch.filled(std::iter::empty());
        assert!(batch.is_empty());
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn a_frame_of_the_last_round_is_out_of_reach() {
        let mut batch = Batch::new(20, 2);
        batch.filled([1, 2].into_iter());
        batch.filled([1].into_iter());
        batch.frame(1);
    }
}

//! A fixed slab of frame buffers, allocated once and reused for ever.

use std::fmt;

use crate::frames::FrameSet;
use crate::offload::{BadHeader, Offloads, VNET_HEADER_BYTES, Work};
use crate::plan::DropReason;

/// Most frames a batch holds: one bit each in a [`FrameSet`].
pub const BATCH_FRAMES: usize = 64;

/// So much of a lent frame is in the batch: all headers of all but the strangest, which are never lent.
pub const HEAD_BYTES: usize = 256;

/// Buffers start on a multiple of this, so that no two of them share a cache line of the slab.
const STRIDE_BYTES: usize = 64;

/// Frames received together from one port.
///
/// The receiver fills buffers from the first on and then says how long each frame was ([`Batch::filled`]); or, where it
/// knows the length beforehand, it takes a buffer for one frame after the other ([`Batch::append`]). Bytes of earlier
/// frames stay behind in the slab, but [`Batch::frame`] never shows them.
///
/// Of a frame that is *lent* ([`Batch::lend`]) the batch has only the head, and room for the rest. That is where the
/// frame came from, until it is copied from there to where it goes, or to the batch.
pub struct Batch {
    slab: Box<[u8]>,
    frame_bytes: usize,
    /// Distance of the buffers; 0 if each frame takes what it needs.
    stride: usize,
    starts: [usize; BATCH_FRAMES],
    wire_lens: [usize; BATCH_FRAMES],
    len: usize,
    /// What is still to be done to the frames in `unfinished`.
    work: Box<[Work]>,
    unfinished: FrameSet,
    /// The frames of which the batch has the heads alone.
    lent: FrameSet,
    /// Why the frames in `refused` are to be dropped.
    reasons: Box<[DropReason]>,
    refused: FrameSet,
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
            starts: std::array::from_fn(|i| i * stride),
            wire_lens: [0; BATCH_FRAMES],
            len: 0,
            work: vec![Work::default(); frames].into_boxed_slice(),
            unfinished: FrameSet::EMPTY,
            lent: FrameSet::EMPTY,
            reasons: vec![DropReason::Malformed; frames].into_boxed_slice(),
            refused: FrameSet::EMPTY,
        }
    }

    /// Makes a batch of [`BATCH_FRAMES`] frames of up to `frame_bytes` bytes that share `slab_bytes` bytes, filled by
    /// [`Batch::append`].
    ///
    /// # Panics
    /// If not one frame of that length fits.
    pub fn packed(frame_bytes: usize, slab_bytes: usize) -> Self {
        assert!(frame_bytes <= slab_bytes, "a batch holds at least one frame");
        Self {
            slab: vec![0; slab_bytes].into_boxed_slice(),
            stride: 0,
            work: vec![Work::default(); BATCH_FRAMES].into_boxed_slice(),
            reasons: vec![DropReason::Malformed; BATCH_FRAMES].into_boxed_slice(),
            ..Self::new(frame_bytes, 1)
        }
    }

    /// Number of frames it can hold.
    pub fn capacity(&self) -> usize {
        self.work.len()
    }

    /// True if frames take no more room than they need.
    pub fn is_packed(&self) -> bool {
        self.stride == 0
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
        self.lent = FrameSet::EMPTY;
        self.refused = FrameSet::EMPTY;
    }

    /// Forgets the frames from number `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Every frame of the batch.
    pub fn all(&self) -> FrameSet {
        FrameSet::first_n(self.len)
    }

    /// The bytes of frame `i`, as many as the buffer could hold; the first [`HEAD_BYTES`] of one that is lent.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn frame(&self, i: usize) -> &[u8] {
        let whole = self.wire_len(i).min(self.frame_bytes);
        let bytes = if self.lent.contains(i) { HEAD_BYTES } else { whole };
        &self.slab[self.starts[i]..][..bytes]
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
    ///
    /// # Panics
    /// If the batch is a packed one, which has no buffers before it has frames.
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
        &mut self.slab[self.starts[i]..][..self.frame_bytes]
    }

    /// Adds a frame of so many bytes and returns the buffer to copy it to, which is shorter if the frame is longer than
    /// frames may be; `None` if the batch is full.
    pub fn append(&mut self, wire_len: usize) -> Option<&mut [u8]> {
        let bytes = wire_len.min(self.frame_bytes);
        if self.len == self.capacity() {
            return None;
        }
        if self.is_packed() {
            let end = |last: usize| self.starts[last] + self.wire_len(last).min(self.frame_bytes);
            let start = self
                .len
                .checked_sub(1)
                .map_or(0, end)
                .next_multiple_of(STRIDE_BYTES);
            if start + bytes > self.slab.len() {
                return None;
            }
            self.starts[self.len] = start;
        }
        self.wire_lens[self.len] = wire_len;
        self.len += 1;
        Some(&mut self.slab[self.starts[self.len - 1]..][..bytes])
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
            Err(BadHeader) => self.refuse(i, DropReason::Malformed),
        }
    }

    /// Says that the batch has only the head of frame `i`, and what header came with it; false, and nothing is said, if
    /// that is more than the head bears out.
    ///
    /// # Panics
    /// If there is no frame `i`, or one that is cut or no longer than a head.
    pub fn lend(&mut self, i: usize, header: [u8; VNET_HEADER_BYTES]) -> bool {
        assert!(!self.is_cut(i), "a frame that is lent is to be had whole");
        // What the head bears out, the frame does.
        let Ok(work) = Work::new(header, &self.frame(i)[..HEAD_BYTES]) else {
            return false;
        };
        if !work.is_done() {
            self.work[i] = work;
            self.unfinished.insert(i);
        }
        self.lent.insert(i);
        true
    }

    /// The frames of which the batch has the heads alone.
    pub fn lent(&self) -> FrameSet {
        self.lent
    }

    /// Room for what is missing of frame `i`, to be filled before [`Batch::keep`].
    ///
    /// # Panics
    /// If there is no frame `i`, or one that is cut or no longer than a head.
    pub fn rest_mut(&mut self, i: usize) -> &mut [u8] {
        let bytes = self.wire_len(i);
        &mut self.slab[self.starts[i]..][..bytes][HEAD_BYTES..]
    }

    /// Says that the batch has all of these frames now.
    pub fn keep(&mut self, frames: FrameSet) {
        self.lent = self.lent.without(frames);
    }

    /// The frames that are not finished: to be summed or cut before they go to a port that cannot do it.
    pub fn unfinished(&self) -> FrameSet {
        self.unfinished
    }

    /// Those of them that a port cannot take as they are.
    pub fn unfinished_beyond(&self, able: Offloads) -> FrameSet {
        let mut beyond = FrameSet::EMPTY;
        for i in self.unfinished.iter().filter(|&i| !self.work[i].is_within(able)) {
            beyond.insert(i);
        }
        beyond
    }

    /// What is to be done to frame `i`.
    pub fn work(&self, i: usize) -> Work {
        if self.unfinished.contains(i) {
            self.work[i]
        } else {
            Work::default()
        }
    }

    /// Says that frame `i` is to be dropped on its way in, and why; the first reason counts.
    ///
    /// # Panics
    /// If there is no frame `i`.
    pub fn refuse(&mut self, i: usize, reason: DropReason) {
        assert!(i < self.len, "no frame {i}");
        if !self.refused.contains(i) {
            self.refused.insert(i);
            self.reasons[i] = reason;
        }
    }

    /// Why frame `i` is to be dropped on its way in, if it is.
    pub fn refusal(&self, i: usize) -> Option<DropReason> {
        self.refused.contains(i).then(|| self.reasons[i])
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
    fn packed_frames_take_what_they_need() {
        let mut batch = Batch::packed(300, 512);
        assert!(batch.is_packed() && batch.capacity() == BATCH_FRAMES);
        for (value, bytes) in [(1, 60), (2, 0), (3, 200)] {
            batch.append(bytes).unwrap().fill(value);
        }
        assert_eq!(
            (batch.frame(0), batch.frame(1), batch.frame(2)),
            (&[1; 60][..], &[][..], &[3; 200][..])
        );
        assert!(batch.append(300).is_none());
        batch.append(128).unwrap().fill(4);
        assert!(batch.append(65).is_none() && batch.append(64).is_some());
        assert_eq!(
            (batch.len(), batch.frame(2), batch.frame(3)),
            (5, &[3; 200][..], &[4; 128][..])
        );
        batch.clear();
        assert_eq!(batch.append(301).unwrap().len(), 300);
        assert!(batch.is_cut(0) && batch.frame(0).len() == 300);
        batch.clear();
        for _ in 0..BATCH_FRAMES {
            assert!(batch.append(0).is_some());
        }
        assert!(batch.append(0).is_none());
    }

    #[test]
    fn of_a_lent_frame_only_the_head_is_shown() {
        let mut batch = Batch::packed(2000, 4096);
        for value in [1, 2] {
            batch.append(1000).unwrap().fill(value);
        }
        assert!(batch.lend(0, [0; VNET_HEADER_BYTES]));
        let mut header = [0; VNET_HEADER_BYTES];
        // A checksum in the payload, which the head does not show.
        header[0] = 1;
        header[6..8].copy_from_slice(&600_u16.to_ne_bytes());
        assert!(!batch.lend(1, header));
        assert_eq!((batch.lent(), batch.unfinished()), (FrameSet(1), FrameSet::EMPTY));
        assert_eq!((batch.frame(0), batch.wire_len(0)), (&[1; HEAD_BYTES][..], 1000));
        assert_eq!(batch.frame(1), [2; 1000]);
        let third = batch.append(500).unwrap();
        third.fill(3);
        batch.rest_mut(0).fill(4);
        batch.keep(FrameSet(1));
        assert_eq!(
            (batch.frame(0).len(), batch.frame(0)[HEAD_BYTES..].len()),
            (1000, 744)
        );
        assert!(batch.frame(0)[HEAD_BYTES..].iter().all(|&byte| byte == 4));
        assert_eq!((batch.frame(1), batch.frame(2)), (&[2; 1000][..], &[3; 500][..]));
        assert!(batch.lend(2, [0; VNET_HEADER_BYTES]));
        batch.clear();
        assert!(batch.lent().is_empty());
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

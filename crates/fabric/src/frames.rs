//! Which frames of a batch: one bit each.

use std::fmt;
use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign};

/// A set of frames of one batch, by their position in it (0 to 63).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FrameSet(pub u64);

impl FrameSet {
    /// No frame.
    pub const EMPTY: Self = Self(0);

    /// The first `n` frames.
    ///
    /// # Panics
    /// If `n` is above 64.
    pub const fn first_n(n: usize) -> Self {
        assert!(n <= 64, "a frame set holds 64 frames");
        if n == 64 {
            Self(u64::MAX)
        } else {
            Self((1 << n) - 1)
        }
    }

    /// True if frame `i` is in the set.
    pub const fn contains(self, i: usize) -> bool {
        i < 64 && self.0 >> i & 1 != 0
    }

    /// Adds frame `i`.
    ///
    /// # Panics
    /// If `i` is above 63.
    pub const fn insert(&mut self, i: usize) {
        assert!(i < 64, "a frame set holds 64 frames");
        self.0 |= 1 << i;
    }

    /// Takes frame `i` out.
    pub const fn remove(&mut self, i: usize) {
        if i < 64 {
            self.0 &= !(1 << i);
        }
    }

    /// The frames that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The frames after the first `n`: what is left when those have been sent.
    #[must_use]
    pub const fn skip(self, n: usize) -> Self {
        let mut rest = self.0;
        let mut i = 0;
        while i < n && rest != 0 {
            rest &= rest - 1;
            i += 1;
        }
        Self(rest)
    }

    /// How many frames it has.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True if it has no frame.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Positions of the frames, ascending: the order they came in.
    pub const fn iter(self) -> Iter {
        Iter(self.0)
    }
}

impl BitOr for FrameSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for FrameSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for FrameSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitAndAssign for FrameSet {
    fn bitand_assign(&mut self, other: Self) {
        self.0 &= other.0;
    }
}

impl FromIterator<usize> for FrameSet {
    fn from_iter<I: IntoIterator<Item = usize>>(frames: I) -> Self {
        let mut set = Self::EMPTY;
        frames.into_iter().for_each(|i| set.insert(i));
        set
    }
}

impl IntoIterator for FrameSet {
    type Item = usize;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

impl fmt::Debug for FrameSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Positions of a [`FrameSet`], ascending.
#[derive(Clone, Debug)]
pub struct Iter(u64);

impl Iterator for Iter {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lowest = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lowest)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = FrameSet(self.0).len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_n_at_its_limits() {
        assert!(FrameSet::first_n(0).is_empty());
        assert_eq!(FrameSet::first_n(1), FrameSet(1));
        assert_eq!(FrameSet::first_n(63).len(), 63);
        assert_eq!(FrameSet::first_n(64), FrameSet(u64::MAX));
    }

    #[test]
    fn single_frames() {
        let mut set = FrameSet::EMPTY;
        set.insert(0);
        set.insert(63);
        assert!(set.contains(0) && set.contains(63) && !set.contains(1));
        assert!(!set.contains(64));
        assert!(set.iter().eq([0, 63]));
        set.remove(0);
        set.remove(64);
        assert_eq!(set, FrameSet(1 << 63));
        assert_eq!(format!("{set:?}"), "{63}");
    }

    #[test]
    fn skipping_leaves_the_later_frames() {
        let set: FrameSet = [1, 5, 63].into_iter().collect();
        assert_eq!(set.skip(0), set);
        assert!(set.skip(1).iter().eq([5, 63]));
        assert_eq!(set.skip(3), FrameSet::EMPTY);
        assert_eq!(set.skip(9), FrameSet::EMPTY);
    }

    #[test]
    #[should_panic(expected = "holds 64 frames")]
    fn frame_64_does_not_exist() {
        let mut set = FrameSet::EMPTY;
        set.insert(64);
    }
}

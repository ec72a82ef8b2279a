//! Batches that are not in use.

use std::time::{Duration, Instant};

use fabric::Batch;

use super::port::{Buffers, Parcel};
use super::vhost::SLAB_BYTES;

/// Bytes of a batch with large frames; it then has fewer of them, but at least [`FEWEST_FRAMES`].
const BATCH_BYTES: usize = 512 * 1024;
const FEWEST_FRAMES: usize = 8;

/// How long spare parcels are kept that nobody has needed: one to two of these.
const PERIOD: Duration = Duration::from_secs(10);

/// Kinds of parcels kept although none of them was needed for a whole period.
const KINDS: usize = 8;

/// Empty parcels, by their buffers. There are as many of them as were in use at the same time of late, so that nothing
/// is allocated however many ports are held back, and one once there is nothing to do.
pub(super) struct Pool {
    shelves: Vec<Shelf>,
    /// Frames of a batch at most.
    frames: usize,
    /// When the last period began.
    trimmed: Instant,
}

struct Shelf {
    buffers: Buffers,
    parcels: Vec<Parcel>,
    in_use: usize,
    /// Most of them that were in use at the same time in this period, and in the one before.
    most: usize,
    most_before: usize,
}

impl Pool {
    pub(super) fn new(frames: usize, now: Instant) -> Self {
        Self {
            shelves: Vec::new(),
            frames,
            trimmed: now,
        }
    }

    /// An empty parcel with such buffers: the one that was used last.
    pub(super) fn take(&mut self, buffers: Buffers, now: Instant) -> Parcel {
        let frames = self.frames;
        let shelf = self.shelf(buffers);
        shelf.count_one_more();
        match shelf.parcels.pop() {
            Some(parcel) => Parcel { since: now, ..parcel },
            None => Parcel {
                batch: buffers.batch(frames),
                owed: Vec::new(),
                since: now,
            },
        }
    }

    /// A batch with such buffers that is not one of the pool's.
    pub(super) fn make(&self, buffers: Buffers) -> Batch {
        buffers.batch(self.frames)
    }

    /// Takes a parcel back that nobody is owed any more.
    pub(super) fn put(&mut self, mut parcel: Parcel) {
        parcel.owed.clear();
        let shelf = self.shelf(Buffers::of(&parcel.batch));
        shelf.in_use -= 1;
        if shelf.parcels.len() < shelf.kept() {
            shelf.parcels.push(parcel);
        }
    }

    /// A parcel in use goes to another worker, with its domain.
    pub(super) fn let_go(&mut self, parcel: &Parcel) {
        self.shelf(Buffers::of(&parcel.batch)).in_use -= 1;
    }

    /// A parcel in use has come from another worker, and will be put back here.
    pub(super) fn adopt(&mut self, parcel: &Parcel) {
        self.shelf(Buffers::of(&parcel.batch)).count_one_more();
    }

    fn shelf(&mut self, buffers: Buffers) -> &mut Shelf {
        let known = self.shelves.iter().position(|shelf| shelf.buffers == buffers);
        let index = known.unwrap_or_else(|| {
            self.shelves.push(Shelf {
                buffers,
                parcels: Vec::new(),
                in_use: 0,
                most: 0,
                most_before: 0,
            });
            self.shelves.len() - 1
        });
        &mut self.shelves[index]
    }

    /// When [`Pool::trim`] has something to do; never while there is no more than a parcel of each kind.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let spare = self.shelves.iter().any(|shelf| shelf.parcels.len() > 1);
        spare.then(|| self.trimmed + PERIOD)
    }

    /// Frees what was not needed for a whole period, once that is over.
    pub(super) fn trim(&mut self, now: Instant) {
        if now < self.trimmed + PERIOD {
            return;
        }
        self.trimmed = now;
        for shelf in &mut self.shelves {
            shelf.most_before = shelf.most;
            shelf.most = shelf.in_use;
            shelf.parcels.truncate(shelf.kept());
        }
        if self.shelves.len() > KINDS {
            self.shelves
                .retain(|shelf| shelf.in_use > 0 || shelf.most_before > 0);
        }
    }
}

impl Shelf {
    fn count_one_more(&mut self) {
        self.in_use += 1;
        self.most = self.most.max(self.in_use);
    }

    /// Spare parcels worth keeping now.
    fn kept(&self) -> usize {
        self.most.max(self.most_before).saturating_sub(self.in_use).max(1)
    }
}

impl Buffers {
    fn of(batch: &Batch) -> Self {
        match batch.is_packed() {
            true => Self::Packed(batch.frame_bytes()),
            false => Self::Equal(batch.frame_bytes()),
        }
    }

    fn batch(self, most_frames: usize) -> Batch {
        match self {
            Self::Equal(frame_bytes) => {
                let frames = (BATCH_BYTES / frame_bytes).clamp(FEWEST_FRAMES, fabric::BATCH_FRAMES);
                Batch::new(frame_bytes, frames.min(most_frames))
            }
            Self::Packed(frame_bytes) => Batch::packed(frame_bytes, SLAB_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Buffers = Buffers::Equal(1522);

    fn spare(pool: &Pool) -> usize {
        pool.shelves.iter().map(|shelf| shelf.parcels.len()).sum()
    }

    #[test]
    fn what_was_in_use_together_is_kept_until_it_was_not_needed_for_a_period() {
        let start = Instant::now();
        let mut pool = Pool::new(64, start);
        for _ in 0..3 {
            let parcels: Vec<_> = (0..100).map(|_| pool.take(FRAME, start)).collect();
            parcels.into_iter().for_each(|parcel| pool.put(parcel));
            assert_eq!(spare(&pool), 100);
        }
        assert_eq!(pool.deadline(), Some(start + PERIOD));
        pool.trim(start + PERIOD / 2);
        pool.trim(start + PERIOD);
        assert_eq!(spare(&pool), 100, "they were in use in the period before");
        let few: Vec<_> = (0..5).map(|_| pool.take(FRAME, start)).collect();
        few.into_iter().for_each(|parcel| pool.put(parcel));
        pool.trim(start + PERIOD * 2);
        assert_eq!(spare(&pool), 5);
        pool.trim(start + PERIOD * 3);
        pool.trim(start + PERIOD * 4);
        assert_eq!((spare(&pool), pool.deadline()), (1, None));
    }

    #[test]
    fn kinds_do_not_take_each_others_place() {
        let now = Instant::now();
        let mut pool = Pool::new(64, now);
        for buffers in [FRAME, Buffers::Equal(9018), Buffers::Packed(1522)] {
            let parcels: Vec<_> = (0..3).map(|_| pool.take(buffers, now)).collect();
            parcels.into_iter().for_each(|parcel| pool.put(parcel));
        }
        assert_eq!((pool.shelves.len(), spare(&pool)), (3, 9));
        assert!(!pool.take(FRAME, now).batch.is_packed());
        assert_eq!(pool.take(Buffers::Equal(9018), now).batch.frame_bytes(), 9018);
        assert!(pool.take(Buffers::Packed(1522), now).batch.is_packed());
    }

    #[test]
    fn kinds_of_domains_that_are_gone_do_not_pile_up() {
        let start = Instant::now();
        let mut pool = Pool::new(64, start);
        for mtu in 1000..1100 {
            let parcel = pool.take(Buffers::Equal(mtu), start);
            pool.put(parcel);
        }
        assert_eq!((spare(&pool), pool.deadline()), (100, None));
        pool.trim(start + PERIOD);
        let parcel = pool.take(FRAME, start);
        pool.put(parcel);
        pool.trim(start + PERIOD * 2);
        assert_eq!(spare(&pool), 1);
    }

    #[test]
    fn a_parcel_that_moves_is_counted_where_it_is() {
        let now = Instant::now();
        let (mut one, mut other) = (Pool::new(64, now), Pool::new(64, now));
        for _ in 0..10 {
            let parcel = one.take(FRAME, now);
            one.let_go(&parcel);
            other.adopt(&parcel);
            other.put(parcel);
        }
        assert_eq!((spare(&one), spare(&other)), (0, 1));
        assert_eq!((one.shelves[0].in_use, other.shelves[0].in_use), (0, 0));
    }
}

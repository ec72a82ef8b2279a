//! Entries of the forwarding table, chained in the order they were last seen.

use std::time::Duration;

use crate::mac::MacAddr;
use crate::port::PortId;

/// Position of an entry in its slab.
pub(super) type Place = usize;

/// No entry.
const NONE: Place = Place::MAX;

/// One station. Every entry in use is in exactly one [`Order`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) mac: MacAddr,
    pub(super) port: PortId,
    /// When its last frame came; `None` if an operator put it there, and it never ages.
    pub(super) seen: Option<Duration>,
    older: Place,
    newer: Place,
}

/// Storage of entries: places are reused, so it is never larger than the table was at its fullest.
#[derive(Debug, Default)]
pub(super) struct Slab {
    entries: Vec<Entry>,
    free: Vec<Place>,
}

impl Slab {
    pub(super) fn insert(&mut self, mac: MacAddr, port: PortId, seen: Option<Duration>) -> Place {
        let entry = Entry {
            mac,
            port,
            seen,
            older: NONE,
            newer: NONE,
        };
        if let Some(place) = self.free.pop() {
            self.entries[place] = entry;
            return place;
        }
        self.entries.push(entry);
        self.entries.len() - 1
    }

    /// Gives a place back; its entry must be in no order any more.
    pub(super) fn release(&mut self, place: Place) {
        self.free.push(place);
    }

    pub(super) fn entry(&self, place: Place) -> &Entry {
        &self.entries[place]
    }

    pub(super) fn entry_mut(&mut self, place: Place) -> &mut Entry {
        &mut self.entries[place]
    }
}

/// A chain of entries, oldest first. All its steps take constant time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    oldest: Place,
    newest: Place,
    len: usize,
}

impl Order {
    pub(super) const EMPTY: Self = Self {
        oldest: NONE,
        newest: NONE,
        len: 0,
    };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn oldest(&self) -> Option<Place> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub(super) fn push_newest(&mut self, slab: &mut Slab, place: Place) {
        let entry = slab.entry_mut(place);
        (entry.older, entry.newer) = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = place,
            newest => slab.entry_mut(newest).newer = place,
        }
        self.newest = place;
        self.len += 1;
    }

    /// Takes out an entry, which must be in this order.
    pub(super) fn unlink(&mut self, slab: &mut Slab, place: Place) {
        let Entry { older, newer, .. } = *slab.entry(place);
        match older {
            NONE => self.oldest = newer,
            older => slab.entry_mut(older).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => slab.entry_mut(newer).older = older,
        }
        self.len -= 1;
    }

    /// Makes an entry of this order its newest.
    pub(super) fn renew(&mut self, slab: &mut Slab, place: Place) {
        if self.newest != place {
            self.unlink(slab, place);
            self.push_newest(slab, place);
        }
    }

    pub(super) fn iter<'a>(&self, slab: &'a Slab) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let mut place = self.oldest;
        std::iter::from_fn(move || {
            if place == NONE {
                return None;
            }
            let entry = slab.entry(place);
            place = entry.newer;
            Some(entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(order: &Order, slab: &Slab) -> Vec<u8> {
        let forward: Vec<_> = order.iter(slab).map(|entry| entry.mac.0[5]).collect();
        let mut backward = Vec::new();
        let mut place = order.newest;
        while place != NONE {
            backward.push(slab.entry(place).mac.0[5]);
            place = slab.entry(place).older;
        }
        backward.reverse();
        assert_eq!(forward, backward);
        assert_eq!(forward.len(), order.len());
        forward
    }

    #[test]
    fn links_hold_at_both_ends_and_in_between() {
        let mut slab = Slab::default();
        let mut order = Order::EMPTY;
        let places: Vec<_> = (0..5)
            .map(|n| slab.insert(MacAddr([2, 0, 0, 0, 0, n]), PortId(0), None))
            .collect();
        for &place in &places {
            order.push_newest(&mut slab, place);
        }
        assert_eq!(numbers(&order, &slab), [0, 1, 2, 3, 4]);
        order.renew(&mut slab, places[0]);
        order.renew(&mut slab, places[2]);
        order.renew(&mut slab, places[2]);
        assert_eq!(numbers(&order, &slab), [1, 3, 4, 0, 2]);
        for (n, left) in [
            (4, &[1, 3, 0, 2][..]),
            (1, &[3, 0, 2]),
            (2, &[3, 0]),
            (0, &[3]),
            (3, &[]),
        ] {
            order.unlink(&mut slab, places[n]);
            assert_eq!(numbers(&order, &slab), left);
        }
        assert_eq!(order.oldest(), None);
    }

    #[test]
    fn places_are_reused() {
        let mut slab = Slab::default();
        let first = slab.insert(MacAddr::default(), PortId(0), None);
        slab.release(first);
        assert_eq!(slab.insert(MacAddr::default(), PortId(1), None), first);
        assert_eq!(slab.entry(first).port, PortId(1));
    }
}

//! The forwarding table: which station is behind which port.
//!
//! Learnt entries age and can be displaced, static ones stay until they are removed. The table is bounded: a port
//! that learns more than its share displaces its own oldest station, and a table that is full displaces the oldest
//! station of whoever holds the most, so that a flood of invented addresses cannot drive out the others' stations.
//!
//! Every learnt entry is in its port's chain, in the order they were last seen: ageing looks at the old end of each
//! chain and touches what it removes, nothing more.

mod order;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::mac::MacAddr;
use crate::port::PortId;
use order::{Entry, Order, Place, Slab};

/// The forwarding table of a domain.
///
/// It knows which ports are open, and holds entries for those alone. The time is what its caller says it is: a
/// `Duration` since any fixed moment, which must not go backwards.
#[derive(Debug)]
pub struct Fdb {
    ageing: Duration,
    limit: usize,
    port_limit: usize,
    by_mac: HashMap<MacAddr, Place>,
    slab: Slab,
    /// By port number.
    holders: Vec<Holder>,
}

/// One station in a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbRow {
    /// Its address.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
    /// Time since its last frame; `None` for a static entry.
    pub age: Option<Duration>,
}

/// Why a static entry was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StaticError {
    /// A group address has no single port.
    GroupAddress,
    /// The port is not attached.
    NoSuchPort,
    /// The port's share is taken up by static entries.
    PortFull,
    /// The table is taken up by static entries.
    TableFull,
}

impl fmt::Display for StaticError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GroupAddress => "a group address cannot stand behind one port",
            Self::NoSuchPort => "no such port",
            Self::PortFull => "the port has as many static entries as it may have",
            Self::TableFull => "the table has as many static entries as it may have",
        })
    }
}

impl std::error::Error for StaticError {}

/// What one port has in the table.
#[derive(Clone, Copy, Debug)]
struct Holder {
    open: bool,
    learnt: Order,
    fixed: Order,
}

impl Holder {
    const CLOSED: Self = Self {
        open: false,
        learnt: Order::EMPTY,
        fixed: Order::EMPTY,
    };

    fn len(&self) -> usize {
        self.learnt.len() + self.fixed.len()
    }

    fn any(&self) -> Option<Place> {
        self.learnt.oldest().or(self.fixed.oldest())
    }

    fn order_mut(&mut self, seen: Option<Duration>) -> &mut Order {
        match seen {
            Some(_) => &mut self.learnt,
            None => &mut self.fixed,
        }
    }
}

impl Fdb {
    /// An empty table of at most `limit` entries, `port_limit` of them on one port, that forgets a station when it
    /// has not been heard of for more than `ageing`.
    pub fn new(ageing: Duration, limit: usize, port_limit: usize) -> Self {
        Self {
            ageing,
            limit,
            port_limit,
            by_mac: HashMap::new(),
            slab: Slab::default(),
            holders: Vec::new(),
        }
    }

    /// Allows entries for a port.
    pub fn open_port(&mut self, port: PortId) {
        if self.holders.len() <= port.index() {
            self.holders.resize(port.index() + 1, Holder::CLOSED);
        }
        self.holders[port.index()].open = true;
    }

    /// Removes all entries of a port, static ones included, and takes no more for it.
    pub fn forget_port(&mut self, port: PortId) {
        let Some(holder) = self.holders.get_mut(port.index()) else {
            return;
        };
        holder.open = false;
        while let Some(place) = self.holders[port.index()].any() {
            self.forget(place);
        }
    }

    /// Notes that a frame of station `mac` came in on `port`.
    ///
    /// Group addresses, closed ports and stations with a static entry are ignored.
    pub fn learn(&mut self, mac: MacAddr, port: PortId, now: Duration) {
        if mac.is_multicast() || !self.is_open(port) {
            return;
        }
        if let Some(&place) = self.by_mac.get(&mac) {
            let entry = self.slab.entry_mut(place);
            if entry.seen.is_none() {
                return;
            }
            if entry.port == port {
                entry.seen = Some(now);
                self.holders[port.index()].learnt.renew(&mut self.slab, place);
                return;
            }
            self.forget(place);
        }
        if self.len() >= self.limit {
            self.expire(now);
        }
        if self.make_room(port) {
            self.insert(mac, port, Some(now));
        }
    }

    /// The port that station `mac` is behind, if that is known and not too long ago.
    pub fn lookup(&self, mac: MacAddr, now: Duration) -> Option<PortId> {
        let entry = self.slab.entry(*self.by_mac.get(&mac)?);
        (!self.is_expired(entry, now)).then_some(entry.port)
    }

    /// Puts station `mac` behind `port` until it is removed or the port is detached; what was known of it before,
    /// learnt or static, is replaced.
    pub fn add_static(&mut self, mac: MacAddr, port: PortId) -> Result<(), StaticError> {
        if mac.is_multicast() {
            return Err(StaticError::GroupAddress);
        }
        if !self.is_open(port) {
            return Err(StaticError::NoSuchPort);
        }
        let old = self.by_mac.get(&mac).copied();
        let old_fixed = old
            .map(|place| self.slab.entry(place))
            .filter(|entry| entry.seen.is_none());
        if old_fixed.is_some_and(|entry| entry.port == port) {
            return Ok(());
        }
        if self.holders[port.index()].fixed.len() >= self.port_limit {
            return Err(StaticError::PortFull);
        }
        let fixed: usize = self.holders.iter().map(|holder| holder.fixed.len()).sum();
        if fixed - usize::from(old_fixed.is_some()) >= self.limit {
            return Err(StaticError::TableFull);
        }
        if let Some(place) = old {
            self.forget(place);
        }
        let roomy = self.make_room(port);
        assert!(
            roomy,
            "a table that is not full of static entries has one to displace"
        );
        self.insert(mac, port, None);
        Ok(())
    }

    /// Removes a station, learnt or static; false if it was not there.
    pub fn remove(&mut self, mac: MacAddr) -> bool {
        let place = self.by_mac.get(&mac).copied();
        place.map(|place| self.forget(place)).is_some()
    }

    /// Removes the stations that have aged. [`Fdb::lookup`] does not find them even before.
    pub fn expire(&mut self, now: Duration) {
        for port in 0..self.holders.len() {
            while let Some(place) = self.holders[port].learnt.oldest() {
                if !self.is_expired(self.slab.entry(place), now) {
                    break;
                }
                self.forget(place);
            }
        }
    }

    /// Number of entries, with those that have aged and are not swept out yet.
    pub fn len(&self) -> usize {
        self.by_mac.len()
    }

    /// True if there is no entry.
    pub fn is_empty(&self) -> bool {
        self.by_mac.is_empty()
    }

    /// Every station known now: port by port, static entries first, the others in the order they were last heard of.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = FdbRow> + '_ {
        let entries = self.holders.iter().flat_map(|holder| self.entries_of(holder));
        entries
            .filter(move |entry| !self.is_expired(entry, now))
            .map(move |entry| FdbRow {
                mac: entry.mac,
                port: entry.port,
                age: entry.seen.map(|seen| now.saturating_sub(seen)),
            })
    }

    /// The stations behind one port, in the order of [`Fdb::iter`], with those that are not swept out yet.
    pub fn stations_of(&self, port: PortId) -> impl Iterator<Item = MacAddr> + '_ {
        let holder = self.holders.get(port.index());
        holder
            .into_iter()
            .flat_map(|holder| self.entries_of(holder))
            .map(|entry| entry.mac)
    }

    fn entries_of(&self, holder: &Holder) -> impl Iterator<Item = &Entry> + use<'_> {
        holder
            .fixed
            .iter(&self.slab)
            .chain(holder.learnt.iter(&self.slab))
    }

    fn is_open(&self, port: PortId) -> bool {
        self.holders.get(port.index()).is_some_and(|holder| holder.open)
    }

    fn is_expired(&self, entry: &Entry, now: Duration) -> bool {
        entry
            .seen
            .is_some_and(|seen| now.saturating_sub(seen) > self.ageing)
    }

    /// Sees to it that one more entry for `port` fits; false if only static ones are in the way.
    fn make_room(&mut self, port: PortId) -> bool {
        if self.holders[port.index()].len() >= self.port_limit {
            return self.displace_oldest_of(port);
        }
        self.len() < self.limit || self.displace_oldest_of(self.largest_holder(port))
    }

    fn displace_oldest_of(&mut self, port: PortId) -> bool {
        let oldest = self.holders[port.index()].learnt.oldest();
        oldest.map(|place| self.forget(place)).is_some()
    }

    /// The port with the most learnt entries: among equals the one that wants more, or else the lowest.
    ///
    /// A look at every port. Only a station that is new to a full table costs this, and such a frame is most often
    /// flooded, which is a look at every port as well.
    fn largest_holder(&self, wanting: PortId) -> PortId {
        let lens = self.holders.iter().map(|holder| holder.learnt.len());
        let ports = (0..).map(PortId).zip(lens);
        let largest = ports.max_by_key(|&(port, len)| (len, port == wanting, Reverse(port)));
        largest.map_or(wanting, |(port, _)| port)
    }

    fn insert(&mut self, mac: MacAddr, port: PortId, seen: Option<Duration>) {
        let place = self.slab.insert(mac, port, seen);
        let order = self.holders[port.index()].order_mut(seen);
        order.push_newest(&mut self.slab, place);
        self.by_mac.insert(mac, place);
    }

    fn forget(&mut self, place: Place) {
        let Entry { mac, port, seen, .. } = *self.slab.entry(place);
        let order = self.holders[port.index()].order_mut(seen);
        order.unlink(&mut self.slab, place);
        self.slab.release(place);
        self.by_mac.remove(&mac);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(0);
    const B: PortId = PortId(1);
    const C: PortId = PortId(2);

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Ports A, B and C are open, entries age after 100 s.
    fn fdb(limit: usize, port_limit: usize) -> Fdb {
        let mut fdb = Fdb::new(at(100), limit, port_limit);
        [A, B, C].into_iter().for_each(|port| fdb.open_port(port));
        fdb
    }

    fn known(fdb: &Fdb, now: Duration) -> Vec<(u8, u32)> {
        fdb.iter(now).map(|row| (row.mac.0[5], row.port.0)).collect()
    }

    #[test]
    fn a_station_moves_at_once() {
        let mut fdb = fdb(10, 10);
        assert_eq!(fdb.lookup(mac(1), at(0)), None);
        fdb.learn(mac(1), A, at(0));
        assert_eq!(fdb.lookup(mac(1), at(0)), Some(A));
        fdb.learn(mac(1), B, at(0));
        assert_eq!(fdb.lookup(mac(1), at(0)), Some(B));
        assert_eq!(fdb.len(), 1);
        assert_eq!(fdb.stations_of(A).count(), 0);
        assert!(fdb.stations_of(B).eq([mac(1)]));
    }

    #[test]
    fn an_aged_station_is_not_found_before_the_sweep() {
        let mut fdb = fdb(10, 10);
        fdb.learn(mac(1), A, at(10));
        fdb.learn(mac(2), A, at(11));
        fdb.learn(mac(1), A, at(12));
        assert_eq!(fdb.lookup(mac(2), at(111)), Some(A));
        assert_eq!(fdb.lookup(mac(2), at(111) + Duration::from_nanos(1)), None);
        assert_eq!(known(&fdb, at(112)), [(1, 0)]);
        assert_eq!(fdb.iter(at(112)).next().unwrap().age, Some(at(100)));
        assert_eq!(fdb.len(), 2);
        fdb.expire(at(112));
        assert_eq!(fdb.len(), 1);
        assert!(fdb.stations_of(A).eq([mac(1)]));
        fdb.learn(mac(2), B, at(113));
        assert_eq!(fdb.lookup(mac(2), at(113)), Some(B));
        fdb.expire(at(1000));
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_port_displaces_its_own_oldest() {
        let mut fdb = fdb(10, 2);
        fdb.learn(mac(9), B, at(0));
        fdb.learn(mac(1), A, at(1));
        fdb.learn(mac(2), A, at(2));
        fdb.learn(mac(1), A, at(3));
        fdb.learn(mac(3), A, at(4));
        assert_eq!(known(&fdb, at(4)), [(1, 0), (3, 0), (9, 1)]);
        fdb.learn(mac(9), A, at(5));
        assert_eq!(known(&fdb, at(5)), [(3, 0), (9, 0)]);
    }

    #[test]
    fn a_full_table_displaces_the_oldest_of_the_largest_holder() {
        let mut fdb = fdb(5, 4);
        fdb.learn(mac(1), A, at(0));
        for n in 2..=5 {
            fdb.learn(mac(n), B, at(n.into()));
        }
        fdb.learn(mac(6), C, at(6));
        assert_eq!(known(&fdb, at(6)), [(1, 0), (3, 1), (4, 1), (5, 1), (6, 2)]);
        fdb.learn(mac(7), C, at(7));
        assert_eq!(known(&fdb, at(7)), [(1, 0), (4, 1), (5, 1), (6, 2), (7, 2)]);
        // B and C hold as many: the one that wants more pays.
        fdb.learn(mac(8), C, at(8));
        assert_eq!(known(&fdb, at(8)), [(1, 0), (4, 1), (5, 1), (7, 2), (8, 2)]);
    }

    #[test]
    fn a_full_table_forgets_the_aged_first() {
        let mut fdb = fdb(3, 3);
        fdb.learn(mac(1), A, at(0));
        fdb.learn(mac(2), B, at(90));
        fdb.learn(mac(3), B, at(90));
        fdb.learn(mac(4), B, at(101));
        assert_eq!(known(&fdb, at(101)), [(2, 1), (3, 1), (4, 1)]);
    }

    #[test]
    fn static_entries_stay() {
        let mut fdb = fdb(3, 3);
        fdb.learn(mac(1), A, at(0));
        fdb.add_static(mac(1), B).unwrap();
        fdb.add_static(mac(1), B).unwrap();
        fdb.learn(mac(1), A, at(1));
        assert_eq!(fdb.lookup(mac(1), at(1)), Some(B));
        for n in 2..20 {
            fdb.learn(mac(n), B, at(n.into()));
            assert_eq!(fdb.len(), usize::from(n.min(3)));
        }
        fdb.expire(at(5000));
        assert_eq!(known(&fdb, at(5000)), [(1, 1)]);
        assert_eq!(fdb.iter(at(5000)).next().unwrap().age, None);
        fdb.add_static(mac(1), C).unwrap();
        assert_eq!(known(&fdb, at(5000)), [(1, 2)]);
        assert!(fdb.remove(mac(1)));
        assert!(!fdb.remove(mac(1)));
        fdb.learn(mac(1), A, at(5000));
        assert_eq!(fdb.lookup(mac(1), at(5000)), Some(A));
    }

    #[test]
    fn static_entries_displace_learnt_ones_up_to_the_bounds() {
        let mut fdb = fdb(3, 2);
        fdb.learn(mac(1), A, at(0));
        fdb.learn(mac(2), A, at(1));
        fdb.learn(mac(3), B, at(2));
        fdb.add_static(mac(4), A).unwrap();
        assert_eq!(known(&fdb, at(2)), [(4, 0), (2, 0), (3, 1)]);
        fdb.add_static(mac(5), A).unwrap();
        assert_eq!(fdb.add_static(mac(6), A), Err(StaticError::PortFull));
        fdb.add_static(mac(6), B).unwrap();
        assert_eq!(fdb.add_static(mac(7), B), Err(StaticError::TableFull));
        fdb.learn(mac(8), A, at(3));
        fdb.learn(mac(8), C, at(3));
        assert_eq!(known(&fdb, at(3)), [(4, 0), (5, 0), (6, 1)]);
        fdb.add_static(mac(4), C).unwrap();
        assert_eq!(known(&fdb, at(3)), [(5, 0), (6, 1), (4, 2)]);
    }

    #[test]
    fn a_refused_static_entry_changes_nothing() {
        let mut fdb = fdb(3, 1);
        fdb.learn(mac(1), A, at(0));
        fdb.add_static(mac(2), B).unwrap();
        assert_eq!(fdb.add_static(mac(1), B), Err(StaticError::PortFull));
        assert_eq!(fdb.add_static(mac(1), PortId(3)), Err(StaticError::NoSuchPort));
        assert_eq!(
            fdb.add_static(MacAddr::BROADCAST, A),
            Err(StaticError::GroupAddress)
        );
        assert_eq!(known(&fdb, at(0)), [(1, 0), (2, 1)]);
    }

    #[test]
    fn a_closed_port_has_no_stations() {
        let mut fdb = fdb(10, 10);
        fdb.learn(mac(1), A, at(0));
        fdb.learn(mac(2), B, at(0));
        fdb.learn(mac(3), A, at(0));
        fdb.add_static(mac(4), A).unwrap();
        fdb.forget_port(A);
        fdb.forget_port(PortId(77));
        fdb.learn(mac(5), A, at(0));
        fdb.learn(mac(6), PortId(77), at(0));
        assert_eq!(known(&fdb, at(0)), [(2, 1)]);
        assert_eq!(fdb.len(), 1);
        fdb.open_port(A);
        assert_eq!(known(&fdb, at(0)), [(2, 1)]);
    }

    #[test]
    fn group_addresses_are_not_learnt() {
        let mut fdb = fdb(10, 10);
        fdb.learn(MacAddr::BROADCAST, A, at(0));
        fdb.learn(MacAddr([1, 0, 0x5e, 0, 0, 1]), A, at(0));
        assert!(fdb.is_empty());
    }
}

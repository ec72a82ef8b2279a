//! Port numbers, and which of them are in use.

use std::fmt;

/// A port's slot number in its domain: small, and the lowest free one is given out first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PortId(pub u32);

impl PortId {
    /// The number as a position in a table that has one place per port.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Highest number that may be asked for by name, plus one: tables have a place for every number below the highest
/// in use, so a number picked from outside must not make them huge.
pub const CHOSEN_PORT_LIMIT: u32 = 1 << 16;

/// The attached ports of a domain, in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortSet {
    sorted: Vec<PortId>,
}

impl PortSet {
    /// Takes the lowest free number.
    pub(crate) fn insert_lowest(&mut self) -> PortId {
        let numbers = (0..).map(PortId);
        let (place, port) = numbers
            .enumerate()
            .find(|&(place, port)| self.sorted.get(place) != Some(&port))
            .expect("there are more numbers than ports");
        self.sorted.insert(place, port);
        port
    }

    /// Takes one number; false if it is in use.
    pub(crate) fn insert(&mut self, port: PortId) -> bool {
        match self.sorted.binary_search(&port) {
            Ok(_) => false,
            Err(place) => {
                self.sorted.insert(place, port);
                true
            }
        }
    }

    /// Gives a number back; false if it was not in use.
    pub(crate) fn remove(&mut self, port: PortId) -> bool {
        match self.sorted.binary_search(&port) {
            Ok(place) => {
                self.sorted.remove(place);
                true
            }
            Err(_) => false,
        }
    }

    pub(crate) fn contains(&self, port: PortId) -> bool {
        self.sorted.binary_search(&port).is_ok()
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = PortId> {
        self.sorted.iter().copied()
    }

    /// Places a table needs to have one for each port.
    pub(crate) fn places(&self) -> usize {
        self.sorted.last().map_or(0, |highest| highest.index() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_number_is_reused() {
        let mut ports = PortSet::default();
        assert_eq!(ports.places(), 0);
        for number in 0..4 {
            assert_eq!(ports.insert_lowest(), PortId(number));
        }
        assert!(ports.remove(PortId(2)));
        assert!(ports.remove(PortId(0)));
        assert!(!ports.remove(PortId(0)));
        assert_eq!(ports.insert_lowest(), PortId(0));
        assert_eq!(ports.insert_lowest(), PortId(2));
        assert_eq!(ports.insert_lowest(), PortId(4));
        assert_eq!(ports.places(), 5);
    }

    #[test]
    fn a_chosen_number_is_taken_once() {
        let mut ports = PortSet::default();
        assert!(ports.insert(PortId(3)));
        assert!(!ports.insert(PortId(3)));
        assert!(ports.contains(PortId(3)));
        assert!(!ports.contains(PortId(0)));
        assert_eq!(ports.insert_lowest(), PortId(0));
        assert!(ports.iter().eq([PortId(0), PortId(3)]));
        assert_eq!(ports.places(), 4);
    }
}

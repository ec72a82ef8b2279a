//! What a device offers, and its configuration space.

use fabric::MacAddr;

use crate::ring::Agreed;

/// Feature bits (virtio 1.2, sections 5.1.3 and 6; Linux' `vhost.h` for number 30).
pub mod feature {
    /// The device takes frames without their checksum.
    pub const CSUM: u64 = 1 << 0;
    /// The guest does.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The MTU is in the configuration.
    pub const MTU: u64 = 1 << 3;
    /// The address is in the configuration.
    pub const MAC: u64 = 1 << 5;
    /// The guest takes TCP over IPv4 to be cut.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The guest takes TCP over IPv6 to be cut.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device takes TCP over IPv4 to be cut.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 to be cut.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame may fill several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The state of the link is in the configuration.
    pub const STATUS: u64 = 1 << 16;
    /// Frames need no layout of their own.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Kicks and calls are asked for by index.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// The connection has features of its own (vhost-user).
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// The guest takes UDP over IPv4 to be cut.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The guest takes UDP over IPv6 to be cut.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes UDP to be cut.
    pub const HOST_USO: u64 = 1 << 56;
}

/// What is offered to every guest.
pub const OFFERED: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::ANY_LAYOUT
    | feature::INDIRECT
    | feature::EVENT_INDEX
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1
    | feature::GUEST_USO4
    | feature::GUEST_USO6
    | feature::HOST_USO;

/// What a guest has taken of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(u64);

impl Features {
    /// Features a guest says it has; `None` if one of them was not offered.
    pub fn new(bits: u64) -> Option<Self> {
        (bits & !OFFERED == 0).then_some(Self(bits))
    }

    /// True if it has all of these.
    pub fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// What the rings have to know.
    pub fn agreed(self) -> Agreed {
        Agreed {
            indirect: self.has(feature::INDIRECT),
            event_index: self.has(feature::EVENT_INDEX),
        }
    }

    /// What may be left undone on frames to the guest.
    pub fn offloads(self) -> fabric::Offloads {
        fabric::Offloads {
            checksum: self.has(feature::GUEST_CSUM),
            tso4: self.has(feature::GUEST_TSO4),
            tso6: self.has(feature::GUEST_TSO6),
            ecn: false,
            uso: self.has(feature::GUEST_USO4 | feature::GUEST_USO6),
        }
    }

    /// Bytes before each frame.
    pub fn header_bytes(self) -> usize {
        if self.0 & (feature::VERSION_1 | feature::MRG_RXBUF) == 0 {
            fabric::offload::VNET_HEADER_BYTES
        } else {
            fabric::offload::VNET_HEADER_BYTES + 2
        }
    }
}

/// Bytes of the configuration space that mean something: address, state of the link, pairs of queues, MTU.
pub const CONFIG_BYTES: usize = 12;

/// The configuration space of a card.
pub fn config(mac: MacAddr, mtu: u32) -> [u8; CONFIG_BYTES] {
    const LINK_UP: u16 = 1;
    const PAIRS: u16 = 1;
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    let mut bytes = [0; CONFIG_BYTES];
    bytes[..6].copy_from_slice(&mac.0);
    for (place, word) in bytes[6..].chunks_exact_mut(2).zip([LINK_UP, PAIRS, mtu]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_offered_is_taken() {
        assert_eq!(Features::new(OFFERED).map(Features::header_bytes), Some(12));
        assert_eq!(Features::new(0).map(Features::header_bytes), Some(10));
        let mergeable = Features::new(feature::MRG_RXBUF).unwrap();
        assert_eq!(
            (mergeable.header_bytes(), mergeable.agreed()),
            (12, Agreed::default())
        );
        // A log of what was written, a control queue, several queues, a packed ring.
        for refused in [26, 17, 22, 34] {
            assert_eq!(Features::new(feature::VERSION_1 | 1 << refused), None);
        }
    }

    #[test]
    fn udp_is_left_uncut_for_guests_that_take_both_kinds() {
        let offloads = |bits| Features::new(bits).unwrap().offloads();
        assert_eq!(offloads(0), fabric::Offloads::NONE);
        assert!(!offloads(feature::GUEST_USO4).uso);
        assert!(offloads(feature::GUEST_USO4 | feature::GUEST_USO6).uso);
        assert!(offloads(OFFERED).tso4 && offloads(OFFERED).checksum);
    }

    #[test]
    fn the_configuration_has_its_fields_in_place() {
        let bytes = config(MacAddr([2, 1, 2, 3, 4, 5]), 9000);
        assert_eq!(bytes, [2, 1, 2, 3, 4, 5, 1, 0, 1, 0, 0x28, 0x23]);
    }
}

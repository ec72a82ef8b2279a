//! A checked view of an Ethernet frame.

use std::fmt;

use crate::mac::MacAddr;

/// Bytes of the header of an untagged frame; a frame cannot be shorter.
pub const HEADER_BYTES: usize = 14;

/// Bytes of one VLAN tag.
pub const TAG_BYTES: usize = 4;

/// VLAN tags that do not count as payload: a service tag and a customer tag.
pub const MOST_TAGS: usize = 2;

/// Where the fields are. A tag stands before the type, and moves it by its own length.
mod field {
    use std::ops::Range;

    pub(super) const DST: Range<usize> = 0..6;
    pub(super) const SRC: Range<usize> = 6..12;
    pub(super) const TYPE: Range<usize> = 12..14;
    pub(super) const TCI: Range<usize> = 14..16;
}

/// Ethertypes that announce a tag.
mod tag_type {
    pub(super) const CUSTOMER: u16 = 0x8100;
    pub(super) const SERVICE: u16 = 0x88a8;
}

/// The bytes are fewer than an Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort;

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an Ethernet frame has at least {HEADER_BYTES} bytes")
    }
}

impl std::error::Error for TooShort {}

/// An Ethernet frame without its check sequence: at least a header.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the length, the only thing that can be wrong with a frame.
    pub fn new(bytes: &'a [u8]) -> Result<Self, TooShort> {
        if bytes.len() < HEADER_BYTES {
            return Err(TooShort);
        }
        Ok(Self { bytes })
    }

    /// The frame itself.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Who it is for.
    pub fn dst(self) -> MacAddr {
        MacAddr(self.array(field::DST.start))
    }

    /// Who sent it.
    pub fn src(self) -> MacAddr {
        MacAddr(self.array(field::SRC.start))
    }

    /// Type, or length of an LLC payload, behind the tags.
    pub fn ethertype(self) -> u16 {
        self.type_behind(self.tag_count())
    }

    /// The VLAN tags, outermost first; at most two are told apart from the payload.
    pub fn tags(self) -> impl ExactSizeIterator<Item = Tag> + 'a {
        (0..self.tag_count()).map(move |n| Tag {
            tpid: self.type_behind(n),
            tci: u16::from_be_bytes(self.array(field::TCI.start + n * TAG_BYTES)),
        })
    }

    /// Bytes behind header and tags.
    pub fn payload_len(self) -> usize {
        self.bytes.len() - HEADER_BYTES - self.tag_count() * TAG_BYTES
    }

    /// Whole tags only: a frame that ends within one has that tag type as its type.
    fn tag_count(self) -> usize {
        let fits = |n: usize| self.bytes.len() >= HEADER_BYTES + (n + 1) * TAG_BYTES;
        let announced = |n: usize| matches!(self.type_behind(n), tag_type::CUSTOMER | tag_type::SERVICE);
        (0..MOST_TAGS).take_while(|&n| fits(n) && announced(n)).count()
    }

    /// The type field behind `tags` tags, which must be there.
    fn type_behind(self, tags: usize) -> u16 {
        u16::from_be_bytes(self.array(field::TYPE.start + tags * TAG_BYTES))
    }

    fn array<const N: usize>(self, start: usize) -> [u8; N] {
        let bytes = self.bytes[start..].first_chunk();
        *bytes.expect("header and counted tags are within the frame")
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst, kind, len) = (self.src(), self.dst(), self.ethertype(), self.bytes.len());
        write!(f, "Frame({src} > {dst}, {kind:#06x}, {len} bytes)")
    }
}

/// One VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The ethertype that announced it: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub tpid: u16,
    /// Tag control information: priority, drop eligibility and VLAN number.
    pub tci: u16,
}

impl Tag {
    /// VLAN number.
    pub const fn vlan(self) -> u16 {
        self.tci & 0x0fff
    }

    /// Priority, 0 to 7.
    pub const fn priority(self) -> u16 {
        self.tci >> 13
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tail: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], tail].concat()
    }

    #[test]
    fn shorter_than_a_header() {
        assert!(matches!(Frame::new(&[]), Err(TooShort)));
        assert!(matches!(Frame::new(&[0; 13]), Err(TooShort)));
        assert!(Frame::new(&[0; 14]).is_ok());
    }

    #[test]
    fn untagged() {
        let bytes = frame(&[0x08, 0x06, 1, 2, 3]);
        let frame = Frame::new(&bytes).unwrap();
        assert_eq!(frame.dst(), MacAddr::BROADCAST);
        assert_eq!(frame.src(), MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!((frame.ethertype(), frame.payload_len()), (0x0806, 3));
        assert_eq!(frame.tags().len(), 0);
        assert_eq!(
            format!("{frame:?}"),
            "Frame(02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, 0x0806, 17 bytes)"
        );
    }

    #[test]
    fn one_and_two_tags() {
        let one = frame(&[0x81, 0x00, 0x61, 0x23, 0x08, 0x00, 9]);
        let one = Frame::new(&one).unwrap();
        let tags: Vec<_> = one.tags().collect();
        assert_eq!(
            tags,
            [Tag {
                tpid: 0x8100,
                tci: 0x6123
            }]
        );
        assert_eq!((tags[0].vlan(), tags[0].priority()), (0x123, 3));
        assert_eq!((one.ethertype(), one.payload_len()), (0x0800, 1));

        let two = frame(&[0x88, 0xa8, 0, 7, 0x81, 0x00, 0, 8, 0x86, 0xdd]);
        let two = Frame::new(&two).unwrap();
        assert!(two.tags().map(Tag::vlan).eq([7, 8]));
        assert_eq!((two.ethertype(), two.payload_len()), (0x86dd, 0));
    }

    #[test]
    fn a_third_tag_is_payload() {
        let bytes = frame(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 0x08, 0]);
        let frame = Frame::new(&bytes).unwrap();
        assert!(frame.tags().map(Tag::vlan).eq([1, 2]));
        assert_eq!((frame.ethertype(), frame.payload_len()), (0x8100, 4));
    }

    #[test]
    fn a_frame_may_end_within_a_tag() {
        let whole = frame(&[0x81, 0x00, 0, 1, 0x88, 0xa8, 0, 2, 0x08, 0x00]);
        for (len, tags, kind) in [
            (14, 0, 0x8100),
            (17, 0, 0x8100),
            (18, 1, 0x88a8),
            (21, 1, 0x88a8),
            (22, 2, 0x0800),
        ] {
            let frame = Frame::new(&whole[..len]).unwrap();
            assert_eq!(
                (frame.tags().len(), frame.ethertype()),
                (tags, kind),
                "{len} bytes"
            );
            assert_eq!(frame.payload_len(), len - 14 - 4 * tags);
        }
    }
}

//! The blocks of a pcapng file, written in place and told apart: what a capture is made of on its whole way.
//!
//! ```text
//! block:   type u32 | length u32 | body, padded to 4 bytes | length u32         (host byte order)
//! ```
//!
//! Frames are laid out here once, in the copy the data path makes; nobody encodes them again. Source: the pcapng
//! specification, draft-ietf-opsawg-pcapng. Files of others are read by pcap-file.

use std::time::Duration;

/// Section header: the first block.
pub(crate) const SECTION: u32 = 0x0a0d_0d0a;
/// Interface description.
pub(crate) const INTERFACE: u32 = 1;
/// Interface statistics.
pub(crate) const STATISTICS: u32 = 5;
/// Enhanced packet: a frame.
pub(crate) const PACKET: u32 = 6;

/// Bytes of a frame's block besides the frame and a comment: 28 before it, flags and the end of the options after it.
const PACKET_OVERHEAD: usize = 28 + 12 + 4;

const ETHERNET: u16 = 1;
const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;

/// Which way a frame went, seen from its interface (`epb_flags`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// It came in from the port.
    In = 1,
    /// It went out to the port.
    Out = 2,
}

/// A frame to be written.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) interface: u32,
    /// Since 1970.
    pub(crate) time: Duration,
    pub(crate) wire_len: usize,
    /// The part that is kept.
    pub(crate) bytes: &'a [u8],
    /// What stands at a place of it instead: a checksum that the sender has left undone.
    pub(crate) sum: Option<(usize, [u8; 2])>,
    pub(crate) direction: Direction,
    /// What is to be said about it; nothing if empty.
    pub(crate) comment: &'a str,
}

/// What an interface has seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    /// Frames that passed.
    pub(crate) received: u64,
    /// Those the filter let through.
    pub(crate) accepted: u64,
    /// Those that found no room.
    pub(crate) dropped: u64,
    /// Those written.
    pub(crate) written: u64,
}

/// Begins a file.
pub(crate) fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        out.extend_from_slice(&0x1a2b_3c4d_u32.to_ne_bytes());
        out.extend_from_slice(&1u16.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&u64::MAX.to_ne_bytes());
        option(
            out,
            SHB_USERAPPL,
            concat!("switchd ", env!("CARGO_PKG_VERSION")).as_bytes(),
        );
        option(out, OPT_END, &[]);
    });
}

/// Announces an interface; they are numbered from 0 in the order of their blocks. `snap_len` 0 is no limit.
pub(crate) fn interface(out: &mut Vec<u8>, name: &str, description: &str, snap_len: u32, filter: &str) {
    block(out, INTERFACE, |out| {
        out.extend_from_slice(&ETHERNET.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&snap_len.to_ne_bytes());
        option(out, IF_NAME, name.as_bytes());
        if !description.is_empty() {
            option(out, IF_DESCRIPTION, description.as_bytes());
        }
        // Units of 10^-9 s.
        option(out, IF_TSRESOL, &[9]);
        if !filter.is_empty() {
            // Kind 0: an expression of libpcap.
            option(out, IF_FILTER, &[&[0], filter.as_bytes()].concat());
        }
        option(out, OPT_END, &[]);
    });
}

/// Bytes of a frame's block.
pub(crate) const fn packet_len(kept: usize, comment: usize) -> usize {
    let comment = if comment == 0 {
        0
    } else {
        4 + comment.next_multiple_of(4)
    };
    PACKET_OVERHEAD + kept.next_multiple_of(4) + comment
}

/// Writes a frame.
pub(crate) fn packet(out: &mut Vec<u8>, packet: Packet<'_>) {
    let length = length_word(packet_len(packet.bytes.len(), packet.comment.len()));
    let [high, low] = halves(packet.time);
    let header = [
        PACKET,
        length,
        packet.interface,
        high,
        low,
        length_word(packet.bytes.len()),
        length_word(packet.wire_len),
    ];
    for word in header {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    let start = out.len();
    out.extend_from_slice(packet.bytes);
    if let Some((field, sum)) = packet.sum {
        out[start + field..][..2].copy_from_slice(&sum);
    }
    pad(out, packet.bytes.len());
    option(out, EPB_FLAGS, &(packet.direction as u32).to_ne_bytes());
    if !packet.comment.is_empty() {
        option(out, OPT_COMMENT, packet.comment.as_bytes());
    }
    option(out, OPT_END, &[]);
    out.extend_from_slice(&length.to_ne_bytes());
}

/// Bytes of an interface's statistics.
pub(crate) const STATISTICS_BYTES: usize = 20 + 4 * 12 + 4 + 4;

/// Sums an interface up.
pub(crate) fn statistics(out: &mut Vec<u8>, interface: u32, time: Duration, tally: &Tally) {
    block(out, STATISTICS, |out| {
        out.extend_from_slice(&interface.to_ne_bytes());
        for word in halves(time) {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        option(out, ISB_IFRECV, &tally.received.to_ne_bytes());
        option(out, ISB_IFDROP, &tally.dropped.to_ne_bytes());
        option(out, ISB_FILTERACCEPT, &tally.accepted.to_ne_bytes());
        option(out, ISB_USRDELIV, &tally.written.to_ne_bytes());
        option(out, OPT_END, &[]);
    });
}

/// A whole block of our own, by its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block<'a> {
    pub(crate) kind: u32,
    /// All of it, from type to trailing length.
    pub(crate) bytes: &'a [u8],
}

/// Splits the first block off; `None` if it is not whole.
pub(crate) fn split(bytes: &[u8]) -> Option<(Block<'_>, &[u8])> {
    let kind = word(bytes, 0)?;
    let length = word(bytes, 4)? as usize;
    if length < 12 {
        return None;
    }
    let (bytes, rest) = bytes.split_at_checked(length)?;
    Some((Block { kind, bytes }, rest))
}

impl<'a> Block<'a> {
    /// The interface a frame or a sum belongs to.
    pub(crate) fn interface(&self) -> u32 {
        word(self.bytes, 8).unwrap_or(0)
    }

    /// When a frame was seen.
    pub(crate) fn time(&self) -> Duration {
        let (high, low) = (
            word(self.bytes, 12).unwrap_or(0),
            word(self.bytes, 16).unwrap_or(0),
        );
        Duration::from_nanos(u64::from(high) << 32 | u64::from(low))
    }

    /// Length of a frame on the wire.
    pub(crate) fn wire_len(&self) -> u32 {
        word(self.bytes, 24).unwrap_or(0)
    }

    /// The kept part of a frame.
    pub(crate) fn frame(&self) -> &'a [u8] {
        let kept = word(self.bytes, 20).unwrap_or(0) as usize;
        self.bytes
            .get(28..)
            .and_then(|rest| rest.get(..kept))
            .unwrap_or_default()
    }

    /// An option of a frame or an interface.
    pub(crate) fn option(&self, code: u16) -> Option<&'a [u8]> {
        let fixed = match self.kind {
            PACKET => 28 + self.frame().len().next_multiple_of(4),
            STATISTICS => 20,
            _ => 16,
        };
        let mut rest = self.bytes.get(fixed..self.bytes.len() - 4)?;
        loop {
            let (head, value) = rest.split_first_chunk::<4>()?;
            let found = u16::from_ne_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_ne_bytes([head[2], head[3]]));
            if found == OPT_END {
                return None;
            }
            if found == code {
                return value.get(..length);
            }
            rest = value.get(length.next_multiple_of(4)..)?;
        }
    }

    /// What an interface has seen.
    pub(crate) fn tally(&self) -> Tally {
        let count = |code| {
            let bytes = self.option(code).and_then(|bytes| bytes.first_chunk());
            bytes.copied().map_or(0, u64::from_ne_bytes)
        };
        Tally {
            received: count(ISB_IFRECV),
            accepted: count(ISB_FILTERACCEPT),
            dropped: count(ISB_IFDROP),
            written: count(ISB_USRDELIV),
        }
    }

    /// What is said about a frame.
    pub(crate) fn comment(&self) -> &'a str {
        self.text(OPT_COMMENT)
    }

    /// The name of an interface.
    pub(crate) fn name(&self) -> &'a str {
        self.text(IF_NAME)
    }

    fn text(&self, code: u16) -> &'a str {
        self.option(code)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

/// Gives a frame's block, which begins at `at`, or a sum's another interface.
pub(crate) fn set_interface(bytes: &mut [u8], at: usize, interface: u32) {
    bytes[at + 8..at + 12].copy_from_slice(&interface.to_ne_bytes());
}

/// Gives a frame's block, which begins at `at`, another time.
pub(crate) fn set_time(bytes: &mut [u8], at: usize, time: Duration) {
    let [high, low] = halves(time);
    bytes[at + 12..at + 16].copy_from_slice(&high.to_ne_bytes());
    bytes[at + 16..at + 20].copy_from_slice(&low.to_ne_bytes());
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = length_word(out.len() + 4 - start).to_ne_bytes();
    out[start + 4..start + 8].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&[0; 3][..length.next_multiple_of(4) - length]);
}

/// A time as the format has it: nanoseconds, upper half first whatever the byte order.
fn halves(time: Duration) -> [u32; 2] {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
    [(nanoseconds >> 32) as u32, nanoseconds as u32]
}

fn length_word(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
    use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
    use pcap_file::pcapng::{Block as Theirs, PcapNgReader};

    fn sample(bytes: &[u8]) -> Packet<'_> {
        Packet {
            interface: 1,
            time: Duration::new(1_700_000_000, 123_456_789),
            wire_len: 1514,
            bytes,
            sum: None,
            direction: Direction::Out,
            comment: "dropped: queue-full",
        }
    }

    /// Everything once, read by another implementation.
    #[test]
    fn another_reader_finds_everything() {
        let mut file = Vec::new();
        section(&mut file);
        interface(&mut file, "A:1", "", 0, "");
        interface(&mut file, "A:2 pc1:eth0", "domain A, port 2", 96, "icmp");
        packet(&mut file, sample(&[7; 61]));
        let tally = Tally {
            received: 9,
            accepted: 8,
            dropped: 7,
            written: 1,
        };
        let before = file.len();
        statistics(&mut file, 1, Duration::new(1_700_000_001, 5), &tally);
        assert_eq!(file.len() - before, STATISTICS_BYTES);
        assert_eq!(split(&file[before..]).unwrap().0.tally(), tally);
        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        let Theirs::InterfaceDescription(first) = reader.next_block().unwrap().unwrap() else {
            panic!()
        };
        assert_eq!(first.snaplen, 0);
        let Theirs::InterfaceDescription(second) = reader.next_block().unwrap().unwrap() else {
            panic!()
        };
        assert_eq!(second.snaplen, 96);
        assert!(
            second
                .options
                .contains(&InterfaceDescriptionOption::IfName("A:2 pc1:eth0".into()))
        );
        let Theirs::EnhancedPacket(frame) = reader.next_block().unwrap().unwrap() else {
            panic!()
        };
        assert_eq!(
            (frame.interface_id, frame.original_len, &frame.data[..]),
            (1, 1514, &[7; 61][..])
        );
        assert_eq!(frame.timestamp, Duration::new(1_700_000_000, 123_456_789));
        assert_eq!(
            frame.options,
            [
                EnhancedPacketOption::Flags(2),
                EnhancedPacketOption::Comment("dropped: queue-full".into())
            ]
        );
        let Theirs::InterfaceStatistics(sum) = reader.next_block().unwrap().unwrap() else {
            panic!()
        };
        assert!(sum.options.contains(&InterfaceStatisticsOption::IsbIfRecv(9)));
        assert!(sum.options.contains(&InterfaceStatisticsOption::IsbIfDrop(7)));
        assert!(reader.next_block().is_none());
    }

    #[test]
    fn the_announced_length_is_the_length() {
        for kept in 0..9 {
            for comment in ["", "a", "abcd"] {
                let mut out = Vec::new();
                packet(
                    &mut out,
                    Packet {
                        comment,
                        ..sample(&[1; 9][..kept])
                    },
                );
                assert_eq!(out.len(), packet_len(kept, comment.len()));
            }
        }
    }

    #[test]
    fn a_block_can_be_taken_apart_and_changed() {
        let mut out = Vec::new();
        packet(&mut out, sample(&[3; 5]));
        let length = out.len();
        packet(&mut out, sample(&[4; 6]));
        set_interface(&mut out, length, 77);
        set_time(&mut out, length, Duration::from_secs(9));
        let (first, rest) = split(&out).unwrap();
        assert_eq!(
            (first.kind, first.interface(), first.frame()),
            (PACKET, 1, &[3; 5][..])
        );
        assert_eq!(first.comment(), "dropped: queue-full");
        assert_eq!(first.wire_len(), 1514);
        let (second, rest) = split(rest).unwrap();
        assert_eq!((second.interface(), second.time()), (77, Duration::from_secs(9)));
        assert!(rest.is_empty() && split(rest).is_none());
        assert!(split(&out[..length - 1]).is_none());
    }
}

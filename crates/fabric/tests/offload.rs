//! Cutting and summing in software, judged by a check written from the RFCs alone.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use fabric::offload::{VNET_HEADER_BYTES, Work};
use proptest::prelude::*;

const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;

/// A frame that a host leaves to its card to finish.
#[derive(Clone, Debug)]
struct Case {
    tags: usize,
    v6: bool,
    udp: bool,
    /// Bytes of IPv4 options or of an IPv6 extension header, in units of 4 or 8.
    options: usize,
    tcp_options: usize,
    flags: u8,
    payload: Vec<u8>,
    segment: u16,
    id: u16,
    sequence: u32,
}

fn cases() -> impl Strategy<Value = Case> {
    let headers = (
        0..=2usize,
        any::<bool>(),
        any::<bool>(),
        0..=3usize,
        0..=10usize,
        any::<u8>(),
    );
    let payload = proptest::collection::vec(any::<u8>(), 0..9000);
    (headers, payload, 1..3000u16, any::<u16>(), any::<u32>()).prop_map(
        |((tags, v6, udp, options, tcp_options, flags), payload, segment, id, sequence)| Case {
            tags,
            v6,
            udp,
            options,
            tcp_options,
            flags,
            payload,
            segment,
            id,
            sequence,
        },
    )
}

impl Case {
    fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    fn l4(&self) -> usize {
        self.l3()
            + if self.v6 {
                40 + 8 * self.options
            } else {
                20 + 4 * self.options
            }
    }

    fn headers(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + 4 * self.tcp_options }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend_from_slice(if tag == 0 {
                &[0x88, 0xa8, 0, 5]
            } else {
                &[0x81, 0, 0, 6]
            });
        }
        let protocol = if self.udp { 17 } else { 6 };
        let behind_ip = self.headers() - self.l4() + self.payload.len();
        if self.v6 {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            let length = u16::try_from(8 * self.options + behind_ip).unwrap();
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&[if self.options > 0 { 60 } else { protocol }, 64]);
            frame.extend((0..32).map(|n| n * 7));
            if self.options > 0 {
                let words = u8::try_from(self.options - 1).unwrap();
                frame.extend_from_slice(&[protocol, words]);
                frame.resize(frame.len() + 8 * self.options - 2, 1);
            }
        } else {
            let words = u8::try_from(5 + self.options).unwrap();
            frame.extend_from_slice(&[0x08, 0x00, 0x40 | words, 0]);
            let length = u16::try_from(self.l4() - self.l3() + behind_ip).unwrap();
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&self.id.to_be_bytes());
            frame.extend_from_slice(&[0x40, 0, 64, protocol, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6]);
            frame.resize(frame.len() + 4 * self.options, 1);
            let sum = !slow_sum(&frame[self.l3()..]);
            frame[self.l3() + 10..self.l3() + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let start = frame.len();
        if self.udp {
            let length = u16::try_from(behind_ip).unwrap().to_be_bytes();
            frame.extend_from_slice(&[0x12, 0x34, 0x56, 0x78, length[0], length[1], 0, 0]);
        } else {
            frame.extend_from_slice(&[0x12, 0x34, 0x56, 0x78]);
            frame.extend_from_slice(&self.sequence.to_be_bytes());
            let words = u8::try_from(5 + self.tcp_options).unwrap();
            frame.extend_from_slice(&[9, 9, 9, 9, words << 4, self.flags, 1, 2, 0, 0, 0, 0]);
            frame.resize(frame.len() + 4 * self.tcp_options, 1);
        }
        assert_eq!(start, self.l4());
        frame.extend_from_slice(&self.payload);
        // The field holds the sum of the pseudo header, as hosts leave it.
        let sum = slow_sum(&pseudo_header(&frame, self.l3(), self.v6, protocol, behind_ip));
        let field = self.l4() + if self.udp { 6 } else { 16 };
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn header(&self, cut: bool) -> [u8; VNET_HEADER_BYTES] {
        let kind = match (cut, self.udp, self.v6) {
            (false, ..) => 0,
            (true, true, _) => UDP,
            (true, false, false) => TCP4,
            (true, false, true) => TCP6,
        };
        let mut header = [1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        let segment = if cut { self.segment } else { 0 };
        let offset: u16 = if self.udp { 6 } else { 16 };
        header[4..6].copy_from_slice(&segment.to_ne_bytes());
        header[6..8].copy_from_slice(&u16::try_from(self.l4()).unwrap().to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
        header
    }

    /// Checks one finished frame with nothing of the code under test, and returns its payload.
    fn judge<'a>(&self, n: usize, last: bool, frame: &'a [u8]) -> &'a [u8] {
        let (l3, l4) = (self.l3(), self.l4());
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let protocol = if self.udp { 17 } else { 6 };
        if self.v6 {
            assert_eq!(usize::from(word(l3 + 4)), frame.len() - l3 - 40);
        } else {
            assert_eq!(usize::from(word(l3 + 2)), frame.len() - l3);
            assert_eq!(word(l3 + 4), self.id.wrapping_add(u16::try_from(n).unwrap()));
            assert_eq!(slow_sum(&frame[l3..l4]), 0xffff, "IPv4 header checksum");
        }
        let mut summed = pseudo_header(frame, l3, self.v6, protocol, frame.len() - l4);
        summed.extend_from_slice(&frame[l4..]);
        assert_eq!(slow_sum(&summed), 0xffff, "transport checksum");
        if self.udp {
            assert_eq!(usize::from(word(l4 + 4)), frame.len() - l4);
            assert_ne!(word(l4 + 6), 0, "no checksum at all");
        } else {
            let sequence = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().unwrap());
            let before = u32::try_from(n * usize::from(self.segment)).unwrap();
            assert_eq!(sequence, self.sequence.wrapping_add(before));
            let mut flags = self.flags;
            flags &= if last { 0xff } else { !0x09 };
            flags &= if n == 0 { 0xff } else { !0x80 };
            assert_eq!(frame[l4 + 13], flags);
        }
        &frame[self.headers()..]
    }
}

fn pseudo_header(frame: &[u8], l3: usize, v6: bool, protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if v6 {
        &frame[l3 + 8..l3 + 40]
    } else {
        &frame[l3 + 12..l3 + 20]
    };
    let mut bytes = addresses.to_vec();
    bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, protocol]);
    bytes
}

/// RFC 1071, word by word.
fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

proptest! {
    #[test]
    fn segments_are_whole_frames_and_nothing_is_lost(case in cases()) {
        let frame = case.frame();
        let work = Work::new(case.header(true), &frame).unwrap();
        prop_assert_eq!(Work::new(work.header(), &frame), Ok(work));
        let count = work.count(frame.len());
        let mut out = vec![0xee; work.longest_segment(frame.len())];
        let mut payload = Vec::new();
        for n in 0..count {
            let length = work.write(&frame, n, &mut out);
            prop_assert!(length <= case.headers() + usize::from(case.segment));
            payload.extend_from_slice(case.judge(n, n + 1 == count, &out[..length]));
        }
        prop_assert_eq!(payload, case.payload);
    }

    #[test]
    fn a_checksum_is_completed(case in cases()) {
        let frame = case.frame();
        let work = Work::new(case.header(false), &frame).unwrap();
        prop_assert_eq!((work.count(frame.len()), work.longest_segment(frame.len())), (1, frame.len()));
        let mut out = vec![0; frame.len()];
        prop_assert_eq!(work.write(&frame, 0, &mut out), frame.len());
        prop_assert_eq!(case.judge(0, true, &out), &case.payload[..]);
    }

    #[test]
    fn whatever_the_header_says_nothing_panics(
        case in cases(),
        header: [u8; VNET_HEADER_BYTES],
        harm in proptest::collection::vec((0..120usize, any::<u8>()), 0..6),
        kept in 0..9200usize,
        true_header in any::<bool>(),
    ) {
        let mut frame = case.frame();
        for (at, value) in harm {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(kept);
        let header = if true_header { case.header(true) } else { header };
        if let Ok(work) = Work::new(header, &frame) {
            let mut out = vec![0; work.longest_segment(frame.len())];
            let mut total = 0;
            for n in 0..work.count(frame.len()) {
                total += work.write(&frame, n, &mut out);
            }
            prop_assert!(total >= frame.len());
        }
    }
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let case = Case {
        tags: 0,
        v6: false,
        udp: false,
        options: 0,
        tcp_options: 0,
        flags: 0x18,
        payload: vec![7; 4000],
        segment: 1000,
        id: 1,
        sequence: 1,
    };
    let frame = case.frame();
    let good = case.header(true);
    assert!(Work::new(good, &frame).is_ok());
    assert!(Work::new([0; 10], &frame).unwrap().is_done());
    for (at, value) in [(1, TCP6), (1, UDP), (1, 3), (1, 99), (6, 35), (8, 6)] {
        let mut bad = good;
        bad[at] = value;
        assert!(Work::new(bad, &frame).is_err(), "byte {at} = {value}");
    }
    let mut nothing = good;
    nothing[4..6].fill(0);
    assert!(Work::new(nothing, &frame).is_err(), "segments of no bytes");
    let mut fragment = frame.clone();
    fragment[14 + 6] = 0x20;
    assert!(Work::new(good, &fragment).is_err(), "a fragment");
    assert!(Work::new(good, &frame[..50]).is_err(), "a cut header");
    assert!(Work::new(good, &[]).is_err());
}

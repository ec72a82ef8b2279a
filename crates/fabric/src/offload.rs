//! What a port has left undone on a frame: the checksum, or cutting it into segments, and doing it in software.
//!
//! A port that speaks virtio (`IFF_VNET_HDR` of a tap) says so in a header before the frame (virtio 1.2, section
//! 5.1.6). The header is foreign input: [`Work::new`] believes it only as far as the frame bears it out, so that
//! [`Work::write`] cannot fail. TCP and UDP over IPv4 and IPv6 (with extension headers), behind up to two VLAN tags,
//! are cut.
//!
//! ```text
//! | Ethernet, tags | IP header | TCP or UDP header | payload ................................. |
//! 0                l3          l4                  payload
//!   segment n:  the three headers, adapted, and      payload[n * segment_bytes ..][.. segment_bytes]
//! ```

use crate::frame::{Frame, HEADER_BYTES, TAG_BYTES};

/// Bytes of a virtio header without the count of merged buffers.
pub const VNET_HEADER_BYTES: usize = 10;

/// Values of `struct virtio_net_hdr`.
mod vnet {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
    pub(super) const GSO_UDP_L4: u8 = 5;
    /// A flag beside the type: the first segment bears the congestion mark.
    pub(super) const GSO_ECN: u8 = 0x80;
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// What is to be done to a frame, checked against it. The default is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// The checksum covers the bytes from `start` on and belongs `offset` bytes behind that.
    checksum: Option<(u16, u16)>,
    cut: Option<Cut>,
}

/// What a port takes unfinished, to be done by whoever is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Checksums; without them, nothing else either.
    pub checksum: bool,
    /// Cutting TCP over IPv4.
    pub tso4: bool,
    /// Cutting TCP over IPv6.
    pub tso6: bool,
    /// Cutting TCP that bears a congestion mark.
    pub ecn: bool,
    /// Cutting UDP.
    pub uso: bool,
}

impl Offloads {
    /// Nothing: frames are to be whole.
    pub const NONE: Self = Self {
        checksum: false,
        tso4: false,
        tso6: false,
        ecn: false,
        uso: false,
    };

    /// Everything there is.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };
}

/// How a frame is cut into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    /// The type as the header has it.
    kind: u8,
    transport: Transport,
    network: Network,
    l3: u16,
    l4: u16,
    payload: u16,
    segment_bytes: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Network {
    V4,
    V6,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Tcp,
    Udp,
}

/// The header does not go with the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadHeader;

impl Work {
    /// Reads the header (in the machine's byte order) that came with a frame.
    pub fn new(header: [u8; VNET_HEADER_BYTES], frame: &[u8]) -> Result<Self, BadHeader> {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (flags, kind) = (header[0], header[1]);
        let (segment_bytes, start, offset) = (word(4), word(6), word(8));
        let checksum = (flags & vnet::NEEDS_CSUM != 0).then_some((start, offset));
        if let Some((start, offset)) = checksum {
            let field = usize::from(start) + usize::from(offset);
            if usize::from(start) < HEADER_BYTES || field + 2 > frame.len() {
                return Err(BadHeader);
            }
        }
        let cut = match kind & !vnet::GSO_ECN {
            vnet::GSO_NONE => None,
            known => Some(Cut::new(frame, known, kind, segment_bytes).ok_or(BadHeader)?),
        };
        if let (Some(cut), Some((start, offset))) = (cut, checksum)
            && (start, usize::from(offset)) != (cut.l4, cut.transport.checksum_offset())
        {
            return Err(BadHeader);
        }
        Ok(Self { checksum, cut })
    }

    /// True if nothing is to be done.
    pub fn is_done(self) -> bool {
        self.checksum.is_none() && self.cut.is_none()
    }

    /// True if a port that is able to do so much can be left to do it.
    pub fn is_within(self, able: Offloads) -> bool {
        let cut = self.cut.is_none_or(|cut| {
            let kind = match (cut.transport, cut.network) {
                (Transport::Tcp, Network::V4) => able.tso4,
                (Transport::Tcp, Network::V6) => able.tso6,
                (Transport::Udp, _) => able.uso,
            };
            kind && (able.ecn || cut.kind & vnet::GSO_ECN == 0)
        });
        self.is_done() || able.checksum && cut
    }

    /// The header that tells a port what is to be done.
    pub fn header(self) -> [u8; VNET_HEADER_BYTES] {
        let mut header = [0; VNET_HEADER_BYTES];
        let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        if let Some(cut) = self.cut {
            put(2, cut.payload);
            put(4, cut.segment_bytes);
        }
        // A frame that is to be cut is to be summed as well.
        let sum = self.checksum.or_else(|| {
            let cut = self.cut?;
            #[expect(clippy::cast_possible_truncation, reason = "6 or 16")]
            Some((cut.l4, cut.transport.checksum_offset() as u16))
        });
        if let Some((start, offset)) = sum {
            put(6, start);
            put(8, offset);
            header[0] = vnet::NEEDS_CSUM;
        }
        header[1] = self.cut.map_or(vnet::GSO_NONE, |cut| cut.kind);
        header
    }

    /// Length of the longest frame that comes of this one.
    pub fn longest_segment(self, frame_len: usize) -> usize {
        let cut = |cut: Cut| usize::from(cut.payload) + usize::from(cut.segment_bytes);
        self.cut.map_or(frame_len, |it| cut(it).min(frame_len))
    }

    /// Number of frames that come of this one.
    pub fn count(self, frame_len: usize) -> usize {
        match self.cut {
            Some(cut) => (frame_len - usize::from(cut.payload))
                .div_ceil(usize::from(cut.segment_bytes))
                .max(1),
            None => 1,
        }
    }

    /// Writes finished frame `n` of those that come of `frame`, the frame this work was made for, and returns its
    /// length.
    ///
    /// # Panics
    /// If there is no frame `n`, or `out` has no room for [`Work::longest_segment`] bytes.
    pub fn write(self, frame: &[u8], n: usize, out: &mut [u8]) -> usize {
        if let Some(cut) = self.cut {
            return cut.write(frame, n, out);
        }
        out[..frame.len()].copy_from_slice(frame);
        if let Some((field, sum)) = self.sum(frame) {
            out[field..field + 2].copy_from_slice(&sum);
        }
        frame.len()
    }

    /// The checksum that `frame`, the frame this work was made for, lacks as long as it is not cut, and its place.
    pub fn sum(self, frame: &[u8]) -> Option<(usize, [u8; 2])> {
        let (start, offset) = self.checksum?;
        // The field holds the sum of the pseudo header.
        let sum = fold(add(0, &frame[usize::from(start)..]));
        let field = usize::from(start) + usize::from(offset);
        Some((field, not_zero(!sum).to_be_bytes()))
    }
}

impl Transport {
    const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM,
            Self::Udp => UDP_CHECKSUM,
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl Cut {
    /// Finds the headers in the frame itself; `None` if they are not of the kind said, or not whole.
    fn new(frame: &[u8], known: u8, kind: u8, segment_bytes: u16) -> Option<Self> {
        let view = Frame::new(frame).ok()?;
        let l3 = HEADER_BYTES + view.tags().len() * TAG_BYTES;
        let (network, protocol, l4) = match view.ethertype() {
            ETHERTYPE_IPV4 => ipv4(frame, l3)?,
            ETHERTYPE_IPV6 => ipv6(frame, l3)?,
            _ => return None,
        };
        let transport = match (known, network, protocol) {
            (vnet::GSO_TCPV4, Network::V4, TCP) | (vnet::GSO_TCPV6, Network::V6, TCP) => Transport::Tcp,
            (vnet::GSO_UDP_L4, _, UDP) => Transport::Udp,
            _ => return None,
        };
        let payload = match transport {
            Transport::Tcp => {
                let words = usize::from(frame.get(l4 + 12)? >> 4);
                (words >= 5).then_some(l4 + words * 4)?
            }
            Transport::Udp => l4 + 8,
        };
        if payload > frame.len() || segment_bytes == 0 {
            return None;
        }
        Some(Self {
            kind,
            transport,
            network,
            l3: u16::try_from(l3).ok()?,
            l4: u16::try_from(l4).ok()?,
            payload: u16::try_from(payload).ok()?,
            segment_bytes,
        })
    }

    fn write(self, frame: &[u8], n: usize, out: &mut [u8]) -> usize {
        let (l3, l4, headers) = (
            usize::from(self.l3),
            usize::from(self.l4),
            usize::from(self.payload),
        );
        let from = headers + n * usize::from(self.segment_bytes);
        let to = (from + usize::from(self.segment_bytes)).min(frame.len());
        let len = headers + to - from;
        let out = &mut out[..len];
        out[..headers].copy_from_slice(&frame[..headers]);
        out[headers..].copy_from_slice(&frame[from..to]);
        self.adapt_ip(&mut out[l3..], l4 - l3, n);
        let (ip, transport) = out[l3..].split_at_mut(l4 - l3);
        match self.transport {
            Transport::Tcp => {
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let passed = u32::try_from(from - headers).expect("a frame is shorter than 4 GiB");
                transport[4..8].copy_from_slice(&sequence.wrapping_add(passed).to_be_bytes());
                if to < frame.len() {
                    transport[13] &= !TCP_FIN_PSH;
                }
                if n > 0 {
                    transport[13] &= !TCP_CWR;
                }
            }
            Transport::Udp => {
                let length = low_word(transport.len()).to_be_bytes();
                transport[4..6].copy_from_slice(&length);
            }
        }
        let field = self.transport.checksum_offset();
        transport[field..field + 2].fill(0);
        let sum = add(self.pseudo_header(ip, transport.len()), transport);
        transport[field..field + 2].copy_from_slice(&not_zero(!fold(sum)).to_be_bytes());
        len
    }

    /// Length, number and checksum of the IP header; `ip` goes on to the end of the frame.
    fn adapt_ip(self, ip: &mut [u8], header: usize, n: usize) {
        let length = ip.len();
        match self.network {
            Network::V4 => {
                ip[2..4].copy_from_slice(&low_word(length).to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(low_word(n));
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                ip[10..12].fill(0);
                let sum = !fold(add(0, &ip[..header]));
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Network::V6 => ip[4..6].copy_from_slice(&low_word(length - IPV6_BYTES).to_be_bytes()),
        }
    }

    /// The sum of addresses, protocol and length. Source routes, whose last address would count, are not cut.
    fn pseudo_header(self, ip: &[u8], len: usize) -> u64 {
        let addresses = match self.network {
            Network::V4 => &ip[12..20],
            Network::V6 => &ip[8..40],
        };
        add(u64::from(self.transport.protocol()) + len as u64, addresses)
    }
}

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// The protocol behind an IPv4 header that is whole and no fragment, and where it begins.
fn ipv4(frame: &[u8], l3: usize) -> Option<(Network, u8, usize)> {
    let ip = frame.get(l3..)?.first_chunk::<IPV4_BYTES>()?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    if ip[0] >> 4 != 4 || header < IPV4_BYTES || fragment {
        return None;
    }
    Some((Network::V4, ip[9], l3 + header))
}

/// The same for IPv6, behind the extension headers that may stand before TCP and UDP and change nothing in them:
/// hop-by-hop (0) and destination options (60).
fn ipv6(frame: &[u8], l3: usize) -> Option<(Network, u8, usize)> {
    let ip = frame.get(l3..)?.first_chunk::<IPV6_BYTES>()?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut at) = (ip[6], l3 + IPV6_BYTES);
    while matches!(next, 0 | 60) {
        let extension = frame.get(at..)?.first_chunk::<8>()?;
        next = extension[0];
        at += 8 + usize::from(extension[1]) * 8;
    }
    Some((Network::V6, next, at))
}

/// Adds big-endian words, an odd byte being the high half of one, to a sum that is yet to be folded.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words
        .iter()
        .fold(sum, |sum, word| sum + u64::from(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Ones' complement sum of 16 bits (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    low_word(usize::try_from(sum).expect("16 bits"))
}

/// A checksum of zero would mean that there is none (RFC 768); its other form is always allowed.
const fn not_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

#[expect(clippy::cast_possible_truncation, reason = "the caller has 16 bits to fill")]
const fn low_word(value: usize) -> u16 {
    value as u16
}

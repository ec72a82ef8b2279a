//! The golden captures of `pcaps/`: made here, byte for byte the same each time.
//!
//! `cargo run -p tests --bin golden-captures` writes them; a test checks that the files are what is made here.

use std::time::Duration;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv6Type, PacketBuilder,
    icmpv6::NeighborAdvertisementHeader,
};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, TsResolution};

use crate::frame::{BROADCAST, mac};

/// A golden capture.
#[derive(Debug)]
pub struct Golden {
    /// Its name in `pcaps/`.
    pub file: &'static str,
    /// The protocol tshark finds in each of its frames.
    pub protocol: &'static str,
    /// Its frames, a millisecond apart.
    pub frames: Vec<Vec<u8>>,
}

/// The time of the first frame: 2026-01-01 00:00:00 UTC.
const START: Duration = Duration::from_secs(1_767_225_600);

/// Between two frames.
const STEP: Duration = Duration::from_millis(1);

const A4: [u8; 4] = [10, 0, 0, 1];
const B4: [u8; 4] = [10, 0, 0, 2];
const A6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// All golden captures.
pub fn all() -> Vec<Golden> {
    let golden = |file, protocol, frames| Golden {
        file,
        protocol,
        frames,
    };
    vec![
        golden("arp.pcap", "arp", arp()),
        golden("icmp.pcap", "icmp", pings(&[], &[56, 0, 1472])),
        golden("stp.pcap", "stp", stp()),
        golden("lldp.pcapng", "lldp", lldp()),
        golden("vlan.pcap", "vlan", pings(&[7], &[56, 1472])),
        golden("qinq.pcap", "ieee8021ad", pings(&[100, 7], &[56])),
        golden("jumbo.pcap", "icmp", pings(&[], &[8972])),
        golden("ipv6-nd.pcapng", "icmpv6", neighbours()),
        golden("tcp.pcap", "tcp", session()),
    ]
}

impl Golden {
    /// The file, whole.
    ///
    /// # Panics
    /// Never: memory can be written to.
    pub fn bytes(&self) -> Vec<u8> {
        let frames = self
            .frames
            .iter()
            .zip(0..)
            .map(|(frame, n)| (START + STEP * n, frame));
        let length = |frame: &[u8]| u32::try_from(frame.len()).expect("a short frame");
        if self.file.ends_with(".pcapng") {
            let mut writer = PcapNgWriter::new(Vec::new()).expect("memory");
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![InterfaceDescriptionOption::IfTsResol(9)],
            };
            writer.write_pcapng_block(interface).expect("memory");
            for (timestamp, frame) in frames {
                let block = EnhancedPacketBlock {
                    interface_id: 0,
                    timestamp,
                    original_len: length(frame),
                    data: frame.into(),
                    options: Vec::new(),
                };
                writer.write_pcapng_block(block).expect("memory");
            }
            return writer.into_inner();
        }
        let header = PcapHeader {
            snaplen: 65_535,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::MicroSecond,
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(Vec::new(), header).expect("memory");
        for (time, frame) in frames {
            let packet = PcapPacket::new(time, length(frame), frame);
            writer.write_packet(&packet).expect("memory");
        }
        writer.into_writer()
    }
}

/// A request and its answer, padded as by a real network card.
fn arp() -> Vec<Vec<u8>> {
    let frame = |operation, from: u8, to: u8, dst: [u8; 6], target: [u8; 6]| {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &mac(from),
            &[10, 0, 0, from],
            &target,
            &[10, 0, 0, to],
        );
        let packet = packet.expect("addresses of equal length");
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(from), dst)
            .arp(packet)
            .write(&mut frame)
            .expect("memory");
        frame.resize(60, 0);
        frame
    };
    vec![
        frame(ArpOperation::REQUEST, 1, 2, BROADCAST, [0; 6]),
        frame(ArpOperation::REPLY, 2, 1, mac(1), mac(1)),
    ]
}

/// Echo requests and replies with payloads of these sizes, behind VLAN tags.
fn pings(tags: &[u16], payloads: &[usize]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (&size, seq) in payloads.iter().zip(1..) {
        let payload: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        for reply in [false, true] {
            let (from, to) = if reply { (2, 1) } else { (1, 2) };
            let (source, destination) = if reply { (B4, A4) } else { (A4, B4) };
            let ip = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4(source, destination, 64);
            let ip = if reply {
                ip.icmpv4_echo_reply(0x2f2f, seq)
            } else {
                ip.icmpv4_echo_request(0x2f2f, seq)
            };
            let mut frame = Vec::new();
            ip.write(&mut frame, &payload).expect("memory");
            frames.push(with_tags(&frame, tags));
        }
    }
    frames
}

/// Puts VLAN tags behind the addresses: the outer of two is a service tag (IEEE 802.1ad).
fn with_tags(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (place, tag) in tags.iter().enumerate() {
        let kind: u16 = if place + 1 < tags.len() { 0x88a8 } else { 0x8100 };
        tagged.extend(kind.to_be_bytes());
        tagged.extend(tag.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// A bridge that takes itself for the root, and a change of topology (IEEE 802.1D-2004, clause 9).
fn stp() -> Vec<Vec<u8>> {
    let bpdu = |body: &[u8]| {
        let length = u16::try_from(3 + body.len()).expect("a short frame");
        let mut frame = [&[0x01, 0x80, 0xc2, 0, 0, 0][..], &mac(9), &length.to_be_bytes()].concat();
        frame.extend([0x42, 0x42, 0x03]);
        frame.extend(body);
        frame.resize(60, 0);
        frame
    };
    let bridge = [&[0x80, 0x00][..], &mac(9)].concat();
    let mut configuration = vec![0, 0, 0, 0, 0];
    configuration.extend(&bridge);
    configuration.extend([0, 0, 0, 0]);
    configuration.extend(&bridge);
    // Port; age, greatest age, hello time and delay in units of 1/256 s.
    configuration.extend([0x80, 0x01, 0, 0, 20, 0, 2, 0, 15, 0]);
    vec![bpdu(&configuration), bpdu(&[0, 0, 0, 0x80])]
}

/// One announcement: chassis, port, time to live, system name, end (IEEE 802.1AB, clause 8).
fn lldp() -> Vec<Vec<u8>> {
    let mut frame = [&[0x01, 0x80, 0xc2, 0, 0, 0x0e][..], &mac(9), &[0x88, 0xcc]].concat();
    let mut tlv = |kind: u16, value: &[u8]| {
        let length = u16::try_from(value.len()).expect("a short value");
        frame.extend((kind << 9 | length).to_be_bytes());
        frame.extend(value);
    };
    tlv(1, &[&[4][..], &mac(9)].concat());
    tlv(2, b"\x05eth0");
    tlv(3, &120_u16.to_be_bytes());
    tlv(5, b"pc9");
    tlv(0, b"");
    frame.resize(60, 0);
    vec![frame]
}

/// A neighbour is asked for and answers (RFC 4861): link-layer addresses as options.
fn neighbours() -> Vec<Vec<u8>> {
    let message = |from: u8, dst: [u8; 6], ip: ([u8; 16], [u8; 16]), kind, subject: [u8; 16], option: u8| {
        let body = [&subject[..], &[option, 1], &mac(from)].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(from), dst)
            .ipv6(ip.0, ip.1, 255)
            .icmpv6(kind)
            .write(&mut frame, &body)
            .expect("memory");
        frame
    };
    // The solicited-node address of B and its group.
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    let dst = [0x33, 0x33, 0xff, 0, 0, 2];
    let here = Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
        router: false,
        solicited: true,
        r#override: true,
    });
    vec![
        message(1, dst, (A6, group), Icmpv6Type::NeighborSolicitation, B6, 1),
        message(2, mac(1), (B6, A6), here, B6, 2),
    ]
}

/// A connection from its beginning to its end: hello in either direction.
fn session() -> Vec<Vec<u8>> {
    let (mut a, mut b) = (1000_u32, 9000_u32);
    let mut frames = Vec::new();
    let mut send = |from_a: bool, syn: bool, fin: bool, payload: &[u8]| {
        let (next, acknowledged) = if from_a { (&mut a, b) } else { (&mut b, a) };
        let (from, to, source, destination) = if from_a { (1, 2, A4, B4) } else { (2, 1, B4, A4) };
        let (source_port, destination_port) = if from_a { (40_000, 7) } else { (7, 40_000) };
        let ethernet = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4(source, destination, 64);
        let mut tcp = ethernet.tcp(source_port, destination_port, *next, 64_240);
        if syn {
            tcp = tcp.syn();
        }
        if fin {
            tcp = tcp.fin();
        }
        if !(syn && from_a) {
            tcp = tcp.ack(acknowledged);
        }
        if !payload.is_empty() {
            tcp = tcp.psh();
        }
        *next += u32::try_from(payload.len()).expect("a short payload") + u32::from(syn || fin);
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).expect("memory");
        frames.push(frame);
    };
    send(true, true, false, b"");
    send(false, true, false, b"");
    send(true, false, false, b"");
    send(true, false, false, b"hello\n");
    send(false, false, false, b"hello\n");
    send(true, false, true, b"");
    send(false, false, true, b"");
    send(true, false, false, b"");
    frames
}

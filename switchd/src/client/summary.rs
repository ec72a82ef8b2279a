//! What a frame is about, in a few words: for people without Wireshark at hand.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, LinkSlice, TcpSlice, TransportSlice,
};
use fabric::MacAddr;

/// A frame in words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Summary {
    /// Who speaks: the IP address, or the station's without one.
    pub(super) src: String,
    /// To whom.
    pub(super) dst: String,
    /// The highest protocol that is known.
    pub(super) protocol: String,
    /// What is said.
    pub(super) info: String,
}

/// Sums a frame up. What was cut off is not missed; what cannot be understood is named by its number.
pub(super) fn summarise(frame: &[u8]) -> Summary {
    let mut summary = Summary {
        protocol: "?".to_owned(),
        ..Summary::default()
    };
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        summary.info = "no whole header".to_owned();
        return summary;
    };
    if let Some(LinkSlice::Ethernet2(link)) = &packet.link {
        summary.src = MacAddr(link.source()).to_string();
        summary.dst = MacAddr(link.destination()).to_string();
    }
    let vlans = packet.vlan_ids();
    describe(&packet, &mut summary);
    for vlan in vlans.iter().rev() {
        summary.info = format!("vlan {} {}", vlan.value(), summary.info)
            .trim_end()
            .to_owned();
    }
    summary
}

fn describe(packet: &LaxSlicedPacket<'_>, summary: &mut Summary) {
    match &packet.net {
        Some(LaxNetSlice::Arp(arp)) => {
            summary.protocol = "ARP".to_owned();
            summary.info = arp_info(arp);
            return;
        }
        Some(LaxNetSlice::Ipv4(ip)) => {
            summary.src = ip.header().source_addr().to_string();
            summary.dst = ip.header().destination_addr().to_string();
            summary.protocol = known(format!("{:?}", ip.payload_ip_number()));
            if ip.is_payload_fragmented() {
                let offset = u32::from(ip.header().fragments_offset().value()) * 8;
                summary.info = format!("fragment at {offset}");
            }
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            summary.src = ip.header().source_addr().to_string();
            summary.dst = ip.header().destination_addr().to_string();
            summary.protocol = known(format!("{:?}", ip.payload().ip_number));
        }
        None => return link_only(packet, summary),
    }
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            summary.protocol = "ICMP".to_owned();
            summary.info = icmp4_info(&icmp.icmp_type());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            summary.protocol = "ICMPv6".to_owned();
            summary.info = icmp6_info(&icmp.icmp_type(), icmp.payload());
        }
        Some(TransportSlice::Udp(udp)) => {
            summary.protocol = "UDP".to_owned();
            summary.info = format!("{} > {}", udp.source_port(), udp.destination_port());
        }
        Some(TransportSlice::Tcp(tcp)) => {
            summary.protocol = "TCP".to_owned();
            summary.info = tcp_info(tcp);
        }
        _ => {}
    }
}

/// A protocol's keyword without its number: etherparse shows `17 (UDP - ...)`.
fn known(shown: String) -> String {
    match shown.split_once('(') {
        Some((_, name)) => {
            let end = name.find([' ', ')']).unwrap_or(name.len());
            name[..end].to_owned()
        }
        None => format!("IP protocol {shown}"),
    }
}

/// Frames that carry neither IP nor ARP.
fn link_only(packet: &LaxSlicedPacket<'_>, summary: &mut Summary) {
    let Some(payload) = packet.ether_payload() else {
        return;
    };
    let EtherType(kind) = payload.ether_type;
    // Up to 1500 it is a length (IEEE 802.3), and the first bytes of an LLC header follow.
    (summary.protocol, summary.info) = match (kind, payload.payload) {
        (0..=1500, [0x42, 0x42, ..]) => ("STP".to_owned(), stp_info(payload.payload)),
        (0..=1500, [dsap, ssap, ..]) => ("LLC".to_owned(), format!("dsap {dsap:02x} ssap {ssap:02x}")),
        (0x0800, _) => ("IPv4".to_owned(), "cut short".to_owned()),
        (0x86dd, _) => ("IPv6".to_owned(), "cut short".to_owned()),
        (0x0806, _) => ("ARP".to_owned(), "cut short".to_owned()),
        (0x88cc, _) => ("LLDP".to_owned(), String::new()),
        (0x88e5, _) => ("MACsec".to_owned(), String::new()),
        (0x8847 | 0x8848, _) => ("MPLS".to_owned(), String::new()),
        (0x8863 | 0x8864, _) => ("PPPoE".to_owned(), String::new()),
        _ => (format!("0x{kind:04x}"), String::new()),
    };
}

fn stp_info(llc: &[u8]) -> String {
    match llc.get(3..) {
        Some([0, 0, _, 0x80, ..]) => "topology change".to_owned(),
        Some(bpdu @ [0, 0, ..]) if bpdu.len() >= 25 => {
            let mut root = String::new();
            for byte in &bpdu[7..13] {
                let _ = write!(root, "{}{byte:02x}", if root.is_empty() { "" } else { ":" });
            }
            let priority = u16::from_be_bytes([bpdu[5], bpdu[6]]);
            format!("root {priority}.{root}")
        }
        _ => String::new(),
    }
}

fn arp_info(arp: &etherparse::ArpPacketSlice<'_>) -> String {
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => Ipv4Addr::from(octets).to_string(),
        Err(_) => "?".to_owned(),
    };
    let (sender, target) = (
        address(arp.sender_protocol_addr()),
        address(arp.target_protocol_addr()),
    );
    match arp.operation().0 {
        1 => format!("who has {target}, tell {sender}"),
        2 => match <[u8; 6]>::try_from(arp.sender_hw_addr()) {
            Ok(mac) => format!("{sender} is at {}", MacAddr(mac)),
            Err(_) => format!("reply of {sender}"),
        },
        operation => format!("operation {operation}"),
    }
}

fn icmp4_info(kind: &Icmpv4Type) -> String {
    match kind {
        Icmpv4Type::EchoRequest(echo) => format!("echo request {} seq {}", echo.id, echo.seq),
        Icmpv4Type::EchoReply(echo) => format!("echo reply {} seq {}", echo.id, echo.seq),
        Icmpv4Type::DestinationUnreachable(why) => format!("unreachable, code {}", why.code_u8()),
        Icmpv4Type::Redirect(_) => "redirect".to_owned(),
        Icmpv4Type::TimeExceeded(_) => "time exceeded".to_owned(),
        Icmpv4Type::ParameterProblem(_) => "parameter problem".to_owned(),
        Icmpv4Type::TimestampRequest(_) => "timestamp request".to_owned(),
        Icmpv4Type::TimestampReply(_) => "timestamp reply".to_owned(),
        Icmpv4Type::Unknown { type_u8, code_u8, .. } => format!("type {type_u8} code {code_u8}"),
    }
}

fn icmp6_info(kind: &Icmpv6Type, payload: &[u8]) -> String {
    // Neighbour messages name their subject right after the fixed part (RFC 4861).
    let subject = || match payload.first_chunk::<16>() {
        Some(octets) => format!(" {}", Ipv6Addr::from(*octets)),
        None => String::new(),
    };
    match kind {
        Icmpv6Type::EchoRequest(echo) => format!("echo request {} seq {}", echo.id, echo.seq),
        Icmpv6Type::EchoReply(echo) => format!("echo reply {} seq {}", echo.id, echo.seq),
        Icmpv6Type::NeighborSolicitation => format!("who has{}", subject()),
        Icmpv6Type::NeighborAdvertisement(_) => format!("here is{}", subject()),
        Icmpv6Type::RouterSolicitation => "router solicitation".to_owned(),
        Icmpv6Type::RouterAdvertisement(_) => "router advertisement".to_owned(),
        Icmpv6Type::DestinationUnreachable(_) => "unreachable".to_owned(),
        Icmpv6Type::PacketTooBig { mtu } => format!("packet too big, mtu {mtu}"),
        Icmpv6Type::TimeExceeded(_) => "time exceeded".to_owned(),
        Icmpv6Type::Unknown { type_u8: 143, .. } => "multicast listener report".to_owned(),
        Icmpv6Type::Unknown { type_u8, code_u8, .. } => format!("type {type_u8} code {code_u8}"),
        _ => "other".to_owned(),
    }
}

fn tcp_info(tcp: &TcpSlice<'_>) -> String {
    let mut flags = String::new();
    for (set, letter) in [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), '.'),
    ] {
        if set {
            flags.push(letter);
        }
    }
    let (from, to) = (tcp.source_port(), tcp.destination_port());
    format!(
        "{from} > {to} [{flags}] seq {} len {}",
        tcp.sequence_number(),
        tcp.payload().len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn words(frame: &[u8]) -> [String; 4] {
        let Summary {
            src,
            dst,
            protocol,
            info,
        } = summarise(frame);
        [src, dst, protocol, info]
    }

    fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
    }

    #[test]
    fn ip_frames_are_named_by_their_highest_layer() {
        let mut ping = Vec::new();
        let builder = ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder
            .icmpv4_echo_request(7, 1)
            .write(&mut ping, &[0; 8])
            .unwrap();
        assert_eq!(
            words(&ping),
            ["10.0.0.1", "10.0.0.2", "ICMP", "echo request 7 seq 1"]
        );
        let mut syn = Vec::new();
        let builder = ethernet()
            .ipv6([0xfe; 16], [0xfd; 16], 64)
            .tcp(4000, 80, 9, 100)
            .syn();
        builder.write(&mut syn, &[]).unwrap();
        assert_eq!(words(&syn)[2..], ["TCP", "4000 > 80 [S] seq 9 len 0"]);
        let mut tagged = Vec::new();
        let builder = ethernet().single_vlan(5.try_into().unwrap());
        let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(53, 5353);
        builder.write(&mut tagged, &[1; 20]).unwrap();
        assert_eq!(words(&tagged)[2..], ["UDP", "vlan 5 53 > 5353"]);
    }

    #[test]
    fn arp_is_read_out() {
        let mut frame = [0xff; 6].to_vec();
        frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(
            words(&frame),
            [
                "02:00:00:00:00:01",
                "ff:ff:ff:ff:ff:ff",
                "ARP",
                "who has 10.0.0.2, tell 10.0.0.1"
            ]
        );
    }

    #[test]
    fn whatever_comes_has_a_line() {
        assert_eq!(words(&[1; 9])[2..], ["?", "no whole header"]);
        let mut frame = vec![1; 12];
        frame.extend([0x88, 0xb5, 1, 2, 3]);
        assert_eq!(words(&frame)[2], "0x88b5");
        let mut state = 1_u32;
        for length in 0..300 {
            let random = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            };
            let mut frame: Vec<u8> = (0..length).map(random).collect();
            for kind in [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0, 38]] {
                if let Some(place) = frame.get_mut(12..14) {
                    place.copy_from_slice(&kind);
                }
                summarise(&frame);
            }
        }
    }
}

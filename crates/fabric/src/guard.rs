//! Secure ports: what whoever is behind one may send, and that nobody takes another's address.
//!
//! A secure port has ranges of IP addresses. From it come only ARP, IPv4 and IPv6 without VLAN tags, of IP only ICMP,
//! TCP and UDP, all with a source within the ranges (in IPv6 also link-local ones, if there is a range of IPv6), no
//! router advertisements and no redirects. An address, MAC or IP, belongs to the port that used it first, until that
//! port goes or has not used it for the ageing time; secure ports cannot use what belongs to others. Ports that are not
//! secure own the addresses they send from or answer ARP for, and may use any.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::batch::Batch;
use crate::frame::{Frame, HEADER_BYTES};
use crate::mac::MacAddr;
use crate::plan::DropReason;
use crate::port::PortId;

/// Addresses one secure port may own.
const MOST_OF_A_PORT: usize = 512;

/// Addresses that ports which are not secure own at most, together; further ones are not protected.
const MOST_OF_OTHERS: usize = 16_384;

/// A range of IP addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    network: IpAddr,
    bits: u8,
}

impl Range {
    /// The addresses whose first `bits` bits are those of `network`; `None` if it has not so many.
    pub fn new(network: IpAddr, bits: u8) -> Option<Self> {
        let most = if network.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { network, bits })
    }

    /// True if a machine may have this address: it is within, and not the first or last of an IPv4 network.
    fn has_host(self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let host = u32::MAX.checked_shr(self.bits.into()).unwrap_or(0);
                let (network, address) = (network.to_bits(), address.to_bits());
                let first_or_last = self.bits < 31 && (address & host == 0 || address & host == host);
                (network ^ address) & !host == 0 && !first_or_last
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let host = u128::MAX.checked_shr(self.bits.into()).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & !host == 0
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Address {
    Mac(MacAddr),
    Ip(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    port: PortId,
    seen: Duration,
}

/// The secure ports of a domain, and who owns which address.
#[derive(Debug, Default)]
pub struct Guard {
    ranges: HashMap<PortId, Vec<Range>>,
    owners: HashMap<Address, Owner>,
    /// Entries of `owners`, by port; those of ports that are not secure stand under `OTHERS`.
    owned: HashMap<PortId, usize>,
}

/// Stands for all ports that are not secure.
const OTHERS: PortId = PortId(u32::MAX);

impl Guard {
    /// True if no port is secure.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Makes a port a secure one, or, without ranges, an open one.
    pub fn secure(&mut self, port: PortId, ranges: Vec<Range>) {
        self.forget(port);
        if !ranges.is_empty() {
            self.ranges.insert(port, ranges);
        }
    }

    /// A port has gone, and what it owned is free.
    pub fn forget(&mut self, port: PortId) {
        self.ranges.remove(&port);
        if self.ranges.is_empty() {
            *self = Self::default();
            return;
        }
        self.owners.retain(|_, owner| owner.port != port);
        self.recount();
    }

    /// Refuses the frames of a batch that its port may not send.
    pub fn check(&mut self, batch: &mut Batch, ingress: PortId, now: Duration, ageing: Duration) {
        for i in 0..batch.len() {
            if batch.is_cut(i) || batch.refusal(i).is_some() {
                continue;
            }
            let Ok(frame) = Frame::new(batch.frame(i)) else {
                continue;
            };
            let verdict = match self.ranges.get(&ingress) {
                Some(ranges) => {
                    let claim = judge(frame, ranges);
                    claim.and_then(|ip| self.claim(ingress, frame.src(), ip, now, ageing))
                }
                None => {
                    self.note(ingress, frame, now, ageing);
                    Ok(())
                }
            };
            if let Err(reason) = verdict {
                batch.refuse(i, reason);
            }
        }
    }

    /// A secure port uses these addresses.
    fn claim(
        &mut self,
        port: PortId,
        mac: MacAddr,
        ip: Option<IpAddr>,
        now: Duration,
        ageing: Duration,
    ) -> Result<(), DropReason> {
        let addresses = [Some(Address::Mac(mac)), ip.map(Address::Ip)];
        let addresses = || addresses.into_iter().flatten();
        if addresses().all(|address| self.may_have(port, address, now, ageing)) {
            for address in addresses() {
                self.give(port, port, address, now);
            }
            return Ok(());
        }
        Err(DropReason::Spoofed)
    }

    fn may_have(&self, port: PortId, address: Address, now: Duration, ageing: Duration) -> bool {
        match self.owners.get(&address) {
            Some(owner) if owner.port == port => true,
            Some(owner) if now < owner.seen + ageing => false,
            _ => self.owned.get(&port).is_none_or(|&count| count < MOST_OF_A_PORT),
        }
    }

    /// An open port uses these addresses, whatever it may.
    fn note(&mut self, port: PortId, frame: Frame<'_>, now: Duration, ageing: Duration) {
        let ip = (frame.ethertype() == ARP)
            .then(|| Arp::read(payload(frame)))
            .flatten()
            .map(|arp| IpAddr::V4(arp.sender_ip))
            .filter(|ip| !ip.is_unspecified());
        let mac = Some(frame.src()).filter(|mac| !mac.is_multicast());
        for address in [mac.map(Address::Mac), ip.map(Address::Ip)].into_iter().flatten() {
            let full = self
                .owned
                .get(&OTHERS)
                .is_some_and(|&count| count >= MOST_OF_OTHERS);
            match self.owners.get(&address) {
                Some(owner) if owner.port != port && now < owner.seen + ageing => {}
                None if full => {}
                _ => self.give(port, OTHERS, address, now),
            }
        }
    }

    fn give(&mut self, port: PortId, account: PortId, address: Address, now: Duration) {
        let owner = Owner { port, seen: now };
        match self.owners.insert(address, owner) {
            Some(before) if before.port == port => {}
            Some(_) => self.recount(),
            None => *self.owned.entry(account).or_default() += 1,
        }
    }

    /// Rare: an address has changed hands, or a port has gone.
    fn recount(&mut self) {
        self.owned.clear();
        for owner in self.owners.values() {
            let account = if self.ranges.contains_key(&owner.port) {
                owner.port
            } else {
                OTHERS
            };
            *self.owned.entry(account).or_default() += 1;
        }
    }
}

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn payload(frame: Frame<'_>) -> &[u8] {
    &frame.bytes()[HEADER_BYTES..]
}

/// Looks whether a frame may be sent by whoever has these ranges, and which IP address it claims in doing so.
fn judge(frame: Frame<'_>, ranges: &[Range]) -> Result<Option<IpAddr>, DropReason> {
    if frame.src().is_multicast() {
        return Err(DropReason::Spoofed);
    }
    let within = |address: IpAddr| ranges.iter().any(|range| range.has_host(address));
    // A tag would make it a type of its own, which none of these is.
    if frame.tags().len() > 0 {
        return Err(DropReason::NotAllowed);
    }
    let claim = match frame.ethertype() {
        ARP => {
            let arp = Arp::read(payload(frame)).ok_or(DropReason::NotAllowed)?;
            if arp.sender_mac != frame.src() {
                return Err(DropReason::Spoofed);
            }
            // Without an address: it asks whether one is free (RFC 5227).
            (!arp.sender_ip.is_unspecified()).then_some(IpAddr::V4(arp.sender_ip))
        }
        IPV4 => ipv4(payload(frame))?.map(IpAddr::V4),
        IPV6 if ranges.iter().any(|range| range.network.is_ipv6()) => {
            let link_local = |address: Ipv6Addr| address.is_unicast_link_local();
            let (source, target) = ipv6(payload(frame))?;
            for address in [source, target].into_iter().flatten() {
                if !link_local(address) && !within(IpAddr::V6(address)) {
                    return Err(DropReason::Spoofed);
                }
            }
            return Ok(target.or(source).map(IpAddr::V6));
        }
        _ => return Err(DropReason::NotAllowed),
    };
    match claim {
        Some(address) if !within(address) => Err(DropReason::Spoofed),
        claim => Ok(claim),
    }
}

/// The sender of an ARP message for Ethernet and IPv4.
struct Arp {
    sender_mac: MacAddr,
    sender_ip: Ipv4Addr,
}

impl Arp {
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<28>()?;
        if bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let (mac, ip) = (bytes[8..].first_chunk()?, bytes[14..].first_chunk::<4>()?);
        Some(Self {
            sender_mac: MacAddr(*mac),
            sender_ip: Ipv4Addr::from(*ip),
        })
    }
}

/// The source; none for a machine that asks DHCP for an address.
fn ipv4(bytes: &[u8]) -> Result<Option<Ipv4Addr>, DropReason> {
    let ip = bytes.first_chunk::<20>().ok_or(DropReason::NotAllowed)?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header < ip.len() || !matches!(ip[9], ICMP | TCP | UDP) {
        return Err(DropReason::NotAllowed);
    }
    let source = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    if !source.is_unspecified() {
        return Ok(Some(source));
    }
    let whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff == 0;
    let ports = bytes.get(header..header + 4);
    if ip[9] == UDP && whole && ports == Some(&[0, 68, 0, 67]) {
        return Ok(None);
    }
    Err(DropReason::Spoofed)
}

/// The source, if it has one, and the address a neighbour advertisement is about.
fn ipv6(bytes: &[u8]) -> Result<(Option<Ipv6Addr>, Option<Ipv6Addr>), DropReason> {
    const NO: DropReason = DropReason::NotAllowed;
    let address =
        |at: usize| -> Option<Ipv6Addr> { Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?)) };
    let ip = bytes.first_chunk::<40>().ok_or(NO)?;
    if ip[0] >> 4 != 6 {
        return Err(NO);
    }
    let source = address(8).ok_or(NO)?;
    let (mut next, mut at) = (ip[6], ip.len());
    let mut later_fragment = false;
    while !later_fragment && matches!(next, 0 | 44 | 60) {
        let extension = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>).ok_or(NO)?;
        later_fragment = next == 44 && u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0;
        at += if next == 44 {
            8
        } else {
            8 + usize::from(extension[1]) * 8
        };
        next = extension[0];
    }
    if !matches!(next, TCP | UDP | ICMPV6) {
        return Err(NO);
    }
    let kind = match next {
        ICMPV6 if !later_fragment => Some(*bytes.get(at).ok_or(NO)?),
        _ => None,
    };
    let target = match kind {
        // Router advertisement and redirect: the way to everybody's addresses.
        Some(134 | 137) => return Err(DropReason::Spoofed),
        Some(136) => Some(address(at + 8).ok_or(NO)?),
        _ => None,
    };
    // Without a source: router and neighbour solicitations, and reports of the groups it listens to.
    if source.is_unspecified() {
        return match kind {
            Some(133 | 135 | 143) => Ok((None, target)),
            _ => Err(DropReason::Spoofed),
        };
    }
    Ok((Some(source), target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: Duration = Duration::from_secs(100);

    fn mac(n: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, n]
    }

    fn frame(src: u8, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(mac(src));
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn arp(src: u8, sender: u8, ip: [u8; 4]) -> Vec<u8> {
        let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 2];
        payload.extend(mac(sender));
        payload.extend(ip);
        payload.extend([0; 10]);
        frame(src, ARP, &payload)
    }

    fn v4(src: u8, ip: [u8; 4], protocol: u8) -> Vec<u8> {
        let mut payload = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        payload.extend(ip);
        payload.extend([255; 4]);
        payload.extend([0, 68, 0, 67, 0, 8, 0, 0]);
        frame(src, IPV4, &payload)
    }

    fn v6(src: u8, ip: &str, next: u8, rest: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x60, 0, 0, 0, 0, 8, next, 255];
        payload.extend(ip.parse::<Ipv6Addr>().unwrap().octets());
        payload.extend([0; 16]);
        payload.extend(rest);
        frame(src, IPV6, &payload)
    }

    fn guard() -> Guard {
        let mut guard = Guard::default();
        let range = |text: &str, bits| Range::new(text.parse().unwrap(), bits).unwrap();
        guard.secure(PortId(1), vec![range("10.0.0.0", 24), range("fd00::", 64)]);
        guard.secure(PortId(2), vec![range("10.0.0.0", 24)]);
        guard
    }

    fn verdict(guard: &mut Guard, port: u32, at: u64, frame: &[u8]) -> Option<DropReason> {
        let mut batch = Batch::new(1522, 1);
        batch.push(frame);
        guard.check(&mut batch, PortId(port), Duration::from_secs(at), AGEING);
        batch.refusal(0)
    }

    #[test]
    fn a_secure_port_sends_what_it_may() {
        let mut guard = guard();
        for good in [
            arp(1, 1, [10, 0, 0, 1]),
            arp(1, 1, [0; 4]),
            v4(1, [10, 0, 0, 1], ICMP),
            v4(1, [10, 0, 0, 7], TCP),
            v4(1, [0; 4], UDP),
            v6(1, "fd00::1", TCP, &[0; 20]),
            v6(1, "fe80::1", ICMPV6, &[135; 24]),
            v6(1, "::", ICMPV6, &[135; 24]),
            v6(1, "fd00::1", 44, &[ICMPV6, 0, 0, 8, 0, 0, 0, 0, 134]),
        ] {
            assert_eq!(verdict(&mut guard, 1, 0, &good), None, "{good:?}");
        }
    }

    #[test]
    fn a_secure_port_sends_nothing_else() {
        let mut guard = guard();
        let mut tagged = v4(1, [10, 0, 0, 1], TCP);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let mut multicast = v4(1, [10, 0, 0, 1], TCP);
        multicast[6] = 3;
        let mut advertisement = vec![136, 0, 0, 0, 0, 0, 0, 0];
        advertisement.extend("fd01::9".parse::<Ipv6Addr>().unwrap().octets());
        for (bad, reason) in [
            (frame(1, 0x88b5, &[0; 46]), DropReason::NotAllowed),
            (frame(1, ARP, &[0; 27]), DropReason::NotAllowed),
            (frame(1, IPV4, &[0x45; 19]), DropReason::NotAllowed),
            (v4(1, [10, 0, 0, 1], 2), DropReason::NotAllowed),
            (tagged, DropReason::NotAllowed),
            (multicast, DropReason::Spoofed),
            (arp(1, 9, [10, 0, 0, 1]), DropReason::Spoofed),
            (arp(1, 1, [10, 0, 1, 1]), DropReason::Spoofed),
            (v4(1, [10, 0, 0, 0], TCP), DropReason::Spoofed),
            (v4(1, [10, 0, 0, 255], TCP), DropReason::Spoofed),
            (v4(1, [0; 4], TCP), DropReason::Spoofed),
            (v6(1, "fd01::1", TCP, &[0; 20]), DropReason::Spoofed),
            (v6(1, "::", TCP, &[0; 20]), DropReason::Spoofed),
            (v6(1, "fe80::1", ICMPV6, &[134; 24]), DropReason::Spoofed),
            (
                v6(1, "fe80::1", 0, &[ICMPV6, 0, 0, 0, 0, 0, 0, 0, 137]),
                DropReason::Spoofed,
            ),
            (v6(1, "fe80::1", ICMPV6, &advertisement), DropReason::Spoofed),
            (v6(1, "fd00::1", 89, &[0; 20]), DropReason::NotAllowed),
            (
                v6(1, "fd00::1", 0, &[ICMPV6, 200, 0, 0, 0, 0, 0, 0]),
                DropReason::NotAllowed,
            ),
        ] {
            assert_eq!(verdict(&mut guard, 1, 0, &bad), Some(reason), "{bad:?}");
        }
        assert_eq!(
            verdict(&mut guard, 2, 0, &v6(2, "fe80::1", ICMPV6, &[135; 24])),
            Some(DropReason::NotAllowed),
            "no range of IPv6"
        );
        let anything = frame(1, 0x88b5, &[0; 46]);
        assert_eq!(verdict(&mut guard, 3, 0, &anything), None, "an open port");
    }

    #[test]
    fn an_address_belongs_to_one_port() {
        let mut guard = guard();
        let (mine, yours) = (v4(1, [10, 0, 0, 1], TCP), v4(2, [10, 0, 0, 1], TCP));
        assert_eq!(verdict(&mut guard, 1, 0, &mine), None);
        assert_eq!(verdict(&mut guard, 2, 1, &yours), Some(DropReason::Spoofed));
        let same_mac = v4(1, [10, 0, 0, 9], TCP);
        assert_eq!(verdict(&mut guard, 2, 1, &same_mac), Some(DropReason::Spoofed));
        // The gateway on an open port has told its address.
        assert_eq!(verdict(&mut guard, 3, 1, &arp(3, 3, [10, 0, 0, 254])), None);
        let gateway = arp(2, 2, [10, 0, 0, 254]);
        assert_eq!(verdict(&mut guard, 2, 2, &gateway), Some(DropReason::Spoofed));
        // Unused for the ageing time, it is free; so it is when its port goes.
        assert_eq!(verdict(&mut guard, 2, 101, &yours), None);
        assert_eq!(verdict(&mut guard, 1, 102, &mine), Some(DropReason::Spoofed));
        guard.forget(PortId(2));
        assert_eq!(verdict(&mut guard, 1, 103, &mine), None);
        guard.forget(PortId(1));
        assert!(guard.is_empty() && guard.owners.is_empty());
    }

    #[test]
    fn a_port_cannot_own_without_end() {
        let mut guard = Guard::default();
        guard.secure(
            PortId(1),
            vec![Range::new("10.0.0.0".parse().unwrap(), 8).unwrap()],
        );
        let refused = (0..2000_u32)
            .filter(|n| {
                let [_, _, high, low] = n.to_be_bytes();
                verdict(&mut guard, 1, 0, &v4(1, [10, 1, high, low], TCP)).is_some()
            })
            .count();
        assert!(
            (2000 - MOST_OF_A_PORT..=2000 - MOST_OF_A_PORT + 2).contains(&refused),
            "{refused}"
        );
        for n in 0..20_000_u32 {
            let mut frame = v4(1, [1, 2, 3, 4], TCP);
            frame[7..11].copy_from_slice(&n.to_be_bytes());
            assert_eq!(verdict(&mut guard, 2, 0, &frame), None);
        }
        assert!(guard.owners.len() <= MOST_OF_A_PORT + 1 + MOST_OF_OTHERS);
    }
}

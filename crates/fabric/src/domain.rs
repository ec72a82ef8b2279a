//! A collision domain: a hub or a learning switch.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::batch::Batch;
use crate::fdb::Fdb;
use crate::frame::{Frame, HEADER_BYTES, MOST_TAGS, TAG_BYTES};
use crate::frames::FrameSet;
use crate::mac::MacAddr;
use crate::plan::{DropReason, Plan};
use crate::port::{CHOSEN_PORT_LIMIT, PortId, PortSet};

/// How a domain forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Every frame to every other port.
    #[default]
    Hub,
    /// To the port the destination was last heard on; to every other port while that is unknown.
    Switch,
}

/// What a domain is made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Hub or switch.
    pub mode: Mode,
    /// Largest payload of a frame, in bytes, without header and VLAN tags.
    pub mtu: u32,
    /// A station not heard of for longer than this is forgotten.
    pub ageing: Duration,
    /// Most entries of the forwarding table.
    pub fdb_limit: usize,
    /// Most entries of the forwarding table for one port.
    pub fdb_port_limit: usize,
}

impl Settings {
    /// The MTUs a domain may have: from the smallest that carries IPv4 (RFC 791) to the largest of a Linux tap.
    pub const MTUS: RangeInclusive<u32> = 68..=65_521;

    /// Checks that the values make sense. Nothing breaks if they do not; the domain is merely of little use.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !Self::MTUS.contains(&self.mtu) {
            return Err(SettingsError::Mtu(self.mtu));
        }
        if self.fdb_limit == 0 || self.fdb_port_limit == 0 {
            return Err(SettingsError::NoFdb);
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            mtu: 1500,
            ageing: Duration::from_secs(100),
            fdb_limit: 8192,
            fdb_port_limit: 2048,
        }
    }
}

impl Settings {
    /// Length of the longest frame it forwards: a full payload behind two VLAN tags.
    pub fn longest_frame(&self) -> usize {
        self.mtu as usize + HEADER_BYTES + MOST_TAGS * TAG_BYTES
    }
}

/// A setting that makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettingsError {
    /// This MTU is out of range.
    Mtu(u32),
    /// The forwarding table could hold nothing.
    NoFdb,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mtu(mtu) => {
                let (least, most) = (Settings::MTUS.start(), Settings::MTUS.end());
                write!(f, "MTU {mtu} is not within {least} to {most}")
            }
            Self::NoFdb => f.write_str("the forwarding table needs room for at least one entry"),
        }
    }
}

impl std::error::Error for SettingsError {}

/// A domain: its ports, what it has learnt, and how it forwards.
#[derive(Debug)]
pub struct Domain {
    settings: Settings,
    mtu: usize,
    ports: PortSet,
    fdb: Fdb,
}

impl Domain {
    /// A domain without ports.
    pub fn new(settings: Settings) -> Self {
        Self {
            mtu: settings.mtu as usize,
            ports: PortSet::default(),
            fdb: Fdb::new(settings.ageing, settings.fdb_limit, settings.fdb_port_limit),
            settings,
        }
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Length of the longest frame it forwards.
    pub fn longest_frame(&self) -> usize {
        self.settings.longest_frame()
    }

    /// Attaches a port, under the lowest free number.
    pub fn attach(&mut self) -> PortId {
        let port = self.ports.insert_lowest();
        self.fdb.open_port(port);
        port
    }

    /// Attaches a port under the number it had before; false if that is in use, or above 65 535.
    pub fn attach_at(&mut self, port: PortId) -> bool {
        let attached = port.0 < CHOSEN_PORT_LIMIT && self.ports.insert(port);
        if attached {
            self.fdb.open_port(port);
        }
        attached
    }

    /// Detaches a port and forgets every station behind it; false if it was not attached.
    pub fn detach(&mut self, port: PortId) -> bool {
        let detached = self.ports.remove(port);
        if detached {
            self.fdb.forget_port(port);
        }
        detached
    }

    /// The attached ports, ascending.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = PortId> + '_ {
        self.ports.iter()
    }

    /// Decides where the frames of a batch go.
    pub fn forward(&mut self, batch: &Batch, ingress: PortId, now: Duration, plan: &mut Plan) {
        plan.begin(self.ports.places());
        if !self.ports.contains(ingress) {
            plan.discard(batch.all(), DropReason::Detached);
            return;
        }
        let mut last = None;
        for i in batch.all() {
            let frame = match self.admit(batch, i) {
                Ok(frame) => frame,
                Err(reason) => {
                    plan.discard(FrameSet(1 << i), reason);
                    continue;
                }
            };
            plan.accept(i);
            match self.decide(frame, ingress, now, &mut last) {
                Way::Flood => plan.flood(i),
                Way::To(port) => plan.send(i, port),
                Way::Back => plan.discard(FrameSet(1 << i), DropReason::SamePort),
            }
        }
        plan.flood_to(self.ports.iter().filter(|&port| port != ingress));
    }

    /// Forgets the stations that have aged. They are not found before either; this gives their room back.
    pub fn expire(&mut self, now: Duration) {
        self.fdb.expire(now);
    }

    /// The forwarding table; that of a hub stays empty unless static entries are put there, which it does not heed.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// The forwarding table, to change it by hand.
    pub fn fdb_mut(&mut self) -> &mut Fdb {
        &mut self.fdb
    }

    /// The stations behind a port.
    pub fn stations_of(&self, port: PortId) -> impl Iterator<Item = MacAddr> + '_ {
        self.fdb.stations_of(port)
    }

    /// Frame `i` of a batch, if the domain carries frames of its length.
    fn admit<'a>(&self, batch: &'a Batch, i: usize) -> Result<Frame<'a>, DropReason> {
        if let Some(reason) = batch.refusal(i) {
            return Err(reason);
        }
        if batch.is_cut(i) {
            return Err(DropReason::Giant);
        }
        let bytes = batch.frame(i);
        let Ok(frame) = Frame::new(bytes) else {
            return Err(DropReason::Runt);
        };
        // Of a frame that is to be cut, the longest segment counts.
        let longest = batch.work(i).longest_segment(batch.wire_len(i));
        let headers = bytes.len() - frame.payload_len();
        if longest > self.mtu + HEADER_BYTES && longest - headers > self.mtu {
            return Err(DropReason::Giant);
        }
        Ok(frame)
    }

    /// Where a frame goes. `last` is the decision about the frame before it, from the same port at the same time:
    /// between two frames of one flow nothing can have changed.
    fn decide(
        &mut self,
        frame: Frame<'_>,
        ingress: PortId,
        now: Duration,
        last: &mut Option<Decision>,
    ) -> Way {
        if self.settings.mode == Mode::Hub {
            return Way::Flood;
        }
        let (src, dst) = (frame.src(), frame.dst());
        match last {
            Some(last) if (last.src, last.dst) == (src, dst) => return last.way,
            Some(last) if last.src == src => {}
            _ => self.fdb.learn(src, ingress, now),
        }
        let way = self.way_to(dst, ingress, now);
        *last = Some(Decision { src, dst, way });
        way
    }

    fn way_to(&self, dst: MacAddr, ingress: PortId, now: Duration) -> Way {
        if dst.is_multicast() {
            return Way::Flood;
        }
        match self.fdb.lookup(dst, now) {
            Some(port) if port == ingress => Way::Back,
            Some(port) => Way::To(port),
            None => Way::Flood,
        }
    }
}

/// What was decided about a frame.
#[derive(Clone, Copy)]
struct Decision {
    src: MacAddr,
    dst: MacAddr,
    way: Way,
}

/// Where a frame goes.
#[derive(Clone, Copy)]
enum Way {
    /// To every port but the one it came from.
    Flood,
    /// To one port.
    To(PortId),
    /// Nowhere: its destination has heard it already.
    Back,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: MacAddr = MacAddr([1, 0x80, 0xc2, 0, 0, 0]);

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    fn frame(dst: MacAddr, src: MacAddr, tail: &[u8]) -> Vec<u8> {
        [&dst.0[..], &src.0, tail].concat()
    }

    /// A domain with ports 0 to 2.
    fn domain(mode: Mode) -> Domain {
        let mut domain = Domain::new(Settings {
            mode,
            ..Settings::default()
        });
        for _ in 0..3 {
            domain.attach();
        }
        domain
    }

    /// Forwards one batch of headers with no payload, and checks that each port gets these frames, as bit masks.
    fn exchange(
        domain: &mut Domain,
        ingress: u32,
        headers: &[(MacAddr, MacAddr)],
        expected: [u64; 3],
    ) -> Plan {
        let frames = headers.iter().map(|&(dst, src)| frame(dst, src, &[8, 0]));
        forward(domain, ingress, frames, expected)
    }

    fn forward(
        domain: &mut Domain,
        ingress: u32,
        frames: impl Iterator<Item = Vec<u8>>,
        expected: [u64; 3],
    ) -> Plan {
        let mut batch = Batch::new(domain.longest_frame(), 64);
        frames.for_each(|frame| assert!(batch.push(&frame)));
        let mut plan = Plan::new();
        domain.forward(&batch, PortId(ingress), Duration::ZERO, &mut plan);
        assert_eq!(
            [0, 1, 2].map(|port| plan.frames_for(PortId(port))),
            expected.map(FrameSet)
        );
        assert_eq!(
            plan.egress().len(),
            expected.iter().filter(|&&mask| mask != 0).count()
        );
        plan
    }

    #[test]
    fn a_hub_sends_to_all_but_the_sender() {
        let mut hub = domain(Mode::Hub);
        hub.fdb_mut().add_static(mac(2), PortId(0)).unwrap();
        let plan = exchange(
            &mut hub,
            1,
            &[(mac(1), mac(2)), (mac(2), mac(1)), (GROUP, GROUP)],
            [0b111, 0, 0b111],
        );
        assert_eq!(plan.accepted(), FrameSet(0b111));
        assert!(plan.drops().is_empty());
        assert_eq!(hub.fdb().len(), 1);
    }

    #[test]
    fn a_switch_floods_until_it_knows() {
        let mut switch = domain(Mode::Switch);
        exchange(
            &mut switch,
            0,
            &[(mac(2), mac(1)), (MacAddr::BROADCAST, mac(1))],
            [0, 0b11, 0b11],
        );
        exchange(
            &mut switch,
            1,
            &[(mac(1), mac(2)), (GROUP, mac(2)), (mac(9), mac(2))],
            [0b111, 0, 0b110],
        );
        exchange(
            &mut switch,
            0,
            &[(mac(2), mac(1)), (mac(2), mac(1))],
            [0, 0b11, 0],
        );
        assert!(switch.stations_of(PortId(1)).eq([mac(2)]));
        // Moved to port 2, and back within one batch's distance.
        exchange(&mut switch, 2, &[(mac(1), mac(2))], [1, 0, 0]);
        exchange(&mut switch, 0, &[(mac(2), mac(1))], [0, 0, 1]);
    }

    #[test]
    fn frames_of_one_batch_see_what_the_earlier_ones_taught() {
        let mut switch = domain(Mode::Switch);
        let headers = [
            (mac(2), mac(1)),
            (mac(1), mac(2)),
            (mac(2), mac(1)),
            (mac(3), mac(1)),
        ];
        let plan = exchange(&mut switch, 0, &headers, [0, 0b1001, 0b1001]);
        assert_eq!(plan.drops().get(DropReason::SamePort), 2);
        assert_eq!(plan.drops().total(), 2);
        assert_eq!(plan.accepted(), FrameSet(0b1111));
    }

    #[test]
    fn a_group_source_is_forwarded_and_not_learnt() {
        let mut switch = domain(Mode::Switch);
        exchange(
            &mut switch,
            0,
            &[(mac(1), GROUP), (mac(1), MacAddr::BROADCAST)],
            [0, 0b11, 0b11],
        );
        assert!(switch.fdb().is_empty());
    }

    #[test]
    fn a_static_entry_beats_learning() {
        let mut switch = domain(Mode::Switch);
        switch.fdb_mut().add_static(mac(1), PortId(2)).unwrap();
        exchange(&mut switch, 0, &[(mac(2), mac(1))], [0, 1, 1]);
        exchange(&mut switch, 1, &[(mac(1), mac(2))], [0, 0, 1]);
        let plan = exchange(&mut switch, 2, &[(mac(1), mac(3))], [0, 0, 0]);
        assert_eq!(plan.drops().get(DropReason::SamePort), 1);
    }

    #[test]
    fn a_detached_port_neither_sends_nor_gets() {
        let mut switch = domain(Mode::Switch);
        exchange(&mut switch, 1, &[(GROUP, mac(2))], [1, 0, 1]);
        assert!(switch.detach(PortId(1)));
        assert!(!switch.detach(PortId(1)));
        exchange(&mut switch, 0, &[(mac(2), mac(1)), (GROUP, mac(1))], [0, 0, 0b11]);
        let plan = exchange(&mut switch, 1, &[(mac(1), mac(2)), (GROUP, mac(2))], [0, 0, 0]);
        assert_eq!(
            (plan.drops().get(DropReason::Detached), plan.drops().total()),
            (2, 2)
        );
        assert_eq!(plan.accepted(), FrameSet::EMPTY);
        assert!(!switch.attach_at(PortId(0)));
        assert!(switch.attach_at(PortId(1)));
        exchange(&mut switch, 0, &[(mac(2), mac(1))], [0, 1, 1]);
        assert_eq!(switch.attach(), PortId(3));
        assert!(!switch.attach_at(PortId(u32::MAX)));
        assert!(switch.ports().map(|port| port.0).eq(0..4));
    }

    #[test]
    fn lengths_at_their_limits() {
        let mut hub = domain(Mode::Hub);
        assert_eq!(hub.longest_frame(), 1522);
        let tagged =
            |tags: &[u8], payload| frame(GROUP, mac(1), &[tags, &[8, 0], &vec![7; payload]].concat());
        let (one, two) = (&[0x81, 0, 0, 1][..], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2][..]);
        let frames = [
            vec![0; 13],
            vec![0; 14],
            tagged(&[], 1500),
            tagged(&[], 1501),
            tagged(one, 1500),
            tagged(one, 1501),
            tagged(two, 1500),
            tagged(two, 1501),
            tagged(&[], 1508),
            vec![],
        ];
        let plan = forward(&mut hub, 0, frames.into_iter(), [0, 0b0101_0110, 0b0101_0110]);
        assert_eq!(plan.accepted(), FrameSet(0b0101_0110));
        assert_eq!(plan.drops().get(DropReason::Runt), 2);
        assert_eq!(plan.drops().get(DropReason::Giant), 4);
        assert_eq!(plan.drops().total(), 6);
    }

    #[test]
    fn a_cut_frame_is_a_giant_whatever_the_buffers_hold() {
        let mut hub = domain(Mode::Hub);
        let mut batch = Batch::new(64, 2);
        batch.push(&frame(GROUP, mac(1), &[0; 60]));
        let mut plan = Plan::new();
        hub.forward(&batch, PortId(0), Duration::ZERO, &mut plan);
        assert_eq!(plan.drops().get(DropReason::Giant), 1);
        assert_eq!(plan.egress().len(), 0);
    }

    #[test]
    fn settings_are_checked() {
        let with_mtu = |mtu| {
            Settings {
                mtu,
                ..Settings::default()
            }
            .check()
        };
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!((with_mtu(68), with_mtu(65_521)), (Ok(()), Ok(())));
        assert_eq!(with_mtu(67), Err(SettingsError::Mtu(67)));
        assert_eq!(
            with_mtu(65_522).unwrap_err().to_string(),
            "MTU 65522 is not within 68 to 65521"
        );
        let no_fdb = Settings {
            fdb_port_limit: 0,
            ..Settings::default()
        };
        assert_eq!(no_fdb.check(), Err(SettingsError::NoFdb));
    }
}

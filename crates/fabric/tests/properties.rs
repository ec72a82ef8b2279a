//! What holds for every sequence of events: the laws of frame sets, and the promises of hub, switch and table.

use std::collections::BTreeSet;
use std::time::Duration;

use fabric::{Batch, Domain, DropReason, Fdb, FdbRow, FrameSet, MacAddr, Mode, Plan, PortId, Settings};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;

/// Few addresses, so that stations meet, move and get displaced often. Number 0 stands for broadcast.
const STATIONS: u8 = 12;
const FDB_LIMIT: usize = 6;
const FDB_PORT_LIMIT: usize = 3;
const AGEING: Duration = Duration::from_secs(100);

fn mac(station: u8) -> MacAddr {
    match station {
        0 => MacAddr::BROADCAST,
        n => MacAddr([2, 0, 0, 0, 0, n]),
    }
}

/// One thing that happens to a domain.
#[derive(Clone, Debug)]
enum Event {
    Attach,
    AttachAt(u32),
    Detach(Index),
    Frames(Index, Vec<FrameSpec>),
    /// From a port that may or may not be attached.
    Stray(u32, Vec<FrameSpec>),
    Static(u8, u32),
    Remove(u8),
    Wait(u64),
    Expire,
}

impl Event {
    /// The same with one frame at a time.
    fn split(&self) -> Vec<Self> {
        let one = |frame: &FrameSpec| vec![frame.clone()];
        match self {
            Self::Frames(port, frames) => frames
                .iter()
                .map(|frame| Self::Frames(*port, one(frame)))
                .collect(),
            Self::Stray(port, frames) => frames
                .iter()
                .map(|frame| Self::Stray(*port, one(frame)))
                .collect(),
            other => vec![other.clone()],
        }
    }
}

#[derive(Clone, Debug)]
struct FrameSpec {
    dst: u8,
    src: u8,
    len: usize,
}

impl FrameSpec {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [mac(self.dst).0, mac(self.src).0].concat();
        bytes.resize(self.len, 0);
        bytes
    }

    /// The MTU is 100 here.
    fn fits(&self) -> bool {
        (14..=114).contains(&self.len)
    }
}

fn frame_spec() -> impl Strategy<Value = FrameSpec> {
    let len = prop_oneof![8 => Just(60), 1 => 0..20_usize, 1 => 110..130_usize];
    (0..STATIONS, 0..STATIONS, len).prop_map(|(dst, src, len)| FrameSpec { dst, src, len })
}

/// Flows, most of them in runs of the same frame, as bursts are.
fn frames() -> impl Strategy<Value = Vec<FrameSpec>> {
    vec((frame_spec(), 1..4_usize), 1..16).prop_map(|runs| {
        runs.into_iter()
            .flat_map(|(frame, n)| std::iter::repeat_n(frame, n))
            .collect()
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Attach),
        1 => (0..8_u32).prop_map(Event::AttachAt),
        1 => any::<Index>().prop_map(Event::Detach),
        12 => (any::<Index>(), frames()).prop_map(|(port, frames)| Event::Frames(port, frames)),
        1 => (0..10_u32, frames()).prop_map(|(port, frames)| Event::Stray(port, frames)),
        1 => (0..STATIONS, 0..8_u32).prop_map(|(station, port)| Event::Static(station, port)),
        1 => (0..STATIONS).prop_map(Event::Remove),
        2 => (0..80_u64).prop_map(Event::Wait),
        1 => Just(Event::Expire),
    ]
}

fn domain(mode: Mode) -> Domain {
    let mut domain = Domain::new(Settings {
        mode,
        mtu: 100,
        ageing: AGEING,
        fdb_limit: FDB_LIMIT,
        fdb_port_limit: FDB_PORT_LIMIT,
    });
    for _ in 0..3 {
        domain.attach();
    }
    domain
}

fn batch(frames: &[FrameSpec]) -> Batch {
    let mut batch = Batch::new(128, 64);
    assert!(frames.iter().all(|frame| batch.push(&frame.bytes())));
    batch
}

/// Carries out all events, and shows `check` each batch together with what became of it.
fn play(
    domain: &mut Domain,
    events: &[Event],
    mut check: impl FnMut(&Domain, PortId, &[FrameSpec], &Plan) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut now = Duration::ZERO;
    let mut plan = Plan::new();
    for event in events {
        let ports: Vec<_> = domain.ports().collect();
        let incoming = match event {
            Event::Attach if ports.len() < 8 => {
                let port = domain.attach();
                let lowest_free = (0..).map(PortId).find(|port| !ports.contains(port));
                prop_assert_eq!(Some(port), lowest_free);
                prop_assert_eq!(domain.stations_of(port).count(), 0);
                None
            }
            Event::AttachAt(number) => {
                let free = !ports.contains(&PortId(*number));
                prop_assert_eq!(domain.attach_at(PortId(*number)), free);
                None
            }
            Event::Detach(which) if !ports.is_empty() => {
                let port = *which.get(&ports);
                let others = domain.fdb().len() - domain.stations_of(port).count();
                domain.detach(port);
                prop_assert_eq!(domain.stations_of(port).count(), 0);
                prop_assert_eq!(domain.fdb().len(), others);
                prop_assert!(domain.fdb().iter(now).all(|row| row.port != port));
                None
            }
            Event::Frames(which, frames) if !ports.is_empty() => Some((*which.get(&ports), frames)),
            Event::Stray(number, frames) => Some((PortId(*number), frames)),
            Event::Static(station, port) => {
                let added = domain.fdb_mut().add_static(mac(*station), PortId(*port)).is_ok();
                prop_assert!(!added || domain.fdb().lookup(mac(*station), now) == Some(PortId(*port)));
                None
            }
            Event::Remove(station) => {
                domain.fdb_mut().remove(mac(*station));
                prop_assert_eq!(domain.fdb().lookup(mac(*station), now), None);
                None
            }
            Event::Wait(seconds) => {
                now += Duration::from_secs(*seconds);
                None
            }
            Event::Expire => {
                let known = |domain: &Domain| domain.fdb().iter(now).collect::<Vec<_>>();
                let before = known(domain);
                domain.expire(now);
                prop_assert_eq!(&known(domain), &before, "a sweep is not seen");
                prop_assert_eq!(
                    domain.fdb().len(),
                    before.len(),
                    "a sweep leaves nothing that has aged"
                );
                None
            }
            Event::Attach | Event::Detach(_) | Event::Frames(..) => None,
        };
        if let Some((ingress, frames)) = incoming {
            domain.forward(&batch(frames), ingress, now, &mut plan);
            check(domain, ingress, frames, &plan)?;
        }
        prop_assert!(domain.fdb().len() <= FDB_LIMIT);
        for port in (0..10).map(PortId) {
            let stations: Vec<_> = domain.stations_of(port).collect();
            prop_assert!(stations.len() <= FDB_PORT_LIMIT);
            prop_assert!(stations.is_empty() || domain.ports().any(|attached| attached == port));
            prop_assert!(stations.iter().all(|station| !station.is_multicast()));
        }
    }
    Ok(())
}

/// The ports each frame went to, and what a switch knows in the end.
fn outcome(events: &[Event]) -> Result<(Vec<Vec<PortId>>, Vec<FdbRow>), TestCaseError> {
    let mut switch = domain(Mode::Switch);
    let mut ways = Vec::new();
    play(&mut switch, events, |_, _, frames, plan| {
        ways.extend((0..frames.len()).map(|i| {
            let ports = plan.egress().filter(|(_, set)| set.contains(i));
            let mut ports: Vec<_> = ports.map(|(port, _)| port).collect();
            ports.sort_unstable();
            ports
        }));
        Ok(())
    })?;
    let waits = events.iter().map(|event| {
        if let Event::Wait(seconds) = event {
            *seconds
        } else {
            0
        }
    });
    let end = Duration::from_secs(waits.sum());
    Ok((ways, switch.fdb().iter(end).collect()))
}

/// What hub and switch have in common: who may get a frame at all, and that none is lost without a reason.
fn check_plan(
    domain: &Domain,
    ingress: PortId,
    frames: &[FrameSpec],
    plan: &Plan,
) -> Result<(), TestCaseError> {
    let attached: BTreeSet<_> = domain.ports().collect();
    let mut seen = BTreeSet::new();
    for (port, set) in plan.egress() {
        prop_assert_ne!(port, ingress, "echo");
        prop_assert!(attached.contains(&port), "port {} is not attached", port);
        prop_assert!(seen.insert(port), "port {} twice", port);
        prop_assert!(!set.is_empty());
        prop_assert!(set.without(plan.accepted()).is_empty());
        prop_assert_eq!(plan.frames_for(port), set);
    }
    prop_assert!(
        (0..10)
            .map(PortId)
            .all(|port| seen.contains(&port) || plan.frames_for(port).is_empty())
    );

    let count = |predicate: &dyn Fn(&FrameSpec) -> bool| {
        frames.iter().filter(|frame| predicate(frame)).count() as u64
    };
    let drops = plan.drops();
    if !attached.contains(&ingress) {
        prop_assert_eq!(drops.get(DropReason::Detached), frames.len() as u64);
        prop_assert_eq!(
            (drops.total(), plan.accepted()),
            (frames.len() as u64, FrameSet::EMPTY)
        );
        return Ok(());
    }
    let fitting = frames.iter().enumerate().filter(|(_, frame)| frame.fits());
    prop_assert_eq!(plan.accepted(), fitting.map(|(i, _)| i).collect());
    prop_assert_eq!(drops.get(DropReason::Runt), count(&|frame| frame.len < 14));
    prop_assert_eq!(drops.get(DropReason::Giant), count(&|frame| frame.len > 114));
    let others = attached.len() - 1;
    let mut kept_back = 0;
    for i in plan.accepted() {
        let copies = plan.egress().filter(|(_, set)| set.contains(i)).count();
        let group = mac(frames[i].dst).is_multicast();
        prop_assert!(
            copies == others || (copies <= 1 && !group),
            "{} copies of {:?}",
            copies,
            frames[i]
        );
        kept_back += u64::from(copies == 0 && others > 0);
    }
    if others > 0 {
        prop_assert_eq!(drops.get(DropReason::SamePort), kept_back);
    }
    prop_assert_eq!(
        drops.total(),
        drops.get(DropReason::Runt) + drops.get(DropReason::Giant) + drops.get(DropReason::SamePort)
    );
    Ok(())
}

/// The forwarding table as a plain list, in the order of last frames; nothing aged is ever in it.
struct PlainFdb {
    rows: Vec<(MacAddr, PortId, Option<Duration>)>,
    limit: usize,
    port_limit: usize,
}

impl PlainFdb {
    fn age(&mut self, now: Duration) {
        self.rows
            .retain(|row| row.2.is_none_or(|seen| now - seen <= AGEING));
    }

    fn learn(&mut self, mac: MacAddr, port: PortId, now: Duration) {
        let fixed = self.rows.iter().any(|row| row.0 == mac && row.2.is_none());
        if mac.is_multicast() || fixed {
            return;
        }
        self.rows.retain(|row| row.0 != mac);
        if self.make_room(port) {
            self.rows.push((mac, port, Some(now)));
        }
    }

    fn add_static(&mut self, mac: MacAddr, port: PortId) -> bool {
        if mac.is_multicast() {
            return false;
        }
        let others = self.rows.iter().filter(|row| row.2.is_none() && row.0 != mac);
        let (all, here) = others.fold((0, 0), |(all, here), row| {
            (all + 1, here + usize::from(row.1 == port))
        });
        if all >= self.limit || here >= self.port_limit {
            return false;
        }
        self.rows.retain(|row| row.0 != mac);
        assert!(self.make_room(port));
        self.rows.push((mac, port, None));
        true
    }

    fn make_room(&mut self, port: PortId) -> bool {
        let learnt = |port| {
            self.rows
                .iter()
                .filter(|row| row.1 == port && row.2.is_some())
                .count()
        };
        let payer = if self.rows.iter().filter(|row| row.1 == port).count() >= self.port_limit {
            port
        } else if self.rows.len() >= self.limit {
            let most = (0..4).map(|n| learnt(PortId(n))).max().unwrap_or(0);
            let largest = [port]
                .into_iter()
                .chain((0..4).map(PortId))
                .find(|&port| learnt(port) == most);
            largest.unwrap_or(port)
        } else {
            return true;
        };
        let oldest = self.rows.iter().position(|row| row.1 == payer && row.2.is_some());
        oldest.map(|oldest| self.rows.remove(oldest)).is_some()
    }

    fn lookup(&self, mac: MacAddr) -> Option<PortId> {
        self.rows.iter().find(|row| row.0 == mac).map(|row| row.1)
    }
}

#[derive(Clone, Debug)]
enum FdbEvent {
    Learn(u8, u32),
    Static(u8, u32),
    Remove(u8),
    Wait(u64),
    Expire,
}

fn fdb_event() -> impl Strategy<Value = FdbEvent> {
    prop_oneof![
        20 => (0..STATIONS, 0..4_u32).prop_map(|(station, port)| FdbEvent::Learn(station, port)),
        2 => (0..STATIONS, 0..4_u32).prop_map(|(station, port)| FdbEvent::Static(station, port)),
        2 => (0..STATIONS).prop_map(FdbEvent::Remove),
        4 => (0..60_u64).prop_map(FdbEvent::Wait),
        1 => Just(FdbEvent::Expire),
    ]
}

proptest! {
    #[test]
    fn a_hub_reaches_all_but_the_sender(events in vec(event(), 1..40)) {
        play(&mut domain(Mode::Hub), &events, |hub, ingress, frames, plan| {
            check_plan(hub, ingress, frames, plan)?;
            for port in hub.ports().filter(|&port| port != ingress) {
                prop_assert_eq!(plan.frames_for(port), plan.accepted());
            }
            prop_assert_eq!(plan.drops().get(DropReason::SamePort), 0);
            Ok(())
        })?;
    }

    #[test]
    fn a_switch_keeps_its_promises(events in vec(event(), 1..60)) {
        play(&mut domain(Mode::Switch), &events, check_plan)?;
    }

    /// A burst of a flow is decided once; that must not show.
    #[test]
    fn a_batch_is_worth_its_frames_one_by_one(events in vec(event(), 1..30)) {
        let single_events: Vec<_> = events.iter().flat_map(Event::split).collect();
        let (whole, single) = (outcome(&events)?, outcome(&single_events)?);
        prop_assert_eq!(whole, single);
    }

    #[test]
    fn the_table_is_a_bounded_list(
        events in vec(fdb_event(), 1..200),
        limit in 1..8_usize,
        port_limit in 1..5_usize,
    ) {
        let mut now = Duration::ZERO;
        let mut fdb = Fdb::new(AGEING, limit, port_limit);
        (0..4).map(PortId).for_each(|port| fdb.open_port(port));
        let mut plain = PlainFdb { rows: Vec::new(), limit, port_limit };
        for event in events {
            match event {
                FdbEvent::Learn(station, port) => {
                    fdb.learn(mac(station), PortId(port), now);
                    plain.learn(mac(station), PortId(port), now);
                }
                FdbEvent::Static(station, port) => {
                    // Without a time of its own, a static entry may displace before it counts who has aged.
                    fdb.expire(now);
                    let added = fdb.add_static(mac(station), PortId(port)).is_ok();
                    prop_assert_eq!(added, plain.add_static(mac(station), PortId(port)));
                }
                FdbEvent::Remove(station) => {
                    fdb.remove(mac(station));
                    plain.rows.retain(|row| row.0 != mac(station));
                }
                FdbEvent::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    plain.age(now);
                }
                FdbEvent::Expire => fdb.expire(now),
            }
            for station in 0..STATIONS {
                prop_assert_eq!(fdb.lookup(mac(station), now), plain.lookup(mac(station)), "station {}", station);
            }
            prop_assert_eq!(fdb.iter(now).count(), plain.rows.len());
            prop_assert!(fdb.len() <= limit);
            prop_assert!((0..4).all(|port| fdb.stations_of(PortId(port)).count() <= port_limit));
        }
    }

    #[test]
    fn frame_sets_are_sets(
        a in btree_set(0..64_usize, 0..64),
        b in btree_set(0..64_usize, 0..64),
        i in 0..64_usize,
        n in 0..=64_usize,
    ) {
        let (x, y): (FrameSet, FrameSet) = (a.iter().copied().collect(), b.iter().copied().collect());
        prop_assert!(x.iter().eq(a.iter().copied()), "ascending, each once");
        prop_assert_eq!((x.len(), x.iter().len(), x.is_empty()), (a.len(), a.len(), a.is_empty()));
        prop_assert!((x | y).iter().eq((&a | &b).into_iter()));
        prop_assert!((x & y).iter().eq((&a & &b).into_iter()));
        prop_assert!(x.without(y).iter().eq((&a - &b).into_iter()));
        prop_assert_eq!(x.contains(i), a.contains(&i));
        prop_assert!(FrameSet::first_n(n).iter().eq(0..n));
        let (mut with, mut less) = (x, x);
        with.insert(i);
        less.remove(i);
        prop_assert!(with.contains(i) && !less.contains(i));
        prop_assert_eq!(with.without(less), FrameSet(1 << i));
        prop_assert_eq!(if a.contains(&i) { with } else { less }, x);
    }
}

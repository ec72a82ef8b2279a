//! A network in a box: switches and a hub joined by trunks, stations that talk, move and vanish, and a clock that
//! is turned by hand. Everything follows from a seed, which a failing test prints.
//!
//! Beside each domain runs a model of what it must do, kept as simple as can be: one map from station to port.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fabric::{Batch, Domain, DropReason, Frame, MacAddr, Mode, Plan, PortId, Settings};

const AGEING: Duration = Duration::from_secs(100);
const MTU: usize = 300;
const BATCH: usize = 32;

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, any seed will do.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("a remainder is below its divisor")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A place to plug something in: a port of one of the domains.
type Jack = (usize, PortId);

/// What is plugged into a port.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wire {
    /// Stations, any number of them.
    Access,
    /// The port of another domain.
    Trunk(Jack),
}

struct Node {
    domain: Domain,
    wires: BTreeMap<PortId, Wire>,
    model: Model,
}

impl Node {
    fn new(mode: Mode) -> Self {
        let settings = Settings {
            mode,
            mtu: 300,
            ageing: AGEING,
            ..Settings::default()
        };
        Self {
            domain: Domain::new(settings),
            wires: BTreeMap::new(),
            model: Model {
                mode,
                known: BTreeMap::new(),
            },
        }
    }
}

/// What a domain must do, as long as its table has room.
struct Model {
    mode: Mode,
    known: BTreeMap<MacAddr, (PortId, Duration)>,
}

impl Model {
    /// The ports that must get a frame; `None` if it must be dropped as being for its own port.
    fn egress(
        &mut self,
        frame: Frame<'_>,
        ingress: PortId,
        now: Duration,
        all: &BTreeSet<PortId>,
    ) -> Option<BTreeSet<PortId>> {
        let others = || Some(all.iter().copied().filter(|&port| port != ingress).collect());
        if self.mode == Mode::Hub {
            return others();
        }
        if frame.src().0[0] & 1 == 0 {
            self.known.insert(frame.src(), (ingress, now));
        }
        match self.known.get(&frame.dst()) {
            Some(&(_, seen)) if now - seen > AGEING => others(),
            Some(&(port, _)) if port == ingress => None,
            Some(&(port, _)) => Some([port].into()),
            None => others(),
        }
    }
}

struct Station {
    mac: MacAddr,
    jack: Option<Jack>,
}

struct Net {
    seed: u64,
    steps: usize,
    rng: Rng,
    now: Duration,
    nodes: Vec<Node>,
    stations: Vec<Station>,
    /// Frames on their way into a port, first come first served.
    queues: BTreeMap<Jack, VecDeque<Vec<u8>>>,
    /// Frames sent so far, by flow.
    sent: BTreeMap<(MacAddr, MacAddr), u32>,
    /// The number of the last frame of a flow that came out of a port.
    heard: BTreeMap<(Jack, MacAddr, MacAddr), u32>,
    /// Access ports that got a frame, since this was last cleared.
    reached: BTreeMap<Jack, usize>,
    delivered: usize,
    batch: Batch,
    plan: Plan,
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "netsim: seed {} failed at step {}, {:?}",
                self.seed, self.steps, self.now
            );
        }
    }
}

impl Net {
    /// Domains joined to a tree, each with three access ports, and twelve stations plugged in anywhere.
    fn new(seed: u64, modes: &[Mode]) -> Self {
        let mut net = Self {
            seed,
            steps: 0,
            rng: Rng(seed),
            now: Duration::from_secs(1),
            nodes: modes.iter().copied().map(Node::new).collect(),
            stations: Vec::new(),
            queues: BTreeMap::new(),
            sent: BTreeMap::new(),
            heard: BTreeMap::new(),
            reached: BTreeMap::new(),
            delivered: 0,
            batch: Batch::new(MTU + 22, BATCH),
            plan: Plan::new(),
        };
        for node in 1..modes.len() {
            let parent = net.rng.below(node);
            let (up, down) = (net.nodes[parent].domain.attach(), net.nodes[node].domain.attach());
            net.nodes[parent].wires.insert(up, Wire::Trunk((node, down)));
            net.nodes[node].wires.insert(down, Wire::Trunk((parent, up)));
        }
        for node in 0..modes.len() {
            (0..3).for_each(|_| net.attach(node));
        }
        for n in 1..=12 {
            let jack = net.any_access_port();
            net.stations.push(Station {
                mac: MacAddr([2, 0, 0, 0, 0, n]),
                jack,
            });
        }
        net
    }

    fn access_ports(&self) -> Vec<Jack> {
        let ports = self.nodes.iter().enumerate().flat_map(|(node, at)| {
            let access = at.wires.iter().filter(|(_, wire)| **wire == Wire::Access);
            access.map(move |(&port, _)| (node, port))
        });
        ports.collect()
    }

    fn any_access_port(&mut self) -> Option<Jack> {
        let ports = self.access_ports();
        (!ports.is_empty()).then(|| self.rng.pick(&ports))
    }

    /// One random thing happens.
    fn step(&mut self) {
        self.steps += 1;
        match self.rng.below(100) {
            0..35 => self.talk(),
            35..88 => self.serve_any(),
            88..91 => self.move_station(),
            91..93 => {
                let node = self.rng.below(self.nodes.len());
                if self.nodes[node].wires.len() < 10 {
                    self.attach(node);
                }
            }
            93..95 => self.detach(),
            95..98 => self.now += Duration::from_millis(self.rng.next() % 40_000),
            _ => {
                let node = self.rng.below(self.nodes.len());
                self.nodes[node].domain.expire(self.now);
            }
        }
    }

    /// A station sends a burst, to one or more others, now and then to all, to nobody or as nobody.
    fn talk(&mut self) {
        let from = self.rng.below(self.stations.len());
        let Station {
            mac: src,
            jack: Some(jack),
        } = self.stations[from]
        else {
            return;
        };
        let mut dst = MacAddr::BROADCAST;
        for n in 0..=self.rng.below(40) {
            if n == 0 || self.rng.one_in(6) {
                dst = match self.rng.below(12) {
                    0 => MacAddr::BROADCAST,
                    1 => MacAddr([1, 0x80, 0xc2, 0, 0, 0]),
                    2 => MacAddr([2, 0xee, 0, 0, 0, 0]),
                    _ => self.stations[self.rng.below(self.stations.len())].mac,
                };
            }
            let src = if self.rng.one_in(50) {
                MacAddr([3, 0, 0, 0, 0, src.0[5]])
            } else {
                src
            };
            self.send(jack, dst, src);
        }
    }

    /// Puts one numbered frame on the wire; a few are too short or too long to get through.
    fn send(&mut self, jack: Jack, dst: MacAddr, src: MacAddr) {
        let number = self.sent.entry((src, dst)).or_default();
        *number += 1;
        let tags: &[u8] = match self.rng.below(6) {
            0 => &[0x81, 0, 0, 9],
            1 => &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 9],
            _ => &[],
        };
        let payload = match self.rng.below(40) {
            0 => MTU + 1 + self.rng.below(20),
            1..5 => MTU,
            _ => 4 + self.rng.below(MTU - 4),
        };
        let mut bytes = [&dst.0, &src.0, tags, &[0x88, 0xb5], &number.to_be_bytes()].concat();
        let header = bytes.len() - 4;
        bytes.resize(header + payload, number.to_le_bytes()[0]);
        if self.rng.one_in(60) {
            bytes.truncate(self.rng.below(14));
        }
        self.queues.entry(jack).or_default().push_back(bytes);
    }

    /// Some port that has frames waiting forwards a few of them.
    fn serve_any(&mut self) {
        let waiting: Vec<_> = self
            .queues
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(&jack, _)| jack)
            .collect();
        if !waiting.is_empty() {
            let jack = self.rng.pick(&waiting);
            let most = 1 + self.rng.below(BATCH);
            self.serve(jack, most);
        }
    }

    fn serve(&mut self, (at, ingress): Jack, most: usize) {
        let queue = self.queues.entry((at, ingress)).or_default();
        let frames: Vec<_> = queue.drain(..most.min(queue.len())).collect();
        self.batch.clear();
        assert!(frames.iter().all(|frame| self.batch.push(frame)));

        let node = &mut self.nodes[at];
        node.domain
            .forward(&self.batch, ingress, self.now, &mut self.plan);
        let expected = expect(node, ingress, &frames, self.now);
        let attached: BTreeSet<_> = node.wires.keys().copied().collect();
        let mut named = BTreeSet::new();
        for (port, _) in self.plan.egress() {
            assert_ne!(port, ingress, "domain {at} echoes");
            assert!(
                attached.contains(&port),
                "domain {at} sends to {port}, which is not attached"
            );
            assert!(named.insert(port), "domain {at} names port {port} twice");
        }
        for (i, ports) in expected.ports.iter().enumerate() {
            let actual: BTreeSet<_> = self
                .plan
                .egress()
                .filter(|(_, set)| set.contains(i))
                .map(|(port, _)| port)
                .collect();
            assert_eq!(
                &actual,
                ports,
                "domain {at}, from port {ingress}, frame {:?}",
                Frame::new(&frames[i])
            );
        }
        let drops: Vec<_> = self.plan.drops().iter().collect();
        assert_eq!(
            drops,
            expected.drops.into_iter().collect::<Vec<_>>(),
            "domain {at}"
        );

        for (port, set) in self.plan.egress() {
            match self.nodes[at].wires[&port] {
                Wire::Trunk(far) => {
                    let queue = self.queues.entry(far).or_default();
                    queue.extend(set.iter().map(|i| self.batch.frame(i).to_vec()));
                }
                Wire::Access => {
                    for i in set {
                        let frame = Frame::new(self.batch.frame(i)).expect("runts are not forwarded");
                        let number = intact_number(frame);
                        let last = self.heard.insert(((at, port), frame.src(), frame.dst()), number);
                        assert!(
                            last < Some(number),
                            "{number} follows {last:?} at port {port} of {at}: {frame:?}"
                        );
                        *self.reached.entry((at, port)).or_default() += 1;
                        self.delivered += 1;
                    }
                }
            }
        }
    }

    /// Forwards until nothing is on its way. In a tree every frame comes to rest; one that loops does not.
    fn settle(&mut self) {
        let mut waiting: usize = self.queues.values().map(VecDeque::len).sum();
        let most = (waiting + 1) * self.nodes.len();
        for _ in 0..most {
            if waiting == 0 {
                return;
            }
            self.serve_any();
            waiting = self.queues.values().map(VecDeque::len).sum();
        }
        panic!("{waiting} frames are still on their way after {most} batches");
    }

    /// A station is plugged in elsewhere, with nothing of it left on the way.
    fn move_station(&mut self) {
        self.settle();
        let station = self.rng.below(self.stations.len());
        self.stations[station].jack = self.any_access_port();
    }

    fn attach(&mut self, node: usize) {
        let Node { domain, wires, .. } = &mut self.nodes[node];
        let port = domain.attach();
        let lowest_free = (0..).map(PortId).find(|port| !wires.contains_key(port));
        assert_eq!(Some(port), lowest_free);
        wires.insert(port, Wire::Access);
    }

    fn detach(&mut self) {
        self.settle();
        let Some(jack) = self.any_access_port() else {
            return;
        };
        let node = &mut self.nodes[jack.0];
        node.domain.detach(jack.1);
        node.wires.remove(&jack.1);
        node.model.known.retain(|_, (port, _)| *port != jack.1);
        assert_eq!(node.domain.stations_of(jack.1).count(), 0);
        self.heard.retain(|(port, ..), _| *port != jack);
        for station in &mut self.stations {
            station.jack = station.jack.filter(|&at| at != jack);
        }
    }
}

/// What must become of a batch.
struct Expected {
    ports: Vec<BTreeSet<PortId>>,
    drops: BTreeMap<DropReason, u64>,
}

fn expect(node: &mut Node, ingress: PortId, frames: &[Vec<u8>], now: Duration) -> Expected {
    let attached = node.wires.keys().copied().collect();
    let mut drops = BTreeMap::new();
    let ports = frames.iter().map(|bytes| {
        let ports = match Frame::new(bytes) {
            Err(_) => Err(DropReason::Runt),
            Ok(frame) if frame.payload_len() > MTU => Err(DropReason::Giant),
            Ok(frame) => node
                .model
                .egress(frame, ingress, now, &attached)
                .ok_or(DropReason::SamePort),
        };
        ports.unwrap_or_else(|reason| {
            *drops.entry(reason).or_default() += 1;
            BTreeSet::new()
        })
    });
    let ports = ports.collect();
    Expected { ports, drops }
}

/// The number a frame was sent with, if the rest of it is as it was sent.
fn intact_number(frame: Frame<'_>) -> u32 {
    let bytes = frame.bytes();
    let (number, rest) = bytes[bytes.len() - frame.payload_len()..]
        .split_first_chunk()
        .expect("a numbered frame");
    let number = u32::from_be_bytes(*number);
    assert_eq!(frame.ethertype(), 0x88b5);
    assert!(
        rest.iter().all(|&byte| byte == number.to_le_bytes()[0]),
        "damaged: {frame:?}"
    );
    number
}

const SWITCHES: [Mode; 4] = [Mode::Switch; 4];
const MIXED: [Mode; 5] = [Mode::Switch, Mode::Hub, Mode::Switch, Mode::Switch, Mode::Hub];

#[test]
fn a_network_behaves_as_its_model() {
    for seed in 0..6 {
        let mut net = Net::new(seed, if seed % 2 == 0 { &SWITCHES } else { &MIXED });
        for _ in 0..4000 {
            net.step();
        }
        net.settle();
        assert!(
            net.delivered > 20_000,
            "seed {seed}: {} deliveries show little",
            net.delivered
        );
    }
}

#[test]
fn a_broadcast_reaches_every_other_port_once() {
    for seed in 0..10 {
        let mut net = Net::new(seed, &MIXED);
        (0..500).for_each(|_| net.step());
        net.settle();
        let Some(jack) = net.any_access_port() else {
            continue;
        };
        net.reached.clear();
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0xbb, 1], &[0x88, 0xb5, 0, 0, 0, 1]].concat();
        net.queues.entry(jack).or_default().push_back(frame);
        net.settle();
        let others = net.access_ports().into_iter().filter(|&port| port != jack);
        assert_eq!(net.reached, others.map(|port| (port, 1)).collect(), "seed {seed}");
    }
}

#[test]
fn nobody_overhears_stations_that_are_known() {
    let mut overheard_before = 0;
    for seed in 0..20 {
        let mut net = Net::new(seed, &SWITCHES);
        (0..300).for_each(|_| net.step());
        net.settle();
        (0..2).for_each(|node| net.attach(node));
        let ports = net.access_ports();
        let a = (ports[0], MacAddr([2, 0, 0, 0, 0xaa, 1]));
        let b = (ports[ports.len() - 1], MacAddr([2, 0, 0, 0, 0xaa, 2]));
        let converse = |net: &mut Net| {
            net.reached.clear();
            for (from, to) in [(a, b), (b, a), (a, b)] {
                for number in 0..50_u32 {
                    let number = net.sent.get(&(from.1, to.1)).map_or(number, |sent| sent + 1);
                    net.sent.insert((from.1, to.1), number);
                    let mut frame = [&to.1.0, &from.1.0, &[0x88, 0xb5][..], &number.to_be_bytes()].concat();
                    frame.resize(60, number.to_le_bytes()[0]);
                    net.queues.entry(from.0).or_default().push_back(frame);
                }
                net.settle();
            }
            net.reached.clone()
        };
        let first = converse(&mut net);
        overheard_before += first.len() - 2;
        let second = converse(&mut net);
        assert_eq!(second, [(a.0, 50), (b.0, 100)].into(), "seed {seed}");
    }
    assert!(
        overheard_before > 0,
        "the first frames, to stations still unknown, are flooded"
    );
}

#[test]
fn a_flood_of_addresses_stays_within_bounds_and_hurts_nobody_else() {
    const LIMIT: usize = 64;
    const PORT_LIMIT: usize = 40;
    for seed in 0..4 {
        let mut rng = Rng(seed);
        let mut switch = Domain::new(Settings {
            mode: Mode::Switch,
            fdb_limit: LIMIT,
            fdb_port_limit: PORT_LIMIT,
            ..Settings::default()
        });
        let ports: Vec<_> = (0..6).map(|_| switch.attach()).collect();
        let (a, b) = (
            (ports[0], MacAddr([2, 0, 0, 0, 0, 1])),
            (ports[1], MacAddr([2, 0, 0, 0, 0, 2])),
        );
        let mut batch = Batch::new(64, 64);
        let mut plan = Plan::new();
        let mut now = Duration::ZERO;
        let mut fullest = 0;
        for round in 0..2000 {
            now += Duration::from_millis(10);
            // One port floods for a while before a second one joins in.
            let flooder = ports[if round < 1000 { 2 } else { 2 + rng.below(2) }];
            batch.clear();
            for _ in 0..64 {
                let [.., x, y, z] = rng.next().to_be_bytes();
                let src = [0x06, 0, 0, x, y, z];
                assert!(batch.push(&[&[0x06, 0xff, 0, 0, 0, 0][..], &src, &[8, 0]].concat()));
            }
            switch.forward(&batch, flooder, now, &mut plan);
            assert!(switch.fdb().len() <= LIMIT);
            assert!(
                ports
                    .iter()
                    .all(|&port| switch.stations_of(port).count() <= PORT_LIMIT)
            );
            assert_eq!(
                plan.egress().len(),
                ports.len() - 1,
                "frames to an unknown station are flooded"
            );
            fullest = fullest.max(switch.fdb().len());

            // The pair speaks once in a while only, so that its entries are the oldest by far.
            if round % 50 == 0 {
                for (from, to) in [(a, b), (b, a)] {
                    batch.clear();
                    assert!(batch.push(&[&to.1.0, &from.1.0, &[8, 0][..]].concat()));
                    switch.forward(&batch, from.0, now, &mut plan);
                    let egress: Vec<_> = plan.egress().map(|(port, _)| port).collect();
                    assert!(
                        round == 0 || egress == [to.0],
                        "seed {seed}, round {round}: {egress:?}"
                    );
                }
            }
        }
        assert_eq!(fullest, LIMIT, "the table was full");
    }
}

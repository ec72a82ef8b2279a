//! What must hold for any bytes. The fuzz targets call these, and so does a test of the stable toolchain.

use std::time::Duration;

use fabric::{Batch, Domain, Frame, Guard, MacAddr, Mode, Plan, PortId, Range, Settings};
use proto::ctl::{Reply, Request};
use proto::tunnel::{LONGEST_HEADER, Tunnel};
use proto::uml::{self, Kind, Progress, Version};
use proto::vhost;
use proto::wire::{Counter, Endpoint, GreSpec, L2tpv3Spec};
use virtio::config::Features;
use virtio::net::{LONGEST_FRAME, Lender};
use virtio::{Device, Driver, Memory, Ram};

/// A request to become a port: however it is cut, it is read or refused, and what is read can be written.
pub fn uml_request(bytes: &[u8]) {
    let mut whole = None;
    for end in 0..=bytes.len() {
        match uml::progress(&bytes[..end]) {
            Progress::Need(more) => assert!(more > end && more <= 124, "{more} bytes are needed at {end}"),
            Progress::Complete => whole = whole.or(Some(end)),
        }
        // Once there is enough, more bytes do not make it too little again.
        assert!(whole.is_none() || uml::progress(&bytes[..end]) == Progress::Complete);
    }
    let Ok(request) = uml::parse(bytes) else {
        return;
    };
    assert!(whole.is_some(), "read before it was complete");
    assert!(bytes.len() <= uml::LONGEST_REQUEST);
    assert!(!request.description.contains(char::is_control));
    if let Kind::Port { number } = request.kind {
        assert!(number.is_none_or(|number| 0 < number && number < 1 << 24));
    }
    if let Some(path) = request.client.path() {
        assert!(!path.is_empty() && path.len() <= 108);
    }
    let _ = format!("{:?}", request.client);
    assert_eq!(
        uml::Address::parse(&request.client.to_bytes()),
        Some(request.client)
    );
    let again = uml::parse(&uml::request(request.version, request.kind, request.client));
    let again = again.expect("what was read can be written");
    assert_eq!(
        (again.version, again.kind, again.client),
        (request.version, request.kind, request.client)
    );
    assert!(request.kind != Kind::Dump || request.version == Version::V3);
}

/// What comes before a frame in a tunnel: the first byte chooses the tunnel. It is refused or taken; one's own is taken,
/// and nothing is that is shorter.
pub fn tunnel(bytes: &[u8]) {
    let Some((&choice, header)) = bytes.split_first() else {
        return;
    };
    let numbered = |bit: u8| (choice & bit != 0).then_some(0x0102_0304);
    let counter = if choice & 4 == 0 {
        Counter::None
    } else {
        Counter::Count
    };
    let ip = std::net::Ipv4Addr::LOCALHOST.into();
    let end = Endpoint {
        ip,
        port: (choice & 8 == 0).then_some(1701),
    };
    let cookie = numbered(2).map(u64::from);
    let tunnel = if choice & 1 == 0 {
        Tunnel::l2tpv3(&L2tpv3Spec {
            local: end,
            remote: end,
            tx_session: 5,
            rx_session: 5,
            tx_cookie: cookie,
            rx_cookie: cookie,
            cookie64: choice & 16 != 0 && cookie.is_some(),
            counter,
        })
    } else {
        Tunnel::gre(&GreSpec {
            local: ip,
            remote: ip,
            tx_key: numbered(2),
            rx_key: numbered(2),
            sequence: counter,
        })
    };
    let tunnel = tunnel.expect("these go together");
    assert!(tunnel.header_bytes() <= LONGEST_HEADER);
    let taken = tunnel.check(header);
    assert!(taken.is_err() || header.len() >= tunnel.header_bytes());
    let mut own = [0; LONGEST_HEADER];
    tunnel.write(7, &mut own);
    assert_eq!(tunnel.check(&own), Ok(()));
    for end in 0..tunnel.header_bytes() {
        assert!(tunnel.check(&own[..end]).is_err());
    }
}

/// A line on the control socket: it is a request or it is not, and a request survives the round trip.
pub fn ctl_line(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let line = serde_json::to_string(&request).expect("a request is JSON");
        assert!(!line.contains('\n'), "a request is one line");
        let again: Request = serde_json::from_str(&line).expect("what was written can be read");
        assert_eq!(again, request);
    }
    // What a daemon says is read by our own tools.
    if let Ok(reply) = serde_json::from_slice::<Reply>(bytes) {
        let _ = serde_json::to_string(&reply).expect("a reply is JSON");
    }
}

/// Frames of a domain: the first byte chooses mode, port and MTU, then come frames, each behind its length.
pub fn frame(bytes: &[u8]) {
    let Some((&choice, mut rest)) = bytes.split_first() else {
        return;
    };
    let switch = choice & 1 == 1;
    let mut domain = Domain::new(Settings {
        mode: if switch { Mode::Switch } else { Mode::Hub },
        mtu: if choice & 2 == 0 { 68 } else { 1500 },
        fdb_limit: 5,
        fdb_port_limit: 3,
        ..Settings::default()
    });
    let ports: Vec<PortId> = (0..4).map(|_| domain.attach()).collect();
    let mut batch = Batch::new(domain.longest_frame(), 8);
    let mut plan = Plan::new();
    let mut now = Duration::ZERO;
    let mut guard = Guard::default();
    if choice & 4 != 0 {
        let range = |ip: &str, bits| Range::new(ip.parse().expect("an address"), bits).expect("a range");
        guard.secure(ports[0], vec![range("10.0.0.0", 8), range("fd00::", 8)]);
    }
    let mut round = 0;
    while let Some((&[port, length], after)) = rest.split_first_chunk::<2>() {
        batch.clear();
        let ingress = ports[usize::from(port) % ports.len()];
        // The same port sends a few frames at once.
        let mut length = length;
        rest = after;
        for _ in 0..=(port >> 6) {
            let (bytes, after) = rest.split_at(usize::from(length).min(rest.len()));
            if !batch.push(bytes) {
                break;
            }
            rest = after;
            length = length.rotate_left(3) ^ 0x2a;
        }
        now += Duration::from_secs(u64::from(port & 0x1f));
        guard.check(&mut batch, ingress, now, Duration::from_secs(100));
        domain.forward(&batch, ingress, now, &mut plan);
        check_plan(&domain, &batch, ingress, &plan);
        round += 1;
        if round % 16 == 0 {
            domain.expire(now);
        }
    }
}

fn check_plan(domain: &Domain, batch: &Batch, ingress: PortId, plan: &Plan) {
    let switch = domain.settings().mode == Mode::Switch;
    let accepted = plan.accepted().len() as u64;
    assert_eq!(
        accepted + plan.drops().total() - same_port(plan),
        batch.len() as u64
    );
    assert!(plan.frames_for(ingress).is_empty(), "sent back");
    for i in 0..batch.len() {
        let copies = plan.egress().filter(|(_, frames)| frames.contains(i)).count();
        match Frame::new(batch.frame(i)) {
            Err(_) => assert_eq!(copies, 0, "a runt went out"),
            Ok(frame) => {
                assert!(frame.payload_len() <= batch.frame(i).len());
                let tags: Vec<_> = frame.tags().map(|tag| (tag.vlan(), tag.priority())).collect();
                assert!(tags.len() <= 2 && tags.iter().all(|&(vlan, priority)| vlan < 4096 && priority < 8));
                let _ = format!("{} {} {}", frame.dst(), frame.src(), frame.ethertype());
                let flooded = !switch || frame.dst().is_multicast();
                if flooded && plan.accepted().contains(i) {
                    assert_eq!(copies, 3, "everybody else gets it");
                }
            }
        }
    }
    assert!(domain.fdb().len() <= 5);
    for port in domain.ports() {
        let stations: Vec<MacAddr> = domain.stations_of(port).collect();
        assert!(stations.len() <= 3 && stations.iter().all(|mac| !mac.is_multicast()));
    }
    assert!(switch || domain.fdb().is_empty(), "a hub learns nothing");
}

/// Frames that were accepted, and then dropped because their station is behind the port they came from.
fn same_port(plan: &Plan) -> u64 {
    plan.drops().get(fabric::DropReason::SamePort)
}

/// A message of a vhost-user front end: it is read or refused, and what is read is within its bounds.
pub fn vhost_message(bytes: &[u8]) {
    let Some((first, payload)) = bytes.split_first_chunk() else {
        return;
    };
    let Ok(header) = vhost::header(*first) else {
        return;
    };
    assert!(header.payload_bytes <= vhost::LONGEST_PAYLOAD);
    match vhost::request(header, payload) {
        Ok(vhost::Request::SetMemTable(regions)) => assert!((1..=8).contains(&regions.len())),
        Ok(vhost::Request::GetConfig { offset, bytes, flags }) => {
            let answer = vhost::config_reply(header.request, &[7; 12], offset, bytes, flags);
            assert_eq!(answer.len(), 24 + bytes as usize);
            assert!(bytes as usize <= vhost::LONGEST_CONFIG);
        }
        _ => {}
    }
}

/// A guest's memory: the first bytes choose features, ring sizes and positions, the rest is what is in it, from the rings
/// on. Whatever that is, the device ends its work within its bounds.
pub fn virtio_ring(bytes: &[u8]) {
    const MEMORY: usize = 0x1000;
    const RINGS: u64 = 0x100;
    let Some((&[choice, size, to_base, from_base], rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let mut bits = virtio::config::feature::GUEST_CSUM;
    for (i, bit) in [15, 28, 29, 32].into_iter().enumerate() {
        bits |= u64::from(choice >> i & 1) << bit;
    }
    let features = Features::new(bits).expect("features we offer");
    let size = 1 << (size % 5);
    let (to_guest, end) = Driver::layout(size, RINGS);
    let (from_guest, end) = Driver::layout(size, end);
    assert!(end < 0x800, "the rings leave room for buffers");
    let mut image = vec![0; MEMORY];
    let count = rest.len().min(MEMORY - 0x100);
    image[0x100..][..count].copy_from_slice(&rest[..count]);
    let memory = Ram::new(image);
    let rings = [(to_guest, u16::from(to_base)), (from_guest, u16::from(from_base))];
    let mut device = Device::new(rings, features, &memory).expect("rings that are all there");
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    let mut frames = 0;
    for _ in 0..4 {
        match device.receive(&memory, &mut batch) {
            Ok(received) => assert!(!received.more || !batch.is_empty()),
            Err(_) => assert!(batch.is_empty()),
        }
        frames += batch.len();
        for i in 0..batch.len() {
            // Chains of 1,024 buffers, each of all there is.
            assert!(batch.wire_len(i) <= 1024 * MEMORY);
            let _ = batch.work(i).header();
            assert!(batch.frame(i).len() <= batch.wire_len(i));
        }
        // What is lent is sent on, to the same memory, fetched, given back, or forgotten.
        if !batch.lent().is_empty() {
            let lender = Lender {
                device: &device,
                memory: &memory,
            };
            if let Ok(mut other) = Device::new(rings, features, &memory) {
                let _ = other.send(&memory, &batch, batch.all(), Some(&lender));
            }
            match choice >> 4 & 3 {
                0 => {}
                1 => drop(device.release(&memory)),
                _ => {
                    let all = batch.all();
                    if device.fetch(&memory, &mut batch, all).is_ok() {
                        batch.keep(all);
                    }
                    let _ = device.release(&memory);
                }
            }
        }
    }
    assert!(frames <= 4 * fabric::BATCH_FRAMES);
    batch.clear();
    for (bytes, value) in [(14, 1), (60, 2), (700, 3)] {
        batch.append(bytes).expect("there is room").fill(value);
    }
    let mut rest = batch.all();
    for _ in 0..4 {
        let Ok(sent) = device.send(&memory, &batch, rest, None) else {
            break;
        };
        rest = rest.skip(sent.frames);
        let _ = device.watch_room(&memory, sent.frames == 0);
    }
    let _ = device.finish(&memory);
    let _ = device.receive(&memory, &mut batch);
    assert!(memory.has(0, MEMORY as u64), "its memory has kept its length");
}

//! What must hold for any bytes. The fuzz targets call these, and so does a test of the stable toolchain.

use std::time::Duration;

use fabric::{Batch, Domain, Frame, MacAddr, Mode, Plan, PortId, Settings};
use proto::ctl::{Reply, Request};
use proto::uml::{self, Kind, Progress, Version};

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

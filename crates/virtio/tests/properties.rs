//! What must hold between a guest that keeps to the rules and the device, whatever the frames and the buffers.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use fabric::{Batch, FrameSet, HEAD_BYTES};
use proptest::prelude::*;
use virtio::config::{Features, OFFERED, feature};
use virtio::net::{End, LONGEST_FRAME, Lender};
use virtio::ring::Way;
use virtio::{Device, Driver, Memory, OutOfRange, Ram, RingError};

const SIZE: u16 = 16;
const BUFFERS: u64 = 0x4000;

struct Pair {
    memory: Ram,
    device: Device,
    to_guest: Driver,
    from_guest: Driver,
    header: usize,
}

fn pair(bits: u64) -> Pair {
    let memory = Ram::new(vec![0; 0x10_0000]);
    let features = Features::new(bits).expect("features we offer");
    let event_index = features.agreed().event_index;
    let (to_guest, end) = Driver::layout(SIZE, 0x1000);
    let (from_guest, end) = Driver::layout(SIZE, end);
    assert!(end < BUFFERS);
    let device = Device::new([(to_guest, 0), (from_guest, 0)], features, &memory);
    Pair {
        memory,
        device: device.expect("sound rings"),
        to_guest: Driver::new(to_guest, event_index),
        from_guest: Driver::new(from_guest, event_index),
        header: features.header_bytes(),
    }
}

impl Pair {
    /// The guest makes one chain of buffers available and says so; true if the device wants a kick.
    fn offer(&mut self, way: Way, buffers: &[(u64, u32)]) -> bool {
        let driver = match way {
            Way::ToGuest => &mut self.to_guest,
            Way::FromGuest => &mut self.from_guest,
        };
        let head = driver.add(&self.memory, buffers, way).unwrap();
        head.expect("a free descriptor");
        driver.publish(&self.memory).unwrap()
    }
}

fn features() -> impl Strategy<Value = u64> {
    let choices = [
        feature::MRG_RXBUF,
        feature::EVENT_INDEX,
        feature::INDIRECT,
        feature::VERSION_1,
    ];
    prop::collection::vec(any::<bool>(), 4).prop_map(move |chosen| {
        let bits = choices.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        bits.fold(feature::GUEST_CSUM, |all, (bit, _)| all | bit)
    })
}

/// Cuts a length into pieces at these places.
fn pieces(bytes: usize, cuts: &[prop::sample::Index]) -> Vec<usize> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(bytes + 1)).collect();
    places.extend([0, bytes]);
    places.sort_unstable();
    places.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// A guest's frame, and how it is laid out.
fn frames() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<prop::sample::Index>, bool)>> {
    let frame = (
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            (1000..6000_usize).prop_map(|bytes| (0..251).cycle().take(bytes).collect()),
        ],
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        any::<bool>(),
    );
    prop::collection::vec(frame, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_guest_sends_is_received(bits in features(), frames in frames(), rounds in 1..4_usize) {
        let mut pair = pair(bits);
        let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
        for _ in 0..rounds {
            let mut address = BUFFERS;
            let mut sent = Vec::new();
            for (frame, cuts, indirect) in &frames {
                let whole = [&vec![0; pair.header][..], frame].concat();
                let table = address;
                address += 0x100;
                pair.memory.write(address, &whole).unwrap();
                let mut at = address;
                let mut buffers = Vec::new();
                for piece in pieces(whole.len(), cuts) {
                    buffers.push((at, u32::try_from(piece).unwrap()));
                    at += piece as u64;
                }
                let way = Way::FromGuest;
                let added = if *indirect && bits & feature::INDIRECT != 0 {
                    pair.from_guest.add_indirect(&pair.memory, table, &buffers, way)
                } else {
                    pair.from_guest.add(&pair.memory, &buffers, way)
                };
                if added.unwrap().is_none() {
                    break;
                }
                sent.push(frame.clone());
                address = at.next_multiple_of(16);
            }
            prop_assert!(!sent.is_empty() && pair.from_guest.publish(&pair.memory).unwrap());
            let received = pair.device.receive(&pair.memory, &mut batch).unwrap();
            prop_assert!(!received.more);
            let long = |&i: &usize| sent[i].len() >= 2048;
            prop_assert_eq!(batch.lent(), (0..sent.len()).filter(long).collect::<FrameSet>());
            for i in batch.lent() {
                prop_assert_eq!((batch.frame(i), batch.wire_len(i)), (&sent[i][..HEAD_BYTES], sent[i].len()));
            }
            if !batch.lent().is_empty() {
                prop_assert!(pair.from_guest.take(&pair.memory).unwrap().is_none());
                let all = batch.all();
                pair.device.fetch(&pair.memory, &mut batch, all).unwrap();
                batch.keep(all);
                pair.device.release(&pair.memory).unwrap();
            }
            let got: Vec<_> = (0..batch.len()).map(|i| batch.frame(i).to_vec()).collect();
            prop_assert_eq!(&got, &sent);
            let mut back = 0;
            while pair.from_guest.take(&pair.memory).unwrap().is_some() {
                back += 1;
            }
            prop_assert_eq!((back, pair.from_guest.free()), (sent.len(), usize::from(SIZE)));
        }
    }

    #[test]
    fn what_is_sent_reaches_the_guest(
        bits in features(),
        lengths in prop::collection::vec(14..2500_usize, 1..20),
        sizes in prop::collection::vec(400..1500_u32, 1..6),
    ) {
        let mut pair = pair(bits);
        let mergeable = bits & feature::MRG_RXBUF != 0;
        let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
        for (value, &length) in (1_u8..).zip(&lengths) {
            batch.append(length).unwrap().fill(value);
        }
        let mut rest = batch.all();
        let mut got = Vec::new();
        let mut expected: Vec<_> = (0..batch.len()).map(|i| batch.frame(i).to_vec()).collect();
        let mut too_big = Vec::new();
        let mut places = std::collections::HashMap::new();
        let mut sizes = sizes.iter().copied().cycle();
        while !rest.is_empty() {
            // The guest gives what it has: each buffer of some size, at a place of its own.
            while pair.to_guest.free() > 0 {
                let bytes = if mergeable { sizes.next().unwrap() } else { 1800 };
                let slot = (0..).find(|slot| !places.values().any(|&(used, _)| used == *slot)).unwrap();
                let address = BUFFERS + slot * 0x1000;
                let halves = [(address, 7), (address + 7, bytes - 7)];
                let buffers = if pair.to_guest.free() > 1 { &halves[..] } else { &[(address, bytes)] };
                let head = pair.to_guest.add(&pair.memory, buffers, Way::ToGuest).unwrap().unwrap();
                places.insert(head, (slot, bytes));
            }
            pair.to_guest.publish(&pair.memory).unwrap();
            let sent = pair.device.send(&pair.memory, &batch, rest, None).unwrap();
            rest = rest.skip(sent.frames);
            match sent.end {
                End::Done => prop_assert!(rest.is_empty()),
                End::Full => prop_assert!(sent.frames > 0, "a full ring holds one of these"),
                End::Torn => unreachable!("nothing was lent"),
                End::TooBig => {
                    prop_assert!(!rest.is_empty());
                    let index = rest.iter().next().unwrap();
                    too_big.push(index);
                    rest = rest.without(FrameSet(1 << index));
                }
            }
            // The guest takes them back and puts frames together.
            let mut frame = Vec::new();
            let mut parts = 0_u16;
            while let Some((head, written)) = pair.to_guest.take(&pair.memory).unwrap() {
                let (slot, bytes) = places.remove(&head).unwrap();
                prop_assert!(written <= bytes);
                let mut piece = vec![0; written as usize];
                pair.memory.read(BUFFERS + slot * 0x1000, &mut piece).unwrap();
                if parts == 0 {
                    prop_assert!(piece[..10].iter().all(|&byte| byte == 0));
                    parts = if pair.header == 12 { u16::from_le_bytes([piece[10], piece[11]]) } else { 1 };
                    prop_assert!(parts == 1 || mergeable);
                    piece.drain(..pair.header);
                }
                frame.extend(piece);
                parts -= 1;
                if parts == 0 {
                    got.push(std::mem::take(&mut frame));
                }
            }
            prop_assert_eq!(parts, 0);
        }
        let mut index = 0;
        expected.retain(|_| { index += 1; !too_big.contains(&(index - 1)) });
        prop_assert!(too_big.is_empty() || !mergeable);
        prop_assert_eq!(got, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_lent_goes_from_guest_to_guest(
        bits in (features(), features()),
        bytes in 2048..5000_usize,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        room in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let (mut one, mut two) = (pair(bits.0), pair(bits.1));
        let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
        let frame: Vec<u8> = (0..251).cycle().take(bytes).collect();
        let whole = [&vec![0; one.header][..], &frame].concat();
        one.memory.write(BUFFERS, &whole).unwrap();
        let buffers = |bytes, cuts: &[_]| {
            let mut at = BUFFERS;
            let mut buffers = Vec::new();
            for piece in pieces(bytes, cuts) {
                buffers.push((at, u32::try_from(piece).unwrap()));
                at += piece as u64;
            }
            buffers
        };
        one.offer(Way::FromGuest, &buffers(whole.len(), &cuts));
        one.device.receive(&one.memory, &mut batch).unwrap();
        prop_assert_eq!(batch.lent(), FrameSet(1));
        let needed = two.header + bytes;
        two.offer(Way::ToGuest, &buffers(needed, &room));
        let lender = Lender { device: &one.device, memory: &one.memory };
        let sent = two.device.send(&two.memory, &batch, batch.all(), Some(&lender)).unwrap();
        prop_assert_eq!((sent.frames, sent.end), (1, End::Done));
        let written = two.to_guest.take(&two.memory).unwrap().unwrap().1;
        let mut got = vec![0; written as usize];
        two.memory.read(BUFFERS, &mut got).unwrap();
        prop_assert_eq!(&got[two.header..], frame);
        // The guest has its buffers back once they are released, and not before.
        prop_assert!(one.from_guest.take(&one.memory).unwrap().is_none());
        one.device.release(&one.memory).unwrap();
        prop_assert!(one.from_guest.take(&one.memory).unwrap().is_some());
        prop_assert!(one.from_guest.take(&one.memory).unwrap().is_none());
    }
}

/// A guest that has sent one long frame, which is in the batch.
fn lender() -> (Pair, Batch) {
    let mut pair = pair(OFFERED);
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    pair.memory.write(BUFFERS + 12, &[7; 4000]).unwrap();
    let halves = [(BUFFERS, 2012), (BUFFERS + 2012, 2000)];
    pair.offer(Way::FromGuest, &halves);
    pair.device.receive(&pair.memory, &mut batch).unwrap();
    assert_eq!(batch.lent(), FrameSet(1));
    (pair, batch)
}

#[test]
fn a_guest_that_changes_what_it_has_lent_changes_its_payload_alone() {
    let (mut pair, mut batch) = lender();
    let (layout, _) = Driver::layout(SIZE, Driver::layout(SIZE, 0x1000).1);
    // The header, the head, and the payload; then the chain, the available ring and its index.
    pair.memory.write(BUFFERS, &[0xff; 4012]).unwrap();
    for place in 0..u64::from(SIZE) {
        let place = layout.descriptors + 16 * place;
        virtio::driver::describe(&pair.memory, place, u64::MAX, u32::MAX, 7, u16::MAX).unwrap();
        pair.memory
            .store(layout.available + 4 + place % 32, 9999)
            .unwrap();
    }
    let mut other = self::pair(OFFERED);
    other.offer(Way::ToGuest, &[(BUFFERS, 5000)]);
    let from = Lender {
        device: &pair.device,
        memory: &pair.memory,
    };
    let sent = other
        .device
        .send(&other.memory, &batch, batch.all(), Some(&from))
        .unwrap();
    assert_eq!((sent.frames, sent.end), (1, End::Done));
    let mut got = [0; 4012];
    other.memory.read(BUFFERS, &mut got).unwrap();
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert!(got[12..][..HEAD_BYTES].iter().all(|&byte| byte == 7));
    assert!(got[12 + HEAD_BYTES..].iter().all(|&byte| byte == 0xff));
    pair.device.fetch(&pair.memory, &mut batch, FrameSet(1)).unwrap();
    batch.keep(FrameSet(1));
    pair.device.release(&pair.memory).unwrap();
    assert_eq!(
        (batch.frame(0)[HEAD_BYTES - 1], batch.frame(0)[HEAD_BYTES]),
        (7, 0xff)
    );
    assert_eq!(batch.frame(0).len(), 4000);
    assert_eq!(pair.device.positions()[1], 1);
    let error = pair.device.receive(&pair.memory, &mut batch).map(|_| batch.len());
    assert_eq!(error, Ok(0));
}

#[test]
fn a_frame_without_its_lender_goes_nowhere() {
    let (pair, batch) = lender();
    let mut other = self::pair(OFFERED);
    other.offer(Way::ToGuest, &[(BUFFERS, 5000)]);
    let sent = other
        .device
        .send(&other.memory, &batch, batch.all(), None)
        .unwrap();
    assert_eq!((sent.frames, sent.end), (0, End::TooBig));
    assert_eq!(other.device.positions(), [0, 0]);
    drop(pair);
}

/// Memory a part of which is gone once it is copied from.
struct Torn(Ram, std::cell::Cell<bool>);

impl Memory for Torn {
    fn has(&self, address: u64, bytes: u64) -> bool {
        self.0.has(address, bytes)
    }
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        self.0.read(address, into)
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        self.0.write(address, from)
    }
    fn copy_to(&self, from: u64, other: &Self, into: u64, bytes: usize) -> Result<(), OutOfRange> {
        self.1.set(true);
        self.0.copy_to(from, &other.0, into, bytes)
    }
    fn is_whole(&self) -> bool {
        !self.1.get()
    }
    fn load(&self, address: u64) -> Result<u16, OutOfRange> {
        self.0.load(address)
    }
    fn store(&self, address: u64, value: u16) -> Result<(), OutOfRange> {
        self.0.store(address, value)
    }
}

#[test]
fn nobody_is_told_of_frames_whose_lender_has_lost_its_memory() {
    let (pair, batch) = lender();
    let from = Torn(pair.memory, false.into());
    let mut other = self::pair(OFFERED);
    let memory = Torn(other.memory, false.into());
    for place in [0, 0x2000] {
        other
            .to_guest
            .add(&memory, &[(BUFFERS + place, 5000)], Way::ToGuest)
            .unwrap();
    }
    other.to_guest.publish(&memory).unwrap();
    let lender = Lender {
        device: &pair.device,
        memory: &from,
    };
    let sent = other
        .device
        .send(&memory, &batch, batch.all(), Some(&lender))
        .unwrap();
    assert_eq!((sent.frames, sent.end, sent.call), (0, End::Torn, false));
    assert_eq!(other.to_guest.take(&memory).unwrap(), None);
    assert_eq!(other.device.positions(), [0, 0]);
    // Its buffers serve for others' frames.
    let mut whole = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    whole.append(60).unwrap().fill(3);
    let sent = other.device.send(&memory, &whole, whole.all(), None).unwrap();
    assert_eq!((sent.frames, sent.end), (1, End::Done));
    assert_eq!(other.to_guest.take(&memory).unwrap().unwrap().1, 72);
    let mut got = [0; 60];
    memory.read(BUFFERS + 12, &mut got).unwrap();
    assert_eq!(got, [3; 60]);
}

/// One chain of these descriptors (address, length, flags, next), and what becomes of it.
fn chain(bits: u64, descriptors: &[(u64, u32, u16, u16)]) -> Result<usize, RingError> {
    let mut pair = pair(bits);
    pair.offer(Way::FromGuest, &[(BUFFERS, 72)]);
    for (place, &(address, bytes, flags, next)) in (0..).zip(descriptors) {
        let (layout, _) = Driver::layout(SIZE, Driver::layout(SIZE, 0x1000).1);
        let place = layout.descriptors + 16 * place;
        virtio::driver::describe(&pair.memory, place, address, bytes, flags, next).unwrap();
    }
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    pair.device.receive(&pair.memory, &mut batch)?;
    Ok(batch.len())
}

#[test]
fn chains_that_cannot_be_are_errors() {
    let all = OFFERED;
    assert_eq!(chain(all, &[(BUFFERS, 72, 0, 0)]), Ok(1));
    // Shorter than a header: a frame without a byte.
    assert_eq!(chain(all, &[(BUFFERS, 5, 0, 0)]), Ok(1));
    assert_eq!(chain(all, &[(BUFFERS, 0, 0, 0)]), Ok(1));
    // Loops, of one and of many.
    assert_eq!(chain(all, &[(BUFFERS, 1, 1, 0)]), Err(RingError::Endless));
    let long: Vec<_> = (0..SIZE).map(|n| (BUFFERS, 0, 1, (n + 1) % SIZE)).collect();
    assert_eq!(chain(all, &long), Err(RingError::Endless));
    assert_eq!(chain(all, &[(BUFFERS, 1, 1, SIZE)]), Err(RingError::Next(SIZE)));
    assert_eq!(chain(all, &[(BUFFERS, 72, 2, 0)]), Err(RingError::Direction));
    for (address, bytes) in [(0x10_0000, 1), (0xf_fff0, 17), (u64::MAX, 2), (0, u32::MAX)] {
        let error = chain(all, &[(address, bytes, 0, 0)]).unwrap_err();
        assert!(matches!(error, RingError::Outside(_)), "{address:#x}: {error}");
    }
    // Tables: not agreed on, none, no multiple, elsewhere, with a next one, within a table.
    assert_eq!(
        chain(all & !feature::INDIRECT, &[(BUFFERS, 16, 4, 0)]),
        Err(RingError::Indirect)
    );
    for (bytes, flags) in [(0, 4), (24, 4), (16, 5)] {
        assert_eq!(
            chain(all, &[(BUFFERS, bytes, flags, 1)]),
            Err(RingError::Indirect)
        );
    }
    assert!(matches!(
        chain(all, &[(0x10_0000, 16, 4, 0)]),
        Err(RingError::Outside(_))
    ));
    let (table, _) = Driver::layout(SIZE, Driver::layout(SIZE, 0x1000).1);
    let itself = (table.descriptors, 16, 4, 0);
    assert_eq!(chain(all, &[itself]), Err(RingError::Indirect));
}

#[test]
fn a_table_of_more_descriptors_than_any_frame_needs_is_an_error() {
    let mut pair = pair(OFFERED);
    let buffers = vec![(BUFFERS, 1); 1025];
    let table = BUFFERS + 0x1000;
    pair.from_guest
        .add_indirect(&pair.memory, table, &buffers, Way::FromGuest)
        .unwrap();
    pair.from_guest.publish(&pair.memory).unwrap();
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    let error = pair.device.receive(&pair.memory, &mut batch).unwrap_err();
    assert_eq!(error, RingError::Endless);
    assert!(batch.is_empty());
}

#[test]
fn indices_that_cannot_be_are_errors() {
    let mut pair = pair(OFFERED);
    let (layout, _) = Driver::layout(SIZE, Driver::layout(SIZE, 0x1000).1);
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    pair.memory.store(layout.available + 4, SIZE).unwrap();
    pair.memory.store(layout.available + 2, 1).unwrap();
    let error = pair.device.receive(&pair.memory, &mut batch).unwrap_err();
    assert_eq!(error, RingError::Head(SIZE));
    for index in [SIZE + 1, u16::MAX] {
        pair.memory.store(layout.available + 2, index).unwrap();
        let error = pair.device.receive(&pair.memory, &mut batch).unwrap_err();
        assert_eq!(error, RingError::Available(index));
    }
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let memory = Ram::new(vec![0; 0x4000]);
    let (good, end) = Driver::layout(SIZE, 0);
    let (other, _) = Driver::layout(SIZE, end);
    let make = |layout| {
        let features = Features::new(OFFERED).unwrap();
        Device::new([(layout, 0), (other, 0)], features, &memory).map(|_| ())
    };
    assert_eq!(make(good), Ok(()));
    for size in [0, 3, 24, 65_535] {
        assert_eq!(make(virtio::Layout { size, ..good }), Err(RingError::Size(size)));
    }
    let odd = [
        virtio::Layout {
            descriptors: 8,
            ..good
        },
        virtio::Layout { available: 1, ..good },
        virtio::Layout { used: 2, ..good },
    ];
    for layout in odd {
        assert_eq!(make(layout), Err(RingError::Misaligned));
    }
    let far = [
        virtio::Layout {
            descriptors: 0x3ff0,
            ..good
        },
        virtio::Layout {
            available: 0x3ffe,
            ..good
        },
        virtio::Layout { used: !3, ..good },
        virtio::Layout { size: 0x8000, ..good },
    ];
    for layout in far {
        assert!(matches!(make(layout), Err(RingError::Outside(_))), "{layout:?}");
    }
}

#[test]
fn a_frame_waits_until_there_are_buffers_for_all_of_it() {
    let mut pair = pair(OFFERED);
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    batch.append(100).unwrap().fill(1);
    pair.offer(Way::ToGuest, &[(BUFFERS, 60)]);
    let sent = pair.device.send(&pair.memory, &batch, batch.all(), None).unwrap();
    assert_eq!((sent.frames, sent.end, sent.call), (0, End::Full, false));
    assert_eq!(pair.device.watch_room(&pair.memory, true), Ok(false));
    assert!(pair.offer(Way::ToGuest, &[(BUFFERS, 60)]));
    let sent = pair.device.send(&pair.memory, &batch, batch.all(), None).unwrap();
    assert_eq!((sent.frames, sent.end, sent.call), (1, End::Done, true));
    // Buffers that come between the look and the wish for a kick are noticed.
    let sent = pair.device.send(&pair.memory, &batch, batch.all(), None).unwrap();
    assert_eq!(sent.end, End::Full);
    pair.offer(Way::ToGuest, &[(BUFFERS, 60)]);
    assert_eq!(pair.device.watch_room(&pair.memory, true), Ok(true));
}

#[test]
fn a_buffer_too_short_for_a_header_is_an_error() {
    let mut pair = pair(OFFERED);
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    batch.append(100).unwrap();
    pair.offer(Way::ToGuest, &[(BUFFERS, 11)]);
    let error = pair
        .device
        .send(&pair.memory, &batch, batch.all(), None)
        .unwrap_err();
    assert_eq!(error, RingError::Short);
}

#[test]
fn a_device_that_finishes_takes_what_was_sent_before() {
    let mut pair = pair(OFFERED);
    let mut batch = Batch::packed(LONGEST_FRAME, LONGEST_FRAME);
    pair.offer(Way::FromGuest, &[(BUFFERS, 72)]);
    pair.device.finish(&pair.memory).unwrap();
    pair.offer(Way::FromGuest, &[(BUFFERS, 72)]);
    let received = pair.device.receive(&pair.memory, &mut batch).unwrap();
    assert_eq!((batch.len(), received.more), (1, false));
    let received = pair.device.receive(&pair.memory, &mut batch).unwrap();
    assert_eq!((batch.len(), received.more), (0, false));
    assert_eq!(pair.device.positions(), [0, 1]);
}

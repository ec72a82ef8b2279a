//! Proof that forwarding allocates nothing once it is under way, without a capture and with one: the rounds of a real
//! worker between real sockets, under an allocator that counts what this thread does.

use std::sync::Arc;

use allocation_counter::measure;
use fabric::{Filter, Instruction, Mode, Settings};
use socket2::Socket;
use tokio::sync::oneshot;

use super::*;
use crate::datapath::capture::{Drain, FeedId, Next, Wanted, Which, feeds};
use crate::datapath::testing::attach;

const DOMAIN: DomainId = DomainId(1);

/// Frames of a batch, and batches of a measurement.
const FRAMES: usize = 32;
const BATCHES: usize = 200;

/// A worker with one domain, and the guests' ends of its ports.
struct Bench {
    worker: Worker,
    guests: Vec<Socket>,
    /// Dropped, they would tell of ports that have gone.
    _alive: Vec<oneshot::Receiver<std::convert::Infallible>>,
}

impl Bench {
    fn new(mode: Mode) -> Self {
        Self::with(mode, 3, Duration::ZERO)
    }

    fn with(mode: Mode, ports: u32, hold: Duration) -> Self {
        let (mut worker, _) = Worker::new(&Common::new(hold)).unwrap();
        let settings = Settings {
            mode,
            ..Settings::default()
        };
        worker.obey(Command::AddDomain(DOMAIN, settings));
        let (mut guests, mut alive) = (Vec::new(), Vec::new());
        for id in 1..=ports {
            let (guest, gone) = attach(&mut worker, DOMAIN, id);
            guests.push(guest);
            alive.push(gone);
        }
        Self {
            worker,
            guests,
            _alive: alive,
        }
    }

    fn capture(&mut self, which: Which, filter: Option<Filter>, sums: bool) -> Drain {
        let wanted = Wanted {
            which,
            snap_len: usize::MAX,
            ports: Vec::new(),
            filter,
            filter_text: String::new(),
            sums,
        };
        let (feeds, drain) = feeds(FeedId(1), &["A".to_owned()], &Arc::new(wanted));
        for feed in feeds {
            self.worker.obey(Command::AddCapture(DOMAIN, feed));
        }
        drain
    }

    /// Sends batches from guest 1 to guest 2, a runt in each, has them forwarded, and takes all that comes out.
    fn pass(&mut self, batches: usize, drain: Option<&Drain>) {
        let mut frame = [7; 1514];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        let mut room = [std::mem::MaybeUninit::uninit(); 2048];
        for _ in 0..batches {
            for _ in 1..FRAMES {
                self.guests[0].send(&frame).unwrap();
            }
            self.guests[0].send(&frame[..9]).unwrap();
            let mut received = 0;
            while received < FRAMES - 1 {
                assert!(self.worker.round());
                while self.guests[1].recv(&mut room).is_ok() {
                    received += 1;
                }
                while self.guests[2].recv(&mut room).is_ok() {}
            }
            while let Some(Next::Chunk(source, chunk)) = drain.map(|drain| drain.next(Duration::ZERO)) {
                drain.expect("there is a chunk").give_back(source, chunk);
            }
        }
    }

    /// Every guest but the last sends it a batch at once, so that most of them wait for each other; all of it arrives.
    fn converge(&mut self) {
        let (receiver, senders) = self.guests.split_last().unwrap();
        let mut frame = [7; 1514];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 1, 0]);
        for (sender, number) in senders.iter().zip(0..) {
            frame[11] = number;
            for _ in 0..FRAMES {
                sender.send(&frame).unwrap();
            }
        }
        // All are read before anything is taken, so that most of them are held back.
        assert!(self.worker.round());
        while !self.worker.context.ready.is_empty() {
            assert!(self.worker.round());
        }
        let mut room = [std::mem::MaybeUninit::uninit(); 2048];
        let mut received = 0;
        while received < senders.len() * FRAMES {
            while receiver.recv(&mut room).is_ok() {
                received += 1;
            }
            if received < senders.len() * FRAMES {
                assert!(self.worker.round());
            }
        }
    }

    /// Allocations of so many batches, after the first few.
    fn allocations(&mut self, drain: Option<&Drain>) -> u64 {
        self.pass(20, drain);
        measure(|| self.pass(BATCHES, drain)).count_total
    }

    fn captured(&mut self) -> u64 {
        let (answer, mut snapshot) = oneshot::channel();
        self.worker.obey(Command::Snapshot(DOMAIN, answer));
        snapshot.try_recv().unwrap().captures as u64
    }
}

/// A program that keeps frames whose first byte is 2.
fn filter() -> Filter {
    let program = [
        (0x30, 0, 0, 0),
        (0x15, 0, 1, 2),
        (0x06, 0, 0, 0x4_0000),
        (0x06, 0, 0, 0),
    ];
    let instruction = |(code, jt, jf, k)| Instruction { code, jt, jf, k };
    Filter::new(program.map(instruction).to_vec()).unwrap()
}

#[test]
fn the_allocator_counts() {
    assert_eq!(
        measure(|| drop(std::hint::black_box(vec![0_u8; 100]))).count_total,
        1
    );
}

#[test]
fn forwarding_allocates_nothing() {
    for mode in [Mode::Hub, Mode::Switch] {
        let mut bench = Bench::new(mode);
        assert_eq!(bench.allocations(None), 0, "{mode:?}");
    }
}

#[test]
fn ports_that_are_held_back_allocate_nothing() {
    const SENDERS: u32 = 40;
    let mut bench = Bench::with(Mode::Switch, SENDERS + 1, Duration::from_secs(60));
    let mut hello = [7; 60];
    hello[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 1, 0]);
    bench.guests.last().unwrap().send(&hello).unwrap();
    // The port of a guest whose frame was not read yet is to know where the last guest is.
    assert!(bench.worker.round());
    for guest in &bench.guests[..SENDERS as usize] {
        let mut room = [std::mem::MaybeUninit::uninit(); 2048];
        assert_eq!(guest.recv(&mut room).unwrap(), 60);
    }
    let first = measure(|| bench.converge()).count_total;
    // One batch for each that waits, at least.
    assert!(first >= u64::from(SENDERS) / 2, "{first}");
    (0..20).for_each(|_| bench.converge());
    assert_eq!(measure(|| (0..20).for_each(|_| bench.converge())).count_total, 0);
    let freed = measure(|| {
        for _ in 0..3 {
            bench.worker.context.now += Duration::from_secs(3600);
            bench.worker.context.pool.trim(bench.worker.context.now);
        }
    });
    assert!(freed.bytes_current < -1_000_000, "{freed:?}");
    assert_eq!(bench.worker.timeout(), None);
}

#[test]
fn capturing_allocates_nothing() {
    for mode in [Mode::Hub, Mode::Switch] {
        for (which, with_filter, sums) in [
            (Which::Carried, false, false),
            (Which::All, false, true),
            (Which::Dropped, false, false),
            (Which::Carried, true, true),
        ] {
            let mut bench = Bench::new(mode);
            let drain = bench.capture(which, with_filter.then(filter), sums);
            let what = format!("{mode:?}, {which:?}, filter: {with_filter}, sums: {sums}");
            assert_eq!(bench.allocations(Some(&drain)), 0, "{what}");
            assert_eq!((bench.captured(), drain.dropped()), (1, 0), "{what}");
        }
    }
}

#[test]
fn a_reader_that_never_reads_costs_no_memory_once_the_queue_is_full() {
    let mut bench = Bench::new(Mode::Hub);
    let drain = bench.capture(Which::Carried, None, false);
    while drain.dropped() == 0 {
        bench.pass(10, None);
    }
    let before = drain.dropped();
    assert_eq!(bench.allocations(None), 0);
    assert!(drain.dropped() >= before + (BATCHES * (FRAMES - 1)) as u64);
}

#[test]
fn a_capture_that_has_ended_leaves_nothing_to_do() {
    let mut bench = Bench::new(Mode::Hub);
    let drain = bench.capture(Which::All, None, false);
    bench.pass(20, Some(&drain));
    bench.worker.obey(Command::RemoveCapture(DOMAIN, FeedId(1)));
    assert_eq!(bench.captured(), 0);
    assert!(matches!(drain.next(Duration::ZERO), Next::End | Next::Chunk(..)));
    assert_eq!(bench.allocations(None), 0);
}

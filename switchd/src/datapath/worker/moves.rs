//! Proof that a domain can go from worker to worker under load: nothing is lost, overtaken or forgotten.

use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};

use fabric::{Mode, Settings};
use socket2::Socket;
use tokio::sync::oneshot;

use super::*;
use crate::datapath::Handle;
use crate::datapath::testing::vector_port;

const DOMAIN: DomainId = DomainId(7);

/// Frames that cross a domain while it moves.
const FRAMES: u32 = 30_000;

/// Attaches a port and returns the guest's end.
fn attach(worker: &Handle, id: u32) -> (Socket, oneshot::Receiver<std::convert::Infallible>) {
    let (port, guest, gone) = vector_port(id);
    let (done, attached) = oneshot::channel();
    worker.send(Command::Attach(DOMAIN, Box::new(port), done));
    attached.blocking_recv().unwrap().unwrap();
    (guest, gone)
}

fn frame(number: u32) -> [u8; 200] {
    let mut frame = [7; 200];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

#[test]
fn a_domain_moves_under_load() {
    let common = Common::new(Duration::from_millis(500));
    let workers = [0, 1].map(|number| Handle::start(number, &common).unwrap());
    let settings = Settings {
        mode: Mode::Switch,
        ..Settings::default()
    };
    workers[0].send(Command::AddDomain(DOMAIN, settings));
    let (sender, _one) = attach(&workers[0], 1);
    let (receiver, _other) = attach(&workers[0], 2);
    let received = AtomicU32::new(0);
    let snapshot = |worker: &Handle| {
        let (answer, wait) = oneshot::channel();
        worker.send(Command::Snapshot(DOMAIN, answer));
        wait.blocking_recv().unwrap()
    };
    let (mut at, mut moves) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FRAMES {
                assert_eq!(sender.send(&frame(number)).unwrap(), 200);
            }
        });
        scope.spawn(|| {
            let mut room = [0; 2048];
            for number in 0..FRAMES {
                // A switch that knows nobody sends to all: this is the only other port.
                let length = (&receiver).read(&mut room).unwrap();
                assert_eq!(room[..length], frame(number), "frame {number}");
                received.store(number + 1, Ordering::Relaxed);
            }
        });
        while received.load(Ordering::Relaxed) < FRAMES {
            workers[at].hand_over(DOMAIN, &workers[1 - at]);
            at = 1 - at;
            moves += 1;
            // Asked before it has arrived, answered when it has.
            assert_eq!(snapshot(&workers[at]).ports.len(), 2);
        }
    });
    assert!(moves > 10, "{moves} moves are no proof");
    let ports = snapshot(&workers[at]).ports;
    assert_eq!(ports[0].counters.rx_frames, u64::from(FRAMES));
    assert_eq!(ports[1].counters.tx_frames, u64::from(FRAMES));
    assert!(ports.iter().all(|port| port.counters.drops.is_empty()));
}

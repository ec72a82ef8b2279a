//! The dump port of netkit-jh's uml_switch: a port that gets every frame, each once.

use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::switchd::Switchd;
use tests::wait;

#[test]
fn a_dump_port_gets_every_frame_of_a_switch_and_of_a_hub_once() {
    for mode in ["switch", "hub"] {
        let switchd = Switchd::with_domain(&["A", "--mode", mode]);
        let (a, b) = (switchd.attach("A"), switchd.attach("A"));
        let dump = Client::attach_dump(&switchd.uml_socket("A")).unwrap();
        let sent = [
            (&a, frame(BROADCAST, mac(1), 60, 1)),
            (&b, frame(mac(1), mac(2), 61, 2)),
            (&a, frame(mac(2), mac(1), 1514, 3)),
            (&b, frame(mac(1), mac(2), 62, 4)),
        ];
        for (index, (port, frame)) in sent.iter().enumerate() {
            port.send(frame);
            assert_eq!(&dump.recv(), frame, "{mode}: frame {index}");
        }
        assert_eq!(switchd.port("A", 3).kind, "dump");
        assert_eq!(switchd.port("A", 3).tx_frames, 4, "{mode}");
    }
}

#[test]
fn what_a_dump_port_sends_goes_where_it_should() {
    let switchd = Switchd::with_domain(&["A", "--mode", "switch"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let dump = Client::attach_dump(&switchd.uml_socket("A")).unwrap();
    let injected = frame(BROADCAST, mac(3), 60, 1);
    dump.send(&injected);
    assert_eq!((a.recv(), b.recv()), (injected.clone(), injected));
    // Its own station's frames come once, and nobody else's are kept from their station.
    let (to_dump, to_b) = (frame(mac(3), mac(1), 60, 2), frame(BROADCAST, mac(1), 60, 3));
    a.send(&to_dump);
    a.send(&to_b);
    assert_eq!((dump.recv(), dump.recv()), (to_dump, to_b.clone()));
    assert_eq!(b.recv(), to_b);
}

#[test]
fn a_dump_port_that_does_not_read_holds_nobody_back() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let deaf = Client::attach_dump(&switchd.uml_socket("A")).unwrap();
    for seed in 0..500 {
        let frame = frame(BROADCAST, mac(1), 60, seed);
        a.send(&frame);
        assert_eq!(b.recv(), frame);
    }
    let port = switchd.port("A", 3);
    assert_eq!(port.tx_frames + port.drops["queue-full"], 500);
    assert!(port.tx_frames < 20 && port.drops.len() == 1, "{port:?}");
    drop(deaf);
    wait::until_true("the dump port is gone", || switchd.ports("A").len() == 2);
}

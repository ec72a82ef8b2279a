//! The checks of the fuzz targets, on any toolchain: with their seeds, and with bytes made from them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "../../fuzz/src/checks.rs"]
#[expect(unreachable_pub, reason = "public in the crate of the fuzz targets")]
mod checks;

/// What a run of the fuzz targets begins with.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let entries = fs::read_dir(&directory).expect("a directory of seeds");
    let seeds: Vec<_> = entries
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("a file"))
        .collect();
    assert!(seeds.len() >= 3, "{} has lost its seeds", directory.display());
    seeds
}

/// A seed as it is, or with some bytes changed, added or cut off; now and then bytes of no meaning.
fn near(target: &str) -> impl Strategy<Value = Vec<u8>> {
    let changed = (
        prop::sample::select(seeds(target)),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        prop::option::of(any::<prop::sample::Index>()),
        prop::collection::vec(any::<u8>(), 0..40),
    );
    let changed = changed.prop_map(|(mut bytes, changes, end, more)| {
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len() + 1));
        }
        bytes.extend(more);
        bytes
    });
    prop_oneof![4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..600)]
}

#[test]
fn the_seeds_pass() {
    for (target, check) in [
        ("uml_request", checks::uml_request as fn(&[u8])),
        ("ctl_line", checks::ctl_line),
        ("frame", checks::frame),
        ("vhost_message", checks::vhost_message),
        ("virtio_ring", checks::virtio_ring),
        ("tunnel", checks::tunnel),
    ] {
        for seed in seeds(target) {
            check(&seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_request_to_become_a_port_or_refused(bytes in near("uml_request")) {
        checks::uml_request(&bytes);
    }

    #[test]
    fn any_line_is_a_control_request_or_refused(bytes in near("ctl_line")) {
        checks::ctl_line(&bytes);
    }

    #[test]
    fn any_frames_are_forwarded_within_bounds_or_dropped(bytes in near("frame")) {
        checks::frame(&bytes);
    }

    #[test]
    fn any_message_of_a_front_end_is_read_or_refused(bytes in near("vhost_message")) {
        checks::vhost_message(&bytes);
    }

    #[test]
    fn any_memory_of_a_guest_is_worked_off_or_refused(bytes in near("virtio_ring")) {
        checks::virtio_ring(&bytes);
    }

    #[test]
    fn any_header_of_a_tunnel_is_taken_or_refused(bytes in near("tunnel")) {
        checks::tunnel(&bytes);
    }
}

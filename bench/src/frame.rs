//! What the frames of a load carry, so that a receiver knows each of them and sees any damage.
//!
//! ```text
//! 0   destination, source, ethertype 88b5 (IEEE local experimental)
//! 14  magic u32 | run u32 | sender u16 | length u16 | sequence u64 | check u64
//! 42  pattern, to the end
//! ```
//!
//! The check is a hash of the fields before it; it also decides where in a table of fixed noise the pattern starts.
//! So a frame that is cut, mixed from two, or changed in any byte is told from a good one without a checksum over all
//! of it, which would cost the generator more than the copy it is.

use std::ops::Range;
use std::sync::LazyLock;

/// Shortest frame that has room for the fields.
pub const SHORTEST: usize = 60;
/// Longest frame of a load: a jumbo frame with a VLAN tag.
pub const LONGEST: usize = 9018;
/// Sequence number of the frames that announce a port before the load begins.
pub const HELLO: u64 = u64::MAX;

const HEADER: Range<usize> = 0..14;
const MAGIC: Range<usize> = 14..18;
const RUN: Range<usize> = 18..22;
const SENDER: Range<usize> = 22..24;
const LENGTH: Range<usize> = 24..26;
const SEQUENCE: Range<usize> = 26..34;
const CHECK: Range<usize> = 34..42;
/// Bytes of a frame in front of its pattern.
const HEAD_BYTES: usize = 42;

const MAGIC_BYTES: [u8; 4] = *b"hubl";
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// How many places the pattern may start at.
const OFFSETS: usize = 256;

/// Who a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// One port.
    Port(u16),
    /// Everyone.
    All,
}

impl To {
    fn mac(self) -> [u8; 6] {
        match self {
            Self::Port(port) => mac(port),
            Self::All => [0xff; 6],
        }
    }
}

/// The hardware address of a port.
pub fn mac(port: u16) -> [u8; 6] {
    let [high, low] = port.to_be_bytes();
    [0x02, b'h', b'u', b'b', high, low]
}

/// What a good frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The port that sent it.
    pub sender: u16,
    /// Its number among the frames of this sender, or [`HELLO`].
    pub sequence: u64,
}

/// Why a frame is not one of this load's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// It is of another load, or of no load at all.
    Foreign,
    /// It was one of ours and has been changed on the way.
    Damaged,
}

/// Writes and checks the frames of one load.
#[derive(Debug)]
pub struct Codec {
    run: u32,
    /// The same for all loads: those that run at once have one place in the processors' caches.
    noise: &'static [u8],
}

static NOISE: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = (0..(LONGEST + OFFSETS) / 8 + 1).flat_map(|_| {
        state = mix(state);
        state.to_ne_bytes()
    });
    noise.collect()
});

impl Codec {
    /// `run` tells this load's frames from those of others on the same switch.
    pub fn new(run: u32) -> Self {
        Self { run, noise: &NOISE }
    }

    /// Writes a whole frame into `buffer`, which is as long as the frame.
    ///
    /// # Panics
    /// If the frame is shorter than [`SHORTEST`] or longer than [`LONGEST`].
    pub fn write(&self, buffer: &mut [u8], to: To, seen: Seen) {
        let len = buffer.len();
        assert!(
            (SHORTEST..=LONGEST).contains(&len),
            "a frame has 60 to 9018 bytes"
        );
        let check = self.check(seen, len);
        buffer[..HEAD_BYTES].copy_from_slice(&self.head(to, seen, len, check));
        buffer[HEAD_BYTES..].copy_from_slice(self.pattern(check, len));
    }

    /// Reads a frame of `len` bytes that was sent to whom `to` says for its sender.
    ///
    /// # Errors
    /// When the frame is foreign or damaged.
    pub fn read(&self, frame: &[u8], len: usize, to: impl FnOnce(Seen) -> To) -> Result<Seen, Bad> {
        let ours = frame.get(MAGIC) == Some(&MAGIC_BYTES) && frame.get(RUN) == Some(&self.run.to_ne_bytes());
        if !ours {
            return Err(Bad::Foreign);
        }
        let seen = Seen {
            sender: u16::from_ne_bytes(field(frame, SENDER)?),
            sequence: u64::from_ne_bytes(field(frame, SEQUENCE)?),
        };
        let len = if seen.sequence == HELLO { SHORTEST } else { len };
        let check = self.check(seen, len);
        let head = self.head(to(seen), seen, len, check);
        let whole = frame.len() == len
            && frame[..HEAD_BYTES] == head
            && frame[HEAD_BYTES..] == *self.pattern(check, len);
        if whole { Ok(seen) } else { Err(Bad::Damaged) }
    }

    fn head(&self, to: To, seen: Seen, len: usize, check: u64) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..6].copy_from_slice(&to.mac());
        head[6..12].copy_from_slice(&mac(seen.sender));
        head[12..HEADER.end].copy_from_slice(&ETHERTYPE);
        head[MAGIC].copy_from_slice(&MAGIC_BYTES);
        head[RUN].copy_from_slice(&self.run.to_ne_bytes());
        head[SENDER].copy_from_slice(&seen.sender.to_ne_bytes());
        head[LENGTH].copy_from_slice(&wire_length(len).to_ne_bytes());
        head[SEQUENCE].copy_from_slice(&seen.sequence.to_ne_bytes());
        head[CHECK].copy_from_slice(&check.to_ne_bytes());
        head
    }

    fn check(&self, seen: Seen, len: usize) -> u64 {
        let fields = u64::from(self.run) << 32 | u64::from(seen.sender) << 16 | u64::from(wire_length(len));
        mix(fields ^ mix(seen.sequence))
    }

    fn pattern(&self, check: u64, len: usize) -> &[u8] {
        let [start, ..] = check.to_ne_bytes();
        &self.noise[usize::from(start)..][..len - HEAD_BYTES]
    }
}

fn field<const N: usize>(frame: &[u8], at: Range<usize>) -> Result<[u8; N], Bad> {
    let bytes = frame.get(at).and_then(|bytes| bytes.first_chunk());
    bytes.copied().ok_or(Bad::Damaged)
}

fn wire_length(len: usize) -> u16 {
    u16::try_from(len).expect("no frame of a load is longer than LONGEST")
}

/// The finaliser of splitmix64: every bit of the input changes about half of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEEN: Seen = Seen {
        sender: 3,
        sequence: 70_000,
    };

    fn frame(codec: &Codec, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        codec.write(&mut frame, To::Port(5), SEEN);
        frame
    }

    #[test]
    fn good_frames_are_known() {
        let codec = Codec::new(7);
        for len in [SHORTEST, 1514, LONGEST] {
            assert_eq!(codec.read(&frame(&codec, len), len, |_| To::Port(5)), Ok(SEEN));
        }
    }

    #[test]
    fn other_runs_and_other_traffic_are_foreign() {
        let codec = Codec::new(7);
        assert_eq!(
            Codec::new(8).read(&frame(&codec, 60), 60, |_| To::Port(5)),
            Err(Bad::Foreign)
        );
        for other in [&[0; 60][..], &[0xff; 14], &[]] {
            assert_eq!(codec.read(other, 60, |_| To::All), Err(Bad::Foreign));
        }
    }

    #[test]
    fn a_frame_made_of_two_is_damaged() {
        let codec = Codec::new(7);
        let next = Seen {
            sequence: SEEN.sequence + 1,
            ..SEEN
        };
        let (mut first, mut second) = (vec![0; 1514], vec![0; 1514]);
        codec.write(&mut first, To::All, SEEN);
        codec.write(&mut second, To::All, next);
        first[700..].copy_from_slice(&second[700..]);
        assert_eq!(codec.read(&first, 1514, |_| To::All), Err(Bad::Damaged));
    }

    #[test]
    fn the_wrong_destination_is_damage() {
        let codec = Codec::new(7);
        assert_eq!(codec.read(&frame(&codec, 60), 60, |_| To::All), Err(Bad::Damaged));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_seen(len in SHORTEST..2000, at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let codec = Codec::new(7);
            let mut frame = frame(&codec, len);
            frame[at.index(len)] ^= flip;
            prop_assert!(codec.read(&frame, len, |_| To::Port(5)).is_err());
        }

        #[test]
        fn any_cut_is_seen(len in SHORTEST..2000, cut in any::<prop::sample::Index>()) {
            let codec = Codec::new(7);
            let frame = frame(&codec, len);
            prop_assert!(codec.read(&frame[..cut.index(len)], len, |_| To::Port(5)).is_err());
        }
    }
}

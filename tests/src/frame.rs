//! Frames to send, every byte of them known.

/// A station's address: locally administered, told apart by its last byte.
pub const fn mac(n: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, n]
}

/// An address as listings show it.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An ethertype nobody answers to (IEEE 802, local experimental).
pub const EXPERIMENTAL: u16 = 0x88b5;

/// A frame of `length` bytes whose payload is made from `seed`: a byte lost, added or changed shows.
pub fn frame(dst: [u8; 6], src: [u8; 6], length: usize, seed: u32) -> Vec<u8> {
    tagged(dst, src, &[], length, seed)
}

/// The same with VLAN tags, each a tag type and a tag control word. `length` counts them.
///
/// # Panics
/// When the tags do not fit into `length`.
pub fn tagged(dst: [u8; 6], src: [u8; 6], tags: &[(u16, u16)], length: usize, seed: u32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(length);
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&src);
    for (kind, control) in tags {
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&control.to_be_bytes());
    }
    frame.extend_from_slice(&EXPERIMENTAL.to_be_bytes());
    assert!(
        frame.len() <= length,
        "{length} bytes are too few for the headers"
    );
    frame.extend_from_slice(&seed.to_be_bytes()[..(length - frame.len()).min(4)]);
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    while frame.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        frame.push(state.to_be_bytes()[0]);
    }
    frame
}

/// The seed of a frame made by [`frame`] (without tags, of 18 bytes or more).
///
/// # Panics
/// When the frame is too short to have one.
pub fn seed(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame[14..].first_chunk().expect("a frame with a seed"))
}

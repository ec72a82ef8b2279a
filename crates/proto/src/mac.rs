//! The hardware addresses of machines.

use fabric::MacAddr;
use sha1::{Digest, Sha1};

/// The address netkit kernels give an interface: the same at every start of the machine.
pub fn of_machine(machine: &str, interface: &str) -> MacAddr {
    let hash = Sha1::digest(format!("{machine}{interface}"));
    let mut bytes = [0; 6];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = hash[i].wrapping_add(hash[i + 6]);
    }
    // Locally administered, and not a group.
    bytes[0] = bytes[0] & 0xfe | 0x02;
    MacAddr(bytes)
}

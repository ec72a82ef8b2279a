//! The device's side of a virtio network card: rings in a guest's memory, and frames in and out of them.
//!
//! Pure: no descriptor, no clock, no thread. A guest's memory is foreign and changes at any time: whatever is read from
//! it is read once and checked before it is used, and nothing a guest writes there can make this crate panic, loop or
//! reach beyond the memory it was given.
//!
//! ```text
//!   Batch  <-- Device::receive <-- ring "from guest" (queue 1) <-- guest
//!   Batch  --> Device::send    --> ring "to guest"   (queue 0) --> guest
//! ```
//!
//! Source: virtio 1.2, sections 2.7 (split virtqueues) and 5.1 (network device).

#![forbid(unsafe_code)]

pub mod config;
pub mod driver;
pub mod memory;
pub mod net;
pub mod ring;

pub use driver::Driver;
pub use memory::{Memory, OutOfRange, Ram};
pub use net::Device;
pub use ring::{Layout, Ring, RingError};

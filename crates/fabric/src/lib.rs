//! The forwarding core: what goes where, and nothing else.
//!
//! No descriptor, no clock, no thread, no log: frames and the time come in, a [`Plan`] comes out.

#![forbid(unsafe_code)]

pub mod mac;

pub use mac::MacAddr;

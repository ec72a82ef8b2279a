//! Bytes to types and back, for everything that crosses a process boundary.
//!
//! Pure: no descriptor, no clock, no thread. Parsers take untrusted bytes and never panic.

#![forbid(unsafe_code)]

pub mod ctl;
pub mod mac;
pub mod name;
pub mod nic;
pub mod tunnel;
pub mod uml;
pub mod uplink;
pub mod vhost;
pub mod wire;

pub use name::DomainName;

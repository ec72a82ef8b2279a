//! The netlab harness: real programs, started and watched by tests.
//!
//! Nothing here is a stand-in: [`switchd`] runs the daemon that was built, [`client`] speaks the uml_switch protocol
//! over real sockets, [`capture`] reads what
//! was captured with tshark. Whatever a test starts has a guard that ends it, by process number, and looks for leftovers.

#![forbid(unsafe_code)]

pub mod capture;
pub mod client;
pub mod frame;
pub mod golden;
pub mod model;
pub mod netns;
pub mod ports;
pub mod program;
pub mod station;
pub mod switchd;
pub mod uml;
pub mod vhost;
pub mod wait;

//! The control side: listeners, handshakes, the control socket. Asynchronous, on one thread of its own.
//!
//! Its products are ready ports and commands for the data path; no frame passes through here, but for clients of
//! request version 0 (`compat`).

pub(crate) mod accept;
mod attendant;
mod balance;
pub(crate) mod bess;
mod cable;
pub(crate) mod captures;
pub(crate) mod compat;
pub(crate) mod domain;
pub(crate) mod flight;
mod handed;
pub(crate) mod handshake;
pub(crate) mod listeners;
mod nic;
pub(crate) mod peer;
mod plug;
pub(crate) mod recorder;
pub(crate) mod registry;
pub(crate) mod server;
pub(crate) mod sink;
mod stream;
pub(crate) mod tap;
mod uplink;
pub(crate) mod vde;
pub(crate) mod vhost;
mod wire;

//! The forwarding core: what goes where, and nothing else.
//!
//! No descriptor, no clock, no thread, no log: frames and the time come in, a [`Plan`] comes out.
//!
//! ```text
//! Batch --> Domain::forward(ingress, now) --> Plan: for each egress port, which frames of the batch
//!                 |    ^
//!             learn    look up
//!                 v    |
//!                  Fdb
//! ```
//!
//! Memory is bounded by the settings: a batch is allocated once, a plan has one word per port, the forwarding table
//! has a limit per domain and per port. None of them allocates once it has reached its working size.

#![forbid(unsafe_code)]

pub mod batch;
pub mod domain;
pub mod fdb;
pub mod filter;
pub mod frame;
pub mod frames;
pub mod guard;
pub mod mac;
pub mod offload;
pub mod plan;
pub mod port;

pub use batch::{BATCH_FRAMES, Batch, HEAD_BYTES};
pub use domain::{Domain, Mode, Settings, SettingsError};
pub use fdb::{Fdb, FdbRow, StaticError};
pub use filter::{Filter, FilterError, Instruction};
pub use frame::{Frame, Tag, TooShort};
pub use frames::FrameSet;
pub use guard::{Guard, Range};
pub use mac::MacAddr;
pub use offload::Offloads;
pub use plan::{DropReason, Drops, Plan};
pub use port::PortId;

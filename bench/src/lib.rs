//! Load for switches that speak the uml_switch protocol, and the checks that go with it.
//!
//! ```text
//! load        senders --> [ the switch under test ] --> receivers, each checking every frame
//! frame       what a frame carries: sender, sequence number, pattern
//! flow        what a receiver has seen of one sender: lost, reordered, duplicate
//! port        one attachment, as a UML guest makes it
//! contestant  a switch process of its own: Debian's uml_switch or vde_switch, or switchd
//! cell        all contestants under one load, in turns
//! crowd       many loads at once, by two threads
//! many        very many domains in one switchd
//! table       results as Markdown
//! ```
//!
//! `hubload` runs one load against any control socket; `hubbench` starts the switches it compares and runs many.

#![forbid(unsafe_code)]

pub mod busy;
pub mod cell;
pub mod chart;
pub mod contestant;
pub mod control;
pub mod converge;
pub mod crowd;
pub mod flow;
pub mod frame;
pub mod latency;
pub mod load;
pub mod machine;
pub mod many;
pub mod port;
pub mod process;
pub mod report;
pub mod stop;
pub mod table;
mod threads;

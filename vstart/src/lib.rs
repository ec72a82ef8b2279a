//! Starts, lists, reaches and ends User-Mode Linux machines.
//!
//! ```text
//! vstart --spawns--> supervisor --spawns--> UML kernel
//!                      |  owns the console, the domain holds, the record
//!  vlist, vhalt, ... --+-- registry (files + locks), mconsole, console socket
//! ```
//!
//! [`machine`] and [`kernel_args`] are pure. The rest touches the system, each module one side of it.

#![forbid(unsafe_code)]

pub mod agent;
pub mod clean;
pub mod commands;
pub mod config;
pub mod cow;
pub mod cpulock;
pub mod dirs;
pub mod disk;
pub mod halt;
pub mod kernel_args;
pub mod lab;
pub mod launch;
pub mod line;
pub mod listing;
pub mod machine;
pub mod mconsole;
pub mod name;
pub mod plug;
pub mod processes;
pub mod registry;
pub mod settings;
pub mod stage;
pub mod supervisor;
pub mod switch;
pub mod tap;
pub mod terminal;
pub mod transport;
pub mod users;
pub mod windows;
pub mod xstate;

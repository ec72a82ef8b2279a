//! The process that looks after one machine, from before its kernel starts until nothing of it is left.
//!
//! It owns the console, the kernel (its child), the hold on the machine's domains, and the machine's record. vstart
//! starts it, hands it the [`Plan`] on its standard input and reads [`Event`]s from its standard output. As long as
//! the machine is not up, the end of that input (vstart was interrupted) ends the machine as well.
//!
//! When the supervisor itself is killed, the kernel is told by the system (SIGTERM, which it obeys at once), its
//! [`guard`] ends what is left, and the lock on the record falls, so that the next command sees what happened.

mod console;
mod domains;
pub mod guard;
mod interfaces;
mod link;
mod run;
mod telnet;
mod tty;
mod viewers;
mod wires;

pub use viewers::{Answer, Request};

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::machine::Machine;
use crate::registry::Record;

/// The first argument that makes the binary a supervisor; the second is the machine's name, for `ps`.
pub const WORD: &str = "@supervisor";

/// What a supervisor is to do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The machine to run.
    pub machine: Machine,
    /// Where the user keeps things.
    pub dirs: Dirs,
    /// Size of the window the first console is shown in, in rows and columns.
    pub window: Option<(u16, u16)>,
    /// Commands that show a console in a window, for each console.
    pub windows: [Option<Vec<Vec<String>>>; 2],
    /// The device that connects the domain `tap` to the host.
    #[serde(default)]
    pub tap: Option<String>,
}

/// What a supervisor tells vstart, one JSON line each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Something was done; for the user to read.
    Step(String),
    /// Consoles can be attached to.
    Consoles {
        /// The device of each console that is shown on a pseudo-terminal.
        ptys: [Option<PathBuf>; 2],
    },
    /// The machine can be used.
    Up(Box<Record>),
    /// The machine could not be started; nothing of it is left.
    Failed {
        /// Why.
        message: String,
        /// The last the kernel said.
        console: Vec<String>,
    },
    /// The machine has ended after it was up; nothing of it is left.
    Ended {
        /// Whether it ended of its own will.
        clean: bool,
        /// How it ended, if not.
        message: String,
    },
}

/// Writes events for as long as somebody listens.
#[derive(Debug)]
struct Events(io::Stdout);

impl Events {
    fn send(&self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("an event has only text keys");
        line.push('\n');
        // vstart has left when the machine is up: that is no error.
        let _ = self
            .0
            .lock()
            .write_all(line.as_bytes())
            .and_then(|()| self.0.lock().flush());
    }
}

/// Runs a supervisor.
pub fn main() -> ExitCode {
    let events = Events(io::stdout());
    match prepare().and_then(|plan| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(run::supervise(plan, &events)))
    }) {
        Ok(last) => {
            events.send(&last);
            ExitCode::SUCCESS
        }
        Err(error) => {
            events.send(&Event::Failed {
                message: format!("{error:#}"),
                console: Vec::new(),
            });
            ExitCode::FAILURE
        }
    }
}

/// Leaves the caller's session and reads the plan.
fn prepare() -> anyhow::Result<Plan> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let plan = serde_json::from_str(&line)?;
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    // A kernel that panics dumps core: as large as the guest's memory, and of no use to its user.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(plan)
}

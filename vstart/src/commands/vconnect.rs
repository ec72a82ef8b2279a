//! `vconnect`: attach to a console.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::name::MachineName;
use crate::registry::Status;
use crate::terminal::{Left, attach};

/// Attach to a machine's console
///
/// What was shown before is shown again. Several terminals may be attached at once. Ctrl-] detaches; the machine
/// runs on.
#[derive(Debug, Parser)]
#[command(
    name = "vconnect",
    version,
    after_help = "Examples:\n  vconnect pc1\n  vconnect pc1 --con 1"
)]
pub(crate) struct Options {
    /// The machine
    name: MachineName,
    /// The console: 0 is the primary one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    con: u8,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let name = &options.name;
    let record = registry.find(name)?;
    if record.status == Status::Crashed {
        anyhow::bail!("machine {name} has crashed\nhint: 'vcrash {name}' clears away what is left of it");
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!("{name}: attached; Ctrl-] detaches");
    }
    match attach(&registry.dirs().console_socket(name), usize::from(options.con))? {
        Left::Detached => eprintln!("{name}: detached; it runs on"),
        Left::MachineEnded => eprintln!("{name}: ended"),
    }
    Ok(ExitCode::SUCCESS)
}

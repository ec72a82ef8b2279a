//! `vhalt`: shut machines down.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use crate::halt::{ask, crash};
use crate::name::MachineName;
use crate::registry::{Registry, Status};

/// Shut machines down
///
/// All machines are asked first and waited for then. One that does not end in time is ended at once, and vhalt
/// says so.
#[derive(Debug, Parser)]
#[command(
    name = "vhalt",
    version,
    after_help = "Examples:\n  vhalt pc1\n  vhalt --timeout 60 pc1 pc2 router"
)]
pub(crate) struct Options {
    /// The machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<MachineName>,
    /// Longest wait for a machine to end
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let begun = Instant::now();
    let asked: Vec<Result<()>> = options
        .names
        .iter()
        .map(|name| request(&registry, name))
        .collect();
    let mut failed = false;
    for (name, asked) in options.names.iter().zip(asked) {
        let patience = Duration::from_secs(options.timeout).saturating_sub(begun.elapsed());
        let result = asked.and_then(|()| finish(&registry, name, patience, options));
        if let Err(error) = result {
            failed = true;
            eprintln!("vhalt: {error:#}");
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn request(registry: &Registry, name: &MachineName) -> Result<()> {
    if registry.find(name)?.status == Status::Crashed {
        return Ok(());
    }
    match ask(registry, name) {
        Err(error) if registry.find(name).is_ok() => {
            eprintln!("vhalt: {error:#}; it will be ended at once");
            crash(registry, name).map(drop)
        }
        // It ended at this moment.
        _ => Ok(()),
    }
}

fn finish(registry: &Registry, name: &MachineName, patience: Duration, options: &Options) -> Result<()> {
    let begun = Instant::now();
    let mut told = begun;
    let ended = registry.wait_for_end(name, patience, || {
        if !options.quiet && told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("{name}: halting, {} s", begun.elapsed().as_secs());
        }
    })?;
    if !ended {
        eprintln!(
            "vhalt: machine {name} did not halt within {} s; it will be ended at once",
            options.timeout
        );
        crash(registry, name)?;
    } else if registry.clear_crashed(name)? {
        eprintln!("vhalt: machine {name} had crashed; what was left of it is cleared away");
    }
    if !options.quiet {
        eprintln!("{name}: halted");
    }
    Ok(())
}

const PROGRESS: Duration = Duration::from_secs(2);

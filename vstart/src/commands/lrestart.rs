//! `lrestart`: halt a lab and start it again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use super::labs::code;
use super::lhalt::finish;
use super::lstart::{Starting, launch, prepare};
use crate::halt::Force;
use crate::lab::end::{Manner, running};

/// Halt the machines of a lab and start them again
///
/// The lab's files are read first: with a mistake in them, nothing is halted.
#[derive(Debug, Parser)]
#[command(
    name = "lrestart",
    version,
    after_help = "Examples:\n  lrestart\n  lrestart r1 r2\n  lrestart --quick"
)]
pub(super) struct Options {
    #[command(flatten)]
    starting: Starting,
    /// Do not let the machines shut down: end them at once
    #[arg(long)]
    quick: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let starting = &options.starting;
    let config = super::config()?;
    let lab = starting.place.lab(starting.force_lab)?;
    let work = prepare(&lab, starting, &config, &[])?;
    let registry = super::registry()?;
    let records = running(&lab, &lab.select(&starting.place.names)?, &registry)?;
    let manner = if options.quick {
        Manner::Crash(Force::Kill)
    } else {
        Manner::Halt(HALT_PATIENCE)
    };
    if !records.is_empty() && !finish(&lab, &records, manner, false, &registry, false) {
        return Ok(code(false));
    }
    launch(&work, starting, &config)
}

const HALT_PATIENCE: Duration = Duration::from_secs(30);

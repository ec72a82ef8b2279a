//! `lclean`: remove what machines have left in a lab.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use super::labs::Where;
use crate::lab::end::{leftovers, remove, running};
use crate::launch::note;
use crate::registry::Status;

/// Remove what machines have left in a lab: disks, logs and marks
///
/// These are NAME.disk, NAME.log, NAME.ready and NAME.testdone of each machine, and readyfor.test. The lab's machines
/// must not be running.
#[derive(Debug, Parser)]
#[command(
    name = "lclean",
    version,
    after_help = "Examples:\n  lclean\n  lclean -d ~/labs/two-routers r1"
)]
pub(super) struct Options {
    #[command(flatten)]
    place: Where,
    /// Do without lab.conf
    #[arg(short = 'F', long)]
    force_lab: bool,
    /// Name each file that is removed
    #[arg(short, long)]
    verbose: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let lab = options.place.lab(options.force_lab)?;
    let machines = lab.select(&options.place.names)?;
    let records = running(&lab, &machines, &super::registry()?)?;
    if let Some(record) = records.iter().find(|record| record.status != Status::Crashed) {
        let name = &record.machine.name;
        bail!("cannot clean the lab: machine {name} is running\nhint: 'lhalt' ends the lab's machines");
    }
    let files = leftovers(&lab, &machines);
    for file in &files {
        remove(file)?;
        if options.verbose {
            note(&format!("removed {}", file.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

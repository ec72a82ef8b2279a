//! `lcrash`: end a lab at once.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use super::labs::{Where, code};
use super::lhalt::{finish, leave_tap};
use crate::halt::Force;
use crate::lab::end::{Manner, running};

/// End the machines of a lab at once, as if their power were cut
///
/// The machines' disks in the lab are removed, unless they are to be kept: after a power cut, nobody can rely on
/// them. Machines of the same names that do not belong to the lab are left alone.
#[derive(Debug, Parser)]
#[command(
    name = "lcrash",
    version,
    after_help = "Examples:\n  lcrash\n  lcrash --keep-fs -d ~/labs/two-routers r1"
)]
pub(super) struct Options {
    #[command(flatten)]
    place: Where,
    /// Do without lab.conf
    #[arg(long)]
    force_lab: bool,
    /// Keep the machines' disks
    #[arg(short = 'F', long)]
    keep_fs: bool,
    /// Do not tell the kernels to stop: begin with SIGTERM
    #[arg(short = 'k', long, alias = "kill")]
    just_kill: bool,
    /// SIGKILL, and without a word
    #[arg(short, long, conflicts_with = "just_kill")]
    quick: bool,
    /// List the machines that still run
    #[arg(short, long)]
    list: bool,
    /// Say nothing but errors
    #[arg(long)]
    quiet: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let lab = options.place.lab(options.force_lab)?;
    let registry = super::registry()?;
    let records = running(&lab, &lab.select(&options.place.names)?, &registry)?;
    let manner = Manner::Crash(match (options.quick, options.just_kill) {
        (true, _) => Force::Kill,
        (_, true) => Force::Terminate,
        _ => Force::Console,
    });
    let quiet = options.quiet || options.quick;
    let mut well = finish(&lab, &records, manner, !options.keep_fs, &registry, quiet);
    well &= leave_tap("lcrash", &registry);
    if options.list {
        super::vlist::run(&super::vlist::Options::parse_from(["vlist"]))?;
    }
    Ok(code(well))
}

//! What the l* commands share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, CommandFactory, Parser};

use super::{lclean, lcrash, lhalt, linfo, lrestart, lstart, ltest};
use crate::lab::{Lab, Level, Problem};
use crate::launch::note;
use crate::name::MachineName;

/// Which lab, and which machines of it.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// The lab's directory [default: the current one]
    #[arg(short, long = "directory", value_name = "DIRECTORY")]
    pub(super) directory: Option<PathBuf>,
    /// Machines of the lab [default: all]
    #[arg(value_name = "NAME")]
    pub(super) names: Vec<MachineName>,
}

impl Where {
    /// Reads the lab; without `forced`, there must be a `lab.conf`.
    pub(super) fn lab(&self, forced: bool) -> Result<Lab> {
        Lab::load(self.directory.as_deref().unwrap_or(Path::new(".")), forced)
    }
}

/// The lab commands.
pub(super) const NAMES: [&str; 7] = [
    "lclean", "lcrash", "lhalt", "linfo", "lrestart", "lstart", "ltest",
];

/// Runs one of them.
pub(super) fn run(name: &str, args: Vec<OsString>) -> Result<ExitCode> {
    match name {
        "lclean" => lclean::run(&lclean::Options::parse_from(args)),
        "lcrash" => lcrash::run(&lcrash::Options::parse_from(args)),
        "lhalt" => lhalt::run(&lhalt::Options::parse_from(args)),
        "linfo" => linfo::run(&linfo::Options::parse_from(linfo::with_auto(args))),
        "lrestart" => lrestart::run(&lrestart::Options::parse_from(lstart::with_parallel(args))),
        "ltest" => ltest::run(&ltest::Options::parse_from(lstart::with_parallel(args))),
        _ => lstart::run(&lstart::Options::parse_from(lstart::with_parallel(args))),
    }
}

/// Their definitions.
pub(super) fn definitions() -> Vec<clap::Command> {
    vec![
        lclean::Options::command(),
        lcrash::Options::command(),
        lhalt::Options::command(),
        linfo::Options::command(),
        lrestart::Options::command(),
        lstart::Options::command(),
        ltest::Options::command(),
    ]
}

/// Tells of problems; an error if one of them is.
pub(super) fn tell(lab: &Lab, problems: &[Problem]) -> Result<()> {
    for problem in problems {
        note(&problem.to_string());
    }
    let errors = problems.iter().filter(|p| p.level == Level::Error).count();
    if errors > 0 {
        let s = if errors == 1 { "" } else { "s" };
        bail!(
            "cannot start the lab in {}: {errors} error{s} in its files",
            lab.dir.display()
        );
    }
    Ok(())
}

pub(super) const fn code(well: bool) -> ExitCode {
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

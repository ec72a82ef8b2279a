//! `vdump`: capture a domain.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use crate::switch::{SwitchError, program};

/// Show what passes through collision domains, or write it to standard output
///
/// The options are those of 'switchd vdump'; see 'vdump --help'.
#[derive(Debug, Parser)]
#[command(name = "vdump", disable_help_flag = true)]
pub(crate) struct Options {
    /// What 'switchd vdump' takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let dirs = super::dirs()?;
    let switchd = program("switchd").ok_or(SwitchError::NoProgram)?;
    let error = Command::new(&switchd)
        .arg("--dir")
        .arg(&dirs.hubs)
        .arg("vdump")
        .args(&options.arguments)
        .exec();
    Err(error).with_context(|| format!("cannot run {}", switchd.display()))
}

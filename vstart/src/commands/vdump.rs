//! `vdump`: capture a domain.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use proto::DomainName;

use crate::switch::{SwitchError, program};

/// Write the frames of a collision domain to standard output, as pcapng
///
/// Ends with Ctrl-C, or when nobody reads any more.
#[derive(Debug, Parser)]
#[command(
    name = "vdump",
    version,
    after_help = "Examples:\n  vdump A | tshark -r -\n  vdump A > a.pcapng"
)]
pub(crate) struct Options {
    /// The domain
    domain: DomainName,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let dirs = super::dirs()?;
    let switchd = program("switchd").ok_or(SwitchError::NoProgram)?;
    let error = Command::new(&switchd)
        .args(["capture", "--dir"])
        .arg(&dirs.hubs)
        .args([options.domain.as_str(), "-w", "-"])
        .exec();
    Err(error).with_context(|| format!("cannot run {}", switchd.display()))
}

//! `vcrash`: end machines at once.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::halt::{Ended, crash};
use crate::name::MachineName;

/// End machines at once, as if their power were cut
///
/// Every process of a machine is ended. What is left of a machine that crashed by itself is cleared away.
#[derive(Debug, Parser)]
#[command(
    name = "vcrash",
    version,
    after_help = "Examples:\n  vcrash pc1\n  vcrash pc1 pc2 router"
)]
pub(crate) struct Options {
    /// The machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<MachineName>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let mut failed = false;
    for name in &options.names {
        match crash(&registry, name) {
            Ok(_) if options.quiet => {}
            Ok(Ended::Running) => eprintln!("{name}: ended"),
            Ok(Ended::Leftovers) => eprintln!("{name}: had crashed; what was left of it is cleared away"),
            Err(error) => {
                failed = true;
                eprintln!("vcrash: {error:#}");
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

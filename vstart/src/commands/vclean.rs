//! `vclean`: put right what crashes have left.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::name::MachineName;

/// Clear away what is left of machines that crashed
///
/// Processes whose supervisor was killed, records, sockets. Running machines and the disks of machines are not
/// touched. With -T, the user's tap is taken away too, and whatever was changed on the host for it.
#[derive(Debug, Parser)]
#[command(
    name = "vclean",
    version,
    after_help = "Examples:\n  vclean\n  vclean pc1\n  vclean -T"
)]
pub(crate) struct Options {
    /// Machines to look at; all if none is named
    #[arg(value_name = "NAME")]
    names: Vec<MachineName>,
    /// Take the tap away too (with sudo, unless root)
    #[arg(short = 'T', long = "remove-taps")]
    taps: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let names = if options.names.is_empty() {
        registry.names()?
    } else {
        options.names.clone()
    };
    let mut failed = false;
    for name in names {
        match registry.clear_crashed(&name) {
            Ok(true) if !options.quiet => {
                eprintln!("{name}: had crashed; what was left of it is cleared away")
            }
            Ok(_) => {}
            Err(error) => {
                failed = true;
                eprintln!("vclean: {:#}", anyhow::Error::from(error));
            }
        }
    }
    if options.taps
        && let Err(error) = crate::tap::remove()
    {
        failed = true;
        eprintln!("vclean: {:#}", anyhow::Error::from(error));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

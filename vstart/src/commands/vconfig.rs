//! `vconfig`: the settings.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde_json::json;

use crate::config::DEFAULTS;

/// Show the settings and where each comes from
///
/// They are read from netkit.conf in NETKIT_HOME, /etc and ~/.netkit, and from NETKIT_* variables; the last counts.
#[derive(Debug, Parser)]
#[command(
    name = "vconfig",
    version,
    after_help = "Examples:\n  vconfig --show\n  vconfig --json"
)]
pub(crate) struct Options {
    /// Show the settings; the default, as there is nothing else to do
    #[arg(long)]
    show: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let config = super::config()?;
    let mut out = io::stdout().lock();
    if options.json {
        let rows: Vec<_> = config
            .settings
            .iter()
            .map(|(name, setting)| {
                let used = DEFAULTS.iter().any(|(known, _)| *known == name);
                json!({ "name": name, "value": setting.value, "origin": setting.origin.to_string(), "used": used })
            })
            .collect();
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        for (name, setting) in config.settings.iter() {
            let used = DEFAULTS.iter().any(|(known, _)| *known == name);
            let note = if used { "" } else { ", without effect" };
            writeln!(
                out,
                "{name}={}  # {}{note}",
                crate::kernel_args::shell_quoted(&setting.value),
                setting.origin
            )?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

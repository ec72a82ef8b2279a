//! `lhalt`: shut a lab down.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use super::labs::{Where, code};
use crate::halt::Force;
use crate::lab::Lab;
use crate::lab::end::{Manner, Way, end, running};
use crate::launch::note;
use crate::registry::{Record, Registry};

/// Shut the machines of a lab down
///
/// All are asked at once. One that does not end in time is ended at once, and lhalt says so. Machines of the same
/// names that do not belong to the lab are left alone.
#[derive(Debug, Parser)]
#[command(
    name = "lhalt",
    version,
    after_help = "Examples:\n  lhalt\n  lhalt -d ~/labs/two-routers r1\n  lhalt --timeout 60"
)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) place: Where,
    /// Do without lab.conf
    #[arg(short = 'F', long)]
    force_lab: bool,
    /// Longest wait for the machines to end
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Do not let the machines shut down: end them at once
    #[arg(short, long, conflicts_with = "remove_fs")]
    quick: bool,
    /// Remove the machines' disks in the lab
    #[arg(short, long)]
    remove_fs: bool,
    /// List the machines that still run
    #[arg(short, long)]
    list: bool,
    /// Say nothing but errors
    #[arg(long)]
    quiet: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let manner = if options.quick {
        Manner::Crash(Force::Kill)
    } else {
        Manner::Halt(Duration::from_secs(options.timeout))
    };
    let lab = options.place.lab(options.force_lab)?;
    let registry = super::registry()?;
    let records = running(&lab, &lab.select(&options.place.names)?, &registry)?;
    let mut well = finish(
        &lab,
        &records,
        manner,
        options.remove_fs,
        &registry,
        options.quiet,
    );
    well &= leave_tap("lhalt", &registry);
    if options.list {
        super::vlist::run(&super::vlist::Options::parse_from(["vlist"]))?;
    }
    Ok(code(well))
}

/// Takes the tap away when the last machine that used it has gone; false if that fails.
pub(super) fn leave_tap(command: &str, registry: &Registry) -> bool {
    match crate::tap::release(command, registry) {
        Ok(_) => true,
        Err(error) => {
            note(&format!(
                "{command}: cannot take the tap away: {:#}\nhint: 'vclean -T' tries again",
                anyhow::Error::from(error)
            ));
            false
        }
    }
}

/// Ends machines and says so; false if one could not be.
pub(super) fn finish(
    lab: &Lab,
    records: &[Record],
    manner: Manner,
    remove_disks: bool,
    registry: &Registry,
    quiet: bool,
) -> bool {
    let well = AtomicBool::new(true);
    if records.is_empty() && !quiet {
        note(&format!(
            "no machine of the lab in {} is running",
            lab.dir.display()
        ));
    }
    end(
        lab,
        records,
        manner,
        remove_disks,
        registry,
        |name, way| match way {
            Ok(Way::Asked) if quiet => {}
            Ok(Way::Asked) if matches!(manner, Manner::Crash(_)) => note(&format!("{name}: ended")),
            Ok(Way::Asked) => note(&format!("{name}: halted")),
            Ok(Way::Forced) => note(&format!("{name}: did not halt in time and was ended at once")),
            Ok(Way::Crashed) => note(&format!(
                "{name}: had crashed; what was left of it is cleared away"
            )),
            Err(error) => {
                well.store(false, Ordering::Relaxed);
                note(&format!("cannot end {name}: {error:#}"));
            }
        },
    );
    well.into_inner()
}

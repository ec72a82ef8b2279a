//! `vcrash`: end machines at once.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use super::{delegate, ok};
use crate::halt::{Ended, Force, crash_by, kill, remove_changes};
use crate::launch::note;
use crate::name::MachineName;
use crate::processes::{Process, of_machine};
use crate::registry::{Registry, Status};

/// End machines at once, as if their power were cut
///
/// A machine's kernel is told to stop; if it does not, it gets SIGTERM, and then SIGKILL. Every process of a machine is
/// ended. What is left of a machine that crashed by itself is cleared away.
#[derive(Debug, Parser)]
#[command(
    name = "vcrash",
    version,
    after_help = "Examples:\n  vcrash pc1\n  vcrash -r pc1 pc2 router\n  vcrash --test pc1\n  sudo vcrash -u bob pc1"
)]
pub(crate) struct Options {
    /// The machines, by name or process
    #[arg(required = true, value_name = "NAME")]
    names: Vec<MachineName>,
    /// Do not tell the kernel to stop: begin with SIGTERM
    #[arg(short = 'k', long, alias = "kill")]
    just_kill: bool,
    /// SIGKILL, without waiting for its effect and without a word
    #[arg(short, long, conflicts_with_all = ["just_kill", "remove_fs", "verbose"])]
    quick: bool,
    /// Remove the files with the machines' changes to their model file systems
    #[arg(short, long)]
    remove_fs: bool,
    /// Keep those files, as without -r
    #[arg(short = 'F', long, conflicts_with = "remove_fs")]
    keep_fs: bool,
    /// Show what would be ended, and end nothing
    #[arg(long, visible_alias = "dry-run", conflicts_with_all = ["quick", "quiet"])]
    test: bool,
    /// Crash machines of another user, or with - of whoever runs one of that name; for root
    #[arg(short, long, value_name = "USER", allow_hyphen_values = true)]
    user: Option<String>,
    /// Name the processes that are ended
    #[arg(short, long)]
    verbose: bool,
    /// Say nothing but errors
    #[arg(long, conflicts_with = "verbose")]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let words = super::flags(&[
        ("--just-kill", options.just_kill),
        ("--quick", options.quick),
        ("--remove-fs", options.remove_fs),
        ("--test", options.test),
        ("--verbose", options.verbose),
        ("--quiet", options.quiet),
    ]);
    if let Some(code) = delegate(options.user.as_deref(), "vcrash", &words, &options.names)? {
        return Ok(code);
    }
    let registry = super::registry()?;
    let mut well = true;
    for id in &options.names {
        well &= ok("vcrash", end(&registry, id, options));
    }
    Ok(super::labs::code(well))
}

fn end(registry: &Registry, id: &MachineName, options: &Options) -> Result<()> {
    let name = &registry.resolve(id)?;
    let record = registry.find(name);
    if options.test || options.verbose {
        let record = registry.find(name)?;
        let mut processes = of_machine(registry.dirs(), name);
        processes.push(record.supervisor);
        let pids: Vec<_> = processes
            .into_iter()
            .filter(|process: &Process| process.is_alive())
            .map(|process| process.pid.to_string())
            .collect();
        let by = if options.just_kill || options.quick || record.status == Status::Crashed {
            String::new()
        } else {
            format!(
                "management console {}, ",
                registry.dirs().mconsole_socket(name).display()
            )
        };
        note(&format!("{name}: {by}processes {}", pids.join(" ")));
    }
    if options.test {
        return Ok(());
    }
    let ended = if options.quick {
        kill(registry, name)?
    } else {
        let force = if options.just_kill {
            Force::Terminate
        } else {
            Force::Console
        };
        crash_by(registry, name, force)?
    };
    if options.remove_fs
        && let Ok(record) = record
    {
        remove_changes(&record)?;
    }
    match ended {
        _ if options.quiet || options.quick => {}
        Ended::Running => note(&format!("{name}: ended")),
        Ended::Leftovers => note(&format!(
            "{name}: had crashed; what was left of it is cleared away"
        )),
    }
    Ok(())
}

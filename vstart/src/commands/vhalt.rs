//! `vhalt`: shut machines down.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use super::{delegate, ok};
use crate::halt::{ask, crash, remove_changes};
use crate::launch::note;
use crate::name::MachineName;
use crate::registry::{Registry, Status};

/// Shut machines down
///
/// All machines are asked first and waited for then. One that does not end in time is ended at once, and vhalt
/// says so.
#[derive(Debug, Parser)]
#[command(
    name = "vhalt",
    version,
    after_help = "Examples:\n  vhalt pc1\n  vhalt --timeout 60 pc1 pc2 router\n  vhalt -r pc1\n  sudo vhalt -u bob pc1"
)]
pub(crate) struct Options {
    /// The machines, by name or process
    #[arg(required = true, value_name = "NAME")]
    names: Vec<MachineName>,
    /// Longest wait for a machine to end
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Do not let the machines shut down: end them at once
    #[arg(short, long, conflicts_with = "remove_fs")]
    quick: bool,
    /// Ask the machines to shut down, and do not wait for it
    #[arg(long, conflicts_with_all = ["quick", "remove_fs", "timeout"])]
    no_wait: bool,
    /// Remove the files with the machines' changes to their model file systems
    #[arg(short, long)]
    remove_fs: bool,
    /// Halt machines of another user, or with - of whoever runs one of that name; for root
    #[arg(short, long, value_name = "USER", allow_hyphen_values = true)]
    user: Option<String>,
    /// Say nothing but warnings and errors
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(code) = delegate(options.user.as_deref(), "vhalt", &options.words(), &options.names)? {
        return Ok(code);
    }
    let registry = super::registry()?;
    let begun = Instant::now();
    let mut asked = Vec::new();
    let mut well = true;
    for id in &options.names {
        match registry.resolve(id).map_err(Into::into).and_then(|name| {
            request(&registry, &name, options.quick)?;
            Ok::<_, anyhow::Error>(name)
        }) {
            Ok(name) => asked.push(name),
            Err(error) => well &= ok("vhalt", Err(error)),
        }
    }
    for name in asked.iter().filter(|_| !options.no_wait) {
        let patience = Duration::from_secs(options.timeout).saturating_sub(begun.elapsed());
        well &= ok("vhalt", finish(&registry, name, patience, options));
    }
    Ok(super::labs::code(well))
}

impl Options {
    /// The options as words, for whoever acts for us.
    fn words(&self) -> Vec<String> {
        let mut words = vec![format!("--timeout={}", self.timeout)];
        if self.no_wait {
            words.clear();
        }
        let flags = [
            ("--quick", self.quick),
            ("--no-wait", self.no_wait),
            ("--remove-fs", self.remove_fs),
            ("--quiet", self.quiet),
        ];
        words.extend(super::flags(&flags));
        words
    }
}

fn request(registry: &Registry, name: &MachineName, quick: bool) -> Result<()> {
    if registry.find(name)?.status == Status::Crashed {
        return Ok(());
    }
    if quick {
        return crash(registry, name).map(drop);
    }
    match ask(registry, name) {
        Err(error) if registry.find(name).is_ok() => {
            note(&format!("vhalt: {error:#}; it will be ended at once"));
            crash(registry, name).map(drop)
        }
        // It ended at this moment.
        _ => Ok(()),
    }
}

fn finish(registry: &Registry, name: &MachineName, patience: Duration, options: &Options) -> Result<()> {
    let begun = Instant::now();
    let mut told = begun;
    let record = registry.find(name).ok();
    let ended = registry.wait_for_end(name, patience, || {
        if !options.quiet && told.elapsed() >= PROGRESS {
            told = Instant::now();
            note(&format!("{name}: halting, {} s", begun.elapsed().as_secs()));
        }
    })?;
    if !ended {
        note(&format!(
            "vhalt: machine {name} did not halt within {} s; it will be ended at once",
            options.timeout
        ));
        crash(registry, name)?;
    } else if registry.clear_crashed(name)? {
        note(&format!(
            "vhalt: machine {name} had crashed; what was left of it is cleared away"
        ));
    }
    if options.remove_fs
        && let Some(record) = record
    {
        remove_changes(&record)?;
    }
    if !options.quiet {
        let how = if options.quick { "ended" } else { "halted" };
        note(&format!("{name}: {how}"));
    }
    Ok(())
}

const PROGRESS: Duration = Duration::from_secs(2);

//! `vclean`: put right what crashes have left.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use super::ok;
use crate::clean::{Cleaner, Deed};
use crate::launch::note;
use crate::name::MachineName;
use crate::users::Whose;

/// Clear away what is left of machines that crashed
///
/// Without options: processes whose supervisor was killed, records, sockets. Running machines and the disks of machines
/// are not touched. The options clear away more, and nothing but what is the user's own.
#[derive(Debug, Parser)]
#[command(
    name = "vclean",
    version,
    after_help = "Examples:\n  vclean\n  vclean pc1\n  vclean -T\n  vclean --clean-all --test\n  sudo vclean -u - --clean-all"
)]
pub(crate) struct Options {
    /// Crashed machines to look at; all if none is named
    #[arg(value_name = "NAME", conflicts_with_all = ["remove_hubs", "force", "kill_machines", "clean_directories", "clean_all"])]
    names: Vec<MachineName>,
    /// Remove domains that no machine and nothing else is attached to
    #[arg(short = 'H', long)]
    remove_hubs: bool,
    /// Remove all domains, in use or not, and end switchd
    #[arg(short, long)]
    force: bool,
    /// End all machines at once, and then switchd
    #[arg(short = 'K', long)]
    kill_machines: bool,
    /// Take the tap away, and whatever was changed on the host for it (with sudo, unless root)
    #[arg(short = 'T', long, alias = "remove-taps")]
    remove_tunnels: bool,
    /// Empty the directories of machines, management consoles and domains of what nobody uses
    #[arg(long)]
    clean_directories: bool,
    /// All of these: -f -H -K -T --clean-directories
    #[arg(long)]
    clean_all: bool,
    /// Show what would be cleared away, and touch nothing
    #[arg(long, visible_alias = "dry-run", conflicts_with = "quiet")]
    test: bool,
    /// Clear up for another user, or with - for all; for root
    #[arg(short, long, value_name = "USER", allow_hyphen_values = true)]
    user: Option<String>,
    /// Name everything that is ended or removed
    #[arg(short, long)]
    verbose: bool,
    /// Say nothing but errors
    #[arg(short, long, alias = "quick", conflicts_with = "verbose")]
    quiet: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let all = options.clean_all;
    let mut well = true;
    let whose = Whose::read(options.user.as_deref())?;
    if whose == Whose::Own {
        let registry = super::registry()?;
        let cleaner = Cleaner {
            registry: &registry,
            dry: options.test,
            tell: &|deed, what| options.tell(deed, what),
        };
        well &= ok("vclean", cleaner.crashed(&options.names));
        if options.kill_machines || all {
            well &= ok("vclean", cleaner.machines());
        }
        if options.remove_hubs && !(options.force || options.kill_machines || all) {
            well &= ok("vclean", cleaner.unused_domains());
        }
        if options.force || options.kill_machines || all {
            well &= ok("vclean", cleaner.switch());
        }
        if options.clean_directories || all {
            well &= ok("vclean", cleaner.directories());
        }
    } else {
        let words = options.words();
        for owner in whose.owners() {
            let status = owner.command(&words)?.status()?;
            well &= status.success();
        }
    }
    if options.remove_tunnels || all {
        let result = match &whose {
            Whose::Own => own_tap(options.test),
            Whose::User(owner) => crate::tap::remove("vclean", &["--user", &owner.name], options.test),
            Whose::All => crate::tap::remove("vclean", &["--all"], options.test),
        };
        well &= ok("vclean", result.map_err(Into::into));
    }
    Ok(super::labs::code(well))
}

fn own_tap(dry: bool) -> Result<(), crate::tap::TapError> {
    crate::tap::remove("vclean", &[], dry)?;
    if let (false, Ok(dirs)) = (dry, super::dirs()) {
        crate::tap::forget(&dirs);
    }
    Ok(())
}

impl Options {
    /// What another user's vclean is to do: all but the tap, which is root's business.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["vclean".to_owned()];
        words.extend(super::flags(&[
            ("--remove-hubs", self.remove_hubs),
            ("--force", self.force || self.clean_all),
            ("--kill-machines", self.kill_machines || self.clean_all),
            ("--clean-directories", self.clean_directories || self.clean_all),
            ("--test", self.test),
            ("--verbose", self.verbose),
            ("--quiet", self.quiet),
        ]));
        words.extend(self.names.iter().map(ToString::to_string));
        words
    }

    fn tell(&self, deed: Deed, what: &str) {
        match deed {
            _ if self.quiet => {}
            Deed::Crashed if self.test => note(&format!(
                "{what}: has crashed; what is left of it would be cleared away"
            )),
            Deed::Crashed => note(&format!(
                "{what}: had crashed; what was left of it is cleared away"
            )),
            Deed::Machine if self.test => note(&format!("{what}: would be ended")),
            Deed::Machine => note(&format!("{what}: ended")),
            Deed::Thing if self.test => note(&format!("{what} would be removed")),
            Deed::Thing if self.verbose => note(&format!("removed {what}")),
            Deed::Thing => {}
        }
    }
}

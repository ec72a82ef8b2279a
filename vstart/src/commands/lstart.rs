//! `lstart`: start a lab.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser};
use indicatif::{ProgressBar, ProgressStyle};

use super::labs::{Where, code, tell};
use crate::config::Config;
use crate::kernel_args::shell_quoted;
use crate::lab::ext;
use crate::lab::externals::{join, missing};
use crate::lab::options::{arguments, lab_arguments, split};
use crate::lab::start::{Fate, How, News, Work, start};
use crate::lab::{Lab, Level};
use crate::launch::note;
use crate::registry::Registry;

/// Start the machines of a lab
///
/// A lab is a directory with a file lab.conf; each of its sub-directories is a machine, whose files are copied into
/// the machine. Several machines start at once; lab.dep says which wait for which. The command returns when all are
/// ready: their start-up commands are through.
#[derive(Debug, Parser)]
#[command(name = "lstart", version, after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) starting: Starting,
    /// Only look for mistakes in the lab's files
    #[arg(long, conflicts_with = "print")]
    check: bool,
    /// Print the vstart commands that would be run, and run nothing
    #[arg(long, visible_alias = "dry-run", aliases = ["just-print", "recon"])]
    print: bool,
}

/// The options that other commands share.
#[derive(Debug, Args)]
pub(super) struct Starting {
    #[command(flatten)]
    pub(super) place: Where,
    /// Do without lab.conf: every sub-directory is a machine
    #[arg(short = 'F', long)]
    pub(super) force_lab: bool,
    /// Machines that may be starting at the same time, 0 for any number; also -pN [default: MAX_SIMULTANEOUS_VMS of
    /// netkit.conf]
    #[arg(short, long, value_name = "N", num_args = 0..=1, require_equals = true)]
    parallel: Option<Option<u16>>,
    /// Start one machine after the other
    #[arg(short, long, conflicts_with = "parallel")]
    sequential: bool,
    /// Do not wait for start-up commands, only for machines to be up
    #[arg(short, long)]
    fast: bool,
    /// Pause between the starts of two machines [default: GRACE_TIME of netkit.conf]
    #[arg(short, long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Longest wait for the start-up commands of a machine
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Further options for every vstart, in one word
    #[arg(short = 'o', long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pass: Vec<String>,
    /// Show the primary consoles in tmux sessions and open a window on each
    #[arg(long, conflicts_with = "tmux_detached")]
    tmux_attached: bool,
    /// Show the primary consoles in tmux sessions
    #[arg(long)]
    tmux_detached: bool,
    /// List the machines afterwards
    #[arg(short, long)]
    list: bool,
    /// Let every vstart tell what it does
    #[arg(short, long)]
    verbose: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  lstart
  lstart -d ~/labs/two-routers r1 r2
  lstart -p4 -o '--mem=64 --con0=tmux'
  lstart --check";

/// Turns `-p4` into `--parallel=4`: the number is optional, and never the next word, which is a machine.
pub(super) fn with_parallel(args: Vec<OsString>) -> Vec<OsString> {
    let mut options = true;
    args.into_iter()
        .map(|arg| {
            options &= arg != "--";
            let number = arg.to_str().and_then(|text| text.strip_prefix("-p"));
            match number.filter(|text| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())) {
                Some(number) if options => format!("--parallel={number}").into(),
                _ => arg,
            }
        })
        .collect()
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let starting = &options.starting;
    let config = super::config()?;
    let lab = starting.place.lab(starting.force_lab)?;
    let work = prepare(&lab, starting, &config, &[])?;
    if options.check {
        return Ok(code(check(&lab, &work)?));
    }
    if options.print {
        let mut out = std::io::stdout().lock();
        for external in &work.externals {
            writeln!(out, "# {}: switchd {}", ext::FILE, external.arguments().join(" "))?;
        }
        for (_, arguments) in &work.machines {
            let words = std::iter::once("vstart").chain(arguments.iter().map(String::as_str));
            let words: Vec<_> = words.map(shell_quoted).collect();
            writeln!(out, "{}", words.join(" "))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    launch(&work, starting, &config)
}

/// Decides everything, and tells of mistakes. `further` are arguments for every vstart.
pub(super) fn prepare(lab: &Lab, starting: &Starting, config: &Config, further: &[String]) -> Result<Work> {
    let here = std::env::current_dir().context("cannot find the current directory")?;
    let vstart = super::vstart::Options::command();
    let mut common = lab_arguments(lab, &here);
    for text in &starting.pass {
        let words = split(text).map_err(anyhow::Error::msg);
        common.extend(words.context("cannot split the options of --pass")?);
    }
    common.extend(super::flags(&[
        ("--tmux-attached", starting.tmux_attached),
        ("--tmux-detached", starting.tmux_detached),
    ]));
    common.extend(further.iter().cloned());
    let mut problems = lab.problems.clone();
    let (mut machines, mut domains) = (Vec::new(), BTreeSet::new());
    for machine in lab.select(&starting.place.names)? {
        let (mut arguments, wrong) = arguments(machine, &vstart, config.max_interfaces);
        problems.extend(wrong);
        arguments.extend(common.iter().cloned());
        machines.push((machine.name.clone(), arguments));
        domains.extend(
            machine
                .interfaces
                .iter()
                .map(|interface| interface.attachment.domain()),
        );
    }
    let externals = lab.externals.iter();
    let externals: Vec<_> = externals
        .filter(|external| domains.contains(&external.domain))
        .cloned()
        .collect();
    problems.extend(externals.iter().filter_map(missing));
    if starting.quiet {
        problems.retain(|problem| problem.level == Level::Error);
    }
    tell(lab, &problems)?;
    Ok(Work {
        dir: lab.dir.clone(),
        machines,
        needs: lab.needs.clone(),
        externals,
    })
}

/// Lets vstart look at every machine: whether its kernel, disks and directories are there.
fn check(lab: &Lab, work: &Work) -> Result<bool> {
    let exe = std::env::current_exe().context("cannot find our own program")?;
    let mut well = true;
    for (name, arguments) in &work.machines {
        let output = Command::new(&exe)
            .arg("vstart")
            .args(arguments)
            .args(["--print", "--quiet"])
            .current_dir(&work.dir)
            .stdin(Stdio::null())
            .output()
            .context("cannot run vstart")?;
        if !output.status.success() {
            well = false;
            let text = String::from_utf8_lossy(&output.stderr);
            note(&format!("{name}: {}", text.trim_end().replace("vstart: ", "")));
        }
    }
    if well {
        note(&format!(
            "{}: {} machines, no errors",
            lab.dir.display(),
            work.machines.len()
        ));
    }
    Ok(well)
}

/// Starts the machines and shows how far they are.
pub(super) fn launch(work: &Work, starting: &Starting, config: &Config) -> Result<ExitCode> {
    let parallel = match starting.parallel.flatten() {
        _ if starting.sequential => 1,
        Some(0) => usize::MAX,
        Some(most) => usize::from(most),
        None => config.simultaneous,
    };
    let how = How {
        parallel,
        fast: starting.fast,
        pause: starting.wait.map_or(config.pause, Duration::from_secs),
        patience: Duration::from_secs(starting.timeout),
        verbose: starting.verbose,
    };
    let begun = Instant::now();
    // Held until the machines hold their domains themselves.
    let _held = join(&work.externals, &config.dirs)?;
    let progress = Progress::new(work.machines.len(), starting);
    let mut under_way: Vec<String> = Vec::new();
    let mut running = 0;
    let well = start(work, how, &Registry::new(config.dirs.clone()), |news| {
        match news {
            News::Starting(name) => under_way.push(name.to_string()),
            News::Over(name, fate) => {
                under_way.retain(|other| other != name.as_str());
                running += usize::from(matches!(fate, Fate::Started(_) | Fate::Running));
                progress.over(name.as_str(), fate, starting.fast);
            }
        }
        progress.bar.set_message(under_way.join(" "));
    });
    progress.bar.finish_and_clear();
    if !starting.quiet {
        note(&format!(
            "{running} of {} machines run after {:.1} s; 'vconnect NAME' shows a console, 'lhalt' ends the lab",
            work.machines.len(),
            begun.elapsed().as_secs_f64()
        ));
    }
    if starting.list {
        super::vlist::run(&super::vlist::Options::parse_from(["vlist"]))?;
    }
    Ok(code(well))
}

/// A bar on a terminal, a line for each machine elsewhere.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    fn new(machines: usize, starting: &Starting) -> Self {
        let hidden = starting.quiet || starting.verbose || !std::io::stderr().is_terminal();
        let bar = if hidden {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(u64::try_from(machines).unwrap_or(u64::MAX))
        };
        let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {wide_msg}");
        bar.set_style(style.expect("the template is right").progress_chars("=> "));
        Self {
            bar,
            quiet: starting.quiet,
        }
    }

    fn over(&self, name: &str, fate: &Fate, fast: bool) {
        let text = match fate {
            Fate::Started(_) | Fate::Running if self.quiet => None,
            Fate::Started(time) => {
                let state = if fast { "up" } else { "ready" };
                Some(format!("{name}: {state} after {:.1} s", time.as_secs_f64()))
            }
            Fate::Running => Some(format!("{name}: runs already")),
            Fate::Failed(error) => Some(format!("lstart: cannot start {name}: {error:#}")),
            Fate::Lost(other) => Some(format!(
                "lstart: {name} is not started: it waits for {other} (lab.dep)"
            )),
        };
        if let Some(text) = text {
            self.bar.suspend(|| note(&text));
        }
        self.bar.inc(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parallel(args: &[&str]) -> Option<Option<u16>> {
        let args = std::iter::once("lstart").chain(args.iter().copied());
        let options = Options::try_parse_from(with_parallel(args.map(OsString::from).collect())).unwrap();
        options.starting.parallel
    }

    #[test]
    fn the_number_behind_p_is_optional() {
        assert_eq!(parallel(&[]), None);
        assert_eq!(parallel(&["-p", "pc1"]), Some(None));
        assert_eq!(parallel(&["-p12", "pc1"]), Some(Some(12)));
        assert_eq!(parallel(&["--parallel=3"]), Some(Some(3)));
        assert_eq!(parallel(&["-p0"]), Some(Some(0)), "no limit");
    }

    #[test]
    fn contradictions_are_misuse() {
        for args in [
            &["-p2", "-s"][..],
            &["--check", "--print"],
            &["-q", "-v"],
            &["a/b"],
        ] {
            let args = std::iter::once("lstart").chain(args.iter().copied());
            let error = Options::try_parse_from(with_parallel(args.map(OsString::from).collect()));
            assert_eq!(error.unwrap_err().exit_code(), 2);
        }
    }
}

//! `vdisk`: disks of machines, outside machines.

use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::vdisk_build as build;
use crate::disk::{self, Disk, Watch};
use crate::machine::Root;
use crate::name::MachineName;

/// Make, look at and merge disks of machines
///
/// A machine keeps its changes to a model file system in a file of its own (copy on write). Such a file belongs to one
/// model, which must not be changed any more.
#[derive(Debug, Parser)]
#[command(
    name = "vdisk",
    version,
    after_help = "Examples:\n  vdisk info pc1.disk\n  vdisk merge pc1.disk new-model\n  \
                  vdisk make data.disk --size 1G\n  vdisk make pc1.disk --model-fs model\n  \
                  vdisk build model --from tree/\n  sudo vdisk build model --debootstrap bookworm --include tcpdump"
)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty disk, or a file for changes to a model
    Make(Make),
    /// Tell what a disk is, how much of it has been changed, and who uses it
    Info {
        /// The disks
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the changes of a machine and the model together
    Merge(Merge),
    /// Make a model file system
    Build(build::Build),
}

#[derive(Debug, Args)]
struct Make {
    /// The new file
    file: PathBuf,
    /// The model the changes will be to
    #[arg(short, long, value_name = "FILE", required_unless_present = "size")]
    model_fs: Option<PathBuf>,
    /// Size of an empty disk, in bytes, or with K, M, G or T
    #[arg(short, long, value_parser = build::bytes, conflicts_with = "model_fs")]
    size: Option<u64>,
    /// Replace a file that is there
    #[arg(short = 'F', long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Merge {
    /// The file with the changes
    changes: PathBuf,
    /// The new model
    #[arg(required_unless_present = "into_model")]
    output: Option<PathBuf>,
    /// Write the changes into the model itself; changes of other machines to it are of no use then
    #[arg(long, conflicts_with = "output")]
    into_model: bool,
    /// Where the model is now, if not where it was
    #[arg(short, long, value_name = "FILE")]
    model_fs: Option<PathBuf>,
    /// Replace a file that is there, and merge with a model that has changed since
    #[arg(short = 'F', long)]
    force: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match &options.command {
        Command::Make(make) => run_make(make)?,
        Command::Info { files, json } => info(files, *json)?,
        Command::Merge(merge) => run_merge(merge)?,
        Command::Build(build) => build::run(build)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_make(make: &Make) -> Result<()> {
    let mut output = Output::new(&make.file, make.force)?;
    let file = output.file.as_file_mut();
    match (&make.model_fs, make.size) {
        (Some(model), _) => {
            let header = disk::header_of(model)?;
            disk::make_changes(file, &make.file, &header)?;
        }
        (None, Some(bytes)) => file
            .set_len(bytes)
            .with_context(|| format!("cannot make {}", make.file.display()))?,
        (None, None) => bail!(
            "cannot make {}: neither --size nor --model-fs",
            make.file.display()
        ),
    }
    output.finish()
}

fn run_merge(merge: &Merge) -> Result<()> {
    let changes = Disk::take(&merge.changes, false)?;
    let header = changes.changes()?;
    let path = merge.model_fs.as_ref().unwrap_or(&header.backing);
    let model = Disk::take(path, merge.into_model)?;
    if !merge.force {
        disk::check_unchanged(&merge.changes, header, path)?;
    }
    let changed = changes.changed_sectors()? * u64::from(header.sector);
    let interrupted = interruptions()?;
    if merge.into_model {
        let mut progress = Progress::new("merging", changed, interrupted);
        changes.write_changes(&model, &mut progress).with_context(|| {
            format!(
                "cannot merge into {}\nhint: --force does it again",
                path.display()
            )
        })?;
        model.sync()?;
        progress.bar.finish_and_clear();
        say(&format!(
            "{}: {} of changes are in {} now",
            merge.changes.display(),
            HumanBytes(changed),
            path.display()
        ));
        return Ok(());
    }
    let target = merge.output.as_deref().context("there is no new model")?;
    let output = Output::new(target, merge.force)?;
    let new = Disk::new(
        target.to_owned(),
        output.file.reopen().context("cannot open the new model")?,
    );
    let mut progress = Progress::new("merging", header.bytes + changed, interrupted);
    model.copy_to(&new, &mut progress)?;
    changes.write_changes(&new, &mut progress)?;
    new.sync()?;
    progress.bar.finish_and_clear();
    output.finish()?;
    say(&format!(
        "{}: {} with {} of changes",
        target.display(),
        path.display(),
        HumanBytes(changed)
    ));
    Ok(())
}

/// What `info` tells about a disk.
#[derive(Serialize)]
struct Info {
    file: PathBuf,
    /// `changes`, a kind of file system, or `unknown`.
    kind: &'static str,
    bytes: u64,
    bytes_on_host: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Changes>,
    /// Machines that run on it.
    used_by: Vec<MachineName>,
}

#[derive(Serialize)]
struct Changes {
    model: PathBuf,
    /// `unchanged`, `changed` or `missing`.
    model_is: &'static str,
    model_bytes: u64,
    changed_bytes: u64,
}

fn info(files: &[PathBuf], json: bool) -> Result<()> {
    let all = files.iter().map(|file| look(file)).collect::<Result<Vec<_>>>()?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &all).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        for info in &all {
            show(&mut out, info)?;
        }
    }
    Ok(out.flush()?)
}

fn look(path: &Path) -> Result<Info> {
    let disk = Disk::look(path)?;
    let (bytes, bytes_on_host) = disk.size()?;
    let changes = match &disk.header {
        None => None,
        Some(header) => Some(Changes {
            model: header.backing.clone(),
            model_is: match header.backing.exists() {
                false => "missing",
                true if disk::check_unchanged(path, header, &header.backing).is_ok() => "unchanged",
                true => "changed",
            },
            model_bytes: header.bytes,
            changed_bytes: disk.changed_sectors()? * u64::from(header.sector),
        }),
    };
    let mut start = vec![0; 2048];
    let length = disk
        .start(&mut start)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let kind = if changes.is_some() {
        "changes"
    } else {
        build::kind(&start[..length])
    };
    Ok(Info {
        file: path.to_owned(),
        kind,
        bytes,
        bytes_on_host,
        changes,
        used_by: users(path)?,
    })
}

fn show(out: &mut impl Write, info: &Info) -> io::Result<()> {
    writeln!(out, "{}", info.file.display())?;
    match &info.changes {
        Some(changes) => {
            let state = match changes.model_is {
                "unchanged" => "",
                "changed" => ", which has changed since: a machine cannot use them together",
                _ => ", which is not there",
            };
            writeln!(out, "  changes to  {}{state}", changes.model.display())?;
            writeln!(
                out,
                "  changed     {} of {}",
                HumanBytes(changes.changed_bytes),
                HumanBytes(changes.model_bytes)
            )?;
        }
        None => {
            writeln!(out, "  contents    {}", info.kind)?;
            writeln!(out, "  size        {}", HumanBytes(info.bytes))?;
        }
    }
    writeln!(out, "  on the host {}", HumanBytes(info.bytes_on_host))?;
    for name in &info.used_by {
        writeln!(out, "  used by     machine {name}")?;
    }
    Ok(())
}

/// Machines of the user that run on a disk.
fn users(path: &Path) -> Result<Vec<MachineName>> {
    let Ok(wanted) = path.canonicalize() else {
        return Ok(Vec::new());
    };
    let is_it = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == wanted);
    let records = super::registry()?.list()?;
    let users = records.iter().filter(|record| {
        let root = match &record.machine.root {
            Root::Host { .. } => false,
            Root::Disk { model, changes } => is_it(model) || changes.as_ref().is_some_and(is_it),
        };
        root || record.machine.disks.iter().any(|disk| is_it(&disk.file))
    });
    Ok(users.map(|record| record.machine.name.clone()).collect())
}

/// A new file that has its name only when it is finished; until then it goes when this value does.
pub(super) struct Output {
    pub(super) file: NamedTempFile,
    target: PathBuf,
    force: bool,
}

impl Output {
    pub(super) fn new(target: &Path, force: bool) -> Result<Self> {
        if !force && target.exists() {
            bail!(
                "cannot make {}: it is there already\nhint: --force replaces it",
                target.display()
            );
        }
        let target = super::disks::absolute(target)?;
        let directory = target.parent().context("a file is in a directory")?;
        let file = tempfile::Builder::new()
            .prefix(".vdisk-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)
            .with_context(|| format!("cannot make {}", target.display()))?;
        Ok(Self { file, target, force })
    }

    pub(super) fn finish(self) -> Result<()> {
        let result = if self.force {
            self.file.persist(&self.target)
        } else {
            self.file.persist_noclobber(&self.target)
        };
        result
            .map(drop)
            .with_context(|| format!("cannot make {}", self.target.display()))
    }
}

/// Shows how far it is, if somebody looks, and hears of interruptions.
struct Progress {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    fn new(what: &'static str, bytes: u64, interrupted: Arc<AtomicBool>) -> Self {
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new(bytes)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}");
        bar.set_style(style.expect("the template is right").progress_chars("=> "));
        bar.set_message(what);
        Self { bar, interrupted }
    }
}

impl Watch for Progress {
    fn advance(&mut self, bytes: u64) -> bool {
        self.bar.inc(bytes);
        !self.interrupted.load(Ordering::Relaxed)
    }
}

/// Becomes true when the user wants no more, so that what is unfinished can be removed.
pub(super) fn interruptions() -> Result<Arc<AtomicBool>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("cannot block signals")?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = interrupted.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            told.store(true, Ordering::Relaxed);
        }
    });
    Ok(interrupted)
}

pub(super) fn say(text: &str) {
    crate::launch::note(text);
}

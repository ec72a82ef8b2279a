//! Starts the machines of a lab, several at once, and waits until each is ready.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::dep::Needs;
use super::ext::External;
use super::schedule::Schedule;
use crate::machine::Root;
use crate::name::MachineName;
use crate::registry::{Registry, RegistryError, Status};
use crate::stage::Stage;

/// What to start.
#[derive(Clone, Debug)]
pub struct Work {
    /// The lab's directory.
    pub dir: PathBuf,
    /// Each machine and the arguments of its vstart.
    pub machines: Vec<(MachineName, Vec<String>)>,
    /// Who waits for whom.
    pub needs: Needs,
    /// Which of their domains are joined to interfaces of the host.
    pub externals: Vec<External>,
}

/// How to start it.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Machines that may be starting at the same time.
    pub parallel: usize,
    /// Takes a machine for started as soon as it is up, its start-up commands still running.
    pub fast: bool,
    /// Pause between two starts.
    pub pause: Duration,
    /// Longest wait for the start-up commands of a machine.
    pub patience: Duration,
    /// Lets vstart tell what it does.
    pub verbose: bool,
}

/// How it went with one machine.
#[derive(Debug)]
pub enum Fate {
    /// It has been started, in this time.
    Started(Duration),
    /// It was running already.
    Running,
    /// It could not be started.
    Failed(anyhow::Error),
    /// It waits for one that could not be started.
    Lost(MachineName),
}

/// What is told on the way.
#[derive(Debug)]
pub enum News<'a> {
    /// A machine is being started.
    Starting(&'a MachineName),
    /// That is over.
    Over(&'a MachineName, &'a Fate),
}

/// Starts the machines; false if one could not be.
pub fn start(work: &Work, how: How, registry: &Registry, mut tell: impl FnMut(&News<'_>)) -> bool {
    let names: Vec<_> = work.machines.iter().map(|(name, _)| name.clone()).collect();
    let mut schedule = Schedule::new(&names, &work.needs, how.parallel);
    let (mut all_well, mut first) = (true, true);
    let (over, overs) = mpsc::channel();
    std::thread::scope(|scope| {
        while !schedule.is_over() {
            while let Some(name) = schedule.start_one() {
                if !std::mem::take(&mut first) {
                    std::thread::sleep(how.pause);
                }
                tell(&News::Starting(&name));
                let over = over.clone();
                scope.spawn(move || {
                    let fate = run(work, how, registry, &name).unwrap_or_else(Fate::Failed);
                    // The receiver lives as long as the scope.
                    let _ = over.send((name, fate));
                });
            }
            let (name, fate) = overs.recv().expect("we hold a sender ourselves");
            tell(&News::Over(&name, &fate));
            let well = matches!(fate, Fate::Started(_) | Fate::Running);
            all_well &= well;
            for lost in schedule.done(&name, well) {
                tell(&News::Over(&lost, &Fate::Lost(name.clone())));
            }
        }
    });
    all_well
}

fn run(work: &Work, how: How, registry: &Registry, name: &MachineName) -> Result<Fate> {
    match registry.find(name) {
        Ok(record) if record.status != Status::Crashed => {
            if record.machine.hostlab.as_ref() == Some(&work.dir) {
                return Ok(Fate::Running);
            }
            bail!(
                "a machine named {name} is running that does not belong to this lab\nhint: 'vhalt {name}' ends it"
            );
        }
        Ok(_) | Err(RegistryError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let ready_file = work.dir.join(format!("{name}.ready"));
    match std::fs::remove_file(&ready_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", ready_file.display()));
        }
        _ => {}
    }
    let (_, arguments) = work
        .machines
        .iter()
        .find(|(known, _)| known == name)
        .with_context(|| format!("machine {name} is not in the lab"))?;
    let begun = Instant::now();
    vstart(work, how, arguments)?;
    if !how.fast {
        wait_until_ready(registry, name, &ready_file, how.patience)?;
    }
    Ok(Fate::Started(begun.elapsed()))
}

/// Runs vstart to its end, which is when the machine is up. It ends with us, and then so does the machine.
fn vstart(work: &Work, how: How, arguments: &[String]) -> Result<()> {
    let exe = std::env::current_exe().context("cannot find our own program")?;
    let stage = Stage {
        parent: Some(std::process::id()),
        ..Stage::default()
    };
    let mut command: Command = stage.command(&exe);
    command.arg("vstart").args(arguments);
    if !how.verbose {
        command.arg("--quiet");
    }
    let output = command
        .current_dir(&work.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if how.verbose {
            Stdio::inherit()
        } else {
            Stdio::piped()
        })
        .output()
        .context("cannot run vstart")?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim_end().replace("vstart: ", "");
    Err(if text.is_empty() {
        anyhow!("vstart failed: {}", output.status)
    } else {
        anyhow!(text)
    })
}

fn wait_until_ready(
    registry: &Registry,
    name: &MachineName,
    ready_file: &Path,
    patience: Duration,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut look = Instant::now();
    loop {
        let marked = ready_file.exists();
        // The record is looked at less often than the file: reading it takes a lock that all machines share.
        if marked || Instant::now() >= look {
            look = Instant::now() + LOOK;
            match registry.find(name) {
                Ok(record) if record.status == Status::Crashed => bail!("machine {name} has crashed"),
                // Our own guest tells its supervisor as well, a moment later or, where it cannot write, instead.
                Ok(record) if matches!(record.machine.root, Root::Host { .. }) => {
                    if record.status == Status::Ready {
                        return Ok(());
                    }
                }
                // Of others the file is all we hear.
                Ok(_) if marked => return Ok(()),
                Ok(_) => {}
                Err(RegistryError::Unknown(_)) => bail!("machine {name} has ended before it was ready"),
                Err(error) => return Err(error.into()),
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "machine {name} is up, but its start-up commands are not through after {} s\n\
                 hint: 'vconnect {name}' shows what it does; --timeout waits longer, --fast not at all",
                patience.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}

const POLL: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(500);

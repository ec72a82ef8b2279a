//! `vconnect`: attach to a console.

use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use serde::Serialize;

use crate::launch::note;
use crate::listing::Details;
use crate::machine::Console;
use crate::name::MachineName;
use crate::registry::{Record, Registry, RegistryError, Status};
use crate::switch::in_path;
use crate::terminal::{Left, attach};
use crate::windows::{self, Emulator};

/// Attach to a machine's console
///
/// What was shown before is shown again. Several terminals may be attached at once. Ctrl-] detaches; the machine
/// runs on.
#[derive(Debug, Parser)]
#[command(
    name = "vconnect",
    version,
    after_help = "Examples:\n  vconnect pc1\n  vconnect pc1 --con 1\n  vconnect -t pc1 pc2\n  \
                  vconnect -r 20 -n 1 pc1\n  vconnect -l\n  vconnect -k pc1"
)]
pub(crate) struct Options {
    /// The machine, by name or process; with -t and -k any number of them
    #[arg(value_name = "NAME", required_unless_present_any = ["list", "kill_all"])]
    names: Vec<MachineName>,
    /// The console: 0 is the primary one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    con: u8,
    /// Show the console in a new window, of the terminal emulator that TERM_TYPE is set to
    #[arg(short, long)]
    terminal: bool,
    /// Look for the machine so often before giving up
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    retry_count: u32,
    /// Seconds from one attempt to the next
    #[arg(short = 'n', long, value_name = "S", default_value_t = 5)]
    interval: u32,
    /// List the consoles that can be attached to
    #[arg(short, long, conflicts_with_all = ["names", "terminal", "kill", "kill_all"])]
    list: bool,
    /// Print the list as JSON
    #[arg(long, requires = "list")]
    json: bool,
    /// End the machine's tmux sessions; the machine runs on
    #[arg(short, long, conflicts_with_all = ["terminal", "kill_all"])]
    kill: bool,
    /// End the tmux sessions of all machines; the machines run on
    #[arg(long, conflicts_with_all = ["names", "terminal"])]
    kill_all: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    if options.list {
        list(&registry, options.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.kill_all {
        let records = registry.list()?;
        let sessions = records.iter().flat_map(sessions);
        let ended = sessions.map(|title| end(&title)).collect::<Result<Vec<bool>>>()?;
        note(&format!(
            "{} tmux sessions ended",
            ended.iter().filter(|ended| **ended).count()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if options.kill {
        let kill = |name: &MachineName| super::ok("vconnect", kill(&registry, name));
        // All of them, whatever happens with the first.
        let well = options.names.iter().map(kill).fold(true, |all, well| all & well);
        return Ok(super::labs::code(well));
    }
    if options.terminal {
        let emulator = super::config()?.emulator;
        if let Some(reason) = missing(emulator) {
            bail!("cannot open a window: {reason}\nhint: without -t, the console is shown on this terminal");
        }
        let open = |name: &MachineName| {
            let record = find(&registry, name, options)?;
            open_window(&record.machine.name, usize::from(options.con), emulator)
        };
        let open = |name: &MachineName| super::ok("vconnect", open(name));
        let well = options.names.iter().map(open).fold(true, |all, well| all & well);
        return Ok(super::labs::code(well));
    }
    let [name] = options.names.as_slice() else {
        bail!("cannot show several machines on one terminal\nhint: -t opens a window for each");
    };
    let record = find(&registry, name, options)?;
    let name = &record.machine.name;
    if io::stdin().is_terminal() {
        note(&format!("{name}: attached; Ctrl-] detaches"));
    }
    match attach(&registry.dirs().console_socket(name), usize::from(options.con))? {
        Left::Detached => note(&format!("{name}: detached; it runs on")),
        Left::MachineEnded => note(&format!("{name}: ended")),
    }
    Ok(ExitCode::SUCCESS)
}

/// The machine, once it is there.
fn find(registry: &Registry, id: &MachineName, options: &Options) -> Result<Record> {
    let mut attempt = 1;
    loop {
        let found = registry.resolve(id).and_then(|name| registry.find(&name));
        match found {
            Ok(record) if record.status != Status::Crashed => return Ok(record),
            Err(error @ RegistryError::Unknown(_)) if attempt == options.retry_count => {
                return Err(error.into());
            }
            Ok(_) if attempt == options.retry_count => {
                bail!("machine {id} has crashed\nhint: 'vcrash {id}' clears away what is left of it");
            }
            Ok(_) | Err(RegistryError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if attempt == 1 {
            note(&format!("{id}: not there yet; waiting"));
        }
        attempt += 1;
        std::thread::sleep(Duration::from_secs(options.interval.into()));
    }
}

/// A console somebody can attach to.
#[derive(Serialize)]
struct Row {
    machine: MachineName,
    console: usize,
    shown: String,
}

fn list(registry: &Registry, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for record in registry.list()? {
        if record.status == Status::Crashed {
            continue;
        }
        let shown = Details::consoles(&record);
        for (console, shown) in shown.into_iter().enumerate() {
            if record.machine.consoles[console] != Console::None {
                let machine = record.machine.name.clone();
                rows.push(Row {
                    machine,
                    console,
                    shown,
                });
            }
        }
    }
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let width = rows
            .iter()
            .map(|row| row.machine.as_str().len())
            .max()
            .unwrap_or(0)
            .max(7);
        writeln!(out, "{:width$}  CONSOLE  SHOWN", "MACHINE")?;
        for row in &rows {
            writeln!(
                out,
                "{:width$}  {:<7}  {}",
                row.machine.as_str(),
                row.console,
                row.shown
            )?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Ends the tmux sessions of a machine.
fn kill(registry: &Registry, id: &MachineName) -> Result<()> {
    let record = registry.find(&registry.resolve(id)?)?;
    let name = &record.machine.name;
    let mut well = false;
    for title in sessions(&record) {
        if end(&title)? {
            well = true;
            note(&format!(
                "{name}: tmux session {} ended",
                windows::tmux_session(&title)
            ));
        }
    }
    if !well {
        return Err(anyhow!(
            "machine {name} has no tmux session\nhint: 'vhalt {name}' ends the machine itself"
        ));
    }
    Ok(())
}

/// The titles of the consoles that are shown in tmux.
fn sessions(record: &Record) -> Vec<String> {
    let machine = &record.machine;
    let in_tmux = |number: &usize| machine.consoles[*number] == Console::Tmux;
    let numbers = [0, 1].into_iter().filter(in_tmux);
    numbers
        .map(|number| windows::title(&machine.name, number))
        .collect()
}

/// Ends a tmux session; false if there was none.
fn end(title: &str) -> Result<bool> {
    let status = command(&windows::tmux_end(title))?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run tmux")?;
    Ok(status.success())
}

/// Shows a console in a window, which stays when we go.
fn open_window(name: &MachineName, console: usize, emulator: Emulator) -> Result<()> {
    let viewer = viewer(name, console).context("cannot find our own program")?;
    let words = emulator.command(&windows::title(name, console), &viewer);
    command(&words)?
        .env_remove("TMUX")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", words.join(" ")))?;
    Ok(())
}

fn command(words: &[String]) -> Result<Command> {
    let (program, args) = words.split_first().context("there is no command")?;
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

/// The command that shows a console on the terminal it is run on.
pub(super) fn viewer(name: &MachineName, console: usize) -> Option<Vec<String>> {
    let exe = std::env::current_exe().ok()?.display().to_string();
    let mut words = vec![exe, "vconnect".into(), name.to_string()];
    if console > 0 {
        words.extend(["--con".into(), console.to_string()]);
    }
    Some(words)
}

/// Why there can be no window, if so.
pub(super) fn missing(emulator: Emulator) -> Option<String> {
    let display = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !["DISPLAY", "WAYLAND_DISPLAY"].iter().any(display) {
        return Some("there is no display".to_owned());
    }
    let program = emulator.program();
    in_path(program)
        .is_none()
        .then(|| format!("{program} is not installed"))
}

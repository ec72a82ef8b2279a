//! `vmconsole`: talk to a machine's kernel.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Editor, Helper};

use crate::mconsole;
use crate::name::MachineName;
use crate::registry::Registry;

/// Send commands to the management console of a machine's kernel
///
/// Without a command, they are read from a prompt: with the arrow keys those of earlier times, with Tab the names of
/// commands, and Ctrl-D to leave. Where standard input is no terminal, they are read from it, one a line. 'help' lists
/// the commands the kernel knows.
#[derive(Debug, Parser)]
#[command(
    name = "vmconsole",
    version,
    after_help = "Examples:\n  vmconsole pc1 version\n  vmconsole pc1 proc meminfo\n  vmconsole pc1 sysrq t\n  \
                  vmconsole pc1 stop\n  vmconsole pc1 go\n  vmconsole pc1"
)]
pub(crate) struct Options {
    /// The machine, by name or process
    name: MachineName,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let name = &registry.resolve(&options.name)?;
    registry.find(name)?;
    let socket = registry.dirs().mconsole_socket(name);
    if !options.command.is_empty() {
        say(&socket, &options.command.join(" ")).with_context(|| format!("cannot command machine {name}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if io::stdin().is_terminal() {
        prompt(&registry, name, &socket)
    } else {
        read(&registry, name, &socket)
    }
}

/// Commands from standard input, whatever it is; one that fails does not keep the others from being sent.
fn read(registry: &Registry, name: &MachineName, socket: &Path) -> Result<ExitCode> {
    let mut well = true;
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        match line.trim() {
            "" => {}
            "quit" | "exit" => break,
            command => {
                if let Err(error) = say(socket, command) {
                    well = false;
                    eprintln!("vmconsole: {error:#}");
                    registry.find(name)?;
                }
            }
        }
    }
    Ok(super::labs::code(well))
}

/// Commands from somebody at a terminal.
fn prompt(registry: &Registry, name: &MachineName, socket: &Path) -> Result<ExitCode> {
    let mut editor: Editor<Commands, FileHistory> = Editor::new().context("cannot use this terminal")?;
    editor.set_helper(Some(Commands));
    let history = history(registry);
    // There is none before the first time.
    let _ = editor.load_history(&history);
    let result = loop {
        let line = match editor.readline(&format!("{name}> ")) {
            Ok(line) => line,
            // Ctrl-C gives up the line.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break Ok(()),
            Err(error) => break Err(error).context("cannot read from this terminal"),
        };
        match line.trim() {
            "" => {}
            "quit" | "exit" => break Ok(()),
            command => {
                // The line is remembered, or it is not: that is no reason to stop.
                let _ = editor.add_history_entry(command);
                if let Err(error) = say(socket, command) {
                    eprintln!("vmconsole: {error:#}");
                    if let Err(gone) = registry.find(name) {
                        break Err(gone.into());
                    }
                }
            }
        }
    };
    if let Err(error) = editor.save_history(&history) {
        eprintln!("vmconsole: cannot write {}: {error}", history.display());
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Where the commands of earlier times are.
fn history(registry: &Registry) -> PathBuf {
    registry.dirs().machines.with_file_name("vmconsole_history")
}

/// What Tab completes.
struct Commands;

impl Completer for Commands {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..position];
        let known = COMMANDS.iter().filter(|command| command.starts_with(begun));
        Ok((0, known.map(|command| format!("{command} ")).collect()))
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}

impl Validator for Commands {}
impl Helper for Commands {}

/// The commands of the kernel (arch/um/drivers/mconsole_user.c).
const COMMANDS: [&str; 14] = [
    "cad", "config", "go", "halt", "help", "log", "proc", "quit", "reboot", "remove", "stack", "stop",
    "sysrq", "version",
];

fn say(socket: &Path, command: &str) -> Result<()> {
    let answer = mconsole::command(socket, command, PATIENCE)?;
    let answer = answer.trim_matches('\n');
    let mut out = io::stdout().lock();
    if !answer.is_empty() {
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

/// A kernel that is busy answers between two things it does.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_commands_are_completed() {
        let history = FileHistory::new();
        let context = rustyline::Context::new(&history);
        let complete = |line: &str| Commands.complete(line, line.len(), &context).unwrap();
        assert_eq!(complete("st"), (0, vec!["stack ".into(), "stop ".into()]));
        assert_eq!(complete("proc mem"), (0, vec![]));
        assert_eq!(complete("").1.len(), COMMANDS.len());
    }
}

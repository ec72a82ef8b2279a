//! `vmconsole`: talk to a machine's kernel.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::mconsole;
use crate::name::MachineName;

/// Send commands to the management console of a machine's kernel
///
/// Without a command, they are read from standard input, one a line. 'help' lists those the kernel knows.
#[derive(Debug, Parser)]
#[command(
    name = "vmconsole",
    version,
    after_help = "Examples:\n  vmconsole pc1 version\n  vmconsole pc1 proc meminfo\n  vmconsole pc1 sysrq t\n  \
                  vmconsole pc1 stop\n  vmconsole pc1 go\n  vmconsole pc1"
)]
pub(crate) struct Options {
    /// The machine
    name: MachineName,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let name = &options.name;
    registry.find(name)?;
    let socket = registry.dirs().mconsole_socket(name);
    if !options.command.is_empty() {
        say(&socket, &options.command.join(" ")).with_context(|| format!("cannot command machine {name}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let prompts = io::stdin().is_terminal();
    let mut failed = false;
    loop {
        if prompts {
            eprint!("{name}> ");
        }
        let mut line = String::new();
        if io::stdin()
            .lock()
            .read_line(&mut line)
            .context("cannot read standard input")?
            == 0
        {
            return Ok(if failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        match line.trim() {
            "" => {}
            "quit" | "exit" => return Ok(ExitCode::SUCCESS),
            command => {
                if let Err(error) = say(&socket, command) {
                    failed = !prompts;
                    eprintln!("vmconsole: {error:#}");
                    registry.find(name)?;
                }
            }
        }
    }
}

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

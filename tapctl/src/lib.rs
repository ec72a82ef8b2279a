//! `tapctl`: the privileged half of the project, small, exact and safe.
//!
//! ```text
//! command line -> request --+
//!                           +-> plan (pure) -> steps, each with what undoes it -> journal, then kernel
//! host as it is, journal ---+
//! ```
//!
//! It runs for a moment, holds the journal's lock meanwhile, and starts no program but the firewall's own tools.

#![forbid(unsafe_code)]

mod apply;
mod attach;
mod cli;
mod commands;
mod firewall;
mod host;
mod interfaces;
mod journal;
mod link;
mod name;
mod open;
mod plan;
mod privilege;
mod route;
mod step;
mod sysctl;
mod tool;
mod tunctl;

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::commands::Session;

/// The command line, for what is made from it: the manual page and completions.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Why nothing (or not all) was done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The request makes no sense: exit 2.
    #[error("{0}")]
    Misuse(String),
    #[error(transparent)]
    Refused(#[from] plan::Refusal),
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    #[error(transparent)]
    Apply(#[from] apply::ApplyError),
    #[error(transparent)]
    Privilege(#[from] privilege::PrivilegeError),
    #[error(transparent)]
    Open(#[from] open::OpenError),
    #[error("no right to change the network")]
    Powerless,
    #[error("cannot reach the kernel's network interface")]
    Kernel(#[source] io::Error),
    #[error("cannot write the result")]
    Output(#[source] io::Error),
    /// Teardown went on, and these are left; each has been printed.
    #[error("{0} of the steps could not be undone; they stay in the journal for the next attempt")]
    Left(usize),
}

impl Failure {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Open(error) => error.hint(),
            Self::Powerless => {
                Some("run it with sudo; docs/tapctl.md has a sudoers file for a group".to_owned())
            }
            Self::Journal(journal::JournalError::Open(_, error))
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it with sudo; docs/tapctl.md has a sudoers file for a group".to_owned())
            }
            Self::Journal(journal::JournalError::Shared(path)) => Some(format!(
                "as root: install -d -o root -g root -m 700 {}",
                path.display()
            )),
            Self::Journal(journal::JournalError::Namespace(_)) => {
                Some("run it where the taps were made, and take them down there first".to_owned())
            }
            _ => None,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new("tunctl")) {
        return tunctl::main(std::env::args().skip(1).collect());
    }
    let cli = Cli::parse();
    if let Command::Tunctl { arguments } = cli.command {
        return tunctl::main(arguments);
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    privilege::settle()?;
    if let Command::Open(arguments) = &command {
        return Ok(open::run(arguments)?);
    }
    let session = Session::begin()?;
    match command {
        Command::Up(arguments) => session.up(arguments),
        Command::Down(arguments) => session.down(arguments),
        Command::Ls(arguments) => session.ls(&arguments),
        Command::Route(arguments) => session.route(&arguments),
        Command::Attach(arguments) => session.attach(arguments),
        Command::Open(_) | Command::Tunctl { .. } => Ok(()),
    }
}

fn report(failure: &Failure) -> ExitCode {
    match failure {
        // Whoever reads our output has had enough: that is no failure.
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        _ => {}
    }
    eprintln!("tapctl: {}", chain(failure));
    if let Some(hint) = failure.hint() {
        eprintln!("hint: {hint}");
    }
    match failure {
        Failure::Misuse(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

//! `switchd`: hosts collision domains and answers questions about them.
//!
//! `run` is the daemon; the other commands are its clients over the control socket. Under the name `uml_switch` it is
//! a drop-in for that program, under the name `vdump` it shows what passes.

#![forbid(unsafe_code)]

mod cli;
mod client;
mod config;
mod control;
mod daemon;
mod datapath;
mod extcap;
mod handover;
mod pcapng;
mod uml_switch;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};
use config::{Config, directory};

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("SWITCHD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == "uml_switch") {
        let arguments = arguments.iter().skip(1);
        return uml_switch::main(
            arguments
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
        );
    }
    if name.is_some_and(|name| name == "hubbub-extcap") {
        return extcap::main(arguments);
    }
    if name.is_some_and(|name| name == "vdump") {
        arguments.insert(1, "vdump".into());
    }
    let Cli { dir, command } = Cli::parse_from(arguments);
    let result = match command {
        Command::UmlSwitch { arguments } => return uml_switch::main(arguments),
        Command::Run(options) => match Config::new(dir, &options) {
            Ok(config) => daemon::run(config),
            Err(error) => return fail(&error.into(), 2),
        },
        Command::GiveTap { path, name } => handover::give_tap(&path, &name),
        command => match directory(dir) {
            Ok(directory) => client::run(&directory, command),
            Err(error) => return fail(&error.into(), 2),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Prints an error with its causes; a hint stands on a line of its own in the message.
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    eprintln!("switchd: {error:#}");
    ExitCode::from(status)
}

//! The commands, one file each. The program's name, or its first argument, says which.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use chrono::Local;
use clap::{CommandFactory, Parser};

use crate::config::Config;
use crate::dirs::Dirs;
use crate::kernel_args::shell_quoted;
use crate::launch::note;
use crate::name::MachineName;
use crate::registry::{Registry, RegistryError};
use crate::users::Whose;
use crate::{plug, stage, supervisor, users};

mod disks;
mod interfaces;
mod labs;
mod lclean;
mod lcrash;
mod lhalt;
mod linfo;
mod lrestart;
mod lstart;
mod ltest;
mod vclean;
mod vconf;
mod vconfig;
mod vconnect;
mod vcrash;
mod vdisk;
mod vdisk_build;
mod vdump;
mod vexec;
mod vhalt;
mod vlist;
mod vmconsole;
mod vplug;
mod vstart;

/// Runs the command.
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some(stage::WORD) => {
            let error = stage::become_program(&args[2..]);
            let Err(error) = error;
            eprintln!("vstart: {error:#}");
            return ExitCode::from(127);
        }
        Some(plug::WORD) => return plug::main(&args[2..]),
        Some(supervisor::WORD) => return supervisor::main(),
        Some(supervisor::guard::WORD) => {
            return supervisor::guard::main(text(args.get(2)), text(args.get(3)));
        }
        Some(word) if names().any(|name| name == word) => drop(args.remove(0)),
        _ => {}
    }
    let name = args
        .first()
        .map(|arg| Path::new(arg).file_name().unwrap_or_default().to_owned());
    let name = name.and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name = names().find(|known| *known == name).unwrap_or("vstart");
    write_down(name, &args);
    let result = match name {
        name if labs::NAMES.contains(&name) => labs::run(name, args),
        "vclean" => vclean::run(&vclean::Options::parse_from(args)),
        "vmconsole" => vmconsole::run(&vmconsole::Options::parse_from(args)),
        "vconf" => vconf::run(&vconf::parse(args)),
        "vconfig" => vconfig::run(&vconfig::Options::parse_from(args)),
        "vconnect" => vconnect::run(&vconnect::Options::parse_from(args)),
        "vcrash" => vcrash::run(&vcrash::Options::parse_from(args)),
        "vdisk" => vdisk::run(&vdisk::Options::parse_from(args)),
        "vdump" => vdump::run(&vdump::Options::parse_from(args)),
        "vcommand" => vexec::run(&vexec::parse_vcommand(args)),
        "vexec" => vexec::run(&vexec::Options::parse_from(args)),
        "vhalt" => vhalt::run(&vhalt::Options::parse_from(args)),
        "vplug" => vplug::run(&vplug::Options::parse_from(args)),
        "vlist" => vlist::run(&vlist::Options::parse_from(args)),
        _ => vstart::run(&vstart::parse(args)),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Adds the command to the file of those that have been run, if the user wants one.
fn write_down(name: &str, args: &[OsString]) {
    // A broken configuration is told by the command itself.
    let Some(log) = config().ok().and_then(|config| config.log) else {
        return;
    };
    let user = users::name_of(nix::unistd::getuid().as_raw());
    let mut line = format!("{} {user}: {name}", Local::now().format("%F %T"));
    for arg in args.iter().skip(1) {
        line.push(' ');
        line.push_str(&shell_quoted(&arg.to_string_lossy()));
    }
    line.push('\n');
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        note(&format!("{name}: cannot write to {}: {error}", log.display()));
    }
}

/// All commands: each can be a link to the program, or its first argument.
pub const NAMES: [&str; 14] = [
    "vclean",
    "vcommand",
    "vconf",
    "vconfig",
    "vconnect",
    "vcrash",
    "vdisk",
    "vdump",
    "vexec",
    "vhalt",
    "vlist",
    "vmconsole",
    "vplug",
    "vstart",
];

/// The definitions of all commands: man pages and completions are made from them.
pub fn definitions() -> Vec<clap::Command> {
    let mut definitions = vec![
        vclean::Options::command(),
        vconf::Options::command(),
        vconfig::Options::command(),
        vconnect::Options::command(),
        vcrash::Options::command(),
        vdisk::Options::command(),
        vdump::Options::command(),
        vexec::Options::command(),
        vexec::vcommand(),
        vhalt::Options::command(),
        vlist::Options::command(),
        vmconsole::Options::command(),
        vplug::Options::command(),
        vstart::Options::command(),
    ];
    definitions.extend(labs::definitions());
    definitions
}

/// The commands of labs as well.
fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().chain(labs::NAMES)
}

fn text(arg: Option<&OsString>) -> Option<&str> {
    arg.and_then(|arg| arg.to_str())
}

/// The user's settings.
fn config() -> Result<Config> {
    Config::load(|name| std::env::var(name).ok())
}

/// The user's directories.
fn dirs() -> Result<Dirs> {
    Ok(config()?.dirs)
}

/// The user's machines.
fn registry() -> Result<Registry> {
    Ok(Registry::new(dirs()?))
}

/// Tells of an error; true if there is none.
fn ok(command: &str, result: Result<()>) -> bool {
    if let Err(error) = &result {
        note(&format!("{command}: {error:#}"));
    }
    result.is_ok()
}

/// The words of those flags that are set.
fn flags(flags: &[(&str, bool)]) -> Vec<String> {
    let set = flags.iter().filter(|(_, set)| *set);
    set.map(|(word, _)| (*word).to_owned()).collect()
}

/// Lets other users' machines be dealt with by a command that runs as their owner; `None` if they are the caller's own.
/// With all users meant, a name stands for the first machine that `vlist -u -` shows of it.
fn delegate(
    user: Option<&str>,
    command: &str,
    words: &[String],
    names: &[MachineName],
) -> Result<Option<ExitCode>> {
    let whose = Whose::read(user)?;
    if whose == Whose::Own {
        return Ok(None);
    }
    let rows = vlist::others(&whose, false);
    let owners = whose.owners();
    let mut well = true;
    for name in names {
        let is = |row: &&crate::listing::Row| {
            row.name == *name || row.pid.is_some_and(|pid| pid.to_string() == name.as_str())
        };
        let Some(row) = rows.iter().find(is) else {
            well = ok(command, Err(RegistryError::Unknown(name.clone()).into()));
            continue;
        };
        // A user with several state directories is asked once for each: only one knows the name.
        let owner = owners.iter().filter(|owner| owner.name == row.user);
        let mut done = false;
        for owner in owner {
            let mut line = vec![command.to_owned()];
            line.extend(words.iter().cloned());
            line.push(row.name.to_string());
            let knows = owner.command(&["vlist".into(), "--json".into(), row.name.to_string()])?;
            if runs_well(knows)? {
                done = owner.command(&line)?.status()?.success();
                break;
            }
        }
        well &= done;
    }
    Ok(Some(labs::code(well)))
}

fn runs_well(mut command: std::process::Command) -> Result<bool> {
    use std::process::Stdio;
    let silent = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(silent.status()?.success())
}

/// The reader of our output has seen enough: that is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

//! `vconf`: interfaces of a machine that runs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::interfaces::{self, with_interfaces};
use crate::dirs::Dirs;
use crate::kernel_args::name_in_guest;
use crate::launch::note;
use crate::machine::{Interface, ValueError};
use crate::name::MachineName;
use crate::registry::Status;
use crate::supervisor::{Answer, Request};

/// Attach a running machine to collision domains, and detach it
///
/// A domain that nobody uses any more goes away. A new interface is configured in the machine, as any other.
#[derive(Debug, Parser)]
#[command(
    name = "vconf",
    version,
    after_help = "Examples:\n  vconf pc1 --eth1=B\n  vconf pc1 --eth1=\n  vconf r --eth0= --eth0=C --transport bess"
)]
pub(crate) struct Options {
    /// The machine
    name: MachineName,
    /// Add interface ethN, attached to a domain (or to the host: tap,TAP-ADDRESS,GUEST-ADDRESS); nothing behind '='
    /// removes it
    #[arg(long = "ethN", value_name = "DOMAIN", required = true)]
    changes: Vec<Change>,
    #[command(flatten)]
    details: interfaces::Details,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

/// What is to be done, in the order of the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    Add(Interface),
    Remove(u32),
}

impl FromStr for Change {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix('=').map(str::parse) {
            Some(Ok(number)) => Ok(Self::Remove(number)),
            _ => text.parse().map(Self::Add),
        }
    }
}

/// Reads the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Options {
    Options::parse_from(with_interfaces(args))
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let config = super::config()?;
    let registry = super::registry()?;
    let name = &options.name;
    let record = registry.find(name)?;
    match record.status {
        Status::Up | Status::Ready => {}
        Status::Crashed => {
            bail!("machine {name} has crashed\nhint: 'vcrash {name}' clears away what is left of it")
        }
        other => bail!(
            "cannot change machine {name}: it is {}\nhint: 'vlist' shows when it is up",
            other.as_str()
        ),
    }
    let added = options.changes.iter().filter_map(|change| match change {
        Change::Add(interface) => Some(interface.clone()),
        Change::Remove(_) => None,
    });
    let settled = interfaces::settle(added.collect(), &options.details, &record.machine.kernel, &config)?;
    for change in &options.changes {
        match change {
            Change::Remove(number) => {
                ask(registry.dirs(), name, &Request::Unplug { number: *number })
                    .with_context(|| format!("cannot remove eth{number} of machine {name}"))?;
            }
            Change::Add(asked) => {
                let interface = settled.iter().find(|settled| settled.number == asked.number);
                let mut interface = interface.unwrap_or(asked).clone();
                let tap = interfaces::make_tap(&mut interface, registry.dirs())?;
                let request = Request::Plug {
                    interface: interface.clone(),
                    tap,
                };
                ask(registry.dirs(), name, &request)
                    .with_context(|| format!("cannot add {} to machine {name}", interface.name()))?;
                let given = name_in_guest(&record.machine, &interface);
                if !options.quiet && given != interface.name() {
                    note(&format!(
                        "{name}: in the machine, {} is called {given}",
                        interface.name()
                    ));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the machine's supervisor.
fn ask(dirs: &Dirs, name: &MachineName, request: &Request) -> Result<()> {
    let socket = dirs.console_socket(name);
    let stream =
        UnixStream::connect(&socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_string(request).context("cannot write the request")?;
    line.push('\n');
    let mut answer = String::new();
    stream
        .get_mut()
        .write_all(line.as_bytes())
        .and_then(|()| stream.read_line(&mut answer))
        .context("cannot talk to the machine's supervisor")?;
    match serde_json::from_str(&answer).context("cannot understand the machine's supervisor")? {
        Answer::Done => Ok(()),
        Answer::Error(message) => bail!(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_in_order() {
        let args = ["vconf", "pc1", "--eth1=B", "--eth0=", "--eth0=C"].map(OsString::from);
        let options = parse(args);
        let add = |text: &str| Change::Add(text.parse().unwrap());
        assert_eq!(options.changes, [add("1=B"), Change::Remove(0), add("0=C")]);
        for text in ["=", "x=", "1=a_b"] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }
}

//! `vplug`: any process as a machine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use proto::DomainName;

use super::disks;
use crate::plug::{INTERFACE, Plan, WORD};
use crate::switch::Client;

/// Run a command in a network of its own, attached to a collision domain
///
/// The command runs as you, in a new user and network namespace, without root. Its network has the interface eth0,
/// which it may configure as it likes; its exit status is vplug's. What it leaves in the background ends with it.
#[derive(Debug, Parser)]
#[command(
    name = "vplug",
    version,
    after_help = "Examples:\n  vplug A --ip 10.0.0.9/24 -- iperf3 -s\n  vplug nat --dhcp -- curl http://example.org/\n  \
                  vplug A -- bash"
)]
pub(crate) struct Options {
    /// The domain; made if there is none, and gone with its last user then
    domain: DomainName,
    /// Give the interface this address; may be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH", value_parser = parse_address)]
    ip: Vec<String>,
    /// Ask for an address by DHCP, and wait for it
    #[arg(long)]
    dhcp: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_address(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is no address with a length, such as 10.0.0.9/24");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.parse::<u8>() {
        Ok(length) if length <= most => Ok(format!("{address}/{length}")),
        _ => Err(wrong()),
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let dirs = super::dirs()?;
    let dhcp = options.dhcp.then(disks::init).transpose()?;
    // Before there is a child or another thread: all signals are taken one by one below.
    let signals = SigSet::from_iter(FORWARDED.into_iter().chain([Signal::SIGCHLD]));
    signals.thread_block().context("cannot block signals")?;
    let mut client = Client::connect_or_start(&dirs)?;
    let domain = client
        .hold(&options.domain)
        .with_context(|| format!("cannot make domain {}", options.domain))?;
    set_child_subreaper(true).context("cannot adopt what the command leaves")?;
    let program = Path::new(&options.command[0]);
    let plan = Plan {
        parent: std::process::id(),
        dirs,
        domain: options.domain.clone(),
        mtu: domain.mtu,
        port: format!(
            "{}:{INTERFACE}",
            program.file_name().unwrap_or_default().display()
        ),
        addresses: options.ip.clone(),
        dhcp,
    };
    let plan = serde_json::to_string(&plan).context("cannot write the plan")?;
    let child = Command::new("/proc/self/exe")
        .arg(WORD)
        .arg(plan)
        .args(&options.command)
        .spawn()
        .context("cannot start a process")?;
    let code = attend(&child, &signals)?;
    end_rest();
    Ok(ExitCode::from(code))
}

/// Passes signals on to the command until it ends; its exit status.
fn attend(child: &Child, signals: &SigSet) -> Result<u8> {
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match signals.wait().context("cannot wait for a signal")? {
            Signal::SIGCHLD => {}
            // The terminal has sent them to the command as well.
            Signal::SIGINT | Signal::SIGQUIT if is_in_foreground() => {}
            signal => {
                // It may have ended just now.
                let _ = kill(child, signal);
            }
        }
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            match status {
                WaitStatus::Exited(pid, code) if pid == child => return Ok(u8::try_from(code).unwrap_or(1)),
                WaitStatus::Signaled(pid, signal, _) if pid == child => {
                    return Ok(128 + u8::try_from(signal as i32).unwrap_or(0));
                }
                WaitStatus::StillAlive => break,
                _ => {}
            }
        }
    }
}

fn is_in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(tty) == Ok(getpgrp()))
}

/// Ends what the command has left behind: all our children that are in another network. They have a second to do it
/// themselves.
fn end_rest() {
    let begun = Instant::now();
    loop {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
        {}
        let left = plugged_children();
        if left.is_empty() || begun.elapsed() > 3 * GRACE {
            return;
        }
        let signal = if begun.elapsed() < GRACE {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        for pid in left {
            let _ = kill(pid, signal);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Our children but for those in our own network: switchd, if we have started it.
fn plugged_children() -> Vec<Pid> {
    let ours = fs::read_link("/proc/self/ns/net").ok();
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((_, rest)) = stat.rsplit_once(") ") else {
                return false;
            };
            let mut fields = rest.split(' ');
            let (state, parent) = (fields.next(), fields.next().and_then(|field| field.parse().ok()));
            parent == Some(own)
                && state != Some("Z")
                && fs::read_link(format!("/proc/{pid}/ns/net")).ok() != ours
        })
        .map(Pid::from_raw)
        .collect()
}

/// Signals that are the command's.
const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// How long what is left has to end by itself.
const GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_length() {
        assert_eq!(parse_address("10.0.0.9/24").as_deref(), Ok("10.0.0.9/24"));
        assert_eq!(parse_address("fd00::9/64").as_deref(), Ok("fd00::9/64"));
        for wrong in [
            "",
            "10.0.0.9",
            "10.0.0.9/33",
            "10.0.0/24",
            "fd00::1/129",
            "10.0.0.9/-1",
        ] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_is_needed() {
        for args in [
            &["vplug"][..],
            &["vplug", "A"],
            &["vplug", "A", "--"],
            &["vplug", "A", "ls"],
        ] {
            assert!(Options::try_parse_from(args).is_err(), "{args:?}");
        }
        let options = Options::try_parse_from(["vplug", "A", "--dhcp", "--", "ls", "-l"]).unwrap();
        assert_eq!(options.command, ["ls", "-l"]);
    }
}

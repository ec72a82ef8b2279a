//! Descriptors whose opening takes rights, or a process of one thread: another program opens them, and hands them over on
//! its standard output. That tapctl stands behind sudo does no harm: sudo leaves standard output alone.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use fabric::Instruction;
use netio::tap::IfName;
use nix::unistd::geteuid;
use proto::nic::{NicSpec, SniffSpec};

/// The hidden command by which this program is the other one.
pub(crate) const GIVE_TAP: &str = "give-tap";

/// Who wants it: sudo may ask a person for a password, but not a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    Person,
    Daemon,
}

/// A packet socket for a port on an interface.
pub(crate) fn nic(spec: &NicSpec, asker: Asker) -> anyhow::Result<OwnedFd> {
    let filter = spec.vlan.map(netio::packet::vlan_filter);
    let promisc = spec.promisc.then_some("--promisc");
    open(
        &spec.interface,
        promisc,
        filter.as_ref().map(<[_; _]>::as_slice),
        asker,
    )
}

/// A packet socket for listening.
pub(crate) fn sniff(spec: &SniffSpec, asker: Asker) -> anyhow::Result<OwnedFd> {
    let filter = spec.filter.as_deref().map(compile).transpose()?;
    let options = ["--outgoing"]
        .into_iter()
        .chain(spec.promisc.then_some("--promisc"));
    open(&spec.interface, options, filter.as_deref(), asker)
}

/// A tap in a network namespace, for a daemon: this program again makes it, with one thread.
pub(crate) fn tap_in(path: &Path, name: &IfName) -> anyhow::Result<OwnedFd> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(GIVE_TAP).arg(path).arg(name.as_str());
    receive(command)
}

/// What the hidden command does.
pub(crate) fn give_tap(path: &Path, name: &str) -> anyhow::Result<()> {
    let tap = netns::tap_in(path, &name.parse()?)?;
    netio::unix::send_with_fd(std::io::stdout().as_fd(), b"\n", tap.as_fd())
        .context("cannot hand the tap over: standard output is no Unix socket")?;
    Ok(())
}

fn compile(filter: &str) -> anyhow::Result<Vec<Instruction>> {
    // The kernel has taken the tag out before the filter sees the frame.
    if filter
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word == "vlan")
    {
        bail!(
            "cannot use filter '{filter}': VLAN tags are not filtered here\nhint: filter the capture of the domain instead"
        );
    }
    match netio::pcap::compile(filter) {
        Ok(program) => Ok(program),
        Err(error) => bail!("cannot use filter '{filter}': {error}\nhint: see pcap-filter(7)"),
    }
}

/// Has tapctl open a socket.
fn open(
    interface: &str,
    options: impl IntoIterator<Item = &'static str>,
    filter: Option<&[Instruction]>,
    asker: Asker,
) -> anyhow::Result<OwnedFd> {
    let interface: IfName = interface.parse()?;
    let tapctl = beside("tapctl");
    let sudo = (!geteuid().is_root()).then(|| in_path("sudo")).flatten();
    let mut command = match sudo {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            if asker == Asker::Person {
                eprintln!("switchd: using sudo to open {interface} (see: tapctl open --help)");
            } else {
                command.arg("-n");
            }
            command.arg("--").arg(tapctl);
            command
        }
        None => Command::new(tapctl),
    };
    command.args(["open", interface.as_str()]).args(options);
    if let Some(filter) = filter {
        command.arg("--bytecode").arg(bytecode(filter));
    }
    if geteuid().is_root() {
        // Root asks, and not the user who has become root.
        command.env_remove("SUDO_UID");
    }
    receive(command)
}

/// A program as iptables and tapctl read it.
fn bytecode(program: &[Instruction]) -> String {
    program.iter().fold(program.len().to_string(), |mut text, op| {
        text.push_str(&format!(",{} {} {} {}", op.code, op.jt, op.jf, op.k));
        text
    })
}

/// Runs the program and takes what it hands over.
fn receive(mut command: Command) -> anyhow::Result<OwnedFd> {
    let program = PathBuf::from(command.get_program());
    let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let output = command
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .output();
    // It holds the other end.
    drop(command);
    let output = output.with_context(|| {
        format!(
            "cannot run {}\nhint: install Hubbub as a whole\ncause",
            program.display()
        )
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    if !output.status.success() {
        let said = ["tapctl: ", "switchd: "]
            .iter()
            .find_map(|name| said.strip_prefix(name))
            .unwrap_or(said);
        bail!("{said}");
    }
    let mut fds = Vec::new();
    netio::unix::receive_with_fds(ours.as_fd(), &mut [0; 16], &mut fds)
        .with_context(|| format!("cannot hear {}", program.display()))?;
    fds.pop()
        .with_context(|| format!("{} has opened nothing", program.display()))
}

/// The program beside this one, or in PATH.
fn beside(name: &str) -> PathBuf {
    let here = std::env::current_exe().ok();
    let beside = here.and_then(|exe| Some(exe.parent()?.join(name)));
    beside
        .filter(|path| path.is_file())
        .or_else(|| in_path(name))
        .unwrap_or_else(|| name.into())
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

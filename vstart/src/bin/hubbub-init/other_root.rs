//! A machine with a file system of its own that wants our agent: we start the agent, and become that system's init.
//!
//! ```text
//! hostfs / --- our program, its libraries --> agent (stays)
//! /dev/ubda --- mounted, becomes / --> /sbin/init takes our place
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::mounts::{mount_type, report};
use crate::words::Words;
use crate::{agent, network};

/// Returns only if that system has no init.
pub(crate) fn enter(words: &Words, device: &str) -> Result<()> {
    network::rename(words);
    // Any directory of the host will do as a mount point.
    let root = Path::new("/run");
    mount_root(device, root, words.has("rw"))?;
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let had_devices = mounts.lines().any(|line| line.starts_with("devtmpfs /dev "));
    // A machine without an agent is still a machine.
    report(start_agent());

    // Every process whose root is the old one comes along, and so does the agent.
    chdir(root).context("cannot enter the machine's file system")?;
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the old root")?;
    chdir("/").context("cannot enter the machine's file system")?;
    if had_devices && Path::new("/dev").is_dir() {
        // As the kernel does it for a root it has mounted itself.
        report(mount_type(
            "devtmpfs",
            "devtmpfs",
            Path::new("/dev"),
            MsFlags::empty(),
            None,
        ));
    }
    for init in ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"] {
        if Path::new(init).exists() {
            let error = Command::new(init).args(std::env::args_os().skip(1)).exec();
            eprintln!("hubbub-init: cannot run {init}: {error}");
        }
    }
    bail!("there is no init on {device}")
}

/// Mounts a device whatever it contains, trying what the kernel knows in the kernel's order.
fn mount_root(device: &str, target: &Path, writable: bool) -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    let flags = if writable {
        MsFlags::empty()
    } else {
        MsFlags::MS_RDONLY
    };
    let kinds = known.lines().filter(|line| !line.starts_with("nodev"));
    let mounted = kinds
        .map(str::trim)
        .any(|kind| mount(Some(device), target, Some(kind), flags, None::<&str>).is_ok());
    if !mounted {
        bail!("cannot mount {device}: it has no file system this kernel knows");
    }
    Ok(())
}

/// Starts the agent and waits until it needs no more files of the old root.
fn start_agent() -> Result<()> {
    let mut agent = Command::new(std::env::current_exe().context("cannot find our own program")?)
        .args([agent::WORD, agent::LINE, agent::TELL])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the agent")?;
    let mut told = String::new();
    let stdout = agent.stdout.take().context("the agent has no output")?;
    BufReader::new(stdout)
        .read_line(&mut told)
        .context("cannot hear the agent")?;
    if told.is_empty() {
        bail!("the agent has ended");
    }
    Ok(())
}

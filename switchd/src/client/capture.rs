//! `switchd capture`: the file is opened here, with the caller's rights; the daemon writes it.

use std::fs::OpenOptions;
use std::io::{IsTerminal, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::ctl::{Captured, Reply, Request};

use super::Connection;
use crate::cli::CaptureArguments;

/// What ends a capture.
enum End {
    /// A signal.
    Interrupted,
    /// Nobody reads the pipe any more.
    ReaderGone,
    /// The daemon has something to say: the domain is gone, or the file cannot be written.
    Reported,
}

pub(super) fn run(mut connection: Connection, arguments: CaptureArguments) -> anyhow::Result<()> {
    let output = open(arguments.write.as_deref())?;
    // Blocked before the capture begins: a signal from now on ends it in good order.
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect::<SigSet>();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let request = Request::Capture {
        domain: arguments.domain.clone(),
        snap_len_bytes: arguments.snap,
    };
    connection.ask_with_fd(&request, output.as_fd())?;
    let to_file = arguments.write.as_deref().filter(|path| *path != Path::new("-"));
    match to_file {
        Some(path) => eprintln!(
            "capturing domain {} to {}; Ctrl-C ends it",
            arguments.domain,
            path.display()
        ),
        None => eprintln!("capturing domain {}; Ctrl-C ends it", arguments.domain),
    }
    let reply = match wait(&connection, &signals, &output)? {
        End::Reported => connection.reply()?,
        End::Interrupted => connection.ask(&Request::CaptureStop)?,
        End::ReaderGone => return Ok(()),
    };
    let Reply::Captured(Captured { frames, dropped }) = reply else {
        bail!("switchd answered something else")
    };
    eprintln!("{frames} frames captured, {dropped} dropped by the capture");
    Ok(())
}

fn open(path: Option<&Path>) -> anyhow::Result<OwnedFd> {
    match path {
        Some(path) if path != Path::new("-") => {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(path);
            Ok(file
                .with_context(|| format!("cannot write {}", path.display()))?
                .into())
        }
        _ if stdout().is_terminal() => {
            bail!("a capture is no text for a terminal\nhint: give -w FILE, or pipe it into 'tshark -r -'")
        }
        _ => Ok(stdout().as_fd().try_clone_to_owned()?),
    }
}

fn wait(connection: &Connection, signals: &SignalFd, output: &OwnedFd) -> anyhow::Result<End> {
    let mut fds = [
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(connection.as_fd(), PollFlags::POLLIN),
        // Asks for nothing: only the end of the reader is reported.
        PollFd::new(output.as_fd(), PollFlags::empty()),
    ];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result.context("cannot wait")?,
        };
        let [signal, daemon, output] = &fds;
        if daemon.any() == Some(true) {
            return Ok(End::Reported);
        }
        if signal.any() == Some(true) {
            return Ok(End::Interrupted);
        }
        if output.any() == Some(true) {
            return Ok(End::ReaderGone);
        }
    }
}

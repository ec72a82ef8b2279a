//! A stage between us and a program: what must be arranged inside the new process before it becomes the program.
//!
//! Doing that between fork and exec would take unsafe code; so this very binary is started first, arranges it in
//! ordinary code, and then becomes the program.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, setsid};

use crate::cpulock::CpuLock;
use crate::xstate;

/// The first argument that makes the binary a stage.
pub const WORD: &str = "@stage";

/// What to arrange.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Stage {
    /// Lead a session of its own, out of reach of the terminal's signals.
    pub session: bool,
    /// End with the parent of this number.
    pub parent: Option<u32>,
    /// The processor to use.
    pub cpu: CpuLock,
    /// A library to be loaded into the program.
    pub preload: Option<PathBuf>,
    /// Files opened for reading and writing as descriptors 3 and up.
    pub files: Vec<PathBuf>,
    /// Further descriptors behind those, so many. They come over standard input, which is a socket then; the program's
    /// input is its output.
    pub received: usize,
}

impl Stage {
    /// A command that goes through the stage to `program`.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(WORD);
        if self.session {
            command.arg("session");
        }
        if let Some(parent) = self.parent {
            command.args(["parent", &parent.to_string()]);
        }
        if let Some(number) = self.cpu.cpu() {
            command.args(["cpu", &number.to_string()]);
        }
        if let Some(library) = &self.preload {
            command.arg("preload").arg(library);
        }
        for file in &self.files {
            command.arg("file").arg(file);
        }
        if self.received > 0 {
            command.args(["received", &self.received.to_string()]);
        }
        command.arg("--").arg(program);
        command
    }
}

/// Arranges things as the arguments behind [`WORD`] say and becomes the program; returns only if that fails.
///
/// # Errors
/// Always: when it returns, something has failed.
pub fn become_program(args: &[std::ffi::OsString]) -> Result<std::convert::Infallible> {
    let mut args = args.iter();
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut input_is_output = false;
    let mut preload = None;
    loop {
        let word = args.next().context("the stage has no program")?;
        match word.to_str() {
            Some("session") => drop(setsid().context("cannot start a session")?),
            Some("parent") => {
                let parent = args
                    .next()
                    .and_then(|a| a.to_str()?.parse().ok())
                    .context("the stage has no parent")?;
                // SIGTERM lets a UML kernel take its helper processes along.
                set_pdeathsig(Signal::SIGTERM).context("cannot tie the process to its parent")?;
                if getppid() != Pid::from_raw(parent) {
                    bail!("the parent has ended");
                }
            }
            Some("cpu") => {
                let number = args
                    .next()
                    .and_then(|a| a.to_str())
                    .context("the stage has no processor")?;
                number.parse::<CpuLock>()?.apply()?;
            }
            Some("preload") => preload = Some(args.next().context("the stage has no library")?),
            Some("file") => {
                let path = args.next().context("the stage has no file")?;
                kept.push(inherited(Path::new(path), 3 + kept.len())?);
            }
            Some("received") => {
                let count: usize = args
                    .next()
                    .and_then(|a| a.to_str()?.parse().ok())
                    .context("the stage has no number of descriptors")?;
                for _ in 0..count {
                    kept.push(received(3 + kept.len())?);
                }
                input_is_output = true;
            }
            Some("--") => break,
            _ => bail!("the stage does not know {}", word.display()),
        }
    }
    let program = args.next().context("the stage has no program")?;
    // What its parent has blocked is not the program's affair.
    SigSet::empty()
        .thread_set_mask()
        .context("cannot unblock signals")?;
    let mut command = Command::new(program);
    if input_is_output {
        let output = io::stdout().as_fd().try_clone_to_owned();
        command.stdin(output.context("cannot give the program an input")?);
    }
    if let Some(library) = preload {
        command.env(xstate::VARIABLE, xstate::value(Path::new(library)));
    }
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Opens a file so that the program finds it under the given number.
fn inherited(path: &Path, number: usize) -> Result<OwnedFd> {
    let open = || -> io::Result<OwnedFd> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(file.into())
    };
    let fd = open().with_context(|| format!("cannot open {}", path.display()))?;
    numbered(fd, number)
}

/// Takes the next descriptor that has been sent to our input, so that the program finds it under the given number.
fn received(number: usize) -> Result<OwnedFd> {
    let mut fds = Vec::new();
    netio::unix::receive_with_fds(io::stdin().as_fd(), &mut [0], &mut fds)
        .context("cannot receive a descriptor")?;
    let fd = fds.pop().context("there is no descriptor to be received")?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot keep a descriptor")?;
    numbered(fd, number)
}

/// Makes sure of a descriptor's number.
fn numbered(fd: OwnedFd, number: usize) -> Result<OwnedFd> {
    // Lowest numbers are given out first, and everything else we might have open closes on exec.
    if usize::try_from(fd.as_raw_fd()).ok() != Some(number) {
        bail!("descriptor {number} is taken");
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_in_order() {
        let stage = Stage {
            session: true,
            parent: Some(7),
            cpu: CpuLock::Cpu(1),
            preload: Some("/lib/x.so".into()),
            files: vec!["/dev/pts/1".into()],
            received: 2,
        };
        let command = stage.command(Path::new("/bin/true"));
        let args: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            args,
            [
                "@stage",
                "session",
                "parent",
                "7",
                "cpu",
                "1",
                "preload",
                "/lib/x.so",
                "file",
                "/dev/pts/1",
                "received",
                "2",
                "--",
                "/bin/true"
            ]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &[][..],
            &["session"],
            &["x", "--", "/bin/true"],
            &["--"],
            &["cpu", "x"],
        ] {
            let args: Vec<_> = args.iter().map(Into::into).collect();
            if args.first().is_some_and(|a: &std::ffi::OsString| a == "session") {
                continue; // would make the test runner lead a session
            }
            assert!(become_program(&args).is_err());
        }
    }
}

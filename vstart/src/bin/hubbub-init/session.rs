//! Programs on a console.
//!
//! Process 1 starts itself once more as a *stage* that leads a new session, opens the console, and then becomes the
//! program: nothing has to be done between fork and exec. The console becomes the controlling terminal of a login
//! shell, but not of a start-up command, whose background processes would otherwise be hung up with its end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// The first argument of the stage.
pub(crate) const STAGE: &str = "--session";
/// Where programs are looked for in the machine.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts `command` by a shell, or a login shell if it is `None`, on the console.
pub(crate) fn start(tty: &str, command: Option<&str>) -> io::Result<Child> {
    Command::new(crate::mounts::SELF)
        .args([STAGE, tty])
        .args(command)
        .spawn()
}

/// Becomes the program; returns only if that fails.
pub(crate) fn become_it(tty: &str, command: &[&str]) -> Result<()> {
    setsid().context("cannot start a session")?;
    let flags = if command.is_empty() {
        0
    } else {
        OFlag::O_NOCTTY.bits()
    };
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(tty)
        .with_context(|| format!("cannot open {tty}"))?;
    // A shell takes the terminal it reads from for its controlling one, if it has none: give it none to read from.
    let input = if command.is_empty() {
        console.try_clone()
    } else {
        File::open("/dev/null")
    };
    dup2_stdin(input.context("cannot open an input")?)
        .and_then(|()| dup2_stdout(&console))
        .and_then(|()| dup2_stderr(&console))
        .with_context(|| format!("cannot use {tty}"))?;
    drop(console);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock signals")?;

    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|s| std::fs::metadata(s).is_ok())
        .unwrap_or("/bin/sh");
    let mut program = Command::new(shell);
    match command {
        [] => program.arg("-l"),
        [text, ..] => program.args(["-c", text]),
    };
    let error = program
        .env_clear()
        .envs(environment(shell))
        .current_dir(home())
        .exec();
    Err(error).with_context(|| format!("cannot run {shell}"))
}

/// The environment of everything that runs for a user.
pub(crate) fn environment(shell: &str) -> Vec<(&'static str, String)> {
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    vec![
        ("HOME", "/root".into()),
        ("USER", "root".into()),
        ("LOGNAME", "root".into()),
        ("SHELL", shell.into()),
        ("PATH", PATH.into()),
        ("TERM", term),
    ]
}

/// Where everything that runs for a user starts.
pub(crate) fn home() -> &'static str {
    if std::path::Path::new("/root").is_dir() {
        "/root"
    } else {
        "/"
    }
}

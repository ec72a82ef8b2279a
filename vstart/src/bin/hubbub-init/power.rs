//! The end of the machine.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

/// How the machine is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// For good.
    PowerOff,
    /// And start again.
    Reboot,
}

impl Request {
    /// The signal that carries the request to process 1; the numbers are those of other small inits.
    const fn signal(self) -> Signal {
        match self {
            Self::PowerOff => Signal::SIGUSR2,
            Self::Reboot => Signal::SIGTERM,
        }
    }

    /// What a signal to process 1 asks for. SIGINT is Ctrl-Alt-Del, by which the host halts a machine.
    pub(crate) const fn from_signal(signal: Signal) -> Option<Self> {
        match signal {
            Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGINT => Some(Self::PowerOff),
            Signal::SIGTERM => Some(Self::Reboot),
            _ => None,
        }
    }
}

/// What the machine's `poweroff` and `reboot` do.
pub(crate) fn ask(request: Request) -> Result<()> {
    kill(Pid::from_raw(1), request.signal()).context("cannot signal process 1")
}

/// Runs the shutdown scripts, ends every process and then the machine. The shells are told to hang up: an
/// interactive shell does not end on SIGTERM.
pub(crate) fn shut_down(request: Request, scripts: &[String], shells: impl Iterator<Item = Pid>) -> ! {
    for script in scripts.iter().filter(|s| Path::new(s).exists()) {
        let run = Command::new("/bin/sh")
            .arg(script)
            .env("PATH", crate::session::PATH)
            .spawn();
        if let Ok(child) = run {
            reap_until(
                Instant::now() + SCRIPT_PATIENCE,
                Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)),
            );
        }
    }
    let everyone = Pid::from_raw(-1);
    // An error means that there is nobody left to signal. SIGCONT lets stopped jobs see the signal.
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        let _ = kill(everyone, signal);
    }
    for shell in shells {
        let _ = kill(shell, Signal::SIGHUP);
    }
    if !reap_until(Instant::now() + TERM_PATIENCE, everyone) {
        let _ = kill(everyone, Signal::SIGKILL);
        reap_until(Instant::now() + KILL_PATIENCE, everyone);
    }
    match request {
        Request::PowerOff => off(),
        Request::Reboot => end(RebootMode::RB_AUTOBOOT),
    }
}

/// Ends the machine at once.
pub(crate) fn off() -> ! {
    end(RebootMode::RB_POWER_OFF)
}

fn end(mode: RebootMode) -> ! {
    sync();
    let Err(error) = reboot(mode);
    eprintln!("hubbub-init: cannot end the machine: {error}");
    // Process 1 must not return: the kernel would panic, which is the end of the machine as well.
    std::process::exit(1);
}

/// Waits for the process, or for all children if it is -1; false if the time was up before.
fn reap_until(deadline: Instant, who: Pid) -> bool {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if Instant::now() >= deadline => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            Ok(status) if status.pid() == Some(who) => return true,
            Ok(_) | Err(_) => {}
        }
    }
}

const SCRIPT_PATIENCE: Duration = Duration::from_secs(30);
const TERM_PATIENCE: Duration = Duration::from_secs(2);
const KILL_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_signal() {
        for request in [Request::PowerOff, Request::Reboot] {
            assert_eq!(Request::from_signal(request.signal()), Some(request));
        }
        assert_eq!(Request::from_signal(Signal::SIGINT), Some(Request::PowerOff));
        assert_eq!(Request::from_signal(Signal::SIGCHLD), None);
    }
}

//! Processes of machines: told apart from others that got the same number, found by what they are, ended whole.
//!
//! A kernel that dies by SIGKILL leaves helper processes with the kernel's own command line, which keep every
//! socket of the machine open. So a machine's processes are found by that command line.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::name::MachineName;

/// A process, told apart from later ones of the same number by when it was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its start, in clock ticks since the host's boot.
    pub start: u64,
}

impl Process {
    /// The running process of that number.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            start: start_time(pid)?,
        })
    }

    /// This process.
    pub fn own() -> Self {
        let pid = nix::unistd::getpid().as_raw();
        Self {
            pid,
            start: start_time(pid).unwrap_or(0),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Sends a signal if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may have ended since; then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// All processes of a machine's kernel.
pub fn of_machine(dirs: &Dirs, name: &MachineName) -> Vec<Process> {
    let words = [format!("umid={name}"), dirs.uml_dir_word()];
    let uid = getuid().as_raw();
    let Ok(proc) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    proc.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            // Read in this order: what is gone in between has no command line.
            let dir = format!("/proc/{pid}");
            owner(Path::new(&dir)) == Some(uid)
                && fs::read(format!("{dir}/cmdline")).is_ok_and(|line| {
                    words
                        .iter()
                        .all(|word| line.split(|b| *b == 0).any(|arg| arg == word.as_bytes()))
                })
        })
        .filter_map(Process::of)
        .collect()
}

/// Ends all processes of a machine's kernel at once. True when none is left.
pub fn end_machine(dirs: &Dirs, name: &MachineName) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = of_machine(dirs, name);
        if left.is_empty() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        for process in left {
            process.signal(Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a whole process group at once.
pub fn end_group(leader: i32) {
    match nix::sys::signal::killpg(Pid::from_raw(leader), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => eprintln!("vstart: cannot end process group {leader}: {error}"),
    }
}

/// Longest time killed processes are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Field 22 of proc_pid_stat(5), counted from behind the command name, which may contain anything. A zombie is
/// as good as gone.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn owner(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(fs::metadata(path).ok()?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_not_taken_for_another() {
        let own = Process::own();
        assert!(own.is_alive());
        assert!(
            !Process {
                start: own.start + 1,
                ..own
            }
            .is_alive()
        );
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(Process::of(pid), None);
    }

    #[test]
    fn machines_are_found_by_exact_words_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            hubs: dir.path().into(),
            mconsole: dir.path().into(),
            machines: dir.path().into(),
        };
        let start = |umid: &str| {
            Command::new("sh")
                .args(["-c", "read x", "linux.uml", umid, &dirs.uml_dir_word()])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (mut ours, mut other) = (start("umid=pc1"), start("umid=pc10"));
        let name = "pc1".parse().unwrap();
        let find = || of_machine(&dirs, &name).iter().map(|p| p.pid).collect::<Vec<_>>();
        let deadline = Instant::now() + PATIENCE;
        while find().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(find(), [i32::try_from(ours.id()).unwrap()]);
        assert!(end_machine(&dirs, &name));
        ours.wait().unwrap();
        assert_eq!(other.try_wait().unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

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
    kernels(getuid().as_raw(), dirs)
        .into_iter()
        .filter(|kernel| kernel.name == *name)
        .map(|kernel| kernel.process)
        .collect()
}

/// A process of a machine's kernel, as the host's process list shows it to everybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// The process.
    pub process: Process,
    /// The machine.
    pub name: MachineName,
    /// The kernel's command line.
    pub words: Vec<String>,
}

/// The processes of all kernels that a user runs from these directories, the first of each machine first.
pub fn kernels(uid: u32, dirs: &Dirs) -> Vec<Kernel> {
    let place = dirs.uml_dir_word();
    let mut kernels: Vec<Kernel> = command_lines(Some(uid))
        .filter(|(_, _, words)| words.contains(&place))
        .filter_map(|(pid, _, words)| {
            let name = words.iter().find_map(|word| word.strip_prefix("umid="))?;
            Some(Kernel {
                process: Process::of(pid)?,
                name: name.parse().ok()?,
                words,
            })
        })
        .collect();
    kernels.sort_by_key(|kernel| (kernel.process.start, kernel.process.pid));
    kernels
}

/// A process that guards a machine: as long as the machine is looked after, there is one, and everybody can see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guarded {
    /// The machine's owner.
    pub uid: u32,
    /// The machine.
    pub name: MachineName,
    /// Where its owner keeps things.
    pub dirs: Dirs,
}

/// The machines of all users, by their guards.
pub fn guards() -> Vec<Guarded> {
    command_lines(None)
        .filter_map(|(_, uid, words)| {
            let [_, word, name, dirs] = words.as_slice() else {
                return None;
            };
            (word == crate::supervisor::guard::WORD).then_some(())?;
            Some(Guarded {
                uid,
                name: name.parse().ok()?,
                dirs: serde_json::from_str(dirs).ok()?,
            })
        })
        .collect()
}

/// Memory of the host that a process takes, in KiB: of what it shares with others, its part (proc_pid_smaps_rollup).
pub fn memory_kib(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processes, of one user or of all, with their owner and their command line.
fn command_lines(of: Option<u32>) -> impl Iterator<Item = (i32, u32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(move |pid| {
        // Read in this order: what is gone in between has no command line.
        let dir = format!("/proc/{pid}");
        let uid = owner(Path::new(&dir)).filter(|uid| of.is_none_or(|of| of == *uid))?;
        let line = fs::read(format!("{dir}/cmdline"))
            .ok()
            .filter(|line| !line.is_empty())?;
        let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
        Some((
            pid,
            uid,
            words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
        ))
    })
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

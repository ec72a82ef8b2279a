//! Where a result comes from: hardware, kernel, settings and source.

use std::fs;
use std::io;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

use crate::stop::Stop;

const QUEUE_LENGTH: &str = "/proc/sys/net/unix/max_dgram_qlen";

/// What a result depends on besides the switches.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Cores that may be used.
    pub cores: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Commit of the source, `-dirty` if more than results was changed since; empty outside a clone.
    pub commit: String,
    /// When, in UTC.
    pub date: String,
}

impl Machine {
    /// Asks this machine.
    pub fn probe() -> Self {
        let first = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default()
                .trim_start_matches([':', ' ', '\t'])
                .to_owned()
        };
        let memory = first("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            cpu: first("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib / 1024,
            kernel: first("/proc/sys/kernel/osrelease", ""),
            commit: commit(),
            date: said("date", &["-u", "+%Y-%m-%d"]),
        }
    }
}

/// Waits until the machine is idle but for a tenth, at most so long; false if it did not become so.
pub fn wait_until_quiet(most: Duration, stop: &Stop) -> bool {
    let deadline = Instant::now() + most;
    let mut last = jiffies();
    while !stop.is_set() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        let now = jiffies();
        let (idle, all) = (now.0.saturating_sub(last.0), now.1.saturating_sub(last.1));
        if all > 0 && idle * 10 >= all * 9 {
            return true;
        }
        last = now;
    }
    most.is_zero()
}

/// Processor time of the whole machine since it was started: idle, and all.
fn jiffies() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal; what follows is part of user and nice.
    let fields = line.split_ascii_whitespace().skip(1).take(8);
    let fields: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    let idle = fields.iter().skip(3).take(2).sum();
    (idle, fields.iter().sum())
}

/// Frames a sender may queue to an unconnected socket in this network namespace, less one.
///
/// # Errors
/// When it cannot be read.
pub fn queue_length() -> io::Result<u32> {
    let text = fs::read_to_string(QUEUE_LENGTH)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Leaves for a network namespace of its own and sets the queue length there; the one left behind is not changed.
/// Threads and processes started later live in it, too.
///
/// # Errors
/// When the caller is not root. Nothing has been changed then.
pub fn enter_namespace(queue_length: u32) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    fs::write(QUEUE_LENGTH, queue_length.to_string())
}

fn commit() -> String {
    let mut commit = said("git", &["describe", "--always", "--abbrev=10"]);
    // The first table of a run that goes to a file must not make the others' source another one.
    let changed = [
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":/!bench/README.md",
        ":/!bench/rates.svg",
    ];
    if !said("git", &changed).is_empty() {
        commit.push_str("-dirty");
    }
    commit
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.ok().filter(|o| o.status.success()).map(|o| o.stdout);
    String::from_utf8_lossy(&text.unwrap_or_default())
        .trim()
        .to_owned()
}

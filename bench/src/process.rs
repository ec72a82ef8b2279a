//! What the kernel tells about a process.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Processor time a process has used so far, its threads and both user and system time included.
///
/// # Errors
/// When there is no such process, or its `stat` cannot be read.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks =
        ticks(&stat).ok_or_else(|| io::Error::other(format!("unexpected content of /proc/{pid}/stat")))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(100);
    Ok(Duration::from_secs(ticks) / per_second)
}

/// Resident memory of a process, in KiB.
///
/// # Errors
/// When there is no such process, or its `status` cannot be read.
pub fn resident_kib(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmRSS:")?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    });
    kib.ok_or_else(|| io::Error::other(format!("no VmRSS in /proc/{pid}/status")))
}

/// utime + stime: fields 14 and 15, counted behind the command, which may hold blanks and parentheses itself.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_does_not_confuse_the_fields() {
        let stat = "12 (a) b 9) S 1 12 12 0 -1 4194560 100 0 0 0 31 7 0 0 20 0 1 0 100 1000 10";
        assert_eq!(ticks(stat), Some(38));
        assert_eq!(ticks("12 (a"), None);
    }

    #[test]
    fn this_process_has_used_both() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        while cpu_time(pid).unwrap() == before {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
        assert!(resident_kib(pid).unwrap() > 100);
    }
}

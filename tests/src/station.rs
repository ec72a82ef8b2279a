//! A real guest that does what the test tells it, command by command, without a second boot.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ports::{Guest, load_modules};
use crate::program::tool;
use crate::wait;

/// Before a command in a guest: it is a program of the host. (busybox would run an applet of its own, if it has one.)
pub const HOST: &str = "chroot /host /usr/bin/env";

/// A guest that waits for commands. Its `/mnt` is the directory it was given, its `/host` the host's files: programs of
/// the host run by [`HOST`].
pub struct Station {
    guest: Guest,
    name: String,
    dir: PathBuf,
    told: Cell<u32>,
}

impl Station {
    /// Boots a guest with these words on its kernel's command line and has it run `setup` at each boot, then waits until
    /// that is done. A word of shared memory loads the modules it takes.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn boot(dir: &Path, name: &str, setup: &str, words: &[String]) -> Self {
        Self::boot_by(Command::new(tool("linux.uml")), dir, name, setup, words)
    }

    /// The same by a command that becomes the kernel.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn boot_by(kernel: Command, dir: &Path, name: &str, setup: &str, words: &[String]) -> Self {
        let modules = if words.iter().any(|word| word.starts_with("virtio_uml.")) {
            load_modules(dir)
        } else {
            String::new()
        };
        // What was told before a reboot is not done again after it.
        let script = format!(
            "dmesg -c > /dev/null\n\
             mount -t hostfs none /host -o /; mount -t proc proc /host/proc; mount -t tmpfs tmp /host/tmp\n\
             {modules}{setup}\necho STATION-UP\n\
             n=$(cat /mnt/{name}.count 2>/dev/null || echo 1)\n\
             while true; do\n\
                 until [ -e /mnt/{name}.$n.do ]; do sleep 0.05; done\n\
                 echo $((n + 1)) > /mnt/{name}.count\n\
                 sh /mnt/{name}.$n.do > /mnt/{name}.$n.out 2>&1\n\
                 touch /mnt/{name}.$n.done\n\
                 n=$((n + 1))\n\
             done"
        );
        let mut guest = Guest::boot_by(kernel, dir, name, &script, words);
        guest.wait_console("STATION-UP");
        Self {
            guest,
            name: name.to_owned(),
            dir: dir.to_owned(),
            told: Cell::new(0),
        }
    }

    /// Starts a command.
    ///
    /// # Panics
    /// If the directory cannot be written to.
    pub fn tell(&self, command: &str) -> Told<'_> {
        self.told.set(self.told.get() + 1);
        let told = Told {
            station: self,
            number: self.told.get(),
        };
        // It must not find half of it.
        fs::write(told.file("new"), command).expect("a file of the test's");
        fs::rename(told.file("new"), told.file("do")).expect("a file of the test's");
        told
    }

    /// Runs a command to its end; what it has printed.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        self.tell(command).output()
    }

    /// Waits until it has come up so many times.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_boots(&mut self, boots: usize) {
        let console = || self.guest.console();
        wait::until_true(&format!("boot {boots} of {}", self.name), || {
            console().matches("STATION-UP").count() >= boots
        });
    }

    /// Echo requests sent so far that have had no reply. ping gives up late replies, its kernel counts them.
    ///
    /// # Panics
    /// If the guest does not answer any more.
    pub fn unanswered_pings(&self) -> i64 {
        let said = self.run("grep IcmpMsg /proc/net/snmp");
        let mut lines = said.lines().map(str::split_whitespace);
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            return 0;
        };
        let counts = names.zip(values).map(|(name, value)| match name {
            "OutType8" => value.parse::<i64>().expect("a count"),
            "InType0" => -value.parse::<i64>().expect("a count"),
            _ => 0,
        });
        counts.sum()
    }

    /// What the kernel has said since its boot that a kernel in order does not say. (While it boots on a busy machine,
    /// Linux 6.1 may warn of its own cryptography.)
    ///
    /// # Panics
    /// If the guest does not answer any more.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let said = self.run("dmesg") + self.guest.console().rsplit("GUEST-UP").next().unwrap_or_default();
        said.lines()
            .filter(|line| is_complaint(line))
            .map(str::to_owned)
            .collect()
    }

    /// The guest itself.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }
}

/// True for a line of a kernel's log that tells of a fault.
pub fn is_complaint(line: &str) -> bool {
    const WORDS: [&str; 10] = [
        "BUG",
        "WARNING",
        "Kernel panic",
        "bad:",
        "Bad ",
        "stall",
        "Call Trace",
        "blocked for more",
        "timed out",
        "err=-",
    ];
    WORDS.iter().any(|word| line.contains(word))
}

/// A command under way.
pub struct Told<'a> {
    station: &'a Station,
    number: u32,
}

impl Told<'_> {
    /// Waits for its end; what it has printed.
    ///
    /// # Panics
    /// If it does not end in time.
    #[track_caller]
    pub fn output(self) -> String {
        wait::until_true(&format!("{} to do what it was told", self.station.name), || {
            self.file("done").exists()
        });
        fs::read_to_string(self.file("out")).expect("what it has printed")
    }

    fn file(&self, kind: &str) -> PathBuf {
        let name = format!("{}.{}.{kind}", self.station.name, self.number);
        self.station.dir.join(name)
    }
}

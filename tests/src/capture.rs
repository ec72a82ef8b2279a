//! Captures of the real daemon, and their judge: tshark.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::program::{Outcome, Process, run, tool};
use crate::switchd::Switchd;
use crate::wait;

/// A running `switchd capture`, or another command that captures.
#[derive(Debug)]
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Starts `switchd` with these arguments and waits until `domain` has one capture more.
    ///
    /// # Panics
    /// When it does not capture in time.
    #[track_caller]
    pub fn start(switchd: &Switchd, domain: &str, arguments: &[&str]) -> Self {
        let mut command = switchd.command();
        command.args(arguments);
        Self::start_command(switchd, domain, &mut command)
    }

    /// Starts a command and waits until `domain` has one capture more.
    ///
    /// # Panics
    /// When it does not capture in time.
    #[track_caller]
    pub fn start_command(switchd: &Switchd, domain: &str, command: &mut Command) -> Self {
        let before = switchd.domain(domain).captures;
        let mut process = Process::start(command);
        wait::until_true("the capture has begun", || {
            switchd.domain(domain).captures > before || !process.is_running()
        });
        Self { process }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Presses Ctrl-C and waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn interrupt(self) -> Outcome {
        self.process.signal(Signal::SIGINT);
        self.process.outcome()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn outcome(self) -> Outcome {
        self.process.outcome()
    }
}

/// Fields of the frames of a file, as tshark reads them: a row for each frame.
///
/// # Panics
/// When tshark finds fault with the file.
#[track_caller]
pub fn fields(file: &Path, names: &[&str]) -> Vec<Vec<String>> {
    let mut command = tshark(file);
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    command.args(["-T", "fields", "-E", "separator=/t"]);
    for name in names {
        command.args(["-e", name]);
    }
    let lines = run(&mut command).ok();
    let row = |line: &str| line.split('\t').map(str::to_owned).collect();
    lines.lines().map(row).collect()
}

/// One field of each frame.
///
/// # Panics
/// When tshark finds fault with the file.
#[track_caller]
pub fn field(file: &Path, name: &str) -> Vec<String> {
    fields(file, &[name])
        .into_iter()
        .map(|mut row| row.remove(0))
        .collect()
}

/// The bytes of each frame, as tshark reads them.
///
/// # Panics
/// When tshark finds fault with the file.
#[track_caller]
pub fn frames(file: &Path) -> Vec<Vec<u8>> {
    // The payload of the whole frame, before any dissector has its say.
    let json = run(tshark(file).args(["-T", "jsonraw", "-j", "frame", "--no-duplicate-keys"])).ok();
    let packets: Vec<serde_json::Value> = serde_json::from_str(&json).expect("tshark prints JSON");
    let bytes = |packet: &serde_json::Value| {
        let hex = packet["_source"]["layers"]["frame_raw"][0].as_str();
        unhex(hex.unwrap_or_else(|| panic!("no bytes in {packet}")))
    };
    packets.iter().map(bytes).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits
        .map(|pair| byte(pair).expect("two hexadecimal digits"))
        .collect()
}

/// tshark, reading a file without the settings of whoever runs the test.
fn tshark(file: &Path) -> Command {
    let mut command = Command::new(tool("tshark"));
    command.env("HOME", "/nonexistent").args(["-n", "-r"]).arg(file);
    command
}

/// A file of this name in the daemon's home.
pub fn file(switchd: &Switchd, name: &str) -> PathBuf {
    switchd.home().join(name)
}

/// What a capture says about one of its interfaces, and what is really there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sum {
    /// Its name.
    pub name: String,
    /// Frames of it in the file.
    pub frames: u64,
    /// Frames that passed, by its statistics.
    pub received: u64,
    /// Those the filter accepted.
    pub accepted: u64,
    /// Those the capture lost.
    pub dropped: u64,
    /// Those written.
    pub written: u64,
}

/// The statistics of all interfaces of a pcapng file, as the library pcap-file reads them.
///
/// # Panics
/// When the file is faulty, or an interface has no statistics, or anything but statistics stands behind them.
#[track_caller]
pub fn sums(file: &Path) -> Vec<Sum> {
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
    use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
    use pcap_file::pcapng::{Block, PcapNgReader};
    let input = std::fs::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut reader = PcapNgReader::new(input).expect("a pcapng file");
    let mut found: Vec<(Sum, u32)> = Vec::new();
    let mut ended = false;
    while let Some(block) = reader.next_block() {
        let block = block.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(
            !ended || matches!(block, Block::InterfaceStatistics(_)),
            "{} goes on behind its statistics: {block:?}",
            file.display()
        );
        match block {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                let sum = Sum {
                    name: name.expect("an interface has a name"),
                    frames: 0,
                    received: 0,
                    accepted: 0,
                    dropped: 0,
                    written: 0,
                };
                found.push((sum, 0));
            }
            Block::EnhancedPacket(packet) => found[packet.interface_id as usize].0.frames += 1,
            Block::InterfaceStatistics(statistics) => {
                ended = true;
                let (sum, times) = &mut found[statistics.interface_id as usize];
                *times += 1;
                for option in &statistics.options {
                    match option {
                        InterfaceStatisticsOption::IsbIfRecv(count) => sum.received = *count,
                        InterfaceStatisticsOption::IsbFilterAccept(count) => sum.accepted = *count,
                        InterfaceStatisticsOption::IsbIfDrop(count) => sum.dropped = *count,
                        InterfaceStatisticsOption::IsbUsrDeliv(count) => sum.written = *count,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    for (sum, times) in &found {
        assert_eq!(*times, 1, "{}: statistics of {}", file.display(), sum.name);
    }
    found.into_iter().map(|(sum, _)| sum).collect()
}

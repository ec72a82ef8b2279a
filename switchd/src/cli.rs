//! The command line: definitions only.

#[path = "cli/port.rs"]
mod port;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proto::DomainName;
use proto::ctl::{Drops, FileMode, Mode};

pub(crate) use port::PortCommand;

/// Host collision domains for virtual machines, and look at them
#[derive(Debug, Parser)]
#[command(name = "switchd", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Directory of the sockets [default: ~/.netkit/hubs]
    #[arg(long, value_name = "DIR", global = true, env = "NETKIT_HUBS")]
    pub(crate) dir: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  switchd run                               host domains until interrupted
  switchd domain add A                      a hub
  switchd domain add B --mode switch --mtu 9000
  switchd port ls A                         who is attached, and what passed
  switchd port add A --tap nk_tap_me        attach a tap device of yours
  switchd port add A --uplink               lead it to the Internet
  switchd link A B                          a cable between two domains
  switchd cable A -- ssh host switchd cable B   one domain on two hosts
  switchd capture A -w a.pcapng             record a domain until Ctrl-C
  switchd capture A | tshark -r -           watch it live
  switchd stats --watch                     counters, every second

Under the name uml_switch (or as 'switchd uml_switch ...') it takes that program's options; under the name vdump it
is 'switchd vdump'.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground
    Run(RunOptions),
    /// Make, list and remove domains
    #[command(subcommand)]
    Domain(DomainCommand),
    /// List, make and end ports
    #[command(subcommand)]
    Port(PortCommand),
    /// Tie two domains together with a cable
    Link {
        /// One domain
        a: DomainName,
        /// The other
        b: DomainName,
    },
    /// Carry a domain over standard input and output, or over those of a command
    Cable(CableArguments),
    /// Show or edit the forwarding table of a domain
    Fdb(FdbArguments),
    /// Show counters of the daemon and its domains
    Stats {
        /// Show them again every second until interrupted
        #[arg(long)]
        watch: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Capture domains as pcapng until interrupted
    Capture(CaptureArguments),
    /// Show what passes through domains, or write it to standard output
    Vdump(VdumpArguments),
    /// Keep the last frames of a domain in memory, and save them when something has happened
    Record(RecordArguments),
    /// Send captured frames into a domain, as a port of its own
    Replay(ReplayArguments),
    /// End the daemon
    Stop,
    /// Make a tap in a network namespace and hand it over on standard output, for the daemon
    #[command(hide = true)]
    GiveTap {
        /// The namespace
        path: PathBuf,
        /// The tap's name
        name: String,
    },
    /// Act as uml_switch
    #[command(name = "uml_switch", disable_help_flag = true)]
    UmlSwitch {
        /// The options of uml_switch
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// Read settings and domains from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Hold a sender back so long for a full receiver; 0 drops at once [default: 100, at most 500]
    #[arg(long, value_name = "MS")]
    pub(crate) hold_ms: Option<u64>,
    /// Look for more frames so long before a sleep, after guests that share their memory have sent [default: 100, at most 1000]
    #[arg(long, value_name = "US")]
    pub(crate) poll_us: Option<u64>,
    /// Threads that forward [default: one per processor]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// End after so long without a domain or a client; each one that goes begins the time anew
    #[arg(long, value_name = "SECONDS")]
    pub(crate) idle_exit: Option<u64>,
    /// Do without something that makes forwarding fast, to measure what it is good for
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    pub(crate) without: Vec<Gain>,
}

/// What makes forwarding fast and can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Gain {
    /// Many frames with one system call
    Batches,
    /// A short look before sleep: for room while senders are held back, for answers, for more frames of a guest
    Look,
    /// Ports of a busy worker that an idle one reads
    Help,
    /// Super-frames and unfinished checksums at tap devices
    Offload,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// Make a domain
    Add {
        /// Name of the domain
        domain: DomainName,
        /// Forward to all ports (hub) or learn where stations are (switch)
        #[arg(long, default_value = "hub", value_parser = parse_mode)]
        mode: Mode,
        /// Largest payload of a frame, in bytes, from 68 to 65521
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
        /// Forget a station so long after its last frame
        #[arg(long, value_name = "SECONDS", default_value_t = 100)]
        ageing: u64,
        /// Permissions of the VDE control socket, such as 0660
        #[arg(long, value_name = "MODE", default_value_t)]
        vde_mode: FileMode,
        /// Group of the VDE directory
        #[arg(long, value_name = "GROUP")]
        vde_group: Option<String>,
    },
    /// List the domains
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one domain
    Show {
        /// Name of the domain
        domain: DomainName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a domain and end its ports
    Rm {
        /// Name of the domain
        domain: DomainName,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchd cable A -- ssh host switchd cable B     one domain on two hosts
  dpipe switchd cable A = ssh host switchd cable B
Each frame stands behind its length, 32 bits in network order, as QEMU's -netdev stream has it.")]
pub(crate) struct CableArguments {
    /// Name of the domain
    pub(crate) domain: DomainName,
    /// What to run with the cable as its standard input and output
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FdbArguments {
    /// Name of the domain
    pub(crate) domain: DomainName,
    /// Add a static entry for this station
    #[arg(long, value_name = "MAC", requires = "port", conflicts_with = "rm")]
    pub(crate) add: Option<String>,
    /// The port the station stands behind
    #[arg(long, value_name = "ID", requires = "add")]
    pub(crate) port: Option<u32>,
    /// Remove this station
    #[arg(long, value_name = "MAC")]
    pub(crate) rm: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchd capture A B -w ab.pcapng                two domains in one file, in the order of time
  switchd capture --all --filter 'arp or icmp' | tshark -r -
  switchd capture --lab ~/labs/ospf -w ospf.pcapng
  switchd capture A --port 3 --snap 96 --count 1000 -w head.pcapng
  switchd capture A --drops=only -w dropped.pcapng
  switchd capture A -w a.pcapng --rotate-size 100M --files 5")]
pub(crate) struct CaptureArguments {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Write to this file instead of standard output; '-' is standard output
    #[arg(short, long = "write", value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Write classic pcap instead of pcapng: without interfaces, directions and comments
    #[arg(long)]
    pub(crate) pcap: bool,
    #[command(flatten)]
    pub(crate) rotate: Rotate,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdump A | wireshark -k -i -        watch it in Wireshark
  vdump A > a.pcapng                 keep it
  vdump -t A B --filter 'not arp'    read it
  vdump -t --lab .                   all domains of the lab in this directory
  vdump --stats A                    who talks to whom

Under the name vdump, switchd is this command.")]
pub(crate) struct VdumpArguments {
    /// Print a line for each frame
    #[arg(short, long, conflicts_with_all = ["stats", "write", "pcap"])]
    pub(crate) text: bool,
    /// Show who talks to whom and in what protocol: live on a terminal, else at the end
    #[arg(long, conflicts_with_all = ["write", "pcap"])]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) capture: CaptureArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchd record A --last 30s          keep the last 30 seconds, from now on
  switchd record A --last 64M          keep the last 64 million bytes
  switchd record A --save now.pcapng   write what just happened, and go on
  switchd record A --stop
  switchd record                       what is kept")]
pub(crate) struct RecordArguments {
    /// Name of the domain
    pub(crate) domain: Option<DomainName>,
    /// Begin anew, and keep so much: a time such as 30s or 15m, or a size such as 64M
    #[arg(long, value_name = "TIME|SIZE", requires = "domain", value_parser = parse_last)]
    pub(crate) last: Option<Last>,
    /// Write what is kept to this file, as pcapng; '-' is standard output
    #[arg(long, value_name = "FILE", requires = "domain", conflicts_with = "last")]
    pub(crate) save: Option<PathBuf>,
    /// Forget what is kept, and keep no more
    #[arg(long, requires = "domain", conflicts_with_all = ["last", "save"])]
    pub(crate) stop: bool,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["last", "save", "stop"])]
    pub(crate) json: bool,
}

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Last {
    Time(Duration),
    Bytes(u64),
}

fn parse_last(text: &str) -> Result<Last, String> {
    parse_time(text)
        .map(Last::Time)
        .or_else(|_| parse_size(text).map(Last::Bytes))
        .map_err(|_| format!("'{text}' is no time such as 30s and no size such as 64M"))
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchd replay A a.pcapng                   with the file's own timing
  switchd replay A a.pcap b.pcap --speed 10
  switchd replay A a.pcap --pps 1000 --loop 5 --as generator
  switchd replay A a.pcap --asap --loop 0     until Ctrl-C")]
pub(crate) struct ReplayArguments {
    /// Name of the domain
    pub(crate) domain: DomainName,
    /// Files to send, one after the other: pcap or pcapng; '-' is standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Send so many times as fast as it was captured
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = parse_positive)]
    pub(crate) speed: f64,
    /// Send so many frames a second
    #[arg(long, value_name = "N", conflicts_with = "speed", value_parser = parse_positive)]
    pub(crate) pps: Option<f64>,
    /// Send as fast as the domain takes them
    #[arg(long, conflicts_with_all = ["speed", "pps"])]
    pub(crate) asap: bool,
    /// Send the files so often; 0 is for ever
    #[arg(long = "loop", value_name = "N", default_value_t = 1)]
    pub(crate) repeat: u64,
    /// Name of the port [default: 'replay' and the file's name]
    #[arg(long = "as", value_name = "NAME", value_parser = parse_port_name)]
    pub(crate) name: Option<String>,
}

/// What is captured, and for how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Selection {
    /// Names of the domains
    #[arg(value_name = "DOMAIN")]
    pub(crate) domains: Vec<DomainName>,
    /// Capture all domains there are
    #[arg(long)]
    pub(crate) all: bool,
    /// Capture the domains of the lab in this directory; may be repeated
    #[arg(long = "lab", value_name = "DIR")]
    pub(crate) labs: Vec<PathBuf>,
    /// Capture only what this port sends and is sent; may be repeated
    #[arg(long = "port", value_name = "ID")]
    pub(crate) ports: Vec<u32>,
    /// Capture only what this expression of libpcap accepts; see pcap-filter(7)
    #[arg(short, long, value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// Keep so many bytes of each frame
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) snap: Option<u32>,
    /// End after so many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after so long, such as 90s, 15m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) duration: Option<Duration>,
    /// Capture the frames the fabric dropped too (or alone: --drops=only), with the reason as a comment
    #[arg(
        long, value_name = "also|only", num_args = 0..=1, require_equals = true,
        default_missing_value = "also", value_parser = parse_drops
    )]
    pub(crate) drops: Option<Drops>,
}

/// When a file is full, and how many there may be.
#[derive(Clone, Debug, Args)]
pub(crate) struct Rotate {
    /// Begin another file when one has this size, such as 500k, 100M or 2G
    #[arg(long, value_name = "SIZE", requires = "write", value_parser = parse_size)]
    pub(crate) rotate_size: Option<u64>,
    /// Begin another file after so long
    #[arg(long, value_name = "TIME", requires = "write", value_parser = parse_time)]
    pub(crate) rotate_time: Option<Duration>,
    /// Keep so many files: the oldest goes for a new one
    #[arg(long, value_name = "N", requires = "write", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) files: Option<u32>,
}

impl Rotate {
    pub(crate) fn is_wanted(&self) -> bool {
        self.rotate_size.is_some() || self.rotate_time.is_some()
    }
}

fn parse_drops(text: &str) -> Result<Drops, String> {
    match text {
        "also" => Ok(Drops::Also),
        "only" => Ok(Drops::Only),
        _ => Err("dropped frames are captured 'also' or 'only'".to_owned()),
    }
}

fn parse_positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (1e-6..=1e9).contains(&number) => Ok(number),
        _ => Err(format!("'{text}' is no number above 0")),
    }
}

/// What fits into a request of the port protocol, and cannot be mistaken for padding.
fn parse_port_name(text: &str) -> Result<String, String> {
    if (3..=100).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("the name of a port has 3 to 100 bytes and no control characters".to_owned())
    }
}

/// A time: a number with a unit of s, m or h; seconds without one.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time such as 500ms, 30s, 15m or 2h");
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(wrong()),
    }
}

/// A size: a number of bytes, or of units of 1000 (k, M, G) or 1024 (Ki, Mi, Gi).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size such as 500k, 64M or 2G");
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "k" | "K" | "kB" => 1000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(wrong()),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    text.split_at(unit.unwrap_or(text.len()))
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "hub" => Ok(Mode::Hub),
        "switch" => Ok(Mode::Switch),
        _ => Err("a domain is a 'hub' or a 'switch'".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(parse_time("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_time("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse_size("64M"), Ok(64_000_000));
        assert_eq!(parse_size("2Ki"), Ok(2048));
        for wrong in ["", "s", "0", "-1s", "3 s", "1d", "1e400h", "nan"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "M", "0", "1.5M", "-2", "1T", "99999999999999G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}

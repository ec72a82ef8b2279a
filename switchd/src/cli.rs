//! The command line: definitions only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use proto::DomainName;
use proto::ctl::Mode;

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
  switchd capture A -w a.pcapng             record a domain until Ctrl-C
  switchd capture A | tshark -r -           watch it live
  switchd stats --watch                     counters, every second

Under the name uml_switch (or as 'switchd uml_switch ...') it takes that program's options.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground
    Run(RunOptions),
    /// Make, list and remove domains
    #[command(subcommand)]
    Domain(DomainCommand),
    /// List ports
    #[command(subcommand)]
    Port(PortCommand),
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
    /// Capture a domain as pcapng until interrupted
    Capture(CaptureArguments),
    /// End the daemon
    Stop,
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
    /// Threads that forward [default: one per processor]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// End after so long without a domain or a client
    #[arg(long, value_name = "SECONDS")]
    pub(crate) idle_exit: Option<u64>,
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

#[derive(Debug, Subcommand)]
pub(crate) enum PortCommand {
    /// List the ports of one or all domains
    Ls {
        /// Name of the domain
        domain: Option<DomainName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
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
pub(crate) struct CaptureArguments {
    /// Name of the domain
    pub(crate) domain: DomainName,
    /// Write to this file instead of standard output; '-' is standard output
    #[arg(short, long = "write", value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Keep so many bytes of each frame
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) snap: Option<u32>,
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "hub" => Ok(Mode::Hub),
        "switch" => Ok(Mode::Switch),
        _ => Err("a domain is a 'hub' or a 'switch'".to_owned()),
    }
}

//! The command line: definitions and syntax, nothing else.

use std::net::IpAddr;

use clap::{Args, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use netio::tap::IfName;
use proto::DomainName;

use crate::attach::Spec;
use crate::firewall::Backend;
use crate::name::Device;
use crate::open::Bytecode;

/// Make and remove the host side of tap domains, exactly
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  sudo tapctl up --addr 10.0.0.1              a tap for the domain 'tap', guests in 10.0.0.0/24
  sudo tapctl up --addr 10.0.0.1 --dry-run    what that would do, and what would undo it
  sudo tapctl ls                              the taps there are
  sudo tapctl down --all                      everything of yours away again
  sudo tapctl attach auto:10.1.0.1:10.1.0.2   the first free tap with these two ends

Exit status: 0 done, 1 refused or failed (nothing is changed), 2 misused.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the tap of a domain: device, address, forwarding, firewall rules
    Up(Up),
    /// Undo what the journal says was done for taps, and nothing else
    Down(Down),
    /// List the taps that tapctl made
    Ls(Ls),
    /// Route an address to a guest behind a tap
    Route(Route),
    /// Attach a guest as vkernel's -I does: interface[:address1[:address2][/netmask]]
    Attach(Attach),
    /// Open a packet socket on an interface and hand it to switchd (root, and whom root allows it)
    Open(Open),
    /// Make or free a tap as tunctl(8) does; the same as calling this program 'tunctl'
    #[command(disable_help_flag = true)]
    Tunctl {
        /// tunctl's own options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Whose tap; root may name any user, others only themselves
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// The collision domain
    #[arg(long, default_value = "tap")]
    pub(crate) domain: DomainName,
    /// The host's address on the tap; /24 unless a length is given
    #[arg(long, value_name = "TAP_ADDR[/LEN]", value_parser = parse_net4)]
    pub(crate) addr: Ipv4Net,
    /// The host's IPv6 address on the tap; /64 unless a length is given
    #[arg(long, value_name = "ADDR[/LEN]", value_parser = parse_net6)]
    pub(crate) addr6: Option<Ipv6Net>,
    #[command(flatten)]
    pub(crate) making: Making,
}

/// What any way to make a tap can be told.
#[derive(Debug, Args)]
pub(crate) struct Making {
    /// Whose rules to add; by default those the host uses
    #[arg(long)]
    pub(crate) firewall: Option<Backend>,
    /// Let guests reach the host's own services
    #[arg(long)]
    pub(crate) allow_host: bool,
    /// Let guests reach other users' taps that allow it too
    #[arg(long)]
    pub(crate) allow_taps: bool,
    /// Print the steps and what undoes them; change nothing
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Whose taps
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// The domain whose tap to take down [default: tap]
    #[arg(long, conflicts_with_all = ["all", "dev"])]
    pub(crate) domain: Option<DomainName>,
    /// This device
    #[arg(long, value_name = "TAP", conflicts_with = "all")]
    pub(crate) dev: Option<Device>,
    /// All taps of the user; of all users if root names none
    #[arg(long)]
    pub(crate) all: bool,
    /// Print what would be undone; change nothing
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// The taps of all users, not only one's own (root sees all anyway)
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Route {
    /// The guest's address
    pub(crate) address: IpAddr,
    /// The tap it is behind
    #[arg(long, value_name = "TAP")]
    pub(crate) dev: Device,
    /// Answer for the address on this interface, so that its LAN sees the guest (root only)
    #[arg(long, value_name = "ETH")]
    pub(crate) proxy_arp: Option<Device>,
    /// Print the steps and what undoes them; change nothing
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// interface[:address1[:address2][/netmask]]; interface may be 'auto', address1 a bridge
    pub(crate) spec: Spec,
    /// Whose tap
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Make the bridge if it does not exist (root only)
    #[arg(long)]
    pub(crate) create_bridge: bool,
    /// Put this interface of the host into the bridge (root only)
    #[arg(long, value_name = "IF")]
    pub(crate) bridge_port: Option<Device>,
    #[command(flatten)]
    pub(crate) making: Making,
}

#[derive(Debug, Args)]
pub(crate) struct Open {
    /// The interface
    pub(crate) interface: IfName,
    /// Frames for others as well, for as long as the socket is open
    #[arg(long)]
    pub(crate) promisc: bool,
    /// What the host itself sends as well
    #[arg(long)]
    pub(crate) outgoing: bool,
    /// Only what this program of classic BPF accepts, written as iptables takes it: 'LENGTH,CODE JT JF K,...'
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) bytecode: Option<Bytecode>,
}

fn parse_net4(text: &str) -> Result<Ipv4Net, String> {
    let parsed = if text.contains('/') {
        text.parse().ok()
    } else {
        format!("{text}/24").parse().ok()
    };
    let net: Ipv4Net =
        parsed.ok_or_else(|| format!("'{text}' is not an IPv4 address, with or without /LEN"))?;
    fit(net.into()).map(|()| net)
}

fn parse_net6(text: &str) -> Result<Ipv6Net, String> {
    let parsed = if text.contains('/') {
        text.parse().ok()
    } else {
        format!("{text}/64").parse().ok()
    };
    let net: Ipv6Net =
        parsed.ok_or_else(|| format!("'{text}' is not an IPv6 address, with or without /LEN"))?;
    fit(net.into()).map(|()| net)
}

fn fit(net: ipnet::IpNet) -> Result<(), String> {
    match crate::host::unfit_for_host(net) {
        Some(why) => Err(format!("{net} {why}")),
        None => Ok(()),
    }
}

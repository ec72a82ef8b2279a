//! `switchd port`: what is attached to a domain, and how.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use proto::DomainName;
use proto::ctl::PortSpec;
use proto::uplink::{Carrier, Publish, UplinkSpec};

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
    /// Attach something to a domain that does not come by itself
    Add(AddArguments),
    /// End a port
    Rm {
        /// Name of the domain
        domain: DomainName,
        /// Number of the port
        id: u32,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("kind").required(true), after_help = "\
Examples:
  switchd port add A --tap nk_tap_me
  switchd port add A --uplink --publish tcp:8080:10.0.2.15:80
  switchd port add A --netns /run/netns/blue --ifname eth0")]
pub(crate) struct AddArguments {
    /// Name of the domain
    pub(crate) domain: DomainName,
    /// A tap device that exists and that you may attach
    #[arg(long, value_name = "DEVICE", group = "kind")]
    tap: Option<String>,
    /// A network namespace, such as /run/netns/NAME or /proc/PID/ns/net: an interface is made in it
    #[arg(long, value_name = "PATH", group = "kind", requires = "ifname")]
    netns: Option<PathBuf>,
    /// With --netns: the name of the interface
    #[arg(long, value_name = "NAME", requires = "netns")]
    ifname: Option<String>,
    #[command(flatten)]
    uplink: UplinkArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
struct UplinkArguments {
    /// The Internet, without root: DHCP, DNS and address translation
    #[arg(long, group = "kind")]
    uplink: bool,
    /// With --uplink: a port of the host that leads to one of a machine; may be repeated
    #[arg(long, value_name = "PROTOCOL:[ADDRESS:]PORT:GUEST:PORT", requires = "uplink")]
    publish: Vec<Publish>,
    /// With --uplink: IPv6 as well
    #[arg(long, requires = "uplink")]
    ipv6: bool,
    /// With --uplink: the program that carries it, slirp4netns or passt
    #[arg(long, value_name = "PROGRAM", requires = "uplink")]
    via: Option<Carrier>,
}

impl AddArguments {
    /// The namespace an interface is to be made in, and its name.
    pub(crate) fn placed(&self) -> Option<(&Path, &str)> {
        Some((self.netns.as_deref()?, self.ifname.as_deref()?))
    }

    /// What is to be attached.
    pub(crate) fn spec(self) -> PortSpec {
        match (self.tap, self.ifname) {
            (Some(interface), _) => PortSpec::Tap { interface },
            (None, Some(name)) => PortSpec::TapFd { name },
            // One of the kinds is there: the parser has seen to it.
            (None, None) => PortSpec::Uplink(UplinkSpec {
                publish: self.uplink.publish,
                ipv6: self.uplink.ipv6,
                via: self.uplink.via,
            }),
        }
    }
}

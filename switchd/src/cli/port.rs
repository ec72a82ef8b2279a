//! `switchd port`: what is attached to a domain, and how.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use ipnet::IpNet;
use proto::DomainName;
use proto::ctl::{NewPort, PortSpec};
use proto::nic::{NicSpec, SniffSpec};
use proto::uplink::{Carrier, Publish, UplinkSpec};
use proto::wire::{
    Counter, DgramSpec, Endpoint, GreSpec, L2tpv3Spec, McastSpec, StreamAddress, StreamSpec, UdpSpec,
};

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
    Add(Box<AddArguments>),
    /// Restrict what comes from a port to ARP, IPv4 and IPv6 of some addresses
    Secure {
        /// Name of the domain
        domain: DomainName,
        /// Number of the port
        id: u32,
        /// What addresses whoever is behind it may use
        #[arg(required_unless_present = "open", conflicts_with = "open")]
        ranges: Vec<IpNet>,
        /// Let everything through again
        #[arg(long)]
        open: bool,
    },
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
  switchd port add A --netns /run/netns/blue --ifname eth0
  switchd port add A --nic eth1 --vlan 100 --promisc
  switchd port add A --sniff eth1 --filter 'not port 22'
  switchd port add A --tap nk0 --secure 10.0.0.0/24
  switchd port add A --l2tpv3 192.0.2.1:1701,192.0.2.2:1701 --tx-session 1 --rx-session 2
  switchd port add A --gre 192.0.2.1,192.0.2.2 --tx-key 7 --rx-key 8 --counter
  switchd port add A --mcast 239.192.168.1:1102
  switchd port add A --udp 127.0.0.1:5001,127.0.0.1:5002
  switchd port add A --stream tcp:0.0.0.0:5000 --listen
  switchd port add A --dgram /tmp/a.sock,/tmp/qemu.sock
  switchd port add A --fd 3 3<>/dev/tcp/192.0.2.2/5000")]
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
    host: HostArguments,
    #[command(flatten)]
    uplink: UplinkArguments,
    #[command(flatten)]
    wires: WireArguments,
    /// Let only ARP, IPv4 and IPv6 of these addresses in, such as 10.0.0.0/24; may be repeated
    #[arg(long, value_name = "RANGE")]
    secure: Vec<IpNet>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
struct HostArguments {
    /// An interface of the host; takes root, or its permission (see tapctl(1))
    #[arg(long, value_name = "INTERFACE", group = "kind")]
    nic: Option<String>,
    /// With --nic: only this VLAN of it, without its tags
    #[arg(long, value_name = "ID", requires = "nic", conflicts_with = "sniff", value_parser = proto::nic::vlan)]
    vlan: Option<u16>,
    /// What passes at an interface of the host, in both directions; nothing is ever sent there
    #[arg(long, value_name = "INTERFACE", group = "kind")]
    sniff: Option<String>,
    /// With --sniff: only what this expression of libpcap accepts; see pcap-filter(7)
    #[arg(long, value_name = "EXPR", requires = "sniff", conflicts_with = "nic")]
    filter: Option<String>,
    /// With --nic or --sniff: frames for others than the host as well
    #[arg(long, conflicts_with_all = ["tap", "netns", "uplink", "l2tpv3", "gre", "mcast", "udp", "dgram", "stream", "fd"])]
    promisc: bool,
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

#[derive(Debug, Args)]
struct WireArguments {
    /// An L2TPv3 session: over UDP if the addresses have ports, else over IP, which needs CAP_NET_RAW
    #[arg(long, value_name = "LOCAL,REMOTE", group = "kind", requires_all = ["tx_session", "rx_session"])]
    l2tpv3: Option<Ends<Endpoint>>,
    /// With --l2tpv3: the session that is sent
    #[arg(long, value_name = "N", requires = "l2tpv3", value_parser = number32)]
    tx_session: Option<u32>,
    /// With --l2tpv3: the session that is expected
    #[arg(long, value_name = "N", requires = "l2tpv3", value_parser = number32)]
    rx_session: Option<u32>,
    /// With --l2tpv3: the cookie that is sent
    #[arg(long, value_name = "N", requires = "l2tpv3", value_parser = number64)]
    tx_cookie: Option<u64>,
    /// With --l2tpv3: the cookie that is expected
    #[arg(long, value_name = "N", requires = "l2tpv3", value_parser = number64)]
    rx_cookie: Option<u64>,
    /// With --l2tpv3: cookies of 64 bits
    #[arg(long, requires = "l2tpv3")]
    cookie64: bool,
    /// A GRE tunnel; needs CAP_NET_RAW
    #[arg(long, value_name = "LOCAL,REMOTE", group = "kind")]
    gre: Option<Ends<IpAddr>>,
    /// With --gre: the key that is sent
    #[arg(long, value_name = "N", requires = "gre", value_parser = number32)]
    tx_key: Option<u32>,
    /// With --gre: the key that is expected
    #[arg(long, value_name = "N", requires = "gre", value_parser = number32)]
    rx_key: Option<u32>,
    /// With --l2tpv3 and --gre: count frames in the header (counter, sequence)
    #[arg(long, conflicts_with_all = UNCOUNTED)]
    counter: bool,
    /// The same, with a counter that stays 0
    #[arg(long, conflicts_with = "counter", conflicts_with_all = UNCOUNTED)]
    pin_counter: bool,
    /// A multicast group, whose members are one hub (UML's mcast, QEMU's socket,mcast=)
    #[arg(long, value_name = "GROUP:PORT", group = "kind")]
    mcast: Option<SocketAddr>,
    /// With --mcast: how many networks frames pass
    #[arg(long, value_name = "N", requires = "mcast", default_value_t = 1)]
    ttl: u8,
    /// With --mcast: an address of the interface to use
    #[arg(long, value_name = "ADDRESS", requires = "mcast")]
    mcast_via: Option<Ipv4Addr>,
    /// One frame a UDP datagram (UML's ucast, QEMU's socket,udp= and dgram)
    #[arg(long, value_name = "LOCAL,REMOTE", group = "kind")]
    udp: Option<Ends<SocketAddr>>,
    /// One frame a datagram of Unix sockets (QEMU's dgram)
    #[arg(long, value_name = "LOCAL,REMOTE", group = "kind")]
    dgram: Option<Ends<PathBuf>>,
    /// A byte stream (QEMU's stream and socket): unix:PATH or tcp:HOST:PORT, connected to again when it ends
    #[arg(long, value_name = "ADDRESS", group = "kind")]
    stream: Option<StreamAddress>,
    /// With --stream: wait for the other end to connect
    #[arg(long, requires = "stream")]
    listen: bool,
    /// A connected socket that this command has inherited, by its number
    #[arg(long, value_name = "N", group = "kind")]
    fd: Option<i32>,
}

/// Kinds without a header that could have a counter.
const UNCOUNTED: [&str; 8] = ["tap", "netns", "uplink", "mcast", "udp", "dgram", "stream", "fd"];

/// The two ends of a wire.
#[derive(Clone, Debug)]
struct Ends<T> {
    local: T,
    remote: T,
}

impl<T: FromStr<Err: std::fmt::Display>> FromStr for Ends<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text
            .split_once(',')
            .ok_or("two ends with a comma between them are needed: LOCAL,REMOTE")?;
        let end = |text: &str| text.parse().map_err(|error: T::Err| format!("'{text}': {error}"));
        Ok(Self {
            local: end(local)?,
            remote: end(remote)?,
        })
    }
}

impl AddArguments {
    /// The namespace an interface is to be made in, and its name.
    pub(crate) fn placed(&self) -> Option<(&Path, &str)> {
        Some((self.netns.as_deref()?, self.ifname.as_deref()?))
    }

    /// What is to be attached.
    pub(crate) fn port(&self) -> NewPort {
        NewPort {
            spec: self.spec(),
            secure: self.secure.clone(),
        }
    }

    /// The number of the descriptor to be handed over.
    pub(crate) fn fd(&self) -> Option<i32> {
        self.wires.fd
    }

    fn spec(&self) -> PortSpec {
        if let Some(spec) = self.host.spec() {
            return spec;
        }
        match (&self.tap, &self.ifname) {
            (Some(interface), _) => PortSpec::Tap {
                interface: interface.clone(),
            },
            (None, Some(name)) => PortSpec::TapFd { name: name.clone() },
            (None, None) if self.uplink.uplink => PortSpec::Uplink(UplinkSpec {
                publish: self.uplink.publish.clone(),
                ipv6: self.uplink.ipv6,
                via: self.uplink.via,
            }),
            (None, None) => self.wires.spec(),
        }
    }
}

impl HostArguments {
    fn spec(&self) -> Option<PortSpec> {
        let Self {
            nic,
            vlan,
            sniff,
            filter,
            promisc,
        } = self.clone();
        match (nic, sniff) {
            (Some(interface), _) => Some(PortSpec::Nic(NicSpec {
                interface,
                vlan,
                promisc,
            })),
            (None, Some(interface)) => Some(PortSpec::Sniff(SniffSpec {
                interface,
                filter,
                promisc,
            })),
            (None, None) => None,
        }
    }
}

impl WireArguments {
    fn spec(&self) -> PortSpec {
        let counter = match (self.counter, self.pin_counter) {
            (true, _) => Counter::Count,
            (_, true) => Counter::Zero,
            _ => Counter::None,
        };
        if let Some(Ends { local, remote }) = self.l2tpv3 {
            return PortSpec::L2tpv3(L2tpv3Spec {
                local,
                remote,
                tx_session: self.tx_session.unwrap_or_default(),
                rx_session: self.rx_session.unwrap_or_default(),
                tx_cookie: self.tx_cookie,
                rx_cookie: self.rx_cookie,
                cookie64: self.cookie64,
                counter,
            });
        }
        if let Some(Ends { local, remote }) = self.gre {
            return PortSpec::Gre(GreSpec {
                local,
                remote,
                tx_key: self.tx_key,
                rx_key: self.rx_key,
                sequence: counter,
            });
        }
        if let Some(group) = self.mcast {
            return PortSpec::Mcast(McastSpec {
                group,
                ttl: self.ttl,
                via: self.mcast_via,
            });
        }
        if let Some(Ends { local, remote }) = self.udp {
            return PortSpec::Udp(UdpSpec { local, remote });
        }
        if let Some(Ends { local, remote }) = &self.dgram {
            return PortSpec::Dgram(DgramSpec {
                local: absolute(local),
                remote: absolute(remote),
            });
        }
        if let Some(address) = &self.stream {
            let address = match address {
                StreamAddress::Unix(path) => StreamAddress::Unix(absolute(path)),
                tcp @ StreamAddress::Tcp(_) => tcp.clone(),
            };
            return PortSpec::Stream(StreamSpec {
                address,
                listen: self.listen,
            });
        }
        PortSpec::Fd { name: String::new() }
    }
}

/// The daemon has a working directory of its own.
fn absolute(path: &PathBuf) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}

fn number32(text: &str) -> Result<u32, String> {
    let number = number64(text)?;
    u32::try_from(number).map_err(|_| format!("'{text}' has more than 32 bits"))
}

/// A number as C has it: decimal, or hexadecimal behind `0x`.
fn number64(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("'{text}': {error}"))
}

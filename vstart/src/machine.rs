//! What a machine is made of. Pure: parsed and checked, nothing started.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use fabric::mac::MacAddr;
use proto::DomainName;
use serde::{Deserialize, Serialize};

use crate::cpulock::CpuLock;
use crate::name::MachineName;
use crate::transport::Transport;

/// A machine to be started: everything decided, nothing done.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Unique per user.
    pub name: MachineName,
    /// The UML kernel.
    pub kernel: PathBuf,
    /// Memory of the guest, in MB.
    pub memory_mb: u32,
    /// Memory the kernel is given beyond that, in MB.
    pub memory_skew_mb: u32,
    /// Where the guest's files come from.
    pub root: Root,
    /// The program that brings our agent into a machine with a file system of its own.
    #[serde(default)]
    pub agent: Option<PathBuf>,
    /// Further disks, in order.
    pub disks: Vec<Disk>,
    /// By rising number.
    pub interfaces: Vec<Interface>,
    /// The primary and the secondary console.
    pub consoles: [Console; 2],
    /// Host directory shown as `/hosthome`.
    pub hosthome: Option<PathBuf>,
    /// Host directory shown as `/hostlab`.
    pub hostlab: Option<PathBuf>,
    /// Host directory shown as `/hostwd`.
    pub hostwd: Option<PathBuf>,
    /// Further host directories and where they are shown.
    pub mounts: Vec<Mount>,
    /// A directory whose `lib/uml/modules` has the kernel's modules.
    pub modules: Option<PathBuf>,
    /// The processor of the host it may use.
    #[serde(default)]
    pub cpu: CpuLock,
    /// A file with the number of the kernel's process.
    pub pidfile: Option<PathBuf>,
    /// A command run while booting.
    pub exec: Option<String>,
    /// Further words for the kernel, in order.
    pub append: Vec<String>,
    /// Whether the kernel tells what it does.
    pub verbose: bool,
    /// The type of terminal the consoles are shown on.
    pub term: String,
}

/// Where the guest's files come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// The host's own tree, read-only, under an overlay in memory.
    Host {
        /// Process 1 of the guest.
        init: PathBuf,
    },
    /// A model file system.
    Disk {
        /// The file with the model.
        model: PathBuf,
        /// Where changes go; into the model itself if absent.
        changes: Option<PathBuf>,
    },
}

/// A further disk of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Its contents.
    pub file: PathBuf,
    /// Whether the guest may change it.
    pub writable: bool,
}

/// A host directory shown in the guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// In the guest.
    pub target: PathBuf,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// The N of ethN.
    pub number: u32,
    /// What it is connected to.
    pub attachment: Attachment,
    /// Its address, if the user has chosen one.
    pub address: Option<[u8; 6]>,
    /// How its frames get to the domain.
    #[serde(default)]
    pub transport: Transport,
}

/// What an interface is connected to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A collision domain.
    Domain(DomainName),
    /// The host, by a tap.
    Tap {
        /// Address of the host's side.
        host: IpAddr,
        /// Address of the guest's side.
        guest: IpAddr,
    },
    /// The Internet, without root; configured by DHCP.
    Nat,
}

impl Attachment {
    /// The domain the interface is in: all taps of a user are one, called `tap`, and all that leads to the Internet
    /// without root is one, called `nat`.
    pub fn domain(&self) -> DomainName {
        match self {
            Self::Domain(domain) => domain.clone(),
            Self::Tap { .. } => TAP.parse().expect("a constant name"),
            Self::Nat => NAT.parse().expect("a constant name"),
        }
    }
}

/// The name that stands for the connection to the host.
pub const TAP: &str = "tap";

/// The name that stands for the connection to the Internet without root.
pub const NAT: &str = "nat";

/// Where a console is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// In a window of its own.
    Xterm,
    /// On the terminal vstart was started from.
    This,
    /// On a pseudo-terminal to attach to.
    Pty,
    /// On a TCP port of the loopback interface.
    Port(u16),
    /// In a tmux session.
    Tmux,
    /// Nowhere until somebody attaches with vconnect.
    Detached,
    /// Nowhere at all.
    None,
}

/// Why a text is not an option's value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    /// Host and guest cannot be told apart.
    #[error("{0} cannot be the address of the host and of the guest")]
    SameAddress(IpAddr),
    /// Not a way to show a console.
    #[error("'{0}' is not a console mode: use xterm, this, tmux, pty, port:N, detached or none")]
    Console(String),
    /// Not a TCP port.
    #[error("'{0}' is not a TCP port: use a number from 1 to 65535")]
    Port(String),
    /// Not N=SOMETHING.
    #[error("'{0}' does not say which interface: write --eth0=DOMAIN, --eth1=DOMAIN and so on")]
    NoNumber(String),
    /// Not a domain.
    #[error(transparent)]
    Domain(#[from] proto::name::NameError),
    /// `tap` without its addresses, or addresses without `tap`.
    #[error("interface '{0}' is incomplete: the host is reached by --ethN=tap,TAP-ADDRESS,GUEST-ADDRESS")]
    Tap(String),
    /// Not an IP address.
    #[error("'{0}' is not an IP address")]
    Address(String),
    /// Not SOURCE,TARGET.
    #[error("'{0}' is not SOURCE,TARGET with two absolute paths")]
    Mount(String),
}

impl Machine {
    /// A machine with nothing but what it must have.
    pub fn new(name: MachineName, kernel: PathBuf, root: Root) -> Self {
        Self {
            name,
            kernel,
            memory_mb: 128,
            memory_skew_mb: 4,
            root,
            agent: None,
            disks: Vec::new(),
            interfaces: Vec::new(),
            consoles: [Console::Detached, Console::None],
            hosthome: None,
            hostlab: None,
            hostwd: None,
            mounts: Vec::new(),
            modules: None,
            cpu: CpuLock::Any,
            pidfile: None,
            exec: None,
            append: Vec::new(),
            verbose: false,
            term: "xterm".into(),
        }
    }
}

impl Machine {
    /// Whether there is an agent of ours in the guest.
    pub const fn has_agent(&self) -> bool {
        matches!(self.root, Root::Host { .. }) || self.agent.is_some()
    }
}

impl Interface {
    /// The interface's name in the guest.
    pub fn name(&self) -> String {
        format!("eth{}", self.number)
    }

    /// The interface's address: the chosen one, or the one that netkit kernels give it, which is the same at every
    /// start of the machine.
    pub fn mac(&self, machine: &MachineName) -> MacAddr {
        if let Some(address) = self.address {
            return MacAddr(address);
        }
        proto::mac::of_machine(&machine.to_string(), &self.name())
    }
}

impl FromStr for Interface {
    type Err = ValueError;

    /// Reads `N=DOMAIN`, `N=nat` or `N=tap,TAP-ADDRESS,GUEST-ADDRESS`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no_number = || ValueError::NoNumber(text.to_owned());
        let (number, attachment) = text.split_once('=').ok_or_else(no_number)?;
        if number.is_empty() || !number.bytes().all(|c| c.is_ascii_digit()) {
            return Err(no_number());
        }
        Ok(Self {
            number: number.parse().map_err(|_| no_number())?,
            attachment: attachment.parse()?,
            address: None,
            transport: Transport::default(),
        })
    }
}

impl FromStr for Attachment {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(TAP), Some(host), Some(guest), None) => {
                let address = |text: &str| text.parse().map_err(|_| ValueError::Address(text.to_owned()));
                let (host, guest) = (address(host)?, address(guest)?);
                if host == guest {
                    return Err(ValueError::SameAddress(host));
                }
                Ok(Self::Tap { host, guest })
            }
            (Some(TAP), ..) => Err(ValueError::Tap(text.to_owned())),
            (Some(NAT), None, ..) => Ok(Self::Nat),
            _ => Ok(Self::Domain(text.parse()?)),
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => f.pad(domain.as_str()),
            Self::Tap { .. } => f.pad(TAP),
            Self::Nat => f.pad(NAT),
        }
    }
}

impl FromStr for Console {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "xterm" => Self::Xterm,
            "this" => Self::This,
            "pty" => Self::Pty,
            "tmux" => Self::Tmux,
            "detached" => Self::Detached,
            "none" => Self::None,
            other => {
                let port = other
                    .strip_prefix("port:")
                    .ok_or_else(|| ValueError::Console(other.to_owned()))?;
                match port.parse() {
                    Ok(port) if port > 0 => Self::Port(port),
                    _ => return Err(ValueError::Port(port.to_owned())),
                }
            }
        })
    }
}

impl FromStr for Mount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(',') {
            Some((source, target)) if source.starts_with('/') && target.starts_with('/') => Ok(Self {
                source: source.into(),
                target: target.into(),
            }),
            _ => Err(ValueError::Mount(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        assert_eq!(
            "12=A".parse(),
            Ok(Interface {
                number: 12,
                attachment: Attachment::Domain("A".parse().unwrap()),
                address: None,
                transport: Transport::Daemon,
            })
        );
        let tap: Interface = "0=tap,10.0.0.1,10.0.0.2".parse().unwrap();
        let (host, guest) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(tap.attachment, Attachment::Tap { host, guest });
        let nat: Interface = "0=nat".parse().unwrap();
        assert_eq!(nat.attachment, Attachment::Nat);
        assert_eq!(nat.attachment.domain().as_str(), "nat");
    }

    #[test]
    fn broken_interfaces_are_told() {
        for text in ["A", "=A", "x=A", "+1=A", "99999999999=A"] {
            assert_eq!(text.parse::<Interface>(), Err(ValueError::NoNumber(text.into())));
        }
        for text in ["tap", "tap,1.2.3.4", "tap,1.2.3.4,1.2.3.5,x"] {
            assert_eq!(
                format!("0={text}").parse::<Interface>(),
                Err(ValueError::Tap(text.into()))
            );
        }
        assert_eq!(
            "0=tap,10.0.0.1,x".parse::<Interface>(),
            Err(ValueError::Address("x".into()))
        );
        assert!(matches!("0=a_b".parse::<Interface>(), Err(ValueError::Domain(_))));
        assert!(matches!(
            "0=A,1.2.3.4,1.2.3.5".parse::<Interface>(),
            Err(ValueError::Domain(_))
        ));
        assert!(matches!("0=".parse::<Interface>(), Err(ValueError::Domain(_))));
    }

    #[test]
    fn addresses_follow_from_machine_and_interface() {
        let mac = |machine: &str, number| {
            let interface: Interface = format!("{number}=A").parse().unwrap();
            interface.mac(&machine.parse().unwrap())
        };
        // SHA1("pc1eth0") by sha1sum, added up by hand.
        assert_eq!(mac("pc1", 0).to_string(), PC1_ETH0);
        assert_ne!(mac("pc1", 1), mac("pc1", 0));
        assert_ne!(mac("pc2", 0), mac("pc1", 0));
        assert!((0..40).all(|n| mac("r", n).0[0] & 3 == 2));
    }

    const PC1_ETH0: &str = "6e:5f:98:37:0c:07";

    #[test]
    fn console_modes_are_read() {
        assert_eq!("port:2001".parse(), Ok(Console::Port(2001)));
        assert_eq!("this".parse(), Ok(Console::This));
        for text in ["port:0", "port:70000", "port:"] {
            assert!(
                matches!(text.parse::<Console>(), Err(ValueError::Port(_))),
                "{text}"
            );
        }
        assert_eq!("This".parse::<Console>(), Err(ValueError::Console("This".into())));
    }

    #[test]
    fn mounts_need_two_absolute_paths() {
        let mount: Mount = "/a,/b".parse().unwrap();
        assert_eq!((mount.source, mount.target), ("/a".into(), "/b".into()));
        for text in ["/a", "a,/b", "/a,b", ""] {
            assert_eq!(text.parse::<Mount>(), Err(ValueError::Mount(text.into())));
        }
    }
}

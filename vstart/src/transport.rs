//! How frames get from a guest's kernel to switchd: the drivers a kernel may have for it, and their words.
//!
//! Everything that depends on the transport is here; another one is another variant of [`Transport`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::Duration;

use fabric::mac::MacAddr;
use proto::ctl::DomainRow;
use serde::{Deserialize, Serialize};

/// A driver of User-Mode Linux.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Datagrams, one at a time: the driver that every kernel before Linux 6.16 has. It outlives switchd.
    #[default]
    Daemon,
    /// The same by way of a VDE directory and libvdeplug.
    Vde,
    /// Records of a connection, many at a time: the vector driver. When switchd goes, the guest must connect again.
    Bess,
    /// The same over a socket that the kernel is started with: no path exists that anybody else could connect to. The
    /// next switchd goes on with it; an interface that was taken down has lost it.
    Fd,
    /// Rings in memory that the guest shares with switchd (virtio): the fastest. When switchd goes, the interface does,
    /// until the machine starts again.
    Vhost,
}

/// What a user asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// What suits the kernel best.
    Auto,
    /// This and no other.
    This(Transport),
}

/// An option's value: `KIND` for all interfaces, or `ethN=KIND` for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The N of ethN.
    pub interface: Option<u32>,
    /// What is asked for.
    pub wanted: Wanted,
}

/// Where a domain is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// By kind of port, as switchd calls them.
    pub sockets: BTreeMap<String, String>,
    /// The largest payload of its frames, in bytes.
    pub mtu: u32,
}

/// Why there is no transport.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransportError {
    /// There is none of that name.
    #[error("'{0}' is no transport: use auto, daemon, vde, bess, fd or vhost")]
    Unknown(String),
    /// Neither a transport nor that of an interface.
    #[error("'{0}' does not say which interface: write TRANSPORT for all, or ethN=TRANSPORT for one")]
    NoInterface(String),
}

/// For automatic choice, the best first. `daemon` comes before the faster `bess`: it goes on by itself when switchd is
/// started again, and no stall of the host makes the guest panic. `vde` has nothing that `daemon` has not. `vhost` is the
/// fastest, but an interface that has lost its switchd never comes back, and needs a module in the guest.
const PREFERENCE: [Transport; 5] = [
    Transport::Daemon,
    Transport::Bess,
    Transport::Vde,
    Transport::Fd,
    Transport::Vhost,
];

/// What an interface carries without any `mtu=`; and all the old drivers ever do.
const USUAL_MTU: u32 = 1500;

impl Transport {
    /// The word users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Vde => "vde",
            Self::Bess => "bess",
            Self::Fd => "fd",
            Self::Vhost => "vhost",
        }
    }

    /// What switchd calls the socket where such guests attach; they may need none.
    const fn socket(self) -> Option<&'static str> {
        match self {
            Self::Daemon => Some("uml"),
            Self::Vde => Some("vde"),
            Self::Bess => Some("bess"),
            Self::Fd => None,
            Self::Vhost => Some("vhost"),
        }
    }

    /// The kernel's option the driver is built with.
    const fn option(self) -> &'static str {
        match self {
            Self::Daemon => "CONFIG_UML_NET_DAEMON=y",
            Self::Vde => "CONFIG_UML_NET_VDE=y",
            Self::Bess | Self::Fd => "CONFIG_UML_NET_VECTOR=y",
            Self::Vhost => "CONFIG_VIRTIO_UML=y",
        }
    }

    /// What the kernel calls the interface that the user knows as ethN.
    pub fn device(self, number: u32) -> String {
        match self {
            // Cards of virtio are counted by the guest; our own guest init sees to it that it is the same number.
            Self::Daemon | Self::Vde | Self::Vhost => format!("eth{number}"),
            Self::Bess | Self::Fd => format!("vec{number}"),
        }
    }

    /// The word for the command line of a kernel, and for `config` at its management console; `None` if the domain
    /// has no such socket, or the kernel no such descriptor.
    pub fn word(self, number: u32, mac: MacAddr, reach: &Reach, descriptor: Option<u32>) -> Option<String> {
        let device = self.device(number);
        let Some(kind) = self.socket() else {
            let more = vector_options(reach.mtu);
            return Some(format!(
                "{device}:transport=fd,fd={},mac={mac}{more}",
                descriptor?
            ));
        };
        let socket = reach.sockets.get(kind)?;
        Some(match self {
            Self::Daemon => format!("{device}=daemon,{mac},unix,{socket}"),
            Self::Vde => format!("{device}=vde,{socket},{mac}"),
            // Never `src=`: the kernel would not remove that file and fail at the second try.
            Self::Bess => {
                let more = vector_options(reach.mtu);
                format!("{device}:transport=bess,dst={socket},mac={mac}{more}")
            }
            // 1 is a network card; the number behind it tells the guest which. Its address comes from switchd.
            Self::Vhost if socket.contains(':') => return None,
            Self::Vhost | Self::Fd => format!("virtio_uml.device={socket}:1:{number}"),
        })
    }

    /// The word by which switchd learns the address of an interface, where the driver has no place for it.
    pub fn address_word(self, number: u32, mac: MacAddr) -> Option<String> {
        (self == Self::Vhost).then(|| format!("mac_eth{number}={mac}"))
    }

    /// Whether a running kernel can be given such an interface, and let go of one.
    pub const fn comes_and_goes(self) -> bool {
        !matches!(self, Self::Fd | Self::Vhost)
    }

    /// Whether taking an interface down and up opens its sockets again.
    pub const fn reopens(self) -> bool {
        matches!(self, Self::Bess)
    }
}

impl Wanted {
    /// Settles for one of a kernel's drivers; `None` if it has not what is asked for.
    pub fn choose(self, drivers: &Drivers) -> Option<Transport> {
        match self {
            Self::This(transport) => drivers.has(transport).then_some(transport),
            Self::Auto => PREFERENCE.into_iter().find(|transport| drivers.has(*transport)),
        }
    }
}

/// The drivers of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drivers {
    /// It has told.
    Known(BTreeSet<Transport>),
    /// It has not: then it may have any of them.
    Unknown,
}

impl Drivers {
    /// Asks a kernel for its configuration, which each UML kernel prints when told `--showconfig`. Takes 5 ms.
    pub fn of(kernel: &Path) -> Self {
        match configuration(kernel) {
            Ok(text) if text.contains("CONFIG_") => Self::parse(&text),
            _ => Self::Unknown,
        }
    }

    fn parse(configuration: &str) -> Self {
        let on: BTreeSet<&str> = configuration.lines().map(str::trim).collect();
        Self::Known(
            PREFERENCE
                .into_iter()
                .filter(|transport| on.contains(transport.option()))
                .collect(),
        )
    }

    fn has(&self, transport: Transport) -> bool {
        match self {
            Self::Known(drivers) => drivers.contains(&transport),
            Self::Unknown => true,
        }
    }
}

impl fmt::Display for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = PREFERENCE
            .into_iter()
            .filter(|transport| self.has(*transport))
            .map(Transport::as_str)
            .collect();
        f.write_str(&if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        })
    }
}

impl From<&DomainRow> for Reach {
    fn from(row: &DomainRow) -> Self {
        Self {
            sockets: row.sockets.clone(),
            mtu: row.mtu,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::This(transport) => transport.fmt(f),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Wanted {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        PREFERENCE
            .into_iter()
            .find(|transport| transport.as_str() == text)
            .map(Self::This)
            .ok_or_else(|| TransportError::Unknown(text.to_owned()))
    }
}

impl FromStr for Choice {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, wanted)) = text.split_once('=') else {
            let wanted = text.parse()?;
            return Ok(Self {
                interface: None,
                wanted,
            });
        };
        let number = name.strip_prefix("eth").filter(|digits| {
            // A number alone would take a sign as well.
            digits.bytes().all(|c| c.is_ascii_digit())
        });
        let number = number
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| TransportError::NoInterface(text.to_owned()))?;
        Ok(Self {
            interface: Some(number),
            wanted: wanted.parse()?,
        })
    }
}

/// What the kernel prints, if it does so in time: a script that starts a kernel may know no options.
fn configuration(kernel: &Path) -> io::Result<String> {
    let mut child = Command::new(kernel)
        .arg("--showconfig")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (said, heard) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let result = (&mut stdout).take(LONGEST_CONFIGURATION).read_to_end(&mut text);
            said.send(result.map(|_| text))
        });
    }
    let text = heard
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    Ok(String::from_utf8_lossy(&text?).into_owned())
}

/// What a vector interface is told beside its place. With the kernel's own 64 frames in a vector, one super-frame of TCP's
/// that meets a queue which is not empty runs over, and its end is lost. Longer frames need 16 KiB each for a vector
/// that receives: theirs stays as it is.
fn vector_options(mtu: u32) -> String {
    match mtu {
        USUAL_MTU => ",depth=256".to_owned(),
        mtu => format!(",mtu={mtu}"),
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_CONFIGURATION: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn reach(mtu: u32) -> Reach {
        let sockets = [("uml", "/h/A.cnct"), ("vde", "/h/A.vde"), ("bess", "/h/A.bess")];
        Reach {
            sockets: sockets.map(|(kind, path)| (kind.into(), path.into())).into(),
            mtu,
        }
    }

    #[test]
    fn each_has_its_word() {
        let word = |transport: Transport, mtu| transport.word(3, MAC, &reach(mtu), Some(5)).unwrap();
        assert_eq!(
            word(Transport::Daemon, 1500),
            "eth3=daemon,02:00:00:00:00:01,unix,/h/A.cnct"
        );
        assert_eq!(word(Transport::Vde, 9000), "eth3=vde,/h/A.vde,02:00:00:00:00:01");
        assert_eq!(
            word(Transport::Bess, 1500),
            "vec3:transport=bess,dst=/h/A.bess,mac=02:00:00:00:00:01,depth=256"
        );
        assert_eq!(
            word(Transport::Bess, 9000),
            "vec3:transport=bess,dst=/h/A.bess,mac=02:00:00:00:00:01,mtu=9000"
        );
        assert_eq!(
            word(Transport::Fd, 1500),
            "vec3:transport=fd,fd=5,mac=02:00:00:00:00:01,depth=256"
        );
        assert_eq!(
            word(Transport::Fd, 9000),
            "vec3:transport=fd,fd=5,mac=02:00:00:00:00:01,mtu=9000"
        );
        assert_eq!(Transport::Bess.word(0, MAC, &Reach::default(), None), None);
        assert_eq!(Transport::Fd.word(0, MAC, &reach(1500), None), None);
    }

    #[test]
    fn the_kernel_decides_what_is_automatic() {
        let old = "#\n# x\n#\nCONFIG_UML_NET=y\nCONFIG_UML_NET_DAEMON=y\nCONFIG_UML_NET_VECTOR=y\n# CONFIG_UML_NET_VDE is not set\n";
        let old = Drivers::parse(old);
        assert_eq!(old.to_string(), "daemon, bess, fd");
        assert_eq!(Wanted::Auto.choose(&old), Some(Transport::Daemon));
        assert_eq!(Wanted::This(Transport::Bess).choose(&old), Some(Transport::Bess));
        assert_eq!(Wanted::This(Transport::Vde).choose(&old), None);
        let new = Drivers::parse("CONFIG_UML=y\nCONFIG_UML_NET_VECTOR=y\n");
        assert_eq!(Wanted::Auto.choose(&new), Some(Transport::Bess));
        let none = Drivers::parse("CONFIG_UML=y\n");
        assert_eq!(
            (Wanted::Auto.choose(&none), none.to_string()),
            (None, "none".into())
        );
        assert_eq!(Wanted::Auto.choose(&Drivers::Unknown), Some(Transport::Daemon));
    }

    #[test]
    fn what_does_not_tell_may_be_anything() {
        for program in ["/bin/false", "/nonexistent"] {
            assert_eq!(Drivers::of(Path::new(program)), Drivers::Unknown, "{program}");
        }
    }

    #[test]
    fn choices_are_read() {
        let choice = |interface, wanted| Ok(Choice { interface, wanted });
        assert_eq!("auto".parse(), choice(None, Wanted::Auto));
        assert_eq!(
            "eth12=vde".parse(),
            choice(Some(12), Wanted::This(Transport::Vde))
        );
        for text in ["bridge", "eth0=bridge", ""] {
            assert!(
                matches!(text.parse::<Choice>(), Err(TransportError::Unknown(_))),
                "{text}"
            );
        }
        for text in ["0=bess", "eth=bess", "eth+1=bess", "ethx=bess", "=bess"] {
            let error = Err(TransportError::NoInterface(text.into()));
            assert_eq!(text.parse::<Choice>(), error, "{text}");
        }
    }
}

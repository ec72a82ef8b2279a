//! The control socket: JSON, one request and one reply a line.
//!
//! Shared by switchd, its command line, vstart and the tests. `docs/control.md` describes it for other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::DomainName;
use crate::nic::{NicSpec, SniffSpec};
use crate::uplink::UplinkSpec;
use crate::wire::{DgramSpec, GreSpec, L2tpv3Spec, McastSpec, StreamSpec, UdpSpec};

/// Longest request or reply line, in bytes; a longer request is refused and the connection closed.
pub const LONGEST_LINE: usize = 64 * 1024;

/// One line from a client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who is there. Reply: [`Reply::Daemon`].
    Hello,
    /// Makes a domain that stays until it is removed. Reply: [`Reply::Domain`].
    DomainAdd(DomainSpec),
    /// Makes sure the domain exists and keeps it for as long as this connection is open: a domain made this way goes
    /// when it has neither a holder nor a port. Reply: [`Reply::Domain`].
    DomainHold(DomainSpec),
    /// Removes a domain and ends its ports. Reply: [`Reply::Done`].
    DomainRm {
        /// The domain.
        domain: DomainName,
    },
    /// All domains. Reply: [`Reply::Domains`].
    DomainLs,
    /// One domain with its ports. Reply: [`Reply::Ports`].
    PortLs {
        /// The domain; all of them if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domain: Option<DomainName>,
    },
    /// Attaches something to a domain that does not come by itself. Reply: [`Reply::Ports`], the one new port.
    PortAdd {
        /// The domain.
        domain: DomainName,
        /// What is to be attached.
        port: NewPort,
    },
    /// Ends a port, whatever it is. Reply: [`Reply::Done`].
    PortRm {
        /// The domain.
        domain: DomainName,
        /// The port's number.
        id: u32,
    },
    /// Makes a port a secure one, or an open one again. Reply: [`Reply::Done`].
    PortSecure {
        /// The domain.
        domain: DomainName,
        /// The port's number.
        id: u32,
        /// What addresses whoever is behind it may use; none makes it an open port.
        ranges: Vec<IpNet>,
    },
    /// One domain. Reply: [`Reply::Domain`].
    DomainShow {
        /// The domain.
        domain: DomainName,
    },
    /// The forwarding table. Reply: [`Reply::Fdb`].
    Fdb {
        /// The domain.
        domain: DomainName,
    },
    /// Adds a static entry to the forwarding table. Reply: [`Reply::Done`].
    FdbAdd {
        /// The domain.
        domain: DomainName,
        /// The station's address.
        mac: String,
        /// The port it stands behind.
        port: u32,
    },
    /// Removes a station, static or learnt, from the forwarding table. Reply: [`Reply::Done`].
    FdbRm {
        /// The domain.
        domain: DomainName,
        /// The station's address.
        mac: String,
    },
    /// Counters of the daemon and its domains. Reply: [`Reply::Stats`].
    Stats,
    /// Captures domains into the descriptor sent with this line (`SCM_RIGHTS`), as one pcapng file, until
    /// [`Request::CaptureStop`] or the end of the connection. Reply: [`Reply::Done`] once capturing. A capture that
    /// ends by itself (it has its count, the file cannot be written, the domains are gone) is reported by a line
    /// nobody asked for: [`Reply::Captured`] or [`Reply::Error`].
    Capture(CaptureSpec),
    /// Ends this connection's capture. Reply: [`Reply::Captured`].
    CaptureStop,
    /// Keeps the last frames of a domain in memory, from now on and until [`Request::RecordStop`]; what was kept before
    /// is forgotten. Reply: [`Reply::Done`].
    Record(RecordSpec),
    /// Writes what is kept of a domain into the descriptor sent with this line (`SCM_RIGHTS`), as pcapng, and goes on.
    /// Reply: [`Reply::Captured`].
    RecordSave {
        /// The domain.
        domain: DomainName,
    },
    /// Forgets what is kept of a domain and keeps no more. Reply: [`Reply::Done`].
    RecordStop {
        /// The domain.
        domain: DomainName,
    },
    /// What is kept. Reply: [`Reply::Recorders`].
    RecordLs,
    /// Ends the daemon. Reply: [`Reply::Done`].
    Shutdown,
}

/// What is captured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureSpec {
    /// The domains; all there are if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainName>,
    /// Ports of these domains, by number; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u32>,
    /// Bytes kept of each frame; all of it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snap_len_bytes: Option<u32>,
    /// The program that decides which frames are kept; all are without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<FilterInstruction>,
    /// The filter in words, for the file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter_text: String,
    /// Frames after which the capture ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Whether dropped frames are captured.
    #[serde(default)]
    pub drops: Drops,
    /// Statistics in the course of the capture too, not only at its end: for whoever makes several files of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sums: bool,
}

/// An instruction of classic BPF: `[code, jt, jf, k]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilterInstruction(pub u16, pub u8, pub u8, pub u32);

/// Whether a capture has the frames the fabric dropped; each has the reason as its comment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drops {
    /// No.
    #[default]
    No,
    /// They too.
    Also,
    /// They alone.
    Only,
}

/// How much is kept of a domain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSpec {
    /// The domain.
    pub domain: DomainName,
    /// Frames older than so many milliseconds are forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
    /// Frames are forgotten when there are more bytes than this, the oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_bytes: Option<u64>,
}

/// What a domain is made with.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainSpec {
    /// Its name.
    pub domain: DomainName,
    /// Hub or switch.
    #[serde(default)]
    pub mode: Mode,
    /// Largest payload of an untagged frame, in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
    /// Seconds a learnt station is remembered after its last frame.
    #[serde(default = "default_ageing")]
    pub ageing_s: u64,
    /// Who may attach over VDE.
    #[serde(default)]
    pub vde: VdeAccess,
}

impl DomainSpec {
    /// A hub with every setting at its default.
    pub fn new(domain: DomainName) -> Self {
        Self {
            domain,
            mode: Mode::default(),
            mtu: default_mtu(),
            ageing_s: default_ageing(),
            vde: VdeAccess::default(),
        }
    }
}

/// A port that is made by request, and how far it is trusted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewPort {
    /// What it is.
    #[serde(flatten)]
    pub spec: PortSpec,
    /// What addresses whoever is behind it may use; any, and any kind of frame, if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secure: Vec<IpNet>,
}

impl From<PortSpec> for NewPort {
    /// A port that is open to anything.
    fn from(spec: PortSpec) -> Self {
        Self {
            spec,
            secure: Vec::new(),
        }
    }
}

/// The kinds of port that are made by request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PortSpec {
    /// A tap device that exists and that the daemon's user may attach.
    Tap {
        /// Its name.
        interface: String,
    },
    /// A tap device that is open already, with virtio headers of 10 bytes: its descriptor comes with the line
    /// (`SCM_RIGHTS`). The port ends with the device.
    TapFd {
        /// The port's name.
        name: String,
    },
    /// A tap device that is made in a network namespace.
    Netns {
        /// The namespace's file, such as `/run/netns/NAME`.
        path: PathBuf,
        /// The device's name.
        ifname: String,
    },
    /// An interface of the host. A packet socket may come with the line (`SCM_RIGHTS`), bound to the interface and with
    /// virtio headers; else the daemon has tapctl open one. The port ends with the interface.
    Nic(NicSpec),
    /// The same, but nothing is ever sent there.
    Sniff(SniffSpec),
    /// A way to the Internet that needs no privilege.
    Uplink(UplinkSpec),
    /// An L2TPv3 session, over UDP or IP.
    L2tpv3(L2tpv3Spec),
    /// A GRE tunnel.
    Gre(GreSpec),
    /// A multicast group (`ethN=mcast` of UML, `socket,mcast=` of QEMU).
    Mcast(McastSpec),
    /// Datagrams to and from one other end (`ethN=ucast` of UML, `socket,udp=` and `dgram` of QEMU).
    Udp(UdpSpec),
    /// The same over Unix sockets (`dgram` of QEMU).
    Dgram(DgramSpec),
    /// A byte stream (`stream` and `socket` of QEMU).
    Stream(StreamSpec),
    /// The connected socket sent with the request (`SCM_RIGHTS`).
    Fd {
        /// What the port is to be called.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        name: String,
    },
    /// A cable to another domain, which gets a port as well.
    Link {
        /// The other domain.
        to: DomainName,
    },
}

/// Who may attach to a domain over VDE: the permissions of its VDE directory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VdeAccess {
    /// Permissions of the control socket.
    pub mode: FileMode,
    /// The group they speak of; that of the daemon if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Permissions of a file that is read and written: octal digits, such as `0660`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

impl FileMode {
    /// The permission bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o600)
    }
}

/// The text is not a mode a socket can have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "'{0}' is no mode for a socket: it has three octal digits of which the first is 6 or 7, such as 0660"
)]
pub struct ModeError(String);

impl std::str::FromStr for FileMode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('0').unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if digits.len() == 3 && bits & 0o600 == 0o600 && !digits.starts_with('+') => {
                Ok(Self(bits))
            }
            _ => Err(ModeError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for FileMode {
    type Error = ModeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

impl std::fmt::Display for FileMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

const fn default_mtu() -> u32 {
    1500
}

const fn default_ageing() -> u64 {
    100
}

/// How a domain forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every frame to every other port.
    #[default]
    Hub,
    /// Learning bridge.
    Switch,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Hub => "hub",
            Self::Switch => "switch",
        })
    }
}

/// One line to a client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The request was carried out; there is nothing to tell.
    Done,
    /// The daemon itself.
    Daemon(Daemon),
    /// One domain.
    Domain(DomainRow),
    /// Several domains.
    Domains(Vec<DomainRow>),
    /// Ports, with their domain.
    Ports(Vec<PortRow>),
    /// The forwarding table of a domain.
    Fdb(Vec<FdbRow>),
    /// Daemon and domains together.
    Stats(Stats),
    /// A capture has ended.
    Captured(Captured),
    /// What is kept of domains.
    Recorders(Vec<RecorderRow>),
    /// The request was refused or failed; nothing was changed.
    Error(Error),
}

/// The daemon itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Release.
    pub version: String,
    /// Process.
    pub pid: u32,
    /// Seconds it has been running.
    pub uptime_s: u64,
    /// Threads that forward.
    pub workers: usize,
    /// Connections refused so far, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// A domain and what it has carried.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DomainRow {
    /// Its name.
    pub domain: DomainName,
    /// Hub or switch.
    pub mode: Mode,
    /// Largest payload of an untagged frame, in bytes.
    pub mtu: u32,
    /// Seconds a learnt station is remembered.
    pub ageing_s: u64,
    /// Ports attached.
    pub ports: usize,
    /// Stations in the forwarding table.
    pub stations: usize,
    /// Captures running.
    pub captures: usize,
    /// True if it goes with its last holder and port.
    pub transient: bool,
    /// Which of the daemon's threads forwards for it; it may change.
    #[serde(default)]
    pub worker: usize,
    /// Where to attach, by kind of port (`uml`: the control socket).
    pub sockets: BTreeMap<String, String>,
    /// Frames received from all ports.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames sent to all ports.
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Frames dropped, by reason; ports that have left included.
    pub drops: BTreeMap<String, u64>,
}

/// A port and what it has carried.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PortRow {
    /// The domain it belongs to.
    pub domain: DomainName,
    /// Its number in the domain.
    pub id: u32,
    /// The kind of attachment, such as `uml`.
    pub kind: String,
    /// Who is at the other end, in words: machine and interface where they are known.
    pub name: String,
    /// The process at the other end.
    pub peer: Option<Peer>,
    /// When it was attached, in seconds since 1970.
    pub since: u64,
    /// Frames received from the port.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames sent to the port.
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Frames dropped on the way in or out, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Addresses learnt on the port.
    pub stations: Vec<String>,
    /// What addresses whoever is behind it may use; any, if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secure: Vec<IpNet>,
}

/// The process at the other end of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// A station in a forwarding table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FdbRow {
    /// Address.
    pub mac: String,
    /// The port it stands behind.
    pub port: u32,
    /// Seconds since its last frame; absent for static entries.
    pub age_s: Option<f64>,
}

/// Counters of the daemon and its domains.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// The daemon.
    pub daemon: Daemon,
    /// Its domains.
    pub domains: Vec<DomainRow>,
}

/// What a capture took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Captured {
    /// Frames written.
    pub frames: u64,
    /// Frames lost to the capture because its reader was slow. They were forwarded all the same.
    pub dropped: u64,
}

/// What is kept of a domain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RecorderRow {
    /// The domain.
    pub domain: DomainName,
    /// The limit of age, if there is one.
    pub last_ms: Option<u64>,
    /// The limit of size.
    pub last_bytes: u64,
    /// Frames kept.
    pub frames: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Frames that found no room on their way.
    pub dropped: u64,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What was being done to which object, and why it failed.
    pub message: String,
}

/// Kinds of failure a program may want to tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is no request, or a value in it is out of range.
    Invalid,
    /// The thing to be made is there already.
    Exists,
    /// The thing named is not there.
    NotFound,
    /// The peer may not do this.
    Denied,
    /// The system refused.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_the_documentation_says() {
        let request: Request =
            serde_json::from_str(r#"{"op":"domain-add","domain":"A","mode":"switch"}"#).unwrap();
        let spec = DomainSpec {
            mode: Mode::Switch,
            ..DomainSpec::new("A".parse().unwrap())
        };
        assert_eq!(request, Request::DomainAdd(spec));
        let request: Request = serde_json::from_str(r#"{"op":"port-ls"}"#).unwrap();
        assert_eq!(request, Request::PortLs { domain: None });
    }

    #[test]
    fn modes_are_octal_and_let_the_owner_in() {
        for (text, bits) in [("0660", 0o660), ("777", 0o777), ("600", 0o600)] {
            assert_eq!(text.parse::<FileMode>().unwrap().bits(), bits);
        }
        for text in ["", "0", "0060", "66", "0888", "02770", "+60", "rw-", "00660"] {
            assert!(text.parse::<FileMode>().is_err(), "{text}");
        }
        let line = r#"{"op":"domain-add","domain":"A","vde":{"mode":"0660","group":"lab"}}"#;
        let Request::DomainAdd(spec) = serde_json::from_str(line).unwrap() else {
            panic!("another request")
        };
        assert_eq!(
            (spec.vde.mode.bits(), spec.vde.group.as_deref()),
            (0o660, Some("lab"))
        );
    }

    #[test]
    fn unknown_words_are_errors() {
        for line in [
            r#"{"op":"fly"}"#,
            r#"{"op":"domain-rm","domain":"a_b"}"#,
            r#"{"op":"fdb","domain":"A","x":1}"#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn replies_survive_the_round_trip() {
        for reply in [
            Reply::Done,
            Reply::Captured(Captured {
                frames: 7,
                dropped: 0,
            }),
            Reply::Error(Error {
                code: ErrorCode::NotFound,
                message: "no domain A".into(),
            }),
        ] {
            let line = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
        }
    }
}

//! A domain's way to the Internet without root: what is asked for, and which ports of the host lead inside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an uplink is made with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UplinkSpec {
    /// Ports of the host that lead to machines of the domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// IPv6 as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// The program that carries it; the first that is installed if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Carrier>,
}

/// A program that connects a domain to the host's network with the rights of its user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// For any number of machines.
    Slirp4netns,
    /// For one machine.
    Passt,
}

impl Carrier {
    /// All there are, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Slirp4netns, Self::Passt];

    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Slirp4netns => "slirp4netns",
            Self::Passt => "passt",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.program())
    }
}

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|carrier| carrier.program() == text);
        found.ok_or_else(|| format!("'{text}' carries no uplink: slirp4netns and passt do"))
    }
}

/// The first machine to ask for an address gets this one.
pub const FIRST_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to one of a machine: `PROTOCOL:[ADDRESS:]PORT:GUEST:PORT`, such as
/// `tcp:8080:10.0.2.15:80` or `udp:127.0.0.1:5353:10.0.2.16:53`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens; at all its addresses if that is unspecified.
    pub host: SocketAddr,
    /// Where it leads.
    pub guest: SocketAddrV4,
}

/// The text publishes nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is not PROTOCOL:[ADDRESS:]PORT:GUEST:PORT, such as tcp:8080:10.0.2.15:80")]
pub struct PublishError(String);

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| PublishError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Publish> {
    let (protocol, rest) = text.split_once(':')?;
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|known| known.name() == protocol)?;
    let (rest, guest_port) = rest.rsplit_once(':')?;
    let (host, guest) = rest.rsplit_once(':')?;
    let (address, host_port) = match host.rsplit_once(':') {
        Some((address, port)) => (address.parse::<Ipv4Addr>().ok()?, port),
        None => (Ipv4Addr::UNSPECIFIED, host),
    };
    Some(Publish {
        protocol,
        host: SocketAddr::new(IpAddr::V4(address), port(host_port)?),
        guest: SocketAddrV4::new(guest.parse().ok()?, port(guest_port)?),
    })
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port > 0)
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.protocol.name())?;
        if !self.host.ip().is_unspecified() {
            write!(f, "{}:", self.host.ip())?;
        }
        write!(f, "{}:{}", self.host.port(), self.guest)
    }
}

impl TryFrom<String> for Publish {
    type Error = PublishError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> Self {
        publish.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_and_written() {
        for text in ["tcp:8080:10.0.2.15:80", "udp:127.0.0.1:5353:10.0.2.16:53"] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), text);
        }
        let publish: Publish = "tcp:8080:10.0.2.15:80".parse().unwrap();
        assert_eq!(publish.host, "0.0.0.0:8080".parse().unwrap());
        assert_eq!(publish.guest, "10.0.2.15:80".parse().unwrap());
    }

    #[test]
    fn what_publishes_nothing_is_told() {
        for text in [
            "",
            "tcp",
            "tcp:80",
            "tcp:80:80",
            "icmp:1:10.0.2.15:1",
            "tcp:0:10.0.2.15:80",
            "tcp:+1:10.0.2.15:80",
            "tcp:80:10.0.2:80",
            "tcp:65536:10.0.2.15:80",
            "tcp:80:10.0.2.15:80:1",
            "tcp:::1:80:10.0.2.15:80",
        ] {
            assert_eq!(text.parse::<Publish>(), Err(PublishError(text.to_owned())));
        }
    }

    #[test]
    fn what_is_asked_for_is_one_object() {
        let json = r#"{"publish":["tcp:8080:10.0.2.15:80"],"ipv6":true,"via":"passt"}"#;
        let spec: UplinkSpec = serde_json::from_str(json).unwrap();
        assert_eq!(spec.via, Some(Carrier::Passt));
        assert_eq!(serde_json::to_string(&spec).unwrap(), json);
        assert_eq!(serde_json::to_string(&UplinkSpec::default()).unwrap(), "{}");
        assert!(serde_json::from_str::<UplinkSpec>(r#"{"public":[]}"#).is_err());
    }
}

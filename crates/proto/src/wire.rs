//! Ports that are wires to somewhere else: what they are made with, and what cannot be.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address, with a port for what goes over UDP and without one for what goes over IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The UDP port.
    pub port: Option<u16>,
}

/// Whether frames are counted in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counter {
    /// There is no counter.
    #[default]
    None,
    /// From 1 on.
    Count,
    /// There is one, and it is always 0 (`pin_counter`, `pin_sequence` of UML).
    Zero,
}

impl Counter {
    /// True if the header has room for it.
    pub fn is_there(self) -> bool {
        self != Self::None
    }

    fn is_none(&self) -> bool {
        !self.is_there()
    }
}

/// A static L2TPv3 session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L2tpv3Spec {
    /// This end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// The session that is sent.
    pub tx_session: u32,
    /// The session that is expected.
    pub rx_session: u32,
    /// The cookie that is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_cookie: Option<u64>,
    /// The cookie that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_cookie: Option<u64>,
    /// Cookies have 64 bits, not 32.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cookie64: bool,
    /// Whether frames are counted.
    #[serde(default, skip_serializing_if = "Counter::is_none")]
    pub counter: Counter,
}

/// A GRE tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GreSpec {
    /// This end.
    pub local: IpAddr,
    /// The other end.
    pub remote: IpAddr,
    /// The key that is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_key: Option<u32>,
    /// The key that is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_key: Option<u32>,
    /// Whether frames are counted.
    #[serde(default, skip_serializing_if = "Counter::is_none")]
    pub sequence: Counter,
}

/// A multicast group whose members are one hub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McastSpec {
    /// The group and its port.
    pub group: SocketAddr,
    /// How many networks a frame passes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ttl: u8,
    /// An IPv4 address of the interface to use; the route to the group decides without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ipv4Addr>,
}

const fn one() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_one(ttl: &u8) -> bool {
    *ttl == 1
}

/// One frame a datagram, to and from one other end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpSpec {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// One frame a datagram of Unix sockets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DgramSpec {
    /// The socket that is made.
    pub local: PathBuf,
    /// The other end's socket.
    pub remote: PathBuf,
}

/// A byte stream, each frame behind its length.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSpec {
    /// Where.
    pub address: StreamAddress,
    /// Waits for the other end to connect, instead of connecting to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listen: bool,
}

/// Where a stream leads: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StreamAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

/// What is wrong with a port that was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// No address.
    #[error(
        "'{0}' is no address: an IP address, or one with a port such as 192.0.2.1:1701 or [2001:db8::1]:1701"
    )]
    Endpoint(String),
    /// No stream.
    #[error("'{0}' is no stream: unix:PATH or tcp:HOST:PORT")]
    Stream(String),
    /// IPv4 here, IPv6 there.
    #[error("{0} and {1} are of two families")]
    Families(IpAddr, IpAddr),
    /// A port at one end only.
    #[error("{0} and {1} do not go together: both have a port (UDP) or neither (IP)")]
    Ports(Endpoint, Endpoint),
    /// Port 0.
    #[error("{0} has port 0, which nobody can send to")]
    PortZero(Endpoint),
    /// Session 0.
    #[error("session 0 carries control messages of L2TPv3, and no frames")]
    Session,
    /// A number for one direction only.
    #[error("a {0} is given for one direction: tx and rx go together")]
    OneWay(&'static str),
    /// A cookie with too many bits.
    #[error("cookie {0:#x} has more than 32 bits\nhint: --cookie64 makes cookies longer")]
    LongCookie(u64),
    /// Long cookies, but none.
    #[error("64-bit cookies need a cookie for each direction")]
    NoCookie,
    /// No group.
    #[error("{0} is no multicast group: 224.0.0.0/4 or ff00::/8, with a port")]
    NoGroup(SocketAddr),
    /// An interface by the wrong means.
    #[error(
        "the interface for {0} cannot be given by an address of IPv4\nhint: its number goes behind the group: [ff02::1%2]:1102"
    )]
    Scope(SocketAddr),
    /// Not this kind of address.
    #[error("the other end cannot be {0}")]
    Remote(IpAddr),
}

impl L2tpv3Spec {
    /// Finds what cannot be. True if it goes over UDP.
    pub(crate) fn check(&self) -> Result<bool, SpecError> {
        let (local, remote) = (self.local, self.remote);
        same_family(local.ip, remote.ip)?;
        if local.port.is_some() != remote.port.is_some() {
            return Err(SpecError::Ports(local, remote));
        }
        if let Some(end) = [local, remote].into_iter().find(|end| end.port == Some(0)) {
            return Err(SpecError::PortZero(end));
        }
        if self.tx_session == 0 || self.rx_session == 0 {
            return Err(SpecError::Session);
        }
        let cookies = [self.tx_cookie, self.rx_cookie];
        if cookies[0].is_some() != cookies[1].is_some() {
            return Err(SpecError::OneWay("cookie"));
        }
        if self.cookie64 && cookies[0].is_none() {
            return Err(SpecError::NoCookie);
        }
        let long = |cookie: &u64| u32::try_from(*cookie).is_err();
        match cookies.into_iter().flatten().find(long) {
            Some(cookie) if !self.cookie64 => Err(SpecError::LongCookie(cookie)),
            _ => Ok(local.port.is_some()),
        }
    }
}

impl GreSpec {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        same_family(self.local, self.remote)?;
        if self.tx_key.is_some() != self.rx_key.is_some() {
            return Err(SpecError::OneWay("key"));
        }
        Ok(())
    }
}

impl McastSpec {
    /// Finds what cannot be.
    ///
    /// # Errors
    /// If the group is none, or the interface is of the other family.
    pub fn check(&self) -> Result<(), SpecError> {
        if !self.group.ip().is_multicast() || self.group.port() == 0 {
            return Err(SpecError::NoGroup(self.group));
        }
        match self.via {
            Some(_) if self.group.is_ipv6() => Err(SpecError::Scope(self.group)),
            _ => Ok(()),
        }
    }
}

impl UdpSpec {
    /// Finds what cannot be.
    ///
    /// # Errors
    /// If the ends do not go together.
    pub fn check(&self) -> Result<(), SpecError> {
        same_family(self.local.ip(), self.remote.ip())?;
        let end = |address: SocketAddr| Endpoint {
            ip: address.ip(),
            port: Some(address.port()),
        };
        match [self.local, self.remote].into_iter().find(|end| end.port() == 0) {
            Some(address) => Err(SpecError::PortZero(end(address))),
            None => Ok(()),
        }
    }
}

fn same_family(local: IpAddr, remote: IpAddr) -> Result<(), SpecError> {
    if local.is_ipv4() != remote.is_ipv4() {
        return Err(SpecError::Families(local, remote));
    }
    if remote.is_unspecified() || remote.is_multicast() {
        return Err(SpecError::Remote(remote));
    }
    Ok(())
}

impl FromStr for Endpoint {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                ip: address.ip(),
                port: Some(address.port()),
            });
        }
        match text.parse() {
            Ok(ip) => Ok(Self { ip, port: None }),
            Err(_) => Err(SpecError::Endpoint(text.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl FromStr for StreamAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Stream(text.to_owned());
        match text.split_once(':').ok_or_else(wrong)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            ("tcp", place) => match place.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                    Ok(Self::Tcp(place.to_owned()))
                }
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

/// Both are text on the control socket.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = SpecError;

            fn try_from(text: String) -> Result<Self, SpecError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(Endpoint, StreamAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["192.0.2.1", "192.0.2.1:1701", "2001:db8::1", "[2001:db8::1]:1701"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "localhost", "192.0.2.1:", "192.0.2.1:99999", "[::1]", "1.2.3"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        for text in ["unix:/tmp/s", "tcp:localhost:1234", "tcp:[::1]:1234"] {
            assert_eq!(text.parse::<StreamAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "tcp:host",
            "tcp::1",
            "tcp:host:0",
            "udp:a:1",
            "/tmp/s",
        ] {
            assert!(text.parse::<StreamAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let good = |change: fn(&mut L2tpv3Spec)| {
            let mut spec = L2tpv3Spec {
                local: "127.0.0.1:1".parse().unwrap(),
                remote: "127.0.0.1:2".parse().unwrap(),
                tx_session: 1,
                rx_session: 2,
                tx_cookie: None,
                rx_cookie: None,
                cookie64: false,
                counter: Counter::None,
            };
            change(&mut spec);
            spec.check()
        };
        assert_eq!(good(|_| {}), Ok(true));
        assert!(good(|spec| spec.local.port = None).is_err());
        assert!(good(|spec| spec.remote.port = Some(0)).is_err());
        assert!(good(|spec| spec.remote.ip = "::1".parse().unwrap()).is_err());
        assert!(good(|spec| spec.rx_session = 0).is_err());
        assert_eq!(
            good(|spec| spec.tx_cookie = Some(1)),
            Err(SpecError::OneWay("cookie"))
        );
        assert_eq!(good(|spec| spec.cookie64 = true), Err(SpecError::NoCookie));
        let long = good(|spec| (spec.tx_cookie, spec.rx_cookie) = (Some(1), Some(1 << 32)));
        assert_eq!(long, Err(SpecError::LongCookie(1 << 32)));
    }
}

//! The uml_switch port protocol: what a client asks on a control connection and what it is answered.
//!
//! All integers are in host byte order; addresses are whole `sockaddr_un` structures of 110 bytes. Layouts:
//!
//! ```text
//! v0       type u32 | mac[6] | sockaddr_un                          120 bytes
//! v1       magic u32 | type u32 | mac[6] | sockaddr_un              124
//! v3       magic u32 | version u32 = 3 | type u32 | sockaddr_un     122, then 2 bytes of padding (UML)
//!                                                                   or a description of up to 127 bytes (VDE)
//! reply    sockaddr_un                                              110; none for v0
//! ```
//!
//! Sources: `uml_switch.h` of uml-utilities, `arch/um/drivers/daemon_user.c` of Linux up to 6.15, and the strace
//! of real clients recorded in `docs/protocols.md`.

use std::fmt;

/// Bytes of a `sockaddr_un` on the wire.
pub const ADDRESS_BYTES: usize = 110;
/// No request is longer than this; a receive buffer of one byte more tells the oversized apart.
pub const LONGEST_REQUEST: usize = 122 + LONGEST_DESCRIPTION;

const PATH_BYTES: usize = 108;
const LONGEST_DESCRIPTION: usize = 127;
const MAGIC: u32 = 0xfeed_face;
const AF_UNIX: u16 = 1;
const V0_BYTES: usize = 120;
const V1_BYTES: usize = 124;
const V3_BYTES: usize = 122;

/// The address of a Unix datagram socket, as both sides put it on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address([u8; PATH_BYTES]);

impl Address {
    /// The address of a socket in the file system, or `None` if the path is empty, too long or has a NUL.
    pub fn from_path(path: &[u8]) -> Option<Self> {
        if path.is_empty() || path.len() >= PATH_BYTES || path.contains(&0) {
            return None;
        }
        let mut bytes = [0; PATH_BYTES];
        bytes[..path.len()].copy_from_slice(path);
        Some(Self(bytes))
    }

    /// An abstract name: 107 bytes after the leading NUL, none of them special.
    pub const fn from_abstract(name: &[u8; PATH_BYTES - 1]) -> Self {
        let mut bytes = [0; PATH_BYTES];
        let mut i = 0;
        while i < name.len() {
            bytes[i + 1] = name[i];
            i += 1;
        }
        Self(bytes)
    }

    /// Reads a `sockaddr_un`; `None` if the family is another or the name is empty.
    pub fn parse(bytes: &[u8; ADDRESS_BYTES]) -> Option<Self> {
        let (family, path) = bytes.split_first_chunk::<2>()?;
        let path: [u8; PATH_BYTES] = path.try_into().ok()?;
        (u16::from_ne_bytes(*family) == AF_UNIX && path != [0; PATH_BYTES]).then_some(Self(path))
    }

    /// The address as it stands on the wire.
    pub fn to_bytes(self) -> [u8; ADDRESS_BYTES] {
        let mut bytes = [0; ADDRESS_BYTES];
        bytes[..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
        bytes[2..].copy_from_slice(&self.0);
        bytes
    }

    /// The file system path, or `None` for an abstract name.
    pub fn path(&self) -> Option<&[u8]> {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(PATH_BYTES);
        (end > 0).then(|| &self.0[..end])
    }

    /// The `sun_path` member, whole.
    pub const fn sun_path(&self) -> &[u8; PATH_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Some(path) => write!(f, "{}", path.escape_ascii()),
            None => write!(f, "@{}", self.0[1..].trim_ascii_end().escape_ascii()),
        }
    }
}

/// What the client wants to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ordinary port; VDE clients may ask for a number (1 and up).
    Port {
        /// The port number asked for.
        number: Option<u32>,
    },
    /// Type 1: netkit-jh's dump port, or VDE's port 0, told apart by the client's address.
    Dump,
}

/// The layout a request came in; it decides what the reply looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// No magic, no reply.
    V0,
    /// Magic, MAC address in the request.
    V1,
    /// Magic and version; all UML kernels since 2.6, VDE and QEMU.
    V3,
}

/// A checked request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The layout it came in.
    pub version: Version,
    /// What is asked for.
    pub kind: Kind,
    /// Where the client's own datagram socket is.
    pub client: Address,
    /// VDE's description of the client; empty for others.
    pub description: String,
}

/// Why bytes are not a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// The bytes end too early for the version they claim.
    #[error("request is too short")]
    Short,
    /// More bytes than any client sends.
    #[error("request is too long")]
    Long,
    /// Version 2, or above 3.
    #[error("request version {0} is not supported")]
    Version(u32),
    /// A type other than a new port or a dump port.
    #[error("request type {0} is not supported")]
    Type(u32),
    /// The client's address is not that of a Unix socket.
    #[error("request names no Unix socket")]
    Address,
}

/// Where a request that is arriving in pieces stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// So many bytes are the least that may make a request.
    Need(usize),
    /// A request (or nonsense): parse it.
    Complete,
}

/// Tells whether `bytes`, all that has arrived so far, are enough to [`parse`].
pub fn progress(bytes: &[u8]) -> Progress {
    let need = match (word(bytes, 0), word(bytes, 4)) {
        (None, _) => 4,
        (Some(magic), _) if magic != MAGIC => V0_BYTES,
        (Some(_), None) => 8,
        (Some(_), Some(0 | 1)) => V1_BYTES,
        (Some(_), Some(_)) => V3_BYTES,
    };
    if bytes.len() < need {
        Progress::Need(need)
    } else {
        Progress::Complete
    }
}

/// Reads a whole request.
///
/// # Errors
/// When the bytes are no request of a version this switch serves.
pub fn parse(bytes: &[u8]) -> Result<Request, RequestError> {
    if bytes.len() > LONGEST_REQUEST {
        return Err(RequestError::Long);
    }
    let first = word(bytes, 0).ok_or(RequestError::Short)?;
    let second = word(bytes, 4).ok_or(RequestError::Short)?;
    let (version, kind_word, address_at) = match (first, second) {
        (MAGIC, 0 | 1) => (Version::V1, second, 14),
        (MAGIC, 3) => (Version::V3, word(bytes, 8).ok_or(RequestError::Short)?, 12),
        (MAGIC, other) => return Err(RequestError::Version(other)),
        (kind, _) => (Version::V0, kind, 10),
    };
    let client = bytes
        .get(address_at..)
        .and_then(|rest| rest.first_chunk::<ADDRESS_BYTES>())
        .ok_or(RequestError::Short)?;
    let number = kind_word >> 8;
    let kind = match kind_word & 0xff {
        0 => Kind::Port {
            number: (number > 0).then_some(number),
        },
        1 if version == Version::V3 => Kind::Dump,
        _ => return Err(RequestError::Type(kind_word)),
    };
    Ok(Request {
        version,
        kind,
        client: Address::parse(client).ok_or(RequestError::Address)?,
        description: description(version, bytes),
    })
}

/// The bytes a client of the given version sends: what our own tools and tests attach with.
pub fn request(version: Version, kind: Kind, client: Address) -> Vec<u8> {
    let kind_word = match kind {
        Kind::Port { number } => number.unwrap_or(0) << 8,
        Kind::Dump => 1,
    };
    let mut bytes = Vec::with_capacity(V1_BYTES);
    match version {
        Version::V0 => bytes.extend_from_slice(&kind_word.to_ne_bytes()),
        Version::V1 => {
            bytes.extend_from_slice(&MAGIC.to_ne_bytes());
            bytes.extend_from_slice(&kind_word.to_ne_bytes());
        }
        Version::V3 => {
            bytes.extend_from_slice(&MAGIC.to_ne_bytes());
            bytes.extend_from_slice(&3u32.to_ne_bytes());
            bytes.extend_from_slice(&kind_word.to_ne_bytes());
        }
    }
    if version != Version::V3 {
        bytes.extend_from_slice(&[0; 6]);
    }
    bytes.extend_from_slice(&client.to_bytes());
    if version == Version::V3 {
        bytes.extend_from_slice(&[0; 2]);
    }
    bytes
}

/// What stands behind the address in a VDE client's request. UML's two bytes of padding are no description.
fn description(version: Version, bytes: &[u8]) -> String {
    match bytes.get(V3_BYTES..) {
        Some(rest) if version == Version::V3 && rest.len() > 2 => {
            let text = rest.split(|&b| b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text)
                .chars()
                .filter(|c| !c.is_control())
                .collect()
        }
        _ => String::new(),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn abstract_client() -> Address {
        let mut name = [0xa5; 107];
        name[3..7].copy_from_slice(&4711u32.to_ne_bytes());
        Address::from_abstract(&name)
    }

    #[test]
    fn every_version_survives_the_round_trip() {
        let path = Address::from_path(b"/tmp/client").unwrap();
        for (version, bytes) in [(Version::V0, 120), (Version::V1, 124), (Version::V3, 124)] {
            for client in [abstract_client(), path] {
                let kind = Kind::Port { number: None };
                let wire = request(version, kind, client);
                assert_eq!(wire.len(), bytes);
                assert_eq!(progress(&wire), Progress::Complete);
                assert_eq!(
                    parse(&wire),
                    Ok(Request {
                        version,
                        kind,
                        client,
                        description: String::new()
                    })
                );
            }
        }
    }

    #[test]
    fn pieces_are_collected() {
        let wire = request(Version::V1, Kind::Port { number: None }, abstract_client());
        assert_eq!(progress(&wire[..3]), Progress::Need(4));
        assert_eq!(progress(&wire[..7]), Progress::Need(8));
        assert_eq!(progress(&wire[..123]), Progress::Need(124));
        let wire = request(Version::V3, Kind::Port { number: None }, abstract_client());
        assert_eq!(progress(&wire[..121]), Progress::Need(122));
        assert_eq!(progress(&wire[..122]), Progress::Complete);
    }

    #[test]
    fn a_vde_client_names_itself_and_its_port() {
        let client = Address::from_path(b"/run/vde.ctl/.08014-00000").unwrap();
        let mut wire = request(Version::V3, Kind::Port { number: Some(3) }, client);
        wire.truncate(122);
        wire.extend_from_slice(b"vdeplug: user=root pid=8014");
        let request = parse(&wire).unwrap();
        assert_eq!(request.kind, Kind::Port { number: Some(3) });
        assert_eq!(request.description, "vdeplug: user=root pid=8014");
    }

    #[test]
    fn what_no_switch_serves_is_refused() {
        let ok = request(Version::V3, Kind::Port { number: None }, abstract_client());
        let mut v2 = ok.clone();
        v2[4] = 2;
        assert_eq!(parse(&v2), Err(RequestError::Version(2)));
        let mut v9 = ok.clone();
        v9[4] = 9;
        assert_eq!(parse(&v9), Err(RequestError::Version(9)));
        let mut kind = ok.clone();
        kind[8] = 7;
        assert_eq!(parse(&kind), Err(RequestError::Type(7)));
        let mut family = ok.clone();
        family[12] = 2;
        assert_eq!(parse(&family), Err(RequestError::Address));
        assert_eq!(parse(&ok[..60]), Err(RequestError::Short));
        assert_eq!(parse(&[]), Err(RequestError::Short));
        assert_eq!(parse(&[0; 400]), Err(RequestError::Long));
        let dump_v1 = request(Version::V1, Kind::Dump, abstract_client());
        assert_eq!(parse(&dump_v1), Err(RequestError::Type(1)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = progress(&bytes);
            if let Ok(request) = parse(&bytes) {
                prop_assert!(bytes.len() >= 120);
                prop_assert!(request.description.len() <= 3 * LONGEST_DESCRIPTION);
            }
        }
    }
}

//! One attachment to a switch, made the way a guest makes it.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use proto::uml::{self, ADDRESS_BYTES, Address, Kind, Version};
use serde::Serialize;

/// How long a switch may take to answer a request.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// How a port is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// With the uml_switch protocol, as a UML guest: its data socket has an abstract name of the shape UML gives it and
    /// is *not* connected to the switch. That matters for what is measured: the kernel lets a sender queue only
    /// `net.unix.max_dgram_qlen` frames (and one) to an unconnected socket, so this is the queue a switch has toward a
    /// real guest.
    Uml,
    /// The same, but the data socket is connected to the switch, as libvdeplug's is: the queue toward it is bounded by
    /// bytes.
    Connected,
    /// A sequenced-packet connection, as the vector driver's `transport=bess` makes it.
    Bess,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uml => "unconnected",
            Self::Connected => "connected",
            Self::Bess => "bess",
        })
    }
}

/// A port: attached for as long as this lives.
#[derive(Debug)]
pub struct Port {
    data: OwnedFd,
    /// Where frames are sent to over a socket that is not connected.
    switch: Option<UnixAddr>,
    _control: Option<UnixStream>,
}

/// Why a port could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nobody answers at the control socket.
    #[error("cannot connect to control socket {path}")]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The port's own socket could not be made.
    #[error("cannot make a data socket")]
    Data(#[source] io::Error),
    /// The switch did not take the request.
    #[error("cannot attach to {path}: no address in reply")]
    Reply {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The switch answered with something that is no address.
    #[error("cannot attach to {path}: the reply is no address of a Unix socket")]
    Address {
        /// The control socket.
        path: PathBuf,
    },
}

impl Port {
    /// Attaches to the switch at `control`: the control socket itself, a VDE switch's directory, or a BESS socket.
    ///
    /// # Errors
    /// When the switch does not answer with the address of its data socket in time.
    pub fn attach(control: &Path, attach: Attach) -> Result<Self, AttachError> {
        let path = if control.is_dir() {
            control.join("ctl")
        } else {
            control.to_owned()
        };
        if attach == Attach::Bess {
            return Self::attach_bess(path);
        }
        let (name, data) = data_socket().map_err(AttachError::Data)?;
        let stream = UnixStream::connect(&path).map_err(|source| AttachError::Connect {
            path: path.clone(),
            source,
        })?;
        let reply = ask(&stream, name).map_err(|source| AttachError::Reply {
            path: path.clone(),
            source,
        })?;
        let switch = Address::parse(&reply).and_then(unix_addr);
        let switch = switch.ok_or(AttachError::Address { path })?;
        if attach == Attach::Connected {
            connect(data.as_raw_fd(), &switch).map_err(|errno| AttachError::Data(errno.into()))?;
        }
        Ok(Self {
            data: data.into(),
            switch: (attach == Attach::Uml).then_some(switch),
            _control: Some(stream),
        })
    }

    fn attach_bess(path: PathBuf) -> Result<Self, AttachError> {
        let no_socket = |errno: Errno| AttachError::Data(errno.into());
        let data = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(no_socket)?;
        let address = UnixAddr::new(&path).map_err(no_socket)?;
        connect(data.as_raw_fd(), &address).map_err(|errno| AttachError::Connect {
            path,
            source: errno.into(),
        })?;
        Ok(Self {
            data,
            switch: None,
            _control: None,
        })
    }

    /// The address frames are sent to; none if the socket is connected.
    pub fn switch(&self) -> Option<&UnixAddr> {
        self.switch.as_ref()
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As sendto(2).
    pub fn send(&self, frame: &[u8], flags: MsgFlags) -> Result<(), Errno> {
        match self.switch() {
            Some(switch) => sendto(self.as_raw_fd(), frame, switch, flags),
            None => send(self.as_raw_fd(), frame, flags),
        }
        .map(drop)
    }

    /// Bounds how long one receive or send may block.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_timeouts(&self, receive: Duration, send: Duration) -> io::Result<()> {
        let time = |duration: Duration| {
            TimeVal::microseconds(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
        };
        setsockopt(&self.data, ReceiveTimeout, &time(receive))?;
        Ok(setsockopt(&self.data, SendTimeout, &time(send))?)
    }
}

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.data.as_raw_fd()
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }
}

/// Binds a socket to a name of UML's shape: three bytes of anything, process, microseconds, and 96 bytes of anything.
fn data_socket() -> io::Result<(Address, UnixDatagram)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = [0xa5; 107];
    name[3..7].copy_from_slice(&std::process::id().to_ne_bytes());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    name[7..11].copy_from_slice(&count.to_ne_bytes());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    Ok((Address::from_abstract(&name), socket))
}

fn ask(mut stream: &UnixStream, client: Address) -> io::Result<[u8; ADDRESS_BYTES]> {
    stream.set_read_timeout(Some(REPLY_DEADLINE))?;
    stream.write_all(&uml::request(Version::V3, Kind::Port { number: None }, client))?;
    let mut reply = [0; ADDRESS_BYTES];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

fn unix_addr(address: Address) -> Option<UnixAddr> {
    match address.path() {
        Some(path) => UnixAddr::new(path).ok(),
        None => UnixAddr::new_abstract(&address.sun_path()[1..]).ok(),
    }
}

//! From a connection on a domain's control socket to a port: the uml_switch protocol.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fabric::PortId;
use proto::uml::{Address, LONGEST_REQUEST, Progress, Request, RequestError, parse, progress};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::vhost::VhostError;

/// A client that has connected has so long to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Bytes of socket buffer of what is not a client's, as cables, wires and uplinks, and of dump ports, which nobody waits for;
/// as far as the system allows (`net.core.wmem_max`).
pub(super) const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Frames of an ordinary length that wait for a client to be read: some vectors, so that neither has to wait for the other
/// after each. A queue of 3,600 makes nothing faster: it leaves the processor's caches, and the last frame waits for all
/// others (`bench/README.md`, many busy domains).
const QUEUE: usize = 4 * fabric::BATCH_FRAMES;
const ORDINARY: usize = 1514;

/// Bytes that wait for a client of a domain whose longest frame has so many: a vector of those at least.
pub(super) fn queue_bytes(longest_frame: usize) -> usize {
    use netio::unix::charged;
    (QUEUE * charged(ORDINARY)).max(fabric::BATCH_FRAMES * charged(longest_frame))
}

/// Why a connection did not become a port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No whole request came in time.
    #[error("no request within {} s", REQUEST_TIME.as_secs())]
    Timeout,
    /// The client hung up first.
    #[error("the connection ended before the request")]
    HungUp,
    /// What came is no request.
    #[error(transparent)]
    Malformed(#[from] RequestError),
    /// The client's data socket cannot be reached.
    #[error("cannot connect to the client's data socket {address:?}")]
    Client { address: Address, source: io::Error },
    /// Our own socket cannot be made.
    #[error("cannot make the data socket")]
    Socket(#[from] io::Error),
    /// The client belongs to somebody else.
    #[error("the client belongs to uid {0}")]
    Foreign(u32),
    /// Too many connections without a request.
    #[error("too many connections without a request")]
    Crowded,
    /// The port number asked for is taken, or the domain is on its way out.
    #[error("port {0} is not free")]
    Taken(PortId),
    /// A guest that shares its memory does it wrong, at the beginning or later.
    #[error(transparent)]
    Vhost(#[from] VhostError),
}

impl Refusal {
    /// The name it is counted under.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::HungUp => "hung-up",
            Self::Malformed(_) => "bad-request",
            Self::Client { .. } => "no-data-socket",
            Self::Socket(_) => "system",
            Self::Foreign(_) => "foreign-user",
            Self::Crowded => "crowded",
            Self::Taken(_) => "port-taken",
            Self::Vhost(_) => "bad-guest",
        }
    }
}

/// Reads the request, which may arrive in pieces.
pub(crate) async fn read_request(stream: &mut UnixStream) -> Result<Request, Refusal> {
    let mut bytes = [0; LONGEST_REQUEST + 1];
    let mut length = 0;
    let read = async {
        while length < bytes.len() && progress(&bytes[..length]) != Progress::Complete {
            match stream.read(&mut bytes[length..]).await {
                Ok(0) | Err(_) => return Err(Refusal::HungUp),
                Ok(count) => length += count,
            }
        }
        Ok(())
    };
    tokio::time::timeout(REQUEST_TIME, read)
        .await
        .map_err(|_| Refusal::Timeout)??;
    Ok(parse(&bytes[..length])?)
}

/// Where a port's data socket is.
pub(crate) enum DataPath {
    /// A file that stays the same over a restart: clients go on sending to it.
    File(PathBuf),
    /// An abstract name, for which no file is left behind.
    Abstract,
}

/// Makes a port's data socket, connected to the client: so only the client's frames get in, its queue is bounded by
/// bytes instead of by `net.unix.max_dgram_qlen`, and a VDE client may remove its own file afterwards.
pub(crate) fn data_socket(
    place: &DataPath,
    client: Address,
    queue: usize,
) -> Result<(UnixDatagram, Address), Refusal> {
    let (socket, address) = match place {
        DataPath::File(path) => bind_file(path)?,
        DataPath::Abstract => bind_abstract()?,
    };
    match connect(&socket, client, queue) {
        Ok(()) => Ok((socket, address)),
        Err(refusal) => {
            if let DataPath::File(path) = place {
                let _ = std::fs::remove_file(path);
            }
            Err(refusal)
        }
    }
}

/// A data socket without a name, for a client that finds its frames elsewhere.
pub(crate) fn unnamed_socket(client: Address, queue: usize) -> Result<UnixDatagram, Refusal> {
    let socket = UnixDatagram::unbound()?;
    connect(&socket, client, queue)?;
    Ok(socket)
}

fn connect(socket: &UnixDatagram, client: Address, queue: usize) -> Result<(), Refusal> {
    socket.set_nonblocking(true)?;
    netio::unix::set_queue(socket, queue)?;
    let failed = |source| Refusal::Client {
        address: client,
        source,
    };
    socket
        .connect_addr(&socket_address(client).map_err(failed)?)
        .map_err(failed)
}

/// The address as the system takes it: all 110 bytes of an abstract one count.
pub(crate) fn socket_address(address: Address) -> io::Result<SocketAddr> {
    use std::os::unix::ffi::OsStrExt;
    match address.path() {
        Some(path) => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(path))),
        None => SocketAddr::from_abstract_name(&address.sun_path()[1..]),
    }
}

fn bind_file(path: &Path) -> io::Result<(UnixDatagram, Address)> {
    use std::os::unix::ffi::OsStrExt;
    let address = Address::from_path(path.as_os_str().as_bytes())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path is too long for a socket"))?;
    // The number is this port's alone, and so is whatever an earlier run has left under it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok((UnixDatagram::bind(path)?, address))
}

fn bind_abstract() -> io::Result<(UnixDatagram, Address)> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let mut name = [0; 107];
    let text = format!(
        "hubbub-{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    name[..text.len()].copy_from_slice(text.as_bytes());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    Ok((socket, Address::from_abstract(&name)))
}

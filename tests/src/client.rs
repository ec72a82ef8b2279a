//! A port of the uml_switch protocol, made the way a UML guest makes it.
//!
//! The data socket has an abstract name of UML's shape and is *not* connected to the switch, so that its queue is as
//! short as that of a real guest: `net.unix.max_dgram_qlen` frames and one.

use std::io::{self, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proto::uml::{self, ADDRESS_BYTES, Address, Kind, Version};

use crate::wait::PATIENCE;

/// Room for the frame of the largest MTU, and more: a frame that grew on its way shows.
const FRAME_BYTES: usize = 70_000;

/// An attached port.
#[derive(Debug)]
pub struct Client {
    control: UnixStream,
    data: UnixDatagram,
    address: Address,
    switch: SocketAddr,
}

impl Client {
    /// Attaches as UML kernels do, with request version 3.
    ///
    /// # Panics
    /// When the switch does not answer.
    #[track_caller]
    pub fn attach(control: &Path) -> Self {
        Self::try_attach(control, Version::V3, None)
            .unwrap_or_else(|error| panic!("cannot attach to {}: {error}", control.display()))
    }

    /// Attaches as netkit-jh's `uml_dump` does: for every frame.
    ///
    /// # Errors
    /// `UnexpectedEof` when the switch hangs up instead of answering.
    pub fn attach_dump(control: &Path) -> io::Result<Self> {
        let (data, address) = data_socket()?;
        let stream = UnixStream::connect(control)?;
        let reply = ask(&stream, &uml::request(Version::V3, Kind::Dump, address))?;
        Self::answered(stream, data, address, &reply)
    }

    /// Attaches with request version 1 or 3, asking for a port number or not.
    ///
    /// # Errors
    /// `UnexpectedEof` when the switch hangs up instead of answering.
    pub fn try_attach(control: &Path, version: Version, number: Option<u32>) -> io::Result<Self> {
        let (data, address) = data_socket()?;
        let stream = UnixStream::connect(control)?;
        let reply = ask(&stream, &uml::request(version, Kind::Port { number }, address))?;
        Self::answered(stream, data, address, &reply)
    }

    /// Puts a port together from a conversation that a test has led itself.
    ///
    /// # Errors
    /// When the reply is no address of a Unix socket.
    pub fn answered(
        control: UnixStream,
        data: UnixDatagram,
        address: Address,
        reply: &[u8; ADDRESS_BYTES],
    ) -> io::Result<Self> {
        let switch = Address::parse(reply).ok_or(ErrorKind::InvalidData)?;
        Ok(Self {
            control,
            data,
            address,
            switch: socket_address(switch)?,
        })
    }

    /// Attaches with request version 0, which is not answered: frames go to the data socket at a path known before.
    ///
    /// # Errors
    /// When nobody listens at `control`.
    pub fn attach_v0(control: &Path, switch: &Path) -> io::Result<Self> {
        let (data, address) = data_socket()?;
        let mut stream = UnixStream::connect(control)?;
        stream.write_all(&uml::request(Version::V0, Kind::Port { number: None }, address))?;
        Ok(Self {
            control: stream,
            data,
            address,
            switch: SocketAddr::from_pathname(switch)?,
        })
    }

    /// The control connection.
    pub fn control(&self) -> &UnixStream {
        &self.control
    }

    /// The data socket.
    pub fn data(&self) -> &UnixDatagram {
        &self.data
    }

    /// The data socket's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Where frames are sent to.
    pub fn switch(&self) -> &SocketAddr {
        &self.switch
    }

    /// The file of the switch's data socket.
    ///
    /// # Panics
    /// When its name is abstract.
    pub fn switch_path(&self) -> PathBuf {
        self.switch
            .as_pathname()
            .expect("a data socket with a path")
            .to_owned()
    }

    /// Sends a frame, waiting for room.
    ///
    /// # Panics
    /// When the switch is gone, or does not read in time.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame)
            .unwrap_or_else(|error| panic!("cannot send a frame of {} bytes: {error}", frame.len()));
    }

    /// Sends a frame, waiting for room.
    ///
    /// # Errors
    /// As sendto(2); `WouldBlock` when the switch has not read for long.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.data.send_to_addr(frame, &self.switch)?;
        assert_eq!(sent, frame.len(), "a datagram goes whole or not at all");
        Ok(())
    }

    /// Waits for a frame.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn recv(&self) -> Vec<u8> {
        self.recv_within(PATIENCE)
            .unwrap_or_else(|| panic!("no frame has come in {} s", PATIENCE.as_secs()))
    }

    /// Waits for a frame, but not longer than so.
    ///
    /// # Panics
    /// When the socket fails.
    pub fn recv_within(&self, time: Duration) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_BYTES];
        self.data
            .set_read_timeout(Some(time))
            .expect("a time-out that is not zero");
        match self.data.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Some(frame)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot receive: {error}"),
        }
    }

    /// All frames up to and without the one that equals `marker`. A switch keeps the order of what one port sends, so
    /// whatever was sent before the marker and is not among them has been dropped or went elsewhere.
    ///
    /// # Panics
    /// When the marker does not come.
    #[track_caller]
    pub fn recv_until(&self, marker: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.recv();
            if frame == marker {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// True once the switch has closed the control connection.
    ///
    /// # Panics
    /// When that does not happen in time.
    #[track_caller]
    pub fn wait_for_hangup(&self) {
        wait_for_hangup(&self.control);
    }
}

/// Waits until the other end closes a connection, whatever it says before.
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub fn wait_for_hangup(mut stream: &UnixStream) {
    let deadline = Instant::now() + PATIENCE;
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time-out that is not zero");
    loop {
        match stream.read(&mut [0; 256]) {
            Ok(1..) => assert!(Instant::now() < deadline, "the connection goes on"),
            Ok(0) => return,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection is not closed: {error}"),
        }
    }
}

/// Sends a request and reads the reply.
///
/// # Errors
/// `UnexpectedEof` or `ConnectionReset` when the switch hangs up instead; `WouldBlock` when it says nothing.
pub fn ask(mut stream: &UnixStream, request: &[u8]) -> io::Result<[u8; ADDRESS_BYTES]> {
    stream.write_all(request)?;
    reply(stream)
}

/// Reads a reply.
///
/// # Errors
/// As [`ask`].
pub fn reply(mut stream: &UnixStream) -> io::Result<[u8; ADDRESS_BYTES]> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reply = [0; ADDRESS_BYTES];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// Binds a datagram socket to a name of UML's shape: three bytes of anything, process, microseconds, 96 bytes of
/// anything.
///
/// # Errors
/// As bind(2).
pub fn data_socket() -> io::Result<(UnixDatagram, Address)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = [0x5a; 107];
    name[3..7].copy_from_slice(&std::process::id().to_ne_bytes());
    name[7..11].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_ne_bytes());
    // Garbage with a NUL in it: an abstract name does not end there.
    name[50] = 0;
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, Address::from_abstract(&name)))
}

/// An address as the system takes it.
///
/// # Errors
/// When the path is too long.
pub fn socket_address(address: Address) -> io::Result<SocketAddr> {
    match address.path() {
        Some(path) => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(path))),
        None => SocketAddr::from_abstract_name(&address.sun_path()[1..]),
    }
}

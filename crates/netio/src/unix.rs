//! Unix sockets: listeners that recognise stale files, peers and their processes, descriptors as messages.

use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::retry_eintr;

/// Listens at `path`. A socket file that nobody answers at is replaced.
///
/// The caller holds whatever lock keeps two of its own kind apart.
///
/// # Errors
/// `AddrInUse` if somebody answers there or the file is no socket; else as bind(2).
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    replacing_stale(path, || UnixListener::bind(path))
}

/// Listens at `path` for connections that keep records apart (`SOCK_SEQPACKET`), with the same rules as [`listen`] and
/// a queue as long as the system allows. The descriptor is non-blocking.
///
/// # Errors
/// As [`listen`].
pub fn listen_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let listener = replacing_stale(path, || {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        Ok(socket)
    })?;
    listener.listen(libc::c_int::MAX)?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// Connects to `path` so that records are kept apart. The descriptor is non-blocking.
///
/// # Errors
/// As connect(2); `WouldBlock` if the listener has as many connections waiting as it takes.
pub fn connect_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// Two connected sockets that keep records apart. Both are non-blocking.
///
/// # Errors
/// As socketpair(2).
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    one.set_nonblocking(true)?;
    other.set_nonblocking(true)?;
    Ok((one.into(), other.into()))
}

/// Ends a connection for everybody who has a descriptor of it, and for the other end.
///
/// # Errors
/// As shutdown(2); `NotConnected` if it has ended already.
pub fn hang_up(connection: impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(&connection).shutdown(std::net::Shutdown::Both)
}

/// Takes the next connection of a listener; it is non-blocking.
///
/// # Errors
/// As accept4(2); `WouldBlock` if nobody is waiting.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let listener = listener.as_fd();
    let (socket, _) = socket2::SockRef::from(&listener).accept()?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The process and the user at the other end of a connection, as of its beginning (`SO_PEERCRED`). The process is 0 if
/// it has no number in our PID namespace.
///
/// # Errors
/// As getsockopt(2).
pub fn credentials(connection: impl AsFd) -> io::Result<(u32, u32)> {
    let credentials = getsockopt(&connection, sockopt::PeerCredentials)?;
    Ok((u32::try_from(credentials.pid()).unwrap_or(0), credentials.uid()))
}

/// True if the other end of a connection sends no more.
pub fn is_hung_up(connection: BorrowedFd<'_>) -> bool {
    // nix does not know POLLRDHUP.
    let mut fd = libc::pollfd {
        fd: connection.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call; with no time-out, it does not wait.
    let ready = unsafe { libc::poll(&raw mut fd, 1, 0) };
    ready == 1 && fd.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0
}

/// Binds with `bind`, a second time if it was in the way of nothing but a stale file.
fn replacing_stale<T>(path: &Path, bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match bind() {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path)? => {
            fs::remove_file(path)?;
            bind()
        }
        result => result,
    }
}

/// True if `path` is a socket file whose owner is gone. Symbolic links are not followed.
///
/// # Errors
/// When nothing is known about it, as `NotFound`.
pub fn is_stale(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    match UnixStream::connect(path) {
        Err(error) => Ok(error.kind() == ErrorKind::ConnectionRefused),
        Ok(_) => Ok(false),
    }
}

/// A descriptor of the process (not one of its threads) that becomes readable when it ends: pidfd_open(2).
///
/// # Errors
/// As pidfd_open(2); `ESRCH` if the process is gone.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before use.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed this descriptor to us alone; it is close-on-exec by definition.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Most descriptors taken from one message; the kernel closes what does not fit.
const FDS: usize = 8;

/// Receives bytes, and descriptors that came with them (close-on-exec), from a stream. 0 bytes mean its end.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    retry_eintr(|| {
        let mut space = cmsg_space!([std::os::fd::RawFd; FDS]);
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                for fd in received {
                    // SAFETY: the kernel has just installed this descriptor for us; nobody else knows its number.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        Ok(message.bytes)
    })
}

/// Sends bytes with one descriptor on a stream; returns how many bytes went.
///
/// # Errors
/// As sendmsg(2).
pub fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    use nix::sys::socket::{ControlMessage, sendmsg};
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let parts = [io::IoSlice::new(bytes)];
    retry_eintr(|| {
        Ok(sendmsg::<()>(
            socket.as_raw_fd(),
            &parts,
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?)
    })
}

/// Asks for send and receive buffers of so many bytes; the kernel gives what its limits allow.
///
/// # Errors
/// As setsockopt(2).
pub fn set_buffers(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = socket2::SockRef::from(&fd);
    socket.set_send_buffer_size(bytes)?;
    socket.set_recv_buffer_size(bytes)
}

/// Bounds what waits for the receiver of a Unix socket to so many bytes, as [`charged`] counts them, or to what the system
/// allows (`net.core.wmem_max`).
///
/// # Errors
/// As setsockopt(2).
pub fn set_queue(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    // Linux gives twice what it is asked for (sock_setsockopt()).
    socket2::SockRef::from(&socket.as_fd()).set_send_buffer_size(bytes / 2)
}

/// What Linux counts for a message of so many bytes in such a queue: a block of memory, its size a power of two, with the
/// message and a `skb_shared_info`, and an `sk_buff` (sock_alloc_send_pskb(), on x86-64). Messages of over 16 KiB are
/// counted with less than this.
pub const fn charged(bytes: usize) -> usize {
    (bytes + 320).next_power_of_two() + 256
}

/// Asks for a pipe of so many bytes; it stays as it is if the system's limits are lower.
pub fn set_pipe_size(pipe: impl AsFd, bytes: usize) {
    use nix::fcntl::{FcntlArg, fcntl};
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    // A smaller pipe works as well, if not as fast.
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let living = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(living);
        drop(listen(&path).unwrap());
    }

    #[test]
    fn connections_with_records_tell_their_peer_and_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(listen_seqpacket(&path).unwrap());
        let listener = listen_seqpacket(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(accept(&listener).unwrap_err().kind(), ErrorKind::WouldBlock);
        let client = connect_seqpacket(&path).unwrap();
        let connection = accept(&listener).unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        assert_eq!(credentials(&connection).unwrap(), (std::process::id(), uid));
        assert!(!is_hung_up(connection.as_fd()));
        drop(client);
        assert!(is_hung_up(connection.as_fd()));
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "precious").unwrap();
        assert_eq!(listen(&file).unwrap_err().kind(), ErrorKind::AddrInUse);
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(listen(&link).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_descriptor_travels() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        send_with_fd(a.as_fd(), b"line\n", file.as_fd()).unwrap();
        let mut fds = Vec::new();
        let mut bytes = [0; 64];
        assert_eq!(receive_with_fds(b.as_fd(), &mut bytes, &mut fds).unwrap(), 5);
        let mut received = fs::File::from(fds.pop().unwrap());
        received.rewind().unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_queue_holds_what_it_was_made_for() {
        for bytes in [60, 1514, 9014, 16_000] {
            let (a, _b) = socket2::Socket::pair(
                socket2::Domain::UNIX,
                socket2::Type::SEQPACKET.nonblocking(),
                None,
            )
            .unwrap();
            set_queue(&a, 20 * charged(bytes)).unwrap();
            let message = vec![0; bytes];
            let taken = (0..1000).take_while(|_| a.send(&message).is_ok()).count();
            // The kernel has a least size, which is more than 20 short ones need.
            assert!(taken == 20 || bytes == 60, "{taken} of {bytes} bytes");
        }
    }

    #[test]
    fn the_end_of_a_process_can_be_seen() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let fd = pidfd(child.id()).unwrap();
        let mut poller = crate::poll::Poller::new().unwrap();
        poller.add(fd.as_fd(), 1, crate::poll::Interest::Read).unwrap();
        poller.wait(Some(std::time::Duration::ZERO)).unwrap();
        assert_eq!(poller.event(0), None);
        drop(child.stdin.take());
        poller.wait(Some(std::time::Duration::from_secs(10))).unwrap();
        assert!(poller.event(0).is_some());
        child.wait().unwrap();
    }
}

//! Descriptors that tokio does not know, watched by its reactor.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the current runtime tell when the descriptor is readable.
///
/// # Errors
/// As epoll_ctl(2); `PermissionDenied` for a regular file.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives and always the same descriptor, and the AsyncFd owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(|error| error.into_parts().1)
}

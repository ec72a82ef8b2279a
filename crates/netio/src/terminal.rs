//! Terminals: the size of their windows, which nix has no call for, and waiting for them in a tokio runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Watches a non-blocking terminal for both directions. Must be called inside a tokio runtime.
///
/// # Errors
/// When the descriptor cannot be watched.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives and always the same descriptor, and the AsyncFd owns it.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(watched?)
}

/// Rows and columns of a terminal, or `None` if the descriptor is none or its size is not known.
pub fn window_size(fd: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for the length of the call, and TIOCGWINSZ writes one `winsize`
    // (ioctl_tty(2)), which `size` is.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Sets rows and columns of a terminal; programs on it are told by SIGWINCH.
///
/// # Errors
/// When the descriptor is no terminal.
pub fn set_window_size(fd: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for the length of the call, and TIOCSWINSZ reads one `winsize`
    // (ioctl_tty(2)), which `size` is.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_keeps_its_size() {
        let pty = nix::pty::openpty(None, None).unwrap();
        assert_eq!(window_size(&pty.slave), None);
        set_window_size(&pty.master, 25, 132).unwrap();
        assert_eq!(window_size(&pty.slave), Some((25, 132)));
    }

    #[test]
    fn a_file_has_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(window_size(&file), None);
        assert!(set_window_size(&file, 1, 1).is_err());
    }
}

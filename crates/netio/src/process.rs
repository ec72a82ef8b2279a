//! What a process does about itself.

use std::io;

/// Marks all descriptors from `first` on as closed when another program is executed. None is closed now, so nothing
/// that owns one of them is pulled the rug from under.
///
/// # Errors
/// As close_range(2); kernels before 5.11 do not know the flag.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).expect("a small flag");
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed and no memory is touched.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, flags) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

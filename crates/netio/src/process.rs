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

/// Gives the calling thread a smaller share of the processors than its process's other threads, by a nice value from
/// 1 to 19. The share of other processes stays as it is where the system groups threads by session.
///
/// # Errors
/// As setpriority(2).
pub fn yield_to_others(nice: u8) -> io::Result<()> {
    // Linux applies this to the thread alone, as getpriority(2) says under BUGS.
    // SAFETY: three integers; no memory is touched.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, libc::c_int::from(nice)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

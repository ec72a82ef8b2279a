//! What a process does about itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

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

/// A copy of a descriptor this process was started with, by its number.
///
/// # Errors
/// As fcntl(2); `EBADF` if there is none of that number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; copying a descriptor leaves it, and whoever owns it, as they are.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets the calling thread run only where no other thread wants a processor, or nearly: `SCHED_IDLE` of sched(7). The
/// way back needs a privilege, so this is for good.
///
/// # Errors
/// As sched_setscheduler(2).
pub fn run_when_idle() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters and keeps no reference to them; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The user namespace that owns a namespace: ioctl_ns(2), `NS_GET_USERNS`.
///
/// # Errors
/// `ENOTTY` if the descriptor is no namespace's, `EPERM` if its owner is out of our sight.
pub fn owner_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // _IO(0xb7, 1) of linux/nsfs.h.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument and touches no memory; the result is checked before use.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed this descriptor to us alone, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_thread_gives_way_alone() {
        // SAFETY: the call takes an integer and touches no memory.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let within = std::thread::spawn(move || run_when_idle().map(|()| policy()));
        assert_eq!(within.join().unwrap().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }

    #[test]
    fn a_network_knows_its_owner() {
        let net = File::open("/proc/self/ns/net").unwrap();
        let owner = File::from(owner_namespace(&net).unwrap());
        // Of user namespaces, some have no owner and some have one; a file has none for sure.
        assert!(owner.metadata().unwrap().ino() > 0);
        let file = File::open("/proc/self/cmdline").unwrap();
        assert_eq!(
            owner_namespace(&file).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }
}

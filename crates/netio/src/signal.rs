//! Signals, as far as the standard library and tokio have no word for them.

/// Ends the process as an interrupt does that nobody catches, so that whoever waits for it sees SIGINT.
pub fn die_of_interrupt() -> ! {
    // SAFETY: the default action takes no handler of ours, and raise(3) has no preconditions.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::raise(libc::SIGINT);
    }
    // SIGINT is blocked: the shell's convention says the same.
    std::process::exit(128 + libc::SIGINT)
}

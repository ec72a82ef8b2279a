//! Descriptors in, bytes out: the only crate with `unsafe`.
//!
//! Thin and without policy: a call retries `EINTR` and nothing else. Sources: the man pages named at each item.

mod foreign;
pub mod mmsg;
pub mod packet;
#[cfg(feature = "pcap")]
pub mod pcap;
pub mod poll;
pub mod process;
pub mod shm;
pub mod signal;
pub mod tap;
pub mod terminal;
pub mod unix;
pub mod watch;
pub mod xstate;

/// Repeats a system call that a signal interrupted.
fn retry_eintr<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

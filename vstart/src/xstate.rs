//! Processors with more state than UML kernels before Linux 6.13 know of: without help, these panic before their first
//! process runs. The library that helps tells how, at its own place (`crates/netio/preload`).

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::switch::installed;

/// What has a library loaded in front of the others (ld.so(8)).
pub const VARIABLE: &str = "LD_PRELOAD";

/// The library's file.
pub const LIBRARY: &str = "libhubbub_xstate.so";

/// Bytes of state that those kernels know of (`FP_SIZE`, `arch/x86/um/user-offsets.c`).
const KNOWN: usize = 2696;

/// True if those kernels need the library on this machine.
pub fn is_needed() -> bool {
    netio::xstate::bytes() > KNOWN
}

/// The library, if it is needed and there. It does nothing to later kernels, nor to those that are linked statically.
pub fn library() -> Option<PathBuf> {
    is_needed().then(|| installed(LIBRARY)).flatten()
}

/// The value of [`VARIABLE`] with this library in front of what is loaded anyway.
pub fn value(library: &Path) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(others) = env::var_os(VARIABLE).filter(|others| !others.is_empty()) {
        value.push(":");
        value.push(others);
    }
    value
}

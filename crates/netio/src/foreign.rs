//! Copies of bytes that other processes change at the same time.
//!
//! The compiler may believe nothing about such bytes: few of them are copied by volatile accesses, many by the C library,
//! which it cannot look into. Nothing in this process ever refers to them.

/// Up to so many bytes are copied here, where a call would cost more: headers, descriptors and used entries. With 128, for
/// short frames as well, 64-byte frames pass at the same rate.
const FEW: usize = 16;

/// A word that stands anywhere.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Copies bytes out of, into or between mappings of other processes' memory.
///
/// # Safety
/// So many bytes are mapped at both places. Each of the two is such a mapping, or memory of our own that nobody else
/// refers to.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, into: *mut u8, bytes: usize) {
    if bytes > FEW {
        // SAFETY: as the caller has promised; of two mappings, one may be a part of the other.
        unsafe { libc::memmove(into.cast(), from.cast(), bytes) };
        return;
    }
    if let Some(last) = bytes.checked_sub(8) {
        for at in (0..last).step_by(8) {
            // SAFETY: within the bytes the caller has promised.
            unsafe { copy_one::<u64>(from, into, at) };
        }
        // It may begin within the one before.
        // SAFETY: within the bytes the caller has promised.
        unsafe { copy_one::<u64>(from, into, last) };
        return;
    }
    for at in 0..bytes {
        // SAFETY: within the bytes the caller has promised.
        unsafe { copy_one::<u8>(from, into, at) };
    }
}

/// Copies one word.
///
/// # Safety
/// As for [`copy`], of the word `at` bytes behind both places.
#[inline]
unsafe fn copy_one<T: Copy>(from: *const u8, into: *mut u8, at: usize) {
    // SAFETY: the word is mapped at both places, as the caller has promised, and needs no alignment.
    unsafe {
        let word = from.add(at).cast::<Unaligned<T>>().read_volatile();
        into.add(at).cast::<Unaligned<T>>().write_volatile(word);
    }
}

/// Bytes that a processor fetches at once.
const LINE: usize = 64;

/// Has bytes fetched that will be read soon, or written. To fetch for reading what is then written is worse than nothing:
/// another processor's cache is asked twice.
#[inline]
pub(crate) fn prefetch(from: *const u8, bytes: usize, to_write: bool) {
    for line in (0..bytes + from.addr() % LINE).step_by(LINE) {
        let line = from.wrapping_add(line);
        if to_write {
            fetch_to_write(line);
        } else {
            fetch(line);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn fetch(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, for whatever address: it changes nothing a program could notice, and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn fetch_to_write(line: *const u8) {
    // AMD's and Intel's manuals have the bit under PREFETCHW.
    static IS_KNOWN: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 << 8 != 0);
    if *IS_KNOWN {
        // SAFETY: the processor knows the instruction, which is a hint like the other. It takes the line away from other
        // processors' caches, and leaves the bytes as they are.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn fetch(_: *const u8) {}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn fetch_to_write(_: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_whole_and_nothing_else() {
        let from: Vec<u8> = (0..=255).cycle().take(400).collect();
        for bytes in 0..=300 {
            for start in 0..9 {
                let mut into = vec![0xee; 400];
                // SAFETY: both vectors are longer, and nobody else refers to them.
                unsafe { copy(from[start..].as_ptr(), into[16..].as_mut_ptr(), bytes) };
                assert_eq!(into[16..][..bytes], from[start..][..bytes]);
                assert!(
                    into[..16]
                        .iter()
                        .chain(&into[16 + bytes..])
                        .all(|&byte| byte == 0xee)
                );
            }
        }
        prefetch(std::ptr::null(), 0, false);
        prefetch(from.as_ptr(), 1 << 20, true);
    }
}

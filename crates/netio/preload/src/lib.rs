//! What UML kernels before Linux 6.13 are given by `LD_PRELOAD` on processors with more state than they know of.
//!
//! They write 2696 bytes of a process's extended state (`FP_SIZE`, `arch/x86/um/user-offsets.c`) by `PTRACE_SETREGSET`,
//! whatever the processor has. The host's kernel takes all of it or nothing (`xstateregs_set()`,
//! `arch/x86/kernel/fpu/regset.c`): with AMX that is 11,008 bytes, the call fails with `EFAULT`, and the guest panics
//! before its first process runs. Here the rest is added. It is not looked at, because the header of the state (`XSTATE_BV`
//! in the Intel SDM, volume 1, section 13.4.2) says that nothing in it is in use. Other calls pass as they are.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

type Ptrace = unsafe extern "C" fn(c_uint, ...) -> c_long;

/// More than any processor has.
const ROOM: usize = 64 << 10;

/// The whole state. A kernel has one thread that traces others; its stacks are too small for this.
static mut STATE: [u8; ROOM] = [0; ROOM];

/// ptrace(2) with all of the state where a part of it is to be set.
///
/// # Safety
/// As ptrace(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_uint,
    pid: c_int,
    address: *mut c_void,
    data: *mut c_void,
) -> c_long {
    static NEXT: OnceLock<Option<Ptrace>> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        // SAFETY: the name ends with a zero byte.
        let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ptrace".as_ptr()) };
        // SAFETY: null, or the C library's function of this name, which has this type.
        unsafe { std::mem::transmute::<*mut c_void, Option<Ptrace>>(next) }
    });
    let Some(next) = next else { return -1 };
    let mut state = data;
    let mut whole = libc::iovec {
        iov_base: (&raw mut STATE).cast(),
        iov_len: netio::xstate::bytes().min(ROOM),
    };
    if request == libc::PTRACE_SETREGSET && address.addr() == NT_X86_XSTATE {
        // SAFETY: with this request, data is an iovec of the caller's.
        let part = unsafe { data.cast::<libc::iovec>().read() };
        if part.iov_len < whole.iov_len {
            // SAFETY: the caller has so many bytes, and there is room for them, which nobody else uses meanwhile.
            unsafe { ptr::copy_nonoverlapping(part.iov_base, whole.iov_base, part.iov_len) };
            state = ptr::from_mut(&mut whole).cast();
        }
    }
    // SAFETY: as the caller says; a state of ours is whole, and only read.
    unsafe { next(request, pid, address, state) }
}

/// `linux/elf.h`
const NT_X86_XSTATE: usize = 0x202;

//! Capture filters in words, compiled by libpcap: pcap-filter(7), pcap_compile(3PCAP).

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::ptr;

use fabric::Instruction;

/// `DLT_EN10MB`: the frames are Ethernet's.
const ETHERNET: c_int = 1;

/// `PCAP_NETMASK_UNKNOWN`: no network is local, so `ip broadcast` is refused rather than guessed.
const NO_NETMASK: u32 = 0xffff_ffff;

/// No frame is longer, so a filter keeps all of it.
const WHOLE_FRAME: c_int = 0x4_0000;

#[repr(C)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

#[repr(C)]
struct Program {
    length: c_uint,
    instructions: *mut Insn,
}

const _: () = assert!(size_of::<Insn>() == 8 && size_of::<Program>() == 16);

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

#[link(name = "pcap")]
unsafe extern "C" {
    fn pcap_open_dead(linktype: c_int, snaplen: c_int) -> *mut Handle;
    fn pcap_compile(
        handle: *mut Handle,
        program: *mut Program,
        expression: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_geterr(handle: *mut Handle) -> *const c_char;
    fn pcap_freecode(program: *mut Program);
    fn pcap_close(handle: *mut Handle);
}

/// Compiles an expression for Ethernet frames.
///
/// # Errors
/// What libpcap has to say about the expression.
pub fn compile(expression: &str) -> Result<Vec<Instruction>, String> {
    let expression = CString::new(expression).map_err(|_| "it contains a NUL".to_owned())?;
    // SAFETY: no pointers go in; the result is checked before use.
    let handle = unsafe { pcap_open_dead(ETHERNET, WHOLE_FRAME) };
    if handle.is_null() {
        return Err("libpcap has no memory".to_owned());
    }
    let mut program = Program {
        length: 0,
        instructions: ptr::null_mut(),
    };
    // SAFETY: the handle is open, the program is ours to be filled in, the expression ends with a NUL and outlives
    // the call.
    let status = unsafe { pcap_compile(handle, &raw mut program, expression.as_ptr(), 1, NO_NETMASK) };
    let result = if status == 0 {
        // SAFETY: after success, the program points at so many instructions until it is freed.
        let instructions =
            unsafe { std::slice::from_raw_parts(program.instructions, program.length as usize) };
        let copy = |&Insn { code, jt, jf, k }: &Insn| Instruction { code, jt, jf, k };
        let instructions = instructions.iter().map(copy).collect();
        // SAFETY: the program was filled in by pcap_compile and is freed once; the slice above is not used any more.
        unsafe { pcap_freecode(&raw mut program) };
        Ok(instructions)
    } else {
        // SAFETY: the message lies in the open handle and ends with a NUL; it is copied before the handle is closed.
        let message = unsafe { CStr::from_ptr(pcap_geterr(handle)) };
        Err(message.to_string_lossy().into_owned())
    };
    // SAFETY: the handle is open and not used again.
    unsafe { pcap_close(handle) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::Filter;

    fn matches(expression: &str, frame: &[u8]) -> bool {
        let program = compile(expression).unwrap();
        Filter::new(program).unwrap().accepts(frame, frame.len())
    }

    /// An ICMP echo from 10.0.0.1 to 10.0.0.2, with or without a tag of VLAN 5.
    fn ping(tagged: bool) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if tagged {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn expressions_decide_as_they_read() {
        for (expression, plain, tagged) in [
            ("icmp", true, false),
            ("vlan 5 and icmp", false, true),
            ("vlan 6", false, false),
            ("host 10.0.0.2 and not arp", true, false),
            ("ether src 02:00:00:00:00:01", true, true),
            ("len > 43", false, true),
            ("icmp[icmptype] = icmp-echo", true, false),
            ("tcp port 80 or ip6", false, false),
            ("", true, true),
        ] {
            assert_eq!(matches(expression, &ping(false)), plain, "{expression}");
            assert_eq!(matches(expression, &ping(true)), tagged, "{expression}, tagged");
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        assert!(compile("tcp prot 80").unwrap_err().contains("syntax error"));
        assert!(compile("a\0b").is_err());
    }
}

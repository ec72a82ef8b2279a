//! The state of a processor's extensions, as ptrace(2) has it (`NT_X86_XSTATE`).

/// Bytes of it on this machine, in the standard format and with everything the host's kernel has switched on; 0 on
/// processors that are not of this kind.
///
/// Source: Intel SDM, volume 2, CPUID, leaf 0DH, sub-leaf 0: EBX.
#[cfg(target_arch = "x86_64")]
pub fn bytes() -> usize {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::LazyLock;

    const XSTATE: u32 = 0xd;
    /// In a virtual machine, to ask takes as long as to leave it.
    static BYTES: LazyLock<usize> = LazyLock::new(|| match __cpuid_count(0, 0).eax {
        XSTATE.. => __cpuid_count(XSTATE, 0).ebx as usize,
        _ => 0,
    });
    *BYTES
}

/// Bytes of it on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn bytes() -> usize {
    0
}

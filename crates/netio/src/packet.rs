//! Packet sockets: the frames of a network interface, packet(7), behind virtio headers (`PACKET_VNET_HDR`).
//!
//! Opening one needs `CAP_NET_RAW`; using it, once it is bound, needs nothing. The kernel takes the outer VLAN tag out of
//! what it hands over and says so beside the frame.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use fabric::offload::VNET_HEADER_BYTES;
use fabric::{BATCH_FRAMES, Batch, FrameSet, Instruction};

use crate::mmsg::{
    EMPTY_IOVEC, constant, count_of, iovec, lengths, messages, receive_messages, send_messages,
};

/// How a socket is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Frames for others as well, for as long as the socket is open.
    pub promiscuous: bool,
    /// What the host itself sends as well.
    pub outgoing: bool,
    /// Only what this program accepts; everything if it is empty.
    pub filter: Vec<Instruction>,
}

/// Bytes of a receive queue: some 2,000 full frames.
const QUEUE_BYTES: libc::c_int = 8 << 20;

/// Opens a packet socket on the interface of this number; it is non-blocking.
///
/// Whoever has such a socket can bind it to another interface. So it has a filter that lets in nothing of others, and
/// that nobody can change or take away any more. There is no such thing for what is sent.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, `ENODEV` if there is no such interface, `EINVAL` if the filter is no program, else as
/// socket(2) and packet(7).
pub fn open(interface: u32, options: &Options) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed this descriptor to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = i32::try_from(interface).map_err(io::Error::other)?;
    let on: libc::c_int = 1;
    // Of no protocol so far, it receives nothing before it is bound.
    attach_filter(&fd, &tied(interface, &options.filter))?;
    set(&fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &on)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on)?;
    set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &on)?;
    if !options.outgoing {
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)?;
    }
    // Beyond the system's limit if we may.
    if set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE_BYTES).is_err() {
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &QUEUE_BYTES)?;
    }
    if options.promiscuous {
        let membership = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: u16::try_from(libc::PACKET_MR_PROMISC).expect("a small number"),
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    }
    let address = link_address(index);
    // SAFETY: one sockaddr_ll that outlives the call, and its size.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_u32::<libc::sockaddr_ll>(),
        )
    };
    check(bound)?;
    Ok(fd)
}

/// The number of the interface a packet socket is bound to; `None` once that interface has been deleted.
///
/// # Errors
/// As getsockname(2); `InvalidInput` for a socket of another kind or one without virtio headers.
pub fn interface(socket: impl AsFd) -> io::Result<Option<u32>> {
    let fd = socket.as_fd().as_raw_fd();
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no packet socket with virtio headers",
        )
    };
    let mut address = link_address(0);
    let mut length = size_of_u32::<libc::sockaddr_ll>();
    // SAFETY: at most `length` bytes are written to one sockaddr_ll; both outlive the call.
    check(unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) })?;
    if i32::from(address.sll_family) != libc::AF_PACKET {
        return Err(wrong());
    }
    let mut on: libc::c_int = 0;
    let mut length = size_of_u32::<libc::c_int>();
    // SAFETY: at most `length` bytes are written to one int; both outlive the call.
    check(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw mut on).cast(),
            &raw mut length,
        )
    })?;
    if on == 0 {
        return Err(wrong());
    }
    Ok(u32::try_from(address.sll_ifindex).ok())
}

/// A program that accepts frames of one VLAN of 802.1Q, whether or not the kernel has taken the tag out.
pub fn vlan_filter(vlan: u16) -> [Instruction; 13] {
    let id = u32::from(vlan);
    let extension = |field: u32| FIRST_EXTENSION.wrapping_add(field);
    [
        op(LOAD_BYTE, 0, 0, extension(EXTENSION_TAG_PRESENT)),
        op(JUMP_IF_EQUAL, 0, 4, 1),
        op(LOAD_HALF, 0, 0, extension(EXTENSION_TAG_PROTOCOL)),
        op(JUMP_IF_EQUAL, 0, 8, DOT1Q),
        op(LOAD_HALF, 0, 0, extension(EXTENSION_TAG)),
        op(JUMP_ALWAYS, 0, 0, 3),
        op(LOAD_HALF, 0, 0, 12),
        op(JUMP_IF_EQUAL, 0, 4, DOT1Q),
        op(LOAD_HALF, 0, 0, 14),
        op(AND, 0, 0, 0xfff),
        op(JUMP_IF_EQUAL, 0, 1, id),
        op(RETURN, 0, 0, WHOLE_FRAME),
        NOTHING,
    ]
}

/// The program, for frames of this interface alone.
fn tied(interface: u32, program: &[Instruction]) -> Vec<Instruction> {
    let mut whole = vec![
        op(LOAD_WORD, 0, 0, FIRST_EXTENSION.wrapping_add(EXTENSION_INTERFACE)),
        op(JUMP_IF_EQUAL, 1, 0, interface),
        NOTHING,
    ];
    if program.is_empty() {
        whole.push(op(RETURN, 0, 0, WHOLE_FRAME));
    } else {
        whole.extend_from_slice(program);
    }
    whole
}

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

// Operations and extensions of linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const FIRST_EXTENSION: u32 = 0xffff_f000;
const EXTENSION_INTERFACE: u32 = 8;
const EXTENSION_TAG: u32 = 44;
const EXTENSION_TAG_PRESENT: u32 = 48;
const EXTENSION_TAG_PROTOCOL: u32 = 60;

const DOT1Q: u32 = 0x8100;

/// No frame is longer.
const WHOLE_FRAME: u32 = 0x4_0000;

/// Accepts no byte of a frame.
const NOTHING: Instruction = op(RETURN, 0, 0, 0);

fn attach_filter(socket: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> = program
        .iter()
        .map(|op| libc::sock_filter {
            code: op.code,
            jt: op.jt,
            jf: op.jf,
            k: op.k,
        })
        .collect();
    // `code` outlives the call, in which the kernel reads it.
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).map_err(io::Error::other)?,
        filter: code.as_mut_ptr(),
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// What came with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Aside {
    /// The virtio header.
    pub header: [u8; VNET_HEADER_BYTES],
    /// The tag the kernel has taken out: protocol and control information.
    pub tag: Option<(u16, u16)>,
    /// Frames the kernel has lost before this one because the socket's queue was full.
    pub overruns: u32,
}

/// Receives as many frames as are there, at most a batch, and what came with each. Never waits.
///
/// # Errors
/// As recvmmsg(2); `WouldBlock` if there is nothing, `ENETDOWN` once when the interface goes down.
pub fn receive(
    socket: BorrowedFd<'_>,
    batch: &mut Batch,
    asides: &mut [Aside; BATCH_FRAMES],
) -> io::Result<usize> {
    batch.clear();
    let mut parts = [[EMPTY_IOVEC; 2]; BATCH_FRAMES];
    let mut count = 0;
    for ((part, buffer), aside) in parts.iter_mut().zip(batch.buffers_mut()).zip(asides.iter_mut()) {
        *part = [iovec(&mut aside.header), iovec(buffer)];
        count += 1;
    }
    let mut controls = [Controls::EMPTY; BATCH_FRAMES];
    let mut messages = messages(&mut parts[..count]);
    for (message, control) in messages.iter_mut().zip(&mut controls) {
        message.msg_hdr.msg_control = (&raw mut *control).cast();
        message.msg_hdr.msg_controllen = CONTROL_BYTES;
    }
    // SAFETY: each message points at a header of `asides`, a whole buffer of `batch` and an aligned control buffer of the
    // size it says, all borrowed mutably and disjoint.
    let received = unsafe { receive_messages(socket, &mut messages[..count], libc::MSG_DONTWAIT) }?;
    for ((aside, message), control) in asides.iter_mut().zip(&messages[..received]).zip(&controls) {
        control.read(message.msg_hdr.msg_controllen, aside);
    }
    batch.filled(lengths(&messages[..received], VNET_HEADER_BYTES));
    Ok(received)
}

/// Sends the frames of `set` in order, each behind its virtio header, with `tag` (a whole VLAN tag) behind the addresses
/// if there is one; returns how many went out before the interface refused. Never waits.
///
/// # Errors
/// As sendmmsg(2) for the first frame.
pub fn send(socket: BorrowedFd<'_>, batch: &Batch, set: FrameSet, tag: Option<[u8; 4]>) -> io::Result<usize> {
    let mut headers = [[0; VNET_HEADER_BYTES]; BATCH_FRAMES];
    let shift = tag.map_or(0, |_| 4);
    let tag = tag.as_ref().map_or(EMPTY_IOVEC, |tag| constant(tag));
    let mut parts = [[EMPTY_IOVEC; 4]; BATCH_FRAMES];
    let mut count = 0;
    for ((part, header), index) in parts.iter_mut().zip(&mut headers).zip(set.iter()) {
        let frame = batch.frame(index);
        let (addresses, rest) = frame.split_at(ADDRESSES.min(frame.len()));
        *header = shifted(batch.work(index).header(), shift);
        *part = [constant(header), constant(addresses), tag, constant(rest)];
        count += 1;
    }
    let mut messages = messages(&mut parts[..count]);
    // SAFETY: each message points at a header, two parts of a frame of `batch` and the tag, which all outlive the call.
    unsafe { send_messages(socket, &mut messages[..count]) }
}

/// Bytes of the two addresses in front of a frame.
const ADDRESSES: usize = 12;

/// A virtio header for the same frame with so many more, or fewer, bytes behind its addresses.
pub fn shifted(mut header: [u8; VNET_HEADER_BYTES], bytes: i16) -> [u8; VNET_HEADER_BYTES] {
    // `hdr_len` and `csum_start`, where they say something.
    for at in [2, 6] {
        let word = u16::from_ne_bytes([header[at], header[at + 1]]);
        if word > 0 {
            header[at..at + 2].copy_from_slice(&word.saturating_add_signed(bytes).to_ne_bytes());
        }
    }
    header
}

/// Room for two control messages: `SO_RXQ_OVFL` of four bytes and `struct tpacket_auxdata` of twenty, each behind its
/// header and in multiples of eight.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Controls([u8; CONTROL_BYTES]);

const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();
const CONTROL_BYTES: usize = 2 * CONTROL_HEADER + 8 + size_of::<libc::tpacket_auxdata>().next_multiple_of(8);

const _: () = assert!(CONTROL_HEADER == 16 && size_of::<libc::tpacket_auxdata>() == 20);
const _: () = assert!(std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci) == 16);

impl Controls {
    const EMPTY: Self = Self([0; CONTROL_BYTES]);

    /// Reads what the kernel has put there: so many bytes.
    fn read(&self, filled: usize, aside: &mut Aside) {
        (aside.tag, aside.overruns) = (None, 0);
        let mut rest = &self.0[..filled.min(CONTROL_BYTES)];
        while rest.len() >= CONTROL_HEADER {
            let length = usize::from_ne_bytes(word(&rest[..8]));
            let (level, kind) = (
                i32::from_ne_bytes(word(&rest[8..12])),
                i32::from_ne_bytes(word(&rest[12..16])),
            );
            let Some(data) = rest.get(CONTROL_HEADER..length) else {
                return;
            };
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if data.len() >= 4 => {
                    aside.overruns = u32::from_ne_bytes(word(&data[..4]));
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) if data.len() >= 20 => {
                    let status = u32::from_ne_bytes(word(&data[..4]));
                    let [control, protocol] = [16, 18].map(|at| u16::from_ne_bytes(word(&data[at..at + 2])));
                    aside.tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then_some((protocol, control));
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

/// The bytes of a field.
fn word<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("as many as the field has")
}

fn link_address(index: i32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("a small number"),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// setsockopt(2) with one plain value.
fn set<T>(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `T`'s size from a `T` that outlives the call; the callers pass the type the option has.
    check(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_u32::<T>(),
        )
    })
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small type")
}

fn check(result: libc::c_int) -> io::Result<()> {
    count_of(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_moves_with_its_frame() {
        let header = |words: [u16; 4]| {
            let mut bytes = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
            for (at, word) in words.into_iter().enumerate() {
                bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
            }
            bytes
        };
        assert_eq!(shifted(header([54, 1448, 34, 16]), 4), header([58, 1448, 38, 16]));
        assert_eq!(
            shifted(header([58, 1448, 38, 16]), -4),
            header([54, 1448, 34, 16])
        );
        assert_eq!(shifted(header([0, 0, 0, 0]), 4), header([0, 0, 0, 0]));
    }

    #[test]
    fn programs_end_in_bounds() {
        for program in [vlan_filter(5).to_vec(), tied(7, &[]), tied(7, &vlan_filter(5))] {
            for (at, op) in program.iter().enumerate() {
                let left = program.len() - at - 1;
                if op.code == JUMP_IF_EQUAL {
                    assert!(usize::from(op.jt.max(op.jf)) < left, "{at}: {op:?}");
                }
            }
            assert_eq!(program.last().map(|op| op.code), Some(RETURN));
        }
    }
}

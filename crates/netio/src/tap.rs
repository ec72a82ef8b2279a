//! Tap devices through `/dev/net/tun`: create, attach, persist, owner, group, offloads.
//!
//! A device lives as long as its descriptor unless it is made persistent. Its owner (or a member of its group) can
//! attach a persistent device without any privilege; making one needs `CAP_NET_ADMIN`. This module never makes or
//! changes the node `/dev/net/tun`, addresses or the link state.
//!
//! The kernel's side is documented in `Documentation/networking/tuntap.rst`; constants are those of
//! `include/uapi/linux/if_tun.h`.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Longest interface name, in bytes: `IFNAMSIZ` less the final NUL.
pub const LONGEST_IF_NAME: usize = libc::IFNAMSIZ - 1;

/// The name of a network interface: 1 to 15 visible bytes without `/`, and neither `.` nor `..`.
///
/// These are the kernel's rules (`dev_valid_name`) and a little more: control characters and `%`, which the kernel
/// would expand to a number, are refused too.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not the name of a network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IfNameError {
    /// The text is empty.
    Empty,
    /// The text has more than 15 bytes. The kernel would cut it without a word.
    TooLong(String),
    /// The text has a character that an interface name cannot have.
    Character(String, char),
    /// The text is `.` or `..`.
    Reserved(String),
}

impl fmt::Display for IfNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "an interface name cannot be empty"),
            Self::TooLong(text) => write!(
                f,
                "interface name '{text}' is longer than {LONGEST_IF_NAME} bytes"
            ),
            Self::Character(text, c) => write!(
                f,
                "interface name '{}' contains {c:?}: blanks, '/', ':' and '%' are not allowed",
                text.escape_debug()
            ),
            Self::Reserved(text) => write!(f, "'{text}' cannot be an interface name"),
        }
    }
}

impl std::error::Error for IfNameError {}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(IfNameError::Empty);
        }
        if text.len() > LONGEST_IF_NAME {
            return Err(IfNameError::TooLong(text.to_owned()));
        }
        let unfit = |c: &char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
        if let Some(c) = text.chars().find(unfit) {
            return Err(IfNameError::Character(text.to_owned(), c));
        }
        if matches!(text, "." | "..") {
            return Err(IfNameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for IfName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<OsStr> for IfName {
    fn as_ref(&self) -> &OsStr {
        OsStr::new(&self.0)
    }
}

/// How a tap is opened. The default is one queue of bare Ethernet frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapFlags {
    /// Each frame is preceded by a `virtio_net_hdr`; may be chosen anew at every open.
    pub vnet_hdr: bool,
    /// Several descriptors may attach; must be the same as when the device was made.
    pub multi_queue: bool,
    /// Fail with `EBUSY` if the device exists: make it, never attach it.
    pub exclusive: bool,
}

/// Offloads the reader and writer of a tap undertakes to handle (`TUN_F_*`).
///
/// All of them need `vnet_hdr`; segmentation needs `checksum` too, else the kernel answers `EINVAL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// Frames may come with a partial checksum.
    pub checksum: bool,
    /// TCP over IPv4 may come unsegmented.
    pub tso4: bool,
    /// TCP over IPv6 may come unsegmented.
    pub tso6: bool,
    /// UDP may come unsegmented (kernels from 6.2).
    pub uso: bool,
}

impl Offload {
    const fn bits(self) -> libc::c_uint {
        (if self.checksum { libc::TUN_F_CSUM } else { 0 })
            | (if self.tso4 { libc::TUN_F_TSO4 } else { 0 })
            | (if self.tso6 { libc::TUN_F_TSO6 } else { 0 })
            | (if self.uso {
                libc::TUN_F_USO4 | libc::TUN_F_USO6
            } else {
                0
            })
    }
}

/// The operations on a tap's descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Tap;

impl Tap {
    /// Opens the tap `name`, making it if the caller may and it does not exist yet.
    ///
    /// The descriptor is non-blocking and close-on-exec; a read takes one frame, a write sends one (preceded by a
    /// virtio header if so asked). The kernel's name for the device comes back with it.
    ///
    /// # Errors
    /// `EPERM` if the device is another user's or would have to be made without the right to, `EBUSY` if it is in
    /// use, `EINVAL` if it was made with other queues or is no tap, and whatever opening `/dev/net/tun` gives.
    pub fn open(name: &IfName, flags: TapFlags) -> io::Result<(OwnedFd, String)> {
        Self::open_raw(name.as_str(), flags)
    }

    /// Opens the tap `name` for frames behind virtio headers of 10 bytes, with as much offload as the kernel has. Of a
    /// device made for several queues, one is taken.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open_offloaded(name: &IfName) -> io::Result<OwnedFd> {
        let open = |multi_queue| {
            let flags = TapFlags {
                vnet_hdr: true,
                multi_queue,
                exclusive: false,
            };
            Self::open(name, flags)
        };
        let (device, _) = match open(false) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(true)?,
            result => result?,
        };
        Self::set_vnet_hdr_len(&device, 10)?;
        let all = Offload {
            checksum: true,
            tso4: true,
            tso6: true,
            uso: true,
        };
        // UDP is cut by kernels from 6.2 on.
        for offload in [all, Offload { uso: false, ..all }] {
            if Self::set_offload(&device, offload).is_ok() {
                break;
            }
        }
        Ok(device)
    }

    /// Makes sure that a descriptor from elsewhere is a tap's as [`Tap::open_offloaded`] opens it; it is non-blocking
    /// from then on.
    ///
    /// # Errors
    /// `ENOTTY` or the like for what is no tap, `InvalidInput` for a tap without virtio headers of 10 bytes.
    pub fn check_offloaded(fd: impl AsFd) -> io::Result<()> {
        let fd = fd.as_fd();
        let mut request = Request::new("", 0);
        let mut bytes: libc::c_int = 0;
        // SAFETY: TUNGETIFF writes one `struct ifreq`, whose size and layout `Request` has; it outlives the call. A
        // descriptor of another kind knows no such request.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETVNETHDRSZ writes one int, which outlives the call; the descriptor has just proved a tun's.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut bytes) })?;
        let wanted = libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI;
        if libc::c_int::from(request.flags) & wanted != wanted || bytes != 10 {
            let why = "it is no tap with virtio headers of 10 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(())
    }

    /// Makes a new tap with the first free name `tapN`.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn create_numbered(flags: TapFlags) -> io::Result<(OwnedFd, String)> {
        Self::open_raw("tap%d", flags)
    }

    fn open_raw(name: &str, flags: TapFlags) -> io::Result<(OwnedFd, String)> {
        let fd = open(
            "/dev/net/tun",
            OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut bits = libc::IFF_TAP | libc::IFF_NO_PI;
        for (wanted, flag) in [
            (flags.vnet_hdr, libc::IFF_VNET_HDR),
            (flags.multi_queue, libc::IFF_MULTI_QUEUE),
            (flags.exclusive, libc::IFF_TUN_EXCL),
        ] {
            if wanted {
                bits |= flag;
            }
        }
        let mut request = Request::new(name, bits);
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; `Request` has its size and layout (asserted below),
        // any bytes are a valid `Request`, and it outlives the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok((fd, request.name()))
    }

    /// Makes the device outlive its descriptors, or no longer.
    ///
    /// # Errors
    /// What the kernel answers; `EBADFD` if the device is gone.
    pub fn set_persist(fd: impl AsFd, persistent: bool) -> io::Result<()> {
        set_by_value(fd.as_fd(), libc::TUNSETPERSIST, u32::from(persistent))
    }

    /// Gives the device to a user, who may then attach it without privilege.
    ///
    /// # Errors
    /// `EINVAL` if the caller's user namespace does not know the user.
    pub fn set_owner(fd: impl AsFd, uid: u32) -> io::Result<()> {
        set_by_value(fd.as_fd(), libc::TUNSETOWNER, uid)
    }

    /// Lets the members of a group attach the device.
    ///
    /// # Errors
    /// `EINVAL` if the caller's user namespace does not know the group.
    pub fn set_group(fd: impl AsFd, gid: u32) -> io::Result<()> {
        set_by_value(fd.as_fd(), libc::TUNSETGROUP, gid)
    }

    /// Declares which offloads the descriptor's user handles; the kernel segments and checksums the rest itself.
    ///
    /// # Errors
    /// `EINVAL` if the kernel does not know one of them, or segmentation is asked without checksums.
    pub fn set_offload(fd: impl AsFd, offload: Offload) -> io::Result<()> {
        set_by_value(fd.as_fd(), libc::TUNSETOFFLOAD, offload.bits())
    }

    /// Sets how many bytes of virtio header precede each frame (10, or 12 with the count of merged buffers).
    ///
    /// # Errors
    /// `EINVAL` for fewer than 10 bytes.
    pub fn set_vnet_hdr_len(fd: impl AsFd, bytes: u16) -> io::Result<()> {
        let bytes = libc::c_int::from(bytes);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
    }
}

/// One of the requests that take a number in place of a pointer.
fn set_by_value(fd: BorrowedFd<'_>, request: libc::Ioctl, value: u32) -> io::Result<()> {
    // SAFETY: the callers pass only requests (TUNSETPERSIST, -OWNER, -GROUP, -OFFLOAD) that the kernel takes by value:
    // no memory of ours is read or written.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(value)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `struct ifreq` as TUNSETIFF uses it: the name, the flags, and the rest of the union untouched.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - 2],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
const _: () = assert!(std::mem::offset_of!(Request, flags) == std::mem::offset_of!(libc::ifreq, ifr_ifru));

impl Request {
    fn new(name: &str, flags: libc::c_int) -> Self {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            flags: u16::try_from(flags).expect("every IFF_ flag of a tap is within 16 bits"),
            rest: [0; size_of::<libc::ifreq>() - libc::IFNAMSIZ - 2],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&b| b == 0).unwrap_or(libc::IFNAMSIZ);
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_takes_are_taken() {
        for text in ["tap0", "nk_tap_r1", "eth0.5", "a", "123456789012345", "ÖPNV"] {
            assert_eq!(text.parse::<IfName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_the_kernel_refuses_or_changes_are_refused() {
        assert_eq!("".parse::<IfName>(), Err(IfNameError::Empty));
        assert!(matches!(
            "1234567890123456".parse::<IfName>(),
            Err(IfNameError::TooLong(_))
        ));
        for (text, c) in [
            ("a/b", '/'),
            ("a b", ' '),
            ("tap%d", '%'),
            ("a:1", ':'),
            ("a\0", '\0'),
            ("a\n", '\n'),
        ] {
            assert_eq!(
                text.parse::<IfName>(),
                Err(IfNameError::Character(text.to_owned(), c))
            );
        }
        for text in [".", ".."] {
            assert!(matches!(text.parse::<IfName>(), Err(IfNameError::Reserved(_))));
        }
    }

    #[test]
    fn offloads_are_the_kernels_bits() {
        assert_eq!(Offload::default().bits(), 0);
        let all = Offload {
            checksum: true,
            tso4: true,
            tso6: true,
            uso: true,
        };
        assert_eq!(all.bits(), 0x67);
    }

    #[test]
    fn a_namespace_makes_attaches_and_frees_a_tap() {
        // A thread of its own, because unshare(2) moves the calling thread for good.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let name: IfName = "nk_tap_test".parse().unwrap();
            let flags = TapFlags {
                vnet_hdr: true,
                ..TapFlags::default()
            };
            let (fd, kernel_name) = Tap::open(&name, flags).unwrap();
            assert_eq!(kernel_name, "nk_tap_test");
            Tap::set_persist(&fd, true).unwrap();
            Tap::set_owner(&fd, 1234).unwrap();
            Tap::set_group(&fd, 1234).unwrap();
            Tap::set_vnet_hdr_len(&fd, 12).unwrap();
            let offload = Offload {
                checksum: true,
                tso4: true,
                tso6: true,
                uso: false,
            };
            Tap::set_offload(&fd, offload).unwrap();
            let without_checksum = Offload {
                checksum: false,
                ..offload
            };
            let error = Tap::set_offload(&fd, without_checksum).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));

            let busy = Tap::open(&name, TapFlags::default()).unwrap_err();
            assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
            drop(fd);
            let (fd, _) = Tap::open(&name, TapFlags::default()).unwrap();
            Tap::set_persist(&fd, false).unwrap();
            drop(fd);
            let exclusive = TapFlags {
                exclusive: true,
                ..TapFlags::default()
            };
            Tap::open(&name, exclusive).unwrap();

            let other: IfName = "nk_other".parse().unwrap();
            let device = Tap::open_offloaded(&other).unwrap();
            Tap::check_offloaded(&device).unwrap();
            let (plain, _) = Tap::open(&"nk_plain".parse().unwrap(), TapFlags::default()).unwrap();
            let error = Tap::check_offloaded(&plain).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(Tap::check_offloaded(std::io::stdin()).is_err());

            let (_tap0, first) = Tap::create_numbered(TapFlags::default()).unwrap();
            assert_eq!(first, "tap0");
        })
        .join()
        .unwrap();
    }
}

//! Memory that another process shares with us by descriptors, and may take away at any time.
//!
//! A process that shortens a file we have mapped turns our next access into a SIGBUS. Sealing the file
//! (`F_SEAL_SHRINK`) would prevent that, but UML maps unlinked files that cannot be sealed; copying by pread(2) or
//! process_vm_readv(2) would cost a system call for each of a frame's pieces. So there is a handler: it puts memory of
//! our own in the place of the whole mapping, marks it as broken, and lets the access go on. Whoever uses the mapping
//! asks [`Memory::is_whole`] afterwards and gives it up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use virtio::{Memory, OutOfRange};

use crate::foreign;

/// Most regions of one guest: as many as a vhost-user message has.
pub const REGIONS: usize = 8;

/// Most memory of one guest, in bytes.
const LARGEST: u64 = 1 << 36;

/// Mappings of all guests together. With [`LARGEST`], they leave half of the address space free.
const MAPPINGS: usize = 1024;

/// A part of a guest's memory, as the guest describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where the guest has it.
    pub guest: u64,
    /// Where the process has it that runs the guest.
    pub user: u64,
    /// Its length.
    pub bytes: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// The memory of a guest. It is unmapped when this is dropped.
#[derive(Debug)]
pub struct SharedMemory {
    mappings: Vec<Mapping>,
}

impl SharedMemory {
    /// Maps the regions of a guest, each from its file.
    ///
    /// # Errors
    /// `InvalidInput` if the regions cannot be: empty, overlapping, too large, beyond the end of their file, or in
    /// something that is no ordinary file; else as mmap(2).
    pub fn map(regions: &[Region], files: Vec<OwnedFd>) -> io::Result<Self> {
        if regions.is_empty() || regions.len() > REGIONS || regions.len() != files.len() {
            return Err(invalid(
                "a guest has 1 to 8 regions of memory, with a file for each",
            ));
        }
        let mut total = 0_u64;
        for (i, region) in regions.iter().enumerate() {
            let end = region.guest.checked_add(region.bytes);
            let overlaps = |other: &Region| {
                end.is_none_or(|end| other.guest < end)
                    && region.guest < other.guest.saturating_add(other.bytes)
            };
            let known = end.is_some() && region.user.checked_add(region.bytes).is_some();
            if !known || region.bytes == 0 || regions[..i].iter().any(overlaps) {
                return Err(invalid("regions of memory are empty or overlap"));
            }
            total = total.saturating_add(region.bytes);
        }
        if total > LARGEST {
            return Err(invalid("a guest has at most 64 GiB of memory"));
        }
        let maps = regions.iter().zip(files);
        let mappings = maps.map(|(region, file)| Mapping::new(*region, &File::from(file)));
        Ok(Self {
            mappings: mappings.collect::<io::Result<_>>()?,
        })
    }

    /// The guest's address of what the process that runs it has at `user`.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        let mut regions = self.mappings.iter().map(|mapping| mapping.region);
        let region = regions.find(|region| user >= region.user && user - region.user < region.bytes)?;
        Some(region.guest + (user - region.user))
    }

    /// Where a range is for us. It stays there for as long as `self` lives.
    #[inline]
    fn place(&self, address: u64, bytes: u64) -> Result<*mut u8, OutOfRange> {
        self.mappings
            .iter()
            .find_map(|mapping| mapping.place(address, bytes))
            .ok_or(OutOfRange(address))
    }

    #[inline]
    fn word(&self, address: u64) -> Result<&AtomicU16, OutOfRange> {
        let place = self.place(address, 2)?.cast::<u16>();
        if !place.is_aligned() {
            return Err(OutOfRange(address));
        }
        // SAFETY: two bytes at `place` are mapped for as long as `self` lives, and aligned. Other processes use them
        // as they like; this one only by atomic operations or by memcpy, never through a reference of its own.
        Ok(unsafe { AtomicU16::from_ptr(place) })
    }
}

impl Memory for SharedMemory {
    #[inline]
    fn has(&self, address: u64, bytes: u64) -> bool {
        self.place(address, bytes).is_ok()
    }

    #[inline]
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        let from = self.place(address, into.len() as u64)?;
        // SAFETY: so many bytes at `from` are mapped, and `into` is memory of our own, borrowed for us alone.
        unsafe { foreign::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    #[inline]
    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let into = self.place(address, from.len() as u64)?;
        // SAFETY: so many bytes at `into` are mapped, and `from` is memory of our own, which nobody changes meanwhile.
        unsafe { foreign::copy(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    fn copy_to(&self, from: u64, other: &Self, into: u64, bytes: usize) -> Result<(), OutOfRange> {
        let from = self.place(from, bytes as u64)?;
        let into = other.place(into, bytes as u64)?;
        // SAFETY: so many bytes are mapped at both places, both in memory of guests.
        unsafe { foreign::copy(from, into, bytes) };
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.mappings
            .iter()
            .all(|mapping| !SLOTS[mapping.slot].broken.load(Ordering::Acquire))
    }

    #[inline]
    fn prefetch(&self, address: u64, bytes: usize, to_write: bool) {
        if let Ok(place) = self.place(address, bytes as u64) {
            foreign::prefetch(place, bytes, to_write);
        }
    }

    #[inline]
    fn load(&self, address: u64) -> Result<u16, OutOfRange> {
        Ok(u16::from_le(self.word(address)?.load(Ordering::Acquire)))
    }

    #[inline]
    fn store(&self, address: u64, value: u16) -> Result<(), OutOfRange> {
        self.word(address)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }
}

/// One region, mapped.
#[derive(Debug)]
struct Mapping {
    region: Region,
    /// Where the region begins. An address, as what is there is never referred to.
    start: usize,
    /// Where it stands in [`SLOTS`], with all pages of it.
    slot: usize,
}

impl Mapping {
    fn new(region: Region, file: &File) -> io::Result<Self> {
        check(&region, file)?;
        catch_sigbus()?;
        let page = page_bytes();
        // The mapping begins with the page the region begins in.
        let before = region.offset % page;
        let bytes = usize::try_from(before + region.bytes).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(region.offset - before).map_err(io::Error::other)?;
        let slot = SLOTS.iter().position(Slot::take);
        let slot = slot.ok_or_else(|| io::Error::other("too many guests share their memory"))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place the kernel chooses touches nothing that is there; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            SLOTS[slot].release();
            return Err(error);
        }
        let first = start as usize;
        SLOTS[slot].set(first, bytes);
        Ok(Self {
            region,
            start: first + usize::try_from(before).expect("less than a page"),
            slot,
        })
    }

    #[inline]
    fn place(&self, address: u64, bytes: u64) -> Option<*mut u8> {
        let offset = address.checked_sub(self.region.guest)?;
        let fits = offset <= self.region.bytes && bytes <= self.region.bytes - offset;
        fits.then(|| std::ptr::with_exposed_provenance_mut(self.start + usize::try_from(offset).unwrap_or(0)))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let slot = &SLOTS[self.slot];
        let (first, bytes) = slot.forget();
        // SAFETY: the mapping was made by `new` and is used by nobody else; nothing refers to it any more.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(first), bytes) };
        slot.release();
    }
}

/// Only files whose pages come at once: one of a file system in user space could keep us waiting for ever.
fn check(region: &Region, file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || fstatfs(file)?.filesystem_type() == FUSE_SUPER_MAGIC {
        return Err(invalid(
            "the memory of a guest is in something that is no ordinary file",
        ));
    }
    match region.offset.checked_add(region.bytes) {
        Some(end) if end <= metadata.len() => Ok(()),
        _ => Err(invalid("a region of memory goes beyond the end of its file")),
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn page_bytes() -> u64 {
    static PAGE: OnceLock<u64> = OnceLock::new();
    *PAGE.get_or_init(|| {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        bytes
            .ok()
            .flatten()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(4096)
    })
}

/// A mapping as the signal handler finds it: nothing but atomics, as it may come at any time.
struct Slot {
    taken: AtomicBool,
    /// 0 while there is no mapping.
    first: AtomicUsize,
    bytes: AtomicUsize,
    broken: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            first: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Takes the slot if it is free.
    fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    /// Nobody uses the mapping before this returns.
    fn set(&self, first: usize, bytes: usize) {
        self.broken.store(false, Ordering::Release);
        self.bytes.store(bytes, Ordering::Release);
        self.first.store(first, Ordering::Release);
    }

    /// Nobody uses the mapping any more, which is about to be undone.
    fn forget(&self) -> (usize, usize) {
        let first = self.first.swap(0, Ordering::AcqRel);
        (first, self.bytes.swap(0, Ordering::AcqRel))
    }

    /// Others may have the slot.
    fn release(&self) {
        self.taken.store(false, Ordering::Release);
    }

    fn has(&self, address: usize) -> bool {
        let first = self.first.load(Ordering::Acquire);
        first != 0 && address >= first && address - first < self.bytes.load(Ordering::Acquire)
    }
}

static SLOTS: [Slot; MAPPINGS] = [const { Slot::new() }; MAPPINGS];

/// What is done about a SIGBUS that is not ours.
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once.
fn catch_sigbus() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: sigaction consists of integers and a function's address, for which all zeros is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: as above.
    let mut former: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both structures outlive the calls, and the handler does only what a signal handler may do. The former
    // action is known before the handler can need it.
    let result = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut former) };
    if result == 0 {
        FORMER.get_or_init(|| former);
    }
    // SAFETY: as above.
    if result != 0 || unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Puts zeros in the place of a mapping that has lost its file, or leaves the signal to whoever had it before.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over a valid structure, which has an address for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(slot) = SLOTS.iter().find(|slot| slot.has(address)) {
        slot.broken.store(true, Ordering::Release);
        let (first, bytes) = (
            slot.first.load(Ordering::Acquire),
            slot.bytes.load(Ordering::Acquire),
        );
        // SAFETY: the mapping in this place is ours, is in use by the interrupted code alone, and stays mapped; errno is
        // given back as it was found.
        let replaced = unsafe {
            let errno = *libc::__errno_location();
            let place = libc::mmap(
                std::ptr::with_exposed_provenance_mut(first),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            );
            *libc::__errno_location() = errno;
            place != libc::MAP_FAILED
        };
        if replaced {
            return;
        }
    }
    // The access is repeated and meets the former action.
    if let Some(former) = FORMER.get() {
        // SAFETY: the structure is what sigaction(2) has told us before.
        unsafe { libc::sigaction(libc::SIGBUS, former, std::ptr::null_mut()) };
    }
}

/// A descriptor by which a guest is called: an eventfd, or a stream socket as UML has it. Calling never waits.
#[derive(Debug)]
pub struct Call {
    fd: OwnedFd,
    is_socket: bool,
}

impl Call {
    /// Takes a descriptor that came with a message.
    ///
    /// # Errors
    /// `InvalidInput` if it is neither of the two.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        use nix::sys::stat::{SFlag, fstat};
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits());
        let is_socket = kind == SFlag::S_IFSOCK;
        if !is_socket && !is_eventfd(fd.as_fd()) {
            return Err(invalid("a guest is called by an eventfd or a socket"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, is_socket })
    }

    /// Calls the guest. If it has not heard the last call yet, that one will do.
    pub fn ring(&self) {
        let one = 1_u64.to_ne_bytes();
        if self.is_socket {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: eight bytes that outlive the call and are only read. What comes of it is of no interest: a full
            // queue is a call that waits, and a guest that is gone shows it elsewhere.
            unsafe { libc::send(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len(), flags) };
        } else {
            let _ = nix::unistd::write(&self.fd, &one);
        }
    }
}

/// True for a descriptor a guest can kick us by.
pub fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn file(bytes: u64) -> File {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    fn map(file: &File, region: Region) -> io::Result<SharedMemory> {
        SharedMemory::map(&[region], vec![file.try_clone()?.into()])
    }

    const REGION: Region = Region {
        guest: 0x10_0000,
        user: 0x7f00_0000_0000,
        bytes: 0x2000,
        offset: 0x1800,
    };

    #[test]
    fn what_the_guest_writes_is_read_and_the_other_way_round() {
        let file = file(0x4000);
        let memory = map(&file, REGION).unwrap();
        file.write_all_at(b"hello", 0x1800).unwrap();
        file.write_all_at(&[0x34, 0x12], 0x37fe).unwrap();
        let mut bytes = [0; 5];
        memory.read(0x10_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(memory.load(0x10_1ffe), Ok(0x1234));
        memory.write(0x10_0ffe, b"there").unwrap();
        memory.store(0x10_0010, 7).unwrap();
        file.read_exact_at(&mut bytes, 0x27fe).unwrap();
        assert_eq!(&bytes, b"there");
        assert_eq!(memory.load(0x10_0010), Ok(7));
        assert!(memory.is_whole());
    }

    #[test]
    fn nothing_outside_is_reached() {
        let file = file(0x4000);
        let memory = map(&file, REGION).unwrap();
        for (address, bytes) in [
            (0x10_0000, 0x2001),
            (0x0f_ffff, 1),
            (0x10_1fff, 2),
            (0x10_2001, 0),
            (u64::MAX, 2),
            (0x10_0001, u64::MAX),
        ] {
            assert!(!memory.has(address, bytes), "{address:#x}, {bytes} bytes");
        }
        assert!(memory.has(0x10_0000, 0x2000) && memory.has(0x10_2000, 0));
        assert_eq!(memory.load(0x10_0001), Err(OutOfRange(0x10_0001)));
        assert_eq!(memory.read(0x10_1fff, &mut [0; 2]), Err(OutOfRange(0x10_1fff)));
        assert_eq!(memory.guest_address(0x7f00_0000_1fff), Some(0x10_1fff));
        assert_eq!(memory.guest_address(0x7f00_0000_2000), None);
        assert_eq!(memory.guest_address(0x6fff_ffff_ffff), None);
    }

    #[test]
    fn a_file_that_is_cut_short_breaks_its_mapping_alone() {
        let (cut, other) = (file(0x4000), file(0x4000));
        let (broken, whole) = (map(&cut, REGION).unwrap(), map(&other, REGION).unwrap());
        broken.write(0x10_0000, &[7; 0x2000]).unwrap();
        whole.write(0x10_0000, &[7; 0x2000]).unwrap();
        cut.set_len(0).unwrap();
        assert!(broken.is_whole());
        let mut bytes = [1; 0x2000];
        broken.read(0x10_0000, &mut bytes).unwrap();
        assert!(!broken.is_whole() && bytes.iter().all(|&byte| byte == 0));
        broken.write(0x10_0000, &[7; 0x2000]).unwrap();
        broken.store(0x10_0000, 9).unwrap();
        whole.read(0x10_0000, &mut bytes).unwrap();
        assert!(whole.is_whole() && bytes == [7; 0x2000]);
        // The next mapping in its slot is a new one.
        drop(broken);
        assert!(map(&other, REGION).unwrap().is_whole());
    }

    #[test]
    fn bytes_go_from_one_guest_to_another_as_long_as_both_are_there() {
        let (one, two) = (file(0x4000), file(0x4000));
        let (from, into) = (map(&one, REGION).unwrap(), map(&two, REGION).unwrap());
        one.write_all_at(&[7; 0x800], 0x1800).unwrap();
        from.copy_to(0x10_0000, &into, 0x10_1801, 0x7ff).unwrap();
        let mut bytes = [0; 0x800];
        two.read_exact_at(&mut bytes, 0x3000).unwrap();
        assert!(bytes[0] == 0 && bytes[1..] == [7; 0x7ff]);
        for (place, other, count) in [(0x10_1fff, 0x10_0000, 2), (0x10_0000, 0x10_1fff, 2)] {
            assert_eq!(
                from.copy_to(place, &into, other, count),
                Err(OutOfRange(0x10_1fff))
            );
        }
        // Within a guest, and over itself.
        from.copy_to(0x10_0000, &from, 0x10_0100, 0x800).unwrap();
        assert!(from.is_whole() && into.is_whole());
        one.set_len(0).unwrap();
        from.copy_to(0x10_0000, &into, 0x10_0000, 0x1000).unwrap();
        assert!(!from.is_whole() && into.is_whole());
        let (third, other) = (map(&two, REGION).unwrap(), file(0x4000));
        let cut = map(&other, REGION).unwrap();
        other.set_len(0x1000).unwrap();
        third.copy_to(0x10_0000, &cut, 0x10_0000, 0x1000).unwrap();
        assert!(third.is_whole() && !cut.is_whole());
    }

    #[test]
    fn what_cannot_be_memory_is_refused() {
        let file = file(0x4000);
        let refused = |regions: &[Region]| {
            let files = regions.iter().map(|_| file.try_clone().unwrap().into());
            SharedMemory::map(regions, files.collect())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[]).contains("1 to 8"));
        assert!(refused(&[REGION; 9]).contains("1 to 8"));
        assert!(refused(&[REGION; 2]).contains("overlap"));
        assert!(refused(&[Region { bytes: 0, ..REGION }]).contains("empty"));
        let wraps = Region {
            guest: u64::MAX - 10,
            ..REGION
        };
        assert!(refused(&[wraps]).contains("overlap"));
        assert!(
            refused(&[Region {
                bytes: 0x2801,
                ..REGION
            }])
            .contains("end of its file")
        );
        let huge = Region {
            bytes: LARGEST + 1,
            ..REGION
        };
        assert!(refused(&[huge]).contains("64 GiB"));
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let error = SharedMemory::map(&[REGION], vec![reader]).unwrap_err();
        assert!(error.to_string().contains("no ordinary file"));
    }

    #[test]
    fn a_call_is_heard_and_never_waits() {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        let call = Call::new(event.as_fd().try_clone_to_owned().unwrap()).unwrap();
        call.ring();
        call.ring();
        assert_eq!(event.read().unwrap(), 2);
        event.write(u64::MAX - 1).unwrap();
        call.ring();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let call = Call::new(ours.into()).unwrap();
        for _ in 0..100_000 {
            call.ring();
        }
        drop(theirs);
        call.ring();
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(Call::new(reader).is_err());
    }
}

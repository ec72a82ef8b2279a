//! A front end of vhost-user that keeps to the rules, or does not: a guest without a kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use virtio::ring::Way;
use virtio::{Driver, Layout, Memory, OutOfRange};

use crate::wait;

/// The guest's address of its memory, and the front end's.
pub const GUEST: u64 = 0x1000_0000;
/// The same for the process.
pub const USER: u64 = 0x7000_0000_0000;
/// Bytes of its memory.
pub const MEMORY: u64 = 0x20_0000;

/// Entries of each ring.
pub const SIZE: u16 = 64;

/// Bytes of each buffer.
const BUFFER: usize = 4096;

/// Where the buffers of a ring are.
const BUFFERS: [u64; 2] = [GUEST + 0x8_0000, GUEST + 0x10_0000];

/// A guest's memory in a file, used without mapping it.
#[derive(Debug)]
pub struct Shared(pub File);

impl Shared {
    /// New memory, all zeros.
    ///
    /// # Panics
    /// If there is none.
    pub fn new() -> Self {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memory"));
        file.set_len(MEMORY).expect("memory");
        Self(file)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for Shared {
    fn has(&self, address: u64, bytes: u64) -> bool {
        address >= GUEST && address - GUEST <= MEMORY && bytes <= MEMORY - (address - GUEST)
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        let place = address.wrapping_sub(GUEST);
        self.0.read_exact_at(into, place).map_err(|_| OutOfRange(address))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let place = address.wrapping_sub(GUEST);
        self.0.write_all_at(from, place).map_err(|_| OutOfRange(address))
    }

    fn copy_to(&self, from: u64, other: &Self, into: u64, bytes: usize) -> Result<(), OutOfRange> {
        let mut copy = vec![0; bytes];
        self.read(from, &mut copy)?;
        other.write(into, &copy)
    }

    fn load(&self, address: u64) -> Result<u16, OutOfRange> {
        let mut word = [0; 2];
        self.read(address, &mut word).map(|()| u16::from_le_bytes(word))
    }

    fn store(&self, address: u64, value: u16) -> Result<(), OutOfRange> {
        self.write(address, &value.to_le_bytes())
    }
}

/// A connection, and a network card's two rings in memory of its own.
pub struct FrontEnd {
    stream: UnixStream,
    /// The guest's memory.
    pub memory: Shared,
    /// Where its rings are: to the guest, from the guest.
    pub layouts: [Layout; 2],
    rings: [Driver; 2],
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    header_bytes: usize,
    /// Heads of chains and their buffers.
    buffers: [HashMap<u16, u64>; 2],
}

impl FrontEnd {
    /// Connects, and says nothing yet.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn connect(socket: impl AsRef<Path>) -> Self {
        let stream = UnixStream::connect(socket).expect("the back end listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a time-out");
        let (to_guest, end) = Driver::layout(SIZE, GUEST + 0x1000);
        let (from_guest, _) = Driver::layout(SIZE, end);
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let events = || [event().expect("an eventfd"), event().expect("an eventfd")];
        Self {
            stream,
            memory: Shared::new(),
            layouts: [to_guest, from_guest],
            rings: [Driver::new(to_guest, false), Driver::new(from_guest, false)],
            kicks: events(),
            calls: events(),
            header_bytes: 12,
            buffers: Default::default(),
        }
    }

    /// Connects and sets the card up with these features, up to a running port.
    ///
    /// # Panics
    /// If the back end does not agree.
    pub fn with_card(socket: impl AsRef<Path>, features: u64) -> Self {
        let mut front_end = Self::connect(socket);
        front_end.negotiate(features);
        front_end.share_memory();
        for queue in 0..2 {
            front_end.set_up_queue(queue);
        }
        for queue in 0..2_u32 {
            front_end.acknowledged(18, &words(&[queue, 1]), &[]);
        }
        front_end
    }

    /// Features, as UML negotiates them.
    ///
    /// # Panics
    /// If the back end does not offer them.
    pub fn negotiate(&mut self, features: u64) {
        use virtio::config::Features;
        self.acknowledged(3, &[], &[]);
        let offered = self.answered(1, &[]);
        let offered = u64::from_ne_bytes(offered.try_into().expect("eight bytes"));
        assert_eq!(features & !offered, 0, "{features:#x} of {offered:#x}");
        assert_eq!(self.answered(15, &[]), 0x228_u64.to_ne_bytes());
        self.acknowledged(16, &0x228_u64.to_ne_bytes(), &[]);
        self.acknowledged(2, &features.to_ne_bytes(), &[]);
        let features = Features::new(features).expect("they are offered");
        self.header_bytes = features.header_bytes();
        self.rings = self
            .layouts
            .map(|layout| Driver::new(layout, features.agreed().event_index));
    }

    /// One region, with room for another in the message, as UML has it.
    pub fn share_memory(&mut self) {
        let mut payload = words(&[1, 0]);
        payload.extend(longs(&[GUEST, MEMORY, USER, 0, 0, 0, 0, 0]));
        let fd = self.memory.0.as_raw_fd();
        self.acknowledged(5, &payload, &[fd]);
    }

    /// All about a queue but that it is on.
    pub fn set_up_queue(&mut self, queue: usize) {
        let number = u32::try_from(queue).expect("0 or 1");
        let call = self.calls[queue].as_fd().as_raw_fd();
        self.acknowledged(13, &longs(&[number.into()]), &[call]);
        self.acknowledged(8, &words(&[number, u32::from(SIZE)]), &[]);
        self.acknowledged(10, &words(&[number, 0]), &[]);
        self.acknowledged(9, &self.place(queue), &[]);
        let kick = self.kicks[queue].as_fd().as_raw_fd();
        self.acknowledged(12, &longs(&[number.into()]), &[kick]);
    }

    /// The payload that says where a queue is.
    pub fn place(&self, queue: usize) -> Vec<u8> {
        let layout = self.layouts[queue];
        let mut payload = words(&[u32::try_from(queue).expect("0 or 1"), 0]);
        let places = [layout.descriptors, layout.used, layout.available];
        payload.extend(longs(&places.map(|address| address - GUEST + USER)));
        payload.extend(longs(&[0]));
        payload
    }

    /// Sends a message, whatever becomes of it.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn say(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let size = u32::try_from(payload.len()).expect("a short payload");
        self.say_raw(&[&words(&[request, flags, size])[..], payload].concat(), fds)
    }

    /// Sends bytes, with descriptors.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn say_raw(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(bytes)];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    /// Reads an answer: the payload; nothing if the back end has hung up.
    pub fn hear(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).ok()?;
        let size = u32::from_ne_bytes(header[8..].try_into().expect("four bytes"));
        assert_eq!(header[4..8], 5_u32.to_ne_bytes(), "flags UML would not accept");
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(payload)
    }

    /// A request that has an answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn answered(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.say(request, 1, payload, &[]).expect("the connection stands");
        self.hear().expect("an answer")
    }

    /// A request that is to be acknowledged.
    ///
    /// # Panics
    /// If it is refused.
    pub fn acknowledged(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) {
        self.say(request, 9, payload, fds).expect("the connection stands");
        let answer = self.hear();
        assert_eq!(answer.as_deref(), Some(&[0; 8][..]), "request {request}");
    }

    /// Waits until the back end hangs up.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_closed(&mut self) {
        let mut bytes = [0; 64];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection stays open: {error}"),
            }
        }
    }

    /// Sends a frame with a header of zeros; false if the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let header = vec![0; self.header_bytes];
        self.send_with(&header, frame)
    }

    /// Sends a frame with this header; false if the ring is full.
    ///
    /// # Panics
    /// If the frame is too long for it.
    pub fn send_with(&mut self, header: &[u8], frame: &[u8]) -> bool {
        while let Some((head, _)) = self.rings[1].take(&self.memory).expect("our own memory") {
            self.buffers[1].remove(&head);
        }
        let whole = [header, frame].concat();
        let count = whole.len().div_ceil(BUFFER) as u64;
        let slots = free_slots(&self.buffers[1], count);
        if slots.len() as u64 != count || self.rings[1].free() < slots.len() {
            return false;
        }
        // Buffers of a frame of several are neighbours only by chance: each stands for itself.
        let mut pieces = Vec::new();
        for (&slot, piece) in slots.iter().zip(whole.chunks(BUFFER)) {
            let address = BUFFERS[1] + slot * BUFFER as u64;
            self.memory.write(address, piece).expect("our own memory");
            pieces.push((address, u32::try_from(piece.len()).expect("a buffer")));
        }
        let head = self.rings[1].add(&self.memory, &pieces, Way::FromGuest);
        let head = head.expect("our own memory").expect("there is room");
        self.buffers[1].insert(head, slots.iter().fold(0, |all, slot| all | 1 << slot));
        self.kick_if_wanted(1);
        true
    }

    /// Gives the back end all buffers there are.
    ///
    /// # Panics
    /// If the memory is gone.
    pub fn give_buffers(&mut self) {
        while self.rings[0].free() > 0 {
            let slots = free_slots(&self.buffers[0], 1);
            let address = BUFFERS[0] + slots[0] * BUFFER as u64;
            let bytes = u32::try_from(BUFFER).expect("a page");
            let head = self.rings[0].add(&self.memory, &[(address, bytes)], Way::ToGuest);
            let head = head.expect("our own memory").expect("there is room");
            self.buffers[0].insert(head, 1 << slots[0]);
        }
        self.kick_if_wanted(0);
    }

    /// Takes a frame and its header, if one has come, and gives its buffers again.
    ///
    /// # Panics
    /// If what came is not whole.
    pub fn try_receive(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut bytes = self.take_buffer()?;
        let frame = bytes.split_off(self.header_bytes);
        let mut frame = frame;
        let count = if self.header_bytes == 12 {
            u16::from_le_bytes([bytes[10], bytes[11]])
        } else {
            1
        };
        for _ in 1..count {
            frame.extend(self.take_buffer().expect("all buffers of a frame come together"));
        }
        self.give_buffers();
        Some((bytes, frame))
    }

    /// Waits for a frame.
    ///
    /// # Panics
    /// If none comes.
    pub fn receive(&mut self) -> Vec<u8> {
        wait::until("a frame", || self.try_receive()).1
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let (head, written) = self.rings[0].take(&self.memory).expect("what we gave")?;
        let slot = self.buffers[0]
            .remove(&head)
            .expect("what we gave")
            .trailing_zeros();
        let mut bytes = vec![0; written as usize];
        let address = BUFFERS[0] + u64::from(slot) * BUFFER as u64;
        self.memory.read(address, &mut bytes).expect("our own memory");
        Some(bytes)
    }

    /// Kicks a queue, wanted or not.
    ///
    /// # Panics
    /// If the descriptor is full.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).expect("room for a kick");
    }

    /// Calls heard since the last time, of a queue.
    pub fn calls(&self, queue: usize) -> u64 {
        self.calls[queue].read().unwrap_or(0)
    }

    /// The descriptor of a queue's kicks.
    pub fn kick_fd(&self, queue: usize) -> RawFd {
        self.kicks[queue].as_fd().as_raw_fd()
    }

    fn kick_if_wanted(&mut self, queue: usize) {
        if self.rings[queue].publish(&self.memory).expect("our own memory") {
            self.kick(queue);
        }
    }
}

/// Bits of buffers nobody has.
fn free_slots(taken: &HashMap<u16, u64>, count: u64) -> Vec<u64> {
    let taken = taken.values().fold(0, |all, bits| all | bits);
    let free = (0..64_u64).filter(|slot| taken >> slot & 1 == 0);
    free.take(usize::try_from(count).expect("a few")).collect()
}

/// Words of a payload.
pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Long words of a payload.
pub fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// What the back end's process has open and mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resources {
    /// Descriptors.
    pub fds: usize,
    /// Mappings of guests' memory, that of [`Shared`] or of real kernels.
    pub guests: usize,
    /// All mappings, and what has taken the place of memory that has gone among them.
    pub mappings: usize,
}

/// What the back end's process has open and mapped.
///
/// # Panics
/// If the process is gone.
pub fn resources(pid: nix::unistd::Pid) -> Resources {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .count();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let of_guest = |line: &&str| line.contains("/memfd:guest") || line.contains("/vm_file-");
    Resources {
        fds,
        guests: maps.lines().filter(of_guest).count(),
        mappings: maps.lines().count(),
    }
}

/// A descriptor that is no eventfd.
///
/// # Panics
/// If there is none.
pub fn no_eventfd() -> OwnedFd {
    nix::unistd::pipe().expect("a pipe").0
}

//! A split virtqueue as its device sees it.
//!
//! ```text
//! descriptors   size * { address u64 | length u32 | flags u16 | next u16 }
//! available     flags u16 | index u16 | size * head u16          | used event u16        written by the guest
//! used          flags u16 | index u16 | size * { head u32 | written u32 } | available event u16     written by us
//! ```
//!
//! The guest makes chains of descriptors available; we look at them in order ([`Ring::chain`]), take them
//! ([`Ring::take`]), hand them back in the same order ([`Ring::complete`]), and tell the guest about many of them at once ([`Ring::publish`]).

use std::sync::atomic::{Ordering, fence};

use crate::memory::{Memory, OutOfRange};

/// Most entries of a ring.
pub const LARGEST_RING: u16 = 32_768;

/// Most buffers of one chain: what Linux takes in one vector of a system call, and far more than a frame needs.
pub const LONGEST_CHAIN: usize = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
const USED_BYTES: u64 = 8;

/// So much of a buffer is fetched before it is used: a header and a short frame. Of more, the processor finds the rest.
const BEGINNING: usize = 128;

/// Flags of a descriptor.
mod descriptor {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;
}

/// Set in the available ring: the guest wants no calls. Set in the used ring: we want no kicks.
const QUIET: u16 = 1;

/// Where a ring is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Number of entries.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

/// What guest and device have agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Agreed {
    /// Descriptors may point to tables of descriptors.
    pub indirect: bool,
    /// Kicks and calls are asked for by index.
    pub event_index: bool,
}

/// What is wrong with a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// The number of entries is no power of two, or too large.
    #[error("a ring cannot have {0} entries")]
    Size(u16),
    /// A part of the ring is not aligned as it has to be.
    #[error("a ring is misaligned")]
    Misaligned,
    /// A part of the ring, or a buffer, is elsewhere.
    #[error(transparent)]
    Outside(#[from] OutOfRange),
    /// More chains are available than there are entries.
    #[error("{0} buffers are said to be available at once")]
    Available(u16),
    /// A chain begins beyond the table.
    #[error("there is no descriptor {0}")]
    Head(u16),
    /// A chain goes on beyond the table.
    #[error("there is no next descriptor {0}")]
    Next(u16),
    /// A chain that is longer than its table.
    #[error("a chain of descriptors has no end")]
    Endless,
    /// A table of descriptors that was not agreed on, is within another, or is no table.
    #[error("a descriptor is indirect where it cannot be")]
    Indirect,
    /// A buffer to be written where one to be read belongs, or the other way round.
    #[error("a buffer is for the wrong direction")]
    Direction,
    /// A buffer that cannot hold the header of a frame.
    #[error("a buffer is too short for a header")]
    Short,
}

/// Which way the buffers of a ring go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The device reads them.
    FromGuest,
    /// The device writes them.
    ToGuest,
}

/// One buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its guest address; all of it is in the guest's memory.
    pub address: u64,
    /// Its length.
    pub bytes: u32,
}

/// The buffers of one or more chains.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// In their order, without empty ones.
    pub segments: Vec<Segment>,
    /// Length of all.
    pub bytes: u64,
}

impl Chain {
    /// Forgets the buffers.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.bytes = 0;
    }
}

/// A ring in use.
#[derive(Clone, Debug)]
pub struct Ring {
    layout: Layout,
    way: Way,
    agreed: Agreed,
    /// The next chain to be taken: its place in the available ring, counted for ever.
    next: u16,
    /// Chains handed back, counted for ever.
    used: u16,
    /// As many of them as the guest has been told of.
    published: u16,
    /// The available index when it was last looked at.
    seen: u16,
    /// Kicks are asked for by flag (without [`Agreed::event_index`]).
    listening: bool,
}

impl Ring {
    /// Takes a ring over, from chain number `base` on.
    ///
    /// # Errors
    /// If it is not all in the guest's memory, or its size or place is not what the specification says.
    pub fn new(
        layout: Layout,
        way: Way,
        agreed: Agreed,
        base: u16,
        memory: &impl Memory,
    ) -> Result<Self, RingError> {
        let Layout {
            size,
            descriptors,
            available,
            used,
        } = layout;
        if !size.is_power_of_two() || size > LARGEST_RING {
            return Err(RingError::Size(size));
        }
        if descriptors % 16 != 0 || available % 2 != 0 || used % 4 != 0 {
            return Err(RingError::Misaligned);
        }
        let entries = u64::from(size);
        for (address, bytes) in [
            (descriptors, DESCRIPTOR_BYTES * entries),
            (available, 6 + 2 * entries),
            (used, 6 + USED_BYTES * entries),
        ] {
            if !memory.has(address, bytes) {
                return Err(OutOfRange(address).into());
            }
        }
        // Where we left off, whoever "we" was.
        let done = memory.load(used + 2)?;
        Ok(Self {
            layout,
            way,
            agreed,
            next: base,
            used: done,
            published: done,
            seen: base,
            listening: true,
        })
    }

    /// The next chain to be taken, counted for ever: where another device would go on.
    pub fn position(&self) -> u16 {
        self.next
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// How many chains are available.
    ///
    /// # Errors
    /// If the guest says that there are more than can be.
    pub fn ready(&mut self, memory: &impl Memory) -> Result<u16, RingError> {
        self.seen = memory.load(self.layout.available + 2)?;
        let ready = self.seen.wrapping_sub(self.next);
        if ready > self.layout.size {
            return Err(RingError::Available(ready));
        }
        Ok(ready)
    }

    /// Has the next chains fetched, at most so many: their descriptors and the places they will be handed back at, all at
    /// once, and then the beginnings of all their first buffers. Another processor has just had them, and to wait for one
    /// after the other takes longer than all that is then done with them.
    pub fn prefetch(&self, memory: &impl Memory, chains: usize) {
        let ready = self.seen.wrapping_sub(self.next);
        let chains = u16::try_from(chains).unwrap_or(u16::MAX).min(ready);
        let place = self.used & (self.layout.size - 1);
        let entries = chains.min(self.layout.size - place);
        let used = self.layout.used + 4 + USED_BYTES * u64::from(place);
        memory.prefetch(used, 8 * usize::from(entries), true);
        for ahead in 0..chains {
            if let Ok(head) = self.head(memory, ahead) {
                memory.prefetch(self.descriptor(head), 16, false);
            }
        }
        for ahead in 0..chains {
            if let Ok(head) = self.head(memory, ahead)
                && let Ok(entry) = Descriptor::read(memory, self.descriptor(head))
            {
                let bytes = BEGINNING.min(entry.bytes as usize);
                memory.prefetch(entry.address, bytes, self.way == Way::ToGuest);
            }
        }
    }

    fn head(&self, memory: &impl Memory, ahead: u16) -> Result<u16, RingError> {
        let place = self.next.wrapping_add(ahead) & (self.layout.size - 1);
        let head = memory.load(self.layout.available + 4 + 2 * u64::from(place))?;
        if head >= self.layout.size {
            return Err(RingError::Head(head));
        }
        Ok(head)
    }

    fn descriptor(&self, index: u16) -> u64 {
        self.layout.descriptors + DESCRIPTOR_BYTES * u64::from(index)
    }

    /// Adds the buffers of the chain `ahead` places behind the next one, which must be available, and returns its head.
    ///
    /// # Errors
    /// If there is anything wrong with it.
    pub fn chain(&self, memory: &impl Memory, ahead: u16, chain: &mut Chain) -> Result<u16, RingError> {
        let head = self.head(memory, ahead)?;
        let mut table = self.layout.descriptors;
        let mut entries = usize::from(self.layout.size);
        let mut index = head;
        let mut indirect = false;
        let mut steps = 0;
        loop {
            let entry = Descriptor::read(memory, table + DESCRIPTOR_BYTES * u64::from(index))?;
            if entry.flags & descriptor::INDIRECT != 0 {
                let bytes = u64::from(entry.bytes);
                let misplaced = indirect || !self.agreed.indirect || entry.flags & descriptor::NEXT != 0;
                if misplaced || bytes == 0 || bytes % DESCRIPTOR_BYTES != 0 {
                    return Err(RingError::Indirect);
                }
                if !memory.has(entry.address, bytes) {
                    return Err(OutOfRange(entry.address).into());
                }
                table = entry.address;
                entries = usize::try_from(bytes / DESCRIPTOR_BYTES).unwrap_or(usize::MAX);
                index = 0;
                indirect = true;
                continue;
            }
            if steps == entries.min(LONGEST_CHAIN) {
                return Err(RingError::Endless);
            }
            steps += 1;
            if (entry.flags & descriptor::WRITE != 0) != (self.way == Way::ToGuest) {
                return Err(RingError::Direction);
            }
            if entry.bytes > 0 {
                if !memory.has(entry.address, u64::from(entry.bytes)) {
                    return Err(OutOfRange(entry.address).into());
                }
                chain.bytes += u64::from(entry.bytes);
                chain.segments.push(Segment {
                    address: entry.address,
                    bytes: entry.bytes,
                });
            }
            if entry.flags & descriptor::NEXT == 0 {
                return Ok(head);
            }
            index = entry.next;
            if usize::from(index) >= entries {
                return Err(RingError::Next(index));
            }
        }
    }

    /// Takes the next chains, which the guest gets back later.
    pub fn take(&mut self, chains: u16) {
        self.next = self.next.wrapping_add(chains);
    }

    /// Hands back the first chain of those that were taken, with so many bytes written to it.
    ///
    /// # Errors
    /// If the ring is no longer there.
    pub fn complete(&mut self, memory: &impl Memory, head: u16, written: u32) -> Result<(), RingError> {
        let place = self.used & (self.layout.size - 1);
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(self.layout.used + 4 + USED_BYTES * u64::from(place), &entry)?;
        self.used = self.used.wrapping_add(1);
        Ok(())
    }

    /// Tells the guest of the chains handed back; true if it wants to be called.
    ///
    /// # Errors
    /// If the ring is no longer there.
    pub fn publish(&mut self, memory: &impl Memory) -> Result<bool, RingError> {
        let (before, now) = (self.published, self.used);
        if before == now {
            return Ok(false);
        }
        memory.store(self.layout.used + 2, now)?;
        self.published = now;
        // The guest says what it wants and then looks at the index; we do it the other way round.
        fence(Ordering::SeqCst);
        if !self.agreed.event_index {
            return Ok(memory.load(self.layout.available)? & QUIET == 0);
        }
        let event = memory.load(self.layout.available + 4 + 2 * u64::from(self.layout.size))?;
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
    }

    /// Asks the guest for a kick with the next chain it makes available; true if it has made one available since
    /// [`Ring::ready`] looked, so that it will not kick.
    ///
    /// # Errors
    /// If the ring is no longer there.
    pub fn listen(&mut self, memory: &impl Memory) -> Result<bool, RingError> {
        if self.agreed.event_index {
            memory.store(self.available_event(), self.seen)?;
        } else if !self.listening {
            memory.store(self.layout.used, 0)?;
            self.listening = true;
        }
        fence(Ordering::SeqCst);
        Ok(memory.load(self.layout.available + 2)? != self.seen)
    }

    /// Lets the guest know that kicks are not needed. It may kick all the same.
    ///
    /// # Errors
    /// If the ring is no longer there.
    pub fn mute(&mut self, memory: &impl Memory) -> Result<(), RingError> {
        // With an event index, no kick comes before that is moved.
        if self.listening && !self.agreed.event_index {
            memory.store(self.layout.used, QUIET)?;
            self.listening = false;
        }
        Ok(())
    }

    fn available_event(&self) -> u64 {
        self.layout.used + 4 + USED_BYTES * u64::from(self.layout.size)
    }
}

struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &impl Memory, address: u64) -> Result<Self, OutOfRange> {
        let mut bytes = [0; 16];
        memory.read(address, &mut bytes)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Ok(Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            bytes: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        })
    }
}

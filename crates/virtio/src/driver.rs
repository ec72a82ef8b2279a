//! The guest's side of a ring, for tests and load generators: it makes buffers available and takes them back.

use std::sync::atomic::{Ordering, fence};

use crate::memory::{Memory, OutOfRange};
use crate::ring::{Layout, Way};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const QUIET: u16 = 1;

/// A ring from the side of whoever owns the memory.
#[derive(Debug)]
pub struct Driver {
    layout: Layout,
    event_index: bool,
    free: Vec<u16>,
    /// By head, the descriptors of its chain.
    chains: Vec<Vec<u16>>,
    available: u16,
    published: u16,
    used: u16,
}

impl Driver {
    /// Where the parts of a ring of so many entries are, from an address (a multiple of 16) on; and where they end.
    pub fn layout(size: u16, address: u64) -> (Layout, u64) {
        let entries = u64::from(size);
        let available = address + 16 * entries;
        let used = (available + 6 + 2 * entries).next_multiple_of(4);
        let layout = Layout {
            size,
            descriptors: address,
            available,
            used,
        };
        (layout, (used + 6 + 8 * entries).next_multiple_of(16))
    }

    /// A ring in memory that is all zeros.
    pub fn new(layout: Layout, event_index: bool) -> Self {
        Self {
            layout,
            event_index,
            free: (0..layout.size).rev().collect(),
            chains: vec![Vec::new(); usize::from(layout.size)],
            available: 0,
            published: 0,
            used: 0,
        }
    }

    /// Descriptors that are in no chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of buffers (address and length) available; `None` if there are too few descriptors.
    ///
    /// # Errors
    /// If the ring is not in the memory.
    pub fn add(
        &mut self,
        memory: &impl Memory,
        buffers: &[(u64, u32)],
        way: Way,
    ) -> Result<Option<u16>, OutOfRange> {
        if buffers.is_empty() || buffers.len() > self.free.len() {
            return Ok(None);
        }
        let chain = self.free.split_off(self.free.len() - buffers.len());
        for (i, (&index, &(address, bytes))) in chain.iter().zip(buffers).enumerate() {
            let next = chain.get(i + 1).copied();
            let place = self.layout.descriptors + 16 * u64::from(index);
            describe(
                memory,
                place,
                address,
                bytes,
                flags(way, next.is_some()),
                next.unwrap_or(0),
            )?;
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(memory, head)?;
        Ok(Some(head))
    }

    /// The same by a table of descriptors at another place.
    ///
    /// # Errors
    /// If the ring or the table is not in the memory.
    pub fn add_indirect(
        &mut self,
        memory: &impl Memory,
        table: u64,
        buffers: &[(u64, u32)],
        way: Way,
    ) -> Result<Option<u16>, OutOfRange> {
        let Some(head) = self.free.pop() else {
            return Ok(None);
        };
        for (i, &(address, bytes)) in (0_u16..).zip(buffers) {
            let more = usize::from(i) + 1 < buffers.len();
            let place = table + 16 * u64::from(i);
            describe(memory, place, address, bytes, flags(way, more), i + 1)?;
        }
        let bytes = u32::try_from(16 * buffers.len()).unwrap_or(u32::MAX);
        let place = self.layout.descriptors + 16 * u64::from(head);
        describe(memory, place, table, bytes, INDIRECT, 0)?;
        self.chains[usize::from(head)] = vec![head];
        self.offer(memory, head)?;
        Ok(Some(head))
    }

    fn offer(&mut self, memory: &impl Memory, head: u16) -> Result<(), OutOfRange> {
        let place = self.available & (self.layout.size - 1);
        memory.store(self.layout.available + 4 + 2 * u64::from(place), head)?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Tells the device of what was made available; true if it wants a kick.
    ///
    /// # Errors
    /// If the ring is not in the memory.
    pub fn publish(&mut self, memory: &impl Memory) -> Result<bool, OutOfRange> {
        let (before, now) = (self.published, self.available);
        memory.store(self.layout.available + 2, now)?;
        self.published = now;
        fence(Ordering::SeqCst);
        if !self.event_index {
            return Ok(before != now && memory.load(self.layout.used)? & QUIET == 0);
        }
        let event = memory.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))?;
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
    }

    /// Takes back the next chain the device is done with: its head, and how many bytes were written to it.
    ///
    /// # Errors
    /// If the ring is not in the memory, or the device hands back what it was not given.
    pub fn take(&mut self, memory: &impl Memory) -> Result<Option<(u16, u32)>, OutOfRange> {
        if memory.load(self.layout.used + 2)? == self.used {
            return Ok(None);
        }
        let place = self.used & (self.layout.size - 1);
        let address = self.layout.used + 4 + 8 * u64::from(place);
        let mut entry = [0; 8];
        memory.read(address, &mut entry)?;
        let [a, b, _, _, e, f, g, h] = entry;
        let head = u16::from_le_bytes([a, b]);
        let chain = self.chains.get_mut(usize::from(head)).map(std::mem::take);
        match chain {
            Some(chain) if !chain.is_empty() => self.free.extend(chain),
            _ => return Err(OutOfRange(address)),
        }
        self.used = self.used.wrapping_add(1);
        Ok(Some((head, u32::from_le_bytes([e, f, g, h]))))
    }

    /// Asks for a call with the next chain the device hands back; true if it has handed one back meanwhile.
    ///
    /// # Errors
    /// If the ring is not in the memory.
    pub fn listen(&self, memory: &impl Memory) -> Result<bool, OutOfRange> {
        if self.event_index {
            memory.store(
                self.layout.available + 4 + 2 * u64::from(self.layout.size),
                self.used,
            )?;
        }
        fence(Ordering::SeqCst);
        Ok(memory.load(self.layout.used + 2)? != self.used)
    }
}

fn flags(way: Way, more: bool) -> u16 {
    let write = if way == Way::ToGuest { WRITE } else { 0 };
    write | if more { NEXT } else { 0 }
}

/// Writes a descriptor.
///
/// # Errors
/// If it is not in the memory.
pub fn describe(
    memory: &impl Memory,
    place: u64,
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
) -> Result<(), OutOfRange> {
    memory.write(place, &address.to_le_bytes())?;
    memory.write(place + 8, &bytes.to_le_bytes())?;
    memory.write(place + 12, &flags.to_le_bytes())?;
    memory.write(place + 14, &next.to_le_bytes())
}

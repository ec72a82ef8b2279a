//! What the rings need of a guest's memory.

/// The memory of a guest, by its own addresses. The guest reads and writes it at the same time.
pub trait Memory {
    /// True if all of a range is there.
    fn has(&self, address: u64, bytes: u64) -> bool;

    /// Copies out.
    ///
    /// # Errors
    /// If not all of the range is there; then nothing is copied.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfRange>;

    /// Copies in.
    ///
    /// # Errors
    /// If not all of the range is there; then nothing is copied.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange>;

    /// Copies from here to another guest's memory, or to another place in this.
    ///
    /// # Errors
    /// If not all of both ranges is there; then nothing is copied.
    fn copy_to(&self, from: u64, other: &Self, into: u64, bytes: usize) -> Result<(), OutOfRange>;

    /// False once a part of it was not there when it was used: what was read since then means nothing.
    fn is_whole(&self) -> bool {
        true
    }

    /// Says that a range will soon be read, or written.
    fn prefetch(&self, _address: u64, _bytes: usize, _to_write: bool) {}

    /// Loads a word (little-endian, on an even address) before anything that is read later.
    ///
    /// # Errors
    /// If it is not there, or the address is odd.
    fn load(&self, address: u64) -> Result<u16, OutOfRange>;

    /// Stores a word (little-endian, on an even address) after anything that was written before.
    ///
    /// # Errors
    /// If it is not there, or the address is odd.
    fn store(&self, address: u64, value: u16) -> Result<(), OutOfRange>;
}

/// An address the guest's memory does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("address {0:#x} is not in the memory it shares")]
pub struct OutOfRange(pub u64);

/// Memory of our own that stands for a guest's: from address 0 on.
#[derive(Debug)]
pub struct Ram(std::cell::RefCell<Vec<u8>>);

impl Ram {
    /// Memory with this in it.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(std::cell::RefCell::new(bytes))
    }

    /// What is in it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_inner()
    }

    fn range(&self, address: u64, bytes: usize) -> Result<std::ops::Range<usize>, OutOfRange> {
        if !self.has(address, bytes as u64) {
            return Err(OutOfRange(address));
        }
        let start = usize::try_from(address).map_err(|_| OutOfRange(address))?;
        Ok(start..start + bytes)
    }
}

impl Memory for Ram {
    fn has(&self, address: u64, bytes: u64) -> bool {
        let end = address.checked_add(bytes);
        end.is_some_and(|end| end <= self.0.borrow().len() as u64)
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        let range = self.range(address, into.len())?;
        into.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let range = self.range(address, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }

    fn copy_to(&self, from: u64, other: &Self, into: u64, bytes: usize) -> Result<(), OutOfRange> {
        let from = self.range(from, bytes)?;
        let copy = self.0.borrow()[from].to_vec();
        other.write(into, &copy)
    }

    fn load(&self, address: u64) -> Result<u16, OutOfRange> {
        let mut word = [0; 2];
        self.read(even(address)?, &mut word)?;
        Ok(u16::from_le_bytes(word))
    }

    fn store(&self, address: u64, value: u16) -> Result<(), OutOfRange> {
        self.write(even(address)?, &value.to_le_bytes())
    }
}

fn even(address: u64) -> Result<u64, OutOfRange> {
    if address.is_multiple_of(2) {
        Ok(address)
    } else {
        Err(OutOfRange(address))
    }
}

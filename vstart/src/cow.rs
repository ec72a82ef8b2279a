//! COW files: what a machine has changed of a model file system. Pure.
//!
//! ```text
//! 0     magic u32 | version u32 = 3 | mtime u32 | size u64 | sector size u32 | alignment u32 | format u32 = 0
//! 32    name of the backing file, 4096 bytes, ended by a NUL
//! b     bitmap: sector n is bit n % 8 (from the least significant) of byte n / 8; 1 if it is in this file
//! d     sector n at d + n * sector size
//! ```
//!
//! All integers are big-endian; b and d are the next multiples of the alignment. Versions 1 and 2 are of kernels before
//! 2.6 and are not read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Bytes of a file that hold the whole header.
pub const HEADER_BYTES: usize = 32 + LONGEST_NAME;

/// Room for the name of the backing file, with its NUL.
const LONGEST_NAME: usize = 4096;
const MAGIC: [u8; 4] = *b"OOOM";
const VERSION: u32 = 3;
/// What the kernel uses.
const SECTOR: u32 = 512;
const ALIGNMENT: u32 = 4096;
/// Larger files are none that a kernel has made; so that sums of offsets fit.
const LARGEST: u64 = 1 << 60;

/// What a COW file is a layer over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The model file system.
    pub backing: PathBuf,
    /// When that was last changed, in seconds since 1970.
    pub modified: u32,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a sector.
    pub sector: u32,
    /// What bitmap and data begin at a multiple of.
    pub alignment: u32,
}

/// Reads a header; `None` if the bytes are none, or one of a version that only old kernels write.
pub fn parse(bytes: &[u8]) -> Option<Header> {
    if bytes.get(..4)? != MAGIC || word(bytes, 4)? != VERSION {
        return None;
    }
    let name = bytes.get(32..)?.split(|b| *b == 0).next()?;
    let header = Header {
        backing: OsStr::from_bytes(name).into(),
        modified: word(bytes, 8)?,
        bytes: u64::from_be_bytes(*bytes.get(12..)?.first_chunk()?),
        sector: word(bytes, 20)?,
        alignment: word(bytes, 24)?,
    };
    (header.bytes <= LARGEST && header.sector > 0 && header.alignment > 0).then_some(header)
}

impl Header {
    /// The header of a file without changes; `None` if the name of the model is too long.
    pub fn new(backing: PathBuf, modified: u32, bytes: u64) -> Option<Self> {
        let fits = backing.as_os_str().len() < LONGEST_NAME && bytes <= LARGEST;
        fits.then_some(Self {
            backing,
            modified,
            bytes,
            sector: SECTOR,
            alignment: ALIGNMENT,
        })
    }

    /// The bytes a file begins with.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend([VERSION, self.modified].into_iter().flat_map(u32::to_be_bytes));
        bytes.extend(self.bytes.to_be_bytes());
        bytes.extend(
            [self.sector, self.alignment, 0]
                .into_iter()
                .flat_map(u32::to_be_bytes),
        );
        bytes.extend(self.backing.as_os_str().as_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }

    /// Where the bitmap is.
    pub fn bitmap_at(&self) -> u64 {
        let header = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
        header.next_multiple_of(self.alignment.into())
    }

    /// How long it is.
    pub fn bitmap_bytes(&self) -> u64 {
        self.sectors().div_ceil(8)
    }

    /// Where the data is.
    pub fn data_at(&self) -> u64 {
        (self.bitmap_at() + self.bitmap_bytes()).next_multiple_of(self.alignment.into())
    }

    /// Number of sectors of the model.
    pub fn sectors(&self) -> u64 {
        self.bytes.div_ceil(self.sector.into())
    }
}

/// Runs of changed sectors: the first, and how many. `first` is the number of the bitmap's first sector.
pub fn changed(bitmap: &[u8], first: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (sector, bit) in (first..).zip(bitmap.iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1))) {
        if bit == 0 {
            continue;
        }
        match runs.last_mut() {
            Some((start, length)) if *start + *length == sector => *length += 1,
            _ => runs.push((sector, 1)),
        }
    }
    runs
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_its_model() {
        let mut bytes = [
            &b"OOOM"[..],
            &[0, 0, 0, 3],
            &[0, 0, 0, 7],
            &[0, 0, 0, 0, 0, 4, 0xb0, 0],
        ]
        .concat();
        bytes.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0x10, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(b"/fs/model\0garbage");
        let header = Header::new("/fs/model".into(), 7, 300 * 1024).unwrap();
        assert_eq!(parse(&bytes), Some(header.clone()));
        assert_eq!(parse(&header.encode()), Some(header.clone()));
        // As the kernel lays out a file of that size.
        assert_eq!(
            (header.bitmap_at(), header.bitmap_bytes(), header.data_at()),
            (8192, 75, 12288)
        );
        bytes[7] = 2;
        assert_eq!(parse(&bytes), None);
        assert_eq!(parse(b"OOOM"), None);
        assert_eq!(parse(b""), None);
        let mut bytes = header.encode();
        bytes[20..24].fill(0);
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn changed_sectors_come_in_runs() {
        assert_eq!(changed(&[], 0), []);
        assert_eq!(changed(&[0b1000_0110, 0b0000_0001], 0), [(1, 2), (7, 2)]);
        assert_eq!(changed(&[0, 0xff, 0xff, 0b10], 80), [(88, 16), (105, 1)]);
    }
}

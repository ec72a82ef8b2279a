//! The header of a COW file, as far as it says which file it is a layer over. Pure.
//!
//! Version 3, all integers big-endian: magic u32 | version u32 | mtime u32 | size u64 | sector size u32 |
//! alignment u32 | format u32 | name of the backing file, 4096 bytes, ended by a NUL.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Bytes of a file that hold the whole header.
pub const HEADER_BYTES: usize = 32 + 4096;

const MAGIC: [u8; 4] = *b"OOOM";
const VERSION: u32 = 3;

/// What a COW file is a layer over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The model file system.
    pub backing: PathBuf,
    /// When that was last changed, in seconds since 1970.
    pub modified: u32,
    /// Its size.
    pub bytes: u64,
}

/// Reads a header; `None` if the bytes are none, or one of a version that only old kernels write.
pub fn parse(bytes: &[u8]) -> Option<Header> {
    if bytes.get(..4)? != MAGIC || word(bytes, 4)? != VERSION {
        return None;
    }
    let name = bytes.get(32..)?.split(|b| *b == 0).next()?;
    Some(Header {
        backing: OsStr::from_bytes(name).into(),
        modified: word(bytes, 8)?,
        bytes: u64::from_be_bytes(*bytes.get(12..)?.first_chunk()?),
    })
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
        let header = Header {
            backing: "/fs/model".into(),
            modified: 7,
            bytes: 300 * 1024,
        };
        assert_eq!(parse(&bytes), Some(header));
        bytes[7] = 2;
        assert_eq!(parse(&bytes), None);
        assert_eq!(parse(b"OOOM"), None);
        assert_eq!(parse(b""), None);
    }
}

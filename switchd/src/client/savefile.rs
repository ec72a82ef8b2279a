//! Captures of others, to be replayed: pcap and pcapng, of either byte order and any resolution of time.

use std::borrow::Cow;
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};

/// A frame of a file.
pub(super) struct Frame<'a> {
    /// Since 1970.
    pub(super) time: Duration,
    /// Its length when it was captured.
    pub(super) wire_len: usize,
    /// What the file has of it.
    pub(super) bytes: Cow<'a, [u8]>,
}

type Bytes = Box<dyn Read>;

/// An open file.
pub(super) enum Savefile {
    Pcap(PcapReader<Bytes>),
    PcapNg {
        reader: PcapNgReader<Bytes>,
        /// Nanoseconds of one unit of time, as a fraction, of each interface of the section.
        units: Vec<(u64, u64)>,
    },
}

/// First bytes of a pcapng file, in either byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl Savefile {
    /// Opens a file of Ethernet frames; the bar shows how much of it has been read.
    pub(super) fn open(path: &Path, bar: &ProgressBar) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = BufReader::new(bar.wrap_read(super::replay::open(path)?));
        let mut magic = [0; 4];
        file.read_exact(&mut magic)
            .with_context(|| format!("{shown} is no capture"))?;
        let bytes: Bytes = Box::new(std::io::Cursor::new(magic).chain(file));
        let no_capture = || format!("{shown} is no capture");
        if magic == PCAPNG_MAGIC {
            let reader = PcapNgReader::new(bytes).with_context(no_capture)?;
            return Ok(Self::PcapNg {
                reader,
                units: Vec::new(),
            });
        }
        let reader = PcapReader::new(bytes).with_context(no_capture)?;
        let link = reader.header().datalink;
        if link != DataLink::ETHERNET {
            bail!("{shown} has no Ethernet frames but {link:?}");
        }
        Ok(Self::Pcap(reader))
    }

    /// The next frame; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Frame<'_>>> {
        match self {
            Self::Pcap(reader) => {
                let Some(packet) = reader.next_packet().transpose()? else {
                    return Ok(None);
                };
                Ok(Some(Frame {
                    time: packet.timestamp,
                    wire_len: packet.orig_len as usize,
                    bytes: packet.data,
                }))
            }
            Self::PcapNg { reader, units } => next_of_pcapng(reader, units),
        }
    }
}

fn next_of_pcapng<'a>(
    reader: &'a mut PcapNgReader<Bytes>,
    units: &mut Vec<(u64, u64)>,
) -> anyhow::Result<Option<Frame<'a>>> {
    loop {
        let Some(block) = reader.next_block().transpose()? else {
            return Ok(None);
        };
        match block {
            Block::SectionHeader(_) => units.clear(),
            Block::InterfaceDescription(interface) => {
                if interface.linktype != DataLink::ETHERNET {
                    bail!("it has no Ethernet frames but {:?}", interface.linktype);
                }
                units.push(unit(&interface));
            }
            Block::EnhancedPacket(packet) => {
                let Some(&(nanoseconds, per)) = units.get(packet.interface_id as usize) else {
                    bail!(
                        "a frame belongs to interface {}, which is not there",
                        packet.interface_id
                    );
                };
                // The library takes the number of units for nanoseconds.
                let time = packet.timestamp.as_nanos() * u128::from(nanoseconds) / u128::from(per);
                return Ok(Some(Frame {
                    time: Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX)),
                    wire_len: packet.original_len as usize,
                    // The reader's buffer is about to be used again, which the borrow checker sees only if it is
                    // given back from here at once; a copy costs less than a frame's way through a socket.
                    bytes: Cow::Owned(packet.data.into_owned()),
                }));
            }
            _ => {}
        }
    }
}

/// Nanoseconds of one unit of time (`if_tsresol`; microseconds unless it says otherwise).
fn unit(interface: &InterfaceDescriptionBlock<'_>) -> (u64, u64) {
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    match resolution.unwrap_or(6) {
        // Beyond these exponents no time in use fits into 64 bits.
        binary @ 0x80.. => (1_000_000_000, 1 << u32::from(binary & 0x7f).min(63)),
        decimal @ 0..=9 => (10_u64.pow(9 - u32::from(decimal)), 1),
        decimal => (1, 10_u64.pow((u32::from(decimal) - 9).min(19))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_resolution(resolution: Option<u8>) -> (u64, u64) {
        unit(&InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: resolution
                .map(InterfaceDescriptionOption::IfTsResol)
                .into_iter()
                .collect(),
        })
    }

    #[test]
    fn units_of_time() {
        assert_eq!(with_resolution(None), (1000, 1));
        assert_eq!(with_resolution(Some(9)), (1, 1));
        assert_eq!(with_resolution(Some(0)), (1_000_000_000, 1));
        assert_eq!(with_resolution(Some(12)), (1, 1000));
        assert_eq!(with_resolution(Some(0x80 | 10)), (1_000_000_000, 1024));
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("text", b"hello world"),
            ("cut", &PCAPNG_MAGIC),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = Savefile::open(&path, &ProgressBar::hidden()).err().unwrap();
            assert!(error.to_string().contains("is no capture"), "{name}: {error:#}");
        }
        assert!(Savefile::open(&directory.path().join("none"), &ProgressBar::hidden()).is_err());
    }
}

//! The thread that writes a capture: pcapng, one interface per port, time in nanoseconds, direction inbound.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime};

use fabric::PortId;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, PcapError};
use proto::ctl::Captured;

use crate::datapath::capture::{Drain, Record, records};

/// Bytes collected before they are written, unless there is nothing more to collect.
const BUFFER_BYTES: usize = 256 * 1024;

/// `epb_flags`: the frame came in from the port (pcapng, section 4.3.1).
const INBOUND: u32 = 1;

/// `if_tsresol`: units of 10^-9 s.
const NANOSECONDS: u8 = 9;

/// What to write, and where to.
pub(crate) struct Recorder {
    pub(crate) domain: String,
    pub(crate) snap_len: u32,
    pub(crate) drain: Drain,
    pub(crate) file: File,
}

/// One interface of the file.
struct Interface {
    number: u32,
    frames: u64,
}

impl Recorder {
    /// Writes until the capture ends or the file cannot be written any more.
    ///
    /// # Errors
    /// The first failed write; what was written before is a valid file.
    pub(crate) fn run(self) -> io::Result<Captured> {
        let Self {
            domain,
            snap_len,
            drain,
            file,
        } = self;
        let mut output = Output::new(file)?;
        let mut interfaces: BTreeMap<PortId, Interface> = BTreeMap::new();
        let mut closed: Vec<Interface> = Vec::new();
        while let Some(chunk) = drain.next() {
            let mut next = Some(chunk);
            while let Some(chunk) = next {
                for record in records(&chunk) {
                    match record {
                        Record::Port { id, name } => {
                            let number = u32::try_from(interfaces.len() + closed.len()).unwrap_or(u32::MAX);
                            output.interface(&domain, snap_len, id, name)?;
                            closed.extend(interfaces.insert(id, Interface { number, frames: 0 }));
                        }
                        Record::Frame {
                            id,
                            time,
                            wire_len,
                            bytes,
                        } => {
                            let Some(interface) = interfaces.get_mut(&id) else {
                                continue;
                            };
                            output.frame(interface.number, time, wire_len, bytes)?;
                            interface.frames += 1;
                        }
                    }
                }
                drain.give_back(chunk);
                next = drain.try_next();
            }
            output.flush()?;
        }
        closed.extend(interfaces.into_values());
        let captured = Captured {
            frames: closed.iter().map(|interface| interface.frames).sum(),
            dropped: drain.dropped(),
        };
        for interface in &closed {
            output.statistics(interface, captured.dropped)?;
        }
        output.flush()?;
        Ok(captured)
    }
}

/// The file, block by block.
struct Output(PcapNgWriter<BufWriter<File>>);

impl Output {
    /// Begins the file: whoever reads along sees at once that the capture is on.
    fn new(file: File) -> io::Result<Self> {
        let writer = PcapNgWriter::new(BufWriter::with_capacity(BUFFER_BYTES, file)).map_err(io_error)?;
        let mut output = Self(writer);
        output.flush()?;
        Ok(output)
    }

    fn interface(&mut self, domain: &str, snaplen: u32, id: PortId, name: &str) -> io::Result<()> {
        let name = if name.is_empty() {
            format!("{domain}:{id}")
        } else {
            format!("{domain}:{id} {name}")
        };
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name)),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        self.write(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen,
            options,
        })
    }

    fn frame(
        &mut self,
        interface_id: u32,
        timestamp: Duration,
        original_len: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let options = vec![EnhancedPacketOption::Flags(INBOUND)];
        self.write(EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len,
            data: Cow::Borrowed(bytes),
            options,
        })
    }

    /// The drops are those of the whole capture: a frame that finds no room is not told apart by port.
    fn statistics(&mut self, interface: &Interface, dropped: u64) -> io::Result<()> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // The upper half stands first in the file, whatever the byte order (pcapng, section 4.3).
        let timestamp = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).rotate_left(32);
        let options = vec![
            InterfaceStatisticsOption::IsbIfRecv(interface.frames),
            InterfaceStatisticsOption::IsbIfDrop(dropped),
        ];
        self.write(InterfaceStatisticsBlock {
            interface_id: interface.number,
            timestamp,
            options,
        })
    }

    fn write<'a>(&mut self, block: impl PcapNgBlock<'a>) -> io::Result<()> {
        self.0.write_pcapng_block(block).map(drop).map_err(io_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

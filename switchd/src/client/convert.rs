//! A capture on its way through a client: read from the daemon's pipe block by block, made into something else.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, bail};

use super::output::Output;
use crate::pcapng::{self, Block};

/// Makes something of a capture.
pub(super) trait Consumer {
    /// Takes the next block.
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()>;

    /// All that has come so far is taken: shows it.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Where it writes, if somebody may stop reading there.
    fn output(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How often [`Consumer::tick`] is to be called at least.
    fn interval(&self) -> Option<Duration> {
        None
    }

    /// Time has passed.
    fn tick(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// The capture has ended.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.flush()
    }
}

/// The daemon's end of the pipe, and what has come through it.
pub(super) struct Stream {
    pipe: PipeReader,
    bytes: Vec<u8>,
    filled: usize,
}

/// Bytes read at once; a block that is longer has the buffer grow.
const READ_BYTES: usize = 1024 * 1024;

/// No block of ours is longer; one that claims to be is none.
const LONGEST_BLOCK: usize = 16 * 1024 * 1024;

impl Stream {
    pub(super) fn new(pipe: PipeReader) -> Self {
        Self {
            pipe,
            bytes: vec![0; READ_BYTES],
            filled: 0,
        }
    }

    /// Reads once and gives on what is whole; true at the end.
    pub(super) fn feed(&mut self, consumer: &mut dyn Consumer) -> anyhow::Result<bool> {
        if self.filled == self.bytes.len() {
            if self.bytes.len() >= LONGEST_BLOCK {
                bail!("switchd sent no capture");
            }
            self.bytes.resize(2 * self.filled, 0);
        }
        let count = self
            .pipe
            .read(&mut self.bytes[self.filled..])
            .context("cannot read the capture")?;
        self.filled += count;
        let mut rest = &self.bytes[..self.filled];
        while let Some((block, next)) = pcapng::split(rest) {
            consumer.block(&block)?;
            rest = next;
        }
        let left = rest.len();
        self.bytes.copy_within(self.filled - left..self.filled, 0);
        self.filled = left;
        consumer.flush()?;
        Ok(count == 0)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Makes a classic pcap file, with times in nanoseconds.
pub(super) struct Pcap {
    output: Output,
}

/// `pcap-savefile(5)`: nanoseconds, version 2.4, no frame longer than 256 KiB, Ethernet.
const PCAP_MAGIC: u32 = 0xa1b2_3c4d;
const PCAP_VERSION: u32 = u32::from_ne_bytes(if cfg!(target_endian = "little") {
    [2, 0, 4, 0]
} else {
    [0, 2, 0, 4]
});
const PCAP_HEADER: [u32; 6] = [PCAP_MAGIC, PCAP_VERSION, 0, 0, 262_144, 1];

impl Pcap {
    /// `name` is what messages call the file.
    pub(super) fn new(file: File, name: String) -> anyhow::Result<Self> {
        let mut pcap = Self {
            output: Output::new(file, name, record),
        };
        pcap.words(&PCAP_HEADER);
        pcap.flush()?;
        Ok(pcap)
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.output.push(&word.to_ne_bytes());
        }
    }

    /// Bytes that a block takes in such a file.
    pub(super) fn room(block: &Block<'_>) -> usize {
        if block.kind == pcapng::PACKET {
            16 + block.frame().len()
        } else {
            0
        }
    }
}

impl Consumer for Pcap {
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        if block.kind == pcapng::PACKET {
            let (time, frame) = (block.time(), block.frame());
            let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            let kept = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            self.words(&[seconds, time.subsec_nanos(), kept, block.wire_len()]);
            self.output.push(frame);
            self.output.end_record()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.output.flush()
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        Some(self.output.as_fd())
    }
}

/// The length of the first record of a pcap file, behind the file's header.
fn record(bytes: &[u8]) -> Option<usize> {
    let kept = bytes.get(8..12)?.first_chunk().copied().map(u32::from_ne_bytes)?;
    let length = 16 + kept as usize;
    (length <= bytes.len()).then_some(length)
}

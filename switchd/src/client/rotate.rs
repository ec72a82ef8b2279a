//! A capture in several files, each whole in itself: the next begins when one is full or its time is over.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::capture::create;
use super::convert::{Consumer, Pcap};
use super::output::Output;
use crate::cli::Rotate;
use crate::datapath::capture::now;
use crate::pcapng::{self, Block, Tally};

/// The files of one capture: `a.pcapng` becomes `a_00001.pcapng`, `a_00002.pcapng` and so on.
pub(super) struct Files {
    base: PathBuf,
    limits: Rotate,
    pcap: bool,
    number: u64,
    current: Current,
    began: Instant,
    bytes: u64,
    frames: u64,
    /// Section header and interfaces: every file begins with them.
    prelude: Vec<u8>,
    /// What the interfaces have seen, and how much of that the files before this one account for.
    sums: Vec<Sum>,
    kept: VecDeque<PathBuf>,
}

/// One interface.
#[derive(Default)]
struct Sum {
    /// What the daemon has told of the whole capture.
    seen: Tally,
    /// The part of it that earlier files have.
    told: Tally,
    /// Frames of it in this file.
    frames: u64,
}

impl Sum {
    /// Its part in this file: what was written, and what was rejected or lost meanwhile. All files together have what
    /// the whole capture has.
    fn next(&mut self) -> Tally {
        let rejected = |tally: &Tally| tally.received.saturating_sub(tally.accepted);
        let dropped = self.seen.dropped.saturating_sub(self.told.dropped);
        let written = std::mem::take(&mut self.frames);
        let accepted = written + dropped;
        let received = accepted + rejected(&self.seen).saturating_sub(rejected(&self.told));
        self.told = self.seen;
        Tally {
            received,
            accepted,
            dropped,
            written,
        }
    }
}

enum Current {
    PcapNg(Output),
    Pcap(Pcap),
}

impl Files {
    pub(super) fn new(base: &Path, limits: Rotate, pcap: bool) -> anyhow::Result<Self> {
        if base.file_name().is_none() {
            bail!("'{}' is no name of a file", base.display());
        }
        let path = numbered(base, 1);
        Ok(Self {
            current: Current::new(&path, pcap)?,
            base: base.to_owned(),
            limits,
            pcap,
            number: 1,
            began: Instant::now(),
            bytes: 0,
            frames: 0,
            prelude: Vec::new(),
            sums: Vec::new(),
            kept: VecDeque::from([path]),
        })
    }

    fn is_over(&self, more: u64) -> bool {
        let full = self
            .limits
            .rotate_size
            .is_some_and(|size| self.bytes + more + self.sums_bytes() > size);
        // A file holds at least a frame, however small it is to be.
        self.frames > 0 && (full || self.is_late())
    }

    fn is_late(&self) -> bool {
        self.limits
            .rotate_time
            .is_some_and(|time| self.began.elapsed() >= time)
    }

    fn sums_bytes(&self) -> u64 {
        match self.current {
            Current::PcapNg(_) => (self.sums.len() * pcapng::STATISTICS_BYTES) as u64,
            Current::Pcap(_) => 0,
        }
    }

    /// Ends the file.
    fn close(&mut self) -> anyhow::Result<()> {
        let mut blocks = Vec::new();
        for (interface, sum) in (0..).zip(&mut self.sums) {
            pcapng::statistics(&mut blocks, interface, now(), &sum.next());
        }
        self.write(&blocks)?;
        self.flush()
    }

    /// Ends the file and begins the next.
    fn next(&mut self) -> anyhow::Result<()> {
        self.close()?;
        self.number += 1;
        let path = numbered(&self.base, self.number);
        self.current = Current::new(&path, self.pcap)?;
        self.kept.push_back(path);
        self.began = Instant::now();
        self.frames = 0;
        self.bytes = 0;
        let prelude = std::mem::take(&mut self.prelude);
        self.write(&prelude)?;
        self.prelude = prelude;
        while self
            .limits
            .files
            .is_some_and(|most| self.kept.len() > most as usize)
            && let Some(oldest) = self.kept.pop_front()
        {
            fs::remove_file(&oldest).with_context(|| format!("cannot remove {}", oldest.display()))?;
        }
        Ok(())
    }

    /// Writes whole blocks.
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if let Current::PcapNg(output) = &mut self.current {
            self.bytes += bytes.len() as u64;
            output.push(bytes);
            output.end_record()?;
        }
        Ok(())
    }
}

impl Current {
    fn new(path: &Path, pcap: bool) -> anyhow::Result<Self> {
        let file = create(path)?;
        let name = path.display().to_string();
        Ok(if pcap {
            Self::Pcap(Pcap::new(file, name)?)
        } else {
            Self::PcapNg(Output::new(file, name, block_bytes))
        })
    }
}

impl Consumer for Files {
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        match block.kind {
            pcapng::SECTION | pcapng::INTERFACE => {
                if block.kind == pcapng::INTERFACE {
                    self.sums.push(Sum::default());
                }
                self.prelude.extend_from_slice(block.bytes);
                return self.write(block.bytes);
            }
            pcapng::STATISTICS => {
                if let Some(sum) = self.sums.get_mut(block.interface() as usize) {
                    sum.seen = block.tally();
                }
                return Ok(());
            }
            _ => {}
        }
        let room = match &self.current {
            Current::PcapNg(_) => block.bytes.len(),
            Current::Pcap(_) => Pcap::room(block),
        };
        if block.kind == pcapng::PACKET {
            if self.is_over(room as u64) {
                self.next()?;
            }
            self.frames += 1;
            if let Some(sum) = self.sums.get_mut(block.interface() as usize) {
                sum.frames += 1;
            }
        }
        match &mut self.current {
            Current::PcapNg(_) => self.write(block.bytes),
            Current::Pcap(pcap) => {
                self.bytes += room as u64;
                pcap.block(block)
            }
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        match &mut self.current {
            Current::PcapNg(output) => output.flush(),
            Current::Pcap(pcap) => pcap.flush(),
        }
    }

    fn interval(&self) -> Option<Duration> {
        let left = |time: Duration| time.saturating_sub(self.began.elapsed());
        self.limits.rotate_time.filter(|_| self.frames > 0).map(left)
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        if self.frames > 0 && self.is_late() {
            self.next()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.close()?;
        eprintln!("{} files written, {} kept", self.number, self.kept.len());
        Ok(())
    }
}

/// The length of the first block.
fn block_bytes(bytes: &[u8]) -> Option<usize> {
    pcapng::split(bytes).map(|(block, _)| block.bytes.len())
}

/// The name of one of the files.
fn numbered(base: &Path, number: u64) -> PathBuf {
    let stem = base.file_stem().unwrap_or_default().to_string_lossy();
    let name = match base.extension() {
        Some(extension) => format!("{stem}_{number:05}.{}", extension.to_string_lossy()),
        None => format!("{stem}_{number:05}"),
    };
    base.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_together_have_what_the_capture_has() {
        let tally = |received, accepted, dropped, written| Tally {
            received,
            accepted,
            dropped,
            written,
        };
        let mut sum = Sum {
            seen: tally(10, 7, 2, 5),
            told: Tally::default(),
            frames: 4,
        };
        assert_eq!(sum.next(), tally(9, 6, 2, 4));
        // Nothing was told meanwhile.
        sum.frames = 1;
        assert_eq!(sum.next(), tally(1, 1, 0, 1));
        sum.seen = tally(20, 12, 3, 9);
        sum.frames = 4;
        assert_eq!(sum.next(), tally(10, 5, 1, 4));
    }

    #[test]
    fn files_are_numbered_before_their_ending() {
        for (base, expected) in [
            ("/tmp/a.pcapng", "/tmp/a_00007.pcapng"),
            ("a", "a_00007"),
            ("x.y/a.b.pcap", "x.y/a.b_00007.pcap"),
        ] {
            assert_eq!(numbered(Path::new(base), 7), Path::new(expected));
        }
    }
}

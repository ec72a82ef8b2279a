//! A capture in several files, each whole in itself: the next begins when one is full or its time is over.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::capture::create;
use super::convert::{Consumer, Pcap};
use crate::cli::Rotate;
use crate::pcapng::{self, Block};

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

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
    kept: VecDeque<PathBuf>,
}

enum Current {
    PcapNg(BufWriter<File>),
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
            kept: VecDeque::from([path]),
        })
    }

    fn is_over(&self, more: u64) -> bool {
        let full = self
            .limits
            .rotate_size
            .is_some_and(|size| self.bytes + more > size);
        // A file holds at least a frame, however small it is to be.
        self.frames > 0 && (full || self.is_late())
    }

    fn is_late(&self) -> bool {
        self.limits
            .rotate_time
            .is_some_and(|time| self.began.elapsed() >= time)
    }

    /// Ends the file and begins the next.
    fn next(&mut self) -> anyhow::Result<()> {
        self.flush()?;
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

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if let Current::PcapNg(file) = &mut self.current {
            self.bytes += bytes.len() as u64;
            let written = file.write_all(bytes);
            written
                .with_context(|| format!("cannot write {}", numbered(&self.base, self.number).display()))?;
        }
        Ok(())
    }
}

impl Current {
    fn new(path: &Path, pcap: bool) -> anyhow::Result<Self> {
        let file = create(path)?;
        Ok(if pcap {
            Self::Pcap(Pcap::new(file)?)
        } else {
            Self::PcapNg(BufWriter::with_capacity(BUFFER_BYTES, file))
        })
    }
}

impl Consumer for Files {
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        if matches!(block.kind, pcapng::SECTION | pcapng::INTERFACE) {
            self.prelude.extend_from_slice(block.bytes);
            return self.write(block.bytes);
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
        let flushed = match &mut self.current {
            Current::PcapNg(file) => file.flush().map_err(anyhow::Error::from),
            Current::Pcap(pcap) => pcap.flush(),
        };
        flushed.with_context(|| format!("cannot write {}", numbered(&self.base, self.number).display()))
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
        self.flush()?;
        eprintln!("{} files written, {} kept", self.number, self.kept.len());
        Ok(())
    }
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

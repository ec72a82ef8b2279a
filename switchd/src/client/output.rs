//! The end of a capture that a client writes itself: whole records only, even on a disk that is full.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

/// A file or a pipe.
pub(super) struct Output {
    file: File,
    /// What messages call it.
    name: String,
    pending: Vec<u8>,
    /// The length of the first record, if that is whole.
    record: fn(&[u8]) -> Option<usize>,
}

impl Output {
    pub(super) fn new(file: File, name: String, record: fn(&[u8]) -> Option<usize>) -> Self {
        Self {
            file,
            name,
            pending: Vec::with_capacity(BUFFER_BYTES),
            record,
        }
    }

    /// Takes a part of a record.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// A record is whole: writes if enough have come together.
    pub(super) fn end_record(&mut self) -> anyhow::Result<()> {
        if self.pending.len() < BUFFER_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Writes all there is. If that fails half-way into a file, the file is cut back to its last whole record.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let mut done = 0;
        while done < self.pending.len() {
            match self.file.write(&self.pending[done..]) {
                Ok(count) if count > 0 => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    self.cut_back(done);
                    self.pending.clear();
                    let error = result.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                    return Err(error).with_context(|| format!("cannot write {}", self.name));
                }
            }
        }
        self.pending.clear();
        Ok(())
    }

    fn cut_back(&self, done: usize) {
        let mut rest = &self.pending[..done];
        while let Some(whole) = (self.record)(rest) {
            rest = &rest[whole..];
        }
        if let Ok(metadata) = self.file.metadata()
            && metadata.is_file()
            && !rest.is_empty()
        {
            // A reader copes with a cut last record: one that cannot be taken away is no further error.
            let _ = self
                .file
                .set_len(metadata.len().saturating_sub(rest.len() as u64));
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

//! What is said on the line between a command's user and the agent in the guest that runs it. Pure.
//!
//! ```text
//! vexec <--Unix socket--> supervisor <--serial line--> agent --pipes--> command
//! frame: length u32 (of the rest) | channel u32 | kind u8 | contents           big-endian
//! ```
//!
//! On the serial line, [`crate::line`] sees to it that every frame arrives. The supervisor passes frames on and only
//! changes channel numbers: a channel is one command. Whoever sends bytes
//! has [`WINDOW`] of them in flight at most and waits for [`Kind::Credit`] then, so that no command can fill the
//! line with what nobody reads and none has to wait for another.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes of one direction of a channel that may be on their way.
pub const WINDOW: usize = 64 * 1024;
/// Bytes of contents a frame has at most.
pub const LONGEST: usize = 8 * 1024;

const HEADER: usize = 9;

/// What a frame is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Run a command: its words as a JSON array; one word is a line for the shell.
    Run,
    /// Bytes for its standard input.
    Input,
    /// The end of its standard input.
    InputEnd,
    /// A signal for it: the number as one byte.
    Signal,
    /// The user has gone.
    Close,
    /// Bytes of its standard output.
    Output,
    /// Bytes of its standard error.
    Error,
    /// It has ended: the exit status as one byte.
    Exit,
    /// So many bytes have arrived: a u32.
    Credit,
}

const KINDS: [Kind; 9] = [
    Kind::Run,
    Kind::Input,
    Kind::InputEnd,
    Kind::Signal,
    Kind::Close,
    Kind::Output,
    Kind::Error,
    Kind::Exit,
    Kind::Credit,
];

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The command it belongs to.
    pub channel: u32,
    /// What it is about.
    pub kind: Kind,
    /// Its contents.
    pub contents: Vec<u8>,
}

/// The bytes are no frame: the line is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the line to the machine's agent is garbled")]
pub struct Garbled;

impl Frame {
    /// A frame.
    pub fn new(channel: u32, kind: Kind, contents: impl Into<Vec<u8>>) -> Self {
        Self {
            channel,
            kind,
            contents: contents.into(),
        }
    }

    /// Tells that bytes have arrived.
    pub fn credit(channel: u32, bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).expect("a frame is shorter than 4 GiB");
        Self::new(channel, Kind::Credit, bytes.to_be_bytes())
    }

    /// The number of bytes in a credit; nothing for other frames.
    pub fn credited(&self) -> usize {
        match (self.kind, self.contents.first_chunk()) {
            (Kind::Credit, Some(bytes)) => usize::try_from(u32::from_be_bytes(*bytes)).unwrap_or(0),
            _ => 0,
        }
    }

    /// The frame as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.contents.len() + HEADER - 4).expect("a frame is shorter than 4 GiB");
        let kind = KINDS
            .iter()
            .position(|kind| *kind == self.kind)
            .expect("every kind is in the list");
        let mut bytes = Vec::with_capacity(self.contents.len() + HEADER);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.channel.to_be_bytes());
        bytes.push(u8::try_from(kind).expect("there are few kinds"));
        bytes.extend_from_slice(&self.contents);
        bytes
    }
}

/// Puts frames together from what arrives.
#[derive(Debug, Default)]
pub struct Decoder(Vec<u8>);

impl Decoder {
    /// Takes in bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame, if it is there as a whole.
    ///
    /// # Errors
    /// When the bytes cannot be the beginning of a frame.
    pub fn frame(&mut self) -> Result<Option<Frame>, Garbled> {
        let Some(length) = word(&self.0, 0) else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Garbled)?;
        if !(HEADER - 4..=LONGEST + HEADER - 4).contains(&length) {
            return Err(Garbled);
        }
        let (Some(channel), Some(kind), true) = (word(&self.0, 4), self.0.get(8), self.0.len() >= length + 4)
        else {
            return Ok(None);
        };
        let kind = *KINDS.get(usize::from(*kind)).ok_or(Garbled)?;
        let contents = self.0[HEADER..length + 4].to_vec();
        self.0.drain(..length + 4);
        Ok(Some(Frame {
            channel,
            kind,
            contents,
        }))
    }
}

/// How many bytes a sender may still send.
#[derive(Debug)]
pub struct Window {
    left: Mutex<usize>,
    more: Condvar,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            left: Mutex::new(WINDOW),
            more: Condvar::new(),
        }
    }
}

impl Window {
    /// Takes up to `wanted` bytes, waiting until there are any.
    pub fn take(&self, wanted: usize) -> usize {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        while *left == 0 {
            left = self.more.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        let taken = wanted.min(*left);
        *left -= taken;
        taken
    }

    /// Gives back bytes that have arrived.
    pub fn give(&self, bytes: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(bytes);
        self.more.notify_all();
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_is_told() {
        for bytes in [&[0, 0, 0, 0][..], &[255; 4], &[0, 0, 0, 5, 0, 0, 0, 0, 99]] {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.frame(), Err(Garbled));
        }
    }

    #[test]
    fn credits_are_counted() {
        assert_eq!(Frame::credit(1, 4096).credited(), 4096);
        assert_eq!(Frame::new(1, Kind::Output, vec![0; 4]).credited(), 0);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in proptest::collection::vec((any::<u32>(), 0..KINDS.len(), proptest::collection::vec(any::<u8>(), 0..50)), 0..8),
            cut in 1..20usize,
        ) {
            let frames: Vec<_> = frames.into_iter().map(|(channel, kind, bytes)| Frame::new(channel, KINDS[kind], bytes)).collect();
            let stream: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.frame().unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.frame() {}
        }
    }
}

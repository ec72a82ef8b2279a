//! Frames in and out of the two rings of a network card.

use fabric::offload::VNET_HEADER_BYTES;
use fabric::{Batch, FrameSet, Offloads};

use crate::config::{Features, feature};
use crate::memory::{Memory, OutOfRange};
use crate::ring::{Chain, Layout, Ring, RingError, Segment, Way};

/// The longest header.
const HEADER_BYTES: usize = VNET_HEADER_BYTES + 2;

/// The longest frame of a guest: 65,535 bytes behind an Ethernet header with two tags.
pub const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// The card of one guest: two rings and what it has agreed to.
#[derive(Debug)]
pub struct Device {
    to_guest: Ring,
    from_guest: Ring,
    features: Features,
    /// Used again for each frame.
    chain: Chain,
    heads: Vec<(u16, u64)>,
    /// Chains that are still to be taken before the device is given up.
    rest: Option<u16>,
    /// Whoever has the device looks for frames for a while, before it has the guest kick.
    polled: bool,
}

/// What a receive has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// There is more than the batch could take.
    pub more: bool,
    /// The guest wants to be called.
    pub call: bool,
}

/// What a send has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// How many of the frames went.
    pub frames: usize,
    /// The guest wants to be called.
    pub call: bool,
    /// What keeps the next frame.
    pub end: End,
}

/// Why a send ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All frames went.
    Done,
    /// The guest has not given enough buffers.
    Full,
    /// The guest's buffers cannot hold a frame of this length.
    TooBig,
}

impl Device {
    /// Takes over the rings `[to guest, from guest]`, each from the chain number beside it on.
    ///
    /// # Errors
    /// If there is anything wrong with one of them.
    pub fn new(
        rings: [(Layout, u16); 2],
        features: Features,
        memory: &impl Memory,
    ) -> Result<Self, RingError> {
        let agreed = features.agreed();
        let [(to_guest, to_base), (from_guest, from_base)] = rings;
        let mut to_guest = Ring::new(to_guest, Way::ToGuest, agreed, to_base, memory)?;
        to_guest.mute(memory)?;
        Ok(Self {
            to_guest,
            from_guest: Ring::new(from_guest, Way::FromGuest, agreed, from_base, memory)?,
            features,
            chain: Chain::default(),
            heads: Vec::new(),
            rest: None,
            polled: false,
        })
    }

    /// From now on, a receive that has found frames does not ask for a kick: [`Device::listen`] does.
    pub fn poll(&mut self) {
        self.polled = true;
    }

    /// What may be left undone on frames to the guest.
    pub fn offloads(&self) -> Offloads {
        self.features.offloads()
    }

    /// The next chains of the rings: where another device would go on.
    pub fn positions(&self) -> [u16; 2] {
        [self.to_guest.position(), self.from_guest.position()]
    }

    /// From now on, only what the guest has sent by now is received.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn finish(&mut self, memory: &impl Memory) -> Result<(), RingError> {
        if self.rest.is_none() {
            self.rest = Some(self.from_guest.ready(memory)?);
        }
        Ok(())
    }

    /// Fills a batch with what the guest has sent. When there is no more, the guest is asked for a kick, unless the device
    /// is polled and there was something.
    ///
    /// # Errors
    /// If there is anything wrong with the ring; then the batch is empty.
    pub fn receive(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<Received, RingError> {
        let received = self.try_receive(memory, batch);
        if received.is_err() {
            batch.clear();
        }
        received
    }

    fn try_receive(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<Received, RingError> {
        batch.clear();
        let ready = self.from_guest.ready(memory)?.min(self.rest.unwrap_or(u16::MAX));
        self.from_guest.prefetch(memory, batch.capacity());
        let mut taken = 0;
        while taken < ready && self.take(memory, batch)? {
            taken += 1;
        }
        if let Some(rest) = &mut self.rest {
            *rest -= taken;
        }
        let call = self.from_guest.publish(memory)?;
        let more = if taken < ready {
            self.from_guest.mute(memory)?;
            true
        } else if self.polled && taken > 0 {
            self.from_guest.mute(memory)?;
            false
        } else {
            self.rest.is_none() && self.from_guest.listen(memory)?
        };
        Ok(Received { more, call })
    }

    /// Copies the next frame of the guest into the batch; false if there is no room for it.
    fn take(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<bool, RingError> {
        self.chain.clear();
        let head = self.from_guest.chain(memory, 0, &mut self.chain)?;
        let header_bytes = self.features.header_bytes();
        // What is shorter than its header is a frame without a byte, and dropped as one.
        let frame_bytes = usize::try_from(self.chain.bytes)
            .unwrap_or(usize::MAX)
            .saturating_sub(header_bytes);
        let index = batch.len();
        let Some(buffer) = batch.append(frame_bytes) else {
            return Ok(false);
        };
        let mut header = [0; HEADER_BYTES];
        if frame_bytes > 0 {
            let mut segments = Segments::new(&self.chain.segments);
            segments.read(memory, &mut header[..header_bytes])?;
            segments.read(memory, buffer)?;
        }
        let header = header.first_chunk().expect("10 of 12 bytes");
        batch.set_header(index, swap_if_big(*header));
        self.from_guest.complete(memory, head, 0)?;
        Ok(true)
    }

    /// True if the guest may have sent something.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn has_frames(&mut self, memory: &impl Memory) -> Result<bool, RingError> {
        Ok(self.from_guest.ready(memory)? > 0)
    }

    /// Asks the guest for a kick when it sends; true if it may just have sent something.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn listen(&mut self, memory: &impl Memory) -> Result<bool, RingError> {
        let waiting = self.from_guest.ready(memory)? > 0;
        Ok(self.from_guest.listen(memory)? || waiting)
    }

    /// Sends frames of a batch to the guest, in order, as far as it has buffers for them. None of them must need more
    /// than [`Device::offloads`] of the guest.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn send(&mut self, memory: &impl Memory, batch: &Batch, frames: FrameSet) -> Result<Sent, RingError> {
        let mut ready = self.to_guest.ready(memory)?;
        self.to_guest.prefetch(memory, frames.len());
        let mut sent = 0;
        let mut end = End::Done;
        for index in frames.iter() {
            let mut given = self.give(memory, batch, index, ready)?;
            if given == Given::NotEnough {
                ready = self.to_guest.ready(memory)?;
                given = self.give(memory, batch, index, ready)?;
            }
            match given {
                Given::Chains(chains) => ready -= chains,
                Given::NotEnough => end = End::Full,
                Given::Never => end = End::TooBig,
            }
            if end != End::Done {
                break;
            }
            sent += 1;
        }
        Ok(Sent {
            frames: sent,
            call: self.to_guest.publish(memory)?,
            end,
        })
    }

    /// Copies a frame into buffers of the guest, of which so many chains are ready.
    fn give(
        &mut self,
        memory: &impl Memory,
        batch: &Batch,
        index: usize,
        ready: u16,
    ) -> Result<Given, RingError> {
        let frame = batch.frame(index);
        let header_bytes = self.features.header_bytes();
        let needed = (header_bytes + frame.len()) as u64;
        self.chain.clear();
        self.heads.clear();
        let mut chains = 0;
        while self.chain.bytes < needed {
            if chains == self.to_guest.size() || chains == 1 && !self.features.has(feature::MRG_RXBUF) {
                return Ok(Given::Never);
            }
            if chains == ready {
                return Ok(Given::NotEnough);
            }
            let before = self.chain.bytes;
            let head = self.to_guest.chain(memory, chains, &mut self.chain)?;
            let bytes = self.chain.bytes - before;
            if bytes < header_bytes as u64 {
                return Err(RingError::Short);
            }
            self.heads.push((head, bytes));
            chains += 1;
        }
        let mut header = [0; HEADER_BYTES];
        header[..VNET_HEADER_BYTES].copy_from_slice(&swap_if_big(batch.work(index).header()));
        header[VNET_HEADER_BYTES..].copy_from_slice(&chains.to_le_bytes());
        let mut segments = Segments::new(&self.chain.segments);
        segments.write(memory, &header[..header_bytes])?;
        segments.write(memory, frame)?;
        let mut rest = needed;
        for &(head, bytes) in &self.heads {
            let written = bytes.min(rest);
            rest -= written;
            self.to_guest
                .complete(memory, head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(Given::Chains(chains))
    }

    /// Asks the guest for a kick when it gives buffers, or not to kick then; true if it has just given some.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn watch_room(&mut self, memory: &impl Memory, wanted: bool) -> Result<bool, RingError> {
        if wanted {
            self.to_guest.listen(memory)
        } else {
            self.to_guest.mute(memory)?;
            Ok(false)
        }
    }
}

/// How giving a frame to the guest went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Given {
    /// It took so many chains.
    Chains(u16),
    /// More chains are needed.
    NotEnough,
    /// The ring will never hold it.
    Never,
}

/// A place in the buffers of a chain. All of them are in the guest's memory, and there are enough of them for what is
/// read and written.
struct Segments<'a> {
    segments: std::slice::Iter<'a, Segment>,
    current: Segment,
}

impl<'a> Segments<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Self {
            segments: segments.iter(),
            current: Segment { address: 0, bytes: 0 },
        }
    }

    fn read(&mut self, memory: &impl Memory, mut into: &mut [u8]) -> Result<(), OutOfRange> {
        while let Some((address, bytes)) = self.next(into.len()) {
            let (part, rest) = into.split_at_mut(bytes);
            memory.read(address, part)?;
            into = rest;
        }
        Ok(())
    }

    fn write(&mut self, memory: &impl Memory, mut from: &[u8]) -> Result<(), OutOfRange> {
        while let Some((address, bytes)) = self.next(from.len()) {
            let (part, rest) = from.split_at(bytes);
            memory.write(address, part)?;
            from = rest;
        }
        Ok(())
    }

    /// The next piece of up to so many bytes.
    fn next(&mut self, most: usize) -> Option<(u64, usize)> {
        if most == 0 {
            return None;
        }
        if self.current.bytes == 0 {
            self.current = *self.segments.next()?;
        }
        let bytes = u32::try_from(most).unwrap_or(u32::MAX).min(self.current.bytes);
        let address = self.current.address;
        // It is within the memory, so that its end is an address too.
        self.current.address = address.wrapping_add(u64::from(bytes));
        self.current.bytes -= bytes;
        Some((address, bytes as usize))
    }
}

/// The words of a header are little-endian for a guest, and the machine's own in the fabric.
fn swap_if_big(mut header: [u8; VNET_HEADER_BYTES]) -> [u8; VNET_HEADER_BYTES] {
    if cfg!(target_endian = "big") {
        for word in header[2..].chunks_exact_mut(2) {
            word.reverse();
        }
    }
    header
}

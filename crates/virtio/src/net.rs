//! Frames in and out of the two rings of a network card.
//!
//! Of a long frame, only the head is copied into the batch: all that anybody decides on, read once. The rest stays in the
//! guest's buffers, *lent* to the batch, and is copied from there into the buffers of another guest ([`Device::send`]) or,
//! for whoever else gets the frame, into the batch ([`Device::fetch`]). The buffers go back to the guest after that
//! ([`Device::release`]).

use fabric::offload::VNET_HEADER_BYTES;
use fabric::{Batch, FrameSet, HEAD_BYTES, Offloads};

use crate::config::{Features, feature};
use crate::memory::{Memory, OutOfRange};
use crate::ring::{Chain, Layout, Ring, RingError, Segment, Way};

/// The longest header.
const HEADER_BYTES: usize = VNET_HEADER_BYTES + 2;

/// The longest frame of a guest: 65,535 bytes behind an Ethernet header with two tags.
pub const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// Shorter frames are copied into the batch at once. Their second copy comes from a cache, and their buffers go back sooner.
const LENT_BYTES: usize = 2048;

/// Whoever has sent so many frames at once is about to send more: to look once more costs less than a kick. For fewer it
/// does not; two UML kernels that share two processors with the switch get a tenth less TCP through if it looks after
/// each.
const MANY: u16 = 16;

/// The card of one guest: two rings and what it has agreed to.
#[derive(Debug)]
pub struct Device {
    to_guest: Ring,
    from_guest: Ring,
    features: Features,
    /// Used again for each frame.
    chain: Chain,
    heads: Vec<(u16, u64)>,
    /// The chains of the frames in the batch, in their order, which the guest is to get back.
    taken: Vec<Taken>,
    /// The buffers of those that are lent.
    lent: Vec<Segment>,
    /// Chains that are still to be taken before the device is given up.
    rest: Option<u16>,
    /// Whoever has the device looks for frames for a while, before it has the guest kick.
    polled: bool,
}

/// A chain that was taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    head: u16,
    /// Where its buffers are among those that are lent; none if the frame was copied.
    first: usize,
    end: usize,
}

/// Whoever has lent frames of a batch, and the memory they are in.
#[derive(Debug)]
pub struct Lender<'a, M> {
    /// The card they came from.
    pub device: &'a Device,
    /// Its guest's memory.
    pub memory: &'a M,
}

/// What a receive has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// There is more than the batch could take, or there may be soon: it is worth another look.
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
    /// A part of the memory that frames are lent from is gone. None went.
    Torn,
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
            taken: Vec::new(),
            lent: Vec::new(),
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

    /// Fills a batch with what the guest has sent. When there is no more, the guest is asked for a kick, unless there is to
    /// be another look, or the device is polled and there was something. If some of the frames are lent, the guest gets its
    /// buffers back by [`Device::release`]; else it has got them.
    ///
    /// # Errors
    /// If there is anything wrong with the ring; then the batch is empty.
    pub fn receive(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<Received, RingError> {
        let received = self.try_receive(memory, batch);
        if received.is_err() {
            batch.clear();
            self.forget();
        }
        received
    }

    fn try_receive(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<Received, RingError> {
        batch.clear();
        self.release(memory)?;
        let ready = self.from_guest.ready(memory)?.min(self.rest.unwrap_or(u16::MAX));
        self.from_guest.prefetch(memory, batch.capacity());
        let mut taken = 0;
        while taken < ready && self.receive_one(memory, batch)? {
            taken += 1;
        }
        if let Some(rest) = &mut self.rest {
            *rest -= taken;
        }
        let call = batch.lent().is_empty() && self.release(memory)?;
        let more = if taken < ready {
            self.from_guest.mute(memory)?;
            true
        } else if self.polled && taken > 0 {
            self.from_guest.mute(memory)?;
            false
        } else if taken >= MANY && self.rest.is_none() {
            self.from_guest.mute(memory)?;
            true
        } else {
            self.rest.is_none() && self.from_guest.listen(memory)?
        };
        Ok(Received { more, call })
    }

    /// Adds the next frame of the guest to the batch; false if there is no room for it.
    fn receive_one(&mut self, memory: &impl Memory, batch: &mut Batch) -> Result<bool, RingError> {
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
        let is_long = frame_bytes >= LENT_BYTES && frame_bytes <= buffer.len();
        let now = if is_long { HEAD_BYTES } else { buffer.len() };
        let mut header = [0; HEADER_BYTES];
        let mut segments = Segments::new(&self.chain.segments);
        if frame_bytes > 0 {
            segments.read(memory, &mut header[..header_bytes])?;
            segments.read(memory, &mut buffer[..now])?;
        }
        let header = swap_if_big(*header.first_chunk().expect("10 of 12 bytes"));
        let first = self.lent.len();
        if is_long && batch.lend(index, header) {
            self.lent.extend(segments.rest());
        } else {
            if is_long {
                segments.read(memory, batch.rest_mut(index))?;
            }
            batch.set_header(index, header);
        }
        let end = self.lent.len();
        self.taken.push(Taken { head, first, end });
        self.from_guest.take(1);
        Ok(true)
    }

    /// Copies into the batch what is lent of these frames.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn fetch(&self, memory: &impl Memory, batch: &mut Batch, frames: FrameSet) -> Result<(), RingError> {
        for index in batch.lent() & frames {
            Segments::new(self.rest_of(index)).read(memory, batch.rest_mut(index))?;
        }
        Ok(())
    }

    /// Gives the guest back the buffers of the frames in the batch; true if it wants to be called.
    ///
    /// # Errors
    /// If the ring is no longer there.
    pub fn release(&mut self, memory: &impl Memory) -> Result<bool, RingError> {
        for taken in &self.taken {
            self.from_guest.complete(memory, taken.head, 0)?;
        }
        self.forget();
        self.from_guest.publish(memory)
    }

    fn forget(&mut self) {
        self.taken.clear();
        self.lent.clear();
    }

    /// Where the rest of a lent frame is, behind its head.
    fn rest_of(&self, index: usize) -> &[Segment] {
        let taken = self.taken.get(index);
        taken.map_or(&[], |taken| &self.lent[taken.first..taken.end])
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
    /// than [`Device::offloads`] of the guest. Of frames that are lent, the lender must be known.
    ///
    /// # Errors
    /// If there is anything wrong with the ring.
    pub fn send<M: Memory>(
        &mut self,
        memory: &M,
        batch: &Batch,
        frames: FrameSet,
        lender: Option<&Lender<'_, M>>,
    ) -> Result<Sent, RingError> {
        let before = self.to_guest.clone();
        let mut ready = self.to_guest.ready(memory)?;
        self.to_guest.prefetch(memory, frames.len());
        let mut sent = 0;
        let mut end = End::Done;
        for index in frames.iter() {
            let mut given = self.give(memory, batch, index, lender, ready)?;
            if given == Given::NotEnough {
                ready = self.to_guest.ready(memory)?;
                given = self.give(memory, batch, index, lender, ready)?;
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
        // What was copied from there may be anything, and the guest has not been told of it yet.
        if lender.is_some_and(|lender| !lender.memory.is_whole()) {
            self.to_guest = before;
            sent = 0;
            end = End::Torn;
        }
        Ok(Sent {
            frames: sent,
            call: self.to_guest.publish(memory)?,
            end,
        })
    }

    /// Copies a frame into buffers of the guest, of which so many chains are ready.
    fn give<M: Memory>(
        &mut self,
        memory: &M,
        batch: &Batch,
        index: usize,
        lender: Option<&Lender<'_, M>>,
        ready: u16,
    ) -> Result<Given, RingError> {
        let frame = batch.frame(index);
        let header_bytes = self.features.header_bytes();
        let missing = if batch.lent().contains(index) {
            batch.wire_len(index) - frame.len()
        } else {
            0
        };
        let needed = (header_bytes + frame.len() + missing) as u64;
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
        if missing > 0 {
            let Some(Lender { device, memory: from }) = lender else {
                return Ok(Given::Never);
            };
            segments.fill(memory, &mut Segments::new(device.rest_of(index)), *from, missing)?;
        }
        self.to_guest.take(chains);
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

    /// Copies bytes from other buffers.
    fn fill<M: Memory>(
        &mut self,
        memory: &M,
        from: &mut Self,
        other: &M,
        mut bytes: usize,
    ) -> Result<(), OutOfRange> {
        while let Some((mut source, mut piece)) = from.next(bytes) {
            bytes -= piece;
            while let Some((place, part)) = self.next(piece) {
                other.copy_to(source, memory, place, part)?;
                source = source.wrapping_add(part as u64);
                piece -= part;
            }
        }
        Ok(())
    }

    /// What is left.
    fn rest(self) -> impl Iterator<Item = Segment> {
        let current = Some(self.current).filter(|segment| segment.bytes > 0);
        current.into_iter().chain(self.segments.copied())
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

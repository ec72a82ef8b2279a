//! vhost-user messages, as a back end reads them.
//!
//! ```text
//! request u32 | flags u32 | size u32 | size bytes        the machine's byte order; descriptors come with the header
//! ```
//!
//! Source: docs/interop/vhost-user.rst of QEMU, and `arch/um/drivers/virtio_uml.c` of Linux for what UML makes of it.

/// Bytes before the payload of a message.
pub const HEADER_BYTES: usize = 12;

/// The longest payload: a configuration space of 256 bytes, or 8 regions of memory.
pub const LONGEST_PAYLOAD: usize = 272;

/// Bytes of a configuration space at most.
pub const LONGEST_CONFIG: usize = 256;

/// Protocol features of the connection.
pub mod protocol {
    /// Requests can ask for an answer.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// There is a channel for requests of the back end.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space can be read.
    pub const CONFIG: u64 = 1 << 9;
    /// What we offer. UML's driver fails without the second (it asks for an interrupt it has not set up).
    pub const OFFERED: u64 = REPLY_ACK | BACKEND_REQ | CONFIG;
}

mod flag {
    pub(super) const VERSION: u32 = 1;
    pub(super) const VERSION_MASK: u32 = 3;
    pub(super) const REPLY: u32 = 4;
    pub(super) const NEED_REPLY: u32 = 8;
}

/// The beginning of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The number of the request.
    pub request: u32,
    /// Whether an answer is wanted of a request that has none by itself.
    pub need_reply: bool,
    /// Bytes that follow.
    pub payload_bytes: usize,
}

/// A part of a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The guest's address.
    pub guest: u64,
    /// Bytes.
    pub bytes: u64,
    /// The address in the front end.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// A number for one of the queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueValue {
    /// The queue.
    pub queue: usize,
    /// Entries, a position, or 0 and 1 for off and on.
    pub value: u32,
}

/// Where the front end has a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueuePlace {
    /// The queue.
    pub queue: usize,
    /// Addresses in the front end.
    pub descriptors: u64,
    /// The same, of the used ring.
    pub used: u64,
    /// The same, of the available ring.
    pub available: u64,
}

/// A request of the front end. Descriptors that belong to it stand beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Which virtio features there are.
    GetFeatures,
    /// Which of them the guest has taken.
    SetFeatures(u64),
    /// The front end is there.
    SetOwner,
    /// It is no longer; queues stop.
    ResetOwner,
    /// The guest's memory, with a file for each region.
    SetMemTable(Vec<Region>),
    /// Entries of a queue.
    SetQueueSize(QueueValue),
    /// Where it is.
    SetQueuePlace(QueuePlace),
    /// The position to start from.
    SetQueueBase(QueueValue),
    /// Stops a queue and asks for its position.
    GetQueueBase(QueueValue),
    /// The queue is kicked by this descriptor, and starts.
    SetKick {
        /// The queue.
        queue: usize,
        /// False if it is to be polled.
        has_fd: bool,
    },
    /// The guest is called by this descriptor.
    SetCall {
        /// The queue.
        queue: usize,
        /// False if the guest polls.
        has_fd: bool,
    },
    /// The guest is told of errors by this descriptor.
    SetErr,
    /// Which features the connection has.
    GetProtocolFeatures,
    /// Which of them are used.
    SetProtocolFeatures(u64),
    /// How many pairs of queues there may be.
    GetQueueNum,
    /// A queue goes on or off.
    SetQueueEnable(QueueValue),
    /// The channel for our requests.
    SetBackendReqFd,
    /// Reads the configuration space.
    GetConfig {
        /// The first byte.
        offset: u32,
        /// How many.
        bytes: u32,
        /// To be repeated in the answer.
        flags: u32,
    },
    /// Writes it.
    SetConfig,
}

/// Why a message is not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// It is of another version, or an answer.
    #[error("a message has flags {0:#x}")]
    Flags(u32),
    /// More than any message has.
    #[error("a message has {0} bytes")]
    Length(u32),
    /// A request we did not offer, or do not know.
    #[error("request {0} is not supported")]
    Unknown(u32),
    /// Its payload is not what the request has.
    #[error("request {0} has a payload of {1} bytes")]
    Payload(u32, usize),
    /// A network card of one pair has no such queue.
    #[error("there is no queue {0}")]
    Queue(u32),
    /// More regions than a message has.
    #[error("the guest has {0} regions of memory")]
    Regions(u32),
    /// Writes of ours would have to be logged.
    #[error("logging of what is written is not supported")]
    Log,
}

/// Reads the beginning of a message.
///
/// # Errors
/// If it is none of a front end, or too long.
pub fn header(bytes: [u8; HEADER_BYTES]) -> Result<Header, MessageError> {
    let [request, flags, size] = [0, 4, 8].map(|at| word(&bytes, at));
    if flags & flag::VERSION_MASK != flag::VERSION || flags & flag::REPLY != 0 {
        return Err(MessageError::Flags(flags));
    }
    let payload_bytes = usize::try_from(size).unwrap_or(usize::MAX);
    if payload_bytes > LONGEST_PAYLOAD {
        return Err(MessageError::Length(size));
    }
    Ok(Header {
        request,
        need_reply: flags & flag::NEED_REPLY != 0,
        payload_bytes,
    })
}

/// Reads a request of which all bytes are there.
///
/// # Errors
/// If it is not one of those we know, or its payload is not what it has.
pub fn request(header: Header, payload: &[u8]) -> Result<Request, MessageError> {
    let wrong = MessageError::Payload(header.request, payload.len());
    let exactly = |bytes: usize| (payload.len() == bytes).then_some(()).ok_or(wrong);
    let number = || exactly(8).map(|()| long(payload, 0));
    let value = || {
        exactly(8)?;
        Ok(QueueValue {
            queue: queue(word(payload, 0))?,
            value: word(payload, 4),
        })
    };
    let descriptor = || {
        const NO_FD: u64 = 1 << 8;
        let number = number()?;
        let low = u32::try_from(number & 0xff).expect("eight bits");
        Ok((queue(low)?, number & NO_FD == 0))
    };
    Ok(match header.request {
        1 => Request::GetFeatures,
        2 => Request::SetFeatures(number()?),
        3 => Request::SetOwner,
        4 => Request::ResetOwner,
        5 => Request::SetMemTable(regions(payload, wrong)?),
        6 | 7 => return Err(MessageError::Log),
        8 => Request::SetQueueSize(value()?),
        9 => {
            exactly(40)?;
            const LOGGED: u32 = 1;
            if word(payload, 4) & LOGGED != 0 {
                return Err(MessageError::Log);
            }
            Request::SetQueuePlace(QueuePlace {
                queue: queue(word(payload, 0))?,
                descriptors: long(payload, 8),
                used: long(payload, 16),
                available: long(payload, 24),
            })
        }
        10 => Request::SetQueueBase(value()?),
        11 => Request::GetQueueBase(value()?),
        12 => descriptor().map(|(queue, has_fd)| Request::SetKick { queue, has_fd })?,
        13 => descriptor().map(|(queue, has_fd)| Request::SetCall { queue, has_fd })?,
        14 => descriptor().map(|_| Request::SetErr)?,
        15 => Request::GetProtocolFeatures,
        16 => Request::SetProtocolFeatures(number()?),
        17 => Request::GetQueueNum,
        18 => Request::SetQueueEnable(value()?),
        21 => Request::SetBackendReqFd,
        24 => {
            let bytes = payload.len().checked_sub(12).ok_or(wrong)?;
            let (offset, size) = (word(payload, 0), word(payload, 4));
            let end = u64::from(offset) + u64::from(size);
            // UML asks from 0 on, whatever it wants, and QEMU for all.
            if size as usize != bytes || end > LONGEST_CONFIG as u64 {
                return Err(wrong);
            }
            Request::GetConfig {
                offset,
                bytes: size,
                flags: word(payload, 8),
            }
        }
        25 => Request::SetConfig,
        other => return Err(MessageError::Unknown(other)),
    })
}

/// The answer to a request: a message with the same number.
pub fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a short payload");
    let header = [request, flag::VERSION | flag::REPLY, size].map(u32::to_ne_bytes);
    [header.as_flattened(), payload].concat()
}

/// The answer to [`Request::GetConfig`].
pub fn config_reply(request: u32, space: &[u8], offset: u32, bytes: u32, flags: u32) -> Vec<u8> {
    let mut payload = [offset, bytes, flags]
        .map(u32::to_ne_bytes)
        .as_flattened()
        .to_vec();
    let from = (offset as usize).min(space.len());
    let known = &space[from..(from + bytes as usize).min(space.len())];
    payload.extend(known);
    payload.resize(HEADER_BYTES + bytes as usize, 0);
    reply(request, &payload)
}

fn regions(payload: &[u8], wrong: MessageError) -> Result<Vec<Region>, MessageError> {
    const REGION_BYTES: usize = 32;
    let (head, rest) = payload.split_at_checked(8).ok_or(wrong)?;
    let count = word(head, 0);
    if !(1..=8).contains(&count) {
        return Err(MessageError::Regions(count));
    }
    // UML sends room for two regions, whatever their number.
    let bytes = rest.get(..count as usize * REGION_BYTES).ok_or(wrong)?;
    let region = |bytes: &[u8]| Region {
        guest: long(bytes, 0),
        bytes: long(bytes, 8),
        user: long(bytes, 16),
        offset: long(bytes, 24),
    };
    Ok(bytes.chunks_exact(REGION_BYTES).map(region).collect())
}

/// Queue 0 is the guest's receive queue, queue 1 its transmit queue.
fn queue(number: u32) -> Result<usize, MessageError> {
    match number {
        0 => Ok(0),
        1 => Ok(1),
        other => Err(MessageError::Queue(other)),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..].first_chunk();
    u32::from_ne_bytes(*bytes.expect("the caller has checked the length"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..].first_chunk();
    u64::from_ne_bytes(*bytes.expect("the caller has checked the length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(number: u32, payload: &[u8]) -> Result<Request, MessageError> {
        let size = u32::try_from(payload.len()).unwrap();
        let bytes = [number, 1, size].map(u32::to_ne_bytes);
        request(header(*bytes.as_flattened().first_chunk().unwrap())?, payload)
    }

    fn longs(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    #[test]
    fn headers_are_checked() {
        let check =
            |words: [u32; 3]| header(*words.map(u32::to_ne_bytes).as_flattened().first_chunk().unwrap());
        let good = check([1, 9, 0]).unwrap();
        assert_eq!((good.request, good.need_reply, good.payload_bytes), (1, true, 0));
        assert_eq!(check([1, 2, 0]), Err(MessageError::Flags(2)));
        assert_eq!(check([1, 5, 0]), Err(MessageError::Flags(5)));
        assert_eq!(check([1, 1, 273]), Err(MessageError::Length(273)));
    }

    #[test]
    fn umls_memory_table_has_room_to_spare() {
        let payload = longs(&[1, 0x1000, 0x2000, 0x3000, 0x4000, 0, 0, 0, 0]);
        let region = Region {
            guest: 0x1000,
            bytes: 0x2000,
            user: 0x3000,
            offset: 0x4000,
        };
        assert_eq!(parse(5, &payload), Ok(Request::SetMemTable(vec![region])));
        assert_eq!(parse(5, &payload[..40]), Ok(Request::SetMemTable(vec![region])));
        assert_eq!(parse(5, &payload[..39]), Err(MessageError::Payload(5, 39)));
        assert_eq!(parse(5, &longs(&[0])), Err(MessageError::Regions(0)));
        assert_eq!(parse(5, &longs(&[9])), Err(MessageError::Regions(9)));
        assert_eq!(parse(5, &[]), Err(MessageError::Payload(5, 0)));
    }

    #[test]
    fn queues_are_known_and_lengths_exact() {
        let words = |a: u32, b: u32| [a, b].map(u32::to_ne_bytes).as_flattened().to_vec();
        let value = QueueValue { queue: 1, value: 256 };
        assert_eq!(parse(8, &words(1, 256)), Ok(Request::SetQueueSize(value)));
        assert_eq!(parse(8, &words(2, 256)), Err(MessageError::Queue(2)));
        assert_eq!(parse(8, &[0; 4]), Err(MessageError::Payload(8, 4)));
        let kick = |number| parse(12, &longs(&[number]));
        assert_eq!(
            kick(0x101),
            Ok(Request::SetKick {
                queue: 1,
                has_fd: false
            })
        );
        assert_eq!(
            kick(0),
            Ok(Request::SetKick {
                queue: 0,
                has_fd: true
            })
        );
        let place = [words(1, 0), longs(&[1, 2, 3, 4])].concat();
        let expected = QueuePlace {
            queue: 1,
            descriptors: 1,
            used: 2,
            available: 3,
        };
        assert_eq!(parse(9, &place), Ok(Request::SetQueuePlace(expected)));
        let logged = [words(1, 1), longs(&[1, 2, 3, 4])].concat();
        assert_eq!(parse(9, &logged), Err(MessageError::Log));
        assert_eq!(parse(6, &longs(&[1, 2])), Err(MessageError::Log));
        assert_eq!(parse(35, &words(0, 0)), Err(MessageError::Unknown(35)));
    }

    #[test]
    fn any_part_of_the_configuration_can_be_asked_for() {
        let ask = |offset: u32, bytes: u32| {
            let mut payload = [offset, bytes, 7].map(u32::to_ne_bytes).as_flattened().to_vec();
            payload.resize(12 + bytes as usize, 0);
            parse(24, &payload)
        };
        assert!(ask(0, 1).is_ok() && ask(250, 6).is_ok());
        assert!(ask(250, 7).is_err() && ask(u32::MAX, 1).is_err());
        let answer = config_reply(24, &[1, 2, 3], 1, 4, 7);
        assert_eq!(
            answer[..12],
            *[24_u32, 5, 16].map(u32::to_ne_bytes).as_flattened()
        );
        assert_eq!(
            answer[12..24],
            *[1_u32, 4, 7].map(u32::to_ne_bytes).as_flattened()
        );
        assert_eq!(answer[24..], [2, 3, 0, 0]);
        assert_eq!(config_reply(24, &[1, 2, 3], 200, 2, 0)[24..], [0, 0]);
    }
}

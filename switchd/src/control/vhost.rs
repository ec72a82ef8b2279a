//! Guests that share their memory (vhost-user, such as UML's `virtio_uml.device=SOCKET:1`): the back end's side of the
//! conversation that sets a port up.
//!
//! A connection has a port number for as long as it lives, and a port whenever both of its queues run. Before anything
//! about queues or memory changes, the port is taken from the worker, which then touches them no more.
//!
//! ```text
//! connected --features, memory, queues set up and on--> running --a queue off, or new memory--> connected
//!      all --message not understood, ring not sound, memory gone, process ended, domain removed--> closed
//! ```

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fabric::{MacAddr, PortId};
use netio::shm::{self, Call, SharedMemory};
use netio::unix::receive_with_fds;
use proto::ctl::Peer;
use proto::vhost::{
    HEADER_BYTES, MessageError, QueuePlace, QueueValue, Request, config_reply, header, protocol, reply,
    request,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use virtio::config::{CONFIG_BYTES, Features, OFFERED, config, feature};
use virtio::{Device, Layout, Memory, RingError};

use super::accept::PAUSE;
use super::domain::Domain;
use super::handshake::Refusal;
use super::peer;
use super::registry::Registry;
use crate::datapath::NewPort;
use crate::datapath::port::{Identity, Link};
use crate::datapath::vhost::{self, Fault, Outcome};

/// Why a guest's connection is closed by us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VhostError {
    /// It says what we do not understand.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It does not speak, or cannot be spoken to, as it should.
    #[error("the connection failed")]
    Connection(#[source] io::Error),
    /// It wants more than was offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// Its memory cannot be used.
    #[error("cannot map the memory it shares: {0}")]
    Memory(#[source] io::Error),
    /// A descriptor that should have come has not, or is of the wrong kind.
    #[error("a descriptor is missing, or not what it should be")]
    Descriptor,
    /// A queue is said to be where no memory is.
    #[error("queue {0} is not in the memory it shares")]
    Place(usize),
    /// Its queues cannot be used.
    #[error("its queues cannot be used: {0}")]
    Rings(#[from] RingError),
    /// What it has done while its port was running.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The port cannot be attached.
    #[error("cannot attach its port")]
    Attach(#[source] io::Error),
}

/// Accepts guests of a domain for as long as the domain exists.
pub(crate) async fn accept(registry: Arc<Registry>, domain: Arc<Domain>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("domain {}: cannot accept a guest: {error}", domain.spec.domain);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match Session::new(&registry, &domain, stream) {
            Ok(session) => drop(tokio::spawn(session.run())),
            Err(refusal) => registry.refuse(&domain, &refusal),
        }
    }
}

/// How long a guest that we hang up on may take to let its card go.
const FAREWELL: Duration = Duration::from_secs(10);

/// One of the two queues, as far as the guest has described it.
#[derive(Default)]
struct Queue {
    size: u32,
    place: Option<QueuePlace>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
}

/// A port that the worker has.
struct Running {
    /// Ends with the port's link.
    gone: oneshot::Receiver<Infallible>,
    outcome: Arc<Outcome>,
}

/// A guest's connection.
struct Session {
    registry: Arc<Registry>,
    domain: Arc<Domain>,
    peer: Peer,
    id: PortId,
    name: String,
    config: [u8; CONFIG_BYTES],
    stream: UnixStream,
    reader: Reader,
    features: Features,
    memory: Option<Arc<SharedMemory>>,
    queues: [Queue; 2],
    /// Where we could make requests. A guest that finds it closed would never stop looking at it.
    backend: Option<OwnedFd>,
    running: Option<Running>,
}

impl Session {
    fn new(registry: &Arc<Registry>, domain: &Arc<Domain>, stream: UnixStream) -> Result<Self, Refusal> {
        let peer = peer::credentials(&stream)?;
        if !registry.admits(peer.uid) {
            return Err(Refusal::Foreign(peer.uid));
        }
        let id = domain.reserve(None).map_err(Refusal::Taken)?;
        let socket = domain
            .sockets
            .vhost
            .as_deref()
            .unwrap_or(std::path::Path::new(""));
        let card = domain.take_name(peer::vhost_cards(peer, socket));
        let (name, mac) = card.unwrap_or_else(|| (peer::name(peer, socket, ""), any_mac(peer, id)));
        Ok(Self {
            registry: Arc::clone(registry),
            domain: Arc::clone(domain),
            peer,
            id,
            name,
            config: config(mac, domain.spec.mtu),
            stream,
            reader: Reader::default(),
            features: Features::default(),
            memory: None,
            queues: Default::default(),
            backend: None,
            running: None,
        })
    }

    /// Converses with the guest until one of the two has enough.
    async fn run(mut self) {
        let ended = process_end(self.peer, Arc::clone(&self.domain));
        tokio::pin!(ended);
        let registry = Arc::clone(&self.registry);
        let mut guest_left = false;
        loop {
            let departed = registry.departed.notified();
            if self.domain.is_removed() {
                break;
            }
            let Self {
                reader,
                stream,
                running,
                ..
            } = &mut self;
            let gone = async {
                match running {
                    Some(Running { gone, .. }) => drop(gone.await),
                    None => std::future::pending().await,
                }
            };
            let result = tokio::select! {
                message = reader.next(stream) => match message {
                    Ok(Some(message)) => self.hear(message).await,
                    Ok(None) => {
                        guest_left = true;
                        break;
                    }
                    Err(error) => Err(error),
                },
                () = gone => match self.running.take().and_then(|running| running.outcome.fault()) {
                    Some(fault) => Err(fault.into()),
                    // Somebody has ended the port.
                    None => break,
                },
                () = &mut ended => {
                    guest_left = true;
                    break;
                }
                () = departed => Ok(()),
            };
            if let Err(error) = result {
                self.registry.refuse(&self.domain, &Refusal::Vhost(error));
                break;
            }
        }
        self.domain.release_name(&self.name);
        registry.detach(&self.domain, self.id).await;
        if !guest_left {
            let [to_guest, from_guest] = self.queues.map(|queue| queue.call);
            drop((self.stream, self.backend));
            tokio::join!(outlive(to_guest), outlive(from_guest));
        }
    }

    /// Does what a message says, and answers.
    async fn hear(&mut self, message: Message) -> Result<(), VhostError> {
        let Message {
            number,
            need_reply,
            payload,
            fds,
        } = message;
        let answer = match payload {
            Ok(request) => self.obey(number, request, fds).await,
            Err(error) => Err(error.into()),
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) if need_reply => reply(number, &0_u64.to_ne_bytes()),
            Ok(None) => return Ok(()),
            Err(error) => {
                if need_reply {
                    let _ = self.stream.try_write(&reply(number, &1_u64.to_ne_bytes()));
                }
                return Err(error);
            }
        };
        // It waits for the answer: if there is no room for it, it is not reading.
        match self.stream.try_write(&answer) {
            Ok(sent) if sent == answer.len() => Ok(()),
            Ok(_) => Err(VhostError::Connection(io::ErrorKind::WouldBlock.into())),
            Err(error) => Err(VhostError::Connection(error)),
        }
    }

    /// Does what a request says; its answer, if it has one of its own.
    async fn obey(
        &mut self,
        number: u32,
        request: Request,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Option<Vec<u8>>, VhostError> {
        let long = |value: u64| Some(reply(number, &value.to_ne_bytes()));
        match request {
            Request::GetFeatures => return Ok(long(OFFERED)),
            Request::GetProtocolFeatures => return Ok(long(protocol::OFFERED)),
            Request::GetQueueNum => return Ok(long(1)),
            Request::GetConfig { offset, bytes, flags } => {
                return Ok(Some(config_reply(number, &self.config, offset, bytes, flags)));
            }
            // Descriptors that would tell the guest of errors are not used: it learns of them by the connection's end.
            Request::SetOwner | Request::SetConfig | Request::SetErr => {}
            Request::SetProtocolFeatures(bits) if bits & !protocol::OFFERED != 0 => {
                return Err(VhostError::Features(bits));
            }
            Request::SetProtocolFeatures(_) => {}
            Request::SetBackendReqFd => self.backend = fds.pop(),
            Request::SetFeatures(bits) => {
                self.stop().await;
                self.features = Features::new(bits).ok_or(VhostError::Features(bits))?;
                if !self.features.has(feature::PROTOCOL_FEATURES) {
                    self.queues.iter_mut().for_each(|queue| queue.enabled = true);
                }
            }
            Request::ResetOwner => {
                self.stop().await;
                self.queues = Default::default();
            }
            Request::SetMemTable(regions) => {
                self.stop().await;
                self.memory = None;
                self.memory = Some(Arc::new(map(&regions, fds)?));
            }
            Request::SetQueueSize(QueueValue { queue, value }) => self.quiet(queue).await.size = value,
            Request::SetQueuePlace(place) => self.quiet(place.queue).await.place = Some(place),
            Request::SetQueueBase(QueueValue { queue, value }) => {
                // Positions are counted in 16 bits.
                self.quiet(queue).await.base = low_word(value);
            }
            Request::GetQueueBase(QueueValue { queue, .. }) => {
                let stopped = self.quiet(queue).await;
                stopped.kick = None;
                let words = [queue_number(queue), u32::from(stopped.base)].map(u32::to_ne_bytes);
                return Ok(Some(reply(number, words.as_flattened())));
            }
            Request::SetQueueEnable(QueueValue { queue, value }) => {
                self.quiet(queue).await.enabled = value != 0;
            }
            Request::SetKick { queue, has_fd } => {
                // Without a kick, a queue would have to be polled.
                let kick = fds.pop().filter(|kick| has_fd && shm::is_eventfd(kick.as_fd()));
                self.quiet(queue).await.kick = Some(kick.ok_or(VhostError::Descriptor)?);
            }
            Request::SetCall { queue, has_fd } => {
                let call = fds.pop();
                if call.is_some() != has_fd {
                    return Err(VhostError::Descriptor);
                }
                self.quiet(queue).await.call = call;
            }
        }
        self.try_start().await?;
        Ok(None)
    }

    /// A queue, to be changed: nobody uses it.
    async fn quiet(&mut self, queue: usize) -> &mut Queue {
        self.stop().await;
        &mut self.queues[queue]
    }

    /// Has a port if there is all that it takes.
    async fn try_start(&mut self) -> Result<(), VhostError> {
        let ready = |queue: &Queue| queue.enabled && queue.kick.is_some() && queue.place.is_some();
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        if self.running.is_some() || !self.queues.iter().all(ready) {
            return Ok(());
        }
        let mut rings = [(Layout::default(), 0); 2];
        for (ring, (number, queue)) in rings.iter_mut().zip(self.queues.iter().enumerate()) {
            *ring = (layout(number, queue, &memory)?, queue.base);
        }
        let device = Device::new(rings, self.features, &*memory);
        if !memory.is_whole() {
            return Err(Fault::Truncated.into());
        }
        let [to_guest, from_guest] = &self.queues;
        let outcome = Arc::new(Outcome::default());
        let link = vhost::Link::new(
            device?,
            memory,
            [kick(to_guest)?, kick(from_guest)?],
            [call(to_guest)?, call(from_guest)?],
            Arc::clone(&outcome),
        );
        let (alive, gone) = oneshot::channel();
        let port = NewPort {
            id: self.id,
            link: Link::Vhost(Box::new(link)),
            identity: Identity::now(self.name.clone(), Some(self.peer)),
            alive,
        };
        let attached = self.registry.attach(&self.domain, port).await;
        attached.map_err(VhostError::Attach)?;
        tracing::debug!("domain {}: port {} attached", self.domain.spec.domain, self.id);
        self.running = Some(Running { gone, outcome });
        Ok(())
    }

    /// Takes the port from the worker, once what the guest had sent is forwarded.
    async fn stop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.registry.unplug(&self.domain, self.id).await;
        for (number, queue) in self.queues.iter_mut().enumerate() {
            queue.base = running.outcome.position(number);
        }
    }
}

/// Keeps a call descriptor until the guest has closed its end: Linux warns at each interrupt that a socket closed by us
/// makes. Eventfds have no other end.
async fn outlive(call: Option<OwnedFd>) {
    let Some(call) = call.filter(|call| !shm::is_eventfd(call.as_fd())) else {
        return;
    };
    let call = std::os::unix::net::UnixStream::from(call);
    // Guests write nothing there: the end is all that can be heard.
    if call.set_nonblocking(true).is_ok()
        && let Ok(call) = UnixStream::from_std(call)
    {
        let _ = tokio::time::timeout(FAREWELL, call.readable()).await;
    }
}

/// Waits for the end of the guest's process.
async fn process_end(peer: Peer, domain: Arc<Domain>) {
    if let Err(error) = peer::ended(peer).await {
        tracing::warn!(
            "domain {}: cannot watch pid {}: {error}",
            domain.spec.domain,
            peer.pid
        );
        std::future::pending().await
    }
}

/// An address for a guest that nothing is known of: not the same twice.
fn any_mac(peer: Peer, id: PortId) -> MacAddr {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    proto::mac::of_machine(&format!("{} {now}", peer.pid), &id.to_string())
}

fn map(regions: &[proto::vhost::Region], fds: Vec<OwnedFd>) -> Result<SharedMemory, VhostError> {
    let regions: Vec<_> = regions
        .iter()
        .map(|region| shm::Region {
            guest: region.guest,
            user: region.user,
            bytes: region.bytes,
            offset: region.offset,
        })
        .collect();
    SharedMemory::map(&regions, fds).map_err(VhostError::Memory)
}

/// A queue by the guest's addresses.
fn layout(number: usize, queue: &Queue, memory: &SharedMemory) -> Result<Layout, VhostError> {
    let missing = VhostError::Place(number);
    let Some(place) = queue.place else {
        return Err(missing);
    };
    let [descriptors, available, used] =
        [place.descriptors, place.available, place.used].map(|address| memory.guest_address(address));
    match (descriptors, available, used) {
        (Some(descriptors), Some(available), Some(used)) => Ok(Layout {
            size: u16::try_from(queue.size).unwrap_or(0),
            descriptors,
            available,
            used,
        }),
        _ => Err(missing),
    }
}

fn kick(queue: &Queue) -> Result<OwnedFd, VhostError> {
    let fd = queue.kick.as_ref().ok_or(VhostError::Descriptor)?;
    fd.try_clone().map_err(VhostError::Attach)
}

fn call(queue: &Queue) -> Result<Option<Call>, VhostError> {
    let Some(fd) = &queue.call else { return Ok(None) };
    let fd = fd.try_clone().map_err(VhostError::Attach)?;
    Call::new(fd).map(Some).map_err(|_| VhostError::Descriptor)
}

fn queue_number(queue: usize) -> u32 {
    u32::try_from(queue).expect("0 or 1")
}

#[expect(clippy::cast_possible_truncation, reason = "what is above does not count")]
fn low_word(value: u32) -> u16 {
    value as u16
}

/// A whole message.
struct Message {
    number: u32,
    need_reply: bool,
    payload: Result<Request, MessageError>,
    fds: Vec<OwnedFd>,
}

/// Puts messages together. Never reads beyond the end of one: the descriptors of the next come with its first byte.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// More descriptors than any message has.
const MOST_FDS: usize = shm::REGIONS;

impl Reader {
    /// The next message; `None` at the end. Loses nothing if it is given up half-way.
    async fn next(&mut self, stream: &UnixStream) -> Result<Option<Message>, VhostError> {
        loop {
            let missing = match self.bytes.first_chunk::<HEADER_BYTES>() {
                None => HEADER_BYTES - self.bytes.len(),
                Some(first) => {
                    let header = header(*first)?;
                    let missing = HEADER_BYTES + header.payload_bytes - self.bytes.len();
                    if missing == 0 {
                        let bytes = std::mem::take(&mut self.bytes);
                        return Ok(Some(Message {
                            number: header.request,
                            need_reply: header.need_reply,
                            payload: request(header, &bytes[HEADER_BYTES..]),
                            fds: std::mem::take(&mut self.fds),
                        }));
                    }
                    missing
                }
            };
            stream.readable().await.map_err(VhostError::Connection)?;
            let mut piece = [0; 512];
            let piece = &mut piece[..missing.min(512)];
            let fds = &mut self.fds;
            match stream.try_io(Interest::READABLE, || {
                receive_with_fds(stream.as_fd(), piece, fds)
            }) {
                Ok(0) => return Ok(None),
                Ok(count) => self.bytes.extend(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(VhostError::Connection(error)),
            }
            if self.fds.len() > MOST_FDS {
                return Err(VhostError::Descriptor);
            }
        }
    }
}

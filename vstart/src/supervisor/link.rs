//! The line to the agent in the guest, shared by everybody who runs commands there.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Semaphore, mpsc, watch};

use super::tty::{self, Slave, Tty};
use crate::agent::{Decoder, Frame, Kind, LINE};

/// The line, from the supervisor's side.
pub(crate) struct Link {
    /// What the kernel is given.
    pub(crate) slave: Slave,
    to_agent: mpsc::Sender<Frame>,
    /// Never held across an await. What waits in a channel is bounded by the sender's window.
    channels: Mutex<HashMap<u32, mpsc::UnboundedSender<Frame>>>,
    last_channel: AtomicU32,
    agent_is_there: watch::Receiver<bool>,
}

impl Link {
    /// Makes the line and starts to listen to it.
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        let (tty, slave) = tty::open()?;
        let (from, to) = split(tty);
        let (to_agent, frames) = mpsc::channel(FRAMES);
        let (hello, agent_is_there) = watch::channel(false);
        let link = Arc::new(Self {
            slave,
            to_agent,
            channels: Mutex::default(),
            last_channel: AtomicU32::new(0),
            agent_is_there,
        });
        let in_flight = Arc::new(Semaphore::new(LINE_WINDOW));
        tokio::spawn(send(frames, to, in_flight.clone()));
        tokio::spawn(receive(link.clone(), from, hello, in_flight));
        Ok(link)
    }

    /// Waits for the agent; false if there is none.
    pub(crate) async fn is_ready(&self) -> bool {
        let mut there = self.agent_is_there.clone();
        let there = tokio::time::timeout(AGENT_PATIENCE, there.wait_for(|there| *there)).await;
        matches!(there, Ok(Ok(_)))
    }

    /// Runs a command for a user who speaks in frames as well, until one of the two ends.
    pub(crate) async fn run(&self, words: &[String], mut user: impl AsyncRead + AsyncWrite + Unpin) {
        let channel = self.last_channel.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (sender, mut from_agent) = mpsc::unbounded_channel();
        self.with_channels(|channels| drop(channels.insert(channel, sender)));
        let words = serde_json::to_vec(words).expect("words are text");
        let mut open = self
            .to_agent
            .send(Frame::new(channel, Kind::Run, words))
            .await
            .is_ok();
        let mut decoder = Decoder::default();
        let mut buffer = [0; 4096];
        while open {
            tokio::select! {
                frame = from_agent.recv() => match frame {
                    Some(frame) => {
                        open = user.write_all(&frame.encode()).await.is_ok() && frame.kind != Kind::Exit;
                    }
                    None => open = false,
                },
                length = user.read(&mut buffer) => {
                    let length = length.unwrap_or(0);
                    decoder.push(&buffer[..length]);
                    open = length > 0 && self.pass_on(channel, &mut decoder).await;
                }
            }
        }
        self.with_channels(|channels| drop(channels.remove(&channel)));
        // Without an agent there is nothing to close.
        let _ = self.to_agent.send(Frame::new(channel, Kind::Close, [])).await;
    }

    /// Runs a line for the shell, without input, to its end: its exit status, and what it said.
    pub(crate) async fn command(&self, line: &str) -> io::Result<(u8, String)> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut from, mut to) = split(ours);
        let words = [line.to_owned()];
        let command = self.run(&words, theirs);
        let conversation = async {
            to.write_all(&Frame::new(0, Kind::InputEnd, []).encode()).await?;
            let (mut decoder, mut buffer, mut said) = (Decoder::default(), [0; 4096], Vec::new());
            loop {
                match from.read(&mut buffer).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    length => decoder.push(&buffer[..length]),
                }
                while let Some(frame) = decoder.frame().map_err(io::Error::other)? {
                    match frame.kind {
                        // More than a window of it is a command that is not meant to be run here.
                        Kind::Output | Kind::Error => said.extend(frame.contents),
                        Kind::Exit => {
                            let code = frame.contents.first().copied().unwrap_or(1);
                            return Ok((code, String::from_utf8_lossy(&said).into_owned()));
                        }
                        _ => {}
                    }
                }
            }
        };
        let ((), result) = tokio::join!(command, conversation);
        result
    }

    /// Sends the agent what a user has said; false if that makes no sense.
    async fn pass_on(&self, channel: u32, decoder: &mut Decoder) -> bool {
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => {
                    let allowed = matches!(
                        frame.kind,
                        Kind::Input | Kind::InputEnd | Kind::Signal | Kind::Credit
                    );
                    if !allowed || self.to_agent.send(Frame { channel, ..frame }).await.is_err() {
                        return false;
                    }
                }
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn with_channels<T>(&self, work: impl FnOnce(&mut HashMap<u32, mpsc::UnboundedSender<Frame>>) -> T) -> T {
        work(&mut self.channels.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn send(mut frames: mpsc::Receiver<Frame>, mut to: WriteHalf<Tty>, in_flight: Arc<Semaphore>) {
    while let Some(frame) = frames.recv().await {
        for piece in frame.encode().chunks(LINE_WINDOW) {
            let bytes = u32::try_from(piece.len()).expect("a piece is no longer than the line's window");
            let Ok(room) = in_flight.acquire_many(bytes).await else {
                return;
            };
            // The agent gives it back.
            room.forget();
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
    }
}

async fn receive(
    link: Arc<Link>,
    mut from: ReadHalf<Tty>,
    hello: watch::Sender<bool>,
    in_flight: Arc<Semaphore>,
) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    while let Ok(length) = from.read(&mut buffer).await {
        decoder.push(&buffer[..length]);
        loop {
            match decoder.frame() {
                Ok(Some(frame)) if frame.kind == Kind::Hello => drop(hello.send(true)),
                Ok(Some(frame)) if frame.channel == LINE => in_flight.add_permits(frame.credited()),
                Ok(Some(frame)) => {
                    // Whoever ran it may have gone.
                    let user = link.with_channels(|channels| channels.get(&frame.channel).cloned());
                    let _ = user.map(|user| user.send(frame));
                }
                Ok(None) => break,
                // Nothing that comes after can be trusted: every command's user is told by the end of its channel.
                Err(_) => {
                    let _ = hello.send(false);
                    return link.with_channels(HashMap::clear);
                }
            }
        }
    }
}

/// Bytes the guest may not have read yet: its kernel loses what does not fit into the buffer of a serial line.
const LINE_WINDOW: usize = 1024;
/// Frames that may wait for the line; those who send more wait themselves.
const FRAMES: usize = 64;
/// A machine that has just been started gets so long to start its agent.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);

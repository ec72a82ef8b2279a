//! The line to the agent in the guest, shared by everybody who runs commands there.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::tty::{self, Slave, Tty};
use crate::agent::{Decoder, Frame, Garbled, Kind};
use crate::line::{Event, Line, TO_GUEST};

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
        let (to_agent, frames) = mpsc::channel(FRAMES);
        let (there, agent_is_there) = watch::channel(false);
        let link = Arc::new(Self {
            slave,
            to_agent,
            channels: Mutex::default(),
            last_channel: AtomicU32::new(0),
            agent_is_there,
        });
        tokio::spawn(carry(link.clone(), tty, frames, there));
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

    /// Gives every command's user what the agent has said to it.
    fn hand_out(&self, decoder: &mut Decoder) -> Result<(), Garbled> {
        while let Some(frame) = decoder.frame()? {
            // Whoever ran it may have gone.
            let user = self.with_channels(|channels| channels.get(&frame.channel).cloned());
            let _ = user.map(|user| user.send(frame));
        }
        Ok(())
    }

    fn with_channels<T>(&self, work: impl FnOnce(&mut HashMap<u32, mpsc::UnboundedSender<Frame>>) -> T) -> T {
        work(&mut self.channels.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Carries frames over the line, both ways, for as long as there is one.
async fn carry(link: Arc<Link>, tty: Tty, mut frames: mpsc::Receiver<Frame>, there: watch::Sender<bool>) {
    let (mut from, mut to) = split(tty);
    let mut line = Line::answering(TO_GUEST);
    let mut decoder = Decoder::default();
    let (start, mut out, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
    loop {
        if out.is_empty() {
            line.transmit(start.elapsed(), &mut out);
        }
        let deadline = start + line.deadline().unwrap_or_default();
        tokio::select! {
            length = from.read(&mut buffer) => {
                let Ok(length @ 1..) = length else { return };
                for event in line.receive(start.elapsed(), &buffer[..length]) {
                    match event {
                        Event::Connected => {
                            // Another agent knows nothing about the commands of the one before.
                            decoder = Decoder::default();
                            link.with_channels(HashMap::clear);
                            there.send_replace(true);
                        }
                        Event::Bytes(bytes) => decoder.push(&bytes),
                    }
                }
                if link.hand_out(&mut decoder).is_err() {
                    // Nothing that comes after can be trusted: every command's user is told by the end of its channel.
                    there.send_replace(false);
                    return link.with_channels(HashMap::clear);
                }
            }
            length = to.write(&out), if !out.is_empty() => {
                let Ok(length) = length else { return };
                out.drain(..length);
            }
            frame = frames.recv(), if line.has_room() => {
                let Some(frame) = frame else { return };
                // An agent need not hear of a command whose user was told that it has ended.
                let wanted = link.with_channels(|channels| channels.contains_key(&frame.channel));
                if wanted || frame.kind == Kind::Close {
                    line.push(&frame.encode());
                }
            }
            () = sleep_until(deadline), if line.deadline().is_some() && out.is_empty() => {}
        }
    }
}

/// Frames that may wait for the line; those who send more wait themselves.
const FRAMES: usize = 64;
/// A machine that has just been started gets so long to start its agent.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);

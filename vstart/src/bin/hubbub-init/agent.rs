//! Runs commands for users of the host, any number at once, over a serial line.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::sys::termios::{FlushArg, SetArg, cfmakeraw, tcflush, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use vstart::agent::{Decoder, Frame, Kind, LONGEST, Window};
use vstart::line::{Event, Line, TO_HOST};

use crate::session::{environment, home};

/// The first argument that makes the program an agent.
pub(crate) const WORD: &str = "--agent";
/// Further argument: write a line when the agent serves.
pub(crate) const TELL: &str = "tell";
/// The line.
pub(crate) const LINE: &str = "/dev/ttyS0";

/// Starts an agent.
pub(crate) fn start(line: &str) -> io::Result<Child> {
    Command::new(crate::mounts::SELF).args([WORD, line]).spawn()
}

/// Serves until the line ends.
pub(crate) fn run(path: &str, tell: bool) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock signals")?;
    let tty = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
        .open(path)
        .with_context(|| format!("cannot open {path}"))?;
    let mut settings = tcgetattr(&tty).with_context(|| format!("cannot use {path}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&tty, SetArg::TCSANOW, &settings).with_context(|| format!("cannot use {path}"))?;

    let (mut bell, ring) = std::io::pipe().context("cannot make a pipe")?;
    if tell {
        println!("serving");
    }
    let outbox = Outbox(Arc::new(Shared {
        waiting: Mutex::default(),
        room: Condvar::new(),
        bell: ring,
    }));
    let mut commands = Commands {
        outbox: outbox.clone(),
        running: HashMap::new(),
    };
    let start = Instant::now();
    let mut line = Line::calling(epoch(), TO_HOST);
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if out.is_empty() {
            let now = start.elapsed();
            if line.deadline().is_some_and(|deadline| deadline <= now) {
                look_again(&tty);
            }
            line.transmit(now, &mut out);
        }
        let deadline = match line.deadline() {
            _ if !out.is_empty() => Some(STUCK),
            deadline => deadline.map(|deadline| deadline.saturating_sub(start.elapsed())),
        };
        let ready = wait(&tty, !out.is_empty(), line.has_room().then_some(&bell), deadline)?;
        if ready.bell {
            // There is one byte at most.
            bell.read(&mut buffer).context("cannot read a pipe")?;
            line.push(&outbox.take());
        }
        if ready.write {
            let length = again((&tty).write(&out)).with_context(|| format!("cannot write to {path}"))?;
            out.drain(..length.unwrap_or(0));
        } else if ready.late && !out.is_empty() {
            look_again(&tty);
        }
        if !ready.read {
            continue;
        }
        let length = again((&tty).read(&mut buffer)).with_context(|| format!("cannot read {path}"))?;
        anyhow::ensure!(length != Some(0), "{path} has come to its end");
        for event in line.receive(start.elapsed(), &buffer[..length.unwrap_or(0)]) {
            if let Event::Bytes(bytes) = event {
                decoder.push(&bytes);
            }
        }
        while let Some(frame) = decoder.frame()? {
            commands.take(frame);
        }
    }
}

/// Makes the kernel pass on what it has of ours. It may have missed that the host has read and can take more.
fn look_again(tty: &File) {
    // UML's driver takes this for a request to write, not to forget; and what is lost comes again.
    let _ = tcflush(tty, FlushArg::TCOFLUSH);
}

/// A number that no agent before had.
fn epoch() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let low = u32::try_from(now.as_nanos() % (1 << 32)).expect("the rest is smaller");
    low ^ std::process::id().rotate_left(16)
}

/// What [`wait`] has found.
struct Ready {
    read: bool,
    write: bool,
    bell: bool,
    /// Nothing of that, in time.
    late: bool,
}

/// Waits until something can be read or written, or somebody has rung, or it is time.
fn wait(tty: &File, to_write: bool, bell: Option<&PipeReader>, deadline: Option<Duration>) -> Result<Ready> {
    let mut wanted = PollFlags::POLLIN;
    wanted.set(PollFlags::POLLOUT, to_write);
    let mut fds = vec![PollFd::new(tty.as_fd(), wanted)];
    fds.extend(bell.map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)));
    // Rounded up, or it would be early and find nothing to do.
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        PollTimeout::try_from(deadline + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    let count = match poll(&mut fds, timeout) {
        Err(Errno::EINTR) => 0,
        count => count.context("cannot wait")?,
    };
    let found = |index: usize| {
        fds.get(index)
            .and_then(PollFd::revents)
            .unwrap_or(PollFlags::empty())
    };
    Ok(Ready {
        read: found(0).intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR),
        write: found(0).contains(PollFlags::POLLOUT),
        bell: !found(1).is_empty(),
        late: count == 0,
    })
}

/// `None` if it has to be tried once more.
fn again(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// What waits for the line.
#[derive(Clone)]
struct Outbox(Arc<Shared>);

struct Shared {
    waiting: Mutex<Vec<u8>>,
    room: Condvar,
    /// Holds a byte as long as something waits.
    bell: PipeWriter,
}

impl Outbox {
    /// Sends a frame as soon as there is room.
    fn send(&self, frame: &Frame) {
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self
            .0
            .room
            .wait_while(waiting, |waiting| waiting.len() >= LONGEST);
        self.add(waiting.unwrap_or_else(PoisonError::into_inner), frame);
    }

    /// Sends a frame even if there is no room: for the one who makes room.
    fn send_at_once(&self, frame: &Frame) {
        self.add(
            self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner),
            frame,
        );
    }

    fn add(&self, mut waiting: MutexGuard<Vec<u8>>, frame: &Frame) {
        if waiting.is_empty() {
            // The other end is open as long as there is an agent.
            let _ = (&self.0.bell).write(&[0]);
        }
        waiting.extend(frame.encode());
    }

    fn take(&self) -> Vec<u8> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.room.notify_all();
        std::mem::take(&mut waiting)
    }
}

/// All commands that run.
struct Commands {
    outbox: Outbox,
    running: HashMap<u32, Running>,
}

impl Commands {
    fn take(&mut self, frame: Frame) {
        let channel = frame.channel;
        match frame.kind {
            Kind::Run => match start_command(&frame, &self.outbox) {
                Ok(running) => drop(self.running.insert(channel, running)),
                Err(error) => {
                    let text = format!("{error:#}\n").into_bytes();
                    self.outbox.send_at_once(&Frame::new(channel, Kind::Error, text));
                    self.outbox
                        .send_at_once(&Frame::new(channel, Kind::Exit, [NOT_FOUND]));
                }
            },
            Kind::Close => {
                if let Some(running) = self.running.remove(&channel) {
                    running.signal(Signal::SIGHUP);
                    running.window.give(usize::MAX / 2);
                }
            }
            _ => {
                if let Some(running) = self.running.get(&channel) {
                    running.take(frame);
                }
            }
        }
    }
}

impl Drop for Commands {
    /// Without a line there is nobody they could run for.
    fn drop(&mut self) {
        for running in self.running.values() {
            running.signal(Signal::SIGHUP);
        }
    }
}

/// A command, as the reader of the line sees it.
struct Running {
    group: Pid,
    ended: Arc<AtomicBool>,
    input: Sender<Option<Vec<u8>>>,
    window: Arc<Window>,
}

impl Running {
    fn take(&self, frame: Frame) {
        // A command that reads no more has closed its channel: what is typed is lost, as with a pipe.
        match frame.kind {
            Kind::Input => drop(self.input.send(Some(frame.contents))),
            Kind::InputEnd => drop(self.input.send(None)),
            Kind::Credit => self.window.give(frame.credited()),
            Kind::Signal => {
                let number = frame.contents.first().copied().map(i32::from);
                if let Some(signal) = number.and_then(|number| Signal::try_from(number).ok()) {
                    self.signal(signal);
                }
            }
            _ => {}
        }
    }

    fn signal(&self, signal: Signal) {
        // The number of a command that has ended may be another's by now.
        if !self.ended.load(Ordering::Acquire) {
            let _ = killpg(self.group, signal);
        }
    }
}

fn start_command(frame: &Frame, outbox: &Outbox) -> Result<Running> {
    let words: Vec<String> =
        serde_json::from_slice(&frame.contents).context("cannot understand the command")?;
    let mut command = match words.as_slice() {
        [line] => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", line]);
            shell
        }
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
        [] => anyhow::bail!("there is no command"),
    };
    let mut child = command
        .env_clear()
        .envs(environment("/bin/sh"))
        .current_dir(home())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", words.first().map_or("", String::as_str)))?;
    let channel = frame.channel;
    let window = Arc::new(Window::default());
    let (input, typed) = mpsc::channel();
    let (alive, progress) = mpsc::channel();
    if let Some(stdin) = child.stdin.take() {
        let outbox = outbox.clone();
        thread::spawn(move || feed(channel, stdin, &typed, &outbox));
    }
    if let Some(stdout) = child.stdout.take() {
        let (outbox, window, alive) = (outbox.clone(), window.clone(), alive.clone());
        thread::spawn(move || forward(channel, Kind::Output, stdout, &window, &outbox, &alive));
    }
    if let Some(stderr) = child.stderr.take() {
        let (outbox, window) = (outbox.clone(), window.clone());
        thread::spawn(move || forward(channel, Kind::Error, stderr, &window, &outbox, &alive));
    }
    let group = Pid::from_raw(i32::try_from(child.id()).context("the process number is too large")?);
    let outbox = outbox.clone();
    let ended = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let ended = ended.clone();
        move || finish(channel, child, &progress, &outbox, &ended)
    });
    Ok(Running {
        group,
        ended,
        input,
        window,
    })
}

fn feed(channel: u32, mut stdin: impl Write, typed: &Receiver<Option<Vec<u8>>>, outbox: &Outbox) {
    let mut open = true;
    while let Ok(Some(bytes)) = typed.recv() {
        // Credit is given for what the command does not want as well: its user must not wait for ever.
        open = open && stdin.write_all(&bytes).is_ok();
        outbox.send(&Frame::credit(channel, bytes.len()));
    }
}

fn forward(
    channel: u32,
    kind: Kind,
    mut from: impl Read,
    window: &Window,
    outbox: &Outbox,
    alive: &Sender<()>,
) {
    let mut buffer = [0; LONGEST];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut sent = 0;
        while sent < length {
            let piece = window.take(length - sent);
            outbox.send(&Frame::new(channel, kind, &buffer[sent..sent + piece]));
            sent += piece;
            let _ = alive.send(());
        }
    }
}

/// Waits for the end of the command and then for its output. What it left running in the background may keep the
/// output open: that is not waited for once nothing more comes.
fn finish(channel: u32, mut child: Child, progress: &Receiver<()>, outbox: &Outbox, ended: &AtomicBool) {
    let status = child.wait();
    ended.store(true, Ordering::Release);
    while !matches!(
        progress.recv_timeout(QUIET),
        Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout)
    ) {}
    let code = status.map_or(NOT_FOUND.into(), |status| {
        status.code().unwrap_or(128 + status.signal().unwrap_or(0))
    });
    outbox.send(&Frame::new(
        channel,
        Kind::Exit,
        [u8::try_from(code).unwrap_or(255)],
    ));
}

/// When nothing could be written for so long, the kernel is to look again.
const STUCK: Duration = Duration::from_millis(100);
/// What a shell returns for a command that is not there.
const NOT_FOUND: u8 = 127;
/// How long the output must have been quiet after the end of the command.
const QUIET: Duration = Duration::from_millis(300);

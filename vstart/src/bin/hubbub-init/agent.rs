//! Runs commands for users of the host, any number at once, over a serial line.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use vstart::agent::{self, Decoder, Frame, Kind, LONGEST, Window};

use crate::session::{environment, home};

/// The first argument that makes the program an agent.
pub(crate) const WORD: &str = "--agent";
/// The line.
pub(crate) const LINE: &str = "/dev/ttyS0";

/// Serves until the line ends.
pub(crate) fn run(line: &str) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock signals")?;
    let mut from = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(line)
        .with_context(|| format!("cannot open {line}"))?;
    let mut settings = tcgetattr(&from).with_context(|| format!("cannot use {line}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&from, SetArg::TCSANOW, &settings).with_context(|| format!("cannot use {line}"))?;
    let to = Line(Arc::new(Mutex::new(
        from.try_clone().with_context(|| format!("cannot use {line}"))?,
    )));
    to.send(&Frame::new(0, Kind::Hello, []));

    let mut commands: HashMap<u32, Running> = HashMap::new();
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let length = from
            .read(&mut buffer)
            .with_context(|| format!("cannot read {line}"))?;
        to.send(&Frame::credit(agent::LINE, length));
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.frame()? {
            match frame.kind {
                Kind::Run => match start(&frame, &to) {
                    Ok(running) => drop(commands.insert(frame.channel, running)),
                    Err(error) => {
                        to.send(&Frame::new(
                            frame.channel,
                            Kind::Error,
                            format!("{error:#}\n").into_bytes(),
                        ));
                        to.send(&Frame::new(frame.channel, Kind::Exit, [NOT_FOUND]));
                    }
                },
                Kind::Close => {
                    if let Some(running) = commands.remove(&frame.channel) {
                        running.signal(Signal::SIGHUP);
                        running.window.give(usize::MAX / 2);
                    }
                }
                _ => {
                    if let Some(running) = commands.get(&frame.channel) {
                        running.take(frame);
                    }
                }
            }
        }
    }
}

/// The line, from this side: frames go out whole, one after the other.
#[derive(Clone)]
struct Line(Arc<Mutex<File>>);

impl Line {
    fn send(&self, frame: &Frame) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the line there is nobody to tell; the reading side ends the agent.
        let _ = line.write_all(&frame.encode());
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

fn start(frame: &Frame, line: &Line) -> Result<Running> {
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
        let line = line.clone();
        thread::spawn(move || feed(channel, stdin, &typed, &line));
    }
    if let Some(stdout) = child.stdout.take() {
        let (line, window, alive) = (line.clone(), window.clone(), alive.clone());
        thread::spawn(move || forward(channel, Kind::Output, stdout, &window, &line, &alive));
    }
    if let Some(stderr) = child.stderr.take() {
        let (line, window) = (line.clone(), window.clone());
        thread::spawn(move || forward(channel, Kind::Error, stderr, &window, &line, &alive));
    }
    let group = Pid::from_raw(i32::try_from(child.id()).context("the process number is too large")?);
    let line = line.clone();
    let ended = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let ended = ended.clone();
        move || finish(channel, child, &progress, &line, &ended)
    });
    Ok(Running {
        group,
        ended,
        input,
        window,
    })
}

fn feed(channel: u32, mut stdin: impl Write, typed: &Receiver<Option<Vec<u8>>>, line: &Line) {
    let mut open = true;
    while let Ok(Some(bytes)) = typed.recv() {
        // Credit is given for what the command does not want as well: its user must not wait for ever.
        open = open && stdin.write_all(&bytes).is_ok();
        line.send(&Frame::credit(channel, bytes.len()));
    }
}

fn forward(channel: u32, kind: Kind, mut from: impl Read, window: &Window, line: &Line, alive: &Sender<()>) {
    let mut buffer = [0; LONGEST];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut sent = 0;
        while sent < length {
            let piece = window.take(length - sent);
            line.send(&Frame::new(channel, kind, &buffer[sent..sent + piece]));
            sent += piece;
            let _ = alive.send(());
        }
    }
}

/// Waits for the end of the command and then for its output. What it left running in the background may keep the
/// output open: that is not waited for once nothing more comes.
fn finish(channel: u32, mut child: Child, progress: &Receiver<()>, line: &Line, ended: &AtomicBool) {
    let status = child.wait();
    ended.store(true, Ordering::Release);
    while !matches!(
        progress.recv_timeout(QUIET),
        Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout)
    ) {}
    let code = status.map_or(NOT_FOUND.into(), |status| {
        status.code().unwrap_or(128 + status.signal().unwrap_or(0))
    });
    line.send(&Frame::new(
        channel,
        Kind::Exit,
        [u8::try_from(code).unwrap_or(255)],
    ));
}

/// What a shell returns for a command that is not there.
const NOT_FOUND: u8 = 127;
/// How long the output must have been quiet after the end of the command.
const QUIET: Duration = Duration::from_millis(300);

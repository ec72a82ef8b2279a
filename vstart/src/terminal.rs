//! The user's terminal as the viewer of a machine's console.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::supervisor::{Answer, Request};

/// Ctrl-], which telnet made the key to get away with.
pub const DETACH: u8 = 0x1d;

/// Why a viewer has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// The user has typed the detach key.
    Detached,
    /// The machine has ended.
    MachineEnded,
}

/// Shows a console on this process's standard input and output until the machine ends or the user detaches.
///
/// # Errors
/// When the console cannot be reached, or the terminal cannot be used.
pub fn attach(socket: &Path, console: usize) -> Result<Left> {
    let stdin = io::stdin();
    let request = Request::Attach {
        console,
        window: netio::terminal::window_size(stdin.as_fd()),
    };
    let mut stream = BufReader::new(ask(socket, &request)?);
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .context("cannot read from the machine's supervisor")?;
    match serde_json::from_str(&line).context("cannot understand the machine's supervisor")? {
        Answer::Done => {}
        Answer::Error(message) => bail!(message),
    }

    // Blocked before any thread is started, so that only the watching thread takes them.
    let signals = SigSet::from_iter([Signal::SIGWINCH, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    let raw = Raw::enter()?;
    let detached = Arc::new(AtomicBool::new(false));
    let keyboard = stream
        .get_ref()
        .try_clone()
        .context("cannot use the connection twice")?;
    let is_terminal = raw.is_some();
    std::thread::spawn({
        let detached = detached.clone();
        move || type_into(&keyboard, is_terminal, &detached)
    });
    let hang_up = stream
        .get_ref()
        .try_clone()
        .context("cannot use the connection twice")?;
    std::thread::spawn({
        let (socket, detached) = (socket.to_owned(), detached.clone());
        move || watch(&signals, &socket, console, &hang_up, &detached)
    });
    let shown = show(&mut stream);
    drop(raw);
    shown.context("cannot write to standard output")?;
    Ok(if detached.load(Ordering::Relaxed) {
        Left::Detached
    } else {
        Left::MachineEnded
    })
}

fn ask(socket: &Path, request: &Request) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    let mut line = serde_json::to_string(request).expect("a request has only text keys");
    line.push('\n');
    stream
        .write_all(line.as_bytes())
        .context("cannot write to the machine's supervisor")?;
    Ok(stream)
}

fn show(stream: &mut BufReader<UnixStream>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            // A supervisor that has been killed ends the console like one that is through.
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => {
                out.write_all(&buffer[..length])?;
                out.flush()?;
            }
        }
    }
}

fn type_into(mut stream: &UnixStream, is_terminal: bool, detached: &AtomicBool) {
    let mut input = io::stdin().lock();
    let mut buffer = [0; 1024];
    while let Ok(length) = input.read(&mut buffer) {
        let typed = &buffer[..length];
        if length == 0 {
            // Nothing more to type, but the rest is still to be seen.
            return;
        }
        let detach = typed.iter().position(|b| *b == DETACH).filter(|_| is_terminal);
        if stream.write_all(&typed[..detach.unwrap_or(length)]).is_err() {
            return;
        }
        if detach.is_some() {
            detached.store(true, Ordering::Relaxed);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Passes on the window's size, and leaves on the signals that end a program.
fn watch(signals: &SigSet, socket: &Path, console: usize, stream: &UnixStream, detached: &AtomicBool) {
    while let Ok(signal) = signals.wait() {
        if signal == Signal::SIGWINCH {
            if let Some(window) = netio::terminal::window_size(io::stdin().as_fd()) {
                // The next change will be told again.
                let _ = ask(socket, &Request::Resize { console, window });
            }
        } else {
            detached.store(true, Ordering::Relaxed);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// The terminal in raw mode; as it was when dropped.
struct Raw(Termios);

impl Raw {
    /// `None` if standard input is no terminal.
    fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("cannot change the terminal's settings")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

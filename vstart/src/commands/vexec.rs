//! `vexec`, alias `vcommand`: run a command in a machine.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};
use nix::sys::signal::{SigSet, Signal};

use crate::agent::{Decoder, Frame, Kind, LONGEST, Window};
use crate::name::MachineName;
use crate::registry::Status;
use crate::supervisor::{Answer, Request};

/// Run a command in a machine
///
/// Standard input, output and error, signals and the exit status are those of the command. One word is a line for
/// the shell; several are a program and its arguments. It works beside whatever the console is used for.
#[derive(Debug, Parser)]
#[command(
    name = "vexec",
    version,
    after_help = "Examples:\n  vexec pc1 ip address\n  vexec pc1 'ping -c 1 10.0.0.2 && echo reached'\n  \
                  tar c files | vexec pc1 tar x -C /tmp"
)]
pub(crate) struct Options {
    /// Give the command no input
    #[arg(short, long)]
    no_input: bool,
    /// The machine
    name: MachineName,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The same under the name that netkit-jh gives it, with its options. They were about how long to wait for the output;
/// here that is until the command ends.
pub(super) fn vcommand() -> clap::Command {
    let ignored = |arg: Arg| arg.hide(true);
    Options::command()
        .name("vcommand")
        .mut_arg("no_input", |arg| arg.short(None))
        .arg(ignored(Arg::new("timeout").short('n').long("timeout")))
        .arg(ignored(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::SetTrue),
        ))
}

/// Reads a command line of that name.
pub(super) fn parse_vcommand(args: impl IntoIterator<Item = OsString>) -> Options {
    let matches = vcommand().get_matches_from(args);
    Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let name = &options.name;
    if registry.find(name)?.status == Status::Crashed {
        bail!("machine {name} has crashed\nhint: 'vcrash {name}' clears away what is left of it");
    }
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block().context("cannot block signals")?;
    let socket = registry.dirs().console_socket(name);
    let stream =
        UnixStream::connect(&socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    let mut from = BufReader::new(stream);
    let mut request = serde_json::to_string(&Request::Run {
        words: options.command.clone(),
    })
    .context("no command")?;
    request.push('\n');
    from.get_mut()
        .write_all(request.as_bytes())
        .context("cannot write to the machine's supervisor")?;
    let mut line = String::new();
    from.read_line(&mut line)
        .context("cannot read from the machine's supervisor")?;
    match serde_json::from_str(&line).context("cannot understand the machine's supervisor")? {
        Answer::Done => {}
        Answer::Error(message) => bail!("cannot run commands in machine {name}: {message}"),
    }

    let to = Sender(Arc::new(Mutex::new(
        from.get_ref()
            .try_clone()
            .context("cannot use the connection twice")?,
    )));
    let window = Arc::new(Window::default());
    if options.no_input {
        to.send(&Frame::new(0, Kind::InputEnd, []));
    } else {
        let (to, window) = (to.clone(), window.clone());
        std::thread::spawn(move || pass_input(&to, &window));
    }
    std::thread::spawn({
        let to = to.clone();
        move || {
            let mut told = false;
            while let Ok(signal) = signals.wait() {
                // A command that does not obey is left to itself; the supervisor hangs it up.
                if std::mem::replace(&mut told, true) {
                    std::process::exit(128 + signal as i32);
                }
                let number = u8::try_from(signal as i32).unwrap_or(0);
                to.send(&Frame::new(0, Kind::Signal, [number]));
            }
        }
    });
    match show(from, &to, &window)? {
        Some(code) => Ok(code),
        None if registry
            .find(name)
            .is_ok_and(|machine| machine.status != Status::Crashed) =>
        {
            bail!("machine {name} has started again before the command ended");
        }
        None => bail!("machine {name} ended before the command did"),
    }
}

/// Shows what the command writes, until it ends; `None` if that is not heard of.
fn show(mut from: impl Read, to: &Sender, window: &Window) -> Result<Option<ExitCode>> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let length = match from.read(&mut buffer) {
            // The supervisor ended with something of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            result => result.context("cannot read from the machine's supervisor")?,
        };
        if length == 0 {
            return Ok(None);
        }
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.frame()? {
            match frame.kind {
                Kind::Output => {
                    out.write_all(&frame.contents).and_then(|()| out.flush())?;
                    to.send(&Frame::credit(0, frame.contents.len()));
                }
                Kind::Error => {
                    err.write_all(&frame.contents)?;
                    to.send(&Frame::credit(0, frame.contents.len()));
                }
                Kind::Exit => {
                    let code = frame.contents.first().copied().unwrap_or(1);
                    return Ok(Some(ExitCode::from(code)));
                }
                Kind::Credit => window.give(frame.credited()),
                _ => {}
            }
        }
    }
}

fn pass_input(to: &Sender, window: &Window) {
    let mut input = io::stdin().lock();
    let mut buffer = [0; LONGEST];
    while let Ok(length @ 1..) = input.read(&mut buffer) {
        let mut sent = 0;
        while sent < length {
            let piece = window.take(length - sent);
            to.send(&Frame::new(0, Kind::Input, &buffer[sent..sent + piece]));
            sent += piece;
        }
    }
    to.send(&Frame::new(0, Kind::InputEnd, []));
}

/// The way to the supervisor: frames go out whole, one after the other.
#[derive(Clone)]
struct Sender(Arc<Mutex<UnixStream>>);

impl Sender {
    fn send(&self, frame: &Frame) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // If the supervisor has gone, the reading side tells.
        let _ = stream.write_all(&frame.encode());
    }
}

//! `switchd replay`: sends what a capture has into a domain, as a port of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use proto::DomainName;
use proto::ctl::{Peer, PortRow, Reply, Request};
use proto::uml::{self, ADDRESS_BYTES, Address, Kind, Version};
use std::os::fd::AsFd;

use super::Connection;
use super::savefile::{Frame, Savefile};
use crate::cli::ReplayArguments;

/// Frames sent without a look at the signals, when there is no time to wait for.
const UNWATCHED: u64 = 64;

/// The shortest frame a domain takes.
const SHORTEST: usize = 14;

/// Bytes of socket buffer towards the domain.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// How long the domain may take to read what was sent.
const SETTLE: Duration = Duration::from_secs(10);

pub(super) fn run(mut connection: Connection, arguments: ReplayArguments) -> anyhow::Result<()> {
    // All files are looked at before the first frame goes out. A pipe can be read once only.
    let mut total = 0;
    for path in &arguments.files {
        let metadata = real(path).metadata();
        if metadata.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
            if arguments.repeat != 1 {
                bail!("cannot send {} more than once: it is no file", path.display());
            }
            continue;
        }
        Savefile::open(path, &ProgressBar::hidden())?;
        total += metadata.map_or(0, |metadata| metadata.len());
    }
    let name = arguments
        .name
        .clone()
        .unwrap_or_else(|| default_name(&arguments.files));
    let signals = signals()?;
    let port = ReplayPort::attach(&mut connection, &arguments.domain, &name)?;
    let bar = match arguments.repeat {
        0 => ProgressBar::new_spinner(),
        times => ProgressBar::new(total.saturating_mul(times)),
    };
    let style = "{spinner} {wide_bar} {binary_bytes}/{binary_total_bytes} {msg} eta {eta}";
    bar.set_style(ProgressStyle::with_template(style)?);
    let mut replay = Replay::new(port, signals, pace(&arguments), bar);
    let mut round = 0;
    'rounds: while arguments.repeat == 0 || round < arguments.repeat {
        for path in &arguments.files {
            if !replay.file(path)? {
                break 'rounds;
            }
        }
        round += 1;
        if arguments.repeat == 0 && replay.sent == 0 {
            bail!("there is nothing to be sent for ever");
        }
    }
    replay.finish(&mut connection, &arguments.domain)
}

/// Blocks what asks a replay to end, before there is a second thread that could be hit by it.
fn signals() -> anyhow::Result<SignalFd> {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect::<SigSet>();
    signals.thread_block()?;
    Ok(SignalFd::with_flags(
        &signals,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

fn default_name(files: &[PathBuf]) -> String {
    let file = files.first().and_then(|path| path.file_name());
    let name: String = file
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    format!("replay {}", &name[..name.floor_char_boundary(80)])
}

/// When the next frame is due.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// As in the file, so many times as fast.
    Original(f64),
    /// So long after the one before it.
    Every(Duration),
    /// At once.
    Asap,
}

fn pace(arguments: &ReplayArguments) -> Pace {
    match (arguments.asap, arguments.pps) {
        (true, _) => Pace::Asap,
        (_, Some(pps)) => Pace::Every(Duration::from_secs_f64(1.0 / pps)),
        _ => Pace::Original(arguments.speed),
    }
}

/// A replay under way.
struct Replay {
    port: ReplayPort,
    pace: Pace,
    signals: SignalFd,
    bar: ProgressBar,
    start: Instant,
    /// When the last frame was due.
    due: Instant,
    sent: u64,
    bytes: u64,
    cut: u64,
    short: u64,
}

impl Replay {
    fn new(port: ReplayPort, signals: SignalFd, pace: Pace, bar: ProgressBar) -> Self {
        let start = Instant::now();
        Self {
            port,
            pace,
            signals,
            bar,
            start,
            due: start,
            sent: 0,
            bytes: 0,
            cut: 0,
            short: 0,
        }
    }

    /// Sends the frames of a file; false if a signal came.
    fn file(&mut self, path: &Path) -> anyhow::Result<bool> {
        let mut file = Savefile::open(path, &self.bar)?;
        let mut first = None;
        let base = self.due;
        while let Some(frame) = file
            .next()
            .with_context(|| format!("cannot read {}", path.display()))?
        {
            let first = *first.get_or_insert(frame.time);
            let due = match self.pace {
                // A time that goes back is no time to wait for.
                Pace::Original(speed) => base + frame.time.saturating_sub(first).div_f64(speed),
                Pace::Every(pause) => self.due + pause,
                Pace::Asap => self.due,
            };
            self.due = due.max(self.due);
            if !self.wait()? {
                return Ok(false);
            }
            self.send(&frame)?;
        }
        Ok(true)
    }

    /// Waits until the next frame is due; false if a signal came first.
    fn wait(&self) -> anyhow::Result<bool> {
        loop {
            let left = self.due.saturating_duration_since(Instant::now());
            if left.is_zero() && !self.sent.is_multiple_of(UNWATCHED) {
                return Ok(true);
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None) {
                Ok(0) if left.is_zero() => return Ok(true),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(false),
                Err(error) => return Err(error).context("cannot wait"),
            }
        }
    }

    fn send(&mut self, frame: &Frame<'_>) -> anyhow::Result<()> {
        if frame.bytes.len() < frame.wire_len {
            // What is missing cannot be made up.
            self.cut += 1;
            return Ok(());
        }
        if frame.bytes.len() < SHORTEST {
            self.short += 1;
            return Ok(());
        }
        let sent = self.port.data.send(&frame.bytes);
        sent.with_context(|| format!("cannot send frame {}", self.sent + 1))?;
        self.sent += 1;
        self.bytes += frame.bytes.len() as u64;
        Ok(())
    }

    fn finish(self, connection: &mut Connection, domain: &DomainName) -> anyhow::Result<()> {
        let time = self.start.elapsed();
        self.bar.finish_and_clear();
        let dropped = self.settle(connection, domain)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
        let rate = self.sent as f64 / time.as_secs_f64().max(1e-6);
        println!(
            "{} frames ({}) sent in {:.3} s: {rate:.0} frames/s",
            self.sent,
            HumanBytes(self.bytes),
            time.as_secs_f64()
        );
        for (count, what) in [
            (self.cut, "not sent: the file has only a part of them"),
            (self.short, "not sent: they are no whole header"),
            (dropped, "dropped by the domain on their way in"),
        ] {
            if count > 0 {
                println!("{count} frames {what}");
            }
        }
        Ok(())
    }

    /// Waits until the domain has read everything; returns how many frames it would not take.
    fn settle(&self, connection: &mut Connection, domain: &DomainName) -> anyhow::Result<u64> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let row = self.port.row(connection, domain)?;
            if row.rx_frames >= self.sent || Instant::now() > deadline {
                return Ok(row.drops.values().sum());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A port of the uml_switch protocol.
struct ReplayPort {
    data: UnixDatagram,
    name: String,
    /// The port lives as long as this connection.
    _control: UnixStream,
}

impl ReplayPort {
    fn attach(connection: &mut Connection, domain: &DomainName, name: &str) -> anyhow::Result<Self> {
        let request = Request::DomainShow {
            domain: domain.clone(),
        };
        let Reply::Domain(row) = connection.ask(&request)? else {
            bail!("switchd answered something else")
        };
        let socket = row
            .sockets
            .get("uml")
            .context("the domain has no socket for ports")?;
        let attach = || format!("cannot attach to domain {domain}");
        let mut control = UnixStream::connect(socket).with_context(attach)?;
        let (data, address) = data_socket().with_context(attach)?;
        let mut request = uml::request(Version::V3, Kind::Port { number: None }, address);
        // The name takes the place of the padding.
        request.truncate(request.len() - 2);
        request.extend_from_slice(name.as_bytes());
        control.write_all(&request).with_context(attach)?;
        let mut reply = [0; ADDRESS_BYTES];
        control.read_exact(&mut reply).with_context(attach)?;
        let switch = Address::parse(&reply).context("switchd answered something else")?;
        let path = switch.path().context("switchd answered something else")?;
        data.connect(std::str::from_utf8(path)?).with_context(attach)?;
        netio::unix::set_buffers(&data, SOCKET_BUFFER).with_context(attach)?;
        // What the domain sends here is read and forgotten: a port that does not read would hold others back.
        let reader = data.try_clone().with_context(attach)?;
        std::thread::spawn(move || while reader.recv(&mut [0; 64]).is_ok() {});
        Ok(Self {
            data,
            name: name.to_owned(),
            _control: control,
        })
    }

    /// What the domain says about this port.
    fn row(&self, connection: &mut Connection, domain: &DomainName) -> anyhow::Result<PortRow> {
        let request = Request::PortLs {
            domain: Some(domain.clone()),
        };
        let Reply::Ports(rows) = connection.ask(&request)? else {
            bail!("switchd answered something else")
        };
        let ours = |row: &PortRow| {
            let pid = row.peer.map(|Peer { pid, .. }| pid);
            row.name == self.name && pid == Some(std::process::id())
        };
        let row = rows.into_iter().find(ours);
        row.with_context(|| format!("the port in domain {domain} has been removed"))
    }
}

fn data_socket() -> std::io::Result<(UnixDatagram, Address)> {
    let mut name = [0; 107];
    let text = format!("hubbub-replay-{}", std::process::id());
    name[..text.len()].copy_from_slice(text.as_bytes());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    Ok((socket, Address::from_abstract(&name)))
}

/// Opens a file, or standard input as `-`.
pub(super) fn open(path: &Path) -> anyhow::Result<File> {
    let path = real(path);
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where to find standard input, if that is meant.
fn real(path: &Path) -> &Path {
    if path == Path::new("-") {
        Path::new("/dev/stdin")
    } else {
        path
    }
}

//! `switchd capture`: the file is opened here, with the caller's rights; the daemon writes it.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::DomainName;
use proto::ctl::{CaptureSpec, Captured, Drops, FilterInstruction, Reply, Request};

use super::convert::{Consumer, Pcap, Stream};
use super::rotate::Files;
use super::talkers::Talkers;
use super::text::Text;
use super::{Connection, lab};
use crate::cli::{CaptureArguments, Selection, VdumpArguments};

pub(super) fn run(mut connection: Connection, arguments: CaptureArguments) -> anyhow::Result<()> {
    let CaptureArguments {
        selection,
        write,
        pcap,
        rotate,
    } = arguments;
    let path = write.as_deref().filter(|path| *path != Path::new("-"));
    let spec = CaptureSpec {
        // Of each file, not of the last one only.
        sums: rotate.is_wanted(),
        ..spec(&selection)?
    };
    // Before a file is made: one of that name may be all there is of an earlier capture.
    check(&mut connection, &spec)?;
    let files = match path {
        Some(path) if rotate.is_wanted() => Some(Files::new(path, rotate, pcap)?),
        None if rotate.is_wanted() => {
            bail!("standard output cannot be rotated\nhint: give the file's name with -w FILE")
        }
        _ => None,
    };
    let shown = path.map_or_else(String::new, |path| format!(" to {}", path.display()));
    let banner = format!("capturing {}{shown}; Ctrl-C ends it", subject(&spec));
    let mut session = Session::new(selection.duration)?;
    let captured = match files {
        Some(files) => session.convert(&mut connection, spec, &banner, Box::new(files))?,
        None if pcap => {
            let file = File::from(open(path)?);
            let name = path.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
            session.convert(&mut connection, spec, &banner, Box::new(Pcap::new(file, name)?))?
        }
        None => session.direct(&mut connection, spec, &banner, open(path)?)?,
    };
    if let Some(captured) = captured {
        report(captured);
    }
    Ok(())
}

/// `switchd vdump`: the same, or frames in words.
pub(super) fn dump(mut connection: Connection, arguments: VdumpArguments) -> anyhow::Result<()> {
    let VdumpArguments { text, stats, capture } = arguments;
    let consumer: Box<dyn Consumer> = match (text, stats) {
        (true, _) => Box::new(Text::new()?),
        (_, true) => Box::new(Talkers::new()),
        _ => return run(connection, capture),
    };
    let spec = spec(&capture.selection)?;
    let banner = format!("watching {}; Ctrl-C ends it", subject(&spec));
    let mut session = Session::new(capture.selection.duration)?;
    if let Some(captured) = session.convert(&mut connection, spec, &banner, consumer)? {
        report(captured);
    }
    Ok(())
}

/// Captures into a pipe of somebody else's until that is closed or a signal comes, without a word.
pub(crate) fn capture_to(directory: &Path, spec: CaptureSpec, pipe: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::open(directory)?;
    let mut session = Session::new(None)?;
    let output = OpenOptions::new().write(true).open(pipe);
    let output = output.with_context(|| format!("cannot write {}", pipe.display()))?;
    session.direct(&mut connection, spec, "", output.into()).map(drop)
}

/// Says what a capture took.
pub(super) fn report(Captured { frames, dropped }: Captured) {
    eprintln!("{frames} frames captured, {dropped} dropped by the capture");
}

/// What the options ask for.
pub(super) fn spec(selection: &Selection) -> anyhow::Result<CaptureSpec> {
    let Selection {
        domains,
        all,
        labs,
        ports,
        filter,
        snap,
        count,
        drops,
        ..
    } = selection;
    if *all != (domains.is_empty() && labs.is_empty()) {
        bail!(
            "{}\nhint: name domains or a lab, or give --all",
            if *all {
                "domains cannot be named together with --all"
            } else {
                "no domain is named"
            }
        );
    }
    let mut domains = domains.clone();
    for lab in labs {
        domains.extend(lab::domains(lab)?);
    }
    domains.sort();
    domains.dedup();
    let filter_text = filter.clone().unwrap_or_default();
    Ok(CaptureSpec {
        domains,
        ports: ports.clone(),
        snap_len_bytes: *snap,
        filter: compile(&filter_text)?,
        filter_text,
        count: *count,
        drops: drops.unwrap_or(Drops::No),
        sums: false,
    })
}

/// Finds out whether there is what is to be captured.
fn check(connection: &mut Connection, spec: &CaptureSpec) -> anyhow::Result<()> {
    for domain in &spec.domains {
        let domain = domain.clone();
        connection.ask(&Request::DomainShow { domain })?;
    }
    match connection.ask(&Request::DomainLs)? {
        Reply::Domains(rows) if rows.is_empty() => bail!("there is no domain to capture"),
        _ => Ok(()),
    }
}

/// Compiles a filter.
pub(crate) fn compile(expression: &str) -> anyhow::Result<Vec<FilterInstruction>> {
    if expression.is_empty() {
        return Ok(Vec::new());
    }
    match netio::pcap::compile(expression) {
        Ok(program) => Ok(program
            .into_iter()
            .map(|op| FilterInstruction(op.code, op.jt, op.jf, op.k))
            .collect()),
        Err(error) => bail!("cannot use filter '{expression}': {error}\nhint: see pcap-filter(7)"),
    }
}

/// What is captured, in words.
pub(super) fn subject(spec: &CaptureSpec) -> String {
    match &spec.domains[..] {
        [] => "all domains".to_owned(),
        [domain] => format!("domain {domain}"),
        domains => {
            let names: Vec<_> = domains.iter().map(DomainName::to_string).collect();
            format!("domains {}", names.join(", "))
        }
    }
}

/// What ends a capture.
enum End {
    /// A signal, or its time.
    Asked,
    /// Nobody reads the pipe any more.
    ReaderGone,
    /// The daemon has something to say: it has its count, the domain is gone, or the file cannot be written.
    Reported,
}

/// Signals and time of one capture.
pub(super) struct Session {
    signals: SignalFd,
    deadline: Option<Instant>,
}

impl Session {
    /// Blocks the signals: one that comes from now on ends the capture in good order.
    pub(super) fn new(duration: Option<Duration>) -> anyhow::Result<Self> {
        signals().thread_block()?;
        Ok(Self {
            signals: SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            deadline: duration.and_then(|duration| Instant::now().checked_add(duration)),
        })
    }

    /// Has the daemon write a file that is open; `None` if its reader has gone first.
    pub(super) fn direct(
        &mut self,
        connection: &mut Connection,
        spec: CaptureSpec,
        banner: &str,
        output: OwnedFd,
    ) -> anyhow::Result<Option<Captured>> {
        connection.ask_with_fd(&Request::Capture(spec), output.as_fd())?;
        if !banner.is_empty() {
            eprintln!("{banner}");
        }
        let end = self.wait(connection, |fds| {
            // Asks for nothing: only the end of the reader is reported.
            fds.push(PollFd::new(output.as_fd(), PollFlags::empty()));
        })?;
        match end {
            End::Reported => captured(connection.reply()?).map(Some),
            End::Asked => {
                self.let_signals_through()?;
                captured(connection.ask(&Request::CaptureStop)?).map(Some)
            }
            End::ReaderGone => Ok(None),
        }
    }

    /// Has the daemon write into a pipe, and makes something else of it here.
    pub(super) fn convert(
        &mut self,
        connection: &mut Connection,
        spec: CaptureSpec,
        banner: &str,
        mut consumer: Box<dyn Consumer>,
    ) -> anyhow::Result<Option<Captured>> {
        let (reader, writer) = std::io::pipe()?;
        netio::unix::set_pipe_size(&reader, PIPE_BYTES);
        connection.ask_with_fd(&Request::Capture(spec), writer.as_fd())?;
        drop(writer);
        eprintln!("{banner}");
        let mut stream = Stream::new(reader);
        let mut asked = false;
        loop {
            let wait = [consumer.interval(), self.left().filter(|_| !asked)];
            let mut fds = vec![
                PollFd::new(stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(consumer.output().map(|fd| PollFd::new(fd, PollFlags::empty())));
            match poll(&mut fds, timeout(wait.into_iter().flatten().min())) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            let [readable, signal, gone] =
                [0, 1, 2].map(|index| fds.get(index).and_then(PollFd::any) == Some(true));
            drop(fds);
            if gone {
                return Ok(None);
            }
            let step = if readable {
                stream.feed(&mut *consumer)
            } else {
                Ok(false)
            };
            match step.and_then(|end| consumer.tick().map(|()| end)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if is_broken_pipe(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            if !asked && (signal || self.left() == Some(Duration::ZERO)) {
                // The rest of the stream is still to be read, so the answer is not waited for here.
                asked = true;
                self.let_signals_through()?;
                connection.tell(&Request::CaptureStop)?;
            }
        }
        // Of a daemon that has died there is a file to be ended all the same.
        let result = connection.reply().and_then(captured);
        match consumer.finish() {
            Err(error) if is_broken_pipe(&error) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => result.map(Some),
        }
    }

    /// From now on a signal ends the program: somebody insists.
    fn let_signals_through(&self) -> anyhow::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        signals().thread_unblock()?;
        Ok(())
    }

    /// Time that is left; `None` is without end.
    fn left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn wait<'a>(
        &'a self,
        connection: &'a Connection,
        more: impl FnOnce(&mut Vec<PollFd<'a>>),
    ) -> anyhow::Result<End> {
        let mut fds = vec![
            PollFd::new(connection.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        more(&mut fds);
        if connection.has_reply() {
            return Ok(End::Reported);
        }
        loop {
            match poll(&mut fds, timeout(self.left())) {
                Ok(0) if self.left() == Some(Duration::ZERO) => return Ok(End::Asked),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            for (fd, end) in fds.iter().zip([End::Reported, End::Asked, End::ReaderGone]) {
                if fd.any() == Some(true) {
                    return Ok(end);
                }
            }
        }
    }
}

/// What asks a capture to end.
fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// As much as an ordinary user may have.
const PIPE_BYTES: usize = 1024 * 1024;

fn timeout(time: Option<Duration>) -> PollTimeout {
    // Rounded up: a poll that ends just before its time would only be repeated.
    time.map_or(PollTimeout::NONE, |time| {
        PollTimeout::try_from(time.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

fn captured(reply: Reply) -> anyhow::Result<Captured> {
    match reply {
        Reply::Captured(captured) => Ok(captured),
        _ => bail!("switchd answered something else"),
    }
}

/// Opens the file of a capture, for nobody else to read; standard output without a name.
pub(super) fn open(path: Option<&Path>) -> anyhow::Result<OwnedFd> {
    match path {
        Some(path) => Ok(create(path)?.into()),
        None if stdout().is_terminal() => {
            bail!("a capture is no text for a terminal\nhint: give -w FILE, or pipe it into 'tshark -r -'")
        }
        None => Ok(stdout().as_fd().try_clone_to_owned()?),
    }
}

/// Makes a file that only its owner may read, whatever it was before.
pub(super) fn create(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path);
    let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot make {} private", path.display()))?;
    }
    Ok(file)
}

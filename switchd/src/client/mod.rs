//! The commands that ask a running daemon.

mod cable;
mod capture;
mod convert;
mod lab;
mod output;
mod record;
mod replay;
mod report;
mod rotate;
mod savefile;
mod summary;
mod talkers;
mod text;

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::DomainName;
use proto::ctl::{DomainSpec, PortSpec, Reply, Request, VdeAccess};
use serde::Serialize;

use crate::cli::{Command, DomainCommand, FdbArguments, PortCommand};
use crate::daemon::SOCKET;
use crate::handover::{self, Asker};

pub(crate) use capture::{capture_to, compile};

/// Carries out one command and prints what it yields.
pub(crate) fn run(directory: &Path, command: Command) -> anyhow::Result<()> {
    let mut connection = Connection::open(directory)?;
    match command {
        Command::Domain(DomainCommand::Add {
            domain,
            mode,
            mtu,
            ageing,
            vde_mode,
            vde_group,
        }) => connection
            .ask(&Request::DomainAdd(DomainSpec {
                domain,
                mode,
                mtu,
                ageing_s: ageing,
                vde: VdeAccess {
                    mode: vde_mode,
                    group: vde_group,
                },
            }))
            .map(drop),
        Command::Domain(DomainCommand::Rm { domain }) => {
            connection.ask(&Request::DomainRm { domain }).map(drop)
        }
        Command::Domain(DomainCommand::Ls { json }) => match connection.ask(&Request::DomainLs)? {
            Reply::Domains(rows) if json => print_json(&rows),
            Reply::Domains(rows) => print(&report::domains(&rows)),
            other => unexpected(&other),
        },
        Command::Domain(DomainCommand::Show { domain, json }) => {
            match connection.ask(&Request::DomainShow { domain })? {
                Reply::Domain(row) if json => print_json(&row),
                Reply::Domain(row) => print(&report::domain(&row)),
                other => unexpected(&other),
            }
        }
        Command::Port(PortCommand::Ls { domain, json }) => {
            match connection.ask(&Request::PortLs { domain })? {
                Reply::Ports(rows) if json => print_json(&rows),
                Reply::Ports(rows) => print(&report::ports(&rows)),
                other => unexpected(&other),
            }
        }
        Command::Port(PortCommand::Add(arguments)) => {
            let port = arguments.port();
            let fd = match (&port.spec, arguments.placed(), arguments.fd()) {
                (PortSpec::Nic(spec), ..) => Some(handover::nic(spec, Asker::Person)?),
                (PortSpec::Sniff(spec), ..) => Some(handover::sniff(spec, Asker::Person)?),
                (_, Some((path, name)), _) => {
                    Some(netns::tap_in(path, &name.parse().map_err(anyhow::Error::new)?)?)
                }
                (_, None, Some(number)) => {
                    let fd = netio::process::inherited(number);
                    Some(fd.with_context(|| format!("cannot hand over descriptor {number}"))?)
                }
                _ => None,
            };
            let domain = arguments.domain.clone();
            let request = Request::PortAdd { domain, port };
            let reply = match &fd {
                Some(fd) => connection.ask_with_fd(&request, fd.as_fd()),
                None => connection.ask(&request),
            };
            match reply? {
                Reply::Ports(rows) if arguments.json => print_json(&rows),
                Reply::Ports(_) => Ok(()),
                other => unexpected(&other),
            }
        }
        Command::Port(PortCommand::Secure {
            domain, id, ranges, ..
        }) => connection
            .ask(&Request::PortSecure { domain, id, ranges })
            .map(drop),
        Command::Link { a, b } => {
            let port = PortSpec::Link { to: b }.into();
            connection.ask(&Request::PortAdd { domain: a, port }).map(drop)
        }
        Command::Cable(arguments) => cable::run(connection, arguments.domain, &arguments.command),
        Command::Port(PortCommand::Rm { domain, id }) => {
            connection.ask(&Request::PortRm { domain, id }).map(drop)
        }
        Command::Fdb(arguments) => fdb(&mut connection, arguments),
        Command::Stats { watch, json } => stats(&mut connection, watch, json),
        Command::Capture(arguments) => capture::run(connection, arguments),
        Command::Record(arguments) => record::run(connection, arguments),
        Command::Replay(arguments) => replay::run(connection, arguments),
        Command::Vdump(arguments) => capture::dump(connection, arguments),
        Command::Stop => connection.ask(&Request::Shutdown).map(drop),
        Command::Run(_) | Command::GiveTap { .. } | Command::UmlSwitch { .. } => {
            unreachable!("no client commands")
        }
    }
}

fn fdb(connection: &mut Connection, arguments: FdbArguments) -> anyhow::Result<()> {
    let FdbArguments {
        domain,
        add,
        port,
        rm,
        json,
    } = arguments;
    if let (Some(mac), Some(port)) = (add, port) {
        return connection.ask(&Request::FdbAdd { domain, mac, port }).map(drop);
    }
    if let Some(mac) = rm {
        return connection.ask(&Request::FdbRm { domain, mac }).map(drop);
    }
    match connection.ask(&Request::Fdb { domain })? {
        Reply::Fdb(rows) if json => print_json(&rows),
        Reply::Fdb(rows) => print(&report::fdb(&rows)),
        other => unexpected(&other),
    }
}

fn stats(connection: &mut Connection, watch: bool, json: bool) -> anyhow::Result<()> {
    let mut before = None;
    loop {
        let Reply::Stats(stats) = connection.ask(&Request::Stats)? else {
            bail!("switchd sent another answer")
        };
        match (json, watch) {
            (true, _) => print_json(&stats)?,
            (false, true) if std::io::stdout().is_terminal() => {
                print(&format!("\x1b[H\x1b[J{}", report::stats(&stats, before.as_ref())))?;
            }
            (false, _) => print(&report::stats(&stats, before.as_ref()))?,
        }
        if !watch {
            return Ok(());
        }
        before = Some(stats);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The names of all domains.
pub(crate) fn domains(directory: &Path) -> anyhow::Result<Vec<DomainName>> {
    match Connection::open(directory)?.ask(&Request::DomainLs)? {
        Reply::Domains(rows) => Ok(rows.into_iter().map(|row| row.domain).collect()),
        _ => bail!("switchd answered something else"),
    }
}

/// A conversation with the daemon.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(SOCKET);
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Self {
                stream: BufReader::new(stream),
            }),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "no switchd answers at {}\nhint: start one with 'switchd --dir {} run'\ncause",
                    path.display(),
                    directory.display()
                )
            }),
        }
    }

    /// Sends a request and waits for its reply; a refusal is an error.
    pub(crate) fn ask(&mut self, request: &Request) -> anyhow::Result<Reply> {
        self.tell(request)?;
        self.reply()
    }

    /// Sends a request whose reply is waited for later.
    pub(crate) fn tell(&mut self, request: &Request) -> anyhow::Result<()> {
        let line = line(request)?;
        let mut stream = self.stream.get_ref();
        stream.write_all(&line).context("cannot ask switchd")
    }

    /// The same, with a descriptor.
    pub(crate) fn ask_with_fd(&mut self, request: &Request, fd: BorrowedFd<'_>) -> anyhow::Result<Reply> {
        let line = line(request)?;
        let stream = self.stream.get_ref();
        let sent = netio::unix::send_with_fd(stream.as_fd(), &line, fd).context("cannot ask switchd")?;
        let mut rest = stream;
        rest.write_all(&line[sent..]).context("cannot ask switchd")?;
        self.reply()
    }

    /// True if a reply has been read from the socket that nobody has asked for yet: waiting for the socket to become
    /// readable would miss it.
    pub(crate) fn has_reply(&self) -> bool {
        !self.stream.buffer().is_empty()
    }

    /// Waits for a reply.
    pub(crate) fn reply(&mut self) -> anyhow::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("cannot hear switchd")? == 0 {
            bail!("switchd has gone");
        }
        match serde_json::from_str(&line).context("cannot understand switchd")? {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

fn line(request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

fn unexpected(reply: &Reply) -> anyhow::Result<()> {
    bail!(
        "switchd answered something else: {}",
        serde_json::to_string(reply)?
    )
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints to standard output; a reader that has seen enough is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

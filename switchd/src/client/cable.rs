//! `switchd cable`: a domain on standard input and output, or on those of a command.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use proto::DomainName;
use proto::ctl::{PortSpec, Request};

use super::Connection;

/// Carries a domain until either side ends it. Each frame stands behind its length.
pub(super) fn run(mut connection: Connection, domain: DomainName, command: &[String]) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a cable")?;
    let name = match command {
        [] => "cable".to_owned(),
        words => format!("cable to {}", words.join(" ")),
    };
    let spec = PortSpec::Fd { name };
    let port = spec.into();
    connection.ask_with_fd(&Request::PortAdd { domain, port }, theirs.as_fd())?;
    drop((theirs, connection));
    match command {
        [] => copy(&ours),
        [program, arguments @ ..] => join(ours, program, arguments),
    }
}

/// Leaves the cable to a command, whose standard input and output it becomes.
fn join(cable: UnixStream, program: &str, arguments: &[String]) -> anyhow::Result<()> {
    let input = cable.try_clone().context("cannot make a cable")?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(input)))
        .stdout(Stdio::from(OwnedFd::from(cable)))
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} has ended: {status}");
    }
    Ok(())
}

/// Copies both ways. The end of input ends the cable, and so does the end of the port.
fn copy(cable: &UnixStream) -> anyhow::Result<()> {
    let to_port = cable.try_clone().context("cannot make a cable")?;
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            // Whatever is wrong with the input ends it.
            let _ = io::copy(&mut io::stdin().lock(), &mut &to_port);
            let _ = to_port.shutdown(Shutdown::Write);
        })?;
    // Without a buffer: a frame is not to wait for the next.
    let mut output = std::fs::File::from(duplicate(io::stdout().as_fd())?);
    let mut bytes = vec![0; 256 * 1024];
    loop {
        let count = match (&*cable).read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(error).context("cannot read the cable"),
        };
        match output.write_all(&bytes[..count]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.context("cannot write to standard output")?,
        }
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

//! The uml_switch personality: one domain at a path of the caller's, with the options and habits of the original.
//!
//! Kept from it: defaults, order of options, end of input on a terminal ends it, SIGINT removes the socket and dies
//! of SIGINT, SIGTERM leaves the socket, a stale socket is replaced. Not kept: truncated 802.1Q frames, strangers'
//! frames, dangling ports, spinning on a deleted tap.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram as StdDatagram, UnixListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use netio::tap::{IfName, Tap, TapFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proto::ctl::{DomainSpec, Mode};
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::config::DEFAULT_HOLD;
use crate::control::compat;
use crate::control::domain::Sockets;
use crate::control::listeners::cannot_listen;
use crate::control::registry::{Admission, Registry};
use crate::daemon::{reserve_descriptors, start_workers};
use crate::datapath::port::{Identity, Link};
use crate::datapath::tap;
use crate::datapath::{Common, NewPort};

const USAGE: &str = "\
Usage: uml_switch [-unix CONTROL] [-hub] [-tap DEVICE] [-daemon]
       uml_switch -compat-v0 [-unix CONTROL DATA] [-hub] [-tap DEVICE] [-daemon]

  -unix CONTROL        listen for clients here [/tmp/uml.ctl]
  -compat-v0           serve clients of protocol version 0 too, at DATA [/tmp/uml.data];
                       it comes before -unix
  -hub                 be a hub, not a switch
  -tap DEVICE          attach a tap device
  -daemon              go into the background";

/// The options. They are those of the original, so no parser of ours fits.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    control: PathBuf,
    data: PathBuf,
    compat: bool,
    hub: bool,
    tap: Option<String>,
    daemon: bool,
}

/// Runs until it is told to end; returns the exit status.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("uml_switch: {message}");
            }
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uml_switch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: Vec<String>) -> Result<Options, String> {
    let mut options = Options {
        control: PathBuf::from("/tmp/uml.ctl"),
        data: PathBuf::from("/tmp/uml.data"),
        compat: false,
        hub: false,
        tap: None,
        daemon: false,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "-unix" => {
                options.control = value()?.into();
                if options.compat {
                    options.data = value()?.into();
                }
            }
            "-tap" => options.tap = Some(value()?),
            "-compat-v0" => options.compat = true,
            "-hub" => options.hub = true,
            "-daemon" => options.daemon = true,
            "-help" | "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown option '{other}'")),
        }
    }
    Ok(options)
}

fn run(mut options: Options) -> anyhow::Result<()> {
    // The paths hold after -daemon has changed the directory, so that the sockets are removed at the end.
    options.control = std::path::absolute(&options.control)?;
    options.data = std::path::absolute(&options.data)?;
    let tap = options.tap.as_deref().map(open_tap).transpose()?;
    // Before -daemon: whoever starts it in the background learns here if another one has the socket, and whoever
    // waits for it to go there may connect at once.
    let listener = netio::unix::listen(&options.control)
        .map_err(|error| anyhow!(cannot_listen(&options.control, &error)))?;
    let shared = options
        .compat
        .then(|| compat::bind(&options.data))
        .transpose()
        .with_context(|| format!("cannot bind {}", options.data.display()))?;
    if options.daemon {
        nix::unistd::daemon(false, true).context("cannot go into the background")?;
    }
    reserve_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(host(&options, listener, shared, tap))
}

async fn host(
    options: &Options,
    listener: StdListener,
    shared: Option<StdDatagram>,
    tap: Option<OwnedFd>,
) -> anyhow::Result<()> {
    let mut interrupted = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let workers = start_workers(1, Common::new(DEFAULT_HOLD), &[])?;
    let directory = options.control.parent().unwrap_or(Path::new("/")).to_owned();
    let registry = Arc::new(Registry::new(
        directory,
        String::new(),
        Admission::Anybody,
        workers,
        true,
    ));
    let mode = if options.hub { Mode::Hub } else { Mode::Switch };
    let name = "uml-switch".parse().expect("a valid name");
    let spec = DomainSpec {
        mode,
        ..DomainSpec::new(name)
    };
    let sockets = Sockets {
        control: options.control.clone(),
        data: None,
        shared: options.compat.then(|| options.data.clone()),
        bess: None,
        vde: None,
        vhost: None,
    };
    let domain = registry.add_at(spec, false, sockets, Some(listener))?;
    if let Some(shared) = shared {
        domain.share(shared)?;
    }
    let mut tap_gone = None;
    if let (Some(device), Some(name)) = (tap, &options.tap) {
        let id = domain.reserve(None).expect("the first port of a new domain");
        let (alive, gone) = oneshot::channel();
        let identity = Identity::now(name.clone(), None);
        let link = Link::Tap(tap::Link::new(device));
        registry
            .attach(
                &domain,
                NewPort {
                    id,
                    link,
                    identity,
                    alive,
                },
            )
            .await
            .context("cannot attach the tap")?;
        tap_gone = Some(gone);
    }
    println!(
        "uml_switch attached to unix socket '{}'",
        options.control.display()
    );
    let report_tap = async {
        match tap_gone {
            Some(gone) => drop(gone.await),
            None => std::future::pending().await,
        }
        eprintln!("uml_switch: the tap device is gone; going on without it");
        std::future::pending::<()>().await;
    };
    let by_signal = tokio::select! {
        _ = interrupted.recv() => true,
        () = end_of_terminal() => false,
        () = report_tap => false,
    };
    registry.clear().await;
    if by_signal {
        // Whoever started it sees how it ended.
        netio::signal::die_of_interrupt();
    }
    Ok(())
}

/// Attaches the tap device, making it if the caller may.
fn open_tap(name: &str) -> anyhow::Result<OwnedFd> {
    let interface: IfName = name.parse()?;
    let (device, _) = Tap::open(&interface, TapFlags::default())
        .with_context(|| format!("cannot attach tap device {name}"))?;
    Ok(device)
}

/// Waits for the end of input if that is a terminal; the end of a pipe or of /dev/null means nothing.
async fn end_of_terminal() {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return std::future::pending().await;
    }
    let watched = stdin
        .as_fd()
        .try_clone_to_owned()
        .and_then(netio::watch::readable);
    let Ok(terminal) = watched else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = terminal.readable().await else {
            return;
        };
        // All that is there, for it is reported once. Only what is there: a process in the background is stopped for
        // reading its terminal.
        while has_input(&stdin) {
            if matches!(nix::unistd::read(&stdin, &mut [0; 256]), Ok(0) | Err(_)) {
                return;
            }
        }
        ready.clear_ready();
    }
}

fn has_input(stdin: &std::io::Stdin) -> bool {
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        parse(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn the_second_path_is_taken_only_after_compat() {
        let parsed = options("-unix /a -hub").unwrap();
        assert_eq!(
            (parsed.control, parsed.hub, parsed.compat),
            ("/a".into(), true, false)
        );
        let parsed = options("-compat-v0 -unix /a /b -tap t0 -daemon").unwrap();
        assert_eq!((parsed.control, parsed.data), ("/a".into(), "/b".into()));
        assert_eq!((parsed.tap.as_deref(), parsed.daemon), (Some("t0"), true));
        assert!(options("-unix /a /b -compat-v0").is_err());
        let parsed = options("").unwrap();
        assert_eq!(
            (parsed.control, parsed.data),
            ("/tmp/uml.ctl".into(), "/tmp/uml.data".into())
        );
        assert!(options("-unix").is_err());
    }
}

//! The composition root of `switchd run`: builds everything and owns the order of shutting down.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use proto::ctl::{DomainSpec, NewPort};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::Gain;
use crate::config::Config;
use crate::control::listeners::cannot_listen;
use crate::control::registry::{Admission, Registry};
use crate::control::server;
use crate::datapath::{Common, Handle};

/// The control socket in the directory.
pub(crate) const SOCKET: &str = "switchd.sock";

/// The file that is locked for as long as a daemon uses the directory.
const LOCK: &str = "switchd.lock";

/// Captures are written to their end when the daemon ends, but their readers are not waited for longer than this.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    // What is made from here on is this user's alone.
    umask(Mode::from_bits_truncate(0o077));
    reserve_descriptors();
    let directory = prepare(&config.directory)?;
    let _lock = lock(&directory)?;
    // Sockets need no right to execute; the one kind of directory made from here on gets it on its own.
    umask(Mode::from_bits_truncate(0o177));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(host(config, &directory))
}

async fn host(config: Config, directory: &Path) -> anyhow::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    // Its terminal has gone. There is nothing to read again: domains are made and changed by commands.
    let mut hung_up = signal(SignalKind::hangup())?;
    let registry = registry(
        directory,
        Common::new(config.hold).with_poll(config.poll),
        config.workers,
        &config.without,
    )?;
    registry.remove_leftovers();
    let socket = directory.join(SOCKET);
    let opened = open(&registry, config.domains, &socket).await;
    let Ok(listener) = opened else {
        registry.clear().await;
        return opened.map(drop);
    };
    let shutdown = Arc::new(Notify::new());
    let server = server::serve(Arc::clone(&registry), listener, Arc::clone(&shutdown));
    tracing::info!("ready at {}", socket.display());
    tokio::select! {
        () = server => {}
        _ = interrupted.recv() => tracing::info!("interrupted"),
        _ = terminated.recv() => tracing::info!("terminated"),
        _ = hung_up.recv() => tracing::info!("hung up"),
        () = shutdown.notified() => tracing::info!("told to end"),
        () = idle(&registry, config.idle_exit) => tracing::info!("nothing left to do"),
        never = registry.balance() => match never {},
    }
    // Nobody is let in any more; then the domains go, their ports' sockets with them, and the workers last.
    let _ = fs::remove_file(&socket);
    registry.clear().await;
    let _ = tokio::time::timeout(LAST_WORDS, captures_end(&registry)).await;
    Ok(())
}

/// Waits until what was captured is written, and whoever asked for it has been told.
async fn captures_end(registry: &Registry) {
    loop {
        let departed = registry.departed.notified();
        if !registry.is_capturing() {
            return;
        }
        departed.await;
    }
}

/// Makes the domains and opens the control socket.
async fn open(
    registry: &Arc<Registry>,
    domains: Vec<(DomainSpec, Vec<NewPort>)>,
    socket: &Path,
) -> anyhow::Result<UnixListener> {
    let mut made = Vec::new();
    for (spec, ports) in domains {
        made.push((registry.add(spec, false)?, ports));
    }
    // A cable leads to another of them.
    for (domain, ports) in made {
        for port in &ports {
            registry.add_port(&domain, port, None).await?;
        }
    }
    let listener = netio::unix::listen(socket).map_err(|error| anyhow!(cannot_listen(socket, &error)))?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Starts the workers.
pub(crate) fn start_workers(
    count: usize,
    mut common: Common,
    without: &[Gain],
) -> anyhow::Result<Vec<Handle>> {
    if without.contains(&Gain::Look) {
        common = common.without_look();
    }
    if without.contains(&Gain::Help) {
        common = common.without_help();
    }
    if without.contains(&Gain::Batches) {
        common = common.without_batches();
    }
    (0..count)
        .map(|number| Handle::start(number, &common).context("cannot start a worker"))
        .collect()
}

fn registry(
    directory: &Path,
    common: Common,
    workers: usize,
    without: &[Gain],
) -> anyhow::Result<Arc<Registry>> {
    let workers = start_workers(workers, common, without)?;
    Ok(Arc::new(Registry::new(
        directory.to_owned(),
        user(),
        Admission::Owner,
        workers,
        !without.contains(&Gain::Offload),
    )))
}

/// The user's name as Netkit puts it into socket names; the number if there is none that can stand in a path.
fn user() -> String {
    let uid = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) if !user.name.contains('/') => user.name,
        _ => uid.to_string(),
    }
}

/// Waits until there has been neither a domain nor a client for so long.
async fn idle(registry: &Registry, limit: Option<Duration>) {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    loop {
        // Hears of everybody who goes from here on, so that one who comes and goes begins the wait anew.
        let departed = registry.departed.notified();
        if !registry.is_idle() {
            departed.await;
            continue;
        }
        tokio::select! {
            () = departed => {}
            () = tokio::time::sleep(limit) => {
                if registry.is_idle() {
                    return;
                }
            }
        }
    }
}

/// Makes the directory, or checks that it is ours alone. Returns its absolute path.
fn prepare(directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let shown = directory.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make directory {shown}"))?;
    let metadata = fs::metadata(directory).with_context(|| format!("cannot use directory {shown}"))?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        bail!(
            "directory {shown} belongs to uid {}\nhint: choose another with --dir DIR",
            metadata.uid()
        );
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        bail!(
            "directory {shown} is open to other users (mode {mode:04o})\n\
             hint: 'chmod 700 {shown}', or choose another with --dir DIR"
        );
    }
    directory
        .canonicalize()
        .with_context(|| format!("cannot use directory {shown}"))
}

/// Takes the directory for this process alone. The file stays: removing it would let two daemons lock two files.
fn lock(directory: &Path) -> anyhow::Result<Flock<File>> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "a switchd is already running in {shown}\nhint: 'switchd --dir {shown} stop' ends it",
            shown = directory.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Descriptors there is room for from the start: thousands of domains and their ports.
const DESCRIPTORS: i32 = 65_536;

/// Makes room for many descriptors: a port takes three (data socket, control connection, its peer's process).
///
/// To be called before there are threads. The kernel has a table of descriptors grow by doubling, and where threads
/// share it, whoever opens the next file waits for all processors to pass a quiescent state (expand_fdtable in
/// fs/file.c): while the workers keep them busy, that has taken the control side more than ten seconds.
pub(crate) fn reserve_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    let limit = raised.unwrap_or_else(|error| {
        tracing::warn!("cannot raise the limit of open files: {error}");
        0
    });
    let last = i32::try_from(limit).unwrap_or(i32::MAX).min(DESCRIPTORS) - 1;
    // The table grows for the highest number, and never shrinks.
    if let Ok(highest) = fcntl(std::io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(last)) {
        let _ = nix::unistd::close(highest);
    }
}

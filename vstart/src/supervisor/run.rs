//! The life of one machine.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream, UnixDatagram, UnixListener};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::console::Console;
use super::domains::Holds;
use super::guard::Guard;
use super::interfaces::Change;
use super::link::Link;
use super::tty::Slave;
use super::viewers::{self, Consoles};
use super::{Event, Events, Plan, wires};
use crate::kernel_args::{exec_file, kernel_args};
use crate::machine::{self, Machine, Root};
use crate::mconsole::{Notification, notification};
use crate::processes::{self, Process};
use crate::registry::{Claim, Record, Registry, Status, now};
use crate::stage::Stage;
use crate::xstate;

/// Runs the machine; the event says how that went.
pub(super) async fn supervise(plan: Plan, events: &Events) -> Event {
    let claim = match Registry::new(plan.dirs.clone()).claim(&plan.machine.name) {
        Ok(claim) => claim,
        Err(error) => return failed(&error.into(), None),
    };
    let guard = match Guard::start(&plan.dirs, &plan.machine.name) {
        Ok(guard) => guard,
        Err(error) => return failed(&error, None),
    };
    let mut life = Life {
        holds: Holds::new(plan.dirs.clone()),
        plan,
        events,
        claim,
        record: None,
        primary: None,
        link: None,
    };
    let end = life.live().await;
    let last = life.finish(end).await;
    guard.dismiss();
    last
}

/// How a machine ended.
enum End {
    /// The kernel has ended, by itself or by a signal.
    Exited(ExitStatus),
    /// The guest started again although it was to halt.
    HaltedByReboot,
    /// It was not up in time.
    TooSlow,
    /// vstart was interrupted before the machine was up.
    Abandoned,
    /// The supervisor was asked to end.
    Asked,
    /// The kernel gave up.
    Panic(String),
}

pub(super) struct Life<'a> {
    /// What is run, as it is now.
    pub(super) plan: Plan,
    events: &'a Events,
    pub(super) claim: Claim,
    pub(super) record: Option<Record>,
    primary: Option<Arc<Console>>,
    pub(super) holds: Holds,
    /// The way to the agent in the guest.
    pub(super) link: Option<Arc<Link>>,
}

impl Life<'_> {
    fn machine(&self) -> &Machine {
        &self.plan.machine
    }

    fn is_up(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|r| matches!(r.status, Status::Up | Status::Ready))
    }

    fn step(&self, text: impl Into<String>) {
        self.events.send(&Event::Step(text.into()));
    }

    fn set_status(&mut self, status: Status) -> Result<()> {
        if let Some(record) = &mut self.record {
            record.status = status;
            self.claim.write(record)?;
        }
        Ok(())
    }

    /// From the domains to the kernel's last word.
    async fn live(&mut self) -> Result<End> {
        let dirs = self.plan.dirs.clone();
        let name = self.machine().name.clone();
        dirs.check(&name)?;
        self.record = Some(Record {
            machine: self.machine().clone(),
            status: Status::Starting,
            started: now(),
            supervisor: Process::own(),
            kernel: None,
            command: Vec::new(),
            ptys: [None, None],
        });
        self.set_status(Status::Starting)?;

        let domains = self.hold_domains(None, self.plan.tap.clone()).await?;
        for domain in domains.keys() {
            self.step(format!("domain {domain}"));
        }
        let sockets = self.holds.make_wires(self.machine()).await?;
        let args = kernel_args(self.machine(), &dirs, &domains)?;
        if let Some((path, command)) = exec_file(self.machine(), &dirs) {
            fs::write(&path, command).with_context(|| format!("cannot write {}", path.display()))?;
        }
        crate::registry::make_private_dir(&dirs.mconsole)?;
        let notifications =
            UnixDatagram::bind(dirs.notify_socket(&name)).context("cannot listen to the kernel")?;
        let listener = UnixListener::bind(dirs.console_socket(&name)).context("cannot listen for viewers")?;

        // The kernel's first words go to the primary console's terminal even if the guest does not use it.
        let dir = dirs.machine(&name);
        // Our own guest init tells when it takes over; until then the kernel's words are for those who ask for them.
        let hidden = matches!(self.machine().root, Root::Host { .. }) && !self.machine().verbose;
        let primary = Console::open(&dir.join("console.log"), hidden).context("cannot make a console")?;
        self.primary = Some(primary.clone());
        let mut consoles: Consoles = [None, None];
        if self.machine().consoles[0] != machine::Console::None {
            consoles[0] = Some(primary.clone());
        }
        if self.machine().consoles[1] != machine::Console::None {
            consoles[1] =
                Some(Console::open(&dir.join("console1.log"), false).context("cannot make a console")?);
        }
        if let Some((rows, columns)) = self.plan.window {
            for console in consoles.iter().flatten() {
                console
                    .resize(rows, columns)
                    .context("cannot set the size of a console")?;
            }
        }
        let link = match self.machine().has_agent() {
            true => Some(Link::open().context("cannot make a line to the guest")?),
            false => None,
        };
        self.link.clone_from(&link);
        let (change, changes) = mpsc::channel(1);
        tokio::spawn(viewers::serve(listener, consoles.clone(), link.clone(), change));
        let _slaves = self.show(&consoles).await?;

        let mut child =
            self.start_kernel(&args, &primary, consoles[1].as_deref(), link.as_deref(), sockets)?;
        self.set_status(Status::Booting)?;
        let ends = self.attend(&mut child, &notifications, changes).await;
        // Whatever is the reason, nothing of the kernel may go on.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            processes::end_group(pid);
            child.wait().await.context("cannot wait for the kernel")?;
        }
        ends
    }

    /// Waits until the machine ends, and notes on the way how far it is.
    async fn attend(
        &mut self,
        child: &mut Child,
        notifications: &UnixDatagram,
        mut changes: mpsc::Receiver<Change>,
    ) -> Result<End> {
        let switch_is_back = self.holds.back.clone();
        let mut boot_limit = std::pin::pin!(tokio::time::sleep(BOOT_PATIENCE));
        let mut front_gone = std::pin::pin!(end_of_input());
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle signals")?;
        let mut watching_front = true;
        let mut booted = false;
        let mut buffer = [0; 1024];
        loop {
            tokio::select! {
                status = child.wait() => return Ok(End::Exited(status.context("cannot wait for the kernel")?)),
                length = notifications.recv(&mut buffer) => {
                    let length = length.context("cannot hear the kernel")?;
                    match notification(&buffer[..length]) {
                        Some(Notification::Ready) if booted && self.claim.is_halting() => {
                            return Ok(End::HaltedByReboot);
                        }
                        Some(Notification::Ready) => {
                            booted = true;
                            self.kernel_is_ready()?;
                        }
                        Some(Notification::User(text)) => self.guest_tells(&text)?,
                        Some(Notification::Panic(text)) => return Ok(End::Panic(text)),
                        Some(Notification::Hang) | None => {}
                    }
                }
                () = &mut boot_limit, if !self.is_up() => return Ok(End::TooSlow),
                () = &mut front_gone, if watching_front => {
                    if !self.is_up() {
                        return Ok(End::Abandoned);
                    }
                    watching_front = false;
                }
                Some(change) = changes.recv() => self.change(change).await,
                () = switch_is_back.notified() => self.reconnect().await,
                _ = terminate.recv() => return Ok(End::Asked),
                _ = interrupt.recv() => return Ok(End::Asked),
            }
        }
    }

    /// The kernel's drivers are up; a guest without our init is as good as up.
    fn kernel_is_ready(&mut self) -> Result<()> {
        match self.machine().root {
            Root::Host { .. } => Ok(()),
            Root::Disk { .. } => {
                self.up()?;
                self.set_status(Status::Ready)
            }
        }
    }

    fn guest_tells(&mut self, text: &str) -> Result<()> {
        match text.trim() {
            "hubbub booting" => {
                if let Some(console) = &self.primary {
                    console.reveal();
                }
                Ok(())
            }
            "hubbub up" => self.up(),
            "hubbub ready" => self.set_status(Status::Ready),
            _ => Ok(()),
        }
    }

    fn up(&mut self) -> Result<()> {
        self.set_status(Status::Up)?;
        if let Some(record) = &self.record {
            self.events.send(&Event::Up(Box::new(record.clone())));
        }
        Ok(())
    }

    /// Shows the consoles where the user wants them. What is returned must be kept for the machine's life.
    async fn show(&mut self, consoles: &Consoles) -> Result<Vec<Slave>> {
        let mut slaves = Vec::new();
        let mut ptys: [Option<PathBuf>; 2] = [None, None];
        let mut ports: Vec<(Arc<Console>, TcpListener)> = Vec::new();
        for (number, console) in consoles.iter().enumerate() {
            let Some(console) = console else { continue };
            match self.machine().consoles[number] {
                machine::Console::Pty => {
                    let slave =
                        viewers::show_pty(console.clone()).context("cannot make a pseudo-terminal")?;
                    ptys[number] = Some(slave.path.clone());
                    slaves.push(slave);
                }
                machine::Console::Port(port) => {
                    let listener = TcpListener::bind(("127.0.0.1", port))
                        .await
                        .with_context(|| format!("cannot show console {number} on port {port}"))?;
                    ports.push((console.clone(), listener));
                }
                _ => {}
            }
            for command in self.plan.windows[number].iter().flatten() {
                viewers::open_window(command).with_context(|| format!("cannot run {}", command.join(" ")))?;
            }
        }
        if let Some(record) = &mut self.record {
            record.ptys.clone_from(&ptys);
        }
        self.events.send(&Event::Consoles { ptys });
        for (console, listener) in ports {
            self.step(format!("waiting for a connection to {}", listener.local_addr()?));
            let first = self.first_connection(&listener).await?;
            tokio::spawn(viewers::serve_port(listener, console, Some(first)));
        }
        Ok(slaves)
    }

    /// A machine with a console on a port starts when somebody looks.
    async fn first_connection(&self, listener: &TcpListener) -> Result<TcpStream> {
        tokio::select! {
            accepted = listener.accept() => Ok(accepted.context("cannot accept a connection")?.0),
            () = end_of_input() => anyhow::bail!("interrupted"),
        }
    }

    fn start_kernel(
        &mut self,
        args: &[String],
        primary: &Console,
        secondary: Option<&Console>,
        link: Option<&Link>,
        sockets: Vec<OwnedFd>,
    ) -> Result<Child> {
        let kernel = self.machine().kernel.clone();
        let terminal = || -> io::Result<Stdio> { Ok(primary.slave.fd.try_clone()?.into()) };
        let stage = Stage {
            session: false,
            parent: Some(std::process::id()),
            cpu: self.machine().cpu,
            preload: xstate::library(),
            // In the order in which the kernel's arguments number them.
            files: secondary
                .map(|c| &c.slave)
                .into_iter()
                .chain(link.map(|l| &l.slave))
                .map(|s| s.path.clone())
                .collect(),
            received: sockets.len(),
        };
        let input = match sockets.len() {
            0 => terminal()?,
            _ => wires::to_be_received(&sockets)?.into(),
        };
        let mut command = tokio::process::Command::from(stage.command(&kernel));
        let child = command
            .args(args)
            .process_group(0)
            .stdin(input)
            .stdout(terminal()?)
            .stderr(terminal()?)
            .spawn()
            .with_context(|| format!("cannot start {}", kernel.display()))?;
        let process = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Process::of);
        self.step(format!("kernel {}", kernel.display()));
        if let (Some(path), Some(process)) = (&self.machine().pidfile, process) {
            fs::write(path, format!("{}\n", process.pid))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(record) = &mut self.record {
            record.kernel = process;
            record.command = std::iter::once(kernel.display().to_string())
                .chain(args.iter().cloned())
                .collect();
        }
        Ok(child)
    }

    /// Clears everything away and says how it went.
    async fn finish(mut self, end: Result<End>) -> Event {
        // What the kernel said last is still on its way through the terminal.
        tokio::time::sleep(LAST_WORDS).await;
        let was_up = self.is_up();
        let console = self.primary.take();
        let halting = self.claim.is_halting();
        let name = self.plan.machine.name.clone();
        if let Some(path) = &self.plan.machine.pidfile {
            // The user may have removed it already.
            let _ = fs::remove_file(path);
        }
        if let Err(error) = self.claim.release() {
            return failed(&error.into(), console.as_deref());
        }
        let end = match end {
            Ok(end) => end,
            Err(error) => return failed(&error, console.as_deref()),
        };
        let message = match &end {
            End::Exited(status) if status.success() => "it powered off".to_owned(),
            End::Exited(status) => format!("its kernel ended: {status}"),
            End::HaltedByReboot => "it halted".into(),
            End::TooSlow => format!("it was not up after {} s", BOOT_PATIENCE.as_secs()),
            End::Abandoned => "interrupted".into(),
            End::Asked => "its supervisor was asked to end".into(),
            End::Panic(text) => format!("its kernel panicked: {}", text.trim()),
        };
        let clean = match &end {
            End::Exited(status) => status.success(),
            End::HaltedByReboot => true,
            _ => halting,
        };
        if was_up {
            Event::Ended { clean, message }
        } else {
            failed(
                &anyhow::anyhow!("cannot start machine {name}: {message}"),
                console.as_deref(),
            )
        }
    }
}

/// Returns when vstart has closed our input.
async fn end_of_input() {
    let input = io::stdin();
    let pipe = nix::unistd::dup(&input)
        .map_err(io::Error::from)
        .and_then(pipe::Receiver::from_owned_fd);
    match pipe {
        Ok(mut pipe) => {
            let mut buffer = [0; 256];
            while pipe.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        }
        // No pipe: then there is no vstart whose end could be seen.
        Err(_) => std::future::pending().await,
    }
}

fn failed(error: &anyhow::Error, console: Option<&Console>) -> Event {
    let said = console.map(Console::scroll_back).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines.len().saturating_sub(LAST_LINES);
    Event::Failed {
        message: format!("{error:#}"),
        console: lines[last..].iter().map(|line| (*line).to_owned()).collect(),
    }
}

/// A kernel that takes longer to come up than this, even on a busy host, does not come up.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
/// Time for the kernel's last output to pass through its terminal.
const LAST_WORDS: Duration = Duration::from_millis(20);
const LAST_LINES: usize = 12;

//! One load: ports on a switch, some of which send while all the others check what they get.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::Serialize;

use crate::frame;
use crate::port::{Attach, AttachError, Port};
use crate::process::cpu_time;
use crate::report::Report;
use crate::stop::Stop;
use crate::threads::{Received, Sent, Shared, introduce, receive, send};

/// A run ends its drain early when nothing has arrived for so long: the rest is lost.
const QUIET: Duration = Duration::from_millis(500);
/// How often the coordinating thread looks whether something has ended.
const GLANCE: Duration = Duration::from_millis(20);

/// Whom the senders address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// Each sender the port after it; with one sender that is port 0 to port 1.
    Unicast,
    /// Everyone, by broadcast.
    Flood,
    /// All of them the last port, which does not send.
    Converge,
}

/// What the switch is expected to do with a unicast frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Every port but the sender must get it.
    Hub,
    /// Its destination must get it, and nobody else.
    Switch,
}

/// What a sender does when the switch's socket is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Full {
    /// It waits: every frame is offered until it is taken.
    Block,
    /// It gives the frame up, as a UML guest's daemon driver does, and counts it as refused.
    Refuse,
}

/// How many frames a system call moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Calls {
    /// One, as in UML's daemon driver.
    Single,
    /// Many, as in UML's vector driver. It costs the generator less and leaves more of the machine to the switch.
    Vector,
}

/// What to offer to which switch.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// Control socket of the switch, or the directory of a VDE switch.
    pub control: PathBuf,
    /// How ports are attached.
    pub attach: Attach,
    /// Further ways into the same switch. Ports take one after the other, beginning with the first.
    pub also: Vec<(PathBuf, Attach)>,
    /// Ports attached.
    pub ports: u16,
    /// How many of them send, from port 0 on.
    pub senders: u16,
    /// Bytes of a frame, without checksum.
    pub size: usize,
    /// Whom they address.
    pub traffic: Traffic,
    /// Who must get what they send.
    pub delivery: Delivery,
    /// How long they send.
    pub time: Duration,
    /// After how many frames each of them stops, if it has not before.
    pub frames: Option<u64>,
    /// What they do when the switch is full.
    pub full: Full,
    /// Frames a second each of them offers at most.
    pub rate: Option<u32>,
    /// How senders send.
    pub send: Calls,
    /// How receivers receive.
    pub receive: Calls,
    /// How long after the last frame was sent frames may still arrive.
    pub drain: Duration,
    /// The process of the switch, to measure its processor time.
    pub switch_pid: Option<u32>,
}

impl Load {
    /// One sender, two ports, full-size unicast frames through a hub for one second.
    pub fn new(control: impl Into<PathBuf>) -> Self {
        Self {
            control: control.into(),
            attach: Attach::Uml,
            also: Vec::new(),
            ports: 2,
            senders: 1,
            size: 1514,
            traffic: Traffic::Unicast,
            delivery: Delivery::Hub,
            time: Duration::from_secs(1),
            frames: None,
            full: Full::Block,
            rate: None,
            send: Calls::Vector,
            receive: Calls::Vector,
            drain: Duration::from_secs(5),
            switch_pid: None,
        }
    }

    /// Whom a sender's frames are addressed to.
    pub(crate) fn to(&self, sender: u16) -> frame::To {
        match self.traffic {
            Traffic::Unicast => frame::To::Port((sender + 1) % self.ports.max(1)),
            Traffic::Flood => frame::To::All,
            Traffic::Converge => frame::To::Port(self.ports.saturating_sub(1)),
        }
    }

    /// The way a port takes into the switch.
    fn way(&self, port: u16) -> (&Path, Attach) {
        match usize::from(port) % (self.also.len() + 1) {
            0 => (&self.control, self.attach),
            n => (&self.also[n - 1].0, self.also[n - 1].1),
        }
    }

    /// Whether `port` must get what `sender` sends.
    pub(crate) fn reaches(&self, sender: u16, port: u16) -> bool {
        let heard = self.delivery == Delivery::Hub || self.to(sender) == frame::To::All;
        sender != port && (heard || self.to(sender) == frame::To::Port(port))
    }

    fn check(&self) -> Result<(), LoadError> {
        if self.ports == 0 {
            return Err(LoadError::NoPort);
        }
        if self.senders > self.ports {
            return Err(LoadError::Senders {
                senders: self.senders,
                ports: self.ports,
            });
        }
        if self.traffic == Traffic::Converge && self.senders == self.ports {
            return Err(LoadError::NoReceiver);
        }
        if !(frame::SHORTEST..=frame::LONGEST).contains(&self.size) {
            return Err(LoadError::Size(self.size));
        }
        Ok(())
    }
}

/// Why a load could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is nothing to attach.
    #[error("a load needs at least one port")]
    NoPort,
    /// More senders than ports.
    #[error("{senders} senders do not fit on {ports} ports")]
    Senders {
        /// Senders asked for.
        senders: u16,
        /// Ports asked for.
        ports: u16,
    },
    /// Everybody sends, and nobody is left to send to.
    #[error("the last port receives: there must be more ports than senders")]
    NoReceiver,
    /// A frame of this size cannot carry what is checked, or is too long.
    #[error("frame size {0} is not within {shortest} to {longest}", shortest = frame::SHORTEST, longest = frame::LONGEST)]
    Size(usize),
    /// A port could not be attached.
    #[error("cannot attach port {port}")]
    Attach {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: AttachError,
    },
    /// The system refused a setting or a thread.
    #[error("cannot prepare port {port}")]
    Prepare {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A broadcast frame does not get through.
    #[error("port {to} hears nothing of port {from} through the switch")]
    Deaf {
        /// Who called.
        from: u16,
        /// Who did not hear it.
        to: u16,
    },
    /// Sending failed for another reason than a full socket.
    #[error("cannot send from port {port}")]
    Send {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Receiving failed.
    #[error("cannot receive on port {port}")]
    Receive {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The switch's processor time cannot be read.
    #[error("cannot read the processor time of process {pid}")]
    Cpu {
        /// The switch.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The run was ended from outside before it began.
    #[error("interrupted")]
    Interrupted,
}

/// Runs a load to its end; `stop` ends it early, with a report of what was done until then.
///
/// # Errors
/// When the load makes no sense, a port cannot be attached, or the switch goes away.
pub fn run(load: Load, stop: &Stop) -> Result<Report, LoadError> {
    Running::start(load, stop)?.finish()
}

/// A load that is being offered.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    senders: Vec<thread::JoinHandle<Sent>>,
    receivers: Vec<thread::JoinHandle<Received>>,
    /// Never carries anything: it is disconnected when the last sender has ended.
    sending: mpsc::Receiver<()>,
    started: Instant,
    cpu_at_start: Option<Duration>,
    stop: Stop,
}

impl Running {
    /// Attaches the ports, makes sure that they hear each other, and lets the senders begin.
    ///
    /// # Errors
    /// As for [`run`].
    pub fn start(load: Load, stop: &Stop) -> Result<Self, LoadError> {
        let shared = Arc::new(prepare(load, stop)?);
        let cpu_at_start = shared.load.switch_pid.map(cpu).transpose()?;
        let receivers = (0..shared.load.ports)
            .map(|port| spawn(&shared, port, "rx", receive))
            .collect();
        let (sending_end, sending) = mpsc::channel::<()>();
        let started = Instant::now();
        let senders = (0..shared.load.senders)
            .map(|port| {
                let alive = sending_end.clone();
                spawn(&shared, port, "tx", move |shared, port| {
                    let sent = send(shared, port);
                    drop(alive);
                    sent
                })
            })
            .collect();
        Ok(Self {
            shared,
            senders,
            receivers,
            sending,
            started,
            cpu_at_start,
            stop: stop.clone(),
        })
    }

    /// Frames each port has received so far of those it must get.
    pub fn delivered(&self) -> Vec<u64> {
        self.shared.delivered()
    }

    /// Frames each sender has had taken by the switch so far.
    pub fn offered(&self) -> Vec<u64> {
        self.shared.offered()
    }

    /// Ends the sending now instead of when its time is over.
    pub fn stop_sending(&self) {
        self.shared.stop_sending();
    }

    /// Waits until the senders have ended, lets the last frames arrive, and counts.
    ///
    /// # Errors
    /// When sending or receiving failed, or the switch is gone.
    pub fn finish(self) -> Result<Report, LoadError> {
        if self.shared.load.senders == 0 {
            self.wait_for_time();
        }
        self.wait_for_senders();
        let window = self.started.elapsed();
        let offered_in_window = self.offered().iter().sum::<u64>();
        let delivered_in_window = self.delivered();
        let cpu_in_window = match (self.cpu_at_start, self.shared.load.switch_pid) {
            (Some(before), Some(pid)) => Some(cpu(pid)?.saturating_sub(before)),
            _ => None,
        };
        self.shared.stop_sending();
        let sent: Vec<Sent> = self.senders.into_iter().map(join).collect();
        drain(&self.shared, &self.stop);
        self.shared.stop_receiving();
        let received: Vec<Received> = self.receivers.into_iter().map(join).collect();
        if let Some(failure) = self.shared.take_failure() {
            return Err(failure);
        }
        let load = self.shared.load.clone();
        Ok(Report::new(
            load,
            window,
            offered_in_window,
            &delivered_in_window,
            cpu_in_window,
            &sent,
            &received,
        ))
    }

    fn time_left(&self) -> Duration {
        self.shared.load.time.saturating_sub(self.started.elapsed())
    }

    fn is_over(&self) -> bool {
        self.stop.is_set() || self.shared.is_stopped() || self.time_left().is_zero()
    }

    fn wait_for_time(&self) {
        while !self.is_over() {
            thread::sleep(self.time_left().min(GLANCE));
        }
    }

    fn wait_for_senders(&self) {
        while !self.is_over() {
            let wait = self.time_left().min(GLANCE);
            if self.sending.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Attaches the ports of a load, and makes sure that they hear each other.
pub(crate) fn prepare(load: Load, stop: &Stop) -> Result<Shared, LoadError> {
    load.check()?;
    let ports = (0..load.ports).map(|port| {
        if stop.is_set() {
            return Err(LoadError::Interrupted);
        }
        let (control, attach) = load.way(port);
        Port::attach(control, attach).map_err(|source| LoadError::Attach { port, source })
    });
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let shared = Shared::new(load, ports);
    introduce(&shared, stop)?;
    Ok(shared)
}

/// Waits until every frame has arrived, or nothing arrives any more, or the time for it is over.
pub(crate) fn drain(shared: &Shared, stop: &Stop) {
    let deadline = Instant::now() + shared.load.drain;
    let expected = shared.expected();
    let mut last = (shared.delivered(), Instant::now());
    while last.0 != expected && !stop.is_set() && Instant::now() < deadline && last.1.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(1));
        let now = shared.delivered();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

fn cpu(pid: u32) -> Result<Duration, LoadError> {
    cpu_time(pid).map_err(|source| LoadError::Cpu { pid, source })
}

fn spawn<T: Send + 'static>(
    shared: &Arc<Shared>,
    port: u16,
    role: &str,
    work: impl FnOnce(&Shared, u16) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(format!("{role}-{port}"))
        .spawn(move || work(&shared, port))
        .expect("the system has room for a thread per port")
}

fn join<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().expect("threads of a load do not panic")
}

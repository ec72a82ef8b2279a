//! The loop of a data path thread: events, bursts, commands, deadlines.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::domain::Domain;
use super::help::{Bell, Crew, Helper};
use super::pool::Pool;
use super::{Command, Common, DomainId, Load, Mailbox};
use fabric::{Plan, PortId};
use netio::poll::{Interest, Poller};
use tokio::sync::Notify;

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod helpers;
#[cfg(test)]
mod moves;
mod share;
#[cfg(test)]
mod turns;

pub(super) use share::Helped;
use share::{HELPERS, Window};

/// The token of the wake-up descriptor; a port's has a domain's slot in its upper half, which is never all ones.
const WAKE: u64 = u64::MAX;

/// How often forwarding tables are swept while frames pass. Lookups never see an expired entry: the sweep only frees
/// what is not looked up any more.
const SWEEP: Duration = Duration::from_secs(10);

/// How long captured frames wait for others to be handed over with, once nothing more comes.
const UNSENT: Duration = Duration::from_millis(5);

/// How long a worker looks for something to do before it sleeps. Measured with 0, 30 and 60 µs for room at full ports
/// beside uml_switch (hub, 1514 bytes, two processors): frames/s of two ports were 1.13, 1.45 and 1.57 times its own,
/// those of an 8-port flood 1.89, 2.36 and 2.46 times; TCP between two UML machines, which need the processors too, 2.8,
/// 2.4 and 2.2 times. For answers, 50 and 100 µs are no better than 30 (`bench/README.md`, round trips).
pub(super) const LOOK: Duration = Duration::from_micros(30);

/// Who gives way to others while it looks, and gets the processor back only after this, is on a busy one.
const LONG: Duration = Duration::from_millis(1);

/// So many times as long as that took, it does not look again.
const SELDOM: u32 = 100;

/// How long it waits for another worker to let go of a port.
const ENDING: Duration = Duration::from_millis(1);

/// How often a worker looks whether it has been busy for a tenth of the time.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks at all guests between two looks at everything else, which cost a system call.
const LOOKS: usize = 16;

/// The part of [`Context::poll`] a look for frames lasts at least.
const SHORTEST: u32 = 16;

/// A position in the worker's table of domains.
pub(super) type Slot = u32;

/// What all domains of a worker share.
pub(super) struct Context {
    pub(super) poller: Poller,
    /// Domains that have ports with something to read, in the order they are served: each has its turn, then the next.
    pub(super) ready: VecDeque<Slot>,
    /// Ports that others wait for.
    pub(super) full: Vec<(Slot, PortId)>,
    /// Ports that have room of which no event tells, to be served in the next round.
    pub(super) roomy: VecDeque<(Slot, PortId)>,
    /// Ports whose link has died, to be removed at the end of the round.
    pub(super) dead: Vec<(Slot, PortId)>,
    pub(super) pool: Pool,
    pub(super) plan: Plan,
    /// Captured frames wait to be handed over.
    pub(super) unsent: bool,
    /// How long an ingress port is held back for a full egress port.
    pub(super) hold: Duration,
    look: Duration,
    /// Ports of guests that have sent and were not asked to kick when they send more.
    pub(super) polled: Vec<(Slot, PortId)>,
    /// Ports that other workers read.
    pub(super) helped: Vec<Helped>,
    /// How long at most it is looked for more of them; zero is not at all.
    pub(super) poll: Duration,
    pub(super) now: Instant,
    epoch: Instant,
}

impl Context {
    /// The time as the forwarding core takes it.
    pub(super) fn fabric_now(&self) -> Duration {
        self.now.duration_since(self.epoch)
    }
}

/// The token under which a port's descriptors are watched.
pub(super) fn token(slot: Slot, port: PortId) -> u64 {
    u64::from(slot) << 32 | u64::from(port.0)
}

/// Set in the token of a descriptor that becomes readable when the port has room. Port numbers have 16 bits.
pub(super) const ROOM: u64 = 1 << 31;

pub(super) struct Worker {
    inbox: Receiver<Command>,
    bell: Arc<Bell>,
    crew: Crew,
    busy: Arc<Notify>,
    domains: Vec<Option<Domain>>,
    slots: HashMap<DomainId, Slot>,
    /// What is asked about domains that another worker is about to hand over.
    expected: HashMap<DomainId, Vec<Command>>,
    swept: Instant,
    /// Ports of other workers that this one reads.
    helpers: Vec<Option<Helper>>,
    window: Window,
    /// How much time has passed in sleep.
    slept: Duration,
    /// When it was asked what there was to do, and how much of the time had passed in sleep by then.
    asked: (Instant, Duration),
    told: bool,
    /// Frames have moved since it looked for more last.
    moved: bool,
    /// Until then the processor is taken for a busy one.
    crowded: Instant,
    context: Context,
    /// How long the next look for frames lasts at most: shorter with each that was in vain, at most [`Context::poll`].
    spin: Duration,
}

impl Worker {
    /// A worker, and where it gets its commands.
    pub(super) fn new(common: &Common) -> io::Result<(Self, Mailbox)> {
        let bell = Arc::new(Bell::new()?);
        let poller = Poller::new()?;
        poller.add(bell.fd(), WAKE, Interest::Read)?;
        let (commands, inbox) = channel();
        let mailbox = Mailbox {
            commands,
            bell: Arc::clone(&bell),
        };
        common.crew.join(mailbox.clone());
        let now = Instant::now();
        let context = Context {
            poller,
            ready: VecDeque::new(),
            full: Vec::new(),
            roomy: VecDeque::new(),
            dead: Vec::new(),
            pool: Pool::new(common.frames, now),
            plan: Plan::new(),
            unsent: false,
            hold: common.hold,
            look: common.look,
            polled: Vec::new(),
            helped: Vec::new(),
            poll: common.poll,
            now,
            epoch: common.epoch,
        };
        let worker = Self {
            inbox,
            bell,
            crew: common.crew.clone(),
            busy: Arc::clone(&common.busy),
            domains: Vec::new(),
            slots: HashMap::new(),
            expected: HashMap::new(),
            swept: now,
            helpers: Vec::new(),
            window: Window::new(now, Duration::ZERO),
            slept: Duration::ZERO,
            asked: (now, Duration::ZERO),
            told: false,
            moved: false,
            crowded: now,
            context,
            spin: common.poll,
        };
        Ok((worker, mailbox))
    }

    pub(super) fn run(mut self) {
        while self.round() {}
    }

    /// Waits, and does all there is to do; false if the worker is to stop.
    fn round(&mut self) -> bool {
        if let Err(error) = self.wait() {
            tracing::error!("cannot wait for frames: {error}");
            return false;
        }
        self.context.now = Instant::now();
        let commands = self.take_events();
        self.exchange();
        if self.context.unsent && self.context.ready.is_empty() {
            self.flush_captures();
        }
        self.moved |= !self.context.ready.is_empty();
        // One turn for each domain that has something; what arrives meanwhile has its turn in the next round.
        for _ in 0..self.context.ready.len() {
            let Some(slot) = self.context.ready.pop_front() else {
                break;
            };
            if let Some(domain) = domain(&mut self.domains, slot) {
                domain.turn(&mut self.context);
                self.window.turns += 1;
            }
        }
        self.check_full();
        self.bury_dead();
        self.sweep();
        self.share();
        !commands || self.take_commands()
    }

    /// Waits for something to do.
    fn wait(&mut self) -> io::Result<()> {
        if self.timeout() != Some(Duration::ZERO) && self.pause()? {
            return Ok(());
        }
        if !self.context.polled.is_empty() {
            self.look(self.context.ready.is_empty());
        }
        let timeout = self.timeout();
        if timeout == Some(Duration::ZERO) {
            return self.context.poller.wait(timeout);
        }
        let begun = Instant::now();
        self.bell.lie_down();
        let now = self.has_exchange().then_some(Duration::ZERO);
        let result = self.context.poller.wait(now.or(timeout));
        self.bell.get_up();
        self.slept += begun.elapsed();
        result
    }

    /// Looks a little while for something to do before it sleeps, since to sleep and be woken costs more; true if there is
    /// an event.
    ///
    /// A receiver of a full port that is reading makes room within microseconds. Who got a frame may answer as soon, and
    /// guests that share their memory and have just sent may send more; that is seen before they are asked to kick, which
    /// costs them a system call. They may be on this very processor, so they are given way to in between, unless others
    /// take that for long.
    fn pause(&mut self) -> io::Result<bool> {
        let full = !self.context.full.is_empty();
        let guests = !self.context.polled.is_empty();
        let moved = std::mem::take(&mut self.moved);
        let polite = guests || !full;
        let begun = Instant::now();
        if polite && (!moved || begun < self.crowded) {
            return Ok(false);
        }
        let longest = if guests {
            self.spin.max(self.context.look)
        } else {
            self.context.look
        };
        let (mut now, mut frames, mut event) = (begun, false, false);
        while !frames && !event && now - begun < longest {
            frames = guests && self.look_often();
            if !frames {
                self.context.poller.wait(Some(Duration::ZERO))?;
                event = self.context.poller.event(0).is_some() || self.has_exchange();
            }
            if polite && !frames && !event {
                std::thread::yield_now();
            }
            let before = std::mem::replace(&mut now, Instant::now());
            if polite && now - before > LONG {
                self.crowded = now + (now - before) * SELDOM;
                break;
            }
        }
        if frames {
            self.spin = (self.spin * 2).min(self.context.poll);
        } else if guests && !event {
            self.spin = (self.spin / 2).max(self.context.poll / SHORTEST);
        }
        if polite {
            self.slept += now - begun;
        }
        Ok(event)
    }

    /// Looks some times in a row for frames of guests that have just sent some.
    fn look_often(&mut self) -> bool {
        for _ in 0..LOOKS {
            self.look(false);
            if !self.context.ready.is_empty() || !self.context.dead.is_empty() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Looks once, the last time if they are to kick from now on.
    fn look(&mut self, last: bool) {
        let mut polled = std::mem::take(&mut self.context.polled);
        polled.retain(|&(slot, port)| {
            domain(&mut self.domains, slot).is_some_and(|domain| !domain.look(port, last, &mut self.context))
        });
        self.context.polled = polled;
    }

    /// How long to wait: not at all with ports to read, until the next deadline with ports that are waited for, else
    /// for ever.
    fn timeout(&self) -> Option<Duration> {
        let context = &self.context;
        let now = !context.ready.is_empty() || !context.roomy.is_empty() || !context.dead.is_empty();
        if now || self.has_exchange() {
            return Some(Duration::ZERO);
        }
        let unsent = self.context.unsent.then(|| Instant::now() + UNSENT);
        // Of a domain that has come from another worker, which is the one that is nudged.
        let ending = context.helped.iter().any(Helped::is_ending);
        let ending = ending.then(|| Instant::now() + ENDING);
        let deadlines = self.context.full.iter().filter_map(|&(slot, port)| {
            self.domains
                .get(slot as usize)?
                .as_ref()?
                .deadline(port, self.context.hold)
        });
        deadlines
            .chain(unsent)
            .chain(ending)
            .chain(context.pool.deadline())
            .min()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Marks what the kernel reports and serves ports that have room again; true if there are commands.
    fn take_events(&mut self) -> bool {
        let mut commands = false;
        let mut index = 0;
        while let Some(event) = self.context.poller.event(index) {
            index += 1;
            if event.token == WAKE {
                commands = true;
                continue;
            }
            #[expect(clippy::cast_possible_truncation, reason = "the token's two halves")]
            let (slot, port) = ((event.token >> 32) as Slot, PortId((event.token & !ROOM) as u32));
            if slot == HELPERS {
                self.helper_readable(port);
                continue;
            }
            let Some(domain) = domain(&mut self.domains, slot) else {
                continue;
            };
            if event.token & ROOM != 0 {
                domain.writable(port, &mut self.context);
                continue;
            }
            if event.readable || event.broken {
                domain.readable(port, &mut self.context);
            }
            if event.writable {
                domain.writable(port, &mut self.context);
            }
        }
        for _ in 0..self.context.roomy.len() {
            if let Some((slot, port)) = self.context.roomy.pop_front()
                && let Some(domain) = domain(&mut self.domains, slot)
            {
                domain.writable(port, &mut self.context);
            }
        }
        commands
    }

    /// Ends waits that have lasted too long.
    fn check_full(&mut self) {
        let mut full = std::mem::take(&mut self.context.full);
        full.retain(|&(slot, port)| {
            domain(&mut self.domains, slot).is_some_and(|domain| domain.check(port, &mut self.context))
        });
        full.append(&mut self.context.full);
        self.context.full = full;
    }

    /// Hands captured frames over before a wait that may be long.
    fn flush_captures(&mut self) {
        self.context.unsent = false;
        for domain in self.domains.iter_mut().flatten() {
            self.context.unsent |= domain.flush_feeds();
        }
    }

    fn bury_dead(&mut self) {
        while let Some((slot, port)) = self.context.dead.pop() {
            if let Some(domain) = domain(&mut self.domains, slot) {
                domain.remove(port, &mut self.context);
            }
        }
    }

    /// Looks after what is to be looked after now and then while there are frames.
    fn sweep(&mut self) {
        let (asked, slept) = self.asked;
        let period = self.context.now.saturating_duration_since(asked);
        if period >= PERIOD && !self.told {
            if (self.slept - slept) * 10 < period * 9 {
                self.told = true;
                self.busy.notify_one();
            } else {
                self.load();
            }
        }
        self.context.pool.trim(self.context.now);
        if self.context.now.duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = self.context.now;
        let now = self.context.fabric_now();
        for domain in self.domains.iter_mut().flatten() {
            domain.expire(now);
        }
    }

    /// Carries out what the control side asks for; false if the worker is to stop.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// An answer nobody waits for any more is dropped.
    pub(super) fn obey(&mut self, command: Command) {
        if let Some(id) = command.domain()
            && let Some(waiting) = self.expected.get_mut(&id)
        {
            waiting.push(command);
            return;
        }
        match command {
            Command::AddDomain(id, settings) => self.add(id, settings),
            Command::RemoveDomain(id, done) => {
                if let Some(slot) = self.slots.remove(&id)
                    && let Some(mut domain) = self.domains[slot as usize].take()
                {
                    domain.clear(&mut self.context);
                }
                let _ = done.send(());
            }
            Command::Attach(id, port, done) => {
                if let Some((domain, context)) = self.find(id) {
                    let _ = done.send(domain.attach(*port, context));
                }
            }
            Command::Detach(id, port, done) => match self.find(id) {
                Some((domain, context)) => domain.detach(port, done, context),
                None => drop(done.send(())),
            },
            Command::Secure(id, port, ranges) => {
                if let Some((domain, _)) = self.find(id) {
                    domain.secure(port, ranges);
                }
            }
            Command::Snapshot(id, answer) => {
                if let Some((domain, context)) = self.find(id) {
                    let _ = answer.send(domain.snapshot(context.fabric_now()));
                }
            }
            Command::Fdb(id, answer) => {
                if let Some((domain, context)) = self.find(id) {
                    let _ = answer.send(domain.stations(context.fabric_now()));
                }
            }
            Command::FdbAdd(id, mac, port, answer) => {
                if let Some((domain, _)) = self.find(id) {
                    let _ = answer.send(domain.fdb_mut().add_static(mac, port));
                }
            }
            Command::FdbRemove(id, mac, answer) => {
                if let Some((domain, _)) = self.find(id) {
                    let _ = answer.send(domain.fdb_mut().remove(mac));
                }
            }
            Command::AddCapture(id, feed) => {
                if let Some((domain, _)) = self.find(id) {
                    domain.add_feed(feed);
                }
            }
            Command::RemoveCapture(id, feed) => {
                if let Some((domain, _)) = self.find(id) {
                    domain.remove_feed(feed);
                }
            }
            Command::Move(id, to) => {
                let domain = self.give(id);
                to.send(Command::Adopt(id, domain));
            }
            Command::Expect(id) => drop(self.expected.insert(id, Vec::new())),
            Command::Adopt(id, domain) => {
                if let Some(domain) = domain {
                    self.adopt(id, domain);
                }
                for command in self.expected.remove(&id).unwrap_or_default() {
                    self.obey(command);
                }
            }
            Command::Help(helper) => self.help(*helper),
            Command::Load(answer) => drop(answer.send(self.load())),
            Command::Stop => unreachable!("taken by the caller"),
        }
    }

    /// Parts with a domain. Frames that come meanwhile wait in the sockets.
    fn give(&mut self, id: DomainId) -> Option<Box<Domain>> {
        self.bury_dead();
        let slot = self.slots.remove(&id)?;
        let mut domain = self.domains[slot as usize].take()?;
        domain.leave(&mut self.context);
        Some(Box::new(domain))
    }

    /// Takes a domain over, with its ports as they are.
    fn adopt(&mut self, id: DomainId, mut domain: Box<Domain>) {
        let slot = self.free_slot();
        domain.arrive(slot, &mut self.context);
        self.domains[slot as usize] = Some(*domain);
        self.slots.insert(id, slot);
    }

    /// What there was to do since this was last asked.
    fn load(&mut self) -> Load {
        let now = Instant::now();
        let (asked, slept) = std::mem::replace(&mut self.asked, (now, self.slept));
        let (time, slept) = (now - asked, self.slept - slept);
        self.told = false;
        let domains = self.slots.iter().filter_map(|(&id, &slot)| {
            let domain = self.domains.get_mut(slot as usize)?.as_mut()?;
            Some(domain.load(id, now))
        });
        Load {
            time,
            busy: 1.0 - (slept.as_secs_f64() / time.as_secs_f64().max(1e-9)).min(1.0),
            domains: domains.collect(),
        }
    }

    fn add(&mut self, id: DomainId, settings: fabric::Settings) {
        let slot = self.free_slot();
        self.domains[slot as usize] = Some(Domain::new(slot, settings, self.context.now));
        self.slots.insert(id, slot);
    }

    fn free_slot(&mut self) -> Slot {
        let place = self
            .domains
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.domains.len());
        if place == self.domains.len() {
            self.domains.push(None);
        }
        Slot::try_from(place).expect("fewer than 2^32 domains")
    }

    fn find(&mut self, id: DomainId) -> Option<(&mut Domain, &mut Context)> {
        let domain = domain(&mut self.domains, *self.slots.get(&id)?)?;
        Some((domain, &mut self.context))
    }
}

fn domain(domains: &mut [Option<Domain>], slot: Slot) -> Option<&mut Domain> {
    domains.get_mut(slot as usize)?.as_mut()
}

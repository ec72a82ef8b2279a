//! Help between workers: who needs it, who gives it, and when it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::PortId;
use netio::poll::Interest;

use super::{Slot, Worker, domain, token};
use crate::datapath::help::{Help, Helper};

/// How often a worker looks at what it has had to do. Two of these in a row have to say that it needs help.
const WINDOW: Duration = Duration::from_millis(20);

/// Who has had little to do for so long may help.
const IDLE: Duration = Duration::from_millis(50);

/// A port is worth the batches that go to and fro with so many frames a second, and is left alone again with less in
/// [`LONG_WINDOW`].
const MANY: f64 = 60_000.0;
const FEW: f64 = 30_000.0;
const LONG_WINDOW: Duration = Duration::from_secs(1);

/// The slot in the tokens of descriptors that are read for other workers: no domain has it.
pub(super) const HELPERS: Slot = Slot::MAX - 1;

/// A port of this worker that another one reads.
pub(in super::super) struct Helped {
    pub(in super::super) slot: Slot,
    port: PortId,
    help: Arc<Help>,
    /// When it was last asked how many frames the port has received, and how many that were.
    asked: Option<(Instant, u64)>,
}

impl Helped {
    pub(in super::super) fn new(slot: Slot, port: PortId, help: Arc<Help>) -> Self {
        Self {
            slot,
            port,
            help,
            asked: None,
        }
    }

    /// The port is to be read by this worker again.
    pub(super) fn end(&self) {
        self.help.end();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.help.is_ending() && !self.help.is_over()
    }
}

/// What a worker has had to do since a moment.
pub(super) struct Window {
    begun: Instant,
    /// How long it had slept by then.
    slept: Duration,
    /// All ports' frames were counted then.
    marked: bool,
    /// Turns of its own domains, and reads for other workers.
    pub(super) turns: usize,
    pub(super) reads: usize,
}

impl Window {
    pub(super) fn new(begun: Instant, slept: Duration) -> Self {
        Self {
            begun,
            slept,
            marked: false,
            turns: 0,
            reads: 0,
        }
    }
}

impl Worker {
    /// Reads ports of another worker from now on.
    pub(super) fn help(&mut self, helper: Helper) {
        let place = self.helpers.iter().position(Option::is_none);
        let place = place.unwrap_or(self.helpers.len());
        let token = token(
            HELPERS,
            PortId(u32::try_from(place).expect("fewer than there are ports")),
        );
        if let Err(error) = self.context.poller.add(helper.fd(), token, Interest::Read) {
            // Dropped, it says that it is over.
            tracing::error!("cannot watch a port of another worker: {error}");
            return;
        }
        if place == self.helpers.len() {
            self.helpers.push(None);
        }
        self.helpers[place] = Some(helper);
    }

    /// There may be something to read for another worker.
    pub(super) fn helper_readable(&mut self, index: PortId) {
        if let Some(Some(helper)) = self.helpers.get_mut(index.index()) {
            helper.readable();
        }
    }

    /// There is something to read for others, or something that others have read.
    pub(super) fn has_exchange(&self) -> bool {
        let takes = |slot: Slot, port| {
            let domain = self.domains.get(slot as usize).and_then(Option::as_ref);
            domain.is_some_and(|domain| domain.takes(port))
        };
        let mut helped = self.context.helped.iter();
        self.helpers.iter().flatten().any(Helper::has_work)
            || helped.any(|helped| helped.help.has_news() && takes(helped.slot, helped.port))
    }

    /// Reads a batch of each port of others, and has ports served that others have read.
    pub(super) fn exchange(&mut self) {
        for place in 0..self.helpers.len() {
            let Some(helper) = &mut self.helpers[place] else {
                continue;
            };
            if !helper.has_work() {
                continue;
            }
            self.window.reads += 1;
            self.moved = true;
            if !helper.read() {
                self.stop_helping(place);
            }
        }
        let mut helped = std::mem::take(&mut self.context.helped);
        helped.retain(|helped| {
            if helped.help.has_news()
                && let Some(domain) = domain(&mut self.domains, helped.slot)
            {
                domain.readable(helped.port, &mut self.context);
            }
            !helped.help.is_over()
        });
        self.context.helped = helped;
    }

    pub(super) fn stop_helping(&mut self, place: usize) {
        if let Some(helper) = self.helpers[place].take()
            && let Err(error) = self.context.poller.remove(helper.fd())
        {
            tracing::error!("cannot stop watching a port of another worker: {error}");
        }
    }

    /// Looks whether this worker needs help, or the help it has or gives is of no use any more.
    pub(super) fn share(&mut self) {
        let now = self.context.now;
        let time = now.saturating_duration_since(self.window.begun);
        if time < WINDOW {
            return;
        }
        let window = std::mem::replace(&mut self.window, Window::new(now, self.slept));
        let slept = self.slept - window.slept;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let moment = millis(self.context.now.duration_since(self.context.epoch));
        if slept * 5 < time * 4 {
            self.bell.was_busy(moment);
        }
        // Domains of its own come first.
        if slept * 2 < time && window.turns * 4 > window.reads {
            (0..self.helpers.len()).for_each(|place| self.stop_helping(place));
        }
        for helped in &mut self.context.helped {
            let domain = self.domains.get(helped.slot as usize).and_then(Option::as_ref);
            let Some(frames) = domain.and_then(|domain| domain.received(helped.port)) else {
                continue;
            };
            let (since, before) = *helped.asked.get_or_insert((now, frames));
            let time = now.saturating_duration_since(since);
            if time >= LONG_WINDOW {
                helped.asked = Some((now, frames));
                if rate(frames - before, time) < FEW {
                    helped.end();
                }
            }
        }
        if slept * 2 > time {
            return;
        }
        let Some(helper) = self.crew.idle(moment, millis(IDLE)) else {
            return;
        };
        let (mut all, mut most) = (0, None);
        for (slot, domain) in (0..).zip(&mut self.domains) {
            if let Some(domain) = domain {
                let (frames, port) = domain.most();
                all += frames;
                most = most.max(port.map(|(frames, port)| (frames, slot, port)));
            }
        }
        self.window.marked = true;
        if window.marked
            && let Some((frames, slot, port)) = most
            // What is sent to many takes longer than to read it.
            && frames * 3 >= all
            && rate(frames, time) >= MANY
            && let Some(domain) = domain(&mut self.domains, slot)
        {
            domain.share(port, &self.bell, &helper, &mut self.context);
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "frames of some seconds are far below 2^52"
)]
fn rate(frames: u64, time: Duration) -> f64 {
    frames as f64 / time.as_secs_f64()
}

//! A domain on the data path: its ports, and the way of a batch from one of them to the others.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::{Batch, DropReason, Fdb, FrameSet, Guard, MacAddr, PortId, Range};
use tokio::sync::oneshot;

use super::capture::{Feed, FeedId};
use super::flow::{Admission, Egress, LONGEST_HOLD, Verdict};
use super::port::{Counters, Link, Parcel, Port, Rest, Rx, Tx};
use super::worker::{Context, Helped, Slot, token};
use super::{DomainId, DomainLoad, NewPort, PortSnapshot, Snapshot};

mod share;
mod turns;

/// A domain and everything it owns.
pub(crate) struct Domain {
    slot: Slot,
    fabric: fabric::Domain,
    guard: Guard,
    ports: Vec<Option<Port>>,
    /// Ports with something to read, in the order they are served: one batch each.
    ready: VecDeque<PortId>,
    /// It stands in the worker's ready queue, or has its turn.
    queued: bool,
    feeds: Vec<Feed>,
    /// Ports that get every frame, and never hold anybody back.
    dumps: Vec<PortId>,
    /// Counters of ports that have left.
    departed: Counters,
    /// Frames counted when it was last asked what there was to do.
    counted: u64,
    /// The same, for [`Domain::most`].
    marked: u64,
    /// Turns since then, and those after which there was more to do.
    turns: (u32, u32),
    /// When it came to its worker.
    arrived: Instant,
    serial: u64,
}

impl Domain {
    pub(super) fn new(slot: Slot, settings: fabric::Settings, now: Instant) -> Self {
        Self {
            slot,
            fabric: fabric::Domain::new(settings),
            guard: Guard::default(),
            ports: Vec::new(),
            ready: VecDeque::new(),
            queued: false,
            feeds: Vec::new(),
            dumps: Vec::new(),
            departed: Counters::default(),
            counted: 0,
            marked: 0,
            turns: (0, 0),
            arrived: now,
            serial: 0,
        }
    }

    /// The data path: one batch of one port, from its receive queue to every port that gets a part of it. Returns what
    /// that was of a turn.
    fn burst(&mut self, ingress: PortId, context: &mut Context) -> usize {
        let Some(port) = self.ports.get_mut(ingress.index()).and_then(Option::as_mut) else {
            return 0;
        };
        port.queued = false;
        let buffers = port.link.buffers(self.fabric.longest_frame());
        let mut parcel = context.pool.take(buffers, context.now);
        let rx = port.rx(&mut parcel.batch, &context.poller, token(self.slot, ingress));
        port.readable = matches!(rx, Rx::More);
        // Captures and guards look at whole frames.
        let examined = !self.feeds.is_empty() || !self.guard.is_empty();
        let all = parcel.batch.all();
        if examined && !port.link.fetch(&mut parcel.batch, all) {
            // It is found to be broken when it gets back what it has lent.
            parcel.batch.clear();
        }
        let bytes = port.count_rx(&parcel.batch);
        let work = turns::work(parcel.batch.len(), bytes);
        if !self.guard.is_empty() {
            let ageing = self.fabric.settings().ageing;
            self.guard
                .check(&mut parcel.batch, ingress, context.fabric_now(), ageing);
        }

        let mut plan = std::mem::take(&mut context.plan);
        self.fabric
            .forward(&parcel.batch, ingress, context.fabric_now(), &mut plan);
        port.counters.drops.merge(plan.drops());
        for feed in &mut self.feeds {
            context.unsent |= feed.offer(&parcel.batch, &plan, ingress, &self.ports);
        }
        if !self.dumps.is_empty() {
            self.dump(&mut parcel.batch, plan.accepted(), ingress, context);
        }
        for (egress, frames) in plan.egress() {
            if self.dumps.contains(&egress) {
                continue;
            }
            let kept = self.send(&mut parcel.batch, frames, ingress, egress, context);
            if !kept.frames.is_empty() {
                parcel.owed.push((egress, kept));
            }
        }
        context.plan = plan;
        let quiet = matches!(rx, Rx::Drained) && !parcel.batch.is_empty();
        let entry = (self.slot, ingress);
        if quiet && !context.poll.is_zero() && self.is_polled(ingress) && !context.polled.contains(&entry) {
            context.polled.push(entry);
        }
        if !self.give_back(ingress, &mut parcel) || matches!(rx, Rx::Closed) {
            context.dead.push((self.slot, ingress));
        }
        self.settle(ingress, parcel, context);
        work
    }

    /// Gives a guest back what it has lent to a batch. What others are owed of that is kept for them here: the guest may
    /// need its buffers, or leave. False if there is something wrong with the guest.
    fn give_back(&mut self, ingress: PortId, parcel: &mut Parcel) -> bool {
        let Some(port) = self.port_mut(ingress) else {
            return true;
        };
        let sets = parcel.owed.iter().map(|(_, rest)| rest.frames);
        let owed = sets.fold(FrameSet::EMPTY, |all, frames| all | frames);
        port.link.fetch(&mut parcel.batch, owed) && port.link.release()
    }

    /// Sends frames to the ports that get every frame but their own, as far as they take them at once.
    fn dump(&mut self, batch: &mut Batch, frames: FrameSet, ingress: PortId, context: &mut Context) {
        for index in 0..self.dumps.len() {
            let id = self.dumps[index];
            if id == ingress {
                continue;
            }
            match self.tx(batch, Rest::whole(frames), ingress, id, context) {
                Tx::Done => {}
                Tx::Full(rest) => {
                    self.discard(batch, rest.frames, id, DropReason::QueueFull, context);
                }
                Tx::Closed(rest) => {
                    context.dead.push((self.slot, id));
                    self.discard(batch, rest, id, DropReason::PeerGone, context);
                }
            }
        }
    }

    /// Sends frames to a port as far as it takes them; returns what the ingress port is to keep for it.
    fn send(
        &mut self,
        batch: &mut Batch,
        frames: FrameSet,
        ingress: PortId,
        egress: PortId,
        context: &mut Context,
    ) -> Rest {
        let Some(port) = self.port_mut(egress) else {
            return Rest::NONE;
        };
        let rest = match port.egress.admit(context.now) {
            Admission::Bypass => return self.discard(batch, frames, egress, DropReason::Bypassed, context),
            Admission::Wait => Rest::whole(frames),
            Admission::Send => match self.tx(batch, Rest::whole(frames), ingress, egress, context) {
                Tx::Done => return Rest::NONE,
                Tx::Full(rest) if context.hold.is_zero() => {
                    return self.discard(batch, rest.frames, egress, DropReason::QueueFull, context);
                }
                Tx::Full(rest) => rest,
                Tx::Closed(rest) => {
                    context.dead.push((self.slot, egress));
                    return self.discard(batch, rest, egress, DropReason::PeerGone, context);
                }
            },
        };
        let Some(port) = self.port_mut(egress) else {
            return Rest::NONE;
        };
        port.egress.refused(ingress, context.now);
        if !context.full.contains(&(self.slot, egress)) {
            context.full.push((self.slot, egress));
        }
        self.watch_room(egress, context);
        rest
    }

    /// Sends frames to a port at once. If some of them are lent, the port copies them from where they are, if it can; else
    /// they are fetched, once for all who are still to get them.
    fn tx(
        &mut self,
        batch: &mut Batch,
        rest: Rest,
        ingress: PortId,
        egress: PortId,
        context: &mut Context,
    ) -> Tx {
        let longest_frame = self.fabric.longest_frame();
        let Ok([from, Some(port)]) = self.ports.get_disjoint_mut([ingress.index(), egress.index()]) else {
            return Tx::Done;
        };
        let mut lender = from.as_mut().map(|from| &mut from.link);
        if let Some(link) = &mut lender
            && !port.takes_lent(batch, rest.frames)
            && !link.fetch(batch, rest.frames)
        {
            // It is found to be broken when it gets back what it has lent.
            port.discard(rest.frames, DropReason::Detached);
            return Tx::Done;
        }
        let tx = port.tx(batch, rest, longest_frame, lender.as_deref());
        if !self.feeds.is_empty() && !port.faults.is_empty() {
            let faults = std::mem::take(&mut port.faults);
            for feed in &mut self.feeds {
                for &(frames, reason) in &faults {
                    context.unsent |= feed.lost(batch, frames, reason, egress, &self.ports);
                }
            }
            if let Some(port) = self.port_mut(egress) {
                // Its memory serves again.
                port.faults = faults;
            }
        }
        tx
    }

    /// Drops frames that were to go out at a port, and leaves none.
    fn discard(
        &mut self,
        batch: &Batch,
        frames: FrameSet,
        egress: PortId,
        reason: DropReason,
        context: &mut Context,
    ) -> Rest {
        if let Some(port) = self.port_mut(egress) {
            port.discard(frames, reason);
        }
        for feed in &mut self.feeds {
            context.unsent |= feed.lost(batch, frames, reason, egress, &self.ports);
        }
        Rest::NONE
    }

    /// Ends a step with a parcel: back to the pool if nobody is owed any of it, else its ingress port keeps it.
    fn settle(&mut self, ingress: PortId, parcel: Parcel, context: &mut Context) {
        match self.port_mut(ingress) {
            Some(port) if !parcel.owed.is_empty() => port.held = Some(parcel),
            _ => context.pool.put(parcel),
        }
        self.enqueue(ingress, context);
    }

    /// There is room: gives a port what others keep for it, each in its turn.
    pub(super) fn writable(&mut self, egress: PortId, context: &mut Context) {
        if let Some(port) = self.port_mut(egress) {
            port.egress.writable();
            self.serve_waiting(egress, context);
        }
    }

    /// Gives a port what others keep for it, as far as it takes it. Who has sent all it kept is read first if it may have
    /// more, so that it has its next turn before those behind it have a second one.
    fn serve_waiting(&mut self, egress: PortId, context: &mut Context) {
        while let Some(&ingress) = self.port_mut(egress).and_then(|port| port.egress.waiting.front()) {
            let Some(mut parcel) = self.port_mut(ingress).and_then(|port| port.held.take()) else {
                return;
            };
            let owed = parcel.owed.iter().position(|&(port, _)| port == egress);
            let owed = owed.expect("a port waits only for what it keeps");
            let (turn, later) = parcel.owed[owed].1.turn(&parcel.batch);
            let tx = self.tx(&mut parcel.batch, turn, ingress, egress, context);
            let Some(port) = self.port_mut(egress) else { return };
            if let Tx::Full(rest) = tx {
                let sent = turn.less(rest, &parcel.batch);
                port.egress.took(sent);
                let (rest, over) = rest.resume(turn, sent, later);
                if over {
                    port.egress.waiting.rotate_left(1);
                }
                parcel.owed[owed].1 = rest;
                self.settle(ingress, parcel, context);
                self.watch_room(egress, context);
                return;
            }
            port.egress.took(turn.less(Rest::NONE, &parcel.batch));
            if matches!(tx, Tx::Done) && !later.frames.is_empty() {
                port.egress.waiting.rotate_left(1);
                parcel.owed[owed].1 = later;
                self.settle(ingress, parcel, context);
                continue;
            }
            port.egress.waiting.pop_front();
            let others = !port.egress.waiting.is_empty();
            if let Tx::Closed(rest) = tx {
                let rest = rest | later.frames;
                self.discard(&parcel.batch, rest, egress, DropReason::PeerGone, context);
                context.dead.push((self.slot, egress));
            }
            parcel.owed.swap_remove(owed);
            self.settle(ingress, parcel, context);
            if others && self.port_mut(ingress).is_some_and(|port| port.queued) {
                context.roomy.push_back((self.slot, egress));
                return;
            }
        }
        if let Some(port) = self.port_mut(egress) {
            port.egress.served();
        }
        self.watch_room(egress, context);
    }

    /// When [`Domain::check`] is due for a port that others wait for.
    pub(super) fn deadline(&self, id: PortId, hold: Duration) -> Option<Instant> {
        self.ports.get(id.index())?.as_ref()?.egress.deadline(hold)
    }

    /// Ends waits for a port that have lasted too long; false once nobody waits any more.
    pub(super) fn check(&mut self, egress: PortId, context: &mut Context) -> bool {
        if self
            .deadline(egress, context.hold)
            .is_some_and(|due| due <= context.now)
        {
            // A Unix socket is reported writable only once three quarters of its buffer are free (unix_writable() of
            // Linux). A port that reads slowly has room long before that.
            self.serve_waiting(egress, context);
        }
        let Some(port) = self.port_mut(egress) else {
            return false;
        };
        match port.egress.check(context.now, context.hold) {
            Verdict::Open => return false,
            Verdict::Early => return true,
            Verdict::Stuck => self.give_up(egress, DropReason::QueueFull, |_| true, context),
            Verdict::Slow => {
                // Whoever would be held too long by the next look is let go now.
                let next = self.deadline(egress, context.hold);
                let too_long = |parcel: &Parcel| next > Some(parcel.since + LONGEST_HOLD);
                self.give_up(egress, DropReason::QueueFull, too_long, context);
            }
        }
        self.port_mut(egress).is_some_and(|port| port.egress.is_full())
    }

    /// Drops what some of the ports keep for this one.
    fn give_up(
        &mut self,
        egress: PortId,
        reason: DropReason,
        which: impl Fn(&Parcel) -> bool,
        context: &mut Context,
    ) {
        for _ in 0..self.port_mut(egress).map_or(0, |port| port.egress.waiting.len()) {
            let Some(ingress) = self
                .port_mut(egress)
                .and_then(|port| port.egress.waiting.pop_front())
            else {
                return;
            };
            let Some(mut parcel) = self.port_mut(ingress).and_then(|port| port.held.take()) else {
                continue;
            };
            if which(&parcel) {
                let owed = parcel.owed.iter().position(|&(port, _)| port == egress);
                let (_, rest) = parcel
                    .owed
                    .swap_remove(owed.expect("a port waits only for what it keeps"));
                self.discard(&parcel.batch, rest.frames, egress, reason, context);
            } else if let Some(port) = self.port_mut(egress) {
                port.egress.waiting.push_back(ingress);
            }
            self.settle(ingress, parcel, context);
        }
        if let Some(port) = self.port_mut(egress)
            && port.egress.waiting.is_empty()
        {
            port.egress.served();
        }
    }

    /// Has the kernel report room at a port exactly as long as that is of interest.
    fn watch_room(&mut self, id: PortId, context: &mut Context) {
        let slot = self.slot;
        let Some(port) = self.port_mut(id) else { return };
        let wanted = port.egress.wants_room();
        if let Link::Vhost(link) = &mut port.link {
            // A guest tells of room but once: it is asked again each time.
            if wanted || port.armed {
                port.armed = wanted;
                match link.watch_room(wanted) {
                    Ok(true) => context.roomy.push_back((slot, id)),
                    Ok(false) => {}
                    Err(_) => context.dead.push((slot, id)),
                }
            }
            return;
        }
        if wanted == port.armed {
            return;
        }
        port.armed = wanted;
        if let Err(error) = port.watch(&context.poller, token(slot, id)) {
            port.armed = !wanted;
            tracing::error!("cannot watch port {id}: {error}");
        }
    }

    pub(super) fn attach(&mut self, new: NewPort, context: &mut Context) -> io::Result<()> {
        let NewPort {
            id,
            mut link,
            identity,
            alive,
        } = new;
        if !self.fabric.attach_at(id) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        if let Err(error) = link.watch(&context.poller, token(self.slot, id)) {
            self.fabric.detach(id);
            return Err(error);
        }
        if let Link::Vhost(link) = &mut link
            && !context.poll.is_zero()
        {
            link.poll();
        }
        if self.ports.len() <= id.index() {
            self.ports.resize_with(id.index() + 1, || None);
        }
        if matches!(link, Link::Dump(_)) {
            self.dumps.push(id);
        }
        self.serial += 1;
        self.ports[id.index()] = Some(Port {
            link,
            identity,
            serial: self.serial,
            counters: Counters::default(),
            marked: (0, 0),
            help: None,
            egress: Egress::new(),
            held: None,
            readable: false,
            queued: false,
            armed: false,
            faults: Vec::new(),
            finisher: None,
            closing: None,
            _alive: alive,
        });
        // A guest may have sent before it was watched, with a kick that somebody else has heard.
        self.readable(id, context);
        Ok(())
    }

    /// Removes a port once what it has sent is read.
    pub(super) fn detach(&mut self, id: PortId, done: oneshot::Sender<()>, context: &mut Context) {
        match self.port_mut(id) {
            Some(port) => {
                port.closing = Some(done);
                if let Some(help) = &port.help {
                    help.end();
                }
                port.link.finish();
                port.readable = true;
                self.enqueue(id, context);
            }
            None => drop(done.send(())),
        }
    }

    /// Removes a port at once: what others keep for it and what it keeps for others is dropped and counted.
    pub(super) fn remove(&mut self, id: PortId, context: &mut Context) {
        self.give_up(id, DropReason::PeerGone, |_| true, context);
        let Some(mut port) = self.ports.get_mut(id.index()).and_then(Option::take) else {
            return;
        };
        if let Some(help) = port.help.take() {
            help.end();
        }
        if let Some(parcel) = port.held.take() {
            for &(egress, rest) in &parcel.owed {
                self.discard(&parcel.batch, rest.frames, egress, DropReason::Detached, context);
                if let Some(other) = self.port_mut(egress) {
                    other.egress.waiting.retain(|&ingress| ingress != id);
                    if other.egress.waiting.is_empty() {
                        other.egress.served();
                    }
                }
            }
            context.pool.put(parcel);
        }
        self.fabric.detach(id);
        self.guard.forget(id);
        self.dumps.retain(|&dump| dump != id);
        self.departed.add(&port.counters);
        if let Err(error) = port.link.forget(&context.poller) {
            tracing::error!("cannot stop watching port {id}: {error}");
        }
        if let Some(done) = port.closing.take() {
            let _ = done.send(());
        }
    }

    /// Takes everything of it out of what the domains of a worker share.
    pub(super) fn leave(&mut self, context: &mut Context) {
        let slot = self.slot;
        self.rest(context);
        let Context {
            full,
            roomy,
            dead,
            polled,
            ..
        } = context;
        for ports in [full, dead, polled] {
            ports.retain(|&(domain, _)| domain != slot);
        }
        roomy.retain(|&(domain, _)| domain != slot);
        context.helped.retain(|helped| helped.slot != slot);
        for (index, port) in self.ports.iter_mut().enumerate() {
            let Some(port) = port else { continue };
            port.queued = false;
            port.armed = false;
            if let Some(help) = &port.help {
                help.end();
            }
            if let Some(parcel) = &port.held {
                context.pool.let_go(parcel);
            }
            if let Err(error) = port.link.forget(&context.poller) {
                tracing::error!("cannot stop watching port {index}: {error}");
            }
        }
    }

    /// Puts everything of it into what the domains of another worker share: what has come since is found at once.
    pub(super) fn arrive(&mut self, slot: Slot, context: &mut Context) {
        self.slot = slot;
        self.arrived = context.now;
        context.unsent |= !self.feeds.is_empty();
        for id in self.fabric.ports().collect::<Vec<_>>() {
            let Some(port) = self.port_mut(id) else { continue };
            if let Some(parcel) = &port.held {
                context.pool.adopt(parcel);
            }
            if let Err(error) = port.link.watch(&context.poller, token(slot, id)) {
                tracing::error!("cannot watch port {id}: {error}");
                context.dead.push((slot, id));
                continue;
            }
            if port.egress.is_full() {
                context.full.push((slot, id));
            }
            if let Some(help) = &port.help {
                context.helped.push(Helped::new(slot, id, Arc::clone(help)));
            }
            self.watch_room(id, context);
            self.readable(id, context);
        }
    }

    /// What there was to do since this was last asked.
    pub(super) fn load(&mut self, id: DomainId, now: Instant) -> DomainLoad {
        let all = self.frames();
        let (turns, behind) = std::mem::take(&mut self.turns);
        DomainLoad {
            id,
            frames: all - std::mem::replace(&mut self.counted, all),
            behind: f64::from(behind) / f64::from(turns.max(1)),
            stay: now.saturating_duration_since(self.arrived),
        }
    }

    /// Frames received and sent by all ports, those that have left included.
    fn frames(&self) -> u64 {
        let ports = self.ports.iter().flatten().map(|port| &port.counters);
        let frames = |counters: &Counters| counters.rx_frames + counters.tx_frames;
        ports.chain([&self.departed]).map(frames).sum()
    }

    /// Removes all ports.
    pub(super) fn clear(&mut self, context: &mut Context) {
        self.rest(context);
        for id in self.fabric.ports().collect::<Vec<_>>() {
            self.remove(id, context);
        }
    }

    pub(super) fn snapshot(&mut self, now: Duration) -> Snapshot {
        self.fabric.expire(now);
        let mut total = self.departed.clone();
        let mut ports = Vec::new();
        for id in self.fabric.ports() {
            let Some(port) = self.ports[id.index()].as_ref() else {
                continue;
            };
            total.add(&port.counters);
            ports.push(PortSnapshot {
                id,
                kind: port.link.kind(),
                identity: port.identity.clone(),
                counters: port.counters.clone(),
                stations: self.fabric.stations_of(id).collect::<Vec<MacAddr>>(),
            });
        }
        Snapshot {
            stations: self.fabric.fdb().len(),
            captures: self.feeds.len(),
            total,
            ports,
        }
    }

    pub(super) fn stations(&mut self, now: Duration) -> Vec<fabric::FdbRow> {
        self.fabric.expire(now);
        self.fabric.fdb().iter(now).collect()
    }

    pub(super) fn expire(&mut self, now: Duration) {
        self.fabric.expire(now);
    }

    pub(super) fn fdb_mut(&mut self) -> &mut Fdb {
        self.fabric.fdb_mut()
    }

    /// Makes a port, or the next one of that number, a secure one; an open one without ranges.
    pub(super) fn secure(&mut self, id: PortId, ranges: Vec<Range>) {
        self.guard.secure(id, ranges);
    }

    pub(super) fn add_feed(&mut self, feed: Feed) {
        self.feeds.push(feed);
    }

    /// Hands captured frames over that wait for more; true if some still do.
    pub(super) fn flush_feeds(&mut self) -> bool {
        let waiting = self.feeds.iter_mut().map(Feed::flush);
        waiting.fold(false, |any, waits| any | waits)
    }

    pub(super) fn remove_feed(&mut self, id: FeedId) {
        self.feeds.retain(|feed| feed.id() != id);
    }

    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports.get_mut(id.index())?.as_mut()
    }
}

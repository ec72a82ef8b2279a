//! Whose turn it is: the domains of a worker, and the ports of a domain.
//!
//! A worker has a queue of domains that have something to read, and each of them one of its ports that do. A domain's
//! turn ends with about a full batch, after which it goes to the end of the queue. So what a domain gets does not
//! depend on how many ports it has, nor on the order in which the kernel reports them.

use fabric::PortId;

use super::Domain;
use crate::datapath::flow::TURN;
use crate::datapath::port::Link;
use crate::datapath::worker::Context;

/// Frames a batch that is not empty counts for at least: to receive one and to send it are two system calls, whatever is in it.
const LEAST: usize = 8;

/// Bytes that count for one frame at most: super-frames are copied as others are.
const BYTES: usize = 2048;

/// What a batch of so many frames and bytes is of a turn of [`TURN`].
pub(super) fn work(frames: usize, bytes: usize) -> usize {
    match frames {
        0 => 0,
        frames => frames.max(bytes / BYTES).max(LEAST),
    }
}

impl Domain {
    /// One turn among the domains of a worker: a full batch of one port, or less than that of each of some. However many
    /// ports it has, and whatever they send, the other domains have as much.
    pub(in super::super) fn turn(&mut self, context: &mut Context) {
        let mut done = 0;
        // No port twice: one that always says that there is more ends, too.
        for _ in 0..self.ready.len() {
            if done < TURN
                && let Some(ingress) = self.ready.pop_front()
            {
                done += self.burst(ingress, context);
            }
        }
        self.queued = !self.ready.is_empty();
        self.turns.0 += 1;
        self.turns.1 += u32::from(self.queued);
        if self.queued {
            context.ready.push_back(self.slot);
        }
    }

    /// Puts a port into the ready queue if there is a reason to read it, or removes it if it is done.
    pub(super) fn enqueue(&mut self, id: PortId, context: &mut Context) {
        let Some(port) = self.port_mut(id) else { return };
        if port.held.is_some() || port.queued {
            return;
        }
        if port.readable {
            port.queued = true;
            self.ready.push_back(id);
            if !self.queued {
                self.queued = true;
                context.ready.push_back(self.slot);
            }
        } else if port.closing.is_some() && port.help.is_none() {
            context.dead.push((self.slot, id));
        }
    }

    /// There may be something to read.
    pub(in super::super) fn readable(&mut self, id: PortId, context: &mut Context) {
        if let Some(port) = self.port_mut(id) {
            port.readable = true;
            self.enqueue(id, context);
        }
    }

    pub(super) fn is_polled(&self, id: PortId) -> bool {
        let port = self.ports.get(id.index()).and_then(Option::as_ref);
        port.is_some_and(|port| matches!(port.link, Link::Vhost(_)))
    }

    /// Looks whether a guest that shares its memory has sent something, `last` so that it kicks if it has not; true if
    /// it need not be looked at any more.
    pub(in super::super) fn look(&mut self, id: PortId, last: bool, context: &mut Context) -> bool {
        let found = match self.port_mut(id).map(|port| &mut port.link) {
            Some(Link::Vhost(link)) if last => link.listen(),
            Some(Link::Vhost(link)) => link.has_frames(),
            _ => return true,
        };
        match found {
            Ok(true) => self.readable(id, context),
            Ok(false) => return last,
            Err(_) => context.dead.push((self.slot, id)),
        }
        true
    }

    /// Takes the domain out of the ready queue.
    pub(super) fn rest(&mut self, context: &mut Context) {
        self.ready.clear();
        self.queued = false;
        context.ready.retain(|&domain| domain != self.slot);
    }
}

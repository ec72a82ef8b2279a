//! Ports that other workers read.

use std::sync::Arc;

use fabric::PortId;

use super::Domain;
use crate::datapath::help::{Bell, help};
use crate::datapath::worker::{Context, Helped, token};
use crate::datapath::{Command, Mailbox};

/// Frames of more bytes than this, on average, cost more to be had from another processor than it is worth to have them
/// read there.
const SMALL: u64 = 512;

impl Domain {
    /// Frames received and sent since this was last asked; and the port that has received most of them, with how many, of
    /// those that another worker may read to some use.
    pub(in super::super) fn most(&mut self) -> (u64, Option<(u64, PortId)>) {
        let all = self.frames();
        let before = std::mem::replace(&mut self.marked, all);
        let mut most = None;
        for (id, port) in (0..).map(PortId).zip(&mut self.ports) {
            let Some(port) = port else { continue };
            let received = (port.counters.rx_frames, port.counters.rx_bytes);
            let before = std::mem::replace(&mut port.marked, received);
            let (frames, bytes) = (received.0 - before.0, received.1 - before.1);
            let free = port.help.is_none() && port.closing.is_none();
            if free && bytes <= frames * SMALL && port.link.reader().is_some() {
                most = most.max(Some((frames, id)));
            }
        }
        (all - before, most)
    }

    /// Has another worker read a port.
    pub(in super::super) fn share(
        &mut self,
        id: PortId,
        owner: &Arc<Bell>,
        helper: &Mailbox,
        context: &mut Context,
    ) {
        let (slot, longest_frame) = (self.slot, self.fabric.longest_frame());
        let Some(port) = self.port_mut(id) else { return };
        let Some(reader) = port.link.reader() else { return };
        let Ok(descriptor) = port.link.fds().0.try_clone_to_owned() else {
            // There are too many already: then its own worker goes on reading it.
            return;
        };
        tracing::debug!("port {id} ({}): another worker reads it", port.identity.name);
        let buffers = port.link.buffers(longest_frame);
        let batch = || context.pool.make(buffers);
        let (help, reading) = help(
            reader(descriptor),
            batch,
            Arc::clone(owner),
            Arc::clone(&helper.bell),
        );
        let help = Arc::new(help);
        context.helped.push(Helped::new(slot, id, Arc::clone(&help)));
        port.help = Some(help);
        if let Err(error) = port.watch(&context.poller, token(slot, id)) {
            tracing::error!("cannot watch port {id}: {error}");
        }
        helper.send(Command::Help(Box::new(reading)));
    }

    /// Frames a port has received so far; none if it is gone.
    pub(in super::super) fn received(&self, id: PortId) -> Option<u64> {
        let port = self.ports.get(id.index()).and_then(Option::as_ref);
        port.map(|port| port.counters.rx_frames)
    }

    /// True if a port could take what another worker has read.
    pub(in super::super) fn takes(&self, id: PortId) -> bool {
        let port = self.ports.get(id.index()).and_then(Option::as_ref);
        port.is_some_and(|port| port.held.is_none())
    }
}

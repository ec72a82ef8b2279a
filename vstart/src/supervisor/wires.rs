//! Interfaces without a path (`transport=fd`): of each pair of sockets, the kernel is started with one end and switchd
//! is handed the other.
//!
//! We keep switchd's end as well. So when switchd goes, the kernel does not see an end, for which Linux 6.1 knows no
//! cure but a restart; until there is another switchd to hand it to, we read what the guest sends, because Linux 6.1
//! panics when nobody does for a second.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use proto::DomainName;

use crate::kernel_args::sockets;
use crate::machine::Machine;
use crate::switch::Client;

/// The wires of a machine, shared with whoever hands them over again.
#[derive(Clone, Debug, Default)]
pub(super) struct Wires(Arc<Mutex<Vec<Arc<Wire>>>>);

#[derive(Debug)]
struct Wire {
    domain: DomainName,
    /// What its port is called.
    name: String,
    /// switchd's end. Any type will do that reads a record at a time.
    socket: UnixDatagram,
}

impl Wires {
    /// Makes the wires of a machine and hands them to switchd; the kernel's ends, in the order of their descriptors.
    pub(super) fn make(&self, machine: &Machine, client: &mut Client) -> Result<Vec<OwnedFd>> {
        let (mut made, mut ends) = (Vec::new(), Vec::new());
        for interface in sockets(machine) {
            let (ours, theirs) = netio::unix::seqpacket_pair()
                .with_context(|| format!("cannot make sockets for {}", interface.name()))?;
            let wire = Wire {
                domain: interface.attachment.domain(),
                name: format!("{}:{}", machine.name, interface.name()),
                socket: ours.into(),
            };
            client
                .attach_socket(&wire.domain, &wire.name, &wire.socket)
                .with_context(|| format!("cannot attach {} to domain {}", interface.name(), wire.domain))?;
            made.push(Arc::new(wire));
            ends.push(theirs);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(ends)
    }

    /// Hands those to switchd that it does not have.
    pub(super) fn hand_over(&self, client: &mut Client) {
        let Ok(ports) = client.all_ports() else {
            return;
        };
        for wire in self.all() {
            let is_there = |port: &proto::ctl::PortRow| port.domain == wire.domain && port.name == wire.name;
            if !ports.iter().any(is_there) {
                // An interface that was taken down has lost its end, and is past help.
                let _ = client.attach_socket(&wire.domain, &wire.name, &wire.socket);
            }
        }
    }

    /// Reads, and forgets, what has been sent while nobody else reads.
    pub(super) fn drain(&self) {
        for wire in self.all() {
            // Without an end to come: at the latest when the sender waits for its turn, there is nothing.
            while wire.socket.recv(&mut [0]).is_ok_and(|bytes| bytes > 0) {}
        }
    }

    /// Not under the lock while somebody talks to switchd.
    fn all(&self) -> Vec<Arc<Wire>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A socket from which the kernel, before it is one, takes these descriptors.
pub(super) fn to_be_received(fds: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    for fd in fds {
        netio::unix::send_with_fd(ours.as_fd(), &[0], fd.as_fd())?;
    }
    Ok(theirs.into())
}

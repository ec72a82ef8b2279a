//! Clients of request version 0: they get no reply and send to a data socket whose path they know.
//!
//! All of them share that socket, so their frames are told apart by source address here and passed on to each port
//! through a socket pair. Towards them nothing is special: each port has a socket connected to its client.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use proto::uml::Address;
use tokio::net::UnixDatagram;
use tokio::task::AbortHandle;

/// Longest frame passed on: that of the largest MTU.
const LONGEST_FRAME: usize = 65_550;

type Routes = Arc<Mutex<HashMap<Address, Arc<UnixDatagram>>>>;

/// The data socket of a domain's version 0 clients, and the task that reads it.
pub(crate) struct SharedSocket {
    routes: Routes,
    task: AbortHandle,
}

/// Binds the socket, replacing a file that an earlier run has left.
pub(crate) fn bind(path: &Path) -> io::Result<StdDatagram> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    StdDatagram::bind(path)
}

impl SharedSocket {
    /// Serves the clients of a socket.
    pub(crate) fn serve(socket: StdDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        let routes = Routes::default();
        let task = tokio::spawn(pass_on(socket, Arc::clone(&routes))).abort_handle();
        Ok(Self { routes, task })
    }

    /// The socket at which a client's frames come in from now on.
    pub(crate) fn route(&self, client: Address) -> io::Result<StdDatagram> {
        let (ours, ports) = StdDatagram::pair()?;
        ours.set_nonblocking(true)?;
        ports.set_nonblocking(true)?;
        let ours = Arc::new(UnixDatagram::from_std(ours)?);
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(client, ours);
        Ok(ports)
    }

    /// Forgets a client.
    pub(crate) fn forget(&self, client: Address) {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&client);
    }
}

impl Drop for SharedSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads frames and gives each to the port it belongs to. A port that is held back holds the others back too, for as
/// long as the hold-back lasts: they share one queue.
async fn pass_on(socket: UnixDatagram, routes: Routes) {
    let mut frame = vec![0; LONGEST_FRAME];
    loop {
        let (length, source) = match socket.recv_from(&mut frame).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!("cannot read the shared data socket: {error}");
                return;
            }
        };
        let Some(source) = address(&source) else { continue };
        let port = routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&source)
            .cloned();
        // A stranger's frame is dropped; one for a port that has just gone is lost with it.
        if let Some(port) = port {
            let _ = port.send(&frame[..length]).await;
        }
    }
}

fn address(source: &tokio::net::unix::SocketAddr) -> Option<Address> {
    use std::os::unix::ffi::OsStrExt;
    if let Some(path) = source.as_pathname() {
        return Address::from_path(path.as_os_str().as_bytes());
    }
    let name = source.as_abstract_name()?;
    let mut whole = [0; 107];
    whole.get_mut(..name.len())?.copy_from_slice(name);
    Some(Address::from_abstract(&whole))
}

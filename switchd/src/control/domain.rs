//! A domain on the control side: its sockets, its port numbers, and who keeps it alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use fabric::PortId;
use ipnet::IpNet;
use proto::DomainName;
use proto::ctl::{DomainRow, DomainSpec, Mode};
use proto::uml::Address;
use tokio::task::AbortHandle;

use super::attendant::Attendant;
use super::compat::{self, SharedSocket};
use super::handshake::{self, DataPath};
use super::listeners::is_socket;
use super::vde;
use crate::datapath::{DomainId, Snapshot};

/// The way a client comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// The uml_switch control socket.
    Uml,
    /// The control socket in the VDE directory.
    Vde,
}

/// Where a domain is reached.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    /// The uml_switch control socket.
    pub(crate) control: PathBuf,
    /// The directory of the ports' data sockets; abstract names if there is none.
    pub(crate) data: Option<PathBuf>,
    /// The data socket that clients of request version 0 know by its path; without one, they are refused.
    pub(crate) shared: Option<PathBuf>,
    /// Where vector guests connect.
    pub(crate) bess: Option<PathBuf>,
    /// The directory VDE clients know the domain by.
    pub(crate) vde: Option<PathBuf>,
    /// Where guests connect that share their memory.
    pub(crate) vhost: Option<PathBuf>,
}

impl Sockets {
    /// Removes sockets that nobody serves; whatever else may stand at one of the paths stays.
    pub(super) fn remove_stale(&self) {
        let single = [
            Some(&self.control),
            self.shared.as_ref(),
            self.bess.as_ref(),
            self.vhost.as_ref(),
        ];
        for path in single.into_iter().flatten() {
            if is_socket(path) {
                remove_if_there(path);
            }
        }
        for directory in [&self.data, &self.vde].into_iter().flatten() {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).filter(|path| is_socket(path)) {
                remove_if_there(&path);
            }
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove {}: {error}", directory.display());
                }
                _ => {}
            }
        }
    }

    /// Where to attach, by kind of port.
    fn listed(&self) -> BTreeMap<String, String> {
        let optional = [("bess", &self.bess), ("vde", &self.vde), ("vhost", &self.vhost)]
            .map(|(kind, path)| (kind, path.as_ref()));
        [("uml", Some(&self.control))]
            .into_iter()
            .chain(optional)
            .filter_map(|(kind, path)| Some((kind.to_owned(), path?.to_string_lossy().into_owned())))
            .collect()
    }
}

/// A domain, shared by the registry and the tasks of its ports.
pub(crate) struct Domain {
    pub(crate) id: DomainId,
    /// Which worker has it. Locked while a command is handed to that, so that none comes to one that has parted with
    /// the domain; never held across an `.await`.
    worker: Mutex<usize>,
    pub(crate) spec: DomainSpec,
    pub(crate) sockets: Sockets,
    /// Clients of request version 0, from the first of them on.
    compat: OnceLock<SharedSocket>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: BTreeSet<PortId>,
    /// Names of guests that share their memory.
    names: BTreeSet<String>,
    holders: usize,
    /// It goes when nobody holds it and no port is left.
    transient: bool,
    removed: bool,
    listeners: Vec<AbortHandle>,
    /// Tasks that look after a port. Such a port keeps no transient domain alive.
    attendants: BTreeMap<PortId, Attendant>,
    /// It has an uplink, or is just getting one.
    has_uplink: bool,
    extras: BTreeMap<PortId, Extras>,
}

/// What some ports have besides a number.
#[derive(Default)]
struct Extras {
    /// What addresses whoever is behind it may use.
    secure: Vec<IpNet>,
    /// The file of its socket.
    file: Option<PathBuf>,
    /// The domain at the other end.
    cable: Option<DomainName>,
    /// A socket that others may have as well, and that is to end with the port if the port is ended.
    socket: Option<OwnedFd>,
    /// It keeps no transient domain alive.
    passive: bool,
}

impl Domain {
    pub(crate) fn new(
        id: DomainId,
        worker: usize,
        spec: DomainSpec,
        sockets: Sockets,
        transient: bool,
    ) -> Self {
        let state = Mutex::new(State {
            transient,
            ..State::default()
        });
        Self {
            id,
            worker: Mutex::new(worker),
            spec,
            sockets,
            compat: OnceLock::new(),
            state,
        }
    }

    /// The worker that has it.
    pub(crate) fn worker(&self) -> MutexGuard<'_, usize> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across an `.await`: every method here is short.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task that accepts clients, to be ended with the domain.
    pub(crate) fn add_listener(&self, listener: AbortHandle) {
        self.state().listeners.push(listener);
    }

    /// Takes the place of the domain's one uplink; false if there is one.
    pub(crate) fn claim_uplink(&self) -> bool {
        !std::mem::replace(&mut self.state().has_uplink, true)
    }

    /// Gives the place of the uplink back.
    pub(crate) fn release_uplink(&self) {
        self.state().has_uplink = false;
    }

    /// Leaves a port to a task that looks after it. The task comes back if the domain is on its way out.
    pub(crate) fn attend(&self, port: PortId, attendant: Attendant) -> Result<(), Attendant> {
        let mut state = self.state();
        if state.removed {
            return Err(attendant);
        }
        state.attendants.insert(port, attendant);
        Ok(())
    }

    /// The task that looks after a port, to be ended.
    pub(crate) fn dismiss(&self, port: PortId) -> Option<Attendant> {
        self.state().attendants.remove(&port)
    }

    /// All tasks that look after ports, to be ended.
    pub(crate) fn dismiss_all(&self) -> BTreeMap<PortId, Attendant> {
        std::mem::take(&mut self.state().attendants)
    }

    /// Takes a port number: the one asked for, or the lowest free one from 1 on.
    pub(crate) fn reserve(&self, wanted: Option<u32>) -> Result<PortId, PortId> {
        let mut state = self.state();
        let free = || {
            (1..)
                .map(PortId)
                .find(|id| !state.ports.contains(id))
                .unwrap_or_default()
        };
        let id = wanted.map_or_else(free, PortId);
        if state.removed || id.0 >= fabric::port::CHOSEN_PORT_LIMIT || !state.ports.insert(id) {
            return Err(id);
        }
        Ok(id)
    }

    /// Takes the first of these names that nobody has: a guest's two cards in one domain are told apart by it.
    pub(crate) fn take_name<T>(&self, candidates: Vec<(String, T)>) -> Option<(String, T)> {
        let mut state = self.state();
        let mut free = candidates
            .into_iter()
            .filter(|(name, _)| !state.names.contains(name));
        let taken = free.next()?;
        state.names.insert(taken.0.clone());
        Some(taken)
    }

    /// Gives a name back, if it was one that is taken.
    pub(crate) fn release_name(&self, name: &str) {
        self.state().names.remove(name);
    }

    /// Gives a port number back, with what belonged to it.
    pub(crate) fn release(&self, id: PortId) {
        let extras = {
            let mut state = self.state();
            state.ports.remove(&id);
            state.extras.remove(&id)
        };
        if let Some(path) = extras.and_then(|extras| extras.file) {
            remove_if_there(&path);
        }
    }

    /// Says what addresses whoever is behind a port may use.
    pub(crate) fn set_secure(&self, id: PortId, nets: &[IpNet]) {
        self.state().extras.entry(id).or_default().secure = nets.to_vec();
    }

    /// What addresses whoever is behind a port may use; any, if there are none.
    pub(crate) fn secure(&self, id: PortId) -> Vec<IpNet> {
        self.state()
            .extras
            .get(&id)
            .map_or_else(Vec::new, |extras| extras.secure.clone())
    }

    /// Leaves a file to a port, to go with it.
    pub(crate) fn own_file(&self, id: PortId, path: PathBuf) {
        let mut state = self.state();
        if state.ports.contains(&id) {
            state.extras.entry(id).or_default().file = Some(path);
        } else {
            remove_if_there(&path);
        }
    }

    /// Leaves a socket to a port, which others may have as well.
    pub(crate) fn own_socket(&self, id: PortId, socket: OwnedFd) {
        let mut state = self.state();
        if state.ports.contains(&id) {
            state.extras.entry(id).or_default().socket = Some(socket);
        }
    }

    /// Ends the sockets that were left to these ports. Without that, the other end of one that somebody else keeps
    /// would never learn that nobody reads there any more.
    pub(crate) fn hang_up(&self, ports: impl Fn(PortId) -> bool) {
        let state = self.state();
        let sockets = state.extras.iter().filter(|(id, _)| ports(**id));
        for socket in sockets.filter_map(|(_, extras)| extras.socket.as_ref()) {
            // Its other end may have been quicker.
            let _ = netio::unix::hang_up(socket);
        }
    }

    /// Says where the cable at a port leads.
    pub(crate) fn set_cable(&self, id: PortId, to: DomainName) {
        let mut state = self.state();
        if state.ports.contains(&id) {
            state.extras.entry(id).or_default().cable = Some(to);
        }
    }

    /// Says that a port keeps no transient domain alive.
    pub(crate) fn set_passive(&self, id: PortId) {
        self.state().extras.entry(id).or_default().passive = true;
    }

    /// Where cables lead.
    pub(crate) fn cables(&self) -> Vec<DomainName> {
        let state = self.state();
        state
            .extras
            .values()
            .filter_map(|extras| extras.cable.clone())
            .collect()
    }

    /// Keeps the domain until [`Domain::let_go`]; false if it is on its way out.
    pub(crate) fn hold(&self) -> bool {
        let mut state = self.state();
        state.holders += usize::from(!state.removed);
        !state.removed
    }

    /// True once it has been taken away.
    pub(crate) fn is_removed(&self) -> bool {
        self.state().removed
    }

    pub(crate) fn let_go(&self) {
        let mut state = self.state();
        state.holders = state.holders.saturating_sub(1);
    }

    /// True if nothing keeps a transient domain alive.
    pub(crate) fn is_unused(&self) -> bool {
        let state = self.state();
        let passive = |port| {
            let extras = state.extras.get(port);
            state.attendants.contains_key(port) || extras.is_some_and(|extras| extras.passive)
        };
        state.transient && state.holders == 0 && state.ports.iter().all(passive)
    }

    /// Bytes that wait for a client to be read, as the kernel counts them.
    pub(crate) fn queue_bytes(&self) -> usize {
        handshake::queue_bytes(settings(&self.spec).longest_frame())
    }

    /// Where the data socket of a port is bound.
    pub(crate) fn data_path(&self, entry: Entry, port: PortId) -> DataPath {
        match (entry, &self.sockets) {
            (Entry::Uml, Sockets { data: Some(data), .. }) => DataPath::File(data.join(port.to_string())),
            (Entry::Vde, Sockets { vde: Some(vde), .. }) => DataPath::File(vde::data_path(vde, port)),
            _ => DataPath::Abstract,
        }
    }

    /// Removes the data socket of a port, whichever way its client came in.
    pub(crate) fn remove_data_socket(&self, port: PortId) {
        for entry in [Entry::Uml, Entry::Vde] {
            if let DataPath::File(path) = self.data_path(entry, port) {
                remove_if_there(&path);
            }
        }
    }

    /// The data socket of clients of request version 0, made when the first of them comes.
    pub(crate) fn shared_socket(&self) -> io::Result<&SharedSocket> {
        if let Some(socket) = self.compat.get() {
            return Ok(socket);
        }
        let path = self.sockets.shared.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        self.share(compat::bind(path)?)
    }

    /// Serves clients of request version 0 at a socket that is bound to the path they know.
    pub(crate) fn share(&self, socket: UnixDatagram) -> io::Result<&SharedSocket> {
        let socket = SharedSocket::serve(socket)?;
        Ok(self.compat.get_or_init(|| socket))
    }

    /// A client of request version 0 has gone.
    pub(crate) fn forget_shared(&self, client: Address) {
        if let Some(socket) = self.compat.get() {
            socket.forget(client);
        }
    }

    /// Stops accepting clients and removes the files.
    pub(crate) fn close(&self) {
        let listeners = {
            let mut state = self.state();
            state.removed = true;
            std::mem::take(&mut state.listeners)
        };
        for listener in listeners {
            listener.abort();
        }
        self.remove_files();
    }

    /// Removes every socket file of the domain.
    fn remove_files(&self) {
        let extras = std::mem::take(&mut self.state().extras);
        for path in extras.into_values().filter_map(|extras| extras.file) {
            remove_if_there(&path);
        }
        let shared = self.compat.get().and(self.sockets.shared.as_ref());
        let Sockets {
            control, bess, vhost, ..
        } = &self.sockets;
        for path in [Some(control), bess.as_ref(), vhost.as_ref(), shared]
            .into_iter()
            .flatten()
        {
            remove_if_there(path);
        }
        for directory in [&self.sockets.data, &self.sockets.vde].into_iter().flatten() {
            if let Err(error) = clear_directory(directory) {
                tracing::warn!("cannot remove {}: {error}", directory.display());
            }
        }
    }

    /// The domain's row in a listing.
    pub(crate) fn row(&self, snapshot: &Snapshot) -> DomainRow {
        let total = &snapshot.total;
        DomainRow {
            domain: self.spec.domain.clone(),
            mode: self.spec.mode,
            mtu: self.spec.mtu,
            ageing_s: self.spec.ageing_s,
            ports: snapshot.ports.len(),
            stations: snapshot.stations,
            captures: snapshot.captures,
            transient: self.state().transient,
            worker: *self.worker(),
            sockets: self.sockets.listed(),
            rx_frames: total.rx_frames,
            rx_bytes: total.rx_bytes,
            tx_frames: total.tx_frames,
            tx_bytes: total.tx_bytes,
            drops: drops(&total.drops),
        }
    }
}

/// Counted drops as the control protocol has them.
pub(crate) fn drops(drops: &fabric::Drops) -> BTreeMap<String, u64> {
    drops
        .iter()
        .map(|(reason, count)| (reason.name().to_owned(), count))
        .collect()
}

/// What the forwarding core makes of a specification.
pub(crate) fn settings(spec: &DomainSpec) -> fabric::Settings {
    fabric::Settings {
        mode: match spec.mode {
            Mode::Hub => fabric::Mode::Hub,
            Mode::Switch => fabric::Mode::Switch,
        },
        mtu: spec.mtu,
        ageing: std::time::Duration::from_secs(spec.ageing_s),
        ..fabric::Settings::default()
    }
}

/// Removes a file; it is no error if there is none.
pub(crate) fn remove_if_there(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// Removes a directory of sockets that nobody but us writes to. It is no error if there is none.
pub(crate) fn clear_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! All domains, and the way from the control side to their workers.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fabric::{MacAddr, PortId};
use ipnet::IpNet;
use proto::DomainName;
use proto::ctl::{self, Daemon, DomainSpec, Error, ErrorCode, PortSpec};
use tokio::sync::{Notify, oneshot};

use super::domain::{Domain, Sockets, clear_directory, remove_if_there, settings};
use super::flight::Flights;
use super::handshake::Refusal;
use super::listeners::Listeners;
use super::plug::{Place, ranges};
use super::{balance, cable, handed, nic, stream, tap, uplink, vde, wire};
use crate::datapath::capture::{Feed, FeedId};
use crate::datapath::{Command, DomainId, Handle, NewPort, Snapshot};

/// Longest path of a Unix socket; one byte of `sun_path` is the NUL.
pub(super) const LONGEST_PATH: usize = 107;

/// Who may use the domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// The daemon's own user, and root.
    Owner,
    /// Whoever the permissions of the socket files let in, as uml_switch has it.
    Anybody,
}

/// All domains.
pub(crate) struct Registry {
    directory: PathBuf,
    user: String,
    uid: u32,
    admission: Admission,
    workers: Vec<Handle>,
    /// Tap devices may leave frames unfinished.
    pub(super) offload: bool,
    started: Instant,
    state: Mutex<State>,
    /// What is kept of the domains.
    pub(crate) flights: Flights,
    /// Told whenever a domain, a port, a holder or a capture has gone.
    pub(crate) departed: Notify,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<DomainName, Arc<Domain>>,
    next: u64,
    refused: BTreeMap<&'static str, u64>,
    connections: usize,
    captures: usize,
}

impl Registry {
    pub(crate) fn new(
        directory: PathBuf,
        user: String,
        admission: Admission,
        workers: Vec<Handle>,
        offload: bool,
    ) -> Self {
        Self {
            directory,
            user,
            uid: nix::unistd::geteuid().as_raw(),
            admission,
            workers,
            offload,
            started: Instant::now(),
            state: Mutex::default(),
            flights: Flights::default(),
            departed: Notify::new(),
        }
    }

    /// Never held across an `.await`.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if a process of this user may use the domains.
    pub(crate) fn admits(&self, uid: u32) -> bool {
        self.admission == Admission::Anybody || uid == self.uid || uid == 0
    }

    /// Counts and reports a client that did not become a port.
    pub(crate) fn refuse(&self, domain: &Domain, refusal: &Refusal) {
        let count = {
            let mut state = self.state();
            let count = state.refused.entry(refusal.reason()).or_default();
            *count += 1;
            *count
        };
        // A peer can do this as often as it likes: the log has the first of a kind, and every 1000th.
        if count % 1000 == 1 {
            let name = &domain.spec.domain;
            tracing::warn!(
                "domain {name}: client refused: {refusal} ({} so far: {count})",
                refusal.reason()
            );
        }
    }

    /// Counts a refusal that has no domain.
    pub(crate) fn refuse_control(&self, reason: &'static str) {
        *self.state().refused.entry(reason).or_default() += 1;
    }

    /// Makes a domain at its usual place.
    pub(crate) fn add(self: &Arc<Self>, spec: DomainSpec, transient: bool) -> Result<Arc<Domain>, Error> {
        let sockets = self.sockets(&spec.domain);
        self.add_at(spec, transient, sockets, None)
    }

    /// Makes a domain that is reached at the given sockets. `bound` is its control socket if that listens already.
    pub(crate) fn add_at(
        self: &Arc<Self>,
        spec: DomainSpec,
        transient: bool,
        sockets: Sockets,
        bound: Option<StdListener>,
    ) -> Result<Arc<Domain>, Error> {
        let settings = settings(&spec);
        settings
            .check()
            .map_err(|error| invalid(format!("domain {}: {error}", spec.domain)))?;
        check_paths(&spec.domain, &sockets)?;
        let mut state = self.state();
        if state.domains.contains_key(&spec.domain) {
            return Err(exists(format!("domain {} is there already", spec.domain)));
        }
        let listeners = Listeners::open(&sockets, &spec.vde, bound)?;
        if let Some(data) = &sockets.data {
            make_directory(data)
                .map_err(|error| failed(format!("cannot make {}: {error}", data.display())))?;
            // A daemon that was killed may have left its own; it is made again when a client needs it.
            if let Some(shared) = &sockets.shared {
                remove_if_there(shared);
            }
        }
        let id = DomainId(state.next);
        state.next += 1;
        let worker = usize::try_from(id.0).unwrap_or(0) % self.workers.len();
        let domain = Arc::new(Domain::new(id, worker, spec, sockets, transient));
        self.workers[worker].send(Command::AddDomain(id, settings));
        listeners.start(self, &domain);
        state
            .domains
            .insert(domain.spec.domain.clone(), Arc::clone(&domain));
        Ok(domain)
    }

    /// Finds the domain or makes a transient one, and holds it.
    pub(crate) fn hold(self: &Arc<Self>, spec: DomainSpec) -> Result<Arc<Domain>, Error> {
        let domain = match self.find(&spec.domain) {
            Ok(domain) => domain,
            Err(_) => self.add(spec, true)?,
        };
        if !domain.hold() {
            return Err(failed(format!("domain {} is being removed", domain.spec.domain)));
        }
        Ok(domain)
    }

    /// Ends a hold.
    pub(crate) async fn let_go(&self, domain: &Arc<Domain>) {
        domain.let_go();
        self.reap(domain).await;
    }

    pub(crate) fn find(&self, name: &DomainName) -> Result<Arc<Domain>, Error> {
        let domain = self.state().domains.get(name).cloned();
        domain.ok_or_else(|| Error {
            code: ErrorCode::NotFound,
            message: format!("there is no domain {name}"),
        })
    }

    pub(crate) fn domains(&self) -> Vec<Arc<Domain>> {
        self.state().domains.values().cloned().collect()
    }

    /// Removes a domain, its ports and its files.
    pub(crate) async fn remove(&self, name: &DomainName) -> Result<(), Error> {
        let domain = self.state().domains.remove(name);
        let Some(domain) = domain else {
            return self.find(name).map(drop);
        };
        domain.close();
        for attendant in domain.dismiss_all().into_values() {
            attendant.end().await;
        }
        let (done, wait) = oneshot::channel();
        self.send(&domain, Command::RemoveDomain(domain.id, done));
        let _ = wait.await;
        self.departed.notify_waiters();
        Ok(())
    }

    /// Removes a domain because somebody wants it gone. (When the daemon ends, sockets that others keep go on: they may
    /// be handed to the next one.)
    pub(crate) async fn retire(&self, name: &DomainName) -> Result<(), Error> {
        self.find(name)?.hang_up(|_| true);
        self.remove(name).await
    }

    /// Removes every domain.
    pub(crate) async fn clear(&self) {
        for domain in self.domains() {
            // Another task may have been quicker; then it is gone as well.
            let _ = self.remove(&domain.spec.domain).await;
        }
    }

    /// Removes a domain that nothing keeps alive any more.
    async fn reap(&self, domain: &Arc<Domain>) {
        if domain.is_unused()
            && self
                .find(&domain.spec.domain)
                .is_ok_and(|found| Arc::ptr_eq(&found, domain))
        {
            let _ = self.remove(&domain.spec.domain).await;
        }
        self.departed.notify_waiters();
    }

    /// Hands a port to the domain's worker.
    pub(crate) async fn attach(&self, domain: &Domain, port: NewPort) -> io::Result<()> {
        let secure = domain.secure(port.id);
        if !secure.is_empty() {
            // The worker takes it before the port, which thus is a secure one from its first frame on.
            self.send(domain, Command::Secure(domain.id, port.id, ranges(&secure)));
        }
        let answer = self
            .ask(domain, |answer| {
                Command::Attach(domain.id, Box::new(port), answer)
            })
            .await;
        answer.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::NotFound)))
    }

    /// Attaches what does not come by itself. `fd` is the descriptor that came with the request.
    pub(crate) async fn add_port(
        self: &Arc<Self>,
        domain: &Arc<Domain>,
        port: &ctl::NewPort,
        fd: Option<OwnedFd>,
    ) -> Result<PortId, Error> {
        let place = Place {
            registry: self,
            domain,
            secure: &port.secure,
        };
        match &port.spec {
            PortSpec::Tap { interface } => tap::add(place, interface).await,
            PortSpec::TapFd { name } => tap::add_handed(place, name, fd).await,
            PortSpec::Netns { path, ifname } => tap::add_placed(place, path, ifname).await,
            PortSpec::Nic(spec) => nic::add(place, spec, fd).await,
            PortSpec::Sniff(spec) => nic::sniff(place, spec, fd).await,
            PortSpec::Uplink(_) if !port.secure.is_empty() => Err(invalid(
                "cannot attach uplink: it cannot be a secure port".to_owned(),
            )),
            PortSpec::Uplink(spec) => uplink::add(self, domain, spec).await,
            PortSpec::L2tpv3(spec) => wire::l2tpv3(place, spec).await,
            PortSpec::Gre(spec) => wire::gre(place, spec).await,
            PortSpec::Mcast(spec) => wire::mcast(place, spec).await,
            PortSpec::Udp(spec) => wire::udp(place, spec).await,
            PortSpec::Dgram(spec) => wire::dgram(place, spec).await,
            PortSpec::Stream(spec) => stream::add(place, spec).await,
            PortSpec::Fd { name } => handed::add(place, name, fd).await,
            PortSpec::Link { to } => cable::add(place, to).await,
        }
    }

    /// Makes a port a secure one, or an open one.
    pub(crate) async fn secure_port(&self, domain: &Domain, id: PortId, nets: &[IpNet]) -> Result<(), Error> {
        self.find_port(domain, id).await?;
        domain.set_secure(id, nets);
        self.send(domain, Command::Secure(domain.id, id, ranges(nets)));
        Ok(())
    }

    async fn find_port(&self, domain: &Domain, id: PortId) -> Result<(), Error> {
        let snapshot = self.snapshot(domain).await;
        if snapshot.is_some_and(|snapshot| snapshot.ports.iter().any(|port| port.id == id)) {
            return Ok(());
        }
        Err(Error {
            code: ErrorCode::NotFound,
            message: format!("there is no port {id} in domain {}", domain.spec.domain),
        })
    }

    /// Ends a port; the task that watches it does the rest.
    pub(crate) async fn end_port(&self, domain: &Domain, id: PortId) -> Result<(), Error> {
        if let Some(attendant) = domain.dismiss(id) {
            attendant.end().await;
            return Ok(());
        }
        self.find_port(domain, id).await?;
        domain.hang_up(|port| port == id);
        self.unplug(domain, id).await;
        Ok(())
    }

    /// Takes a port away once what it has sent is forwarded; its number stays taken.
    pub(crate) async fn unplug(&self, domain: &Domain, id: PortId) {
        let _ = self
            .ask(domain, |done| Command::Detach(domain.id, id, done))
            .await;
    }

    /// Takes a port away once what it has sent is forwarded, and frees its number.
    pub(crate) async fn detach(&self, domain: &Arc<Domain>, id: PortId) {
        self.unplug(domain, id).await;
        // The files of a removed domain have gone with it; what is there now belongs to its successor.
        if !domain.is_removed() {
            domain.remove_data_socket(id);
        }
        domain.release(id);
        self.reap(domain).await;
    }

    pub(crate) async fn snapshot(&self, domain: &Domain) -> Option<Snapshot> {
        self.ask(domain, |answer| Command::Snapshot(domain.id, answer))
            .await
    }

    pub(crate) async fn stations(&self, domain: &Domain) -> Vec<fabric::FdbRow> {
        self.ask(domain, |answer| Command::Fdb(domain.id, answer))
            .await
            .unwrap_or_default()
    }

    pub(crate) async fn add_station(&self, domain: &Domain, mac: MacAddr, port: PortId) -> Result<(), Error> {
        let answer = self
            .ask(domain, |answer| Command::FdbAdd(domain.id, mac, port, answer))
            .await;
        let refused = |error| {
            invalid(format!(
                "cannot add {mac} to domain {}: {error}",
                domain.spec.domain
            ))
        };
        answer.unwrap_or(Ok(())).map_err(refused)
    }

    pub(crate) async fn remove_station(&self, domain: &Domain, mac: MacAddr) -> bool {
        self.ask(domain, |answer| Command::FdbRemove(domain.id, mac, answer))
            .await
            .unwrap_or(false)
    }

    pub(crate) fn add_capture(&self, domain: &Domain, feed: Feed) {
        self.send(domain, Command::AddCapture(domain.id, feed));
    }

    pub(crate) fn remove_capture(&self, domain: &Domain, feed: FeedId) {
        self.send(domain, Command::RemoveCapture(domain.id, feed));
    }

    /// Sends a command to the worker that has the domain.
    fn send(&self, domain: &Domain, command: Command) {
        self.workers[*domain.worker()].send(command);
    }

    /// Waits until a worker was busy for a tenth of a second, and hands domains of the busiest over to the least busy if
    /// both are better off then; for ever.
    pub(crate) async fn balance(&self) -> Infallible {
        loop {
            self.workers[0].busy().await;
            let mut loads = Vec::new();
            for worker in &self.workers {
                let (answer, wait) = oneshot::channel();
                worker.send(Command::Load(answer));
                loads.extend(wait.await);
            }
            if loads.len() == self.workers.len()
                && let Some((ids, to)) = balance::choose(&loads)
            {
                for id in ids {
                    self.relocate(id, to);
                }
            }
        }
    }

    /// Hands a domain over to another worker.
    fn relocate(&self, id: DomainId, to: usize) {
        let domain = self
            .state()
            .domains
            .values()
            .find(|domain| domain.id == id)
            .cloned();
        // It may have been removed meanwhile.
        let Some(domain) = domain else { return };
        let mut worker = domain.worker();
        if *worker != to {
            tracing::debug!("domain {}: from worker {} to {to}", domain.spec.domain, *worker);
            self.workers[*worker].hand_over(id, &self.workers[to]);
            *worker = to;
        }
    }

    /// Sends a command and waits for its answer; `None` if the domain or the worker is gone.
    async fn ask<T>(
        &self,
        domain: &Domain,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (answer, wait) = oneshot::channel();
        self.send(domain, command(answer));
        wait.await.ok()
    }

    pub(crate) fn daemon(&self) -> Daemon {
        let refused = &self.state().refused;
        Daemon {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            workers: self.workers.len(),
            refused: refused
                .iter()
                .map(|(&reason, &count)| (reason.to_owned(), count))
                .collect(),
        }
    }

    /// A client of the control socket has come.
    pub(crate) fn client_came(&self) {
        self.state().connections += 1;
    }

    /// A client of the control socket has gone.
    pub(crate) fn client_went(&self) {
        self.state().connections -= 1;
        self.departed.notify_waiters();
    }

    /// A client captures.
    pub(crate) fn capture_came(&self) {
        self.state().captures += 1;
    }

    /// A capture has ended, and its client has been told.
    pub(crate) fn capture_went(&self) {
        self.state().captures -= 1;
        self.departed.notify_waiters();
    }

    /// True while a client captures, or has not heard yet how that ended.
    pub(crate) fn is_capturing(&self) -> bool {
        self.state().captures > 0
    }

    /// True with no domain and no client.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.domains.is_empty() && state.connections == 0
    }

    /// Removes the sockets of domains that a daemon before this one has left, having been killed. The directory is
    /// ours alone, and no other daemon runs in it: of the names we give, whatever nobody answers at is left over.
    pub(crate) fn remove_leftovers(&self) {
        let prefix = self.stem("");
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (name, _kind) = name.strip_prefix(&prefix)?.rsplit_once('.')?;
            name.parse::<DomainName>().ok()
        });
        for name in names.collect::<BTreeSet<_>>() {
            let sockets = self.sockets(&name);
            let served = match netio::unix::is_stale(&sockets.control) {
                Ok(stale) => !stale,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            };
            if !served {
                tracing::info!("domain {name}: removing what is left of its sockets");
                sockets.remove_stale();
            }
        }
    }

    /// How the names of a domain's files begin.
    fn stem(&self, domain: &str) -> String {
        format!("vhub_{}_{domain}", self.user)
    }

    fn sockets(&self, name: &DomainName) -> Sockets {
        let stem = self.stem(name.as_str());
        Sockets {
            control: self.directory.join(format!("{stem}.cnct")),
            data: Some(self.directory.join(format!("{stem}.port"))),
            shared: Some(self.directory.join(format!("{stem}.data"))),
            bess: Some(self.directory.join(format!("{stem}.bess"))),
            vde: Some(self.directory.join(format!("{stem}.vde"))),
            vhost: Some(self.directory.join(format!("{stem}.vhost"))),
        }
    }
}

/// Makes the directory of the data sockets anew. The process makes files without the right to execute, which a
/// directory needs.
fn make_directory(path: &Path) -> io::Result<()> {
    clear_directory(path)?;
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn check_paths(name: &DomainName, sockets: &Sockets) -> Result<(), Error> {
    // A port's data socket adds its number of up to five digits.
    let bytes = |path: &Path| path.as_os_str().as_bytes().len();
    let data = sockets.data.as_deref().map(|path| bytes(path) + "/65535".len());
    let vde = sockets
        .vde
        .as_deref()
        .map(|path| bytes(path) + 1 + vde::LONGEST_NAME.len());
    let longest = [data, vde]
        .into_iter()
        .flatten()
        .fold(bytes(&sockets.control), usize::max);
    if longest <= LONGEST_PATH {
        return Ok(());
    }
    Err(invalid(format!(
        "domain {name}: socket paths in {} would be {longest} bytes long, and {LONGEST_PATH} is the limit\n\
         hint: choose a shorter name, or a shorter directory with --dir DIR",
        sockets.control.parent().unwrap_or(Path::new("/")).display()
    )))
}

pub(crate) fn invalid(message: String) -> Error {
    Error {
        code: ErrorCode::Invalid,
        message,
    }
}

pub(crate) fn exists(message: String) -> Error {
    Error {
        code: ErrorCode::Exists,
        message,
    }
}

pub(crate) fn failed(message: String) -> Error {
    Error {
        code: ErrorCode::Failed,
        message,
    }
}

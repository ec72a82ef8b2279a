//! The control socket: one JSON request and one JSON reply a line (`docs/control.md`).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fabric::{MacAddr, PortId};
use proto::DomainName;
use proto::ctl::{CaptureSpec, Error, FdbRow, LONGEST_LINE, PortRow, PortSpec, Reply, Request, Stats};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::captures::Capture;
use super::domain::{Domain, drops};
use super::peer;
use super::registry::{Registry, failed, invalid};
use crate::datapath::PortSnapshot;

/// Serves clients of the control socket.
pub(crate) async fn serve(registry: Arc<Registry>, listener: UnixListener, shutdown: Arc<Notify>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let client = Client::new(Arc::clone(&registry), stream, Arc::clone(&shutdown));
                tokio::spawn(client.run());
            }
            Err(error) => {
                tracing::warn!("cannot accept a control client: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, and what ends with it.
struct Client {
    registry: Arc<Registry>,
    stream: UnixStream,
    shutdown: Arc<Notify>,
    received: Vec<u8>,
    /// Descriptors that came with the lines, in their order.
    fds: VecDeque<OwnedFd>,
    holds: HashMap<DomainName, Arc<Domain>>,
    capture: Option<Capture>,
}

impl Client {
    fn new(registry: Arc<Registry>, stream: UnixStream, shutdown: Arc<Notify>) -> Self {
        registry.client_came();
        Self {
            registry,
            stream,
            shutdown,
            received: Vec::new(),
            fds: VecDeque::new(),
            holds: HashMap::new(),
            capture: None,
        }
    }

    async fn run(mut self) {
        match peer::credentials(&self.stream) {
            Ok(peer) if self.registry.admits(peer.uid) => {
                // The end of a connection is no event: whatever the cause, what it held is let go.
                let _ = self.converse().await;
            }
            _ => self.registry.refuse_control("foreign-user"),
        }
        self.capture = None;
        for domain in self.holds.into_values() {
            self.registry.let_go(&domain).await;
        }
        self.registry.client_went();
    }

    async fn converse(&mut self) -> io::Result<()> {
        while let Some(line) = self.next_line().await? {
            let reply = match serde_json::from_slice(&line) {
                Ok(Request::CaptureStop) => {
                    let reply = self.stop_capture().await;
                    self.send(&reply).await?;
                    self.capture = None;
                    continue;
                }
                Ok(request) => self.carry_out(request).await.unwrap_or_else(Reply::Error),
                Err(error) => Reply::Error(invalid(format!("cannot read the request: {error}"))),
            };
            self.send(&reply).await?;
        }
        Ok(())
    }

    /// The next line without its end; `None` when the client has hung up or sent too long a line.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.received.iter().position(|&b| b == b'\n') {
                let line = self.received.drain(..=end).take(end).collect();
                return Ok(Some(line));
            }
            if self.received.len() > LONGEST_LINE {
                let error = invalid(format!("the request is longer than {LONGEST_LINE} bytes"));
                self.send(&Reply::Error(error)).await?;
                return Ok(None);
            }
            tokio::select! {
                count = receive(&self.stream, &mut self.received, &mut self.fds) => {
                    if count? == 0 {
                        return Ok(None);
                    }
                }
                reply = ended(&mut self.capture) => {
                    self.send(&reply).await?;
                    self.capture = None;
                }
            }
        }
    }

    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }

    async fn carry_out(&mut self, request: Request) -> Result<Reply, Error> {
        let registry = Arc::clone(&self.registry);
        match request {
            Request::Hello => Ok(Reply::Daemon(registry.daemon())),
            Request::DomainAdd(spec) => {
                let domain = registry.add(spec, false)?;
                row(&registry, &domain).await
            }
            Request::DomainHold(spec) => {
                let name = spec.domain.clone();
                let domain = match self.holds.get(&name) {
                    Some(domain) if !domain.is_removed() => Arc::clone(domain),
                    // Never held, or removed by somebody else since.
                    _ => registry.hold(spec)?,
                };
                self.holds.insert(name, Arc::clone(&domain));
                row(&registry, &domain).await
            }
            Request::DomainRm { domain } => registry.retire(&domain).await.map(|()| Reply::Done),
            Request::DomainLs => {
                let mut rows = Vec::new();
                for domain in registry.domains() {
                    rows.extend(
                        registry
                            .snapshot(&domain)
                            .await
                            .map(|snapshot| domain.row(&snapshot)),
                    );
                }
                Ok(Reply::Domains(rows))
            }
            Request::DomainShow { domain } => row(&registry, &*registry.find(&domain)?).await,
            Request::PortAdd { domain, port } => {
                let fd = match port.spec {
                    PortSpec::TapFd { .. } | PortSpec::Fd { .. } | PortSpec::Nic(_) | PortSpec::Sniff(_) => {
                        self.fds.pop_front()
                    }
                    _ => None,
                };
                let domain = registry.find(&domain)?;
                let id = registry.add_port(&domain, &port, fd).await?;
                let Reply::Ports(mut rows) = self.ports(Some(domain.spec.domain.clone())).await? else {
                    unreachable!("the listing of ports")
                };
                rows.retain(|row| row.id == id.0);
                Ok(Reply::Ports(rows))
            }
            Request::PortRm { domain, id } => registry
                .end_port(&*registry.find(&domain)?, PortId(id))
                .await
                .map(|()| Reply::Done),
            Request::PortSecure { domain, id, ranges } => registry
                .secure_port(&*registry.find(&domain)?, PortId(id), &ranges)
                .await
                .map(|()| Reply::Done),
            Request::PortLs { domain } => self.ports(domain).await,
            Request::Fdb { domain } => {
                let stations = registry.stations(&*registry.find(&domain)?).await;
                Ok(Reply::Fdb(stations.into_iter().map(fdb_row).collect()))
            }
            Request::FdbAdd { domain, mac, port } => {
                let mac = parse_mac(&mac)?;
                registry
                    .add_station(&*registry.find(&domain)?, mac, PortId(port))
                    .await?;
                Ok(Reply::Done)
            }
            Request::FdbRm { domain, mac } => {
                let mac = parse_mac(&mac)?;
                if registry.remove_station(&*registry.find(&domain)?, mac).await {
                    return Ok(Reply::Done);
                }
                let message = format!("there is no station {mac} in domain {domain}");
                Err(Error {
                    code: proto::ctl::ErrorCode::NotFound,
                    message,
                })
            }
            Request::Stats => {
                let mut domains = Vec::new();
                for domain in registry.domains() {
                    domains.extend(
                        registry
                            .snapshot(&domain)
                            .await
                            .map(|snapshot| domain.row(&snapshot)),
                    );
                }
                Ok(Reply::Stats(Stats {
                    daemon: registry.daemon(),
                    domains,
                }))
            }
            Request::Capture(spec) => self.capture(&spec),
            Request::Record(spec) => {
                registry.flights.start(&registry, &spec)?;
                Ok(Reply::Done)
            }
            Request::RecordSave { domain } => {
                let file = self.fds.pop_front();
                let file =
                    file.ok_or_else(|| invalid("saving needs the descriptor to write to".to_owned()))?;
                registry.flights.save(&domain, file).await.map(Reply::Captured)
            }
            Request::RecordStop { domain } => {
                registry.flights.stop(&registry, &domain)?;
                Ok(Reply::Done)
            }
            Request::RecordLs => Ok(Reply::Recorders(registry.flights.rows())),
            Request::CaptureStop => unreachable!("taken by the caller"),
            Request::Shutdown => {
                self.shutdown.notify_one();
                Ok(Reply::Done)
            }
        }
    }

    async fn ports(&self, domain: Option<DomainName>) -> Result<Reply, Error> {
        let domains = match domain {
            Some(name) => vec![self.registry.find(&name)?],
            None => self.registry.domains(),
        };
        let mut rows = Vec::new();
        for domain in domains {
            let Some(snapshot) = self.registry.snapshot(&domain).await else {
                continue;
            };
            rows.extend(snapshot.ports.into_iter().map(|port| port_row(&domain, port)));
        }
        Ok(Reply::Ports(rows))
    }

    fn capture(&mut self, spec: &CaptureSpec) -> Result<Reply, Error> {
        let file = self.fds.pop_front();
        if self.capture.is_some() {
            return Err(invalid("this connection has a capture already".to_owned()));
        }
        let file = file.ok_or_else(|| invalid("a capture needs the descriptor to write to".to_owned()))?;
        self.capture = Some(Capture::start(&self.registry, spec, file)?);
        Ok(Reply::Done)
    }

    async fn stop_capture(&mut self) -> Reply {
        match &self.capture {
            Some(capture) => capture.stop(),
            None => return Reply::Error(invalid("this connection has no capture".to_owned())),
        }
        ended(&mut self.capture).await
    }
}

/// Waits for the end of the capture, asked for or not, and says how it went. Without a capture, waits for ever. The
/// capture is to be dropped once its client has been told.
async fn ended(capture: &mut Option<Capture>) -> Reply {
    let Some(running) = capture.as_mut() else {
        return std::future::pending().await;
    };
    running.ended().await.map_or_else(Reply::Error, Reply::Captured)
}

/// Reads what has arrived, and the descriptors that came with it.
async fn receive(stream: &UnixStream, bytes: &mut Vec<u8>, fds: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let mut received = Vec::new();
    let count = stream
        .async_io(Interest::READABLE, || {
            netio::unix::receive_with_fds(stream.as_fd(), &mut buffer, &mut received)
        })
        .await?;
    bytes.extend_from_slice(&buffer[..count]);
    fds.extend(received);
    Ok(count)
}

async fn row(registry: &Registry, domain: &Domain) -> Result<Reply, Error> {
    let snapshot = registry.snapshot(domain).await;
    let gone = || failed(format!("domain {} has just been removed", domain.spec.domain));
    snapshot
        .map(|snapshot| Reply::Domain(domain.row(&snapshot)))
        .ok_or_else(gone)
}

fn port_row(domain: &Domain, port: PortSnapshot) -> PortRow {
    PortRow {
        domain: domain.spec.domain.clone(),
        secure: domain.secure(port.id),
        id: port.id.0,
        kind: port.kind.to_owned(),
        name: port.identity.name,
        peer: port.identity.peer,
        since: port.identity.since.as_secs(),
        rx_frames: port.counters.rx_frames,
        rx_bytes: port.counters.rx_bytes,
        tx_frames: port.counters.tx_frames,
        tx_bytes: port.counters.tx_bytes,
        drops: drops(&port.counters.drops),
        stations: port.stations.iter().map(MacAddr::to_string).collect(),
    }
}

fn fdb_row(row: fabric::FdbRow) -> FdbRow {
    FdbRow {
        mac: row.mac.to_string(),
        port: row.port.0,
        age_s: row.age.map(|age| age.as_secs_f64()),
    }
}

fn parse_mac(text: &str) -> Result<MacAddr, Error> {
    text.parse()
        .map_err(|error| invalid(format!("'{text}': {error}")))
}

//! The machine's domains at switchd: made, held, and made again after switchd was away.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::DomainName;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::wires::Wires;
use crate::dirs::Dirs;
use crate::kernel_args::sockets;
use crate::machine::{Machine, NAT, TAP};
use crate::switch::Client;
use crate::transport::Reach;

/// What is held for a machine. One connection holds all its domains: when they change, another takes over.
pub(super) struct Holds {
    wanted: Wanted,
    task: Option<AbortHandle>,
    wires: Wires,
    /// Rung when switchd was away and the domains are there again.
    pub(super) back: Arc<Notify>,
}

#[derive(Clone)]
struct Wanted {
    dirs: Dirs,
    domains: BTreeSet<DomainName>,
    /// The device that connects the domain `tap` to the host.
    tap: Option<String>,
}

impl Holds {
    pub(super) fn new(dirs: Dirs) -> Self {
        let wanted = Wanted {
            dirs,
            domains: BTreeSet::new(),
            tap: None,
        };
        Self {
            wanted,
            task: None,
            wires: Wires::default(),
            back: Arc::default(),
        }
    }

    /// Holds these domains from now on, and no others. Starts switchd if need be. On failure, everything stays as it
    /// was. Returns where the domains are reached.
    pub(super) async fn hold(
        &mut self,
        domains: BTreeSet<DomainName>,
        tap: Option<String>,
    ) -> Result<BTreeMap<DomainName, Reach>> {
        let wanted = Wanted {
            domains,
            tap,
            ..self.wanted.clone()
        };
        let (mut client, mut reached) = (None, BTreeMap::new());
        if !wanted.domains.is_empty() {
            let wanted = wanted.clone();
            let (holding, found) = tokio::task::spawn_blocking(move || wanted.ask()).await??;
            (client, reached) = (Some(holding), found);
        }
        let task = client.map(|client| {
            tokio::spawn(keep(
                wanted.clone(),
                self.wires.clone(),
                client,
                self.back.clone(),
            ))
        });
        if let Some(before) = std::mem::replace(&mut self.task, task.map(|task| task.abort_handle())) {
            before.abort();
        }
        self.wanted = wanted;
        Ok(reached)
    }

    /// Makes the wires of a machine whose domains are held; the kernel's ends, in the order of their descriptors.
    pub(super) async fn make_wires(&self, machine: &Machine) -> Result<Vec<OwnedFd>> {
        if sockets(machine).next().is_none() {
            return Ok(Vec::new());
        }
        let (wires, machine, dirs) = (self.wires.clone(), machine.clone(), self.wanted.dirs.clone());
        tokio::task::spawn_blocking(move || wires.make(&machine, &mut Client::connect(&dirs)?)).await?
    }

    /// The device that connects the domain `tap` to the host.
    pub(super) fn tap(&self) -> Option<String> {
        self.wanted.tap.clone()
    }
}

impl Wanted {
    fn ask(&self) -> Result<(Client, BTreeMap<DomainName, Reach>)> {
        let mut client = Client::connect_or_start(&self.dirs)?;
        let mut reached = BTreeMap::new();
        for domain in &self.domains {
            let row = client
                .hold(domain)
                .with_context(|| format!("cannot make domain {domain}"))?;
            reached.insert(domain.clone(), Reach::from(&row));
            match (domain.as_str(), &self.tap) {
                (TAP, Some(device)) => client
                    .attach_tap(domain, device)
                    .with_context(|| format!("cannot attach {device} to domain {domain}"))?,
                (NAT, _) => client
                    .attach_uplink(domain)
                    .with_context(|| format!("cannot lead domain {domain} to the Internet"))?,
                _ => {}
            }
        }
        Ok((client, reached))
    }
}

/// Keeps domains alive: over a restart of switchd as well, which it starts again if need be.
async fn keep(wanted: Wanted, wires: Wires, client: Client, back: Arc<Notify>) {
    let mut client = client;
    loop {
        wait_for_end(client).await;
        client = tokio::select! {
            client = again(&wanted, &wires) => client,
            () = drain(&wires) => unreachable!("goes on for ever"),
        };
        back.notify_one();
    }
}

/// Holds domains again, however long that takes.
async fn again(wanted: &Wanted, wires: &Wires) -> Client {
    loop {
        tokio::time::sleep(HOLD_AGAIN).await;
        let (wanted, wires) = (wanted.clone(), wires.clone());
        let held = tokio::task::spawn_blocking(move || {
            let (mut client, _) = wanted.ask()?;
            wires.hand_over(&mut client);
            anyhow::Ok(client)
        });
        if let Ok(Ok(client)) = held.await {
            return client;
        }
    }
}

/// Reads in switchd's place; never returns.
async fn drain(wires: &Wires) {
    loop {
        wires.drain();
        tokio::time::sleep(DRAIN_AGAIN).await;
    }
}

async fn wait_for_end(client: Client) {
    let stream = client.into_stream();
    let stream = stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream));
    if let Ok(mut stream) = stream {
        let mut buffer = [0; 256];
        while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    }
}

/// Pause between two looks at what guests have sent while switchd is away; a second would be too long for them.
const DRAIN_AGAIN: Duration = Duration::from_millis(50);
/// Pause between attempts to hold the domains again.
const HOLD_AGAIN: Duration = Duration::from_millis(200);

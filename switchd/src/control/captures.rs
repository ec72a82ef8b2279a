//! A capture as its client sees it: feeds in the domains, a recorder thread, and their common end.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fabric::{Filter, Instruction, PortId};
use proto::ctl::{CaptureSpec, Captured, Drops, Error};
use tokio::sync::oneshot;

use super::domain::Domain;
use super::recorder::{Broken, Recorder};
use super::registry::{Registry, failed, invalid};
use crate::datapath::capture::{FeedId, Wanted, Which, feeds};

/// Where processors are short, forwarding comes first: a capture loses captured frames, and counts them.
const NICE: u8 = 19;

/// A running capture. Dropping it ends it at once, without waiting for whoever reads the file.
pub(crate) struct Capture {
    registry: Arc<Registry>,
    domains: Vec<Arc<Domain>>,
    feed: FeedId,
    abandoned: Arc<AtomicBool>,
    result: oneshot::Receiver<Result<Captured, Broken>>,
}

impl Capture {
    /// Starts capturing into a file.
    ///
    /// # Errors
    /// When the request makes no sense or the system has no thread for it.
    pub(crate) fn start(registry: &Arc<Registry>, spec: &CaptureSpec, file: OwnedFd) -> Result<Self, Error> {
        let domains = domains(registry, spec)?;
        let names: Vec<_> = domains
            .iter()
            .map(|domain| domain.spec.domain.to_string())
            .collect();
        let wanted = Arc::new(wanted(spec)?);
        let feed = next_feed();
        let (feeds, drain) = feeds(feed, &names, &wanted);
        // Before the thread: it may have its count, and remove them, at once.
        for (domain, feed) in domains.iter().zip(feeds) {
            registry.add_capture(domain, feed);
        }
        let (done, result) = oneshot::channel();
        registry.capture_came();
        let capture = Self {
            registry: Arc::clone(registry),
            domains,
            feed,
            abandoned: Arc::default(),
            result,
        };
        let (watched, ended) = (Arc::downgrade(registry), capture.domains.clone());
        let recorder = Recorder {
            drain,
            file: File::from(file),
            limit: spec.count,
            stop: Box::new(move || {
                if let Some(registry) = watched.upgrade() {
                    remove(&registry, &ended, feed);
                }
            }),
            abandoned: Arc::clone(&capture.abandoned),
        };
        std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                if let Err(error) = netio::process::yield_to_others(NICE) {
                    tracing::warn!("captures take as much of the processors as forwarding: {error}");
                }
                drop(done.send(recorder.run()));
            })
            .map_err(|error| failed(format!("cannot start the capture: {error}")))?;
        Ok(capture)
    }

    /// Takes no further frames; what is on its way is still written.
    pub(crate) fn stop(&self) {
        remove(&self.registry, &self.domains, self.feed);
    }

    /// Waits until all of it is written: it was stopped, has its count, cannot be written, or its domains are gone.
    ///
    /// # Errors
    /// When the file could not be written to its end.
    pub(crate) async fn ended(&mut self) -> Result<Captured, Error> {
        match (&mut self.result).await {
            Ok(Ok(captured)) => Ok(captured),
            Ok(Err(broken)) => Err(failed(format!("{broken}: {}", broken.source))),
            Err(_) => Err(failed("the capture has ended early".to_owned())),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        self.stop();
        self.registry.capture_went();
    }
}

fn remove(registry: &Registry, domains: &[Arc<Domain>], feed: FeedId) {
    for domain in domains {
        registry.remove_capture(domain, feed);
    }
}

/// A name no other capture has.
pub(crate) fn next_feed() -> FeedId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    FeedId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn domains(registry: &Registry, spec: &CaptureSpec) -> Result<Vec<Arc<Domain>>, Error> {
    if spec.domains.is_empty() {
        return match registry.domains() {
            domains if domains.is_empty() => Err(invalid("there is no domain to capture".to_owned())),
            domains => Ok(domains),
        };
    }
    // Named twice, captured once.
    let names: BTreeSet<_> = spec.domains.iter().collect();
    names.into_iter().map(|name| registry.find(name)).collect()
}

/// Checks what a client wants captured.
///
/// # Errors
/// When the filter is no program.
pub(crate) fn wanted(spec: &CaptureSpec) -> Result<Wanted, Error> {
    let filter = if spec.filter.is_empty() {
        None
    } else {
        let instructions = spec.filter.iter().map(|instruction| Instruction {
            code: instruction.0,
            jt: instruction.1,
            jf: instruction.2,
            k: instruction.3,
        });
        Some(Filter::new(instructions.collect()).map_err(|error| invalid(error.to_string()))?)
    };
    Ok(Wanted {
        which: match spec.drops {
            Drops::No => Which::Carried,
            Drops::Also => Which::All,
            Drops::Only => Which::Dropped,
        },
        snap_len: match spec.snap_len_bytes {
            None | Some(0) => usize::MAX,
            Some(bytes) => bytes as usize,
        },
        ports: spec.ports.iter().copied().map(PortId).collect(),
        filter,
        filter_text: spec.filter_text.clone(),
        sums: spec.sums,
    })
}

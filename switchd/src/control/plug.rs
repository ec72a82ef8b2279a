//! Making a port of a link that did not come by itself.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fabric::{PortId, Range};
use ipnet::IpNet;
use proto::ctl::Error;
use tokio::sync::oneshot;

use super::accept::LivePort;
use super::domain::Domain;
use super::registry::{Registry, failed};
use crate::datapath::NewPort;
use crate::datapath::port::{Identity, Link};

/// Where a port is to be made, and how far it is trusted.
pub(super) struct Place<'a> {
    pub(super) registry: &'a Arc<Registry>,
    pub(super) domain: &'a Arc<Domain>,
    pub(super) secure: &'a [IpNet],
}

impl Place<'_> {
    /// Takes a port number for what is called `name`.
    pub(super) fn reserve(&self, name: &str) -> Result<PortId, Error> {
        let id = self
            .domain
            .reserve(None)
            .map_err(|id| failed(format!("cannot attach {name}: port {id} is not free")))?;
        self.domain.set_secure(id, self.secure);
        Ok(id)
    }

    /// Makes a port that ends when its link does.
    pub(super) async fn plug(&self, name: &str, link: Link) -> Result<PortId, Error> {
        let id = self.reserve(name)?;
        if matches!(link, Link::Nic(_) | Link::Sniff(_)) {
            self.domain.set_passive(id);
        }
        let gone = match attach(self.registry, self.domain, id, name, link).await {
            Ok(gone) => gone,
            Err(error) => {
                self.domain.release(id);
                return Err(failed(format!("cannot attach {name}: {error}")));
            }
        };
        let port = LivePort { id, peer: None, gone };
        let (registry, domain) = (Arc::clone(self.registry), Arc::clone(self.domain));
        // The data path sees the end of the link.
        tokio::spawn(async move { port.live(&registry, &domain, std::future::pending()).await });
        Ok(id)
    }
}

/// Puts a link where a port number has been taken; the receiver ends when the link does.
pub(super) async fn attach(
    registry: &Registry,
    domain: &Domain,
    id: PortId,
    name: &str,
    link: Link,
) -> io::Result<oneshot::Receiver<Infallible>> {
    let (alive, gone) = oneshot::channel();
    let port = NewPort {
        id,
        link,
        identity: Identity::now(name.to_owned(), None),
        alive,
    };
    registry.attach(domain, port).await?;
    Ok(gone)
}

/// Opens what takes a while, or another program.
pub(super) async fn elsewhere(
    name: &str,
    open: impl FnOnce() -> anyhow::Result<OwnedFd> + Send + 'static,
) -> Result<OwnedFd, Error> {
    match tokio::task::spawn_blocking(open).await {
        Ok(Ok(fd)) => Ok(fd),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(error) => Err(failed(format!("cannot attach {name}: {error}"))),
    }
}

/// Ranges as the data path has them.
pub(super) fn ranges(nets: &[IpNet]) -> Vec<Range> {
    nets.iter()
        .filter_map(|net| Range::new(net.network(), net.prefix_len()))
        .collect()
}

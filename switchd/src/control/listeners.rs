//! The sockets a domain listens at, opened together and served until the domain goes.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::ctl::{Error, VdeAccess};
use tokio::net::UnixListener;

use super::accept::accept;
use super::domain::{Domain, Entry, Sockets, remove_if_there};
use super::registry::{LONGEST_PATH, Registry, failed};
use super::{bess, vde, vhost};

/// The open listeners of a domain that is being made.
pub(super) struct Listeners {
    uml: UnixListener,
    bess: Option<OwnedFd>,
    vde: Option<UnixListener>,
    vhost: Option<UnixListener>,
}

/// Those of them a domain may be without.
type Others = (Option<OwnedFd>, Option<UnixListener>, Option<UnixListener>);

impl Listeners {
    /// Opens all of them, or none.
    pub(super) fn open(
        sockets: &Sockets,
        access: &VdeAccess,
        bound: Option<StdListener>,
    ) -> Result<Self, Error> {
        let uml = bound
            .map_or_else(|| netio::unix::listen(&sockets.control), Ok)
            .and_then(watch)
            .map_err(|error| failed(cannot_listen(&sockets.control, &error)))?;
        let mut made = vec![&sockets.control];
        let others = open_others(sockets, access, &mut made);
        if others.is_err() {
            made.into_iter().for_each(|path| remove_if_there(path));
        }
        let (bess, vde, vhost) = others?;
        Ok(Self {
            uml,
            bess,
            vde,
            vhost,
        })
    }

    /// Has each of them served by a task that ends with the domain.
    pub(super) fn start(self, registry: &Arc<Registry>, domain: &Arc<Domain>) {
        let shared = || (Arc::clone(registry), Arc::clone(domain));
        let streams = [(Entry::Uml, Some(self.uml)), (Entry::Vde, self.vde)];
        for (entry, listener) in streams {
            if let Some(listener) = listener {
                let (registry, of) = shared();
                domain.add_listener(tokio::spawn(accept(registry, of, listener, entry)).abort_handle());
            }
        }
        if let Some(listener) = self.bess {
            let (registry, of) = shared();
            domain.add_listener(tokio::spawn(bess::accept(registry, of, listener)).abort_handle());
        }
        if let Some(listener) = self.vhost {
            let (registry, of) = shared();
            domain.add_listener(tokio::spawn(vhost::accept(registry, of, listener)).abort_handle());
        }
    }
}

/// Has a listener watched by the runtime.
fn watch(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Opens the listeners a domain may be without, and says which files are new.
fn open_others<'a>(
    sockets: &'a Sockets,
    access: &VdeAccess,
    made: &mut Vec<&'a PathBuf>,
) -> Result<Others, Error> {
    let bess = match &sockets.bess {
        Some(path) => {
            let listener = listen_seqpacket(path).map_err(|error| failed(cannot_listen(path, &error)))?;
            made.push(path);
            Some(listener)
        }
        None => None,
    };
    let vhost = match &sockets.vhost {
        Some(path) => {
            let listener = listen_vhost(path).map_err(|error| failed(cannot_listen(path, &error)))?;
            made.push(path);
            Some(listener)
        }
        None => None,
    };
    let vde = sockets.vde.as_ref().map(|path| {
        let listener = vde::listen(path, access).and_then(watch);
        listener.map_err(|error| failed(cannot_listen(path, &error)))
    });
    Ok((bess, vde.transpose()?, vhost))
}

/// Listens for vector guests of this user alone.
fn listen_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let listener = netio::unix::listen_seqpacket(path)?;
    make_private(path)?;
    Ok(listener)
}

/// Listens for guests of this user alone that share their memory.
fn listen_vhost(path: &Path) -> io::Result<UnixListener> {
    let listener = netio::unix::listen(path)?;
    make_private(path)?;
    watch(listener)
}

fn make_private(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}

/// What stands in the way of listening at a path, and what can be done about it.
pub(crate) fn cannot_listen(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::AddrInUse if is_socket(path) => format!(
            "cannot listen at {shown}: another program listens there\nhint: end it, or choose another place"
        ),
        io::ErrorKind::AddrInUse => format!(
            "cannot listen at {shown}: there is a file that is no socket\nhint: remove it, or choose another place"
        ),
        io::ErrorKind::InvalidInput => format!(
            "cannot listen at {shown}: a socket's path has at most {LONGEST_PATH} bytes\nhint: choose a shorter directory"
        ),
        _ => format!("cannot listen at {shown}: {error}"),
    }
}

pub(super) fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

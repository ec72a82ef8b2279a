//! Who is at the other end of a connection.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use proto::ctl::Peer;

/// Reads the peer's process and user from the kernel.
pub(crate) fn credentials(connection: impl AsFd) -> io::Result<Peer> {
    let (pid, uid) = netio::unix::credentials(connection)?;
    Ok(Peer { pid, uid })
}

/// Waits for a process to end. A killed UML kernel leaves helper processes that keep its sockets open, so the end of
/// a connection alone does not tell.
///
/// # Errors
/// When the process cannot be watched; one that is gone already has ended.
pub(crate) async fn ended(peer: Peer) -> io::Result<()> {
    // A peer in a foreign PID namespace has no number here: its connection must do.
    if peer.pid == 0 {
        return std::future::pending().await;
    }
    let fd = match netio::unix::pidfd(peer.pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        result => netio::watch::readable(result?)?,
    };
    fd.readable().await.map(drop)
}

/// What the cards may be called that a UML kernel has at this socket (`virtio_uml.device=SOCKET:1`), in their order:
/// `pc1:eth0` for the first card of its command line.
pub(crate) fn vhost_names(peer: Peer, socket: &Path) -> Vec<String> {
    let words = command_line(peer);
    let Some(machine) = words.iter().find_map(|word| word.strip_prefix("umid=")) else {
        return Vec::new();
    };
    let cards = words.iter().filter_map(|word| {
        let (path, rest) = word.strip_prefix("virtio_uml.device=")?.split_once(':')?;
        // 1 is a network card.
        (rest == "1" || rest.starts_with("1:")).then_some(path)
    });
    cards
        .enumerate()
        .filter(|(_, path)| Path::new(path) == socket)
        .map(|(number, _)| format!("{machine}:eth{number}"))
        .collect()
}

/// The machine and interface at the other end, from the command line of a UML kernel: `pc1:eth0` for
/// `umid=pc1 eth0=daemon,,,SOCKET`; for other processes how they describe themselves, or the program's name.
pub(crate) fn name(peer: Peer, socket: &Path, description: &str) -> String {
    let words = command_line(peer);
    if words.is_empty() {
        return description.to_owned();
    }
    let socket = socket.to_string_lossy();
    let machine = words.iter().find_map(|word| word.strip_prefix("umid="));
    let interface = words.iter().find_map(|word| {
        let (interface, value) = word.split_once(['=', ':'])?;
        let known = interface.starts_with("eth") || interface.starts_with("vec");
        (known && value.split([',', '=']).any(|part| part == socket)).then_some(interface)
    });
    match (machine, interface) {
        (Some(machine), Some(interface)) => format!("{machine}:{interface}"),
        _ if !description.is_empty() => description.to_owned(),
        (Some(machine), None) => machine.to_owned(),
        (None, _) => words
            .first()
            .and_then(|word| word.rsplit('/').next())
            .unwrap_or_default()
            .to_owned(),
    }
}

/// The words a process was started with; none if it is gone.
fn command_line(peer: Peer) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{}/cmdline", peer.pid)).unwrap_or_default();
    let words = bytes.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

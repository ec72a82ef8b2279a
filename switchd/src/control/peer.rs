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

/// The machine and interface at the other end, from the command line of a UML kernel: `pc1:eth0` for
/// `umid=pc1 eth0=daemon,,,SOCKET`; for other processes how they describe themselves, or the program's name.
pub(crate) fn name(peer: Peer, socket: &Path, description: &str) -> String {
    let Ok(command_line) = std::fs::read(format!("/proc/{}/cmdline", peer.pid)) else {
        return description.to_owned();
    };
    let words: Vec<_> = command_line
        .split(|&b| b == 0)
        .map(String::from_utf8_lossy)
        .collect();
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

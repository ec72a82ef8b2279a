//! Who is at the other end of a connection.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use fabric::MacAddr;
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

/// What the cards may be called that a UML kernel has at this socket (`virtio_uml.device=SOCKET:1[:NUMBER]`), in their
/// order, and their addresses: `pc1:eth0` for the first one without a number. The address is the one a word
/// `mac_eth0=ADDRESS` tells, or the one netkit's kernels give that interface.
pub(crate) fn vhost_cards(peer: Peer, socket: &Path) -> Vec<(String, MacAddr)> {
    cards(&command_line(peer), socket)
}

fn cards(words: &[String], socket: &Path) -> Vec<(String, MacAddr)> {
    let Some(machine) = words.iter().find_map(|word| word.strip_prefix("umid=")) else {
        return Vec::new();
    };
    let mut next = 0_u32;
    let mut found = Vec::new();
    for word in words {
        // Devices of other kinds than network cards (1) are counted with them.
        let Some(device) = word.strip_prefix("virtio_uml.device=") else {
            continue;
        };
        let mut parts = device.split(':');
        let (Some(path), Some(kind)) = (parts.next(), parts.next()) else {
            continue;
        };
        let number = parts.next().map_or(Some(next), |number| number.parse().ok());
        let Some(number) = number else { continue };
        next = number.saturating_add(1);
        if kind == "1" && Path::new(path) == socket {
            let card = format!("eth{number}");
            let told = words.iter().find_map(|word| {
                let (key, address) = word.split_once('=')?;
                (key.strip_prefix("mac_") == Some(&card)).then(|| address.parse().ok())?
            });
            let mac = told.unwrap_or_else(|| proto::mac::of_machine(machine, &card));
            found.push((format!("{machine}:{card}"), mac));
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_the_numbers_and_addresses_of_the_command_line() {
        let words = "linux.uml umid=pc1 virtio_uml.device=/s/a:1 virtio_uml.device=/s/b:1 virtio_uml.device=/s/a:1:7 \
                     virtio_uml.device=/s/c:3 virtio_uml.device=/s/a:1 mac_eth7=02:00:00:00:00:07 virtio_uml.device=/s/a";
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let usual = |card| proto::mac::of_machine("pc1", card);
        let expected = [
            ("pc1:eth0".to_owned(), usual("eth0")),
            ("pc1:eth7".to_owned(), MacAddr([2, 0, 0, 0, 0, 7])),
            ("pc1:eth9".to_owned(), usual("eth9")),
        ];
        assert_eq!(cards(&words, Path::new("/s/a")), expected);
        assert_eq!(cards(&words, Path::new("/s/c")), []);
        assert_eq!(cards(&words[2..], Path::new("/s/a")), []);
    }
}

//! The management console of a kernel, version 2 of its protocol, and the notifications it sends.
//!
//! ```text
//! request       magic u32 | version u32 = 2 | length u32 | text, NUL      at most 511 bytes of text
//! reply         error u32 | more u32 | length u32 | text
//! notification  magic u32 | version u32 = 2 | kind i32 | length u32 | text
//! ```
//!
//! All in host byte order.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
const LONGEST_TEXT: usize = 511;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MconsoleError {
    /// The text does not fit into a request.
    #[error("a management command has at most {LONGEST_TEXT} bytes")]
    TooLong,
    /// There is no kernel behind the socket, or it does not answer.
    #[error("cannot reach the management console")]
    Io(#[source] io::Error),
    /// The kernel said no.
    #[error("the kernel answers: {0}")]
    Refused(String),
}

/// What a kernel tells of its own accord.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notification {
    /// The management console is there; drivers are up.
    Ready,
    /// The kernel has panicked.
    Panic(String),
    /// The kernel hangs.
    Hang,
    /// Something the guest wrote to `/proc/mconsole`.
    User(String),
}

/// Sends a command and returns the kernel's answer.
///
/// # Errors
/// When the kernel cannot be reached in time or refuses.
pub fn command(socket: &Path, text: &str, timeout: Duration) -> Result<String, MconsoleError> {
    if text.len() > LONGEST_TEXT || text.contains('\0') {
        return Err(MconsoleError::TooLong);
    }
    exchange(socket, text, timeout).map_err(MconsoleError::Io)?
}

fn exchange(socket: &Path, text: &str, timeout: Duration) -> io::Result<Result<String, MconsoleError>> {
    // Bound to a name of its own: an unnamed client cannot be answered.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "hubbub-mconsole-{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    );
    let client = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    client.connect(socket)?;
    client.set_read_timeout(Some(timeout))?;
    client.set_write_timeout(Some(timeout))?;
    client.send(&request(text))?;
    let mut answer = Vec::new();
    let mut failed = false;
    loop {
        let mut buffer = [0; 1024];
        let length = client.recv(&mut buffer)?;
        let Some(reply) = Reply::parse(&buffer[..length]) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is no management reply",
            ));
        };
        failed |= reply.failed;
        answer.extend_from_slice(reply.text);
        if !reply.more {
            let text = String::from_utf8_lossy(&answer).into_owned();
            return Ok(if failed {
                Err(MconsoleError::Refused(text.trim().to_owned()))
            } else {
                Ok(text)
            });
        }
    }
}

fn request(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("the text's length was checked");
    let mut bytes: Vec<u8> = [MAGIC, VERSION, length]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

struct Reply<'a> {
    failed: bool,
    more: bool,
    text: &'a [u8],
}

impl<'a> Reply<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            failed: word(bytes, 0)? != 0,
            more: word(bytes, 4)? != 0,
            text: counted(bytes, 8)?,
        })
    }
}

/// Reads a notification; `None` if it is none.
pub fn notification(bytes: &[u8]) -> Option<Notification> {
    if word(bytes, 0)? != MAGIC || word(bytes, 4)? != VERSION {
        return None;
    }
    let text = || counted(bytes, 12).map(|text| String::from_utf8_lossy(text).into_owned());
    match word(bytes, 8)? {
        0 => Some(Notification::Ready),
        1 => Some(Notification::Panic(text()?)),
        2 => Some(Notification::Hang),
        3 => Some(Notification::User(text()?)),
        _ => None,
    }
}

/// A length and so many bytes, without the NULs at their end.
fn counted(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::try_from(word(bytes, at)?).ok()?;
    let text = bytes.get(at + 4..)?;
    let text = &text[..length.min(text.len())];
    let end = text.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    Some(&text[..end])
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_has_its_header() {
        let bytes = request("cad");
        assert_eq!(bytes.len(), 16);
        assert_eq!(word(&bytes, 0), Some(MAGIC));
        assert_eq!(&bytes[8..], b"\x03\0\0\0cad\0");
    }

    #[test]
    fn notifications_are_read() {
        let bytes = |kind: u32, text: &[u8]| {
            let length = u32::try_from(text.len()).unwrap();
            let mut bytes: Vec<u8> = [MAGIC, VERSION, kind, length]
                .into_iter()
                .flat_map(u32::to_ne_bytes)
                .collect();
            bytes.extend_from_slice(text);
            bytes
        };
        assert_eq!(
            notification(&bytes(0, b"/x/mconsole\0")),
            Some(Notification::Ready)
        );
        assert_eq!(
            notification(&bytes(3, b"hubbub up")),
            Some(Notification::User("hubbub up".into()))
        );
        assert_eq!(notification(&bytes(9, b"")), None);
        assert_eq!(notification(b"short"), None);
    }

    #[test]
    fn an_absent_kernel_is_an_error() {
        let error = command(
            Path::new("/nonexistent/mconsole"),
            "version",
            Duration::from_secs(1),
        );
        assert!(matches!(error, Err(MconsoleError::Io(_))));
    }

    #[test]
    fn long_answers_come_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mconsole");
        let kernel = UnixDatagram::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 600];
            let (length, client) = kernel.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], request("proc x"));
            for (more, text) in [(1u32, &b"ab"[..]), (0, b"cd\0")] {
                let length = u32::try_from(text.len()).unwrap();
                let mut reply: Vec<u8> = [0, more, length].into_iter().flat_map(u32::to_ne_bytes).collect();
                reply.extend_from_slice(text);
                kernel.send_to_addr(&reply, &client).unwrap();
            }
        });
        assert_eq!(command(&path, "proc x", Duration::from_secs(5)).unwrap(), "abcd");
        thread.join().unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = notification(&bytes);
            let _ = Reply::parse(&bytes);
        }
    }
}

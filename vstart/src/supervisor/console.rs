//! A console of a machine: it outlives its viewers, keeps what was shown, and may have several viewers at once.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::broadcast::{self, error::RecvError};

use super::tty::{self, Slave, Tty};

/// One console.
pub(crate) struct Console {
    /// What the kernel is given.
    pub(crate) slave: Slave,
    handle: OwnedFd,
    keyboard: tokio::sync::Mutex<WriteHalf<Tty>>,
    /// Never held across an await: the pump and the viewers look in for a moment only.
    kept: Mutex<Kept>,
    output: broadcast::Sender<Arc<[u8]>>,
}

/// What has been shown.
struct Kept {
    /// Until it is revealed, viewers see nothing.
    hidden: bool,
    scroll_back: VecDeque<u8>,
    log: Log,
}

impl Console {
    /// Makes the console and starts to listen to it; `log` is the file that keeps its output. If it is `hidden`,
    /// viewers see only what comes after [`Console::reveal`].
    pub(crate) fn open(log: &Path, hidden: bool) -> io::Result<Arc<Self>> {
        let (tty, slave) = tty::open()?;
        let handle = tty.handle()?;
        let (screen, keyboard) = split(tty);
        let console = Arc::new(Self {
            slave,
            handle,
            keyboard: tokio::sync::Mutex::new(keyboard),
            kept: Mutex::new(Kept {
                hidden,
                scroll_back: VecDeque::new(),
                log: Log::open(log)?,
            }),
            output: broadcast::channel(CHUNKS).0,
        });
        tokio::spawn(pump(console.clone(), screen));
        Ok(console)
    }

    /// Passes everything between the console and a viewer, what was shown before included, until the viewer
    /// leaves. A viewer that cannot keep up misses something and is told so.
    pub(crate) async fn show(&self, viewer: impl AsyncRead + AsyncWrite) {
        let (mut from, mut to) = split(viewer);
        // Both in one breath, with no await between: nothing is shown twice or never.
        let (before, mut output) = (self.visible(), self.output.subscribe());
        let screen = async {
            to.write_all(&before).await?;
            loop {
                match output.recv().await {
                    Ok(bytes) => to.write_all(&bytes).await?,
                    Err(RecvError::Lagged(_)) => to.write_all(LAGGED).await?,
                    Err(RecvError::Closed) => return io::Result::Ok(()),
                }
            }
        };
        let keyboard = async {
            let mut buffer = [0; 1024];
            loop {
                match from.read(&mut buffer).await? {
                    // A viewer with nothing more to say may still want to see.
                    0 => std::future::pending().await,
                    length => self.keyboard.lock().await.write_all(&buffer[..length]).await?,
                }
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            io::Result::Ok(())
        };
        // An error on either side is the viewer's way to leave.
        tokio::select! { _ = screen => {} _ = keyboard => {} }
    }

    /// Sets the size of the console's window.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        netio::terminal::set_window_size(&self.handle, rows, columns)
    }

    /// Lets viewers see what comes from now on.
    pub(crate) fn reveal(&self) {
        self.with_kept(|kept| {
            if std::mem::take(&mut kept.hidden) {
                kept.scroll_back.clear();
            }
        });
    }

    /// What the machine has written, as far as it is kept.
    pub(crate) fn scroll_back(&self) -> Vec<u8> {
        self.with_kept(|kept| kept.scroll_back.iter().copied().collect())
    }

    fn visible(&self) -> Vec<u8> {
        if self.with_kept(|kept| kept.hidden) {
            Vec::new()
        } else {
            self.scroll_back()
        }
    }

    fn take_in(&self, bytes: &[u8]) {
        let hidden = self.with_kept(|kept| {
            kept.scroll_back.extend(bytes);
            let excess = kept.scroll_back.len().saturating_sub(SCROLL_BACK_BYTES);
            kept.scroll_back.drain(..excess);
            kept.log.write(bytes);
            kept.hidden
        });
        if !hidden {
            // Without viewers there is nobody to send to.
            let _ = self.output.send(bytes.into());
        }
    }

    fn with_kept<T>(&self, work: impl FnOnce(&mut Kept) -> T) -> T {
        work(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn pump(console: Arc<Console>, mut screen: ReadHalf<Tty>) {
    let mut buffer = [0; 4096];
    while let Ok(length) = screen.read(&mut buffer).await {
        console.take_in(&buffer[..length]);
    }
}

/// The file with a console's output: two generations of bounded size.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            bytes: file.metadata()?.len(),
            file,
        })
    }

    /// A full disk must not stop the machine: what cannot be written is not kept.
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes > LOG_BYTES
            && std::fs::rename(&self.path, self.path.with_extension("log.old")).is_ok()
            && let Ok(fresh) = Self::open(&self.path)
        {
            *self = fresh;
        }
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
        }
    }
}

/// What a new viewer is shown at most.
const SCROLL_BACK_BYTES: usize = 256 * 1024;
/// Chunks of up to 4 KiB a viewer may be behind.
const CHUNKS: usize = 1024;
/// Size at which a log's next generation begins.
const LOG_BYTES: u64 = 4 * 1024 * 1024;
const LAGGED: &[u8] = b"\r\n[some output was skipped]\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), test).await.unwrap() });
    }

    async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let mut buffer = [0; 256];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the console has gone");
            text.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn viewers_come_late_and_several() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("console.log");
            let console = Console::open(&log, false).unwrap();
            nix::unistd::write(&console.slave.fd, b"hello\n").unwrap();
            let viewer = || {
                let (ours, theirs) = tokio::io::duplex(4096);
                let console = console.clone();
                tokio::spawn(async move { console.show(theirs).await });
                ours
            };
            let mut first = viewer();
            assert_eq!(read_until(&mut first, "hello\n").await, "hello\n");
            let mut second = viewer();
            assert_eq!(read_until(&mut second, "hello\n").await, "hello\n");
            second.write_all(b"ls\n").await.unwrap();
            let mut buffer = [0; 16];
            let slave = console.slave.fd.try_clone().unwrap();
            let typed = tokio::task::spawn_blocking(move || {
                let length = nix::unistd::read(&slave, &mut buffer).unwrap();
                buffer[..length].to_vec()
            });
            assert_eq!(typed.await.unwrap(), b"ls\n");
            nix::unistd::write(&console.slave.fd, b"files\n").unwrap();
            for viewer in [&mut first, &mut second] {
                assert_eq!(read_until(viewer, "files\n").await, "files\n");
            }
            assert_eq!(std::fs::read_to_string(log).unwrap(), "hello\nfiles\n");
        });
    }

    #[test]
    fn a_hidden_console_shows_what_comes_after() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let console = Console::open(&dir.path().join("console.log"), true).unwrap();
            let (mut viewer, theirs) = tokio::io::duplex(4096);
            tokio::spawn({
                let console = console.clone();
                async move { console.show(theirs).await }
            });
            console.take_in(b"kernel");
            assert_eq!(console.scroll_back(), b"kernel");
            tokio::task::yield_now().await;
            console.reveal();
            console.take_in(b"shell\n");
            assert_eq!(read_until(&mut viewer, "\n").await, "shell\n");
            assert_eq!(console.scroll_back(), b"shell\n");
            console.reveal();
            assert_eq!(console.scroll_back(), b"shell\n");
        });
    }

    #[test]
    fn what_is_kept_is_bounded() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("console.log");
            let console = Console::open(&log, false).unwrap();
            for _ in 0..2100 {
                console.take_in(&[b'x'; 4096]);
            }
            assert_eq!(console.scroll_back().len(), SCROLL_BACK_BYTES);
            assert!(std::fs::metadata(&log).unwrap().len() <= LOG_BYTES + 4096);
            assert!(dir.path().join("console.log.old").exists());
        });
    }
}

//! Where consoles are shown: to vconnect, on a TCP port, on a pseudo-terminal, in a window.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::console::Console;
use super::interfaces::{Change, What};
use super::link::Link;
use super::telnet;
use super::tty::{self, Slave};
use crate::machine::Interface;

/// The consoles of a machine; one that is off is `None`.
pub(crate) type Consoles = [Option<Arc<Console>>; 2];

/// What a viewer asks for, as one JSON line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// After the answer, everything is console: what is sent is typed, what comes is shown.
    Attach {
        /// Its number.
        console: usize,
        /// Rows and columns of the viewer's window, if it has one.
        window: Option<(u16, u16)>,
    },
    /// After the answer, both sides speak in frames of [`crate::agent`], whose channel number says nothing.
    Run {
        /// The command: one word is a line for the shell.
        words: Vec<String>,
    },
    /// One interface more, while the machine runs.
    Plug {
        /// The interface.
        interface: Interface,
        /// The device that connects the domain `tap` to the host, if that is where it leads.
        tap: Option<String>,
    },
    /// One interface less.
    Unplug {
        /// The N of ethN.
        number: u32,
    },
    /// The viewer's window has another size.
    Resize {
        /// The console's number.
        console: usize,
        /// Rows and columns.
        window: (u16, u16),
    },
}

/// What it is answered, as one JSON line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// As you wish.
    Done,
    /// Why not.
    Error(String),
}

/// Serves viewers for ever.
pub(crate) async fn serve(
    listener: UnixListener,
    consoles: Consoles,
    link: Option<Arc<Link>>,
    changes: mpsc::Sender<Change>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (consoles, link, changes) = (consoles.clone(), link.clone(), changes.clone());
                drop(tokio::spawn(welcome(stream, consoles, link, changes)));
            }
            // Out of descriptors: somebody will leave.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Shows a console on a TCP port of the loopback interface, to one after the other.
pub(crate) async fn serve_port(listener: TcpListener, console: Arc<Console>, first: Option<TcpStream>) {
    if let Some(stream) = first {
        drop(tokio::spawn(show_telnet(stream, console.clone())));
    }
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(show_telnet(stream, console.clone()))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Shows a console on a pseudo-terminal; returns the side to attach to, which must be kept open.
pub(crate) fn show_pty(console: Arc<Console>) -> io::Result<Slave> {
    let (tty, slave) = tty::open()?;
    tokio::spawn(async move { console.show(tty).await });
    Ok(slave)
}

/// Runs a program that shows a console in a window. It ends by itself when the machine does.
pub(crate) fn open_window(command: &[String]) -> io::Result<()> {
    let (program, args) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = tokio::process::Command::new(Path::new(program))
        .args(args)
        // A machine started inside tmux: its own session would refuse to be shown, for fear of being nested.
        .env_remove("TMUX")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

async fn welcome(
    stream: UnixStream,
    consoles: Consoles,
    link: Option<Arc<Link>>,
    changes: mpsc::Sender<Change>,
) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let request = tokio::time::timeout(
        REQUEST_PATIENCE,
        (&mut stream).take(LONGEST_REQUEST).read_line(&mut line),
    )
    .await;
    if !matches!(request, Ok(Ok(_))) {
        return;
    }
    let mut command = None;
    let (answer, attached) = match serde_json::from_str(&line) {
        Ok(Request::Attach { console, window }) => match consoles.get(console) {
            Some(Some(found)) => {
                resize(found, window);
                (Answer::Done, Some(found.clone()))
            }
            _ => (Answer::Error(format!("console {console} is off")), None),
        },
        Ok(Request::Resize { console, window }) => {
            if let Some(Some(found)) = consoles.get(console) {
                resize(found, Some(window));
            }
            (Answer::Done, None)
        }
        Ok(Request::Run { words }) => match link {
            Some(link) if link.is_ready().await => {
                command = Some((link, words));
                (Answer::Done, None)
            }
            Some(_) => (Answer::Error("its agent does not answer".into()), None),
            None => (Answer::Error(NO_AGENT.into()), None),
        },
        Ok(Request::Plug { interface, tap }) => (ask(&changes, What::Plug(interface, tap)).await, None),
        Ok(Request::Unplug { number }) => (ask(&changes, What::Unplug(number)).await, None),
        Err(error) => (
            Answer::Error(format!("cannot understand the request: {error}")),
            None,
        ),
    };
    let mut text = serde_json::to_string(&answer).expect("an answer has only text keys");
    text.push('\n');
    if stream.write_all(text.as_bytes()).await.is_err() {
        return;
    }
    if let Some(console) = attached {
        console.show(stream).await;
    } else if let Some((link, words)) = command {
        link.run(&words, stream).await;
    }
}

/// Has the machine changed.
async fn ask(changes: &mpsc::Sender<Change>, what: What) -> Answer {
    let (answer, answered) = oneshot::channel();
    // Without a receiver there is no machine any more, and the answer does not come either.
    let _ = changes.send(Change { what, answer }).await;
    answered
        .await
        .unwrap_or_else(|_| Answer::Error("the machine has ended".into()))
}

fn resize(console: &Console, window: Option<(u16, u16)>) {
    if let Some((rows, columns)) = window {
        // A window of the wrong size is still a window.
        let _ = console.resize(rows, columns);
    }
}

async fn show_telnet(stream: TcpStream, console: Arc<Console>) {
    let (mut from, mut to) = stream.into_split();
    let (ours, theirs) = tokio::io::duplex(4096);
    let (mut screen, mut keyboard) = tokio::io::split(ours);
    let typed = async {
        let mut filter = telnet::Filter::default();
        let mut buffer = [0; 1024];
        loop {
            match from.read(&mut buffer).await? {
                0 => return io::Result::Ok(()),
                length => keyboard.write_all(&filter.typed(&buffer[..length])).await?,
            }
        }
    };
    let shown = async {
        to.write_all(&telnet::GREETING).await?;
        tokio::io::copy(&mut screen, &mut to).await
    };
    // Whoever ends first, the viewer has left.
    tokio::select! { _ = typed => {} _ = shown => {} () = console.show(theirs) => {} }
}

const NO_AGENT: &str = "there is no agent in it\nhint: 'vstart --agent' brings one into its file system";
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: u64 = 1024;

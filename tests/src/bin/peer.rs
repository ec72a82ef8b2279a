//! A client in a process of its own, for tests that stop it, kill it or run it as another user.
//!
//! ```text
//! peer hold CONTROL      attach, print the data socket's path, read frames until the end of input
//! peer abandon CONTROL   the same, with a helper process that inherits every socket; prints its number first
//! peer attach CONTROL    attach and leave
//! peer send SOCKET       send one frame to a data socket
//! peer ask SOCKET LINE   send a line to a control socket and print the answer
//! ```
//!
//! What fails is printed with the system's error number, and the exit status is 1.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proto::uml::Version;
use tests::client::{Client, data_socket};
use tests::frame::{BROADCAST, frame, mac};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["hold", control] => hold(Path::new(control), false),
        ["abandon", control] => hold(Path::new(control), true),
        ["attach", control] => attach(Path::new(control)).map(drop),
        ["send", socket] => send(Path::new(socket)),
        ["ask", socket, line] => ask(Path::new(socket), line),
        _ => {
            eprintln!("usage: peer hold|abandon|attach CONTROL, peer send SOCKET, peer ask SOCKET LINE");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {}: {error}", error.raw_os_error().unwrap_or(0));
            ExitCode::FAILURE
        }
    }
}

fn attach(control: &Path) -> io::Result<Client> {
    let client = Client::try_attach(control, Version::V3, None)?;
    println!("attached {}", client.switch_path().display());
    Ok(client)
}

fn hold(control: &Path, with_helper: bool) -> io::Result<()> {
    let client = Client::try_attach(control, Version::V3, None)?;
    if with_helper {
        for fd in [client.control().as_fd(), client.data().as_fd()] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // Like the helper processes of a UML kernel, it outlives the one that is killed.
        let mut helper = Command::new("sleep");
        let helper = helper
            .arg("600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        println!("{}", helper.id());
    }
    println!("attached {}", client.switch_path().display());
    io::stdout().flush()?;
    client.data().set_read_timeout(None)?;
    std::thread::spawn(move || {
        let mut bytes = vec![0; 70_000];
        while client.data().recv(&mut bytes).is_ok() {}
    });
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn send(socket: &Path) -> io::Result<()> {
    let (own, _) = data_socket()?;
    own.send_to_addr(
        &frame(BROADCAST, mac(0x66), 60, 666),
        &SocketAddr::from_pathname(socket)?,
    )?;
    println!("sent");
    Ok(())
}

fn ask(socket: &Path, line: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{line}")?;
    let mut reply = String::new();
    if BufReader::new(stream).read_line(&mut reply)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    print!("{reply}");
    Ok(())
}

//! A client of switchd's control socket, and the one who starts switchd when it is needed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use proto::DomainName;
use proto::ctl::{self, DomainRow, DomainSpec, PortRow, PortSpec, Reply, Request};
use proto::uplink::UplinkSpec;

use crate::dirs::Dirs;
use crate::stage::Stage;
use crate::transport::Reach;

/// Why switchd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The program is nowhere.
    #[error("cannot find the program switchd beside vstart or in PATH\nhint: install Hubbub as a whole")]
    NoProgram,
    /// It was started and does not answer.
    #[error("switchd was started but does not answer on {socket}\nhint: {log} may say why",
            socket = .0.display(), log = .1.display())]
    NoAnswer(PathBuf, PathBuf),
    /// The connection failed.
    #[error("cannot talk to switchd on {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// It could not be started.
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// It said no.
    #[error("switchd refuses: {0}")]
    Refused(#[source] ctl::Error),
    /// It said something else.
    #[error("switchd answers what cannot be understood: {0}")]
    Answer(String),
}

type Result<T> = std::result::Result<T, SwitchError>;

/// A connection to switchd.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a running switchd.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(dirs: &Dirs) -> Result<Self> {
        let socket = dirs.switch_socket();
        let stream = UnixStream::connect(&socket)
            .and_then(|stream| {
                stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
                stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
                Ok(stream)
            })
            .map_err(|error| SwitchError::Io(socket.clone(), error))?;
        Ok(Self {
            socket,
            stream: BufReader::new(stream),
        })
    }

    /// Connects to switchd, starting it if it does not run.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    pub fn connect_or_start(dirs: &Dirs) -> Result<Self> {
        if let Some(client) = Self::connect_living(dirs)? {
            return Ok(client);
        }
        let program = program("switchd").ok_or(SwitchError::NoProgram)?;
        start(&program, dirs).map_err(|error| SwitchError::Start(program, error))?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(client) = Self::connect_living(dirs)? {
                return Ok(client);
            }
            if Instant::now() >= deadline {
                return Err(SwitchError::NoAnswer(dirs.switch_socket(), log_path(dirs)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the connection fails or switchd refuses.
    pub fn request(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_string(request).expect("a request has only text keys");
        line.push('\n');
        self.answer_to(&line)
    }

    fn answer_to(&mut self, line: &str) -> Result<Reply> {
        let answer = self
            .exchange(line)
            .map_err(|error| SwitchError::Io(self.socket.clone(), error))?;
        match serde_json::from_str(&answer) {
            Ok(Reply::Error(error)) => Err(SwitchError::Refused(error)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(SwitchError::Answer(answer.trim_end().to_owned())),
        }
    }

    /// Makes sure a domain exists for as long as this connection is open.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn hold(&mut self, domain: &DomainName) -> Result<DomainRow> {
        match self.request(&hold_request(domain))? {
            Reply::Domain(row) => Ok(row),
            other => Err(SwitchError::Answer(format!("{other:?}"))),
        }
    }

    /// Makes sure a tap is a port of a domain. It stays one until the device goes.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn attach_tap(&mut self, domain: &DomainName, device: &str) -> Result<()> {
        let ports = self.ports(&Request::PortLs {
            domain: Some(domain.clone()),
        })?;
        if ports.iter().any(|port| port.kind == "tap" && port.name == device) {
            return Ok(());
        }
        let port = PortSpec::Tap {
            interface: device.to_owned(),
        };
        self.ports(&Request::PortAdd {
            domain: domain.clone(),
            port: port.into(),
        })
        .map(drop)
    }

    /// Makes an open tap a port of a domain. It stays one until the device goes.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn attach_open_tap(&mut self, domain: &DomainName, name: &str, tap: impl AsFd) -> Result<()> {
        let spec = PortSpec::TapFd {
            name: name.to_owned(),
        };
        self.hand_over(domain, spec, tap)
    }

    /// Makes a connected socket a port of a domain. It stays one until the other end is closed, or somebody ends it.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn attach_socket(&mut self, domain: &DomainName, name: &str, socket: impl AsFd) -> Result<()> {
        let spec = PortSpec::Fd {
            name: name.to_owned(),
        };
        self.hand_over(domain, spec, socket)
    }

    /// Attaches what needs a descriptor.
    fn hand_over(&mut self, domain: &DomainName, spec: PortSpec, fd: impl AsFd) -> Result<()> {
        let request = Request::PortAdd {
            domain: domain.clone(),
            port: spec.into(),
        };
        let line = serde_json::to_string(&request).expect("a request has only text keys");
        let stream = self.stream.get_ref();
        let sent = netio::unix::send_with_fd(stream.as_fd(), line.as_bytes(), fd.as_fd())
            .map_err(|error| SwitchError::Io(self.socket.clone(), error))?;
        self.answer_to(&format!("{}\n", &line[sent..])).map(drop)
    }

    /// The ports of all domains.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn all_ports(&mut self) -> Result<Vec<PortRow>> {
        self.ports(&Request::PortLs { domain: None })
    }

    /// Makes sure a domain leads to the Internet. An uplink that is there stays as it is.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn attach_uplink(&mut self, domain: &DomainName) -> Result<()> {
        match self.ports(&uplink_request(domain)) {
            Err(SwitchError::Refused(error)) if error.code == ctl::ErrorCode::Exists => Ok(()),
            result => result.map(drop),
        }
    }

    fn ports(&mut self, request: &Request) -> Result<Vec<PortRow>> {
        match self.request(request)? {
            Reply::Ports(rows) => Ok(rows),
            other => Err(SwitchError::Answer(format!("{other:?}"))),
        }
    }

    /// The bare connection, to be kept open.
    pub fn into_stream(self) -> UnixStream {
        self.stream.into_inner()
    }

    /// Connects to a switchd that answers; `None` if there is none, or one that is just about to end.
    fn connect_living(dirs: &Dirs) -> Result<Option<Self>> {
        let nobody = |error: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
            matches!(
                error.kind(),
                NotFound | ConnectionRefused | BrokenPipe | ConnectionReset | UnexpectedEof
            )
        };
        let result =
            Self::connect(dirs).and_then(|mut client| client.request(&Request::Hello).map(|_| client));
        match result {
            Ok(client) => Ok(Some(client)),
            Err(SwitchError::Io(_, error)) if nobody(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn exchange(&mut self, line: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        let longest = u64::try_from(ctl::LONGEST_LINE).unwrap_or(u64::MAX);
        self.stream.by_ref().take(longest + 1).read_line(&mut answer)?;
        if !answer.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }
}

/// What [`Client::hold`] asks.
pub fn hold_request(domain: &DomainName) -> Request {
    Request::DomainHold(DomainSpec::new(domain.clone()))
}

/// Where guests will attach to a domain that does not exist yet.
pub fn expected_reach(dirs: &Dirs, user: &str, domain: &DomainName) -> Reach {
    let socket = |(kind, suffix): (&str, &str)| {
        let path = dirs.hubs.join(format!("vhub_{user}_{domain}.{suffix}"));
        (kind.to_owned(), path.display().to_string())
    };
    Reach {
        sockets: [("uml", "cnct"), ("bess", "bess"), ("vde", "vde")]
            .map(socket)
            .into(),
        mtu: DomainSpec::new(domain.clone()).mtu,
    }
}

/// What [`Client::attach_uplink`] asks.
pub fn uplink_request(domain: &DomainName) -> Request {
    Request::PortAdd {
        domain: domain.clone(),
        port: PortSpec::Uplink(UplinkSpec::default()).into(),
    }
}

/// The arguments switchd is started with.
pub fn start_args(dirs: &Dirs) -> Vec<String> {
    [
        "run",
        "--dir",
        &dirs.hubs.display().to_string(),
        "--idle-exit",
        "5",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A program of ours: beside this one if it is there, or in PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|path| path.is_file()).or_else(|| in_path(name))
}

/// A file of ours that people do not run: beside this program, or where it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let bin = std::env::current_exe().ok()?;
    let bin = bin.parent()?;
    let places = [bin.join(name), bin.join("../lib/hubbub").join(name)];
    let mut paths = places.iter().filter_map(|place| place.canonicalize().ok());
    paths.find(|path| path.is_file())
}

/// The first executable file of that name in PATH.
pub fn in_path(name: &str) -> Option<PathBuf> {
    use nix::unistd::{AccessFlags, access};
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file() && access(path, AccessFlags::X_OK).is_ok())
}

/// Starts switchd in a session of its own. That somebody else starts it at the same time is no error: the second
/// one ends by itself.
fn start(program: &Path, dirs: &Dirs) -> io::Result<()> {
    crate::registry::make_private_dir(&dirs.hubs).map_err(io::Error::other)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_path(dirs))?;
    let stage = Stage {
        session: true,
        ..Stage::default()
    };
    let mut child = stage
        .command(program)
        .args(start_args(dirs))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // Reaped in the background: it is ours only if it ends before we do.
    std::thread::spawn(move || child.wait());
    Ok(())
}

fn log_path(dirs: &Dirs) -> PathBuf {
    dirs.hubs.join("switchd.log")
}

/// Starting the program of an uplink takes the longest, on a busy machine.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
const START_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn dirs(path: &Path) -> Dirs {
        Dirs {
            hubs: path.into(),
            mconsole: path.into(),
            machines: path.into(),
        }
    }

    #[test]
    fn nobody_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Client::connect(&dirs(dir.path())),
            Err(SwitchError::Io(..))
        ));
        assert!(Client::connect_living(&dirs(dir.path())).unwrap().is_none());
        drop(UnixListener::bind(dir.path().join("switchd.sock")).unwrap());
        assert!(Client::connect_living(&dirs(dir.path())).unwrap().is_none());
    }

    #[test]
    fn refusals_and_nonsense_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("switchd.sock")).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            for answer in [
                "{\"error\":{\"code\":\"denied\",\"message\":\"no\"}}\n",
                "\"done\"\n",
                "hm\n",
            ] {
                stream.read_line(&mut String::new()).unwrap();
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut client = Client::connect(&dirs(dir.path())).unwrap();
        assert!(matches!(
            client.request(&Request::Hello),
            Err(SwitchError::Refused(_))
        ));
        assert!(matches!(
            client.hold(&"A".parse().unwrap()),
            Err(SwitchError::Answer(_))
        ));
        assert!(matches!(
            client.request(&Request::Hello),
            Err(SwitchError::Answer(_))
        ));
        server.join().unwrap();
        assert!(matches!(
            client.request(&Request::Hello),
            Err(SwitchError::Io(..))
        ));
    }
}

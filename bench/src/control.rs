//! The control socket of switchd, from the client's side.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use proto::ctl::{self, Reply, Request};

/// How long the daemon may take for one request.
const DEADLINE: Duration = Duration::from_secs(30);

/// A connection to `switchd.sock`.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection failed.
    #[error("cannot talk to switchd")]
    Io(#[from] io::Error),
    /// The line is not what both sides agreed on.
    #[error("cannot read the reply of switchd")]
    Json(#[from] serde_json::Error),
    /// switchd refused.
    #[error("switchd: {0}")]
    Refused(#[from] ctl::Error),
    /// The reply is one to another request.
    #[error("switchd gave no domain in its reply")]
    Unexpected,
}

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// When the connection fails or the daemon refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        line.clear();
        self.stream.read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Adds a domain and returns the control socket of its uml ports.
    ///
    /// # Errors
    /// As for [`Control::ask`].
    pub fn add_domain(&mut self, spec: ctl::DomainSpec) -> Result<String, ControlError> {
        match self.ask(&Request::DomainAdd(spec))? {
            Reply::Domain(mut row) => row.sockets.remove("uml").ok_or(ControlError::Unexpected),
            _ => Err(ControlError::Unexpected),
        }
    }
}

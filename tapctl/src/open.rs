//! `tapctl open`: a packet socket on an interface of the host, handed over on standard output.
//!
//! Whoever holds it reads what passes at that interface and at no other (a filter that cannot be changed sees to it), but
//! may send anything, and at any interface: the kernel ties sockets no further. So it is root's to give, to himself, and
//! to those whom [`crate::interfaces`] lists. Nothing of the host is changed but, with `--promisc`, the interface's mode
//! for as long as somebody holds the socket.

use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use fabric::Instruction;
use netio::packet::{self, Options};
use netio::tap::IfName;

use crate::cli::Open;
use crate::interfaces::{self, ListError};
use crate::privilege::{Caller, PrivilegeError};

/// Why nothing was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot open {0}: root has not given it to {1}")]
    NotGiven(IfName, String),
    #[error("cannot open {0}: there is no such interface")]
    Missing(IfName),
    #[error("cannot open {0}")]
    Socket(IfName, #[source] io::Error),
    #[error("cannot hand {0} over: standard output is no Unix socket")]
    Output(IfName, #[source] io::Error),
    #[error(transparent)]
    List(#[from] ListError),
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
}

impl OpenError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotGiven(name, user) => Some(format!(
                "root can, by a line '{name} {user}' in {}",
                interfaces::FILE
            )),
            Self::List(error) => error.hint(),
            Self::Output(..) => Some("this is for 'switchd port add', which runs it".to_owned()),
            _ => None,
        }
    }
}

/// Opens the socket and sends it.
pub(crate) fn run(arguments: &Open) -> Result<(), OpenError> {
    let name = &arguments.interface;
    let caller = Caller::find()?;
    if !caller.is_root && !interfaces::List::read()?.allows(name.as_str(), &caller.user) {
        return Err(OpenError::NotGiven(name.clone(), caller.user.name));
    }
    let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(|_| OpenError::Missing(name.clone()))?;
    let options = Options {
        promiscuous: arguments.promisc,
        outgoing: arguments.outgoing,
        filter: arguments.bytecode.clone().unwrap_or_default().0,
    };
    let socket = packet::open(index, &options).map_err(|error| OpenError::Socket(name.clone(), error))?;
    let stdout = io::stdout();
    netio::unix::send_with_fd(stdout.as_fd(), b"\n", socket.as_fd())
        .map_err(|error| OpenError::Output(name.clone(), error))?;
    Ok(())
}

/// A program as iptables (`-m bpf --bytecode`) and `tcpdump -ddd` write it. What is in it is the kernel's to check.
#[derive(Clone, Default, Debug)]
pub(crate) struct Bytecode(Vec<Instruction>);

impl FromStr for Bytecode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let length = parts.next().and_then(|length| length.parse().ok());
        let program: Option<Vec<_>> = parts.map(instruction).collect();
        match program {
            // Room is needed for what ties it to the interface.
            Some(program) if length == Some(program.len()) && (1..=4000).contains(&program.len()) => {
                Ok(Self(program))
            }
            _ => Err("it is no program: 'LENGTH,CODE JT JF K,...', of 1 to 4000 instructions"),
        }
    }
}

fn instruction(text: &str) -> Option<Instruction> {
    let mut words = text.split(' ');
    let instruction = Instruction {
        code: words.next()?.parse().ok()?,
        jt: words.next()?.parse().ok()?,
        jf: words.next()?.parse().ok()?,
        k: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read() {
        let Bytecode(program) = "2,48 0 1 4294963248,6 0 0 65535".parse().unwrap();
        let words: Vec<_> = program.iter().map(|op| (op.code, op.jt, op.jf, op.k)).collect();
        assert_eq!(words, [(48, 0, 1, 4_294_963_248), (6, 0, 0, 65_535)]);
        for wrong in [
            "",
            "0",
            "1",
            "2,6 0 0 1",
            "1,6 0 0",
            "1,6 0 0 1 1",
            "1,6 0 256 1",
            "1,6 0 0 x",
            "x,6 0 0 1",
        ] {
            assert!(wrong.parse::<Bytecode>().is_err(), "{wrong:?}");
        }
    }
}

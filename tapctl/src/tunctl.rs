//! `tunctl`: the personality of the tool of uml-utilities, with its options and its output.
//!
//! Differences: a name the kernel would cut is refused; `-f` takes the kernel's own device node alone; a user who is
//! not root works on his own taps only; `-d` takes away all that tapctl did for the device.

use std::io;
use std::process::ExitCode;

use netio::tap::{Tap as TapDevice, TapFlags};

use crate::apply;
use crate::commands::{self, Session};
use crate::firewall::Backend;
use crate::host::Kind;
use crate::journal::{Origin, Scope, Tap};
use crate::name::{Device, PREFIX};
use crate::plan::{Plan, Refusal};
use crate::privilege::{self, User};
use crate::step::Step;
use crate::{Failure, chain};

/// tunctl's command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Request {
    brief: bool,
    owner: Option<String>,
    group: Option<String>,
    name: Option<String>,
    delete: Option<String>,
}

/// Why a command line is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum Usage {
    #[error("invalid option -- '{0}'")]
    Option(char),
    #[error("option requires an argument -- '{0}'")]
    Argument(char),
    #[error("unexpected word '{0}'")]
    Word(String),
    #[error("only /dev/net/tun can be opened, not '{0}'")]
    Clone(String),
    #[error("'{0}' is neither a username nor a numeric uid.")]
    User(String),
    #[error("'{0}' is neither a groupname nor a numeric group.")]
    Group(String),
}

const USAGE: &str = "\
Create: tunctl [-b] [-p] [-u owner] [-g group] [-t device-name] [-f tun-clone-device]
Delete: tunctl -d device-name [-f tun-clone-device]

The tun clone device is /dev/net/tun, and no other is opened.

-b prints the device name alone; -p asks for a tap, which is all there is";

/// Runs as tunctl.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    match parse(arguments) {
        Err(usage) => {
            eprintln!("tunctl: {usage}\n{USAGE}");
            ExitCode::FAILURE
        }
        Ok(request) => match run(&request) {
            Ok(line) => {
                println!("{line}");
                ExitCode::SUCCESS
            }
            Err(Problem::Usage(usage)) => {
                eprintln!("{usage}\n{USAGE}");
                ExitCode::FAILURE
            }
            Err(Problem::Open(error)) => {
                // As perror(3) has it: the kernel's words, without the number.
                let text = nix::Error::from_raw(error.raw_os_error().unwrap_or_default()).desc();
                eprintln!("TUNSETIFF: {text}");
                ExitCode::FAILURE
            }
            Err(Problem::Failure(failure)) => {
                eprintln!("tunctl: {}", chain(&failure));
                ExitCode::FAILURE
            }
        },
    }
}

#[derive(Debug)]
enum Problem {
    Usage(Usage),
    Open(io::Error),
    Failure(Failure),
}

impl<T: Into<Failure>> From<T> for Problem {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

/// Reads the words as getopt(3) does: letters may share a dash, arguments may follow directly.
fn parse(arguments: Vec<String>) -> Result<Request, Usage> {
    let mut request = Request::default();
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            return Err(Usage::Word(word));
        };
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let slot = match letter {
                'b' => {
                    request.brief = true;
                    continue;
                }
                'p' => continue,
                'u' | 'g' | 't' | 'd' | 'f' => letter,
                other => return Err(Usage::Option(other)),
            };
            let attached = rest.as_str().to_owned();
            let value = if attached.is_empty() {
                words.next()
            } else {
                Some(attached)
            };
            let value = value.ok_or(Usage::Argument(slot))?;
            match slot {
                'u' => request.owner = Some(value),
                'g' => request.group = Some(value),
                't' => request.name = Some(value),
                'd' => request.delete = Some(value),
                _ if value == "/dev/net/tun" => {}
                _ => return Err(Usage::Clone(value)),
            }
            break;
        }
    }
    Ok(request)
}

fn run(request: &Request) -> Result<String, Problem> {
    privilege::settle()?;
    let session = Session::begin()?;
    if !privilege::can_change_network() {
        return Err(Problem::Open(io::Error::from(nix::Error::EPERM)));
    }
    match &request.delete {
        Some(name) => {
            delete(&session, &device(name)?)?;
            Ok(format!("Set '{name}' nonpersistent"))
        }
        None => create(&session, request),
    }
}

fn create(session: &Session, request: &Request) -> Result<String, Problem> {
    let owner = match &request.owner {
        Some(name) => User::find(name).ok_or_else(|| Problem::Usage(Usage::User(name.clone())))?,
        None => session.caller.user.clone(),
    };
    let group = match &request.group {
        Some(name) => Some(group(name).ok_or_else(|| Problem::Usage(Usage::Group(name.clone())))?),
        None => None,
    };
    if !session.caller.is_root && owner.uid != session.caller.user.uid {
        return Err(Refusal::RootOnly("give a tap to another user").into());
    }
    let mut journal = commands::open()?;
    let host = session.kernel.look()?;
    let device = match &request.name {
        Some(name) => device(name)?,
        None => (0..)
            .filter_map(|number: u32| format!("tap{number}").parse::<Device>().ok())
            .find(|device| host.link(device).is_none())
            .ok_or_else(|| Refusal::NoName("tap".to_owned()))?,
    };
    let said = match request.group {
        _ if request.brief => device.to_string(),
        Some(_) => format!(
            "Set '{device}' persistent and owned by uid {} gid {}",
            owner.uid,
            group.unwrap_or_default()
        ),
        None => format!("Set '{device}' persistent and owned by uid {}", owner.uid),
    };
    match host.link(&device).map(|link| link.kind) {
        None => {
            if !session.caller.is_root && !device.as_str().starts_with("tap") {
                return Err(Refusal::RootOnly("make a tap whose name does not begin with 'tap'").into());
            }
            if device.as_str().starts_with(PREFIX) && !session.caller.is_root {
                return Err(Refusal::RootOnly("make the tap of a domain by hand").into());
            }
            let plan = plan(&device, &owner, group);
            apply::run(&plan, &mut journal, &session.kernel)?;
        }
        // Already there: tunctl then changes whose it is.
        Some(Kind::Tap(now)) if session.caller.is_root || now == Some(session.caller.user.uid) => {
            let (fd, _) = TapDevice::open(device.if_name(), TapFlags::default()).map_err(Problem::Open)?;
            let set = |result: io::Result<()>| result.map_err(Problem::Open);
            set(TapDevice::set_owner(&fd, owner.uid))?;
            group.map_or(Ok(()), |gid| set(TapDevice::set_group(&fd, gid)))?;
            set(TapDevice::set_persist(&fd, true))?;
        }
        Some(Kind::Tap(_)) => return Err(Problem::Open(io::Error::from(nix::Error::EPERM))),
        Some(_) => return Err(Problem::Open(io::Error::from(nix::Error::EINVAL))),
    }
    Ok(said)
}

fn delete(session: &Session, device: &Device) -> Result<(), Problem> {
    let mut journal = commands::open()?;
    let host = session.kernel.look()?;
    let owner = match host.link(device).map(|link| link.kind) {
        Some(Kind::Tap(owner)) => owner,
        Some(_) => return Err(Problem::Open(io::Error::from(nix::Error::EINVAL))),
        // tunctl would make it and let it go again; the outcome is the same.
        None => {
            session.take_down(&known(&journal, device, session), &mut journal)?;
            return Ok(());
        }
    };
    if !session.caller.is_root && owner != Some(session.caller.user.uid) {
        return Err(Problem::Open(io::Error::from(nix::Error::EPERM)));
    }
    // A device in use cannot be opened, and so is not taken away.
    let (fd, _) = TapDevice::open(device.if_name(), TapFlags::default()).map_err(Problem::Open)?;
    if journal.record().tap(device).is_some() {
        drop(fd);
        session.take_down(&known(&journal, device, session), &mut journal)?;
    } else {
        TapDevice::set_persist(&fd, false).map_err(Problem::Open)?;
    }
    Ok(())
}

fn known(journal: &crate::journal::Journal, device: &Device, session: &Session) -> Vec<Device> {
    let yours = |tap: &&Tap| session.caller.is_root || tap.uid == session.caller.user.uid;
    journal
        .record()
        .tap(device)
        .filter(yours)
        .map(|tap| tap.device.clone())
        .into_iter()
        .collect()
}

fn plan(device: &Device, owner: &User, group: Option<u32>) -> Plan {
    let tap = Tap {
        device: device.clone(),
        user: owner.name.clone(),
        uid: owner.uid,
        domain: None,
        origin: Origin::Tunctl,
        address: None,
        address6: None,
        routes: Vec::new(),
        bridge: None,
        firewall: Backend::None,
        nat: false,
        forward4: false,
        forward6: false,
        allow_host: false,
        allow_taps: false,
        complete: false,
    };
    let step = Step::MakeTap {
        device: device.clone(),
        owner: Some(owner.uid),
        group,
    };
    Plan {
        tap,
        steps: vec![(Scope::Tap(device.clone()), step)],
        notes: Vec::new(),
    }
}

fn device(name: &str) -> Result<Device, Failure> {
    name.parse()
        .map_err(|error: crate::name::DeviceError| Failure::Misuse(error.to_string()))
}

fn group(name: &str) -> Option<u32> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Some(group.gid.as_raw()),
        _ => name.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_read_as_getopt_reads_them() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parse(words("")), Ok(Request::default()));
        assert_eq!(
            parse(words("-b -u alice -galice -t tap5 -p -f /dev/net/tun")),
            Ok(Request {
                brief: true,
                owner: some("alice"),
                group: some("alice"),
                name: some("tap5"),
                delete: None
            })
        );
        assert_eq!(
            parse(words("-bpttap7")),
            Ok(Request {
                brief: true,
                name: some("tap7"),
                ..Request::default()
            })
        );
        assert_eq!(
            parse(words("-d tap0")),
            Ok(Request {
                delete: some("tap0"),
                ..Request::default()
            })
        );
    }

    #[test]
    fn what_tunctl_does_not_know_is_told() {
        assert_eq!(parse(words("-x")), Err(Usage::Option('x')));
        assert_eq!(parse(words("-n")), Err(Usage::Option('n')));
        assert_eq!(parse(words("-d")), Err(Usage::Argument('d')));
        assert_eq!(parse(words("tap0")), Err(Usage::Word("tap0".to_owned())));
        assert_eq!(
            parse(words("-f /tmp/tun")),
            Err(Usage::Clone("/tmp/tun".to_owned()))
        );
    }
}

//! From a machine to the command line of its kernel. Pure.
//!
//! The order is Netkit's. Words the guest reads are quoted *inside* the argument, because the kernel joins its
//! arguments by blanks; double quotes cannot be part of a value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proto::DomainName;

use crate::dirs::Dirs;
use crate::machine::{Attachment, Console, Interface, Machine, Root};
use crate::transport::{Reach, Transport};

/// Why a machine cannot be put into words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArgsError {
    /// A double quote cannot be passed.
    #[error("{0} '{1}' contains a double quote, which a kernel command line cannot hold")]
    Quote(&'static str, String),
    /// A comma would separate two files.
    #[error(
        "disk '{0}' contains a comma, which a kernel command line cannot hold in the name of a disk\n\
         hint: rename it"
    )]
    Comma(String),
    /// A path that is no text.
    #[error("{0} {1:?} is not valid UTF-8, which a kernel command line must be")]
    Encoding(&'static str, PathBuf),
    /// The kernel's buffer is too small.
    #[error(
        "the kernel's command line would have {0} bytes, {LONGEST_COMMAND_LINE} are possible\n\
         hint: put the command of --exec into a script"
    )]
    TooLong(usize),
    /// Nobody listens for an interface.
    #[error("there is no {1} socket for domain {0}")]
    NoSocket(DomainName, Transport),
}

/// COMMAND_LINE_SIZE of x86 Linux, less the final NUL and what the kernel itself adds (` root=98:0 console=tty0`).
pub const LONGEST_COMMAND_LINE: usize = 2047 - 23;

/// The arguments of the kernel, its own name not included.
///
/// `domains` says where each domain is reached.
///
/// # Errors
/// When a value cannot be passed.
pub fn kernel_args(
    machine: &Machine,
    dirs: &Dirs,
    domains: &BTreeMap<DomainName, Reach>,
) -> Result<Vec<String>, ArgsError> {
    let name = &machine.name;
    let mut args = vec![
        format!("umid={name}"),
        format!("mem={}M", machine.memory_mb + machine.memory_skew_mb),
    ];
    match &machine.root {
        Root::Host { init } => args.extend(host_root(init)?),
        Root::Disk { model, changes } => {
            let files = changes.iter().chain([model]);
            args.push(device("ubd0", files)?);
            match &machine.agent {
                // Ours goes first, and makes way for the one in the file system.
                Some(init) => {
                    args.extend(host_root(init)?);
                    args.push("hubbub.root=/dev/ubda".into());
                }
                None => args.push("root=98:0".into()),
            }
        }
    }
    for (number, disk) in machine.disks.iter().enumerate() {
        let name = format!("ubd{}{}", number + 1, if disk.writable { "" } else { "r" });
        args.push(device(&name, [&disk.file])?);
    }
    args.push(dirs.uml_dir_word());
    args.push(format!("mconsole=notify:{}", dirs.notify_socket(name).display()));
    for interface in &machine.interfaces {
        match &interface.attachment {
            Attachment::Domain(_) => {}
            Attachment::Tap { host, guest } => {
                args.push(format!("autoconf_{}={guest}", name_in_guest(machine, interface)));
                // There is one default route, whatever the number of interfaces that lead to the host.
                if !args.iter().any(|arg| arg.starts_with("def_route=")) {
                    args.push(format!("def_route={host}"));
                }
            }
            Attachment::Nat => args.push(format!("dhcp={}", name_in_guest(machine, interface))),
        }
        args.push(interface_word(machine, interface, domains)?);
        let mac = interface.mac(&machine.name);
        args.extend(interface.transport.address_word(interface.number, mac));
    }
    if !machine.verbose {
        args.push("quiet".into());
    }
    // Consoles nobody asked for would each open a window: that is this kernel's default.
    args.extend(["con=null".into(), "ssl=null".into()]);
    for (number, console) in machine.consoles.iter().enumerate() {
        args.push(format!("con{number}={}", channel(number, *console)));
    }
    if machine.has_agent() {
        let number = agent_descriptor(machine);
        args.push(format!("ssl0=fd:{number},fd:{number}"));
    }
    args.push(format!("hostname={name}"));
    for (key, value) in [("modules", &machine.modules), ("hosthome", &machine.hosthome)] {
        if let Some(path) = value {
            args.push(quoted(key, text(key, path)?)?);
        }
    }
    for mount in &machine.mounts {
        let pair = format!(
            "{},{}",
            text("mount", &mount.source)?,
            text("mount", &mount.target)?
        );
        args.push(quoted("mount", &pair)?);
    }
    for (key, value) in [("hostlab", &machine.hostlab), ("hostwd", &machine.hostwd)] {
        if let Some(path) = value {
            args.push(quoted(key, text(key, path)?)?);
        }
    }
    match (&machine.exec, exec_file(machine, dirs)) {
        (_, Some((path, _))) => args.push(quoted("hubbub.exec", text("the command file", &path)?)?),
        (Some(command), None) => args.push(quoted("exec", command)?),
        (None, None) => {}
    }
    if matches!(machine.root, Root::Host { .. }) {
        args.push(format!("TERM={}", machine.term));
    }
    args.push("SELINUX_INIT=0".into());
    args.extend(machine.append.iter().cloned());

    let bytes = args.iter().map(|arg| arg.len() + 1).sum();
    if bytes > LONGEST_COMMAND_LINE {
        return Err(ArgsError::TooLong(bytes));
    }
    Ok(args)
}

/// The word that gives the guest an interface, on the command line or, with `config` before it, at the management
/// console.
///
/// # Errors
/// When nobody listens for it.
pub fn interface_word(
    machine: &Machine,
    interface: &Interface,
    domains: &BTreeMap<DomainName, Reach>,
) -> Result<String, ArgsError> {
    let (domain, transport) = (interface.attachment.domain(), interface.transport);
    let mac = interface.mac(&machine.name);
    domains
        .get(&domain)
        .and_then(|reach| transport.word(interface.number, mac, reach, descriptor(machine, interface)))
        .ok_or(ArgsError::NoSocket(domain, transport))
}

/// What the guest knows an interface as: with us in the guest every one is ethN, in other file systems it is what the
/// kernel calls it.
pub fn name_in_guest(machine: &Machine, interface: &Interface) -> String {
    if machine.has_agent() {
        interface.name()
    } else {
        interface.transport.device(interface.number)
    }
}

/// The host's files as root, and our program as process 1.
fn host_root(init: &Path) -> Result<Vec<String>, ArgsError> {
    let mut args = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        .map(str::to_owned)
        .to_vec();
    args.push(word("init", "the guest's init", text("the guest's init", init)?)?);
    Ok(args)
}

/// The file a command is handed over in when the command line cannot hold it, and its text: our own guest init
/// reads it, other file systems take the command from the command line or not at all.
pub fn exec_file<'a>(machine: &'a Machine, dirs: &Dirs) -> Option<(PathBuf, &'a str)> {
    let command = machine.exec.as_deref()?;
    let unspeakable = command.len() > LONGEST_EXEC_WORD || command.contains(['"', '\n']);
    let ours = matches!(machine.root, Root::Host { .. });
    (ours && unspeakable).then(|| (dirs.machine(&machine.name).join("exec"), command))
}

/// The kernel's descriptor of the line to the agent in the guest: the one behind those of the consoles.
pub fn agent_descriptor(machine: &Machine) -> u32 {
    if machine.consoles[1] == Console::None {
        3
    } else {
        4
    }
}

/// The kernel's descriptor of an interface that has one: behind those of the consoles and the agent's line, in the
/// order of the interfaces.
fn descriptor(machine: &Machine, interface: &Interface) -> Option<u32> {
    let number = sockets(machine).position(|other| other.number == interface.number)?;
    let first = agent_descriptor(machine) + u32::from(machine.has_agent());
    Some(first + u32::try_from(number).ok()?)
}

/// Interfaces whose sockets the kernel is started with, in the order of their descriptors.
pub fn sockets(machine: &Machine) -> impl Iterator<Item = &Interface> {
    machine
        .interfaces
        .iter()
        .filter(|interface| interface.transport == Transport::Fd)
}

/// An argument as a POSIX shell reads it.
pub fn shell_quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%^".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
}

/// Longest command that goes on the command line itself; in bytes.
const LONGEST_EXEC_WORD: usize = 512;

/// The first console is the kernel's standard input and output, the second the next descriptor: the supervisor
/// holds the other ends and shows them where the user wants.
const fn channel(number: usize, console: Console) -> &'static str {
    match (console, number) {
        (Console::None, _) => "null",
        (_, 0) => "fd:0,fd:1",
        (_, _) => "fd:3,fd:3",
    }
}

/// A block device and its files, of which the kernel separates two by a comma.
fn device<'a>(name: &str, files: impl IntoIterator<Item = &'a PathBuf>) -> Result<String, ArgsError> {
    let mut list = Vec::new();
    for file in files {
        let file = text("disk", file)?;
        if file.contains(',') {
            return Err(ArgsError::Comma(file.to_owned()));
        }
        list.push(file);
    }
    word(name, "disk", &list.join(","))
}

fn text<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, ArgsError> {
    path.to_str()
        .ok_or_else(|| ArgsError::Encoding(what, path.to_owned()))
}

fn quoted(key: &'static str, value: &str) -> Result<String, ArgsError> {
    if value.contains('"') {
        return Err(ArgsError::Quote(key, value.to_owned()));
    }
    Ok(format!("\"{key}={value}\""))
}

/// A word the kernel itself reads: quoted only if it must be.
fn word(key: &str, what: &'static str, value: &str) -> Result<String, ArgsError> {
    if value.contains('"') {
        return Err(ArgsError::Quote(what, value.to_owned()));
    }
    Ok(if value.contains(char::is_whitespace) {
        format!("\"{key}={value}\"")
    } else {
        format!("{key}={value}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Disk, Mount};

    fn pc1() -> Machine {
        let init = "/usr/lib/hubbub/hubbub-init".into();
        Machine::new(
            "pc1".parse().unwrap(),
            "/usr/bin/linux.uml".into(),
            Root::Host { init },
        )
    }

    fn dirs() -> Dirs {
        Dirs {
            hubs: "/h/hubs".into(),
            mconsole: "/h/mconsole".into(),
            machines: "/h/machines".into(),
        }
    }

    fn line(machine: &Machine) -> String {
        let domains = reach("A", "/h/hubs/vhub_foo_A");
        kernel_args(machine, &dirs(), &domains).unwrap().join(" ")
    }

    fn reach(domain: &str, stem: &str) -> BTreeMap<DomainName, Reach> {
        let sockets = [("uml", "cnct"), ("bess", "bess")];
        let sockets = sockets.map(|(kind, suffix)| (kind.to_owned(), format!("{stem}.{suffix}")));
        let reach = Reach {
            sockets: sockets.into(),
            mtu: 1500,
        };
        BTreeMap::from([(domain.parse().unwrap(), reach)])
    }

    #[test]
    fn a_plain_machine() {
        assert_eq!(
            line(&pc1()),
            "umid=pc1 mem=132M root=/dev/root rootfstype=hostfs rootflags=/ ro init=/usr/lib/hubbub/hubbub-init \
             uml_dir=/h/mconsole/ mconsole=notify:/h/machines/pc1/notify.sock quiet con=null ssl=null \
             con0=fd:0,fd:1 con1=null ssl0=fd:3,fd:3 hostname=pc1 TERM=xterm SELINUX_INIT=0"
        );
    }

    #[test]
    fn everything_at_once() {
        let machine = Machine {
            interfaces: vec!["0=A".parse().unwrap(), "3=A".parse().unwrap()],
            consoles: [Console::None, Console::Xterm],
            hosthome: Some("/home/foo".into()),
            hostlab: Some("/home/foo/lab".into()),
            hostwd: Some("/tmp".into()),
            mounts: vec![Mount {
                source: "/a".into(),
                target: "/b".into(),
            }],
            exec: Some("echo 'x  y'".into()),
            append: vec!["foo=1".into(), "bar".into()],
            verbose: true,
            ..pc1()
        };
        assert_eq!(
            line(&machine),
            "umid=pc1 mem=132M root=/dev/root rootfstype=hostfs rootflags=/ ro init=/usr/lib/hubbub/hubbub-init \
             uml_dir=/h/mconsole/ mconsole=notify:/h/machines/pc1/notify.sock \
             eth0=daemon,6e:5f:98:37:0c:07,unix,/h/hubs/vhub_foo_A.cnct \
             eth3=daemon,MAC3,unix,/h/hubs/vhub_foo_A.cnct \
             con=null ssl=null con0=null con1=fd:3,fd:3 ssl0=fd:4,fd:4 hostname=pc1 \"hosthome=/home/foo\" \"mount=/a,/b\" \
             \"hostlab=/home/foo/lab\" \"hostwd=/tmp\" \"exec=echo 'x  y'\" TERM=xterm SELINUX_INIT=0 foo=1 bar"
                .replace("MAC3", &machine.interfaces[1].mac(&machine.name).to_string())
        );
    }

    #[test]
    fn a_machine_on_disks() {
        let on = |changes: Option<&str>, model: &str| Machine {
            root: Root::Disk {
                model: model.into(),
                changes: changes.map(Into::into),
            },
            modules: Some("/usr".into()),
            ..pc1()
        };
        let disks = [("/d/a", true), ("/d/b c", false)];
        let disks = disks
            .map(|(file, writable)| Disk {
                file: file.into(),
                writable,
            })
            .into();
        assert_eq!(
            line(&Machine {
                disks,
                ..on(Some("/x/pc1.disk"), "/fs/model")
            }),
            "umid=pc1 mem=132M ubd0=/x/pc1.disk,/fs/model root=98:0 ubd1=/d/a \"ubd2r=/d/b c\" \
             uml_dir=/h/mconsole/ mconsole=notify:/h/machines/pc1/notify.sock quiet con=null ssl=null \
             con0=fd:0,fd:1 con1=null hostname=pc1 \"modules=/usr\" SELINUX_INIT=0"
        );
        assert!(line(&on(None, "/fs/model")).contains(" ubd0=/fs/model root=98:0 "));
        let agent = Some("/i".into());
        let words = line(&Machine {
            agent,
            ..on(None, "/fs/model")
        });
        assert!(
            words.contains(
                " ubd0=/fs/model root=/dev/root rootfstype=hostfs rootflags=/ ro init=/i hubbub.root=/dev/ubda "
            ) && words.contains(" ssl0=fd:3,fd:3 "),
            "{words}"
        );
        let args = kernel_args(&on(None, "/fs/a,b"), &dirs(), &BTreeMap::new());
        assert_eq!(args, Err(ArgsError::Comma("/fs/a,b".into())));
    }

    #[test]
    fn a_command_that_does_not_fit_goes_into_a_file() {
        let machine = Machine {
            exec: Some("echo \"x\"".into()),
            ..pc1()
        };
        assert!(line(&machine).contains(" \"hubbub.exec=/h/machines/pc1/exec\" "));
        assert_eq!(
            exec_file(&machine, &dirs()),
            Some(("/h/machines/pc1/exec".into(), "echo \"x\""))
        );
        let machine = Machine {
            exec: Some("x".repeat(513)),
            ..pc1()
        };
        assert!(exec_file(&machine, &dirs()).is_some());
        assert_eq!(exec_file(&pc1(), &dirs()), None);
    }

    #[test]
    fn what_cannot_be_passed_is_told() {
        let args = |machine| kernel_args(&machine, &dirs(), &BTreeMap::new());
        let hostlab = Some("/a\"b".into());
        assert_eq!(
            args(Machine { hostlab, ..pc1() }),
            Err(ArgsError::Quote("hostlab", "/a\"b".into()))
        );
        let append = vec!["x".repeat(LONGEST_COMMAND_LINE)];
        assert!(matches!(
            args(Machine { append, ..pc1() }),
            Err(ArgsError::TooLong(_))
        ));
        let interfaces = vec!["0=B".parse().unwrap()];
        assert_eq!(
            args(Machine { interfaces, ..pc1() }),
            Err(ArgsError::NoSocket("B".parse().unwrap(), Transport::Daemon))
        );
        let interfaces = vec!["0=tap,10.0.0.1,10.0.0.2".parse().unwrap()];
        assert_eq!(
            args(Machine { interfaces, ..pc1() }),
            Err(ArgsError::NoSocket("tap".parse().unwrap(), Transport::Daemon))
        );
    }

    #[test]
    fn the_internet_is_configured_by_dhcp() {
        let machine = Machine {
            interfaces: vec!["1=nat".parse().unwrap()],
            ..pc1()
        };
        let args = kernel_args(&machine, &dirs(), &reach("nat", "/h/nat")).unwrap();
        assert!(args.contains(&"dhcp=eth1".to_owned()), "{args:?}");
    }

    #[test]
    fn taps_are_configured_and_there_is_one_default_route() {
        let interfaces =
            ["0=tap,10.0.0.1,10.0.0.2", "1=tap,10.0.0.1,10.0.0.3"].map(|text| text.parse().unwrap());
        let machine = Machine {
            interfaces: interfaces.to_vec(),
            ..pc1()
        };
        let args = kernel_args(&machine, &dirs(), &reach("tap", "/h/tap"))
            .unwrap()
            .join(" ");
        for word in [
            "autoconf_eth0=10.0.0.2 def_route=10.0.0.1 eth0=daemon,",
            "autoconf_eth1=10.0.0.3 eth1=daemon,",
        ] {
            assert!(args.contains(word), "{args}");
        }
        assert_eq!(args.matches(",unix,/h/tap.cnct").count(), 2);
    }

    #[test]
    fn interfaces_of_other_file_systems_are_called_what_the_kernel_calls_them() {
        let mut machine = Machine {
            interfaces: vec!["1=tap,10.0.0.1,10.0.0.2".parse().unwrap()],
            ..pc1()
        };
        machine.interfaces[0].transport = Transport::Bess;
        let args = |machine: &Machine| kernel_args(machine, &dirs(), &reach("tap", "/h/tap")).unwrap();
        let vector = " vec1:transport=bess,dst=/h/tap.bess,mac=";
        let ours = args(&machine).join(" ");
        assert!(
            ours.contains("autoconf_eth1=10.0.0.2 ") && ours.contains(vector),
            "{ours}"
        );
        machine.root = Root::Disk {
            model: "/fs/model".into(),
            changes: None,
        };
        let theirs = args(&machine).join(" ");
        assert!(
            theirs.contains("autoconf_vec1=10.0.0.2 ") && theirs.contains(vector),
            "{theirs}"
        );
    }

    #[test]
    fn shells_get_what_was_meant() {
        assert_eq!(shell_quoted("eth0=daemon,,,/a/b"), "eth0=daemon,,,/a/b");
        assert_eq!(shell_quoted("\"exec=echo 'a'\""), r#"'"exec=echo '\''a'\''"'"#);
        assert_eq!(shell_quoted(""), "''");
    }
}

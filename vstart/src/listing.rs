//! What `vlist` shows of a machine: from its record, or, of another user's, from the host's process list.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cpulock::CpuLock;
use crate::dirs::Dirs;
use crate::machine::{Console, Mount, Root};
use crate::name::MachineName;
use crate::processes::{Guarded, kernels, memory_kib, of_machine};
use crate::registry::{Record, Status, now};
use crate::transport::Transport;
use crate::users::name_of;
use crate::windows::{title, tmux_session};

/// A machine as `vlist --json` prints it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name, unique for its owner.
    pub name: MachineName,
    /// Its owner.
    pub user: String,
    /// How far it is; `running` if that cannot be seen.
    pub status: String,
    /// The kernel's main process.
    pub pid: Option<i32>,
    /// The process that looks after it.
    pub supervisor_pid: Option<i32>,
    /// When it was started, in seconds since 1970.
    pub started: Option<u64>,
    /// Seconds since then.
    pub uptime_s: Option<u64>,
    /// Memory of the guest, in MB.
    pub memory_mb: Option<u32>,
    /// The kernel.
    pub kernel: String,
    /// Its interfaces, by rising number.
    pub interfaces: Vec<Attached>,
    /// The kernel's command line.
    pub command: Vec<String>,
    /// What is shown of a machine that was asked for by name.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// An interface of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// Its name in the guest.
    pub name: String,
    /// The domain it is attached to.
    pub domain: String,
    /// Its address; empty if that cannot be seen.
    pub mac: String,
    /// How its frames get to the domain.
    #[serde(default)]
    pub transport: Transport,
    /// The socket of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// The rest of what is known of a machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Details {
    /// Memory of the host that all its processes take, in KiB.
    pub used_memory_kib: u64,
    /// The model file system; the host's own files if absent.
    pub model_fs: Option<PathBuf>,
    /// Where changes to it go.
    pub filesystem: Option<PathBuf>,
    /// Further disks.
    pub disks: Vec<PathBuf>,
    /// The processor of the host it may use.
    pub cpu: CpuLock,
    /// Where the kernel's modules are from.
    pub modules: Option<PathBuf>,
    /// What the guest sees of the host, beside its root.
    pub hosthome: Option<PathBuf>,
    /// The lab.
    pub hostlab: Option<PathBuf>,
    /// The lab's working directory.
    pub hostwd: Option<PathBuf>,
    /// Further directories of the host.
    pub mounts: Vec<Mount>,
    /// The command run while booting.
    pub exec: Option<String>,
    /// Where the consoles are shown.
    pub consoles: [String; 2],
    /// Further words for the kernel.
    pub append: Vec<String>,
    /// The kernel's management console.
    pub mconsole: PathBuf,
}

impl Row {
    /// A machine by its record; in detail if that is asked for.
    pub fn of(record: &Record, dirs: &Dirs, in_detail: bool) -> Self {
        let machine = &record.machine;
        let words: Vec<Word<'_>> = interface_words(&record.command).collect();
        let interfaces = machine.interfaces.iter().map(|interface| Attached {
            name: interface.name(),
            domain: interface.attachment.to_string(),
            mac: interface.mac(&machine.name).to_string(),
            transport: interface.transport,
            // One that was added while the machine ran is not on the command line.
            socket: words
                .iter()
                .find(|word| word.name == interface.name())
                .and_then(|word| word.socket.map(str::to_owned)),
        });
        Self {
            name: machine.name.clone(),
            user: name_of(nix::unistd::getuid().as_raw()),
            status: record.status.as_str().to_owned(),
            pid: record.kernel.map(|kernel| kernel.pid),
            supervisor_pid: Some(record.supervisor.pid),
            started: Some(record.started),
            uptime_s: Some(now().saturating_sub(record.started)),
            memory_mb: Some(machine.memory_mb),
            kernel: machine.kernel.display().to_string(),
            interfaces: interfaces.collect(),
            command: record.command.clone(),
            details: in_detail.then(|| Details::of(record, dirs)),
        }
    }

    /// A machine of a user whose records we may not read.
    pub fn seen(guarded: &Guarded) -> Self {
        let user = name_of(guarded.uid);
        let kernel = kernels(guarded.uid, &guarded.dirs)
            .into_iter()
            .find(|kernel| kernel.name == guarded.name);
        let words = kernel
            .as_ref()
            .map(|kernel| kernel.words.clone())
            .unwrap_or_default();
        let memory = words
            .iter()
            .find_map(|word| word.strip_prefix("mem=")?.strip_suffix('M')?.parse().ok());
        let interfaces = interface_words(&words).map(|word| Attached {
            domain: word
                .socket
                .and_then(|socket| domain_of(socket, &user))
                .unwrap_or_else(|| "?".into()),
            name: word.name,
            mac: word.mac.to_owned(),
            transport: word.transport,
            socket: word.socket.map(str::to_owned),
        });
        let interfaces = interfaces.collect();
        Self {
            name: guarded.name.clone(),
            status: if kernel.is_some() {
                "running"
            } else {
                Status::Starting.as_str()
            }
            .into(),
            pid: kernel.map(|kernel| kernel.process.pid),
            supervisor_pid: None,
            started: None,
            uptime_s: None,
            memory_mb: memory,
            kernel: words.first().cloned().unwrap_or_default(),
            interfaces,
            command: words,
            details: None,
            user,
        }
    }
}

impl Details {
    fn of(record: &Record, dirs: &Dirs) -> Self {
        let machine = &record.machine;
        let (model, changes) = match &machine.root {
            Root::Host { .. } => (None, None),
            Root::Disk { model, changes } => (Some(model.clone()), changes.clone()),
        };
        let processes = of_machine(dirs, &machine.name);
        Self {
            used_memory_kib: processes
                .iter()
                .filter_map(|process| memory_kib(process.pid))
                .sum(),
            model_fs: model,
            filesystem: changes,
            disks: machine.disks.iter().map(|disk| disk.file.clone()).collect(),
            cpu: machine.cpu,
            modules: machine.modules.clone(),
            hosthome: machine.hosthome.clone(),
            hostlab: machine.hostlab.clone(),
            hostwd: machine.hostwd.clone(),
            mounts: machine.mounts.clone(),
            exec: machine.exec.clone(),
            consoles: Self::consoles(record),
            append: machine.append.clone(),
            mconsole: dirs.mconsole_socket(&machine.name),
        }
    }

    /// Where the consoles are shown.
    pub fn consoles(record: &Record) -> [String; 2] {
        let machine = &record.machine;
        [0, 1].map(|number| match (&machine.consoles[number], &record.ptys[number]) {
            (_, Some(pty)) => pty.display().to_string(),
            (Console::Port(port), None) => format!("port {port}"),
            (Console::Xterm, None) => "in a window".into(),
            (Console::This, None) => "the terminal of its start".into(),
            (Console::Tmux, None) => {
                format!("tmux session {}", tmux_session(&title(&machine.name, number)))
            }
            (Console::Pty | Console::Detached, None) => "detached".into(),
            (Console::None, None) => "none".into(),
        })
    }
}

/// An interface on a kernel's command line.
struct Word<'a> {
    name: String,
    transport: Transport,
    mac: &'a str,
    socket: Option<&'a str>,
}

/// The interfaces on a kernel's command line.
fn interface_words(words: &[String]) -> impl Iterator<Item = Word<'_>> {
    words.iter().filter_map(|word| {
        if let Some(card) = word.strip_prefix("virtio_uml.device=") {
            let (socket, number) = card.split_once(":1:")?;
            let address = format!("mac_eth{number}=");
            return Some(Word {
                name: format!("eth{number}"),
                transport: Transport::Vhost,
                mac: words.iter().find_map(|word| word.strip_prefix(&address))?,
                socket: Some(socket),
            });
        }
        let at = word.find(['=', ':'])?;
        let (device, value) = (&word[..at], &word[at + 1..]);
        let number: u32 = device.get(3..)?.parse().ok()?;
        let fields: Vec<&str> = value.split(',').collect();
        let named = |key: &str| fields.iter().find_map(|field| field.strip_prefix(key));
        let (transport, mac, socket) = match (device.get(..3)?, fields.as_slice()) {
            ("eth", ["daemon", mac, _, socket, ..]) => (Transport::Daemon, *mac, Some(*socket)),
            ("eth", ["vde", socket, mac, ..]) => (Transport::Vde, *mac, Some(*socket)),
            ("vec", ["transport=fd", ..]) => (Transport::Fd, named("mac=")?, None),
            ("vec", _) => (Transport::Bess, named("mac=")?, Some(named("dst=")?)),
            _ => return None,
        };
        Some(Word {
            name: format!("eth{number}"),
            transport,
            mac,
            socket,
        })
    })
}

/// The domain whose socket has this path.
fn domain_of(socket: &str, user: &str) -> Option<String> {
    let file = Path::new(socket).file_name()?.to_str()?;
    let name = file.strip_prefix(&format!("vhub_{user}_"))?;
    Some(name.split('.').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_from_a_command_line() {
        let words = [
            "umid=a",
            "eth0=daemon,02:00:00:00:00:01,unix,/h/vhub_bob_A.cnct",
            "ethx=1",
            "eth1=tuntap,a",
            "eth2=vde,/h/vhub_bob_B.vde,02:00:00:00:00:02",
            "vec3:transport=bess,dst=/h/vhub_bob_C.bess,mac=02:00:00:00:00:03,mtu=9000",
            "vec4:transport=fd,fd=3,mac=02:00:00:00:00:04",
            "virtio_uml.device=/h/vhub_bob_D.vhost:1:4",
            "mac_eth4=02:00:00:00:00:04",
        ]
        .map(str::to_owned);
        let found: Vec<_> = interface_words(&words)
            .map(|word| {
                let domain = word
                    .socket
                    .and_then(|socket| domain_of(socket, "bob"))
                    .unwrap_or_default();
                format!("{} {} {} {domain}", word.name, word.transport, word.mac)
            })
            .collect();
        assert_eq!(
            found,
            [
                "eth0 daemon 02:00:00:00:00:01 A",
                "eth2 vde 02:00:00:00:00:02 B",
                "eth3 bess 02:00:00:00:00:03 C",
                "eth4 fd 02:00:00:00:00:04 ",
                "eth4 vhost 02:00:00:00:00:04 D"
            ]
        );
        let socket = "/h/vhub_bob_A.cnct";
        assert_eq!(domain_of(socket, "bob").as_deref(), Some("A"));
        assert_eq!(domain_of(socket, "eve"), None);
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let details = Details {
            used_memory_kib: 7,
            model_fs: None,
            filesystem: None,
            disks: vec![],
            cpu: CpuLock::Any,
            modules: None,
            hosthome: None,
            hostlab: Some("/lab".into()),
            hostwd: None,
            mounts: vec![],
            exec: None,
            consoles: ["detached".into(), "none".into()],
            append: vec![],
            mconsole: "/m".into(),
        };
        let row = Row {
            name: "pc1".parse().unwrap(),
            user: "bob".into(),
            status: "up".into(),
            pid: Some(1),
            supervisor_pid: None,
            started: None,
            uptime_s: None,
            memory_mb: None,
            kernel: String::new(),
            interfaces: vec![],
            command: vec![],
            details: Some(details),
        };
        for details in [row.details.clone(), None] {
            let row = Row {
                details,
                ..row.clone()
            };
            let text = serde_json::to_string(&row).unwrap();
            assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
        }
    }
}

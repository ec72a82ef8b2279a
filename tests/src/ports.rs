//! Real UML guests with ports of every kind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use proto::ctl::PortRow;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::program::{binary, tool};
use crate::switchd::Switchd;
use crate::wait;

/// Waits until a domain has so many ports.
///
/// # Panics
/// When that takes too long.
pub fn wait_ports(daemon: &Switchd, domain: &str, count: usize) -> Vec<PortRow> {
    wait::until(&format!("{count} ports in {domain}"), || {
        let ports = daemon.ports(domain);
        (ports.len() == count).then_some(ports)
    })
}

/// A client of a domain's socket for vector guests, in this process.
///
/// # Panics
/// When nobody listens there.
pub fn vector_client(daemon: &Switchd, domain: &str) -> Socket {
    let socket = vector_socket(&daemon.domain(domain).sockets["bess"]);
    socket
        .set_read_timeout(Some(wait::PATIENCE))
        .expect("a time that is not zero");
    socket
}

/// The same by the path of the socket, for good or until it is told otherwise.
///
/// # Panics
/// When nobody listens there.
pub fn vector_socket(path: &str) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    let address = SockAddr::unix(path).expect("a path that fits");
    socket.connect(&address).expect("a daemon that listens");
    socket
}

/// A running UML kernel with all its processes; they go with it.
pub struct Guest {
    name: String,
    child: Child,
    words: Vec<OsString>,
    console: PathBuf,
}

impl Guest {
    /// Boots a guest that runs a shell script and powers off; `arguments` go on the kernel's command line. In the
    /// guest, `/mnt` is `dir`.
    ///
    /// # Panics
    /// If the kernel cannot be started, or does not come up.
    pub fn boot(dir: &Path, name: &str, script: &str, arguments: &[String]) -> Self {
        Self::boot_by(Command::new(tool("linux.uml")), dir, name, script, arguments)
    }

    /// The same by a command that becomes the kernel: a guest finds only datagram sockets of its own network namespace.
    ///
    /// # Panics
    /// If the kernel cannot be started, or does not come up.
    pub fn boot_by(kernel: Command, dir: &Path, name: &str, script: &str, arguments: &[String]) -> Self {
        let go = format!("{name}.sh");
        fs::write(dir.join(&go), script).expect("the script is written");
        let initrd = dir.join(format!("{name}.cpio"));
        fs::write(&initrd, initial_files()).expect("the initrd is written");
        let console = dir.join(format!("{name}.console"));
        let mut words = vec![kernel.get_program().to_owned()];
        words.extend(kernel.get_args().map(ToOwned::to_owned));
        let own = [
            "mem=64M".to_owned(),
            "rdinit=/init".to_owned(),
            "con=null".to_owned(),
            "con0=null,fd:1".to_owned(),
            "quiet".to_owned(),
            format!("initrd={}", initrd.display()),
            format!("uml_dir={}/uml", dir.display()),
            format!("umid={name}"),
            format!("share={}", dir.display()),
            format!("go={go}"),
        ];
        words.extend(own.iter().chain(arguments).map(OsString::from));
        let mut guest = Self {
            name: name.to_owned(),
            child: start(&words, &console),
            words,
            console,
        };
        guest.wait_console("GUEST-UP");
        guest
    }

    /// Its main process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// Kills its main process alone: its helpers go on and hold its sockets.
    pub fn kill_main(&self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
    }

    /// Waits until the guest has printed this.
    ///
    /// # Panics
    /// If it ends before, or nothing is heard of it for too long.
    pub fn wait_console(&mut self, text: &str) {
        wait::until(&format!("'{text}' from {}", self.name), || {
            let ended = self.child.try_wait().expect("our child").is_some();
            let found = self.console().contains(text);
            if ended && self.console().contains("init: line 3: can't fork") {
                // On a busy machine Linux 6.1 sometimes fails at its very first fork.
                self.child = start(&self.words, &self.console);
                return None;
            }
            assert!(found || !ended, "{} has ended:\n{}", self.name, self.console());
            found.then_some(())
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console of {}:\n{}", self.name, self.console());
        }
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// True for the word of a guest that shares its memory.
fn is_vhost(word: &str) -> bool {
    word.starts_with("virtio_uml.device=")
}

/// Puts the modules of a network card of virtio where a guest finds them; the lines of a script that loads them.
///
/// # Panics
/// If the kernel's modules are not installed.
pub fn load_modules(dir: &Path) -> String {
    let releases = fs::read_dir("/usr/lib/uml/modules").expect("package user-mode-linux");
    let release = releases.flatten().next().expect("the modules of a kernel").path();
    [
        "net/core/failover.ko",
        "drivers/net/net_failover.ko",
        "drivers/net/virtio_net.ko",
    ]
    .iter()
    .map(|module| {
        let from = release.join("kernel").join(module);
        let name = from.file_name().expect("a file").to_owned();
        fs::copy(&from, dir.join(&name)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        format!("insmod /mnt/{}\n", name.to_string_lossy())
    })
    .collect()
}

/// True if a port has lost nothing but what a guest that did not get its turn on a busy machine did not read in time.
pub fn only_late(port: &PortRow) -> bool {
    let late = ["queue-full", "bypassed"];
    port.drops.keys().all(|reason| late.contains(&reason.as_str()))
}

/// Starts a kernel in a process group of its own. What vstart loads into kernels if the processor is too much for them
/// does no harm where it is not.
fn start(words: &[OsString], console: &Path) -> Child {
    let output = File::create(console).expect("a console file");
    Command::new(&words[0])
        .args(&words[1..])
        .env("LD_PRELOAD", binary("libhubbub_xstate.so"))
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("another descriptor"))
        .stderr(output)
        .process_group(0)
        .spawn()
        .expect("linux.uml starts (package user-mode-linux)")
}

/// Bytes of a bulk transfer.
const BULK: usize = 8 << 20;

/// Bytes that a shifted, repeated or lost piece would change.
pub fn bulk() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..BULK / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// Boots two guests with these words for their only interface, which must lead to domain A: `b` receives what `a`
/// sends after pinging it. Returns when `b` has all of it, with both still attached.
///
/// # Panics
/// If anything is damaged, or dropped for another reason than that a guest was late.
pub fn transfer(daemon: &Switchd, a: &str, b: &str, mtu: u32) -> [Guest; 2] {
    let guests = exchange(|| Command::new(tool("linux.uml")), daemon.home(), a, b, mtu);
    let ports = wait_ports(daemon, "A", 2);
    for port in &ports {
        assert!(only_late(port) && port.rx_frames > 20, "{port:?}");
    }
    for (guest, word) in [("a", a), ("b", b)] {
        // A VDE client says itself who it is.
        let name = format!("{guest}:{}", interface(word));
        let named = |port: &PortRow| port.name == name || port.kind == "vde" && port.name.starts_with("UML ");
        assert!(ports.iter().any(named), "no {name} in {ports:?}");
    }
    guests
}

/// Boots two guests by a command that becomes the kernel, with these words for their only interface: `b` receives what
/// `a` sends after pinging it, whatever leads from one to the other. Returns when `b` has all of it.
///
/// # Panics
/// If anything is damaged.
pub fn exchange(kernel: impl Fn() -> Command, dir: &Path, a: &str, b: &str, mtu: u32) -> [Guest; 2] {
    exchange_after(|| (), kernel, dir, a, b, mtu)
}

/// The same, with something to be done when both interfaces are up, before any of that is sent.
///
/// # Panics
/// If anything is damaged.
pub fn exchange_after(
    before: impl FnOnce(),
    kernel: impl Fn() -> Command,
    dir: &Path,
    a: &str,
    b: &str,
    mtu: u32,
) -> [Guest; 2] {
    fs::write(dir.join("bulk"), bulk()).expect("the data are written");
    let modules = |word: &str| {
        if is_vhost(word) {
            load_modules(dir)
        } else {
            String::new()
        }
    };
    let receiver = format!(
        "{1}mkfifo /tmp/open; nc -l -p 5000 <> /tmp/open > /tmp/bulk &\n\
         until grep -q :1388 /proc/net/tcp*; do true; done\n\
         ip addr add 10.0.0.2/24 dev {0}; ip link set {0} mtu {mtu} up; echo INTERFACE-UP\n\
         wait; md5sum < /tmp/bulk; md5sum < /mnt/bulk; echo RECEIVED\n\
         sleep 100",
        interface(b),
        modules(b)
    );
    let size = mtu - 28;
    let sender = format!(
        "{1}ip addr add 10.0.0.1/24 dev {0}; ip link set {0} mtu {mtu} up\n\
         echo INTERFACE-UP; until [ -e /mnt/go-on ]; do sleep 0.1; done\n\
         until ping -c 1 -w 1 10.0.0.2; do true; done\n\
         until ping -c 3 -w 10 -s {size} 10.0.0.2 > /tmp/pings; cat /tmp/pings; grep -q '3 packets received' /tmp/pings; do true; done\n\
         nc 10.0.0.2 5000 < /mnt/bulk; echo SENT\n\
         sleep 100",
        interface(a),
        modules(a)
    );
    let mut receiver = Guest::boot_by(kernel(), dir, "b", &receiver, &[b.to_owned()]);
    let mut sender = Guest::boot_by(kernel(), dir, "a", &sender, &[a.to_owned()]);
    receiver.wait_console("INTERFACE-UP");
    sender.wait_console("INTERFACE-UP");
    before();
    fs::write(dir.join("go-on"), "").expect("the word is given");
    receiver.wait_console("RECEIVED");
    sender.wait_console("SENT");
    let pings = sender.console();
    assert!(pings.contains("3 packets received"), "{pings}");
    let console = receiver.console();
    let mut sums = console
        .lines()
        .filter_map(|line| line.trim_end().strip_suffix("  -"));
    let sums = (sums.next().expect("a sum"), sums.next().expect("another sum"));
    assert_eq!(sums.0, sums.1, "{console}");
    [sender, receiver]
}

/// The name of the interface a word makes.
fn interface(word: &str) -> &str {
    if is_vhost(word) { "eth0" } else { &word[..4] }
}

const INIT: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
    case $word in go=*) go=${word#go=} ;; share=*) share=${word#share=} ;; esac
done
ip link set lo up
echo GUEST-UP
mount -t hostfs none /mnt -o \"$share\" && . \"/mnt/$go\"
echo GUEST-DONE
poweroff -f
";

const APPLETS: [&str; 22] = [
    "sh", "mount", "ip", "ifconfig", "ping", "insmod", "sleep", "poweroff", "cat", "echo", "nc", "dd",
    "md5sum", "grep", "vconfig", "touch", "mkfifo", "true", "chroot", "dmesg", "mv", "reboot",
];

/// The files of a guest, as a cpio archive in the "newc" format.
fn initial_files() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let busybox = fs::read("/bin/busybox").expect("package busybox-static");
        let mut archive = Vec::new();
        for directory in ["bin", "proc", "sys", "dev", "mnt", "tmp", "host"] {
            archive_member(&mut archive, directory, 0o040_755, b"");
        }
        archive_member(&mut archive, "init", 0o100_755, INIT.as_bytes());
        archive_member(&mut archive, "bin/busybox", 0o100_755, &busybox);
        for applet in APPLETS {
            archive_member(&mut archive, &format!("bin/{applet}"), 0o120_777, b"busybox");
        }
        archive_member(&mut archive, "TRAILER!!!", 0, b"");
        archive
    })
}

fn archive_member(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(bytes.len()).expect("a small file"),
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1).expect("a short name"),
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        write!(archive, "{field:08X}").expect("memory can be written");
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

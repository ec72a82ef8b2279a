//! Hosts, guests and an internet made of network namespaces, for tests that need root's rights over a network.
//!
//! Each [`Net`] is one process that holds a network and a mount namespace of its own and ends with its guard, or with
//! the test: the namespaces go with it, and so does everything in them. The machine's own network is never touched.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::{self, Outcome, Process, binary, tool};
use crate::wait;

/// The users every [`Net`] knows besides the system's, with numbers no system gives.
pub const USERS: [(&str, u32); 3] = [("alice", 61_001), ("bob", 61_002), ("maximilian", 61_003)];

/// iptables over the kernel interface it had before nftables.
const LEGACY: &str = "iptables-legacy";

/// The firewalls a host may have.
pub const FIREWALLS: [&str; 3] = ["nft", "iptables", LEGACY];

/// A network namespace with a private `/var/lib`, `/run`, `/etc/passwd` and `/dev/net/tun`.
#[derive(Debug)]
pub struct Net {
    holder: Process,
}

impl Net {
    /// A network with nothing but a loopback device.
    ///
    /// # Panics
    /// When the namespaces cannot be made, as without root's rights.
    #[track_caller]
    pub fn new() -> Self {
        let mut command = Command::new(tool("unshare"));
        command.args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            SETUP,
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Process::start_as_is(&mut command);
        let stdout = holder.child().stdout.take().expect("a piped stdout");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a line from the holder");
        assert_eq!(
            line, "ready\n",
            "cannot make a network namespace: these tests need root"
        );
        Self { holder }
    }

    /// A command that will run in this network.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let pid = self.holder.pid().to_string();
        let mut command = Command::new(tool("nsenter"));
        command
            .args(["--target", &pid, "--net", "--mount", "--"])
            .arg(program.into());
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        command
    }

    /// Runs a program of the system here, given as one line.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a program");
        program::run(self.command(tool(name)).args(words))
    }

    /// Runs a program that must end well, and returns what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok()
    }

    /// Runs a script; for setting up what a test finds.
    #[track_caller]
    pub fn script(&self, text: &str) -> String {
        program::run(self.command(tool("sh")).args(["-euc", text])).ok()
    }

    /// Starts a program that stays; its stdin stays open as long as it does.
    #[track_caller]
    pub fn start(&self, line: &str) -> Process {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a program");
        Process::start(self.command(tool(name)).args(words).stdin(Stdio::piped()))
    }

    /// Makes this a host of one of [`FIREWALLS`], and returns what tapctl calls it. iptables over the old kernel
    /// interface has its tables from the start, because no tool takes them away again.
    #[track_caller]
    pub fn firewall(&self, name: &'static str) -> &'static str {
        if name != LEGACY {
            return name;
        }
        self.script(
            "mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi
            iptables --version | grep -q legacy
            for table in filter nat mangle; do
                iptables -t $table -S >/dev/null
                ip6tables -t $table -S >/dev/null
            done",
        );
        "iptables"
    }

    /// tapctl, to be run here by root.
    pub fn tapctl(&self, line: &str) -> Command {
        let mut command = self.command(binary("tapctl"));
        command.args(line.split_whitespace());
        command
    }

    /// Runs tapctl here as root.
    #[track_caller]
    pub fn tap(&self, line: &str) -> Outcome {
        program::run(&mut self.tapctl(line))
    }

    /// Runs tapctl here as sudo runs it for a user.
    #[track_caller]
    pub fn tap_for(&self, user: &str, line: &str) -> Outcome {
        program::run(self.tapctl(line).env("SUDO_UID", uid(user).to_string()))
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> i32 {
        self.holder.pid().as_raw()
    }

    /// Ties two networks together: a cable with a named end in each, both up.
    #[track_caller]
    pub fn cable(&self, name: &str, other: &Self, other_name: &str) {
        self.ok(&format!(
            "ip link add {name} type veth peer name {other_name} netns {}",
            other.pid()
        ));
        self.ok(&format!("ip link set {name} up"));
        other.ok(&format!("ip link set {other_name} up"));
    }

    /// Does something on a thread that is in this network.
    ///
    /// # Panics
    /// When the thread cannot enter it, or panics itself.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
        let thread = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("the right to enter it");
            work()
        });
        thread.join().expect("a thread that comes to its end")
    }

    /// Waits until the kernel has made up its mind about the state of every device and address.
    #[track_caller]
    pub fn settle(&self) {
        wait::until_true("devices and addresses settle", || {
            let devices = self.json("ip -j addr");
            devices.as_array().into_iter().flatten().all(|device| {
                let has = |flag: &str| {
                    device["flags"]
                        .as_array()
                        .is_some_and(|flags| flags.iter().any(|item| item == flag))
                };
                // An address on a device without carrier stays tentative for as long as that lasts.
                let addresses = device["addr_info"].as_array().into_iter().flatten();
                let tentative = addresses.filter(|address| address["tentative"] == true).count();
                let undecided = has("UP") && device["operstate"] == "UNKNOWN" && !has("LOOPBACK");
                !undecided && (tentative == 0 || has("NO-CARRIER"))
            })
        });
    }

    /// Runs a program that prints JSON, or nothing.
    #[track_caller]
    pub fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(line)).unwrap_or(serde_json::Value::Null)
    }

    /// Everything tapctl could have changed, as text, one fact a line.
    ///
    /// Left out is what the kernel changes by itself: counters of rules and chains, and the time in what iptables-save
    /// prints. Handles and interface indexes are kept: what was there before keeps its own; only tapctl's own rules get
    /// new handles, because they are replaced as a whole whenever a tap comes or goes.
    #[track_caller]
    pub fn state(&self) -> String {
        self.settle();
        let mut text = String::new();
        for line in [
            "ip -j link",
            "ip -j addr",
            "ip -j -4 route show table all",
            "ip -j -6 route show table all",
            "ip -j -4 rule",
            "ip -j -6 rule",
            "ip -j neigh show proxy",
            "ip -j -6 neigh show proxy",
            "nft -j list ruleset",
        ] {
            let _ = writeln!(text, "# {line}");
            spread(&mut text, "", &self.json(line));
        }
        for line in ["iptables-save", "ip6tables-save"] {
            let _ = writeln!(text, "# {line}");
            for line in self.ok(line).lines().filter(|line| !line.starts_with('#')) {
                let line = if line.starts_with(':') {
                    line.split(" [").next().unwrap_or(line)
                } else {
                    line
                };
                let _ = writeln!(text, "{line}");
            }
        }
        text.push_str("# sysctl\n");
        text.push_str(&self.inside(switches));
        text
    }

    /// What stands in the journal.
    #[track_caller]
    pub fn journal(&self) -> serde_json::Value {
        let path = format!("/proc/{}/root/var/lib/hubbub/tapctl/journal.json", self.pid());
        let text = fs::read_to_string(path).expect("a journal");
        serde_json::from_str(&text).expect("a journal in JSON")
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of one of the [`USERS`].
///
/// # Panics
/// When there is no such user.
pub fn uid(user: &str) -> u32 {
    USERS
        .iter()
        .find(|(name, _)| *name == user)
        .map(|(_, uid)| *uid)
        .expect("one of the test's users")
}

/// Compares two states; on a difference prints the lines that differ.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(before: &str, after: &str, when: &str) {
    if before == after {
        return;
    }
    let only = |a: &str, b: &str, sign: char| -> String {
        let there: std::collections::HashSet<&str> = b.lines().collect();
        a.lines()
            .filter(|line| !there.contains(line))
            .fold(String::new(), |mut text, line| {
                let _ = writeln!(text, "{sign} {line}");
                text
            })
    };
    panic!(
        "the host is not as it was {when}:\n{}{}",
        only(before, after, '-'),
        only(after, before, '+')
    );
}

/// A host with a cable to an internet, which has a web server at 192.0.2.1 and 2001:db8::1, port 80.
#[derive(Debug)]
pub struct World {
    /// The host; its cable is `eth0`, 192.0.2.2 and 2001:db8::2.
    pub host: Net,
    /// The rest of the world: it knows no way to what is behind the host.
    pub internet: Net,
    _server: Process,
}

/// What the web server of the internet answers.
pub const PAGE: &str = "a page of the internet\n";

impl World {
    /// Builds both and waits until they reach each other.
    #[track_caller]
    pub fn new() -> Self {
        let (host, internet) = (Net::new(), Net::new());
        host.cable("eth0", &internet, "wan0");
        host.script(
            "ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad; \
             ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1",
        );
        internet.script("ip addr add 192.0.2.1/24 dev wan0; ip addr add 2001:db8::1/64 dev wan0 nodad");
        let server = serve(&internet, PAGE);
        wait::until_true("the host reaches the internet", || {
            fetch(&host, "192.0.2.1").is_some()
        });
        Self {
            host,
            internet,
            _server: server,
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts a web server in a network; it serves one page on port 80 of all addresses.
#[track_caller]
pub fn serve(net: &Net, page: &str) -> Process {
    net.script(&format!(
        "mkdir -p /run/www; printf '%s' '{page}' >/run/www/index.html"
    ));
    net.start("busybox httpd -f -p 80 -h /run/www")
}

/// Fetches the page of a server, given its address; `None` if it does not answer within two seconds.
#[track_caller]
pub fn fetch(net: &Net, address: &str) -> Option<String> {
    let address: IpAddr = address.parse().expect("an address");
    net.inside(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), SOON).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, page)| page.to_owned())
    })
}

/// Starts a name server in a network: it knows `server.test`, which is 192.0.2.1. Wherever `host` looks names up, it
/// asks that server from now on.
#[track_caller]
pub fn name_server(net: &Net, host: &Net) -> Process {
    host.script(
        "echo 'nameserver 192.0.2.1' >/run/resolv.conf; chmod 644 /run/resolv.conf
         mount --bind /run/resolv.conf /etc/resolv.conf",
    );
    let server = net.start(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
         --address=/server.test/192.0.2.1",
    );
    wait::until_true("the name server", || net.ok("ss -lunH").contains(":53 "));
    server
}

/// How long an answer may take that crosses nothing but memory.
const SOON: Duration = Duration::from_secs(2);

/// A guest behind a tap of a host: a namespace whose `eth0` is wired to the tap by VDE, as the tap's owner would do
/// without any right of root's.
#[derive(Debug)]
pub struct Guest {
    /// The guest's own network.
    pub net: Net,
    _wire: [Process; 2],
    _directory: tempfile::TempDir,
}

impl Guest {
    /// Wires a guest to `tap` as `user` and gives it an address and a default route.
    #[track_caller]
    pub fn new(host: &Net, tap: &str, user: &str, address: &str, gateway: &str) -> Self {
        let net = Net::new();
        let id = uid(user);
        let directory = tempfile::Builder::new()
            .prefix("wire-")
            .tempdir()
            .expect("a directory");
        std::os::unix::fs::chown(directory.path(), Some(id), Some(id)).expect("a directory for the user");
        let socket = directory.path().join("sw");
        let line = format!(
            "setpriv --reuid {id} --regid {id} --clear-groups -- {} -s {} -tap {tap}",
            tool("vde_switch").display(),
            socket.display()
        );
        let switch = program::start_until(
            "the switch listens",
            || host.start(&line),
            || program::listens(&socket.join("ctl")),
        );
        let line = format!("vde_plug2tap -s {} eth0", socket.display());
        let plug = program::start_until(
            "the guest's device",
            || net.start(&line),
            || net.run("ip link show eth0").code() == Some(0),
        );
        net.script(&format!(
            "ip link set eth0 up; ip addr add {address} dev eth0; ip route add default via {gateway}"
        ));
        wait::until_true("the guest reaches its tap", || {
            net.run(&format!("ping -c 1 -W 1 {gateway}")).code() == Some(0)
        });
        Self {
            net,
            _wire: [plug, switch],
            _directory: directory,
        }
    }
}

/// What the holder does before it only waits for its end. `stdin` ends when the test does, however it does.
const SETUP: &str = "
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
cp /etc/passwd /run/passwd
for u in alice:61001 bob:61002 maximilian:61003; do
    echo \"${u%:*}:*:${u#*:}:${u#*:}::/nonexistent:/bin/sh\" >>/run/passwd
done
chmod 644 /run/passwd
mount --bind /run/passwd /etc/passwd
mknod -m 666 /run/tun c 10 200
mount --bind /run/tun /dev/net/tun
ip link set lo up
echo ready
exec cat
";

/// Every switch of the calling thread's network that taps or forwarding could touch.
fn switches() -> String {
    let mut text = format!("ip_forward {}", read(Path::new("/proc/sys/net/ipv4/ip_forward")));
    for family in ["ipv4", "ipv6"] {
        let mut files: Vec<PathBuf> = fs::read_dir(format!("/proc/sys/net/{family}/conf"))
            .expect("the switches of a family")
            .flat_map(|device| fs::read_dir(device.expect("a device").path()).expect("its switches"))
            .map(|file| file.expect("a switch").path())
            .collect();
        files.sort();
        for file in files {
            let _ = write!(text, "{} {}", file.display(), read(&file));
        }
    }
    text
}

/// A switch's value; some cannot be read before they have been written.
fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|_| "unset\n".to_owned())
}

/// One line for each value of a document, with its place: what differs is then seen at a glance.
fn spread(text: &mut String, place: &str, value: &serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let own = |field: &str, start: &str| {
                fields
                    .get(field)
                    .and_then(Value::as_str)
                    .is_some_and(|text| text.starts_with(start))
            };
            let own = own("table", "hubbub")
                || own("chain", "HUBBUB-")
                || (fields.contains_key("handle") && (own("name", "hubbub") || own("name", "HUBBUB-")));
            for (name, value) in fields {
                let counts = matches!(name.as_str(), "packets" | "bytes") && place.ends_with("/counter");
                let replaced = own && name == "handle";
                if !counts && !replaced {
                    spread(text, &format!("{place}/{name}"), value);
                }
            }
        }
        Value::Array(items) => {
            for (position, value) in items.iter().enumerate() {
                spread(text, &format!("{place}/{position}"), value);
            }
        }
        plain => {
            let _ = writeln!(text, "{place} {plain}");
        }
    }
}

//! A command in a network of its own, whose interface is a port of a domain: what happens in the new process before it
//! becomes the command.
//!
//! ```text
//! vplug ──starts──► this ──becomes──► the command
//!                    │  user and network namespace, eth0, addresses
//!                    └─► switchd: the open tap is a port, until the last process of the namespace has gone
//! ```
//!
//! The command runs as the user it was started by, and may do in its own network what root may do in the host's.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getegid, geteuid, getppid};
use proto::DomainName;
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::switch::Client;

/// The first argument that makes the binary this.
pub const WORD: &str = "@plug";

/// The interface's name.
pub const INTERFACE: &str = "eth0";

/// What is to be made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Whose end is the command's.
    pub parent: u32,
    /// Where switchd is.
    pub dirs: Dirs,
    /// The domain the interface is in.
    pub domain: DomainName,
    /// The domain's MTU.
    pub mtu: u32,
    /// The port's name.
    pub port: String,
    /// Addresses with lengths.
    pub addresses: Vec<String>,
    /// Whether to ask for an address; by the script that does what the answer says.
    pub dhcp: Option<PathBuf>,
}

/// Rights in the new network that the command and what it starts keep.
const RIGHTS: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_BROADCAST,
];

/// Becomes the command behind the plan; returns only if that fails.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [plan, program, rest @ ..] = arguments else {
        eprintln!("vplug: this is a part of vplug and not to be started by itself");
        return ExitCode::from(2);
    };
    let plan = plan.to_str().and_then(|text| serde_json::from_str(text).ok());
    let prepared = plan
        .context("cannot read the plan")
        .and_then(|plan| prepare(&plan));
    if let Err(error) = prepared {
        eprintln!("vplug: {error:#}");
        return ExitCode::from(1);
    }
    let error = Command::new(program).args(rest).exec();
    eprintln!("vplug: cannot run {}: {error}", program.display());
    // As the shell and env(1) have it.
    ExitCode::from(if error.kind() == ErrorKind::NotFound {
        127
    } else {
        126
    })
}

fn prepare(plan: &Plan) -> Result<()> {
    // Sockets with a path are reached from any network.
    let mut client = Client::connect(&plan.dirs)?;
    own_namespaces(plan.dhcp.is_some())?;
    let network = File::open("/proc/self/ns/net").context("cannot see the new network")?;
    let name = INTERFACE.parse().expect("a constant name");
    let tap = netns::place_tap(&network, &name)?;
    netns::ip(&["link", "set", "lo", "up"])?;
    if plan.mtu != 1500 {
        netns::ip(&["link", "set", INTERFACE, "mtu", &plan.mtu.to_string()])?;
    }
    for address in &plan.addresses {
        netns::ip(&["address", "add", address, "dev", INTERFACE])?;
    }
    client.attach_open_tap(&plan.domain, &plan.port, tap)?;
    if let Some(script) = &plan.dhcp {
        private_name_servers()?;
        ask(script)?;
    }
    // vplug takes its signals one by one; the command is to have them as usual.
    SigSet::empty()
        .thread_set_mask()
        .context("cannot unblock signals")?;
    // Last: what came before would have undone it.
    set_pdeathsig(Signal::SIGKILL).context("cannot tie the command to vplug")?;
    if u32::try_from(getppid().as_raw()).ok() != Some(plan.parent) || getppid() == Pid::from_raw(1) {
        bail!("vplug has ended");
    }
    Ok(())
}

/// Leaves the host's network for a new one, with rights in there and the same user as before.
fn own_namespaces(with_mounts: bool) -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let refused = "cannot make a user namespace\nhint: the system may forbid it to its users (user.max_user_namespaces)";
    unshare(CloneFlags::CLONE_NEWUSER).context(refused)?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).with_context(|| format!("cannot write {path}"))?;
    }
    let mut flags = CloneFlags::CLONE_NEWNET;
    flags.set(CloneFlags::CLONE_NEWNS, with_mounts);
    unshare(flags).context("cannot make a network namespace")?;
    for right in RIGHTS {
        caps::raise(None, CapSet::Inheritable, right)
            .and_then(|()| caps::raise(None, CapSet::Ambient, right))
            .with_context(|| format!("cannot keep {right}"))?;
    }
    Ok(())
}

/// Puts a file of our own in the place of the host's list of name servers, for this process and its children alone.
fn private_name_servers() -> Result<()> {
    let place = Path::new("/etc/resolv.conf");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot keep mounts private")?;
    let path = std::env::temp_dir().join(format!("vplug-{}.resolv.conf", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let made = file.and_then(|mut file| file.write_all(b"# set by DHCP\n"));
    made.with_context(|| format!("cannot make {}", path.display()))?;
    let mounted = mount(Some(&path), place, none, MsFlags::MS_BIND, none);
    // It lives on where it is mounted.
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    mounted.with_context(|| format!("cannot replace {}", place.display()))
}

/// Asks by DHCP until there is an address; the client goes on in the background.
fn ask(script: &Path) -> Result<()> {
    let status = Command::new("busybox")
        .args(["udhcpc", "-i", INTERFACE, "-n", "-t", "10", "-T", "1", "-s"])
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot ask for an address: cannot run busybox")?;
    if !status.success() {
        bail!("cannot get an address: nobody answers\nhint: 'switchd port add DOMAIN --uplink' would");
    }
    Ok(())
}

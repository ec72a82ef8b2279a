//! `vstart`: start a machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};
use nix::unistd::{AccessFlags, User, access, getuid};

use super::interfaces::{self, with_interfaces};
use super::{disks, vconnect};
use crate::config::Config;
use crate::cpulock::CpuLock;
use crate::kernel_args::{exec_file, kernel_args, shell_quoted};
use crate::launch::{self, Follow, Outcome};
use crate::machine::{Attachment, Console, Interface, Machine, Mount, NAT, Root};
use crate::name::MachineName;
use crate::supervisor::Plan;
use crate::switch::{self, in_path, program};
use crate::tap;
use crate::windows::{self, Emulator};
use crate::xstate;

/// Start a User-Mode Linux machine
///
/// The machine's files are the host's own, under a layer of changes that only this machine sees and that goes with
/// it. The command returns when the machine is up; the machine runs on in the background.
#[derive(Debug, Parser)]
#[command(name = "vstart", version = RELEASE.as_str(), after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The machine's name, unique per user
    name: MachineName,
    /// Add interface ethN, attached to a collision domain (or to the Internet: nat; or to the host:
    /// tap,TAP-ADDRESS,GUEST-ADDRESS)
    #[arg(long = "ethN", value_name = "DOMAIN")]
    interfaces: Vec<Interface>,
    #[command(flatten)]
    details: interfaces::Details,
    /// The UML kernel to run
    #[arg(short, long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Memory of the machine, in MB
    #[arg(short = 'M', long, value_name = "MB")]
    mem: Option<u32>,
    /// Do not show the user's home directory as /hosthome
    #[arg(short = 'H', long)]
    no_hosthome: bool,
    /// The model file system, instead of the host's own files
    #[arg(short, long, value_name = "FILE")]
    pub(super) model_fs: Option<PathBuf>,
    /// Where changes to the model file system go [default: NAME.disk in the current directory]
    #[arg(short, long, value_name = "FILE")]
    pub(super) filesystem: Option<PathBuf>,
    /// Change the model file system itself
    #[arg(short = 'W', long)]
    pub(super) no_cow: bool,
    /// Keep changes to the model file system out of sight, and only until the machine ends
    #[arg(short = 'D', long)]
    pub(super) hide_disk_file: bool,
    /// Start our agent in the model's system, so that vexec works there and interfaces are always called ethN
    #[arg(long)]
    agent: bool,
    /// Add a disk
    #[arg(long, value_name = "FILE")]
    pub(super) disk: Vec<PathBuf>,
    /// Add a disk that cannot be written to, behind those that can
    #[arg(long, value_name = "FILE")]
    pub(super) cdrom: Vec<PathBuf>,
    /// Show a directory of the host in the machine
    #[arg(long, value_name = "SOURCE,TARGET")]
    mount: Vec<Mount>,
    /// Where the primary console is shown: xterm, this, tmux, pty, port:N, detached
    #[arg(long, value_name = "MODE")]
    con0: Option<Console>,
    /// Where the secondary console is shown: the same, or none
    #[arg(long, value_name = "MODE")]
    con1: Option<Console>,
    /// Show the primary console in a tmux session and open a window on it
    #[arg(long, conflicts_with_all = ["con0", "tmux_detached"])]
    tmux_attached: bool,
    /// Show the primary console in a tmux session
    #[arg(long, conflicts_with = "con0")]
    tmux_detached: bool,
    /// Terminal emulator for consoles in windows: xterm, gnome, konsole, konsole-tab, alacritty, kitty, kitty-tab
    #[arg(long, value_name = "TYPE")]
    xterm: Option<Emulator>,
    /// Run a command while the machine starts, before anybody can log in
    #[arg(short, long, value_name = "COMMAND")]
    exec: Option<String>,
    /// The directory of the lab the machine belongs to, shown as /hostlab
    #[arg(short = 'l', long, value_name = "DIRECTORY")]
    hostlab: Option<PathBuf>,
    /// The working directory of the lab, shown as /hostwd
    #[arg(short = 'w', long, value_name = "DIRECTORY")]
    hostwd: Option<PathBuf>,
    /// Add a word to the kernel's command line
    #[arg(long, value_name = "PARAMETER")]
    append: Vec<String>,
    /// Start into a single-user shell, without start-up commands
    #[arg(long)]
    single_user: bool,
    /// Lock the machine to a processor of the host: any, map (the first), map,N or N
    #[arg(long, value_name = "LOCK", default_value = "any", hide_default_value = true)]
    cpulock: CpuLock,
    /// Keep the number of the kernel's process in a file
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Wait for the machine to end; Ctrl-C halts it
    #[arg(short = 'F', long)]
    foreground: bool,
    /// Print what would be run, and run nothing
    #[arg(short, long, short_alias = 'n', aliases = ["dry-run", "just-print", "recon"])]
    print: bool,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,
    /// Tell what is run before it is run, and when each step is done
    #[arg(long, conflicts_with = "quiet")]
    debug: bool,
    /// Show the kernel's messages on the console
    #[arg(short, long, alias = "show-boot-log")]
    verbose: bool,
}

const EXAMPLES: &str = "\
Examples:
  vstart pc1
  vstart pc1 -M 256 -e 'touch /tmp/hello' --con0=this
  vstart producer --eth0=A
  vstart router --eth0=A --eth1=B
  vstart pc1 --eth0=nat
  vstart router --eth0=A --eth1=B -p";

/// This release and the host's kernel.
static RELEASE: LazyLock<String> = LazyLock::new(|| {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    let host = host.as_deref().map_or("<unavailable>", str::trim);
    format!("{}\nhost kernel {host}", env!("CARGO_PKG_VERSION"))
});

/// Reads the command line; the help shows what the user's settings are.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Options {
    let mut command = Options::command();
    // A broken configuration must not keep anybody from reading the help; running will tell.
    if let Ok(config) = super::config() {
        let settings = [
            "VM_KERNEL",
            "VM_MEMORY",
            "VM_MODEL_FS",
            "VM_CON0",
            "VM_CON1",
            "VM_TRANSPORT",
            "TERM_TYPE",
            "MAX_INTERFACES",
        ];
        let mut text = format!("{EXAMPLES}\n\nConfigured defaults:");
        for name in settings {
            let value = config
                .settings
                .get(name)
                .map_or("(not set)", |setting| setting.value.as_str());
            text.push_str(&format!("\n  {name:15} {value}"));
        }
        command = command.after_help(text);
    }
    let matches = command.try_get_matches_from_mut(with_interfaces(args));
    let matches = matches.unwrap_or_else(|error| error.exit());
    let options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Some(why) = options.contradiction() {
        command.error(ErrorKind::ArgumentConflict, why).exit();
    }
    options
}

impl Options {
    /// What cannot be had together, and what to do about it.
    fn contradiction(&self) -> Option<&'static str> {
        let (file, hidden) = (self.filesystem.is_some(), self.hide_disk_file);
        if self.no_cow && file {
            Some(
                "--no-cow changes the model itself, and nothing goes into the file of --filesystem\n\
                 hint: leave one of them out",
            )
        } else if self.no_cow && hidden {
            Some(
                "--no-cow changes the model itself, and there is no disk file to hide\n\
                 hint: leave --hide-disk-file out to change the model, --no-cow to leave it as it is",
            )
        } else if hidden && file {
            Some(
                "--hide-disk-file removes the changes when the machine ends, those in the file of --filesystem, too\n\
                 hint: leave one of them out",
            )
        } else if self.con0 == Some(Console::None) {
            Some(
                "the primary console cannot be disabled\n\
                 hint: with --con0=detached it is shown nowhere until vconnect does",
            )
        } else {
            None
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let config = super::config()?;
    let mut plan = plan(options, &config)?;
    if options.print {
        let mut out = std::io::stdout().lock();
        print(&plan, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.debug {
        print(&plan, &mut std::io::stderr().lock())?;
    }
    if let Some(names) = interfaces::other_names(&plan.machine).filter(|_| !options.quiet) {
        launch::note(&format!("{}: in the machine, {names}", options.name));
    }
    for interface in &mut plan.machine.interfaces {
        plan.tap = interfaces::make_tap(interface, &plan.dirs)?.or(plan.tap);
    }
    let this = plan.machine.consoles.contains(&Console::This);
    let follow = Follow {
        quiet: options.quiet,
        foreground: options.foreground || this,
        debug: options.debug,
    };
    match launch::start(&plan, follow)? {
        Outcome::Running | Outcome::Ended => Ok(ExitCode::SUCCESS),
        Outcome::Crashed(how) => bail!("machine {} has crashed: {how}", plan.machine.name),
    }
}

/// Decides everything.
fn plan(options: &Options, config: &Config) -> Result<Plan> {
    let name = options.name.clone();
    let dirs = config.dirs.clone();
    dirs.check(&name)?;
    let kernel = kernel(options, config)?;
    let memory_mb = options.mem.unwrap_or(config.memory_mb);
    let (least, most) = config.memory_range_mb;
    if !(least..=most).contains(&memory_mb) {
        bail!("cannot give machine {name} {memory_mb} MB of memory: use {least} to {most}");
    }
    options.cpulock.check()?;
    let (consoles, emulator) = consoles(options, config)?;
    let root = disks::root(&name, options, config)?;
    let agent = match &root {
        Root::Disk { .. } if options.agent || config.agent => Some(disks::init()?),
        // There it is in any case.
        _ => None,
    };
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_dir());
    let mut append = options.append.clone();
    append.extend(options.single_user.then(|| "single".to_owned()));
    let machine = Machine {
        memory_mb,
        memory_skew_mb: config.memory_skew_mb,
        agent,
        disks: disks::further(options)?,
        interfaces: interfaces::settle(options.interfaces.clone(), &options.details, &kernel, config)?,
        consoles,
        hosthome: home.filter(|_| !options.no_hosthome),
        hostlab: options.hostlab.as_deref().map(directory).transpose()?,
        hostwd: options.hostwd.as_deref().map(directory).transpose()?,
        mounts: mounts(options)?,
        modules: disks::modules(&root, &kernel),
        cpu: options.cpulock,
        pidfile: options.pidfile.as_deref().map(disks::absolute).transpose()?,
        exec: options.exec.clone(),
        append,
        verbose: options.verbose,
        term: terminal_type(),
        ..Machine::new(name, kernel, root)
    };
    let opens_window = options.tmux_attached || (config.tmux_opens_window && !options.tmux_detached);
    let windows = [0, 1].map(|number| window(&machine, number, emulator, opens_window));
    let window = netio::terminal::window_size(std::io::stdin().as_fd());
    Ok(Plan {
        machine,
        dirs,
        window,
        windows,
        tap: None,
    })
}

/// Directories of the host; one that is not there would be a machine without it.
fn mounts(options: &Options) -> Result<Vec<Mount>> {
    for mount in &options.mount {
        directory(&mount.source)?;
    }
    Ok(options.mount.clone())
}

fn kernel(options: &Options, config: &Config) -> Result<PathBuf> {
    let Some(path) = options.kernel.clone().or_else(|| config.default_kernel()) else {
        bail!(
            "cannot find a UML kernel: there is neither linux.uml nor linux in PATH\n\
             hint: install the package user-mode-linux, or name a kernel by --kernel"
        );
    };
    let path = std::path::absolute(&path).with_context(|| format!("cannot use kernel {}", path.display()))?;
    access(&path, AccessFlags::X_OK).with_context(|| format!("cannot run kernel {}", path.display()))?;
    if xstate::is_needed() && xstate::library().is_none() {
        eprintln!(
            "warning: {} is missing, without which UML kernels before Linux 6.13 panic on this processor\n\
             hint: install Hubbub as a whole",
            xstate::LIBRARY
        );
    }
    Ok(path)
}

/// Where the consoles are shown. What the user asks for must be possible; a default gives way.
fn consoles(options: &Options, config: &Config) -> Result<([Console; 2], Emulator)> {
    let emulator = options.xterm.unwrap_or(config.emulator);
    let mut consoles = config.consoles;
    let tmux = (options.tmux_attached || options.tmux_detached).then_some(Console::Tmux);
    if consoles[0] == Console::None {
        // As a default it may be; then nobody looks until somebody does.
        consoles[0] = Console::Detached;
    }
    for (number, asked) in [options.con0.or(tmux), options.con1].into_iter().enumerate() {
        let wanted = asked.unwrap_or(consoles[number]);
        let missing = match wanted {
            Console::Xterm => vconnect::missing(emulator),
            Console::Tmux if in_path("tmux").is_none() => Some("tmux is not installed".into()),
            _ => None,
        };
        consoles[number] = match missing {
            Some(reason) if asked.is_some() => bail!(
                "cannot show console {number} as asked: {reason}\nhint: --con{number}=detached needs nothing"
            ),
            Some(reason) => {
                if !options.quiet && !options.print {
                    launch::note(&format!(
                        "{}: {reason}: console {number} is detached",
                        options.name
                    ));
                }
                Console::Detached
            }
            None => wanted,
        };
    }
    if consoles == [Console::This, Console::This] {
        bail!("cannot show both consoles on this terminal\nhint: use another mode for one of them");
    }
    if let [Console::Port(a), Console::Port(b)] = consoles
        && a == b
    {
        bail!("cannot show both consoles on port {a}");
    }
    Ok((consoles, emulator))
}

/// The commands that open the window of a console, if it has one.
fn window(
    machine: &Machine,
    number: usize,
    emulator: Emulator,
    tmux_window: bool,
) -> Option<Vec<Vec<String>>> {
    let title = windows::title(&machine.name, number);
    let viewer = vconnect::viewer(&machine.name, number)?;
    match machine.consoles[number] {
        Console::Xterm => Some(vec![emulator.command(&title, &viewer)]),
        Console::Tmux => {
            let mut commands = vec![windows::tmux_start(&title, &viewer)];
            if tmux_window {
                commands.push(emulator.command(&title, &windows::tmux_attach(&title)));
            }
            Some(commands)
        }
        _ => None,
    }
}

fn directory(path: &Path) -> Result<PathBuf> {
    let absolute = path
        .canonicalize()
        .with_context(|| format!("cannot use directory {}", path.display()))?;
    if !absolute.is_dir() {
        bail!("cannot use {}: it is not a directory", path.display());
    }
    Ok(absolute)
}

/// The type of the user's terminal, if it can be a word of a command line.
fn terminal_type() -> String {
    let plain = |text: &String| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-+._".contains(c))
    };
    let here = std::io::stdin().is_terminal();
    std::env::var("TERM")
        .ok()
        .filter(plain)
        .filter(|_| here)
        .unwrap_or_else(|| "xterm".into())
}

/// Prints what would be run, as a shell would run it.
fn print(plan: &Plan, out: &mut impl Write) -> Result<()> {
    let machine = &plan.machine;
    let user = User::from_uid(getuid())
        .ok()
        .flatten()
        .map_or_else(|| getuid().to_string(), |user| user.name);
    let mut domains = BTreeMap::new();
    for interface in &machine.interfaces {
        let domain = interface.attachment.domain();
        let reach = switch::expected_reach(&plan.dirs, &user, &domain);
        domains.insert(domain, reach);
        if let Attachment::Tap { host, .. } = &interface.attachment {
            writeln!(out, "{}", quoted(tap::command(*host).into_iter()))?;
        }
    }
    if !domains.is_empty() {
        let switchd = program("switchd").map_or_else(|| "switchd".into(), |path| path.display().to_string());
        writeln!(
            out,
            "{}",
            quoted(std::iter::once(switchd).chain(switch::start_args(&plan.dirs)))
        )?;
    }
    for domain in domains.keys() {
        let request =
            serde_json::to_string(&switch::hold_request(domain)).context("cannot write the request")?;
        writeln!(out, "# {}: {request}", plan.dirs.switch_socket().display())?;
        if domain.as_str() == NAT {
            let request =
                serde_json::to_string(&switch::uplink_request(domain)).context("cannot write the request")?;
            writeln!(out, "# {}: {request}", plan.dirs.switch_socket().display())?;
        }
    }
    if let Some((path, command)) = exec_file(machine, &plan.dirs) {
        writeln!(
            out,
            "printf %s {} > {}",
            shell_quoted(command),
            shell_quoted(&path.display().to_string())
        )?;
    }
    let args = kernel_args(machine, &plan.dirs, &domains)?;
    let mut words = Vec::new();
    if let Some(number) = machine.cpu.cpu() {
        words.extend(["taskset".to_owned(), "-c".to_owned(), number.to_string()]);
    }
    if let Some(library) = xstate::library() {
        words.extend([
            "env".to_owned(),
            format!("{}={}", xstate::VARIABLE, library.display()),
        ]);
    }
    words.push(machine.kernel.display().to_string());
    words.extend(args);
    writeln!(out, "{}", quoted(words.into_iter()))?;
    for command in plan.windows.iter().flatten().flatten() {
        writeln!(out, "{}", quoted(command.iter().cloned()))?;
    }
    Ok(())
}

fn quoted(words: impl Iterator<Item = String>) -> String {
    words
        .map(|word| shell_quoted(&word))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        let args = std::iter::once("vstart")
            .chain(args.iter().copied())
            .map(OsString::from);
        Options::try_parse_from(with_interfaces(args))
    }

    fn home(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/home/foo".into())
    }

    #[test]
    fn both_spellings_of_printing_are_known() {
        for flag in ["-p", "-n", "--print", "--dry-run", "--just-print", "--recon"] {
            assert!(parse(&["pc1", flag]).unwrap().print, "{flag}");
        }
    }

    #[test]
    fn both_consoles_cannot_be_here() {
        let options = parse(&["pc1", "--con0=this", "--con1=this"]).unwrap();
        assert!(consoles(&options, &Config::new(&[], home).unwrap()).is_err());
        let options = parse(&["pc1", "--con0=this", "--con1=pty"]).unwrap();
        assert_eq!(
            consoles(&options, &Config::new(&[], home).unwrap()).unwrap().0,
            [Console::This, Console::Pty]
        );
    }

    #[test]
    fn names_are_checked_by_the_parser() {
        for name in ["a b", "../x", ""] {
            assert_eq!(parse(&[name]).unwrap_err().exit_code(), 2);
        }
        assert_eq!(parse(&["pc1", "--eth0=a_b"]).unwrap_err().exit_code(), 2);
    }
}

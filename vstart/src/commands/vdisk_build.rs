//! `vdisk build`: a model file system from a directory, or from Debian's packages.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::vdisk::{Output, interruptions, say};
use crate::switch::in_path;

#[derive(Debug, Args)]
pub(super) struct Build {
    /// The new model
    output: PathBuf,
    /// Take the files of a directory; those of yours belong to root in the model
    #[arg(long, value_name = "DIRECTORY", required_unless_present = "debootstrap")]
    from: Option<PathBuf>,
    /// Install a release of Debian, such as bookworm; needs root, and the network
    #[arg(long, value_name = "SUITE", conflicts_with = "from")]
    debootstrap: Option<String>,
    /// Where its packages are
    #[arg(long, value_name = "URL", requires = "debootstrap")]
    mirror: Option<String>,
    /// Packages to install beside what a machine needs
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', requires = "debootstrap")]
    include: Vec<String>,
    /// Size of the model [default: twice the files, and 64 MiB]
    #[arg(short, long, value_parser = bytes)]
    size: Option<u64>,
    /// Type of the file system
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = ["ext2", "ext3", "ext4"], default_value = "ext4")]
    kind: String,
    /// Replace a file that is there
    #[arg(short = 'F', long)]
    force: bool,
}

pub(super) fn run(build: &Build) -> Result<()> {
    let output = Output::new(&build.output, build.force)?;
    let interrupted = interruptions()?;
    let fresh;
    let tree = match (&build.from, &build.debootstrap) {
        (Some(tree), _) => {
            let is_dir = tree.is_dir();
            is_dir
                .then_some(tree.as_path())
                .with_context(|| format!("cannot use {}: it is not a directory", tree.display()))?
        }
        (None, Some(suite)) => {
            fresh = tempfile::Builder::new()
                .prefix("vdisk-")
                .tempdir()
                .context("cannot make a directory")?;
            debootstrap(build, suite, fresh.path(), &interrupted)?;
            fresh.path()
        }
        (None, None) => bail!(
            "cannot make {}: neither --from nor --debootstrap",
            build.output.display()
        ),
    };
    let size = match build.size {
        Some(size) => size,
        None => sum(tree).with_context(|| format!("cannot read {}", tree.display()))? * 2 + LEAST,
    };
    let bar = spinner("writing the file system");
    file_system(build, tree, output.file.path(), size)?;
    bar.finish_and_clear();
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    output.finish()?;
    say(&format!(
        "{}: {}, {}",
        build.output.display(),
        build.kind,
        HumanBytes(size)
    ));
    Ok(())
}

/// What a model is at least larger than its files.
const LEAST: u64 = 64 << 20;
/// What a machine cannot do without.
const NEEDED: &str = "init,iproute2,iputils-ping,kmod,procps,udev";

fn file_system(build: &Build, tree: &Path, file: &Path, size: u64) -> Result<()> {
    let mut words: Vec<&OsStr> = Vec::new();
    // To a user namespace the user's own files are root's.
    if !nix::unistd::geteuid().is_root() {
        words.extend(["unshare", "--map-root-user", "--"].map(OsStr::new));
    }
    let mke2fs = program("mke2fs", "e2fsprogs")?;
    words.push(mke2fs.as_os_str());
    words.extend(["-q", "-F", "-t", &build.kind, "-E", "root_owner=0:0", "-d"].map(OsStr::new));
    let blocks = format!("{}k", size.div_ceil(1024));
    words.extend([tree.as_os_str(), file.as_os_str(), OsStr::new(&blocks)]);
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    if !output.status.success() {
        bail!(
            "cannot make a file system of {} bytes from {}: {}",
            size,
            tree.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn debootstrap(build: &Build, suite: &str, tree: &Path, interrupted: &Arc<AtomicBool>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "cannot install Debian: that needs root\nhint: use sudo, or mmdebstrap and 'vdisk build --from DIRECTORY'"
        );
    }
    let program = program("debootstrap", "debootstrap")?;
    let packages = [&[NEEDED.to_owned()][..], &build.include].concat().join(",");
    let mut child = Command::new(program)
        .args(["--variant=minbase", &format!("--include={packages}"), suite])
        .arg(tree)
        .args(&build.mirror)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run debootstrap")?;
    let bar = spinner("installing Debian");
    let mut last = String::new();
    for line in BufReader::new(child.stdout.take().context("debootstrap has no output")?).lines() {
        last = line.context("cannot hear debootstrap")?;
        bar.set_message(last.trim_start_matches("I: ").to_owned());
    }
    bar.finish_and_clear();
    let status = child.wait().context("cannot wait for debootstrap")?;
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    if !status.success() {
        bail!("cannot install Debian {suite}: debootstrap ended with {status}; its last words were: {last}");
    }
    make_usable(tree).context("cannot prepare the new system")
}

/// Lets root in without a password, on both consoles of a machine.
fn make_usable(tree: &Path) -> io::Result<()> {
    let shadow = tree.join("etc/shadow");
    let text = fs::read_to_string(&shadow)?;
    let lines = text.lines().map(|line| match line.strip_prefix("root:*:") {
        Some(rest) => format!("root::{rest}\n"),
        None => format!("{line}\n"),
    });
    fs::write(&shadow, lines.collect::<String>())?;
    fs::write(tree.join("etc/fstab"), "/dev/ubda / auto defaults 0 1\n")?;
    let wanted = tree.join("etc/systemd/system/getty.target.wants");
    fs::create_dir_all(&wanted)?;
    symlink(
        "/lib/systemd/system/getty@.service",
        wanted.join("getty@tty0.service"),
    )
}

fn program(name: &str, package: &str) -> Result<PathBuf> {
    // Ordinary users may not have these in their PATH.
    in_path(name)
        .or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|path| path.is_file()))
        .with_context(|| format!("cannot find the program {name}\nhint: install the package {package}"))
}

/// Bytes of all files of a tree, as a file system would store them.
fn sum(tree: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() {
            sum(&entry.path())?
        } else {
            data.len()
        };
        bytes = bytes.next_multiple_of(4096);
    }
    Ok(bytes)
}

/// Reads a number of bytes: `512M`, `2G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(format!("'{unit}' is no unit: use K, M, G or T")),
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no size: use a number, and K, M, G or T"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| (1..1 << 60).contains(bytes))
        .ok_or_else(|| format!("'{text}' is no size a disk can have"))
}

/// What the first 2 KiB of a disk say about its contents.
pub(super) fn kind(start: &[u8]) -> &'static str {
    // The superblock of ext2 and its successors begins at 1024.
    let word = |at: usize| {
        start
            .get(at..)
            .and_then(|bytes| bytes.first_chunk::<4>().copied())
            .map(u32::from_le_bytes)
    };
    let (Some(magic), Some(compatible), Some(incompatible)) =
        (word(1024 + 56), word(1024 + 92), word(1024 + 96))
    else {
        return "unknown";
    };
    match (magic & 0xffff, compatible & HAS_JOURNAL, incompatible & EXTENTS) {
        (0xef53, _, EXTENTS) => "ext4",
        (0xef53, HAS_JOURNAL, _) => "ext3",
        (0xef53, ..) => "ext2",
        _ => "unknown",
    }
}

const HAS_JOURNAL: u32 = 0x4;
const EXTENTS: u32 = 0x40;

fn spinner(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
    bar.set_style(style.expect("the template is right"));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("2k"), Ok(2048));
        assert_eq!(bytes("3G"), Ok(3 << 30));
        for text in ["", "K", "0", "1X", "-1M", "1.5G", "99999999999T", "1é"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_contents_are_unknown() {
        assert_eq!(kind(&[]), "unknown");
        assert_eq!(kind(&[0; 2048]), "unknown");
    }
}

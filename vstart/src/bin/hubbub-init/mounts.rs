//! The machine's file system tree.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::words::Words;

/// Where our own binary is found in the machine.
pub(crate) const SELF: &str = "/run/hubbub/init";

/// Puts a writable overlay over the host's tree and makes it the root. `/proc` must be mounted; it is mounted
/// again in the new tree.
pub(crate) fn writable_root(words: &Words) -> Result<()> {
    if !has_file_system("overlay")? {
        load_overlay(words)?;
    }
    // Any directory of the host will do as a mount point: the tmpfs only has to be somewhere.
    let base = Path::new("/run");
    mount_type(
        "tmpfs",
        "tmpfs",
        base,
        MsFlags::empty(),
        Some("size=90%,mode=0755"),
    )?;
    let (upper, work, root) = (base.join("upper"), base.join("work"), base.join("root"));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    // The upper layer's own directory becomes the root directory and must be readable to all.
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))
        .context("cannot open up the root directory")?;
    mount_type(
        "overlay",
        "overlay",
        &root,
        MsFlags::empty(),
        Some("lowerdir=/,upperdir=/run/upper,workdir=/run/work"),
    )?;

    for (kind, dir, data) in [
        ("proc", "proc", None),
        ("sysfs", "sys", None),
        ("devtmpfs", "dev", None),
        ("tmpfs", "run", Some("mode=0755")),
        ("tmpfs", "tmp", Some("mode=1777")),
    ] {
        let target = root.join(dir);
        make_dir(&target)?;
        mount_type(kind, kind, &target, MsFlags::empty(), data)?;
    }
    place_self(&root.join(SELF.trim_start_matches('/')))?;

    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
    chdir(&root).context("cannot enter the new root")?;
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the old root")?;
    chdir("/").context("cannot enter the new root")?;
    devices()?;
    private_home()
}

/// Mounts directories of the host that the command line names.
pub(crate) fn host_directories(words: &Words) {
    for (word, target) in [
        ("hosthome", "/hosthome"),
        ("hostlab", "/hostlab"),
        ("hostwd", "/hostwd"),
    ] {
        if let Some(source) = words.value(word) {
            report(host_directory(source, target));
        }
    }
    for pair in words.values("mount") {
        match pair.split_once(',') {
            Some((source, target)) => report(host_directory(source, target)),
            None => eprintln!("hubbub-init: cannot mount '{pair}': it is not SOURCE,TARGET"),
        }
    }
    // Modules belong to the running kernel, not to the tree.
    if let Some(tree) = module_tree(words) {
        let target = Path::new("/lib/modules").join(release());
        if !target.is_dir() {
            report(make_dir(&target).and_then(|()| bind(&tree, &target)));
        }
    }
}

/// Makes `poweroff` and its kin reach this process, whatever the host's own would do.
pub(crate) fn power_commands() {
    for name in ["poweroff", "halt", "reboot", "shutdown"] {
        let path = Path::new("/usr/sbin").join(name);
        let result = remove(&path).and_then(|()| symlink(SELF, &path));
        report(result.with_context(|| format!("cannot make {}", path.display())));
    }
}

/// Prints an error that does not keep the machine from coming up.
pub(crate) fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("hubbub-init: {error:#}");
    }
}

/// Mounts a file system of the given type.
pub(crate) fn mount_type(
    kind: &str,
    source: &str,
    target: &Path,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, data)
        .with_context(|| format!("cannot mount {kind} on {}", target.display()))
}

fn host_directory(source: &str, target: &str) -> Result<()> {
    let target = Path::new(target);
    make_dir(target)?;
    // hostfs takes its whole option text for the directory: commas and blanks in it are fine.
    mount_type("hostfs", "none", target, MsFlags::empty(), Some(source))
        .with_context(|| format!("cannot show the host's {source}"))
}

fn has_file_system(name: &str) -> Result<bool> {
    let text = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    Ok(text
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name)))
}

fn load_overlay(words: &Words) -> Result<()> {
    let Some(tree) = module_tree(words) else {
        bail!(
            "this kernel has no overlay file system and its modules ({}) are not installed\n\
             hint: install the package the kernel came in, or name the directory by modules=DIR",
            release()
        );
    };
    load(&tree.join("kernel/fs/overlayfs/overlay.ko"))
}

/// Loads the driver of virtio's network cards, where there are such and the kernel has it as a module.
pub(crate) fn load_cards(words: &Words) {
    if words.cards().next().is_none() || Path::new("/sys/bus/virtio/drivers/virtio_net").exists() {
        return;
    }
    let Some(tree) = module_tree(words) else {
        eprintln!(
            "hubbub-init: network cards of virtio need a module, and those of this kernel ({}) are not installed",
            release()
        );
        return;
    };
    for module in [
        "net/core/failover.ko",
        "drivers/net/net_failover.ko",
        "drivers/net/virtio_net.ko",
    ] {
        report(load(&tree.join("kernel").join(module)));
    }
}

fn load(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty())
        .with_context(|| format!("cannot load {}", path.display()))
}

/// The module tree of the running kernel, wherever it was installed.
fn module_tree(words: &Words) -> Option<PathBuf> {
    let release = release();
    let named = words
        .value("modules")
        .map(|dir| Path::new(dir).join("lib/uml/modules"));
    named
        .into_iter()
        .chain(["/usr/lib/uml/modules", "/lib/modules"].map(PathBuf::from))
        .map(|dir| dir.join(&release))
        .find(|dir| dir.is_dir())
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Shows our own binary where no mount hides it, as one may hide the path we were started by.
fn place_self(target: &Path) -> Result<()> {
    make_dir(target.parent().expect("the path has a directory"))?;
    File::create(target).with_context(|| format!("cannot make {}", target.display()))?;
    bind(Path::new("/proc/self/exe"), target)
}

fn devices() -> Result<()> {
    for (name, mode) in [("pts", "mode=0620,gid=5,ptmxmode=0666"), ("shm", "mode=1777")] {
        let target = Path::new("/dev").join(name);
        make_dir(&target)?;
        let kind = if name == "pts" { "devpts" } else { "tmpfs" };
        mount_type(kind, kind, &target, MsFlags::MS_NOSUID, Some(mode))?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let link = Path::new("/dev").join(link);
        if !link.exists() {
            symlink(target, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(())
}

/// Gives root a home of its own: the host's may be closed to the user who runs the machine, and if it is not, its
/// start-up files are meant for another machine.
fn private_home() -> Result<()> {
    let home = Path::new("/root");
    make_dir(home)?;
    mount_type("tmpfs", "tmpfs", home, MsFlags::empty(), Some("mode=0700"))?;
    for file in fs::read_dir("/etc/skel").into_iter().flatten().flatten() {
        // A file that cannot be copied is one start-up file less, no more.
        let _ = fs::copy(file.path(), home.join(file.file_name()));
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot show {} as {}", source.display(), target.display()))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

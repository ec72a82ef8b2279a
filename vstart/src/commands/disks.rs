//! What `vstart` makes of its options about files and disks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::vstart::Options;
use crate::config::Config;
use crate::cow;
use crate::machine::{Disk, Root};
use crate::name::MachineName;
use crate::registry::Registry;
use crate::switch::program;

/// Where the machine's files come from: a model file system if there is one, the host if not.
pub(super) fn root(name: &MachineName, options: &Options, config: &Config) -> Result<Root> {
    let Some(model) = options.model_fs.as_deref().or(config.model.as_deref()) else {
        for (asked, option) in [
            (options.filesystem.is_some(), "--filesystem"),
            (options.no_cow, "--no-cow"),
            (options.hide_disk_file, "--hide-disk-file"),
        ] {
            if asked {
                bail!(
                    "cannot do without a model file system: {option} is about changes to it\n\
                     hint: name one by --model-fs, NETKIT_FILESYSTEM or VM_MODEL_FS in netkit.conf"
                );
            }
        }
        return Ok(Root::Host { init: init()? });
    };
    let model = model
        .canonicalize()
        .with_context(|| format!("cannot use model file system {}", model.display()))?;
    if options.no_cow {
        return Ok(Root::Disk { model, changes: None });
    }
    let changes = match &options.filesystem {
        _ if options.hide_disk_file => config.dirs.machine(name).join("disk"),
        Some(path) => absolute(path)?,
        None => absolute(Path::new(&format!("{name}.disk")))?,
    };
    check_pair(&changes, &model)?;
    let registry = Registry::new(config.dirs.clone());
    for record in registry.list()? {
        if let Root::Disk {
            changes: Some(used), ..
        } = &record.machine.root
            && *used == changes
            && record.machine.name != *name
        {
            bail!(
                "cannot use {}: machine {} is using it",
                changes.display(),
                record.machine.name
            );
        }
    }
    Ok(Root::Disk {
        model,
        changes: Some(changes),
    })
}

/// Disks beside the first.
pub(super) fn further(options: &Options) -> Result<Vec<Disk>> {
    let disks = options
        .disk
        .iter()
        .map(|file| (file, true))
        .chain(options.cdrom.iter().map(|file| (file, false)));
    disks
        .map(|(file, writable)| {
            let file = file
                .canonicalize()
                .with_context(|| format!("cannot use disk {}", file.display()))?;
            Ok(Disk { file, writable })
        })
        .collect()
}

/// The directory with the kernel's modules that Netkit's file systems mount: the one the kernel is installed in.
pub(super) fn modules(root: &Root, kernel: &Path) -> Option<PathBuf> {
    let prefix = kernel.parent()?.parent()?;
    let installed = prefix.join("lib/uml/modules").is_dir();
    (matches!(root, Root::Disk { .. }) && installed).then(|| prefix.to_owned())
}

/// The path as it is from anywhere.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))
}

/// Refuses changes that were made to another model: the kernel would, but only to a machine without a disk.
fn check_pair(changes: &Path, model: &Path) -> Result<()> {
    let mut start = Vec::new();
    match File::open(changes) {
        Ok(file) => {
            let limit = u64::try_from(cow::HEADER_BYTES).unwrap_or(u64::MAX);
            file.take(limit)
                .read_to_end(&mut start)
                .with_context(|| format!("cannot read {}", changes.display()))?
        }
        // The kernel makes it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", changes.display())),
    };
    let Some(header) = cow::parse(&start) else {
        bail!(
            "cannot use {} for changes: it is something else than a COW file",
            changes.display()
        );
    };
    let same = header
        .backing
        .canonicalize()
        .is_ok_and(|backing| backing == model);
    if !same {
        bail!(
            "cannot use {} with model {}: it has changes to {}\nhint: name that model by --model-fs",
            changes.display(),
            model.display(),
            header.backing.display()
        );
    }
    Ok(())
}

/// The first process of guests without a file system of their own, which is also the script of DHCP clients.
pub(super) fn init() -> Result<PathBuf> {
    program("hubbub-init")
        .or_else(|| installed_beside("../lib/hubbub/hubbub-init"))
        .context("cannot find hubbub-init, the guest's first process\nhint: install Hubbub as a whole")
}

fn installed_beside(relative: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.join(relative);
    path.canonicalize().ok().filter(|path| path.is_file())
}

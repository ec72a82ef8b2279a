//! What `vstart` makes of its options about files and disks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::vstart::Options;
use crate::config::Config;
use crate::disk::{self, Disk, DiskError};
use crate::machine::{self, Root};
use crate::name::MachineName;
use crate::registry::{Registry, Status};
use crate::switch::{in_path, installed};

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
        check_free(name, config, &model, None)?;
        return Ok(Root::Disk { model, changes: None });
    }
    let changes = match &options.filesystem {
        _ if options.hide_disk_file => config.dirs.machine(name).join("disk"),
        Some(path) => absolute(path)?,
        None => absolute(Path::new(&format!("{name}.disk")))?,
    };
    check_pair(&changes, &model)?;
    check_free(name, config, &model, Some(&changes))?;
    Ok(Root::Disk {
        model,
        changes: Some(changes),
    })
}

/// Refuses files that another machine changes, or that would be changed under it.
fn check_free(name: &MachineName, config: &Config, model: &Path, changes: Option<&Path>) -> Result<()> {
    let registry = Registry::new(config.dirs.clone());
    for record in registry.list()? {
        let other = &record.machine;
        let Root::Disk {
            model: their_model,
            changes: theirs,
        } = &other.root
        else {
            continue;
        };
        // What has crashed uses nothing any more.
        if other.name == *name || record.status == Status::Crashed {
            continue;
        }
        // A model may be shared by all who leave it as it is.
        let taken = match (changes, theirs) {
            (Some(ours), Some(theirs)) if ours == theirs => ours,
            (None, _) | (_, None) if model == their_model => model,
            _ => continue,
        };
        bail!(
            "cannot use {}: machine {} is using it",
            taken.display(),
            other.name
        );
    }
    Ok(())
}

/// Disks beside the first.
pub(super) fn further(options: &Options) -> Result<Vec<machine::Disk>> {
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
            Ok(machine::Disk { file, writable })
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
    let disk = match Disk::look(changes) {
        // The kernel makes it.
        Err(DiskError::Io(_, _, error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        disk => disk?,
    };
    let header = disk.changes()?;
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
    Ok(disk::check_unchanged(changes, header, model)?)
}

/// The first process of guests without a file system of their own, which is also the script of DHCP clients.
pub(super) fn init() -> Result<PathBuf> {
    installed("hubbub-init")
        .or_else(|| in_path("hubbub-init"))
        .context("cannot find hubbub-init, the guest's first process\nhint: install Hubbub as a whole")
}

//! A small model file system: busybox, and an init that reports and obeys Ctrl-Alt-Del.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program;

/// What the model does at start: show the host's directory and leave a report there, changed at every boot.
const START: &str = "\
#!/bin/sh
mount -t proc proc /proc
mount -o remount,rw /
for word in $(cat /proc/cmdline | tr -d '\"'); do
    case $word in hosthome=*) mount -t hostfs none /hosthome -o ${word#hosthome=} ;; esac
done
echo booted >> /boots
{ wc -l < /boots; cat /proc/cmdline; cat /proc/partitions; } > /hosthome/report.new
mv /hosthome/report.new /hosthome/report
";

const INITTAB: &str = "::sysinit:/etc/start\n::ctrlaltdel:/sbin/poweroff\n::shutdown:/bin/umount -a -r\n\
                       tty0::respawn:/bin/sh\n";

/// Makes the model in a directory; its path.
///
/// # Panics
/// When it cannot be made.
pub fn make(dir: &Path) -> PathBuf {
    let tree = tree(dir);
    let image = dir.join("model");
    let made = Command::new(program::tool("mke2fs"))
        .args(["-q", "-t", "ext2", "-d"])
        .arg(&tree)
        .arg(&image)
        .arg("16M")
        .output()
        .expect("mke2fs runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(tree).expect("the tree is ours");
    image
}

/// Makes its files alone, in a directory; the path of their root.
///
/// # Panics
/// When they cannot be made.
pub fn tree(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    for sub in ["bin", "sbin", "etc", "proc", "dev", "hosthome"] {
        fs::create_dir_all(tree.join(sub)).expect("the directory is ours");
    }
    fs::copy(program::tool("busybox"), tree.join("bin/busybox")).expect("the tree is ours");
    for name in [
        "sbin/init",
        "sbin/poweroff",
        "bin/sh",
        "bin/ip",
        "bin/mount",
        "bin/umount",
        "bin/cat",
        "bin/tr",
        "bin/wc",
        "bin/mv",
    ] {
        symlink("/bin/busybox", tree.join(name)).expect("the tree is ours");
    }
    fs::write(tree.join("etc/inittab"), INITTAB).expect("the tree is ours");
    fs::write(tree.join("etc/start"), START).expect("the tree is ours");
    fs::set_permissions(tree.join("etc/start"), fs::Permissions::from_mode(0o755)).expect("the tree is ours");
    tree
}

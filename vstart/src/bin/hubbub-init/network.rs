//! Host name, loopback, and the addresses the command line gives or has asked for.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::dhcp;
use crate::mounts::report;
use crate::words::Words;

/// Sets the machine's name, in the kernel and in the files that programs ask.
pub(crate) fn name(words: &Words) {
    let name = words.value("hostname").unwrap_or("uml");
    report(nix::unistd::sethostname(name).with_context(|| format!("cannot set the host name {name}")));
    let hosts = format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    );
    for (path, text) in [("/etc/hostname", format!("{name}\n")), ("/etc/hosts", hosts)] {
        report(fs::write(path, text).with_context(|| format!("cannot write {path}")));
    }
}

/// Calls every interface what users call it, whatever driver it has. The kernel counts cards of virtio as they come, so
/// one may have another interface's name: they go out of the way first, and each to its place last.
pub(crate) fn rename(words: &Words) {
    rename_cards(words, "card");
    for number in words.vectors() {
        let (given, name) = (format!("vec{number}"), format!("eth{number}"));
        report(ip(&["link", "set", &given, "name", &name]));
    }
    rename_cards(words, "eth");
}

fn rename_cards(words: &Words, prefix: &str) {
    for number in words.cards() {
        let renamed = card(number).and_then(|given| {
            let name = format!("{prefix}{number}");
            if given == name {
                return Ok(());
            }
            ip(&["link", "set", &given, "name", &name])
        });
        report(renamed);
    }
}

/// What the kernel calls a card of virtio.
fn card(number: u32) -> Result<String> {
    let device = format!("/sys/bus/platform/devices/virtio-uml.{number}");
    let missing =
        || format!("there is no card for eth{number}: switchd was not there when the machine started");
    let cards = fs::read_dir(&device).with_context(missing)?;
    let mut names = cards.flatten().filter_map(|entry| {
        let first = fs::read_dir(entry.path().join("net")).ok()?.flatten().next()?;
        first.file_name().into_string().ok()
    });
    names.next().with_context(missing)
}

/// Brings up what needs no thought: loopback, and interfaces with an address on the command line.
pub(crate) fn bring_up(words: &Words) {
    report(ip(&["link", "set", "lo", "up"]));
    for (interface, address) in words.autoconf() {
        report(ip(&["address", "add", &address, "dev", interface]));
        report(ip(&["link", "set", interface, "up"]));
    }
    for interface in words.values("dhcp") {
        report(dhcp::ask(interface));
    }
    if let Some(gateway) = words.value("def_route") {
        report(ip(&["route", "add", "default", "via", gateway]));
    }
}

/// Runs ip(8).
pub(crate) fn ip(args: &[&str]) -> Result<()> {
    let line = args.join(" ");
    let output = Command::new("ip")
        .args(args)
        .env("PATH", crate::session::PATH)
        .output()
        .with_context(|| format!("cannot run 'ip {line}'"))?;
    if !output.status.success() {
        bail!(
            "'ip {line}' failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

//! Interfaces configured by DHCP: busybox's udhcpc asks, and runs this binary when it has an answer.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::mounts::SELF;
use crate::network::ip;

/// The argument that makes this binary ask for an interface.
pub(crate) const WORD: &str = "@dhcp";

/// What udhcpc has to say: the one argument of its script.
pub(crate) const EVENTS: [&str; 5] = ["deconfig", "bound", "renew", "nak", "leasefail"];

/// Asks for an address. Returns when there is one, or after a few seconds; then asking goes on in the background.
pub(crate) fn ask(interface: &str) -> Result<()> {
    ip(&["link", "set", interface, "up"])?;
    // One question a second, ten at once and then ten every few seconds.
    let arguments = [
        "udhcpc", "-i", interface, "-s", SELF, "-b", "-t", "10", "-T", "1", "-A", "3",
    ];
    let status = Command::new("busybox")
        .args(arguments)
        .env("PATH", crate::session::PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot configure {interface}: cannot run busybox"))?;
    if !status.success() {
        bail!("cannot configure {interface}: udhcpc has ended with {status}");
    }
    Ok(())
}

/// Does what udhcpc has found out, which is in the environment.
pub(crate) fn event(event: &str) -> Result<()> {
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    let interface = value("interface");
    match event {
        "deconfig" => {
            ip(&["link", "set", &interface, "up"])?;
            ip(&["-4", "address", "flush", "dev", &interface])
        }
        "bound" | "renew" => {
            let address = format!("{}/{}", value("ip"), value("mask"));
            ip(&[
                "address",
                "replace",
                &address,
                "broadcast",
                "+",
                "dev",
                &interface,
            ])?;
            if let Some(router) = value("router").split_whitespace().next() {
                ip(&["route", "replace", "default", "via", router, "dev", &interface])?;
            }
            name_servers(&value("domain"), &value("dns"))
        }
        // The server has refused, or nobody answers: udhcpc goes on by itself.
        _ => Ok(()),
    }
}

fn name_servers(domain: &str, servers: &str) -> Result<()> {
    let mut text = String::new();
    if !domain.is_empty() {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in servers.split_whitespace() {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if servers.is_empty() {
        return Ok(());
    }
    let path = "/etc/resolv.conf";
    // Often a link into a directory of the host's that a machine has not.
    fs::write(path, &text)
        .or_else(|_| fs::remove_file(path).and_then(|()| fs::write(path, &text)))
        .with_context(|| format!("cannot write {path}"))
}

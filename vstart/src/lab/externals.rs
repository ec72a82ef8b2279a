//! Joins the domains of a lab to interfaces of the host, as its `lab.ext` wants it.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::ext::{self, External};
use super::{Level, Problem};
use crate::dirs::Dirs;
use crate::switch::{Client, SwitchError, program};

/// What is wrong with it here: the host has no such interface.
pub fn missing(external: &External) -> Option<Problem> {
    let name = external.interface.as_str();
    let there = nix::net::if_::if_nametoindex(name).is_ok();
    let text = format!("this host has no interface {name}");
    (!there).then(|| Problem::new(ext::FILE, external.line, Level::Error, text))
}

/// Makes the ports that are not there yet. The domains exist for as long as what is returned does, and then for as long
/// as somebody else holds them; the ports go with them.
///
/// # Errors
/// When switchd cannot be asked, or nobody may open an interface.
pub fn join(externals: &[External], dirs: &Dirs) -> Result<Option<Client>> {
    if externals.is_empty() {
        return Ok(None);
    }
    let mut client = Client::connect_or_start(dirs)?;
    for external in externals {
        client.hold(&external.domain)?;
        let port = external.port();
        let ports = client.all_ports()?;
        if ports
            .iter()
            .any(|row| row.domain == external.domain && row.kind == "nic" && row.name == port)
        {
            continue;
        }
        // It opens the interface, by sudo where that is needed, and says what is wrong.
        let switchd = program("switchd").ok_or(SwitchError::NoProgram)?;
        let status = Command::new(&switchd)
            .arg("--dir")
            .arg(&dirs.hubs)
            .args(external.arguments())
            .status()
            .with_context(|| format!("cannot run {}", switchd.display()))?;
        if !status.success() {
            bail!(
                "{}:{}: domain {} is not joined to {port}",
                ext::FILE,
                external.line,
                external.domain
            );
        }
    }
    Ok(Some(client))
}

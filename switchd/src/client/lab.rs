//! The domains of a lab. What the lab's files mean is known to vstart, which is asked as a program: nothing of it is
//! linked here.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use proto::DomainName;
use serde::Deserialize;

/// What is of interest in the output of `linfo --json`.
#[derive(Deserialize)]
struct Lab {
    machines: Vec<Machine>,
}

#[derive(Deserialize)]
struct Machine {
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    domain: Option<DomainName>,
}

/// The domains that machines of the lab in this directory are attached to.
pub(super) fn domains(directory: &Path) -> anyhow::Result<Vec<DomainName>> {
    let shown = directory.display();
    let output = Command::new(vstart())
        .args([OsStr::new("linfo"), OsStr::new("--json"), OsStr::new("-d")])
        .arg(directory)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run vstart, which knows labs, for the lab in {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("linfo: ");
        bail!("cannot capture the lab in {shown}: {said}");
    }
    let lab = serde_json::from_slice(&output.stdout).context("cannot understand vstart")?;
    let domains = of(lab);
    if domains.is_empty() {
        bail!("no machine of the lab in {shown} has a domain");
    }
    Ok(domains)
}

fn of(lab: Lab) -> Vec<DomainName> {
    let interfaces = lab.machines.into_iter().flat_map(|machine| machine.interfaces);
    interfaces.filter_map(|interface| interface.domain).collect()
}

/// Beside this program if it is there, else wherever PATH has it.
fn vstart() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("vstart"));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "vstart".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_without_a_domain_are_passed_over() {
        let lab = r#"{"directory": "/lab", "machines": [{"name": "a", "interfaces": [
            {"name": "eth0", "domain": "left", "address": "02:00:00:00:00:01"},
            {"name": "eth1", "nat": true, "address": "02:00:00:00:00:02"},
            {"name": "eth2", "tap": {"host": "10.0.0.1", "guest": "10.0.0.2"}, "address": "02:00:00:00:00:03"}]}]}"#;
        let domains = of(serde_json::from_str(lab).unwrap());
        assert_eq!(domains, ["left".parse().unwrap()]);
    }
}

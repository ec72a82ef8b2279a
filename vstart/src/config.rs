//! Defaults that the user may change.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::machine::Console;
use crate::switch::in_path;
use crate::windows::Emulator;

/// The defaults of machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The UML kernel; searched for if absent.
    pub kernel: Option<PathBuf>,
    /// Memory of a guest, in MB.
    pub memory_mb: u32,
    /// Least and most memory of a guest, in MB.
    pub memory_range_mb: (u32, u32),
    /// Number of interfaces a machine may have.
    pub max_interfaces: u32,
    /// The primary and the secondary console.
    pub consoles: [Console; 2],
    /// The terminal emulator of consoles in windows.
    pub emulator: Emulator,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: None,
            memory_mb: 128,
            memory_range_mb: (8, 65536),
            max_interfaces: 40,
            consoles: [Console::Xterm, Console::None],
            emulator: Emulator::Xterm,
        }
    }
}

impl Config {
    /// The defaults, as the environment changes them.
    ///
    /// # Errors
    /// When a variable has a value that cannot be.
    pub fn from_environment(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut config = Self::default();
        if let Some(kernel) = var("NETKIT_KERNEL") {
            config.kernel = Some(kernel.into());
        }
        if let Some(memory) = var("NETKIT_MEMORY") {
            config.memory_mb = memory
                .parse()
                .with_context(|| format!("cannot use NETKIT_MEMORY='{memory}'"))?;
        }
        for (number, name) in ["NETKIT_CON0", "NETKIT_CON1"].into_iter().enumerate() {
            if let Some(mode) = var(name) {
                config.consoles[number] = mode.parse().with_context(|| format!("cannot use {name}"))?;
            }
        }
        if let Some(emulator) = var("NETKIT_TERM") {
            config.emulator = emulator.parse().context("cannot use NETKIT_TERM")?;
        }
        Ok(config)
    }

    /// The kernel to use if no other is asked for.
    pub fn default_kernel(&self) -> Option<PathBuf> {
        self.kernel
            .clone()
            .or_else(|| ["linux.uml", "linux"].into_iter().find_map(in_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_counts() {
        let config = Config::from_environment(|name| match name {
            "NETKIT_MEMORY" => Some("64".into()),
            "NETKIT_CON1" => Some("pty".into()),
            "NETKIT_TERM" => Some("konsole".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(config.memory_mb, 64);
        assert_eq!(config.consoles, [Console::Xterm, Console::Pty]);
        assert_eq!(config.emulator, Emulator::Konsole);
        let error =
            Config::from_environment(|name| (name == "NETKIT_MEMORY").then(|| "x".into())).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot use NETKIT_MEMORY='x': "));
    }
}

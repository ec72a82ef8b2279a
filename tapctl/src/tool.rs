//! Runs the firewall's own tools: absolute paths, an empty environment, arguments as a vector, text on stdin.

use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the system, found where the system keeps its programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tool(PathBuf);

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    #[error("{} refused: {why}", .0.display(), why = .1)]
    Refused(PathBuf, String),
}

impl Tool {
    /// Looks for a program in the system's directories alone; one that others than root can change is not taken.
    pub(crate) fn find(name: &str) -> Option<Self> {
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| trusted(path))
            .map(Self)
    }

    /// Runs it and returns what it wrote to stdout.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Result<String, ToolError> {
        let failed = |error| ToolError::Run(self.0.clone(), error);
        let mut child = Command::new(&self.0)
            .args(arguments)
            .env_clear()
            .env("PATH", DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .current_dir("/")
            // Ctrl-C is for tapctl, which undoes what was done; a tool killed half-way would only confuse.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()) {
                // It did not want to hear the rest; its status tells why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result.map_err(failed)?,
            }
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty());
        let why = line.map_or_else(|| output.status.to_string(), str::to_owned);
        Err(ToolError::Refused(self.0.clone(), why))
    }
}

const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

fn trusted(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.uid() == 0 && meta.permissions().mode() & 0o022 == 0)
}

//! Chores of the workspace: what CI runs, and the files that are generated from the command lines.

#![forbid(unsafe_code)]

/// The command line of switchd: the one definition that the program itself parses with.
#[path = "../../switchd/src/cli.rs"]
#[expect(
    dead_code,
    reason = "only the definition is used here, not what the program does with it"
)]
mod switchd;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;

/// Check the workspace, and make man pages and completions
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Chore {
    /// Check formatting and lints; warnings are errors
    Check,
    /// Build everything, then run every test
    Test,
    /// Do what CI does: check and test
    Ci,
    /// Write man pages and shell completions
    Dist {
        /// Where to write share/man/man1, share/bash-completion, share/zsh and share/fish
        #[arg(default_value = "target/dist")]
        directory: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::Check => check(),
        Chore::Test => test(),
        Chore::Ci => check().and_then(|()| test()),
        Chore::Dist { directory } => dist(&directory),
    }
}

fn check() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// The programs, and the library that some kernels need, are built first: the tests use them as users do.
fn test() -> anyhow::Result<()> {
    cargo(&["build", "--workspace", "--bins", "--lib"])?;
    cargo(&["test", "--workspace", "--no-fail-fast"])
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let line = arguments.join(" ");
    let status = Command::new(cargo)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run cargo {line}"))?;
    if !status.success() {
        bail!("cargo {line} failed");
    }
    Ok(())
}

/// Everything comes from the definitions the programs parse with, so that nothing can differ from them.
fn dist(directory: &Path) -> anyhow::Result<()> {
    let man = make(directory.join("share/man/man1"))?;
    let programs = [switchd::Cli::command(), tapctl::definition()];
    for command in programs.into_iter().chain(vstart::commands::definitions()) {
        let name = command.get_name().to_owned();
        clap_mangen::generate_to(command.clone(), &man)?;
        for (shell, place) in [
            (Shell::Bash, "share/bash-completion/completions"),
            (Shell::Zsh, "share/zsh/site-functions"),
            (Shell::Fish, "share/fish/vendor_completions.d"),
        ] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, make(directory.join(place))?)?;
        }
    }
    // Names under which a program takes another one's options: its page tells of them.
    for (name, page) in [("uml_switch", "switchd"), ("tunctl", "tapctl")] {
        let path = man.join(format!("{name}.1"));
        std::fs::write(&path, format!(".so man1/{page}.1\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{}", directory.display());
    Ok(())
}

fn make(directory: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

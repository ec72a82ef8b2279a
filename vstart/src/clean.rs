//! Clears away what is a user's own, step by step: what `vclean` does.
//!
//! Whether something is ours is never a matter of its name alone: a machine is a directory of ours whose lock is free or
//! whose owner we end; a process has our user and our directories on its command line; a domain is one of our switchd.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::getuid;
use proto::ctl::{Reply, Request};

use crate::halt::crash;
use crate::name::MachineName;
use crate::processes::kernels;
use crate::registry::{Registry, Status};
use crate::switch::Client;

/// What is being told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Leftovers of a machine.
    Crashed,
    /// A running machine.
    Machine,
    /// A domain, a process or a file, in words.
    Thing,
}

/// Does the clearing; or, if `dry`, only tells of it.
pub struct Cleaner<'a> {
    /// The user's machines.
    pub registry: &'a Registry,
    /// Touches nothing.
    pub dry: bool,
    /// Is told of everything that is (or would be) cleared away.
    pub tell: &'a dyn Fn(Deed, &str),
}

impl Cleaner<'_> {
    /// What is left of crashed machines: of those named, or of all.
    ///
    /// # Errors
    /// When something does not go; the others are cleared away all the same.
    pub fn crashed(&self, names: &[MachineName]) -> Result<()> {
        let names = if names.is_empty() {
            self.registry.names()?
        } else {
            names.to_vec()
        };
        each(names, |name| {
            let crashed = if self.dry {
                self.registry.is_crashed(&name)?
            } else {
                self.registry.clear_crashed(&name)?
            };
            if crashed {
                (self.tell)(Deed::Crashed, name.as_str());
            }
            Ok(())
        })?;
        // Kernels whose record is gone altogether.
        let strays = kernels(getuid().as_raw(), self.registry.dirs());
        each(strays, |kernel| {
            if self.registry.dirs().machine(&kernel.name).exists() || !kernel.process.is_alive() {
                return Ok(());
            }
            let what = format!("process {} of machine {}", kernel.process.pid, kernel.name);
            (self.tell)(Deed::Thing, &what);
            if !self.dry {
                kernel.process.signal(Signal::SIGKILL);
            }
            Ok(())
        })
    }

    /// All machines that run.
    ///
    /// # Errors
    /// When one does not end; the others do.
    pub fn machines(&self) -> Result<()> {
        each(self.registry.list()?, |record| {
            let name = &record.machine.name;
            if self.dry {
                if record.status != Status::Crashed {
                    (self.tell)(Deed::Machine, name.as_str());
                }
                return Ok(());
            }
            // It may have ended by itself in between.
            match crash(self.registry, name) {
                Err(_) if self.registry.find(name).is_err() => Ok(()),
                Err(error) => Err(error),
                Ok(_) => {
                    (self.tell)(Deed::Machine, name.as_str());
                    Ok(())
                }
            }
        })
    }

    /// Domains of switchd that nobody holds and nothing is attached to, and sockets that an ended switchd has left.
    ///
    /// # Errors
    /// When switchd refuses.
    pub fn unused_domains(&self) -> Result<()> {
        let Ok(mut client) = Client::connect(self.registry.dirs()) else {
            return self.sockets();
        };
        let Reply::Domains(rows) = client.request(&Request::DomainLs)? else {
            return Ok(());
        };
        // A transient domain without a port is held by somebody who is about to attach, or goes by itself.
        let unused = rows.into_iter().filter(|row| row.ports == 0 && !row.transient);
        each(unused, |row| {
            (self.tell)(Deed::Thing, &format!("domain {}", row.domain));
            if !self.dry {
                client.request(&Request::DomainRm { domain: row.domain })?;
            }
            Ok(())
        })
    }

    /// switchd with all its domains.
    ///
    /// # Errors
    /// When it does not end.
    pub fn switch(&self) -> Result<()> {
        let dirs = self.registry.dirs();
        if let Ok(mut client) = Client::connect(dirs) {
            let daemon = match client.request(&Request::Hello)? {
                Reply::Daemon(daemon) => format!("switchd, process {}", daemon.pid),
                _ => "switchd".to_owned(),
            };
            (self.tell)(Deed::Thing, &daemon);
            if self.dry {
                return Ok(());
            }
            client.request(&Request::Shutdown)?;
            let deadline = Instant::now() + PATIENCE;
            while Client::connect(dirs).is_ok() {
                anyhow::ensure!(Instant::now() < deadline, "cannot end {daemon}: it goes on");
                std::thread::sleep(POLL);
            }
        }
        self.sockets()
    }

    /// Directories of machines and management consoles that belong to no machine, and what is left of switchd if it does
    /// not run. Locks stay: somebody may be waiting for one.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn directories(&self) -> Result<()> {
        let dirs = self.registry.dirs();
        for dir in [&dirs.machines, &dirs.mconsole] {
            each(entries(dir)?, |path| {
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                let machine = name.parse::<MachineName>().ok();
                if name == LOCK || machine.is_some_and(|name| dirs.machine(&name).exists()) {
                    return Ok(());
                }
                self.remove(&path)
            })?;
        }
        if Client::connect(dirs).is_err() {
            each(entries(&dirs.hubs)?, |path| {
                match path.extension().and_then(|ending| ending.to_str()) {
                    Some("lock") => Ok(()),
                    _ => self.remove(&path),
                }
            })?;
        }
        Ok(())
    }

    /// Sockets in the directory of a switchd that does not run.
    fn sockets(&self) -> Result<()> {
        use std::os::unix::fs::FileTypeExt;
        let sockets = entries(&self.registry.dirs().hubs)?.into_iter().filter(|path| {
            let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
            is_socket || path.extension().is_some_and(|ending| ending == "port")
        });
        each(sockets, |path| self.remove(&path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        (self.tell)(Deed::Thing, &path.display().to_string());
        if self.dry {
            return Ok(());
        }
        let result = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Does something to each, whatever becomes of the others; the first error is returned, further ones are told.
fn each<T>(things: impl IntoIterator<Item = T>, mut deed: impl FnMut(T) -> Result<()>) -> Result<()> {
    let mut first = None;
    for thing in things {
        if let Err(error) = deed(thing) {
            match first {
                None => first = Some(error),
                Some(_) => crate::launch::note(&format!("{error:#}")),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// What is in a directory; nothing if there is no such directory.
fn entries(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", dir.display())),
    }
}

const LOCK: &str = ".lock";
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

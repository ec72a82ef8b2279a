//! Labs: directories that describe machines and their network, as Netkit has them.
//!
//! ```text
//! lab.conf, lab.dep, lab.ext --conf, dep, ext--> Lab --options--> arguments of vstart --start--> machines
//!                                                 +--drawing--> a picture          registry --end--> nothing
//! ```
//!
//! [`conf`], [`dep`], [`ext`], [`options`], [`schedule`] and [`drawing`] are pure. Machines are started by the program `vstart`
//! itself, once each, so that a machine of a lab is started as any other.

pub mod conf;
pub mod dep;
pub mod drawing;
pub mod end;
pub mod ext;
pub mod externals;
pub mod options;
pub mod picture;
pub mod schedule;
pub mod sketch;
pub mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::machine::Interface;
use crate::name::MachineName;
use conf::{Conf, Setting};
use dep::{Dep, Needs};
use ext::{Ext, External};

/// A lab: what its files say.
#[derive(Clone, PartialEq, Debug)]
pub struct Lab {
    /// Where it is.
    pub dir: PathBuf,
    /// The `LAB_*` variables.
    pub metadata: BTreeMap<String, String>,
    /// By name, or in the order of `LAB_MACHINES`.
    pub machines: Vec<LabMachine>,
    /// Who waits for whom.
    pub needs: Needs,
    /// Which domains are joined to interfaces of the host.
    pub externals: Vec<External>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A machine of a lab.
#[derive(Clone, PartialEq, Debug)]
pub struct LabMachine {
    /// Its name.
    pub name: MachineName,
    /// By rising number.
    pub interfaces: Vec<Interface>,
    /// Options of vstart, their values, and the lines they stand in.
    pub options: Vec<(usize, String, String)>,
}

/// Something wrong in a file of a lab.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file.
    pub file: &'static str,
    /// The line, unless it is the whole file.
    pub line: Option<usize>,
    /// How bad it is.
    pub level: Level,
    /// What is wrong.
    pub text: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// The lab can be started.
    Warning,
    /// It cannot.
    Error,
}

impl Problem {
    /// A problem of a line.
    pub fn new(file: &'static str, line: usize, level: Level, text: impl Into<String>) -> Self {
        Self {
            file,
            line: Some(line),
            level,
            text: text.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.level == Level::Warning {
            f.write_str(": warning")?;
        }
        write!(f, ": {}", self.text)
    }
}

impl Lab {
    /// Reads the lab in a directory. Without `forced`, there must be a `lab.conf`.
    ///
    /// # Errors
    /// When files cannot be read. What is wrong in them is among the lab's problems instead.
    pub fn load(dir: &Path, forced: bool) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot use lab {}", dir.display()))?;
        let conf = read(&dir.join(conf::FILE))?;
        if conf.is_none() && !forced {
            bail!(
                "there is no lab in {}: it has no file lab.conf\nhint: go to the lab's directory or name it by -d; -F does without lab.conf",
                dir.display()
            );
        }
        let dep = read(&dir.join(dep::FILE))?;
        let ext = read(&dir.join(ext::FILE))?;
        let mut subdirs = Vec::new();
        let entries = dir
            .read_dir()
            .with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
            if entry.path().is_dir() {
                subdirs.extend(entry.file_name().into_string().ok());
            }
        }
        subdirs.sort();
        let lab = Self::new(dir, conf.as_deref(), dep.as_deref(), &subdirs);
        Ok(match ext {
            Some(text) => lab.with_externals(&text),
            None => lab,
        })
    }

    /// The same lab with what its `lab.ext` says.
    fn with_externals(mut self, text: &str) -> Self {
        let interfaces = self.machines.iter().flat_map(|machine| &machine.interfaces);
        let domains = interfaces
            .map(|interface| interface.attachment.domain())
            .collect();
        let ext = Ext::parse(text, &domains);
        self.externals = ext.externals;
        self.problems.extend(ext.problems);
        self
    }

    /// Puts a lab together from the texts of its files and the names of its sub-directories.
    pub fn new(dir: PathBuf, conf: Option<&str>, dep: Option<&str>, subdirs: &[String]) -> Self {
        let conf = conf.map(Conf::parse).unwrap_or_default();
        let mut problems = conf.problems;
        let named = conf.machines.is_some();
        let names = conf
            .machines
            .unwrap_or_else(|| of_directories(subdirs, &mut problems));
        let mut machines: Vec<LabMachine> = Vec::new();
        for name in names {
            if !machines.iter().any(|machine| machine.name == name) {
                machines.push(LabMachine {
                    name,
                    interfaces: Vec::new(),
                    options: Vec::new(),
                });
            }
        }
        let mut strangers = BTreeSet::new();
        for entry in conf.entries {
            let Some(machine) = machines.iter_mut().find(|machine| machine.name == entry.machine) else {
                if strangers.insert(entry.machine.clone()) {
                    problems.push(stranger(&entry.machine, entry.line, named));
                }
                continue;
            };
            match entry.setting {
                Setting::Interface(interface) => machine.interfaces.push(interface),
                Setting::Option(name, value) => machine.options.push((entry.line, name, value)),
            }
        }
        for machine in &mut machines {
            machine.interfaces.sort_by_key(|interface| interface.number);
        }
        let all = machines.iter().map(|machine| machine.name.clone()).collect();
        let dep = dep.map(|text| Dep::parse(text, &all)).unwrap_or_default();
        problems.extend(dep.problems);
        problems.sort_by_key(|problem| (problem.file, problem.line));
        Self {
            dir,
            metadata: conf.metadata,
            machines,
            needs: dep.needs,
            externals: Vec::new(),
            problems,
        }
    }

    /// The machines of those names, or all if there are none, in the order of the lab.
    ///
    /// # Errors
    /// When there is no machine of a name.
    pub fn select(&self, names: &[MachineName]) -> Result<Vec<&LabMachine>> {
        if let Some(unknown) = names
            .iter()
            .find(|name| !self.machines.iter().any(|m| m.name == **name))
        {
            bail!(
                "there is no machine {unknown} in the lab in {}",
                self.dir.display()
            );
        }
        let wanted = |machine: &&LabMachine| names.is_empty() || names.contains(&machine.name);
        Ok(self.machines.iter().filter(wanted).collect())
    }

    /// A file of the lab that belongs to a machine: `NAME.ready` and its like.
    pub fn file(&self, machine: &MachineName, ending: &str) -> PathBuf {
        self.dir.join(format!("{machine}.{ending}"))
    }
}

/// Machines as Netkit finds them: every directory but these is one.
fn of_directories(subdirs: &[String], problems: &mut Vec<Problem>) -> Vec<MachineName> {
    let mut names = Vec::new();
    for dir in subdirs {
        if dir.starts_with('.') || ["shared", "_test"].contains(&dir.as_str()) {
            continue;
        }
        match dir.parse() {
            Ok(name) => names.push(name),
            Err(error) => problems.push(Problem {
                file: conf::FILE,
                line: None,
                level: Level::Warning,
                text: format!("directory '{dir}' is no machine: {error}"),
            }),
        }
    }
    names
}

fn stranger(name: &MachineName, line: usize, named: bool) -> Problem {
    let text = if named {
        format!("machine {name} is not in LAB_MACHINES: it is not started, as with Netkit")
    } else {
        format!(
            "machine {name} has no directory: it is not started, as with Netkit; 'mkdir {name}' or a place in LAB_MACHINES makes it one"
        )
    };
    Problem::new(conf::FILE, line, Level::Warning, text)
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        // Old labs are in the letters of their time; only comments and descriptions have any beyond ASCII.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(conf: &str, dep: Option<&str>, subdirs: &[&str]) -> Lab {
        let subdirs: Vec<_> = subdirs.iter().map(|dir| (*dir).to_owned()).collect();
        Lab::new("/lab".into(), Some(conf), dep, &subdirs)
    }

    fn names(lab: &Lab) -> Vec<&str> {
        lab.machines.iter().map(|machine| machine.name.as_str()).collect()
    }

    #[test]
    fn directories_are_machines() {
        let lab = lab(
            "r[1]=B\nr[0]=A\nb[0]=B\n",
            None,
            &[".git", "_test", "a", "r", "shared"],
        );
        assert_eq!(names(&lab), ["a", "r"]);
        let numbers: Vec<_> = lab.machines[1].interfaces.iter().map(|i| i.number).collect();
        assert_eq!(numbers, [0, 1]);
        let text = lab.problems[0].to_string();
        assert!(
            text.starts_with("lab.conf:3: warning: machine b has no directory"),
            "{text}"
        );
        assert_eq!(lab.problems.len(), 1);
    }

    #[test]
    fn unless_they_are_named() {
        let lab = lab("LAB_MACHINES=\"r a r\"\nb[0]=B\n", Some("a: r\n"), &["b", "c d"]);
        assert_eq!(names(&lab), ["r", "a"]);
        assert_eq!(lab.needs.len(), 1);
        let text = lab.problems[0].to_string();
        assert!(
            text.starts_with("lab.conf:2: warning: machine b is not in LAB_MACHINES"),
            "{text}"
        );
        assert_eq!(lab.problems.len(), 1);
    }

    #[test]
    fn machines_are_selected_by_name() {
        let lab = lab("", None, &["a", "b", "c"]);
        let select = |names: &[&str]| {
            let names: Vec<MachineName> = names.iter().map(|name| name.parse().unwrap()).collect();
            lab.select(&names)
                .map(|machines| machines.iter().map(|m| m.name.to_string()).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(select(&[]), Ok(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(select(&["c", "a"]), Ok(vec!["a".into(), "c".into()]));
        assert_eq!(
            select(&["x"]),
            Err("there is no machine x in the lab in /lab".into())
        );
    }
}

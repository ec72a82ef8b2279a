//! `linfo`: what a lab consists of.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use serde_json::{Value, json};

use crate::lab::drawing::{Format, domains, draw};
use crate::lab::{Lab, LabMachine};
use crate::launch::note;
use crate::machine::Attachment;
use crate::name::MachineName;

/// Show what a lab consists of, or draw it
///
/// Nothing is started, and no machine needs to be running. Several directories are parts of one lab: they are drawn as
/// one.
#[derive(Debug, Parser)]
#[command(
    name = "linfo",
    version,
    after_help = "Examples:\n  linfo\n  linfo -m lab.png\n  linfo -m - --format mermaid\n  linfo -d lab3a -d lab3b\n  \
                  linfo -a -m lab3.svg     # in lab3a: with lab3b, lab3c, ...\n  linfo --json -d ~/labs/two-routers"
)]
pub(super) struct Options {
    /// The lab's directory; may be repeated [default: the current one]
    #[arg(short, long = "directory", value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
    /// The labs beside this one whose names differ in the last letter only, or those that GLOB describes; also -aGLOB
    #[arg(short, long, value_name = "GLOB", num_args = 0..=1, require_equals = true)]
    auto: Option<Option<String>>,
    /// Machines of the lab [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<MachineName>,
    /// Do without lab.conf
    #[arg(short = 'F', long)]
    force_lab: bool,
    /// Draw the lab into a file whose ending says how: .svg, .png, .dot, .mmd; - is standard output
    #[arg(short, long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Draw as svg, png, dot or mermaid, whatever the file's ending [default without one: png]
    #[arg(long, value_name = "FORMAT", requires = "map")]
    format: Option<Format>,
    /// Print JSON; with several directories, an array
    #[arg(long, conflicts_with = "map")]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let directories = directories(options)?;
    let mut labs = Vec::new();
    for directory in &directories {
        let lab = Lab::load(directory, options.force_lab)?;
        // The same directory may be named twice, and be among those found.
        if !labs.iter().any(|known: &Lab| known.dir == lab.dir) {
            labs.push(lab);
        }
    }
    let known = |name: &MachineName| {
        labs.iter()
            .any(|lab| lab.machines.iter().any(|m| m.name == *name))
    };
    if let Some(unknown) = options.names.iter().find(|name| !known(name)) {
        let places: Vec<_> = labs.iter().map(|lab| lab.dir.display().to_string()).collect();
        bail!(
            "there is no machine {unknown} in the lab in {}",
            places.join(", ")
        );
    }
    for lab in &mut labs {
        if !options.names.is_empty() {
            lab.machines
                .retain(|machine| options.names.contains(&machine.name));
        }
        for problem in &lab.problems {
            if directories.len() > 1 {
                note(&format!("{}/{problem}", lab.dir.display()));
            } else {
                note(&problem.to_string());
            }
        }
    }
    if let Some(file) = &options.map {
        return drawing(&merged(labs), file, options.format);
    }
    let mut out = io::stdout().lock();
    if options.json {
        let mut described: Vec<Value> = labs.iter().map(described).collect();
        let described = match described.len() {
            1 => described.remove(0),
            _ => Value::Array(described),
        };
        serde_json::to_writer_pretty(&mut out, &described).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        for (number, lab) in labs.iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            text(lab, &mut out)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Turns `-aGLOB` into `--auto=GLOB`: the pattern is optional, and never the next word, which is a machine.
pub(super) fn with_auto(args: Vec<OsString>) -> Vec<OsString> {
    let mut options = true;
    args.into_iter()
        .map(|arg| {
            options &= arg != "--";
            match arg.to_str().and_then(|text| text.strip_prefix("-a")) {
                Some(glob) if options && !glob.is_empty() && !glob.starts_with('=') => {
                    format!("--auto={glob}").into()
                }
                _ => arg,
            }
        })
        .collect()
}

/// Where the parts of the lab are.
fn directories(options: &Options) -> Result<Vec<PathBuf>> {
    let mut directories = options.directories.clone();
    if let Some(auto) = &options.auto {
        let here = std::env::current_dir().context("cannot find the current directory")?;
        let pattern = match auto {
            Some(pattern) => here.join(pattern),
            None => {
                let name = here
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let mut letters = name.chars();
                letters.next_back();
                here.with_file_name(format!("{}*", glob::Pattern::escape(letters.as_str())))
            }
        };
        let pattern = pattern.to_string_lossy().into_owned();
        let found = glob::glob(&pattern).with_context(|| format!("cannot use pattern '{pattern}'"))?;
        let is_lab = |path: &PathBuf| path.join("lab.conf").is_file() || options.force_lab && path.is_dir();
        directories.extend(found.flatten().filter(is_lab));
        if directories.is_empty() {
            bail!("there is no lab in '{pattern}'");
        }
    }
    if directories.is_empty() {
        directories.push(".".into());
    }
    Ok(directories)
}

/// Several directories as one lab, for drawing.
fn merged(labs: Vec<Lab>) -> Lab {
    let mut labs = labs.into_iter();
    let mut all = labs.next().expect("there is at least one directory");
    for lab in labs {
        for machine in lab.machines {
            match all.machines.iter_mut().find(|known| known.name == machine.name) {
                Some(known) => {
                    note(&format!(
                        "warning: machine {} is in several directories: it is drawn as one",
                        machine.name
                    ));
                    known.interfaces.extend(machine.interfaces);
                }
                None => all.machines.push(machine),
            }
        }
    }
    all
}

fn drawing(lab: &Lab, file: &PathBuf, format: Option<Format>) -> Result<ExitCode> {
    let ending = file
        .extension()
        .map(|ending| ending.to_string_lossy().into_owned());
    let format = match (format, ending) {
        (Some(format), _) => format,
        // As netkit-jh's linfo does.
        (None, None) if file.as_os_str() != "-" => Format::Png,
        (None, ending) => ending.unwrap_or_default().parse().map_err(|error| {
            anyhow!(
                "cannot draw into {}: {error}\nhint: --format names one",
                file.display()
            )
        })?,
    };
    let drawing = draw(lab, format).context("cannot draw the lab")?;
    if file.as_os_str() == "-" {
        io::stdout().lock().write_all(&drawing)?;
    } else {
        std::fs::write(file, drawing).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(lab: &Lab, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:12} {}", "directory", lab.dir.display())?;
    for (name, value) in &lab.metadata {
        let name = name.trim_start_matches("LAB_").to_ascii_lowercase();
        writeln!(out, "{name:12} {value}")?;
    }
    writeln!(out, "{:12} {}", "machines", lab.machines.len())?;
    writeln!(out, "{:12} {}", "domains", domains(lab).len())?;
    let order = match lab.needs.is_empty() {
        true => "none: all machines start at once",
        false => "by lab.dep: machines start at once that wait for none",
    };
    writeln!(out, "{:12} {order}", "order")?;
    for machine in &lab.machines {
        writeln!(out, "\n{}", machine.name)?;
        for interface in &machine.interfaces {
            let address = interface
                .address
                .map(|address| format!(", address {}", fabric::mac::MacAddr(address)))
                .unwrap_or_default();
            let place = match &interface.attachment {
                Attachment::Domain(domain) => domain.to_string(),
                Attachment::Tap { host, guest } => format!("host ({host} there, {guest} here)"),
                Attachment::Nat => "internet".to_owned(),
            };
            writeln!(out, "  {:6} {place}{address}", interface.name())?;
        }
        for (_, name, value) in &machine.options {
            writeln!(out, "  {name}={value}")?;
        }
        let needs = needs(lab, machine);
        if !needs.is_empty() {
            writeln!(out, "  waits for {}", needs.join(", "))?;
        }
    }
    Ok(())
}

fn described(lab: &Lab) -> Value {
    let machines: Vec<Value> = lab
        .machines
        .iter()
        .map(|machine| {
            let interfaces: Vec<Value> = machine
                .interfaces
                .iter()
                .map(|interface| {
                    let address = interface.mac(&machine.name).to_string();
                    match &interface.attachment {
                        Attachment::Nat => json!({ "name": interface.name(), "nat": true, "address": address }),
                        Attachment::Domain(domain) => {
                            json!({ "name": interface.name(), "domain": domain.as_str(), "address": address })
                        }
                        Attachment::Tap { host, guest } => json!({
                            "name": interface.name(), "tap": { "host": host, "guest": guest }, "address": address
                        }),
                    }
                })
                .collect();
            let options: Vec<Value> = machine
                .options
                .iter()
                .map(|(line, name, value)| json!({ "line": line, "name": name, "value": value }))
                .collect();
            json!({
                "name": machine.name.as_str(),
                "interfaces": interfaces,
                "options": options,
                "waits-for": needs(lab, machine),
            })
        })
        .collect();
    json!({
        "directory": lab.dir,
        "metadata": lab.metadata,
        "machines": machines,
        "domains": domains(lab),
    })
}

fn needs<'a>(lab: &'a Lab, machine: &LabMachine) -> Vec<&'a str> {
    let needs = lab.needs.get(&machine.name).into_iter().flatten();
    needs.map(MachineName::as_str).collect()
}

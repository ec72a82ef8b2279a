//! `linfo`: what a lab consists of.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use serde_json::{Value, json};

use super::labs::Where;
use crate::lab::drawing::{Format, domains, draw};
use crate::lab::{Lab, LabMachine};
use crate::launch::note;
use crate::machine::Attachment;
use crate::name::MachineName;

/// Show what a lab consists of, or draw it
///
/// Nothing is started, and no machine needs to be running.
#[derive(Debug, Parser)]
#[command(
    name = "linfo",
    version,
    after_help = "Examples:\n  linfo\n  linfo -m lab.svg\n  linfo -m - --format mermaid\n  linfo --json -d ~/labs/two-routers"
)]
pub(super) struct Options {
    #[command(flatten)]
    place: Where,
    /// Do without lab.conf
    #[arg(short = 'F', long)]
    force_lab: bool,
    /// Draw the lab into a file whose ending says how: .svg, .dot, .mmd; - is standard output
    #[arg(short, long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Draw as svg, dot or mermaid, whatever the file's ending
    #[arg(long, value_name = "FORMAT", requires = "map")]
    format: Option<Format>,
    /// Print JSON
    #[arg(long, conflicts_with = "map")]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let mut lab = options.place.lab(options.force_lab)?;
    let names: Vec<MachineName> = lab
        .select(&options.place.names)?
        .iter()
        .map(|machine| machine.name.clone())
        .collect();
    lab.machines.retain(|machine| names.contains(&machine.name));
    for problem in &lab.problems {
        note(&problem.to_string());
    }
    if let Some(file) = &options.map {
        return drawing(&lab, file, options.format);
    }
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &described(&lab)).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        text(&lab, &mut out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn drawing(lab: &Lab, file: &PathBuf, format: Option<Format>) -> Result<ExitCode> {
    let ending = file
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let format = match format {
        Some(format) => format,
        None => ending.parse().map_err(|error| {
            anyhow!(
                "cannot draw into {}: {error}\nhint: --format names one",
                file.display()
            )
        })?,
    };
    let drawing = draw(lab, format);
    if file.as_os_str() == "-" {
        io::stdout().lock().write_all(drawing.as_bytes())?;
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

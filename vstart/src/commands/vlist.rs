//! `vlist`: what is running.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use crate::name::MachineName;
use crate::registry::{Record, now};

/// List machines
///
/// With names, everything that is known about those machines.
#[derive(Debug, Parser)]
#[command(
    name = "vlist",
    version,
    after_help = "Examples:\n  vlist\n  vlist pc1\n  vlist --json | jq '.[].name'"
)]
pub(crate) struct Options {
    /// Machines to be shown in detail; all, one a line, if none is named
    #[arg(value_name = "NAME")]
    names: Vec<MachineName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print no heading
    #[arg(short, long)]
    no_header: bool,
}

/// A machine as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a MachineName,
    status: &'static str,
    pid: Option<i32>,
    supervisor_pid: i32,
    started: u64,
    uptime_s: u64,
    memory_mb: u32,
    kernel: String,
    interfaces: Vec<Attached>,
    command: &'a [String],
}

#[derive(Serialize)]
struct Attached {
    name: String,
    domain: String,
    mac: String,
}

impl<'a> Row<'a> {
    fn new(record: &'a Record) -> Self {
        let machine = &record.machine;
        Self {
            name: &machine.name,
            status: record.status.as_str(),
            pid: record.kernel.map(|kernel| kernel.pid),
            supervisor_pid: record.supervisor.pid,
            started: record.started,
            uptime_s: now().saturating_sub(record.started),
            memory_mb: machine.memory_mb,
            kernel: machine.kernel.display().to_string(),
            interfaces: machine
                .interfaces
                .iter()
                .map(|interface| Attached {
                    name: interface.name(),
                    domain: interface.attachment.to_string(),
                    mac: interface.mac(&machine.name).to_string(),
                })
                .collect(),
            command: &record.command,
        }
    }

    fn interfaces(&self) -> String {
        let all: Vec<_> = self
            .interfaces
            .iter()
            .map(|i| format!("{}@{}", i.name, i.domain))
            .collect();
        all.join(" ")
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let registry = super::registry()?;
    let records = if options.names.is_empty() {
        registry.list()?
    } else {
        options
            .names
            .iter()
            .map(|name| registry.find(name))
            .collect::<Result<_, _>>()?
    };
    let rows: Vec<Row<'_>> = records.iter().map(Row::new).collect();
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
    } else if options.names.is_empty() {
        table(&mut out, &rows, !options.no_header)?;
    } else {
        for (row, record) in rows.iter().zip(&records) {
            detail(&mut out, row, record)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn table(out: &mut impl Write, rows: &[Row<'_>], heading: bool) -> io::Result<()> {
    let width = rows
        .iter()
        .map(|row| row.name.as_str().chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    if heading {
        writeln!(
            out,
            "{:width$}  {:8}  {:>7}  {:>6}  {:>9}  INTERFACES",
            "NAME", "STATUS", "PID", "MEM", "UPTIME"
        )?;
    }
    for row in rows {
        let pid = row.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        let line = format!(
            "{:width$}  {:8}  {pid:>7}  {:>5}M  {:>9}  {}",
            row.name,
            row.status,
            row.memory_mb,
            duration(row.uptime_s),
            row.interfaces(),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn detail(out: &mut impl Write, row: &Row<'_>, record: &Record) -> io::Result<()> {
    writeln!(out, "{}", row.name)?;
    writeln!(out, "  status      {}", row.status)?;
    writeln!(out, "  up for      {}", duration(row.uptime_s))?;
    if let Some(pid) = row.pid {
        writeln!(out, "  kernel      {} (process {pid})", row.kernel)?;
    }
    writeln!(out, "  supervisor  process {}", row.supervisor_pid)?;
    writeln!(out, "  memory      {} MB", row.memory_mb)?;
    for interface in &row.interfaces {
        writeln!(
            out,
            "  {:<10}  domain {}, address {}",
            interface.name, interface.domain, interface.mac
        )?;
    }
    for (number, pty) in record.ptys.iter().enumerate() {
        if let Some(pty) = pty {
            writeln!(out, "  console {number}   {}", pty.display())?;
        }
    }
    let words: Vec<_> = row
        .command
        .iter()
        .map(|word| crate::kernel_args::shell_quoted(word))
        .collect();
    writeln!(out, "  command     {}", words.join(" "))
}

fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours}:{minutes:02}:{seconds:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(0), "0:00:00");
        assert_eq!(duration(3723), "1:02:03");
        assert_eq!(duration(100 * 3600), "100:00:00");
    }
}

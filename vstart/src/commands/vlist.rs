//! `vlist`: what is running.

use std::io::{self, Write};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::unistd::geteuid;

use crate::cpulock::CpuLock;
use crate::launch::note;
use crate::listing::{Details, Row};
use crate::name::MachineName;
use crate::processes::guards;
use crate::users::{Owner, Whose};

/// List machines
///
/// With names, everything that is known about those machines. Of other users' machines, root sees all, everybody else
/// what the host's process list shows.
#[derive(Debug, Parser)]
#[command(
    name = "vlist",
    version,
    after_help = "Examples:\n  vlist\n  vlist pc1\n  vlist -u -\n  vlist --json | jq '.[].name'"
)]
pub(crate) struct Options {
    /// Machines to be shown in detail, by name or process; all, one a line, if none is named
    #[arg(value_name = "NAME")]
    names: Vec<MachineName>,
    /// Show the machines of another user, or with - of all users
    #[arg(short, long, value_name = "USER", allow_hyphen_values = true)]
    user: Option<String>,
    /// Show every machine in detail
    #[arg(short, long)]
    long: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print no heading
    #[arg(short, long)]
    no_header: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let in_detail = options.long || !options.names.is_empty();
    let whose = Whose::read(options.user.as_deref())?;
    let rows = if whose == Whose::Own {
        own(&options.names, in_detail)?
    } else {
        select(others(&whose, in_detail), &options.names)?
    };
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
    } else if in_detail {
        for row in &rows {
            detail(&mut out, row)?;
        }
    } else {
        table(&mut out, &rows, !options.no_header, whose != Whose::Own)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The caller's machines.
fn own(names: &[MachineName], in_detail: bool) -> Result<Vec<Row>> {
    let registry = super::registry()?;
    let records = if names.is_empty() {
        registry.list()?
    } else {
        let find = |id: &MachineName| registry.resolve(id).and_then(|name| registry.find(&name));
        names.iter().map(find).collect::<Result<_, _>>()?
    };
    let row = |record| Row::of(record, registry.dirs(), in_detail);
    Ok(records.iter().map(row).collect())
}

/// The machines of others, by owner and name.
pub(super) fn others(whose: &Whose, in_detail: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    if geteuid().is_root() {
        for owner in whose.owners() {
            match told(&owner, in_detail) {
                Ok(told) => rows.extend(told),
                Err(error) => note(&format!("vlist: {error:#}")),
            }
        }
    } else {
        let wanted = |uid: u32| match whose {
            Whose::User(owner) => owner.uid == uid,
            Whose::All | Whose::Own => uid != geteuid().as_raw(),
        };
        let guards = guards();
        rows.extend(guards.iter().filter(|guard| wanted(guard.uid)).map(Row::seen));
        if *whose == Whose::All {
            match own(&[], in_detail) {
                Ok(own) => rows.extend(own),
                Err(error) => note(&format!("vlist: {error:#}")),
            }
        }
    }
    rows.sort_by(|a, b| (&a.user, &a.name).cmp(&(&b.user, &b.name)));
    rows
}

/// What vlist tells the owner.
fn told(owner: &Owner, in_detail: bool) -> Result<Vec<Row>> {
    let mut words = vec!["vlist".to_owned(), "--json".to_owned()];
    words.extend(in_detail.then(|| "--long".to_owned()));
    let output = owner
        .command(&words)?
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot list the machines of user {}", owner.name))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot list the machines of user {}: {}",
            owner.name,
            said.trim().trim_start_matches("vlist: ")
        );
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cannot understand what vlist tells user {}", owner.name))
}

/// Those that were asked for, by name or process.
fn select(rows: Vec<Row>, names: &[MachineName]) -> Result<Vec<Row>> {
    if names.is_empty() {
        return Ok(rows);
    }
    let is = |row: &Row, id: &MachineName| {
        row.name == *id || row.pid.is_some_and(|pid| pid.to_string() == id.as_str())
    };
    if let Some(unknown) = names.iter().find(|id| !rows.iter().any(|row| is(row, id))) {
        bail!("no machine named {unknown} is running\nhint: 'vlist -u -' shows those that are");
    }
    Ok(rows
        .into_iter()
        .filter(|row| names.iter().any(|id| is(row, id)))
        .collect())
}

fn table(out: &mut impl Write, rows: &[Row], heading: bool, users: bool) -> io::Result<()> {
    let widest = |of: fn(&Row) -> &str| rows.iter().map(|row| of(row).chars().count()).max();
    let width = widest(|row| row.name.as_str()).unwrap_or(0).max(4);
    let user_width = widest(|row| &row.user).unwrap_or(0).max(4);
    let user = |text: &str| {
        if users {
            format!("{text:user_width$}  ")
        } else {
            String::new()
        }
    };
    if heading {
        writeln!(
            out,
            "{}{:width$}  {:8}  {:>7}  {:>6}  {:>9}  INTERFACES",
            user("USER"),
            "NAME",
            "STATUS",
            "PID",
            "MEM",
            "UPTIME"
        )?;
    }
    let dash = || "-".to_owned();
    for row in rows {
        let interfaces: Vec<_> = row
            .interfaces
            .iter()
            .map(|interface| format!("{}@{}", interface.name, interface.domain))
            .collect();
        let line = format!(
            "{}{:width$}  {:8}  {:>7}  {:>6}  {:>9}  {}",
            user(&row.user),
            row.name,
            row.status,
            row.pid.map_or_else(dash, |pid| pid.to_string()),
            row.memory_mb.map_or_else(dash, |mb| format!("{mb}M")),
            row.uptime_s.map_or_else(dash, duration),
            interfaces.join(" "),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn detail(out: &mut impl Write, row: &Row) -> io::Result<()> {
    writeln!(out, "{}", row.name)?;
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<11} {value}");
    line("user", &row.user)?;
    line("status", &row.status)?;
    if let Some(uptime) = row.uptime_s {
        line("up for", &duration(uptime))?;
    }
    if let Some(pid) = row.pid {
        line("kernel", &format!("{} (process {pid})", row.kernel))?;
    }
    if let Some(pid) = row.supervisor_pid {
        line("supervisor", &format!("process {pid}"))?;
    }
    if let Some(memory) = row.memory_mb {
        line("memory", &format!("{memory} MB"))?;
    }
    for interface in &row.interfaces {
        let mut text = format!("domain {}", interface.domain);
        if !interface.mac.is_empty() {
            text += &format!(", address {}", interface.mac);
        }
        if let Some(socket) = &interface.socket {
            text += &format!(", {} socket {socket}", interface.transport);
        }
        line(&interface.name, &text)?;
    }
    if let Some(details) = &row.details {
        for (name, value) in details_lines(details) {
            line(&name, &value)?;
        }
    }
    let words: Vec<_> = row
        .command
        .iter()
        .map(|word| crate::kernel_args::shell_quoted(word))
        .collect();
    line("command", &words.join(" "))
}

fn details_lines(details: &Details) -> Vec<(String, String)> {
    let mut lines = vec![(
        "used memory".to_owned(),
        format!("{} KiB of the host's", details.used_memory_kib),
    )];
    match &details.model_fs {
        Some(model) => lines.push(("model fs".into(), model.display().to_string())),
        None => lines.push(("model fs".into(), "none: the host's own files".into())),
    }
    for (name, path) in [
        ("filesystem", &details.filesystem),
        ("modules", &details.modules),
        ("hosthome", &details.hosthome),
        ("hostlab", &details.hostlab),
        ("hostwd", &details.hostwd),
        ("mconsole", &Some(details.mconsole.clone())),
    ] {
        lines.extend(
            path.iter()
                .map(|path| (name.to_owned(), path.display().to_string())),
        );
    }
    lines.extend(
        details
            .disks
            .iter()
            .map(|disk| ("disk".to_owned(), disk.display().to_string())),
    );
    if let CpuLock::Cpu(processor) = details.cpu {
        lines.push(("processor".into(), processor.to_string()));
    }
    for mount in &details.mounts {
        let text = format!("{} on {}", mount.source.display(), mount.target.display());
        lines.push(("mount".into(), text));
    }
    lines.extend(
        details
            .exec
            .iter()
            .map(|command| ("exec".to_owned(), command.clone())),
    );
    for (number, console) in details.consoles.iter().enumerate() {
        lines.push((format!("console {number}"), console.clone()));
    }
    if !details.append.is_empty() {
        lines.push(("append".into(), details.append.join(" ")));
    }
    lines
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

//! `switchd record`: the flight recorder.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, bail};
use proto::ctl::{RecordSpec, RecorderRow, Reply, Request};
use tempfile::NamedTempFile;

use super::capture::{open, report};
use super::{Connection, print, print_json, report as tables, unexpected};
use crate::cli::{Last, RecordArguments};

pub(super) fn run(mut connection: Connection, arguments: RecordArguments) -> anyhow::Result<()> {
    let RecordArguments {
        domain,
        last,
        save,
        stop,
        json,
    } = arguments;
    let Some(domain) = domain else {
        return list(&mut connection, json, |_| true);
    };
    if let Some(last) = last {
        let (last_ms, last_bytes) = match last {
            Last::Time(time) => (Some(u64::try_from(time.as_millis())?), None),
            Last::Bytes(bytes) => (None, Some(bytes)),
        };
        let spec = RecordSpec {
            domain,
            last_ms,
            last_bytes,
        };
        return connection.ask(&Request::Record(spec)).map(drop);
    }
    if stop {
        return connection.ask(&Request::RecordStop { domain }).map(drop);
    }
    let Some(path) = save else {
        return list(&mut connection, json, |row| row.domain == domain);
    };
    // A file that is there is replaced once the new one is whole: it may be what was saved a moment ago.
    if path == Path::new("-") {
        let output = open(None)?;
        return saved(connection.ask_with_fd(&Request::RecordSave { domain }, output.as_fd())?);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let cannot = || format!("cannot write {}", path.display());
    let new = NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).with_context(cannot)?;
    let reply = connection.ask_with_fd(&Request::RecordSave { domain }, new.as_file().as_fd())?;
    new.persist(&path).with_context(cannot)?;
    saved(reply)
}

fn saved(reply: Reply) -> anyhow::Result<()> {
    match reply {
        Reply::Captured(captured) => {
            report(captured);
            Ok(())
        }
        other => unexpected(&other),
    }
}

fn list(
    connection: &mut Connection,
    json: bool,
    wanted: impl Fn(&RecorderRow) -> bool,
) -> anyhow::Result<()> {
    let Reply::Recorders(mut rows) = connection.ask(&Request::RecordLs)? else {
        bail!("switchd answered something else")
    };
    rows.retain(wanted);
    if json {
        return print_json(&rows);
    }
    print(&tables::recorders(&rows))
}

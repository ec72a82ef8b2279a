//! Tables for people.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use proto::ctl::{DomainRow, FdbRow, PortRow, RecorderRow, Stats};

pub(super) fn domains(rows: &[DomainRow]) -> String {
    let mut table = table(
        &[
            "DOMAIN",
            "MODE",
            "MTU",
            "PORTS",
            "STATIONS",
            "RX FRAMES",
            "TX FRAMES",
            "DROPS",
        ],
        2..8,
    );
    for row in rows {
        table.add_row([
            row.domain.to_string(),
            row.mode.to_string(),
            row.mtu.to_string(),
            row.ports.to_string(),
            row.stations.to_string(),
            row.rx_frames.to_string(),
            row.tx_frames.to_string(),
            drops(&row.drops),
        ]);
    }
    text(&table)
}

pub(super) fn domain(row: &DomainRow) -> String {
    let mut out = domains(std::slice::from_ref(row));
    out.push('\n');
    for (kind, path) in &row.sockets {
        out.push_str(&format!("{kind} socket: {path}\n"));
    }
    out.push_str(&format!(
        "ageing: {} s, captures: {}\n",
        row.ageing_s, row.captures
    ));
    if row.transient {
        out.push_str("it goes with its last port\n");
    }
    out
}

pub(super) fn ports(rows: &[PortRow]) -> String {
    let head = [
        "DOMAIN",
        "PORT",
        "KIND",
        "NAME",
        "PID",
        "RX FRAMES",
        "RX BYTES",
        "TX FRAMES",
        "TX BYTES",
        "DROPS",
    ];
    let mut table = table(&head, 5..9);
    for row in rows {
        table.add_row([
            row.domain.to_string(),
            row.id.to_string(),
            row.kind.clone(),
            row.name.clone(),
            row.peer
                .map_or_else(|| "-".to_owned(), |peer| peer.pid.to_string()),
            row.rx_frames.to_string(),
            row.rx_bytes.to_string(),
            row.tx_frames.to_string(),
            row.tx_bytes.to_string(),
            drops(&row.drops),
        ]);
    }
    text(&table)
}

pub(super) fn fdb(rows: &[FdbRow]) -> String {
    let mut table = table(&["STATION", "PORT", "AGE"], 1..3);
    for row in rows {
        let age = row
            .age_s
            .map_or_else(|| "static".to_owned(), |age| format!("{age:.1} s"));
        table.add_row([row.mac.clone(), row.port.to_string(), age]);
    }
    text(&table)
}

/// Counters; with those of a second ago, rates as well.
pub(super) fn recorders(rows: &[RecorderRow]) -> String {
    let mut table = table(
        &["DOMAIN", "LAST", "MOST BYTES", "FRAMES", "BYTES", "DROPPED"],
        1..6,
    );
    for row in rows {
        let last = row
            .last_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{} s", ms.div_ceil(1000)));
        table.add_row([
            row.domain.to_string(),
            last,
            row.last_bytes.to_string(),
            row.frames.to_string(),
            row.bytes.to_string(),
            row.dropped.to_string(),
        ]);
    }
    text(&table)
}

pub(super) fn stats(now: &Stats, before: Option<&Stats>) -> String {
    let daemon = &now.daemon;
    let mut out = format!(
        "switchd {}, pid {}, {} workers, up {} s\n",
        daemon.version, daemon.pid, daemon.workers, daemon.uptime_s
    );
    if !daemon.refused.is_empty() {
        out.push_str(&format!("refused connections: {}\n", counts(&daemon.refused)));
    }
    out.push('\n');
    out.push_str(&domains(&now.domains));
    if let Some(before) = before {
        out.push('\n');
        let mut table = table(
            &["DOMAIN", "RX FRAMES/S", "RX MBIT/S", "TX FRAMES/S", "TX MBIT/S"],
            1..5,
        );
        for row in &now.domains {
            let Some(old) = before.domains.iter().find(|old| old.domain == row.domain) else {
                continue;
            };
            table.add_row([
                row.domain.to_string(),
                row.rx_frames.saturating_sub(old.rx_frames).to_string(),
                megabits(row.rx_bytes.saturating_sub(old.rx_bytes)),
                row.tx_frames.saturating_sub(old.tx_frames).to_string(),
                megabits(row.tx_bytes.saturating_sub(old.tx_bytes)),
            ]);
        }
        out.push_str(&text(&table));
    }
    out
}

fn megabits(bytes: u64) -> String {
    let tenths = bytes * 8 / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn drops(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        "0".to_owned()
    } else {
        counts(drops)
    }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    counts
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A table without lines; the columns of `numbers` are aligned to the right.
fn table(head: &[&str], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn text(table: &Table) -> String {
    format!("{}\n", table.trim_fmt())
}

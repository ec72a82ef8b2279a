//! `vdump --stats`: who talks to whom, and in what.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};

use super::convert::Consumer;
use super::summary::summarise;
use crate::pcapng::{self, Block};

/// Between two showings on a terminal.
const PERIOD: Duration = Duration::from_secs(1);

/// Rows shown of each kind.
const ROWS: usize = 16;

/// Conversations told apart; further ones are counted together, so that a scan does not fill the memory.
const MOST_TALKERS: usize = 10_000;

/// Keeps count, and shows it every second on a terminal, at the end elsewhere.
pub(super) struct Talkers {
    talkers: HashMap<(String, String), Count>,
    protocols: HashMap<String, Count>,
    shown: Instant,
    live: bool,
}

#[derive(Clone, Copy, Default)]
struct Count {
    frames: u64,
    bytes: u64,
    /// Of these, since the last showing.
    recent: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
        self.recent += bytes;
    }
}

impl Talkers {
    pub(super) fn new() -> Self {
        Self {
            talkers: HashMap::new(),
            protocols: HashMap::new(),
            shown: Instant::now(),
            live: std::io::stdout().is_terminal(),
        }
    }

    fn show(&mut self) -> anyhow::Result<()> {
        let seconds = self.shown.elapsed().as_secs_f64().max(0.001);
        self.shown = Instant::now();
        let mut talkers = table(&["from", "to", "frames", "bytes", "kbit/s"]);
        for ((src, dst), count) in top(&mut self.talkers) {
            let cells = [src.clone(), dst.clone()].into_iter();
            talkers.add_row(cells.chain(numbers(count, seconds)));
        }
        let mut protocols = table(&["protocol", "frames", "bytes", "kbit/s"]);
        for (protocol, count) in top(&mut self.protocols) {
            let cells = [protocol.clone()].into_iter();
            protocols.add_row(cells.chain(numbers(count, seconds)));
        }
        for count in self.talkers.values_mut().chain(self.protocols.values_mut()) {
            count.recent = 0;
        }
        let clear = if self.live { "\x1b[H\x1b[J" } else { "" };
        let mut out = std::io::stdout().lock();
        write!(out, "{clear}{talkers}\n\n{protocols}\n")?;
        Ok(out.flush()?)
    }
}

/// The rows with the most bytes.
fn top<K: Ord>(counts: &mut HashMap<K, Count>) -> impl Iterator<Item = (&K, Count)> {
    let mut rows: Vec<_> = counts.iter().map(|(key, count)| (key, *count)).collect();
    rows.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then_with(|| a.0.cmp(b.0)));
    rows.truncate(ROWS);
    rows.into_iter()
}

fn numbers(count: Count, seconds: f64) -> [String; 3] {
    #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
    let rate = count.recent as f64 * 8.0 / 1000.0 / seconds;
    [
        count.frames.to_string(),
        count.bytes.to_string(),
        format!("{rate:.1}"),
    ]
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    let numbers = header.len() - 3;
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

impl Consumer for Talkers {
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        if block.kind == pcapng::PACKET {
            let bytes = u64::from(block.wire_len());
            let summary = summarise(block.frame());
            let mut key = (summary.src, summary.dst);
            if self.talkers.len() >= MOST_TALKERS && !self.talkers.contains_key(&key) {
                key = ("others".to_owned(), String::new());
            }
            self.talkers.entry(key).or_default().add(bytes);
            self.protocols.entry(summary.protocol).or_default().add(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn interval(&self) -> Option<Duration> {
        self.live.then(|| PERIOD.saturating_sub(self.shown.elapsed()))
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        if self.live && self.shown.elapsed() >= PERIOD {
            self.show()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.show()
    }
}

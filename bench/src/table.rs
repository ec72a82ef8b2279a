//! Results as Markdown, and their place in a README.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::busy::Busy;
use crate::cell::{Row, Score};
use crate::converge::Converge;
use crate::latency::Latency;
use crate::load::{Delivery, Traffic};
use crate::machine::Machine;
use crate::many::Many;
use crate::port::Attach;

/// Everything one run of the bench has found out.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// Rounds of each cell.
    pub rounds: u32,
    /// Seconds of each round.
    pub seconds: f64,
    /// Rounds where it is shares that are told.
    pub share_rounds: u32,
    /// Seconds of each of them.
    pub share_seconds: f64,
    /// A table for each queue length.
    pub sections: Vec<Section>,
    /// Round trips through idle switches.
    pub latencies: Vec<Latency>,
    /// Many domains in one process, if that was asked for.
    pub many_domains: Option<Many>,
    /// Domains that are loaded at once, if that was asked for.
    pub busy_domains: Vec<Busy>,
    /// Many senders to one receiver, if that was asked for.
    pub converge: Vec<Converge>,
}

/// All cells measured with one queue length.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// `net.unix.max_dgram_qlen` while they were measured.
    pub max_dgram_qlen: u32,
    /// How clients of the uml_switch protocol were attached.
    pub clients: Attach,
    /// The cells.
    pub rows: Vec<Row>,
}

impl Results {
    /// The whole as Markdown.
    pub fn markdown(&self) -> String {
        let Machine {
            cpu,
            cores,
            memory_mib,
            kernel,
            commit,
            date,
        } = &self.machine;
        let mut text = format!(
            "Measured on {date}: {cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}, commit {commit}.\n\
             Medians of {} rounds of {} s each.\n",
            self.rounds, self.seconds,
        );
        for (i, section) in self.sections.iter().enumerate() {
            text += "\n";
            text += &section.markdown();
            let before = &self.sections[..i];
            if let Some(host) = before.iter().find(|other| other.clients == section.clients) {
                text += "\n";
                text += &section.beside(host);
            }
        }
        if !self.latencies.is_empty() {
            text += "\n";
            text += &latencies_markdown(&self.latencies);
        }
        if let Some(many) = &self.many_domains {
            text += "\n";
            text += &many_markdown(many);
        }
        if !self.busy_domains.is_empty() {
            text += "\n";
            text += &busy_markdown(&self.busy_domains, &self.share_effort());
        }
        if !self.converge.is_empty() {
            text += "\n";
            text += &converge_markdown(&self.converge, &self.share_effort());
        }
        text
    }

    /// How long it was measured who has what share.
    fn share_effort(&self) -> String {
        format!(
            "Medians of {} rounds of {} s each",
            self.share_rounds, self.share_seconds
        )
    }
}

impl Section {
    /// A heading and the table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "#### {} clients, `net.unix.max_dgram_qlen` = {}\n\n",
            self.clients, self.max_dgram_qlen
        );
        let Some(first) = self.rows.first() else {
            return text + "No cell was measured.\n";
        };
        let (mut heading, mut rule) = (CELL_HEADING.to_owned(), CELL_RULE.to_owned());
        for (i, score) in first.scores.iter().enumerate() {
            _ = write!(heading, " {} frames/s | lost % | µs |", score.switch);
            rule += " ---: | ---: | ---: |";
            if i > 0 {
                heading += " ratio |";
                rule += " ---: |";
            }
        }
        _ = writeln!(text, "{heading}\n{rule}");
        for row in &self.rows {
            _ = writeln!(text, "{}", row_markdown(row));
        }
        _ = write!(text, "\n{}", wrong_markdown(&self.rows));
        let noisy: u32 = self.rows.iter().map(|row| row.noisy).sum();
        if noisy > 0 {
            _ = writeln!(
                text,
                "\n{noisy} loads began while the machine had other work to do: rates and ratios are rough."
            );
        }
        text
    }

    /// How the rates compare with those of the first switch where nobody has set up the host.
    fn beside(&self, host: &Self) -> String {
        let Some(known) = host.rows.first().and_then(|row| row.scores.first()) else {
            return String::new();
        };
        let mut text = format!(
            "By {}'s rate with {}, as it is on a host that nobody has set up:\n\n{CELL_HEADING}",
            known.switch, host.max_dgram_qlen
        );
        let mut rule = CELL_RULE.to_owned();
        for score in self.rows.iter().take(1).flat_map(|row| &row.scores) {
            _ = write!(text, " {} |", score.switch);
            rule += " ---: |";
        }
        _ = writeln!(text, "\n{rule}");
        for (row, at_host) in self.rows.iter().zip(&host.rows) {
            text += &cell_markdown(row);
            let base = at_host
                .scores
                .first()
                .map_or(f64::NAN, |score| score.delivered_per_s);
            for score in &row.scores {
                _ = write!(text, " {:.2} |", score.delivered_per_s / base);
            }
            text += "\n";
        }
        text
    }
}

/// Puts `text` between the markers `<!-- name:start -->` and `<!-- name:end -->` of a file, in place of what is there.
///
/// # Errors
/// When the file cannot be read or written, or has no markers.
pub fn replace_in(path: &Path, name: &str, text: &str) -> io::Result<()> {
    let old = std::fs::read_to_string(path)?;
    let new = replaced(&old, name, text)
        .ok_or_else(|| io::Error::other(format!("no line '<!-- {name}:start -->' and its end after it")))?;
    std::fs::write(path, new)
}

fn replaced(old: &str, name: &str, text: &str) -> Option<String> {
    let (start, end) = (format!("<!-- {name}:start -->"), format!("<!-- {name}:end -->"));
    let (before, rest) = old.split_once(&start)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{start}\n{text}{end}{after}"))
}

fn row_markdown(row: &Row) -> String {
    let mut line = cell_markdown(row);
    for (i, score) in row.scores.iter().enumerate() {
        line += &score_markdown(score);
        if i > 0 {
            _ = write!(line, " {:.2} |", score.ratio);
        }
    }
    line
}

/// The columns of [`cell_markdown`].
const CELL_HEADING: &str = "| mode | ports | traffic | bytes |";
const CELL_RULE: &str = "| --- | ---: | --- | ---: |";

/// The first columns: what was measured.
fn cell_markdown(row: &Row) -> String {
    let mode = match row.cell.mode {
        Delivery::Hub => "hub",
        Delivery::Switch => "switch",
    };
    let traffic = match row.cell.traffic {
        Traffic::Unicast => "unicast",
        Traffic::Flood => "flood",
        Traffic::Converge => "converge",
    };
    format!("| {mode} | {} | {traffic} | {} |", row.cell.ports, row.cell.size)
}

fn score_markdown(score: &Score) -> String {
    let cpu = score
        .cpu_us_per_frame
        .map_or_else(|| "-".to_owned(), |us| format!("{us:.2}"));
    // No loss at all must not look like very little of it.
    let lost = match score.loss_percent {
        0.0 => "0".to_owned(),
        percent => format!("{percent:.3}"),
    };
    format!(" {:.0} | {lost} | {cpu} |", score.delivered_per_s)
}

fn wrong_markdown(rows: &[Row]) -> String {
    let all = || {
        rows.iter()
            .flat_map(|row| row.scores.iter().map(move |score| (row.cell, score)))
    };
    if all().all(|(_, score)| score.wrong == 0) {
        return "No frame was reordered, duplicate, damaged or delivered to a wrong port by any switch.\n"
            .into();
    }
    all()
        .filter(|(_, score)| score.wrong > 0)
        .map(|(cell, score)| {
            format!(
                "- {cell}: {} delivered {} frames out of order, twice, damaged or to a wrong port\n",
                score.switch, score.wrong
            )
        })
        .collect()
}

fn latencies_markdown(latencies: &[Latency]) -> String {
    let mut text = String::from(
        "#### Round trip through an idle hub\n\n\
         Two clients, not connected to the switch if nothing else is said (bess always is), 60 bytes, one frame at a\n\
         time; all rows in turns, one round trip each, half a millisecond apart.\n\n\
         | switch | round trips | median µs | p99 µs |\n| --- | ---: | ---: | ---: |\n",
    );
    for row in latencies {
        _ = writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} |",
            row.switch, row.round_trips, row.median_us, row.p99_us
        );
    }
    text
}

fn many_markdown(many: &Many) -> String {
    let per = |s: f64, n: u32| s * 1e6 / f64::from(n.max(1));
    format!(
        "#### {} domains with 2 ports each in one switchd\n\n\
         | | |\n| --- | ---: |\n\
         | resident memory, no domain | {} KiB |\n\
         | with the domains | {} KiB |\n\
         | with the ports | {} KiB |\n\
         | after a frame each way through every domain | {} KiB |\n\
         | to make a domain | {:.0} µs |\n\
         | to attach a port | {:.0} µs |\n\
         | domains in which both frames arrived undamaged | {} |\n",
        many.domains,
        many.empty_kib,
        many.domains_kib,
        many.ports_kib,
        many.used_kib,
        per(many.create_s, many.domains),
        per(many.attach_s, many.domains * 2),
        many.working,
    )
}

fn busy_markdown(rows: &[Busy], effort: &str) -> String {
    let mut text = format!(
        "#### 1 to 64 busy domains in one switchd\n\n\
         Each has one sender and one receiver over bess, 1514 bytes, learning switch. {effort}.\n\n\
         | domains | frames/s in all | by that of 1 | µs a frame | by that of 1 | smallest share | greatest | lost or wrong |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let (least, greatest) = row.shares;
        _ = writeln!(
            text,
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} | {least:.2} | {greatest:.2} | {} |",
            row.domains,
            row.delivered_per_s,
            row.rate_by_one,
            row.cpu_us_per_frame,
            row.cpu_by_one,
            row.wrong,
        );
    }
    text
}

fn converge_markdown(rows: &[Converge], effort: &str) -> String {
    let senders = rows.first().map_or(0, |row| row.senders);
    let mut text = format!(
        "#### {senders} senders to one receiver\n\n\
         1514 bytes, learning switch; a share of 1 is an equal one. {effort}.\n\n\
         | switch, ports | frames/s | lost % | smallest share | greatest |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let (least, greatest) = row.shares;
        _ = writeln!(
            text,
            "| {} | {:.0} | {:.3} | {least:.2} | {greatest:.2} |",
            row.name, row.delivered_per_s, row.loss_percent
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let old = "a\n<!-- x:start -->\nold\n<!-- x:end -->\nb\n";
        assert_eq!(
            replaced(old, "x", "new\n").as_deref(),
            Some("a\n<!-- x:start -->\nnew\n<!-- x:end -->\nb\n")
        );
        assert_eq!(replaced(old, "y", "new"), None);
        assert_eq!(replaced("<!-- x:end --><!-- x:start -->", "x", "new"), None);
    }
}

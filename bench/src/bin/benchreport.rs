//! Puts the tables of the bench's scripts into a README, and draws the rates of everything as bars.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use bench::chart::{Bar, Group, svg};
use bench::machine::Machine;
use bench::table::replace_in;
use clap::Parser;
use serde_json::Value;

const EXAMPLES: &str = "\
Example:
  hubbench --json >hub.json; bench/taps.sh >taps.md
  benchreport --hubbench hub.json --table taps=taps.md --readme bench/README.md --svg bench/rates.svg";

/// Cells of hubbench that are drawn.
const CELLS: [(&str, u64, &str, u64); 2] = [("hub", 2, "unicast", 1514), ("hub", 8, "flood", 1514)];

/// Put results into a README and draw them
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// What hubbench --json has printed, to be drawn
    #[arg(long, value_name = "FILE")]
    hubbench: Option<PathBuf>,
    /// A Markdown table, to be put between the lines <!-- NAME:start --> and <!-- NAME:end --> of the README; its second
    /// column is drawn. May be given several times
    #[arg(long, value_name = "NAME=FILE", value_parser = name_and_file)]
    table: Vec<(String, PathBuf)>,
    /// The file to put tables into
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// The drawing
    #[arg(long, value_name = "FILE")]
    svg: PathBuf,
}

fn name_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("not NAME=FILE")?;
    Ok((name.to_owned(), file.into()))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchreport: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let machine = Machine::probe();
    let source = format!(
        "{}, {} cores, Linux {}, commit {}, {}",
        machine.cpu, machine.cores, machine.kernel, machine.commit, machine.date
    );
    let mut groups = Vec::new();
    if let Some(file) = &arguments.hubbench {
        let results: Value = serde_json::from_str(&read(file)?)
            .with_context(|| format!("cannot understand {}", file.display()))?;
        groups.extend(hubbench(&results));
    }
    for (name, file) in &arguments.table {
        let table = read(file)?;
        groups.push(from_table(&table).ok_or_else(|| anyhow!("no table in {}", file.display()))?);
        if let Some(readme) = &arguments.readme {
            replace_in(readme, name, &format!("{source}\n\n{table}"))
                .with_context(|| format!("cannot update {}", readme.display()))?;
        }
    }
    let svg_file = &arguments.svg;
    fs::write(svg_file, svg(&groups, &source)).with_context(|| format!("cannot write {}", svg_file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// A group for each of [`CELLS`] in each section.
fn hubbench(results: &Value) -> Vec<Group> {
    let mut groups = Vec::new();
    for section in results["sections"].as_array().into_iter().flatten() {
        for row in section["rows"].as_array().into_iter().flatten() {
            let cell = &row["cell"];
            let is = |&(mode, ports, traffic, size): &(&str, u64, &str, u64)| {
                cell["mode"] == mode
                    && cell["ports"] == ports
                    && cell["traffic"] == traffic
                    && cell["size"] == size
            };
            let Some((_, ports, traffic, size)) = CELLS.iter().find(|cell| is(cell)) else {
                continue;
            };
            let bars = row["scores"].as_array().into_iter().flatten().map(|score| Bar {
                label: score["switch"].as_str().unwrap_or_default().to_owned(),
                value: score["delivered_per_s"].as_f64().unwrap_or(0.0),
            });
            groups.push(Group {
                title: format!(
                    "frames/s: {ports} ports, {traffic}, {size} bytes, {} clients, queue of {}",
                    section["clients"].as_str().unwrap_or_default(),
                    section["max_dgram_qlen"]
                ),
                bars: bars.collect(),
            });
        }
    }
    groups
}

/// The first two columns of the first table in a text.
fn from_table(text: &str) -> Option<Group> {
    let mut rows = text
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).skip(1).collect::<Vec<_>>());
    let heading = rows.next()?;
    let bars = rows.skip(1).filter_map(|row| {
        Some(Bar {
            label: (*row.first()?).to_owned(),
            value: row.get(1)?.parse().ok()?,
        })
    });
    Some(Group {
        title: format!("{}, by {}", heading.get(1)?, heading.first()?),
        bars: bars.collect(),
    })
}

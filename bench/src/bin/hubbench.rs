//! Compares switchd with the switches Debian ships.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bench::busy::busy;
use bench::cell::{Cell, Effort, measure};
use bench::contestant::Kind;
use bench::converge::converge;
use bench::latency::latencies;
use bench::machine::{Machine, enter_namespace, queue_length};
use bench::many::many_domains;
use bench::port::Attach;
use bench::stop::Stop;
use bench::table::{Results, Section, replace_in};
use clap::Parser;

const EXAMPLES: &str = "\
Examples:
  hubbench                                 everything, half an hour at most
  hubbench --only hub/2/unicast/1514       one cell
  hubbench --only /flood/ --rounds 5 --queue-length 0
  hubbench --only none --round-trips 0 --many-domains 1000
  hubbench --readme bench/README.md        put the tables there

A cell is named MODE/PORTS/TRAFFIC/BYTES, for example switch/8/flood/60.";

/// Measure switchd against Debian's uml_switch and vde_switch, in one run and in turns
#[derive(Parser)]
#[command(name = "hubbench", version, after_help = EXAMPLES)]
struct Args {
    /// Seconds of load for each switch, cell and round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds of each load of --busy-domains and --converge: shares take longer to even out than rates
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    share_seconds: f64,
    /// Rounds of --busy-domains and --converge
    #[arg(long, value_name = "ROUNDS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    share_rounds: u32,
    /// Rounds; the table has their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds to wait before each load, at most, for a machine without other work
    #[arg(long, default_value_t = 0.0)]
    patience: f64,
    /// Only cells whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Measure again with this net.unix.max_dgram_qlen in a network namespace of its own, if root; 0 for not
    #[arg(long, default_value_t = 1024)]
    queue_length: u32,
    /// Frames that go to and fro, one at a time, through each switch when it is idle; 0 for not
    #[arg(long, value_name = "N", default_value_t = 5000)]
    round_trips: usize,
    /// Make so many domains in one switchd, too
    #[arg(long, value_name = "N")]
    many_domains: Option<u32>,
    /// Load 1 to 64 domains of one switchd at once, too
    #[arg(long)]
    busy_domains: bool,
    /// Have so many ports send to one, too, and show what share each of them has
    #[arg(long, value_name = "N")]
    converge: Option<u16>,
    /// The switchd to measure; without this the one beside hubbench. May be given several times to compare builds
    #[arg(long, value_name = "PATH")]
    switchd: Vec<PathBuf>,
    /// Leave vde_switch out
    #[arg(long)]
    without_vde: bool,
    /// Leave switchd out: only the switches it is compared with
    #[arg(long, conflicts_with_all = ["switchd", "many_domains", "busy_domains"])]
    without_switchd: bool,
    /// Replace the results in this file, between the lines <!-- hubbench:start --> and <!-- hubbench:end -->
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hubbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signals().context("cannot handle signals")?;
    let switchds = switchds(args)?;
    let mut kinds = vec![Kind::UmlSwitch];
    kinds.extend((!args.without_vde).then_some(Kind::VdeSwitch));
    kinds.extend(switchds.iter().cloned().map(Kind::Switchd));
    kinds.extend(switchds.iter().cloned().map(Kind::SwitchdBess));
    let machine = Machine::probe();
    let share_time =
        Duration::try_from_secs_f64(args.share_seconds).context("cannot measure for --share-seconds")?;

    let mut sections = Vec::new();
    for clients in [Attach::Connected, Attach::Uml] {
        sections.push(section(args, &kinds, clients, &stop)?);
    }
    let latencies = match args.round_trips {
        0 => Vec::new(),
        round_trips => {
            eprintln!("{round_trips} round trips through each switch");
            latencies(&kinds, round_trips, &stop)?
        }
    };
    let many = match (args.many_domains, switchds.first()) {
        (Some(domains), Some(program)) => {
            eprintln!("{domains} domains");
            Some(many_domains(program, domains, &stop)?)
        }
        _ => None,
    };
    let busy_domains = match switchds.first() {
        Some(program) if args.busy_domains => {
            eprintln!("1 to 64 busy domains");
            busy(program, args.share_rounds, share_time, &stop)?
        }
        _ => Vec::new(),
    };
    let converge = match args.converge {
        Some(senders) => {
            eprintln!("{senders} senders to one receiver");
            converge(&kinds, senders, args.share_rounds, share_time, &stop)?
        }
        None => Vec::new(),
    };
    if args.queue_length > 0 {
        match enter_namespace(args.queue_length) {
            Ok(()) => {
                for clients in [Attach::Connected, Attach::Uml] {
                    sections.push(section(args, &kinds, clients, &stop)?);
                }
            }
            Err(error) => eprintln!(
                "hubbench: not measured with net.unix.max_dgram_qlen {}: {error}",
                args.queue_length
            ),
        }
    }
    sections.retain(|section| !section.rows.is_empty());
    let results = Results {
        machine,
        rounds: args.rounds,
        seconds: args.seconds,
        share_rounds: args.share_rounds,
        share_seconds: args.share_seconds,
        sections,
        latencies,
        many_domains: many,
        busy_domains,
        converge,
    };
    let text = if args.json {
        serde_json::to_string(&results)? + "\n"
    } else {
        results.markdown()
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot print the results");
        }
        _ => {}
    }
    match &args.readme {
        Some(path) => replace_in(path, "hubbench", &results.markdown())
            .with_context(|| format!("cannot put the results into {}", path.display())),
        None => Ok(()),
    }
}

fn section(args: &Args, kinds: &[Kind], clients: Attach, stop: &Stop) -> anyhow::Result<Section> {
    let max_dgram_qlen = queue_length().context("cannot read net.unix.max_dgram_qlen")?;
    let effort = Effort {
        rounds: args.rounds,
        time: Duration::try_from_secs_f64(args.seconds).context("cannot measure for --seconds")?,
        patience: Duration::try_from_secs_f64(args.patience).context("cannot wait for --patience")?,
        clients,
    };
    let cells = Cell::all();
    let chosen = cells.into_iter().filter(|c| c.to_string().contains(&args.only));
    let mut rows = Vec::new();
    for cell in chosen {
        eprint!("qlen {max_dgram_qlen}, {clients} clients, {cell}:");
        let row = measure(cell, kinds, effort, stop)?;
        for score in &row.scores {
            eprint!(
                "  {} {:.0}/s ({:.2})",
                score.switch, score.delivered_per_s, score.ratio
            );
        }
        eprintln!("  {} noisy", row.noisy);
        rows.push(row);
    }
    Ok(Section {
        max_dgram_qlen,
        clients,
        rows,
    })
}

/// Every switchd to measure; none if it is to be left out.
fn switchds(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    if args.without_switchd {
        return Ok(Vec::new());
    }
    let beside = || {
        let own = std::env::current_exe().context("cannot find hubbench itself")?;
        anyhow::Ok(vec![own.with_file_name("switchd")])
    };
    let paths = match args.switchd.as_slice() {
        [] => beside()?,
        given => given.to_vec(),
    };
    if let Some(path) = paths.iter().find(|path| !path.is_file()) {
        bail!(
            "cannot find switchd at {}\nhint: cargo build --release -p switchd, or --switchd PATH",
            path.display()
        );
    }
    Ok(paths)
}

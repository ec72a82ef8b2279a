//! Loads one switch and checks every frame it delivers.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bench::load::{Calls, Delivery, Full, Load, Traffic, run};
use bench::port::Attach;
use bench::report::Report;
use bench::stop::Stop;
use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  hubload /tmp/uml.ctl                           port 0 sends 1514-byte frames to port 1 for 2 s
  hubload --ports 8 --traffic flood /tmp/uml.ctl one port broadcasts to seven
  hubload --switch --senders 4 --ports 4 /run/vde.ctl
                                                 four ports in a ring on a learning VDE switch
  hubload --switch --ports 9 --senders 8 --traffic converge --attach uml --attach bess A.cnct A.bess
                                                 eight senders, of two kinds in turns, to one receiver
  hubload --frames 1000000 --json --switch-pid 4711 /tmp/uml.ctl

Exit status: 0 if every frame that arrived was in order and undamaged (loss is only reported),
1 if not or if the load could not be run, 2 for wrong usage.";

/// Load a switch that speaks the uml_switch protocol, or BESS's, and check every frame it delivers
#[derive(Parser)]
#[command(name = "hubload", version, after_help = EXAMPLES)]
struct Args {
    /// Control socket of the switch, the directory of a vde_switch, or a BESS socket; several of one switch are taken
    /// in turns, port after port
    #[arg(required = true)]
    control: Vec<PathBuf>,
    /// How ports attach: once for each socket, or once for all
    #[arg(long, value_enum, default_value = "uml")]
    attach: Vec<AttachArg>,
    /// Ports to attach
    #[arg(long, default_value_t = 2)]
    ports: u16,
    /// How many of them send
    #[arg(long, default_value_t = 1)]
    senders: u16,
    /// Bytes of a frame, without checksum: 60 to 9018
    #[arg(long, default_value_t = 1514)]
    size: usize,
    /// Whom the senders address
    #[arg(long, value_enum, default_value_t = TrafficArg::Unicast)]
    traffic: TrafficArg,
    /// Expect unicast frames at their destination alone; without this at every port, as from a hub
    #[arg(long)]
    switch: bool,
    /// Seconds to send
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Frames each sender sends at most
    #[arg(long)]
    frames: Option<u64>,
    /// Give up frames that find the switch's socket full, as UML guests do; without this senders wait
    #[arg(long)]
    nonblocking: bool,
    /// Frames a second each sender offers at most
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Frames senders send with one system call
    #[arg(long, value_enum, default_value_t = CallsArg::Vector)]
    send: CallsArg,
    /// Frames receivers receive with one system call
    #[arg(long, value_enum, default_value_t = CallsArg::Vector)]
    receive: CallsArg,
    /// Seconds to wait for the last frames at most
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    drain: f64,
    /// Process of the switch, to measure its processor time
    #[arg(long)]
    switch_pid: Option<u32>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TrafficArg {
    /// Each sender the port after it
    Unicast,
    /// Everyone, by broadcast
    Flood,
    /// All the last port, which does not send
    Converge,
}

#[derive(Clone, Copy, ValueEnum)]
enum AttachArg {
    /// With the uml_switch protocol, over a socket that is not connected, as UML guests
    Uml,
    /// The same over a connected socket, as VDE's clients
    Connected,
    /// Over a sequenced-packet connection, as UML guests with transport=bess
    Bess,
}

impl From<AttachArg> for Attach {
    fn from(attach: AttachArg) -> Self {
        match attach {
            AttachArg::Uml => Self::Uml,
            AttachArg::Connected => Self::Connected,
            AttachArg::Bess => Self::Bess,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum CallsArg {
    /// One, as UML's daemon driver does
    Single,
    /// Many, as UML's vector driver does: costs the generator least
    Vector,
}

impl From<CallsArg> for Calls {
    fn from(calls: CallsArg) -> Self {
        match calls {
            CallsArg::Single => Self::Single,
            CallsArg::Vector => Self::Vector,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(s),
        _ => Err("not a number of seconds from 0 to 86400".into()),
    }
}

impl From<Args> for Load {
    fn from(args: Args) -> Self {
        let attach = args.attach.iter().copied().cycle().map(Attach::from);
        let mut ways = args.control.into_iter().zip(attach);
        let (control, attach) = ways.next().expect("clap asks for a socket and has a default");
        Self {
            attach,
            also: ways.collect(),
            ports: args.ports,
            senders: args.senders,
            size: args.size,
            traffic: match args.traffic {
                TrafficArg::Unicast => Traffic::Unicast,
                TrafficArg::Flood => Traffic::Flood,
                TrafficArg::Converge => Traffic::Converge,
            },
            delivery: if args.switch {
                Delivery::Switch
            } else {
                Delivery::Hub
            },
            time: Duration::from_secs_f64(args.seconds),
            frames: args.frames,
            full: if args.nonblocking {
                Full::Refuse
            } else {
                Full::Block
            },
            rate: args.rate,
            send: args.send.into(),
            receive: args.receive.into(),
            drain: Duration::from_secs_f64(args.drain),
            switch_pid: args.switch_pid,
            ..Self::new(control)
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match load(args) {
        Ok(report) if report.reordered + report.duplicates + report.damaged == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hubload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: Args) -> anyhow::Result<Report> {
    let stop = Stop::on_signals().context("cannot handle signals")?;
    let json = args.json;
    let report = run(args.into(), &stop)?;
    let text = if json {
        serde_json::to_string(&report)?
    } else {
        let rows = report.receivers.iter().map(|row| format!("\n{row}"));
        let shares = report.senders.iter().map(|row| format!("\n{row}"));
        format!(
            "{}\n{report}{}{}",
            Report::HEADING,
            rows.collect::<String>(),
            shares.collect::<String>()
        )
    };
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print the report")
        }
        _ => Ok(report),
    }
}

//! `guestbench`: TCP between two real UML kernels, over switchd and over Debian's uml_switch, in one run and in turns.
//!
//! The two machines are the same for all: each has an interface in a domain of switchd, one in another domain by the
//! kernel's vector driver, one in a third by memory shared with switchd (all by vstart), and one at a uml_switch (by a
//! word on the kernel's command line). iperf3 runs in the machines, from the host's own files.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::contestant::debians;
use bench::machine::Machine;
use bench::table::replace_in;
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

/// Measure TCP between two UML machines over switchd and over uml_switch, in turns
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  guestbench --rounds 5 --seconds 4")]
struct Arguments {
    /// Rounds; the medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of TCP for each switch and round
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Pings at 10 ms over each switch before the load
    #[arg(long, default_value_t = 100)]
    pings: u32,
    /// Directory of the programs [default: that of guestbench]
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Replace the results in this file, between the lines <!-- guestbench:start --> and <!-- guestbench:end -->
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came out for one switch.
#[derive(Debug, Serialize)]
struct Row {
    switch: &'static str,
    pings_sent: u32,
    pings_lost: u32,
    mbit_per_s: Vec<f64>,
    median_mbit_per_s: f64,
    retransmits: u64,
}

/// Name of the switch, the interface in both machines, and their network.
const SWITCHES: [(&str, &str, &str); 4] = [
    ("uml_switch", "eth1", "10.0.1"),
    ("switchd", "eth0", "10.0.0"),
    ("switchd, vector driver", "eth2", "10.0.2"),
    ("switchd, shared memory", "eth3", "10.0.3"),
];

/// Boot, pings and the load of one round take so long at most beyond the load itself.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guestbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bin = match &arguments.bin {
        Some(bin) => bin.clone(),
        None => std::env::current_exe()?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default(),
    };
    let lab = Lab::start(bin, arguments)?;
    let mut rows = Vec::new();
    for (index, (switch, _, _)) in SWITCHES.into_iter().enumerate() {
        rows.push(lab.row(switch, index, arguments)?);
    }
    drop(lab);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let text = markdown(&rows, arguments.rounds);
    print!("{text}");
    if let Some(readme) = &arguments.readme {
        replace_in(readme, "guestbench", &text)
            .with_context(|| format!("cannot update {}", readme.display()))?;
    }
    Ok(())
}

fn markdown(rows: &[Row], rounds: usize) -> String {
    let Machine {
        cpu,
        cores,
        kernel,
        commit,
        date,
        ..
    } = Machine::probe();
    let mut text = format!("{cpu}, {cores} cores, Linux {kernel}, commit {commit}, {date}\n\n");
    text += &format!(
        "| switch | pings at 10 ms | lost | TCP Mbit/s, median of {rounds} | retransmits | ratio |\n"
    );
    text += "| --- | ---: | ---: | ---: | ---: | ---: |\n";
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {:.0} | {} | {:.2} |\n",
            row.switch,
            row.pings_sent,
            row.pings_lost,
            row.median_mbit_per_s,
            row.retransmits,
            row.median_mbit_per_s / rows[0].median_mbit_per_s
        );
    }
    text
}

/// Two machines and a uml_switch, ended with this value. Its home is a directory of its own.
struct Lab {
    bin: PathBuf,
    home: tempfile::TempDir,
    uml_switch: Child,
}

impl Lab {
    fn start(bin: PathBuf, arguments: &Arguments) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("guestbench").tempdir_in("/tmp")?;
        let socket = home.path().join("uml.ctl");
        let uml_switch = Command::new(debians("uml_switch"))
            .arg("-hub")
            .arg("-unix")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start uml_switch\nhint: scripts/setup.sh installs it")?;
        let lab = Self {
            bin,
            home,
            uml_switch,
        };
        wait_for("uml_switch to listen", PATIENCE, || {
            // Its file is there before it listens.
            UnixStream::connect(&socket).is_ok()
        })?;
        fs::write(lab.home.path().join("server.sh"), lab.script(1, "iperf3 -s -D\n"))?;
        fs::write(
            lab.home.path().join("client.sh"),
            lab.script(2, &client(arguments)),
        )?;
        lab.boot("bench1", &socket, "server.sh")?;
        lab.boot("bench2", &socket, "client.sh")?;
        Ok(lab)
    }

    /// What a machine runs: its addresses, then its part.
    fn script(&self, host: u8, part: &str) -> String {
        let mut script = String::new();
        for (_, interface, network) in SWITCHES {
            script +=
                &format!("ip addr add {network}.{host}/24 dev {interface}\nip link set {interface} up\n");
        }
        script + part
    }

    fn boot(&self, machine: &str, socket: &Path, script: &str) -> anyhow::Result<()> {
        let output = self
            .command("vstart")
            .args([machine, "-q", "-M", "256", "--eth0=A", "--transport=daemon"])
            .args(["--eth2=B", "--transport=eth2=bess"])
            .args(["--eth3=C", "--transport=eth3=vhost"])
            .arg(format!("--append=eth1=daemon,,,{}", socket.display()))
            // In the background: the machine is up before the load begins.
            .arg(format!(
                "--exec=sh /hosthome/{script} >/hosthome/{script}.log 2>&1 &"
            ))
            .output()
            .context("cannot run vstart")?;
        if !output.status.success() {
            bail!(
                "cannot boot {machine}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .env("HOME", self.home.path())
            .env_remove("NETKIT_HUBS")
            .env_remove("NETKIT_STATE");
        command.stdin(Stdio::null());
        command
    }

    /// Reads what the client has left about one switch.
    fn row(&self, switch: &'static str, index: usize, arguments: &Arguments) -> anyhow::Result<Row> {
        let home = self.home.path();
        let load = Duration::from_secs(u64::from(arguments.seconds) * 2) * u32::try_from(arguments.rounds)?;
        wait_for("the machines to finish", PATIENCE + load, || {
            home.join("done").exists()
        })
        .with_context(|| fs::read_to_string(home.join("client.sh.log")).unwrap_or_default())?;
        let pings = fs::read_to_string(home.join(format!("ping-{index}")))?;
        let (sent, received) =
            ping_counts(&pings).with_context(|| format!("cannot understand ping: {pings}"))?;
        let mut mbit_per_s = Vec::new();
        let mut retransmits = 0;
        for round in 0..arguments.rounds {
            let report = fs::read_to_string(home.join(format!("tcp-{index}-{round}")))?;
            let report: serde_json::Value = serde_json::from_str(&report)?;
            let end = &report["end"];
            let bits = end["sum_received"]["bits_per_second"].as_f64();
            mbit_per_s
                .push(bits.with_context(|| format!("iperf3 over {switch}: {}", report["error"]))? / 1e6);
            retransmits += end["sum_sent"]["retransmits"].as_u64().unwrap_or(0);
        }
        let median_mbit_per_s = median(&mbit_per_s);
        Ok(Row {
            switch,
            pings_sent: sent,
            pings_lost: sent - received,
            mbit_per_s,
            median_mbit_per_s,
            retransmits,
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whatever fails here fails because there is nothing left to end.
        let _ = self
            .command("vstart")
            .args(["vcrash", "bench1", "bench2"])
            .output();
        let _ = self.command("switchd").arg("stop").output();
        if let Ok(pid) = i32::try_from(self.uml_switch.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.uml_switch.wait();
    }
}

/// The client's part: pings over each switch, then TCP over each, in turns.
fn client(arguments: &Arguments) -> String {
    let mut script = String::from("cd /hosthome\n");
    for (index, (_, _, network)) in SWITCHES.into_iter().enumerate() {
        // The first ping waits for ARP, and for the other machine's addresses.
        script += &format!("until ping -c 1 -W 1 {network}.1 >/dev/null; do :; done\n");
        script += &format!(
            "ping -q -c {} -i 0.01 {network}.1 >ping-{index} 2>&1\n",
            arguments.pings
        );
    }
    for round in 0..arguments.rounds {
        for (index, (_, _, network)) in SWITCHES.into_iter().enumerate() {
            script += &format!(
                "iperf3 -J -t {} -c {network}.1 >tcp-{index}-{round}\n",
                arguments.seconds
            );
        }
    }
    script + "touch done\n"
}

/// `100 packets transmitted, 99 received, ...`
fn ping_counts(report: &str) -> Option<(u32, u32)> {
    let line = report.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line
        .split(", ")
        .map(|part| part.split(' ').next().and_then(|word| word.parse().ok()));
    Some((numbers.next()??, numbers.next()??))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wait_for(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

//! `ltest`: run a lab and keep what its machines find.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::labs::code;
use super::lhalt::{finish, leave_tap};
use super::lstart::{Starting, launch, prepare};
use crate::lab::Lab;
use crate::lab::end::{Manner, remove, running};
use crate::launch::note;
use crate::name::MachineName;
use crate::registry::Registry;

/// Start a lab, let its machines run their tests, and collect what they say
///
/// When all machines are ready, each runs _test/NAME.test and _test/shared.test of the lab, if they are there. Their
/// output goes to _test/results/NAME.user and NAME.shared; NAME.default shows addresses, routes and processes. When
/// all are through, the machines are halted.
#[derive(Debug, Parser)]
#[command(
    name = "ltest",
    version,
    after_help = "Examples:\n  ltest\n  ltest --delay 30 -d ~/labs/two-routers   # routes need their time"
)]
pub(super) struct Options {
    #[command(flatten)]
    starting: Starting,
    /// Time between the last machine's start and the tests
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    delay: u64,
    /// Longest time the tests may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    test_timeout: u64,
}

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let starting = &options.starting;
    let config = super::config()?;
    let lab = starting.place.lab(starting.force_lab)?;
    let further = format!("--append=test={}", options.delay);
    let work = prepare(&lab, starting, &config, &[further])?;
    let registry = super::registry()?;
    let machines = lab.select(&starting.place.names)?;
    if let Some(record) = running(&lab, &machines, &registry)?.first() {
        bail!(
            "cannot test the lab: machine {} is running\nhint: 'lhalt' ends the lab's machines",
            record.machine.name
        );
    }
    let names: Vec<MachineName> = machines.iter().map(|machine| machine.name.clone()).collect();
    let results = lab.dir.join("_test/results");
    fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    for name in &names {
        remove(&lab.file(name, "testdone"))?;
        for kind in KINDS {
            remove(&results.join(format!("{name}.{kind}")))?;
        }
    }
    let signal = lab.dir.join("readyfor.test");
    remove(&signal)?;

    let started = launch(&work, starting, &config)? == ExitCode::SUCCESS;
    let tested = started.then(|| -> Result<bool> {
        fs::write(&signal, "").with_context(|| format!("cannot write {}", signal.display()))?;
        let patience = Duration::from_secs(options.delay + options.test_timeout);
        wait_for_tests(&lab, &names, &registry, patience)
    });
    let left = running(&lab, &machines, &registry)?;
    let ended = left.is_empty() || finish(&lab, &left, Manner::Halt(HALT_PATIENCE), false, &registry, true);
    let ended = ended && leave_tap("ltest", &registry);
    remove(&signal)?;
    for name in &names {
        remove(&lab.file(name, "testdone"))?;
        remove(&lab.file(name, "ready"))?;
    }
    let tested = tested.transpose()?.unwrap_or(false);
    if tested {
        println!("{}", results.display());
    }
    Ok(code(started && tested && ended))
}

/// Waits until all machines are through with their tests; false if one is not.
fn wait_for_tests(lab: &Lab, names: &[MachineName], registry: &Registry, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let mut left: Vec<&MachineName> = names.iter().collect();
    let mut well = true;
    loop {
        left.retain(|name| !lab.file(name, "testdone").exists());
        let mut gone = Vec::new();
        for name in &left {
            if registry.find(name).is_err() && !lab.file(name, "testdone").exists() {
                note(&format!("{name}: ended before its tests were through"));
                gone.push(*name);
                well = false;
            }
        }
        left.retain(|name| !gone.contains(name));
        if left.is_empty() {
            return Ok(well);
        }
        if Instant::now() >= deadline {
            for name in left {
                note(&format!(
                    "{name}: its tests are not through after {} s",
                    patience.as_secs()
                ));
            }
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}

const KINDS: [&str; 3] = ["default", "shared", "user"];
const HALT_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

//! Starts a machine's supervisor and follows it: what vstart does once everything is decided.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::dirs::Dirs;
use crate::machine::Console;
use crate::supervisor::{self, Event, Plan};
use crate::terminal::{self, Left};

/// How a machine is followed.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// Says nothing of what goes well.
    pub quiet: bool,
    /// Says when each step was done.
    pub debug: bool,
    /// Waits for the machine's end.
    pub foreground: bool,
}

/// How following a machine has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It runs on in the background.
    Running,
    /// It has ended of its own will.
    Ended,
    /// It has ended otherwise.
    Crashed(String),
}

/// Starts the machine.
///
/// # Errors
/// When it cannot be started; then nothing of it is left.
pub fn start(plan: &Plan, follow: Follow) -> Result<Outcome> {
    let begun = Instant::now();
    let mut supervisor = Supervisor::start(plan)?;
    let name = &plan.machine.name;
    let say = |text: &str| {
        if follow.debug {
            note(&format!(
                "{name}: {:7.3} s: {text}",
                begun.elapsed().as_secs_f64()
            ));
        } else if !follow.quiet {
            note(&format!("{name}: {text}"));
        }
    };
    let here = plan
        .machine
        .consoles
        .iter()
        .position(|console| *console == Console::This);
    let mut up = false;
    loop {
        match supervisor.next_event()? {
            Event::Step(text) => say(&text),
            Event::Consoles { ptys } => {
                for (number, pty) in ptys.iter().enumerate() {
                    if let Some(pty) = pty {
                        say(&format!(
                            "console {number} is {0}: attach to it by 'screen {0}'",
                            pty.display()
                        ));
                    }
                }
                if let Some(number) = here {
                    let left = terminal::attach(&plan.dirs.console_socket(name), number)?;
                    if left == Left::Detached {
                        supervisor.wait_until_up()?;
                        say(&format!(
                            "runs on in the background: 'vconnect {name}' shows its console"
                        ));
                        return Ok(Outcome::Running);
                    }
                }
            }
            Event::Up(_) => {
                up = true;
                // After a console was shown here, it is the user's time that was measured.
                if here.is_none() {
                    say(&format!("up after {:.1} s", begun.elapsed().as_secs_f64()));
                }
                if plan.machine.consoles[0] == Console::Detached {
                    say(&format!("'vconnect {name}' shows its console"));
                }
                if !follow.foreground {
                    return Ok(Outcome::Running);
                }
                if here.is_none() {
                    halt_on_signals(&plan.dirs, name)?;
                }
            }
            Event::Failed { message, console } => {
                if !console.is_empty() && !message.contains("already") {
                    eprintln!("{name}: the last on its console:");
                    for line in console {
                        eprintln!("    {line}");
                    }
                }
                return Err(anyhow!(message));
            }
            Event::Ended { clean: true, .. } => {
                say("ended");
                return Ok(Outcome::Ended);
            }
            Event::Ended {
                clean: false,
                message,
            } => {
                debug_assert!(up, "a machine ends after it was up");
                return Ok(Outcome::Crashed(message));
            }
        }
    }
}

/// Tells the user something, in one piece: several machines may be started at once on one terminal.
pub fn note(text: &str) {
    // Nobody to tell it to is no reason to fail.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The supervisor as vstart sees it.
struct Supervisor {
    child: Child,
    /// Kept open while the machine starts: its end tells the supervisor that we have been interrupted.
    _input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Supervisor {
    fn start(plan: &Plan) -> Result<Self> {
        let mut line = serde_json::to_string(plan).context("cannot write down the machine")?;
        line.push('\n');
        let mut child = Command::new("/proc/self/exe")
            .args([supervisor::WORD, plan.machine.name.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It outlives us: our own would keep a pipe behind us open.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the supervisor")?;
        let mut input = child.stdin.take().context("the supervisor has no input")?;
        let output = child.stdout.take().context("the supervisor has no output")?;
        input
            .write_all(line.as_bytes())
            .context("cannot talk to the supervisor")?;
        Ok(Self {
            child,
            _input: input,
            output: BufReader::new(output),
        })
    }

    fn next_event(&mut self) -> Result<Event> {
        let mut line = String::new();
        let length = self
            .output
            .read_line(&mut line)
            .context("cannot hear the supervisor")?;
        if length == 0 {
            let status = self.child.wait().context("cannot wait for the supervisor")?;
            return Err(anyhow!("the machine's supervisor ended unexpectedly: {status}"));
        }
        serde_json::from_str(&line).context("cannot understand the supervisor")
    }

    fn wait_until_up(&mut self) -> Result<()> {
        loop {
            match self.next_event()? {
                Event::Up(_) => return Ok(()),
                Event::Failed { message, .. } | Event::Ended { message, .. } => return Err(anyhow!(message)),
                Event::Step(_) | Event::Consoles { .. } => {}
            }
        }
    }
}

/// Lets Ctrl-C halt a machine in the foreground; the second time at once.
fn halt_on_signals(dirs: &Dirs, name: &crate::name::MachineName) -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("cannot block signals")?;
    let registry = crate::registry::Registry::new(dirs.clone());
    let name = name.clone();
    std::thread::spawn(move || {
        let mut asked = false;
        while signals.wait().is_ok() {
            let result = if asked {
                crate::halt::crash(&registry, &name).map(drop)
            } else {
                eprintln!("{name}: halting; interrupt again to end it at once");
                crate::halt::ask(&registry, &name)
            };
            asked = true;
            if let Err(error) = result {
                eprintln!("{name}: {error:#}");
            }
        }
    });
    Ok(())
}

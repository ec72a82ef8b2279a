//! Process 1 of a machine whose root file system is the host's, over hostfs.
//!
//! Makes the host's tree writable without touching the host: a tmpfs holds the upper layer of an overlay. Then it
//! does what Netkit's start-up scripts do with the kernel command line, runs the start-up commands one after the
//! other, keeps a login shell on every console and ends the machine cleanly.
//!
//! The same file is, under other names, the machine's `poweroff`, `halt` and `reboot`, and whatever its name the script of
//! its DHCP client.
//!
//! ```text
//! hostfs / (read-only) --lower--+
//!                               +-- overlay --> / of the machine
//! tmpfs ----------------upper---+
//! ```

#![forbid(unsafe_code)]

mod agent;
mod dhcp;
mod lab_test;
mod mounts;
mod network;
mod other_root;
mod power;
mod session;
mod startup;
mod words;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let name = args.first().map(|a| {
        Path::new(a)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    });
    let rest: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let result = match (name.as_deref(), rest.as_slice()) {
        (_, [session::STAGE, tty, command @ ..]) => session::become_it(tty, command),
        (_, [agent::WORD, line]) => agent::run(line, false),
        (_, [agent::WORD, line, agent::TELL]) => agent::run(line, true),
        (Some("poweroff" | "halt" | "shutdown"), _) => power::ask(power::Request::PowerOff),
        (Some("reboot"), _) => power::ask(power::Request::Reboot),
        (_, [dhcp::WORD, interface]) => dhcp::ask(interface),
        (_, [event]) if dhcp::EVENTS.contains(event) => dhcp::event(event),
        _ if std::process::id() == 1 => startup::run(),
        _ => {
            eprintln!("hubbub-init: this is process 1 of a machine made by vstart; it does nothing here");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hubbub-init: {error:#}");
            if std::process::id() == 1 {
                power::off();
            }
            ExitCode::FAILURE
        }
    }
}

//! The extcap personality: domains as interfaces of Wireshark and tshark.
//!
//! Wireshark runs the program with questions about interfaces, link types and options, and with `--capture` to have a
//! pipe filled (`doc/extcap.4`). Each domain is an interface `hubbub:DOMAIN`, all of them together are `hubbub`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use proto::ctl::{CaptureSpec, Drops};

use crate::client;

/// Before the name of a domain.
const PREFIX: &str = "hubbub";

/// List Hubbub's domains as interfaces of Wireshark, and capture them
///
/// Wireshark runs this program by itself once it lies in its directory of extcap programs.
#[derive(Debug, Parser)]
#[command(name = "hubbub-extcap", version, max_term_width = 100)]
struct Arguments {
    /// List the interfaces
    #[arg(long)]
    extcap_interfaces: bool,
    /// List the link types of the interface
    #[arg(long)]
    extcap_dlts: bool,
    /// List the options of the interface
    #[arg(long)]
    extcap_config: bool,
    /// The interface: hubbub:DOMAIN, or hubbub for all
    #[arg(long, value_name = "NAME")]
    extcap_interface: Option<String>,
    /// The version of Wireshark
    #[arg(long, value_name = "VERSION")]
    extcap_version: Option<String>,
    /// Check this filter, or capture what it accepts
    #[arg(long, value_name = "EXPR")]
    extcap_capture_filter: Option<String>,
    /// Capture
    #[arg(long)]
    capture: bool,
    /// The pipe to write to
    #[arg(long, value_name = "PATH", required_if_eq("capture", "true"))]
    fifo: Option<PathBuf>,
    /// Keep so many bytes of each frame
    #[arg(long, value_name = "BYTES")]
    snap: Option<u32>,
    /// Capture dropped frames: no, also or only
    #[arg(long, value_name = "WHICH", default_value = "no", value_parser = ["no", "also", "only"])]
    drops: String,
    /// Directory of the sockets [default: ~/.netkit/hubs]
    #[arg(long, value_name = "DIR", env = "NETKIT_HUBS")]
    dir: Option<PathBuf>,
}

/// Answers Wireshark.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match answer(Arguments::parse_from(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hubbub-extcap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: Arguments) -> anyhow::Result<()> {
    let directory = crate::config::directory(arguments.dir.clone())?;
    if arguments.extcap_interfaces {
        return client::print(&interfaces(&directory));
    }
    let interface = arguments.extcap_interface.as_deref();
    let interface =
        interface.context("no interface is named\nhint: give --extcap-interface hubbub:DOMAIN")?;
    if arguments.extcap_dlts {
        return client::print("dlt {number=1}{name=EN10MB}{display=Ethernet}\n");
    }
    if arguments.extcap_config {
        return client::print(OPTIONS);
    }
    let filter = arguments.extcap_capture_filter.unwrap_or_default();
    if !arguments.capture {
        // Without anything else, Wireshark wants to know whether the filter is one: silence means yes.
        return match netio::pcap::compile(&filter) {
            Ok(_) => Ok(()),
            Err(error) => client::print(&format!("{error}\n")),
        };
    }
    let spec = CaptureSpec {
        domains: match interface.strip_prefix(PREFIX) {
            Some("") => Vec::new(),
            Some(name) if name.starts_with(':') => vec![name[1..].parse()?],
            _ => bail!("interface {interface} is none of Hubbub's"),
        },
        snap_len_bytes: arguments.snap.filter(|&bytes| bytes > 0),
        filter: client::compile(&filter)?,
        filter_text: filter,
        drops: match arguments.drops.as_str() {
            "also" => Drops::Also,
            "only" => Drops::Only,
            _ => Drops::No,
        },
        ..CaptureSpec::default()
    };
    let fifo = arguments.fifo.context("there is no pipe to write to")?;
    client::capture_to(&directory, spec, &fifo)
}

/// The options Wireshark offers for an interface.
const OPTIONS: &str = "\
arg {number=0}{call=--snap}{display=Bytes kept of each frame}{type=unsigned}{range=0,262144}{default=0}\
{tooltip=0 keeps all of it}
arg {number=1}{call=--drops}{display=Dropped frames}{type=selector}\
{tooltip=Frames the fabric dropped, with the reason as the packet's comment}
value {arg=1}{value=no}{display=not captured}{default=true}
value {arg=1}{value=also}{display=captured too}
value {arg=1}{value=only}{display=captured alone}
";

/// Without a daemon there are no interfaces: that is no error, whatever else Wireshark is used for.
fn interfaces(directory: &Path) -> String {
    let mut text = format!(
        "extcap {{version={}}}{{display=Hubbub collision domains}}\n",
        env!("CARGO_PKG_VERSION")
    );
    let domains = client::domains(directory).unwrap_or_default();
    for domain in &domains {
        text += &format!("interface {{value={PREFIX}:{domain}}}{{display=Hubbub domain {domain}}}\n");
    }
    if !domains.is_empty() {
        text += &format!("interface {{value={PREFIX}}}{{display=All Hubbub domains}}\n");
    }
    text
}

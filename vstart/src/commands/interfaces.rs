//! Interfaces on a command line: `--ethN=DOMAIN`, and what says more about them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fabric::mac::MacAddr;

use crate::config::Config;
use crate::dirs::Dirs;
use crate::kernel_args::name_in_guest;
use crate::launch::note;
use crate::machine::{Attachment, Interface, Machine};
use crate::tap;
use crate::transport::{Choice, Drivers, Wanted};

/// What is said about interfaces beside where they are attached.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Details {
    /// Give an interface an address of its own instead of the one that follows from its name
    #[arg(long, value_name = "ethN=ADDRESS")]
    mac: Vec<String>,
    /// How frames get to the domain: daemon, vde, bess, fd, vhost, or auto for what suits the kernel best [default: VM_TRANSPORT]
    #[arg(long, value_name = "[ethN=]TRANSPORT")]
    transport: Vec<Choice>,
}

/// Turns `--eth0=A` (and `--eth0 A`) into `--ethN=0=A`, which is one option to the parser.
pub(crate) fn with_interfaces(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            out.extend(args);
            break;
        }
        let interface = arg.to_str().and_then(|text| {
            let rest = text.strip_prefix("--eth")?;
            let (number, value) = rest.split_once('=').map_or((rest, None), |(n, v)| (n, Some(v)));
            let is_number = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
            is_number.then(|| (number.to_owned(), value.map(OsString::from)))
        });
        match interface {
            Some((number, value)) => {
                let mut word = OsString::from(format!("--ethN={number}="));
                word.push(value.or_else(|| args.next()).unwrap_or_default());
                out.push(word);
            }
            None => out.push(arg),
        }
    }
    out
}

/// Checks interfaces together, and decides what is still open about them.
pub(super) fn settle(
    mut interfaces: Vec<Interface>,
    details: &Details,
    kernel: &Path,
    config: &Config,
) -> Result<Vec<Interface>> {
    addresses(&mut interfaces, &details.mac)?;
    interfaces.sort_by_key(|interface| interface.number);
    let mut seen = BTreeSet::new();
    for interface in &interfaces {
        if interface.number >= config.max_interfaces {
            bail!(
                "cannot add {}: the highest is eth{}",
                interface.name(),
                config.max_interfaces.saturating_sub(1)
            );
        }
        if !seen.insert(interface.number) {
            bail!("cannot add {} twice", interface.name());
        }
    }
    transports(&mut interfaces, &details.transport, kernel, config.transport)?;
    Ok(interfaces)
}

fn addresses(interfaces: &mut [Interface], texts: &[String]) -> Result<()> {
    for text in texts {
        let (name, address) = text
            .split_once('=')
            .with_context(|| format!("cannot read '{text}': it is not ethN=ADDRESS"))?;
        let address: MacAddr = address
            .parse()
            .with_context(|| format!("cannot give {name} address '{address}'"))?;
        if address.is_multicast() {
            bail!("cannot give {name} address {address}: it is that of a group");
        }
        let interface = interfaces.iter_mut().find(|interface| interface.name() == name);
        interface
            .with_context(|| format!("cannot give {name} an address: there is no --{name}=DOMAIN"))?
            .address = Some(address.0);
    }
    Ok(())
}

/// The last choice for an interface counts, then the last for all of them.
fn transports(interfaces: &mut [Interface], choices: &[Choice], kernel: &Path, usual: Wanted) -> Result<()> {
    for choice in choices {
        let known = |number| interfaces.iter().any(|interface| interface.number == number);
        if let Some(number) = choice.interface.filter(|number| !known(*number)) {
            bail!("cannot choose a transport for eth{number}: there is no --eth{number}=DOMAIN");
        }
    }
    if interfaces.is_empty() {
        return Ok(());
    }
    let drivers = Drivers::of(kernel);
    let last = |number| choices.iter().rev().find(|choice| choice.interface == number);
    for interface in interfaces {
        let choice = last(Some(interface.number)).or_else(|| last(None));
        let wanted = choice.map_or(usual, |choice| choice.wanted);
        interface.transport = wanted.choose(&drivers).with_context(|| {
            format!(
                "cannot attach {}: kernel {} has no driver for transport {wanted}\nhint: it has {drivers}",
                interface.name(),
                kernel.display()
            )
        })?;
    }
    Ok(())
}

/// Makes the way to the host, if that is where an interface leads; its device. A tap that is there keeps its own
/// address, and that is then the way out.
pub(super) fn make_tap(interface: &mut Interface, dirs: &Dirs) -> Result<Option<String>> {
    let name = interface.name();
    let Attachment::Tap { host, guest } = &mut interface.attachment else {
        return Ok(None);
    };
    let tap = tap::make(*host, dirs).with_context(|| format!("cannot connect {name} to the host"))?;
    if let Some(address) = tap.host() {
        *host = address;
    }
    if !same_network(*host, *guest) {
        note(&format!(
            "{name}: {guest} and the host's address {host} are in different networks (/24): the host cannot be reached"
        ));
    }
    Ok(Some(tap.device))
}

/// Whether guests, which have 24 bits for the network, take the addresses for neighbours. Of other addresses than IPv4
/// nothing is known.
fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        _ => true,
    }
}

/// What the user should know about interfaces that are not called what was asked for.
pub(super) fn other_names(machine: &Machine) -> Option<String> {
    let names: Vec<String> = machine
        .interfaces
        .iter()
        .map(|interface| (interface.name(), name_in_guest(machine, interface)))
        .filter(|(asked, given)| asked != given)
        .map(|(asked, given)| format!("{asked} is called {given}"))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Options {
        #[arg(long = "ethN")]
        interfaces: Vec<Interface>,
        #[command(flatten)]
        details: Details,
    }

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        let args = std::iter::once("vstart").chain(args.iter().copied());
        Options::try_parse_from(with_interfaces(args.map(OsString::from)))
    }

    fn check(args: &[&str]) -> Result<Vec<Interface>, String> {
        let home = |name: &str| (name == "HOME").then(|| "/home/foo".to_owned());
        let config = Config::new(&[], home).unwrap();
        let options = parse(args).unwrap();
        // A kernel that does not tell what it has.
        let kernel = Path::new("/bin/false");
        settle(options.interfaces, &options.details, kernel, &config).map_err(|error| error.to_string())
    }

    #[test]
    fn interfaces_are_options_of_their_own() {
        let options = parse(&["--eth1=B", "--eth0", "A"]).unwrap();
        assert_eq!(
            options.interfaces,
            ["1=B".parse().unwrap(), "0=A".parse().unwrap()]
        );
        for args in [&["--eth0"][..], &["--ethN=A"], &["--eth=A"], &["--ethx=A"]] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn interfaces_are_checked_together() {
        let sorted = check(&["--eth2=C", "--eth0=A"]).unwrap();
        assert_eq!(sorted.iter().map(|i| i.number).collect::<Vec<_>>(), [0, 2]);
        let error = |args| check(args).unwrap_err();
        assert_eq!(error(&["--eth0=A", "--eth0=B"]), "cannot add eth0 twice");
        assert_eq!(error(&["--eth40=A"]), "cannot add eth40: the highest is eth39");
        assert!(error(&["--eth0=A", "--mac=eth1=02:00:00:00:00:01"]).contains("there is no --eth1=DOMAIN"));
        assert!(error(&["--eth0=A", "--transport=eth1=bess"]).contains("there is no --eth1=DOMAIN"));
    }

    #[test]
    fn each_interface_has_its_transport() {
        use crate::transport::Transport::{Bess, Daemon, Vde};
        let chosen = |more: &[&str]| {
            let args = [&["--eth0=A", "--eth1=A"][..], more].concat();
            let interfaces = check(&args).unwrap();
            [interfaces[0].transport, interfaces[1].transport]
        };
        assert_eq!(chosen(&[]), [Daemon, Daemon]);
        assert_eq!(chosen(&["--transport=bess"]), [Bess, Bess]);
        assert_eq!(chosen(&["--transport=eth1=vde", "--transport=bess"]), [Bess, Vde]);
        assert_eq!(chosen(&["--transport=vde", "--transport", "bess"]), [Bess, Bess]);
        assert_eq!(
            chosen(&["--transport=eth0=auto", "--transport=vde"]),
            [Daemon, Vde]
        );
    }
}

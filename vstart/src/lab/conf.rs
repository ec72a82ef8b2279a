//! `lab.conf`: which machine is attached to what, and started how. Pure.
//!
//! ```text
//! LAB_DESCRIPTION="Two hosts and a router"    # what linfo shows
//! LAB_MACHINES="a b r"                        # instead of every sub-directory
//! r[0]=left                                   # interface eth0 of r
//! r[1]="right/02:00:00:00:00:01"              # with an address of its own
//! r[2]=tap,10.0.0.1,10.0.0.2                  # to the host
//! r[mem]=64                                   # vstart --mem=64
//! ```
//!
//! Netkit takes a line only if it has exactly this form, without blanks around `=`, and passes over every other one.
//! So does this reader, but not in silence.

use std::collections::BTreeMap;

use fabric::mac::MacAddr;

use super::{Level, Problem};
use crate::machine::Interface;
use crate::name::MachineName;

/// The name of the file.
pub const FILE: &str = "lab.conf";

/// What a `lab.conf` says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Conf {
    /// The `LAB_*` variables other than `LAB_MACHINES`.
    pub metadata: BTreeMap<String, String>,
    /// The machines of `LAB_MACHINES`, if it is there.
    pub machines: Option<Vec<MachineName>>,
    /// What is set for machines, in order.
    pub entries: Vec<Entry>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// One line about a machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Its number.
    pub line: usize,
    /// The machine.
    pub machine: MachineName,
    /// What is set.
    pub setting: Setting,
}

/// What a line sets.
#[derive(Clone, PartialEq, Debug)]
pub enum Setting {
    /// `m[0]=DOMAIN`.
    Interface(Interface),
    /// `m[option]=value`.
    Option(String, String),
}

impl Conf {
    /// Reads the text. What cannot be understood is among the problems.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line_number = number + 1;
            if let Err((level, reason)) = conf.line(line_number, line) {
                conf.problems.push(Problem::new(FILE, line_number, level, reason));
            }
        }
        conf
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), (Level, String)> {
        let line = line.trim_end();
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            return Ok(());
        }
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| ignored("it is neither MACHINE[...]=VALUE nor LAB_...=VALUE"))?;
        if key.contains(char::is_whitespace) {
            return Err(ignored("there are blanks before '='"));
        }
        if value.starts_with(char::is_whitespace) {
            return Err(ignored("there are blanks behind '='"));
        }
        let Some((machine, key)) = key.strip_suffix(']').and_then(|key| key.split_once('[')) else {
            return self.variable(key, value);
        };
        let machine: MachineName = machine.parse().map_err(fatal)?;
        let is_interface = !key.is_empty() && key.bytes().all(|c| c.is_ascii_digit());
        let setting = if is_interface {
            let value = unquoted(value, true).map_err(fatal)?;
            Setting::Interface(interface(key, &value)?)
        } else if key.starts_with(|c: char| c.is_ascii_alphanumeric())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            Setting::Option(key.to_owned(), unquoted(value, false).map_err(fatal)?)
        } else {
            return Err(ignored(
                "what stands in brackets is neither a number nor an option of vstart",
            ));
        };
        if let Setting::Interface(new) = &setting {
            let twice = self.entries.iter().find(|entry| {
                entry.machine == machine
                    && matches!(&entry.setting, Setting::Interface(old) if old.number == new.number)
            });
            if let Some(first) = twice {
                return Err(fatal(format!(
                    "{machine}[{}] is set in line {} already",
                    new.number, first.line
                )));
            }
        }
        self.entries.push(Entry {
            line: number,
            machine,
            setting,
        });
        Ok(())
    }

    fn variable(&mut self, name: &str, value: &str) -> Result<(), (Level, String)> {
        if !name.starts_with("LAB_") {
            return Err(ignored(&format!(
                "'{name}' is neither MACHINE[...] nor a LAB_ variable"
            )));
        }
        let value = unquoted(value, false).map_err(fatal)?;
        if name == "LAB_MACHINES" {
            let names: Result<Vec<MachineName>, _> = value.split_whitespace().map(str::parse).collect();
            self.machines = Some(names.map_err(fatal)?);
        } else {
            self.metadata.insert(name.to_owned(), value);
        }
        Ok(())
    }
}

/// A line that Netkit passes over.
fn ignored(reason: &str) -> (Level, String) {
    (
        Level::Warning,
        format!("{reason}: Netkit ignores such a line, and so do we"),
    )
}

fn fatal(reason: impl ToString) -> (Level, String) {
    (Level::Error, reason.to_string())
}

/// Reads `DOMAIN`, `DOMAIN/ADDRESS` as Kathara writes it, or `tap,TAP,GUEST`.
fn interface(number: &str, value: &str) -> Result<Interface, (Level, String)> {
    let (attachment, address) = match value.split_once('/') {
        Some((domain, address)) => (domain, Some(address)),
        None => (value, None),
    };
    let mut interface: Interface = format!("{number}={attachment}").parse().map_err(fatal)?;
    if let Some(address) = address {
        let address: MacAddr = address
            .parse()
            .map_err(|error| fatal(format!("'{address}' is not an address: {error}")))?;
        if address.is_multicast() {
            return Err(fatal(format!("{address} is the address of a group")));
        }
        interface.address = Some(address.0);
    }
    Ok(interface)
}

/// The value without the quotes around it, and without the comment behind it: behind quotes, or (as no domain
/// contains a blank) anywhere if the value is a `single` word.
fn unquoted(value: &str, single: bool) -> Result<String, String> {
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        let comment = value
            .find('#')
            .filter(|at| single && value[..*at].ends_with(char::is_whitespace));
        return Ok(value[..comment.unwrap_or(value.len())].trim_end().to_owned());
    };
    let (inside, rest) = value[1..]
        .split_once(quote)
        .ok_or_else(|| format!("there is no {quote} at the end of {value}"))?;
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err(format!("there is something behind the closing {quote}: {rest}"));
    }
    Ok(inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Attachment;
    use crate::transport::Transport;
    use proptest::prelude::*;

    fn problem(line: &str) -> (Level, String) {
        let conf = Conf::parse(&format!("# first\n{line}\n"));
        assert_eq!(
            (conf.problems.len(), conf.entries.len()),
            (1, 0),
            "{line}: {:?}",
            conf.problems
        );
        assert_eq!(conf.problems[0].line, Some(2));
        (conf.problems[0].level, conf.problems[0].text.clone())
    }

    #[test]
    fn a_lab_is_read() {
        let conf = Conf::parse(
            "# a lab\r\n\nLAB_AUTHOR=\"A. Hacker\"\nLAB_MACHINES='a r'\nLAB_VERSION=1.0 \n\
             a[0]=left\nr[0]=\"left/02:00:00:00:00:01\"  # Kathara\nr[1]=right   # comment\n\
             r[10]=tap,10.0.0.1,10.0.0.2\na[mem]=64\nr[exec]=\"echo a # b\"\na[append]=x=1 # y\n",
        );
        assert_eq!(conf.problems, []);
        assert_eq!(conf.metadata["LAB_AUTHOR"], "A. Hacker");
        assert_eq!(conf.metadata["LAB_VERSION"], "1.0");
        assert_eq!(
            conf.machines,
            Some(vec!["a".parse().unwrap(), "r".parse().unwrap()])
        );
        let settings: Vec<_> = conf
            .entries
            .iter()
            .map(|entry| (entry.line, entry.machine.as_str(), &entry.setting))
            .collect();
        let domain = |number, name: &str, address| {
            Setting::Interface(Interface {
                number,
                attachment: Attachment::Domain(name.parse().unwrap()),
                address,
                transport: Transport::default(),
            })
        };
        let option = |name: &str, value: &str| Setting::Option(name.into(), value.into());
        assert_eq!(settings[0], (6, "a", &domain(0, "left", None)));
        assert_eq!(
            settings[1],
            (7, "r", &domain(0, "left", Some([2, 0, 0, 0, 0, 1])))
        );
        assert_eq!(settings[2], (8, "r", &domain(1, "right", None)));
        assert!(matches!(settings[3].2, Setting::Interface(i) if i.number == 10));
        assert_eq!(settings[4], (10, "a", &option("mem", "64")));
        assert_eq!(settings[5], (11, "r", &option("exec", "echo a # b")));
        assert_eq!(settings[6], (12, "a", &option("append", "x=1 # y")));
    }

    #[test]
    fn what_netkit_ignores_is_a_warning() {
        for line in [
            "nonsense",
            "pc1[0] = A",
            "pc1[0]= A",
            " pc1[0]=A",
            "FOO=bar",
            "pc1[]=A",
            "pc1[a b]=A",
            "pc1[-q]=A",
            "=A",
            "pc1=A",
        ] {
            let (level, text) = problem(line);
            assert_eq!(level, Level::Warning, "{line}");
            assert!(
                text.ends_with("Netkit ignores such a line, and so do we"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        for (line, reason) in [
            ("pc1[0]=a_b", "domain"),
            ("pc1[0]=", "domain"),
            ("pc1[0]=A/02:00", "'02:00' is not an address"),
            ("pc1[0]=A/01:00:00:00:00:00", "address of a group"),
            ("pc1[0]=tap", "incomplete"),
            ("pc1[0]=\"A", "there is no \" at the end"),
            ("pc1[mem]=\"64\" MB", "behind the closing"),
            ("pc1[99999999999]=A", "which interface"),
            ("-x[0]=A", "machine name"),
            ("LAB_MACHINES=\"a /b\"", "machine name"),
        ] {
            let (level, text) = problem(line);
            assert_eq!(level, Level::Error, "{line}");
            assert!(text.contains(reason), "{line}: {text}");
        }
        let conf = Conf::parse("a[0]=A\nb[0]=A\na[0]=B\n");
        assert_eq!(conf.problems[0].text, "a[0] is set in line 1 already");
    }

    proptest! {
        #[test]
        fn every_line_counts(lines in prop::collection::vec("[ab\\[\\]0-9=\"'# LAB_/,:]{0,16}", 0..12)) {
            let conf = Conf::parse(&lines.join("\n"));
            for (number, line) in lines.iter().enumerate() {
                let number = number + 1;
                let entries = conf.entries.iter().filter(|entry| entry.line == number).count();
                let problems = conf.problems.iter().filter(|p| p.line == Some(number)).count();
                let blank = line.trim().is_empty() || line.trim_start().starts_with('#');
                let variable = line.starts_with("LAB_");
                prop_assert!(entries + problems <= 1);
                prop_assert!(variable || (entries + problems == 0) == blank, "{line:?}");
            }
        }

        #[test]
        fn what_is_written_is_read(name in "[a-z][a-z0-9.-]{0,8}", number in 0u32..100, domain in "[a-zA-Z0-9-]{1,8}",
                                   quote in "[\"']?", value in "[a-z0-9 =,/#]{0,12}") {
            prop_assume!(domain.parse::<proto::DomainName>().is_ok() && domain != "tap");
            let conf = Conf::parse(&format!("{name}[{number}]={quote}{domain}{quote}\n{name}[exec]=\"{value}\""));
            prop_assert_eq!(&conf.problems, &[]);
            prop_assert_eq!(conf.entries[0].machine.as_str(), name.as_str());
            prop_assert_eq!(&conf.entries[0].setting, &Setting::Interface(format!("{number}={domain}").parse().unwrap()));
            prop_assert_eq!(&conf.entries[1].setting, &Setting::Option("exec".into(), value));
        }
    }
}

//! `lab.ext`: which domain is joined to which interface of the host, as Kathara has it. Pure.
//!
//! ```text
//! A eth1          # domain A and what is behind eth1 are one network
//! B eth1.100      # one VLAN of it
//! ```

use std::collections::BTreeSet;
use std::fmt;

use netio::tap::IfName;
use proto::DomainName;

use super::{Level, Problem};

/// The name of the file.
pub const FILE: &str = "lab.ext";

/// One line.
#[derive(Clone, PartialEq, Debug)]
pub struct External {
    /// Its number.
    pub line: usize,
    /// The domain.
    pub domain: DomainName,
    /// The interface of the host.
    pub interface: IfName,
    /// The one VLAN of it that is meant.
    pub vlan: Option<u16>,
}

/// What a `lab.ext` says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ext {
    /// In order.
    pub externals: Vec<External>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Ext {
    /// Reads the text; the lab has these domains. What cannot be understood is among the problems.
    pub fn parse(text: &str, domains: &BTreeSet<DomainName>) -> Self {
        let mut ext = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Err(reason) = ext.line(number, line, domains) {
                let problem = Problem::new(FILE, number, Level::Error, reason);
                ext.problems.push(problem);
            }
        }
        ext
    }

    fn line(&mut self, number: usize, line: &str, domains: &BTreeSet<DomainName>) -> Result<(), String> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [domain, interface] = words[..] else {
            return Err("it is not DOMAIN INTERFACE[.VLAN]".to_owned());
        };
        let domain: DomainName = domain.parse().map_err(|error| format!("{error}"))?;
        let (interface, vlan) = match interface.rsplit_once('.') {
            Some((interface, vlan)) => {
                let vlan = proto::nic::vlan(vlan).map_err(|error| format!("{error}"))?;
                (interface, Some(vlan))
            }
            None => (interface, None),
        };
        let interface: IfName = interface.parse().map_err(|error| format!("{error}"))?;
        if !domains.contains(&domain) {
            return Err(format!("no machine of the lab is in domain {domain}"));
        }
        let new = External {
            line: number,
            domain,
            interface,
            vlan,
        };
        let twice = self.externals.iter().find(|old| old.port() == new.port());
        if let Some(old) = twice {
            return Err(format!(
                "{new} is joined to domain {} by line {} already",
                old.domain, old.line
            ));
        }
        self.externals.push(new);
        Ok(())
    }
}

impl External {
    /// The name its port has.
    pub fn port(&self) -> String {
        self.to_string()
    }

    /// The arguments of `switchd` that make the port.
    pub fn arguments(&self) -> Vec<String> {
        let words = [
            "port",
            "add",
            self.domain.as_str(),
            "--nic",
            self.interface.as_str(),
            "--promisc",
        ];
        let mut words: Vec<_> = words.map(str::to_owned).into();
        words.extend(
            self.vlan
                .into_iter()
                .flat_map(|vlan| ["--vlan".to_owned(), vlan.to_string()]),
        );
        words
    }
}

/// As in the file, and as switchd names the port.
impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.interface.as_str())?;
        match self.vlan {
            Some(vlan) => write!(f, ".{vlan}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Ext {
        let domains = ["A", "B"].map(|name| name.parse().unwrap());
        Ext::parse(text, &domains.into())
    }

    #[test]
    fn lines_are_read() {
        let ext = parse("# where they lead\n\nA eth1\nB\t eth1.100   # a VLAN\n");
        assert_eq!(ext.problems, []);
        let lines: Vec<_> = ext.externals.iter().map(|e| (e.line, e.to_string())).collect();
        assert_eq!(lines, [(3, "eth1".to_owned()), (4, "eth1.100".to_owned())]);
        assert_eq!(
            ext.externals[1].arguments().join(" "),
            "port add B --nic eth1 --promisc --vlan 100"
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (line, why) in [
            ("A", "it is not DOMAIN INTERFACE[.VLAN]"),
            ("A eth1 eth2", "it is not DOMAIN INTERFACE[.VLAN]"),
            ("C eth1", "no machine of the lab is in domain C"),
            ("a/b eth1", "domain name"),
            ("A eth1.0", "'0' is no VLAN: a number from 1 to 4094"),
            ("A eth1.x", "'x' is no VLAN"),
            ("A .5", "an interface name cannot be empty"),
            ("A an-interface-too-long", "longer than 15 bytes"),
            ("B eth0", "eth0 is joined to domain A by line 1 already"),
        ] {
            let ext = parse(&format!("A eth0\n{line}\n"));
            assert_eq!(ext.externals.len(), 1, "{line}");
            let text = ext.problems[0].to_string();
            assert!(text.starts_with("lab.ext:2: ") && text.contains(why), "{text}");
        }
    }
}

//! iptables and ip6tables: chains `HUBBUB-*`, replaced by `iptables-restore --noflush`, and one jump to each.
//!
//! What drops is in the table `mangle`, which is asked before `filter`: no rule of the host, however early and whenever
//! it comes, lets through what ours forbid. What accepts stands last in `filter`'s FORWARD: it never lets through what a
//! rule of the host forbids.
//!
//! iptables over nftables makes tables and base chains when the first rule needs them and keeps them for ever, so what
//! it made for us is remembered and taken away. iptables over the old kernel interface cannot take a table away: there
//! an empty table stays behind if ours was the first rule ever.

use std::fmt::{Display, Write as _};

use serde_json::Value;

use super::{Backend, FirewallError, Fresh, Guard, Rules, nft};
use crate::name::Device;
use crate::tool::{Tool, ToolError};

/// iptables as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// True for iptables over nftables.
    pub(crate) nft_variant: bool,
    /// What `iptables-save` prints.
    pub(crate) save4: String,
    /// What `ip6tables-save` prints.
    pub(crate) save6: String,
}

impl Seen {
    pub(super) fn look() -> Result<Option<Self>, ToolError> {
        let Some(iptables) = Tool::find("iptables") else {
            return Ok(None);
        };
        let nft_variant = iptables.run(&["--version"], "")?.contains("nf_tables");
        Ok(Some(Self {
            nft_variant,
            save4: save("iptables-save")?,
            save6: save("ip6tables-save")?,
        }))
    }

    /// True if somebody (other than us) has made rules or set a policy.
    pub(super) fn in_use(&self) -> bool {
        self.save4.lines().chain(self.save6.lines()).any(|line| {
            let rule = line.starts_with("-A ") && !line.contains(PREFIX);
            let policy = line.starts_with(':') && line.split(' ').nth(1).is_some_and(|word| word == "DROP");
            let chain = line.starts_with(':')
                && line.split(' ').nth(1) == Some("-")
                && !line[1..].starts_with(PREFIX);
            rule || policy || chain
        })
    }

    /// Rules of FORWARD that drop what nobody accepted before ours is asked.
    pub(super) fn obstacles(&self, backend: Backend, device: &Device) -> Vec<String> {
        let filter = table(&self.save4, "filter");
        let forward: Vec<&str> = filter
            .iter()
            .copied()
            .filter(|line| line.starts_with("-A FORWARD "))
            .collect();
        let named = filter
            .iter()
            .any(|line| line.starts_with("-A") && names(line, device));
        let before_ours = forward.iter().take_while(|line| !line.contains(ACCEPT));
        let closing = before_ours.into_iter().find(|line| {
            let rest = line.trim_start_matches("-A FORWARD ");
            rest.starts_with("-j DROP") || rest.starts_with("-j REJECT")
        });
        // Our own accept stands in the same chain and comes before the policy; under nft it would not help.
        let policy =
            backend != Backend::Iptables && filter.iter().any(|line| line.starts_with(":FORWARD DROP"));
        let why = match (closing, policy) {
            _ if named => return Vec::new(),
            (Some(rule), _) => format!("the host's rule '{rule}' drops what {device} forwards"),
            (None, true) => format!("the host's policy for FORWARD is DROP, which also meets {device}"),
            (None, false) => return Vec::new(),
        };
        let chain = if filter.iter().any(|line| line.starts_with(":DOCKER-USER ")) {
            "DOCKER-USER"
        } else {
            "FORWARD"
        };
        vec![format!(
            "{why}; this would let it through: iptables -I {chain} -i {device} -j ACCEPT && \
             iptables -I {chain} -o {device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )]
    }
}

pub(super) fn install(rules: &Rules) -> Result<(), FirewallError> {
    restore("iptables-save", "iptables-restore", |save| {
        script(rules, false, save)
    })?;
    if rules.has_v6() {
        restore("ip6tables-save", "ip6tables-restore", |save| {
            script(rules, true, save)
        })?;
    } else {
        restore("ip6tables-save", "ip6tables-restore", removal)?;
    }
    Ok(())
}

pub(super) fn remove(fresh: &[Fresh]) -> Result<(), FirewallError> {
    restore("iptables-save", "iptables-restore", removal)?;
    restore("ip6tables-save", "ip6tables-restore", removal)?;
    if fresh.is_empty() {
        Ok(())
    } else {
        nft::delete_unused(fresh)
    }
}

/// Tables and base chains that are not there and will be made for these rules.
pub(super) fn fresh(ruleset: &Value, rules: &Rules) -> Vec<Fresh> {
    let families: &[&str] = if rules.has_v6() { &["ip", "ip6"] } else { &["ip"] };
    let mut fresh = Vec::new();
    for family in families {
        for (table, chains) in JUMPS {
            let item = |chain: Option<&str>| Fresh {
                family: (*family).to_owned(),
                table: (*table).to_owned(),
                chain: chain.map(str::to_owned),
            };
            // iptables 1.8 makes the chains it needs, older ones all of them.
            let missing = chains
                .iter()
                .filter(|chain| !nft::has_chain(ruleset, family, table, chain));
            fresh.extend(missing.map(|chain| item(Some(chain))));
            if !nft::has_table(ruleset, family, table) {
                fresh.push(item(None));
            }
        }
    }
    fresh
}

fn save(tool: &'static str) -> Result<String, ToolError> {
    match Tool::find(tool) {
        Some(tool) => tool.run(&[], ""),
        None => Ok(String::new()),
    }
}

fn restore(
    save_tool: &'static str,
    tool: &'static str,
    script: impl Fn(&str) -> String,
) -> Result<(), FirewallError> {
    let script = script(&save(save_tool)?);
    if script.is_empty() {
        return Ok(());
    }
    let tool = Tool::find(tool).ok_or(FirewallError::Missing(tool))?;
    tool.run(&["--noflush", "--wait", "5"], &script)?;
    Ok(())
}

/// The lines of one table in what iptables-save prints.
fn table<'a>(save: &'a str, name: &str) -> Vec<&'a str> {
    let mut lines = save
        .lines()
        .skip_while(|line| line.strip_prefix('*') != Some(name));
    lines.next();
    lines.take_while(|line| *line != "COMMIT").collect()
}

fn names(line: &str, device: &Device) -> bool {
    let mut words = line.split(' ');
    while let Some(word) = words.next() {
        if matches!(word, "-i" | "-o") {
            let pattern = words.next().unwrap_or_default();
            let covered = match pattern.strip_suffix('+') {
                Some(start) => device.as_str().starts_with(start),
                None => pattern == device.as_str(),
            };
            if covered && !line.contains(PREFIX) {
                return true;
            }
        }
    }
    false
}

const PREFIX: &str = "HUBBUB-";
const INPUT: &str = "HUBBUB-INPUT";
const GUARD: &str = "HUBBUB-GUARD";
const ACCEPT: &str = "HUBBUB-FORWARD";
const NAT: &str = "HUBBUB-NAT";
/// The base chains we jump from, by table.
const JUMPS: &[(&str, &[&str])] = &[
    ("mangle", &["INPUT", "FORWARD"]),
    ("filter", &["FORWARD"]),
    ("nat", &["POSTROUTING"]),
];

/// What `iptables-restore --noflush` must read to make our chains hold exactly these rules. `save` is the state now:
/// a jump that is there already stays where it is.
pub(crate) fn script(rules: &Rules, v6: bool, save: &str) -> String {
    let mut text = format!("*mangle\n:{INPUT} - [0:0]\n:{GUARD} - [0:0]\n");
    for guard in &rules.guards {
        forbid(&mut text, guard, v6);
    }
    let now = table(save, "mangle");
    jump(&mut text, &now, "-I INPUT 1", INPUT);
    jump(&mut text, &now, "-I FORWARD 1", GUARD);
    let _ = writeln!(text, "COMMIT\n*filter\n:{ACCEPT} - [0:0]");
    for Guard { device, .. } in &rules.guards {
        rule(&mut text, ACCEPT, &format!("-i {device} -j ACCEPT"));
        rule(
            &mut text,
            ACCEPT,
            &format!("-o {device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        );
    }
    jump(&mut text, &table(save, "filter"), "-A FORWARD", ACCEPT);
    let _ = writeln!(text, "COMMIT\n*nat\n:{NAT} - [0:0]");
    for guard in &rules.guards {
        let net = if v6 {
            guard.nat6.map(|n| n.to_string())
        } else {
            guard.nat4.map(|n| n.to_string())
        };
        if let Some(net) = net {
            rule(
                &mut text,
                NAT,
                &format!("-s {net} ! -o {} -j MASQUERADE", guard.device),
            );
        }
    }
    jump(&mut text, &table(save, "nat"), "-A POSTROUTING", NAT);
    text.push_str("COMMIT\n");
    text
}

fn forbid(text: &mut String, guard: &Guard, v6: bool) {
    let device = &guard.device;
    for other in &guard.apart {
        rule(text, GUARD, &format!("-i {device} -o {other} -j DROP"));
        rule(text, GUARD, &format!("-i {other} -o {device} -j DROP"));
    }
    if !guard.allow_host {
        rule(
            text,
            GUARD,
            &format!("-i {device} -m conntrack --ctstate DNAT --ctdir ORIGINAL -j DROP"),
        );
    }
    if v6 {
        if guard.host6.is_some() {
            for kind in ["neighbour-solicitation", "neighbour-advertisement"] {
                rule(
                    text,
                    INPUT,
                    &format!("-i {device} -p ipv6-icmp --icmpv6-type {kind} -j RETURN"),
                );
            }
        }
        let ping = guard
            .host6
            .map(|host| format!("-d {host} -p ipv6-icmp --icmpv6-type echo-request"));
        from_sources(text, guard, &guard.sources6, ping);
    } else {
        let ping = guard
            .host4
            .map(|host| format!("-d {host} -p icmp --icmp-type echo-request"));
        from_sources(text, guard, &guard.sources4, ping);
    }
    rule(text, INPUT, &format!("-i {device} -j DROP"));
    rule(text, GUARD, &format!("-i {device} -j DROP"));
}

fn from_sources(text: &mut String, guard: &Guard, sources: &[impl Display], ping: Option<String>) {
    let device = &guard.device;
    for net in sources {
        let from = format!("-i {device} -s {net}");
        if guard.allow_host {
            rule(text, INPUT, &format!("{from} -j RETURN"));
        } else {
            rule(
                text,
                INPUT,
                &format!("{from} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"),
            );
            if let Some(ping) = &ping {
                rule(text, INPUT, &format!("{from} {ping} -j RETURN"));
            }
        }
        rule(text, GUARD, &format!("{from} -j RETURN"));
    }
}

fn rule(text: &mut String, chain: &str, rest: &str) {
    let (matches, target) = rest.rsplit_once(" -j ").expect("every rule above has a target");
    let _ = writeln!(
        text,
        "-A {chain} {matches} -m comment --comment hubbub -j {target}"
    );
}

fn jump(text: &mut String, now: &[&str], how: &str, chain: &str) {
    let there = now
        .iter()
        .any(|line| line.starts_with("-A ") && line.ends_with(&format!("-j {chain}")));
    if !there {
        let _ = writeln!(text, "{how} -m comment --comment hubbub -j {chain}");
    }
}

/// What `iptables-restore --noflush` must read to take our chains away; empty if there are none.
pub(crate) fn removal(save: &str) -> String {
    let mut text = String::new();
    for (name, _) in JUMPS {
        let lines = table(save, name);
        let chains: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| chain.starts_with(PREFIX))
            .collect();
        if chains.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{name}");
        for line in &lines {
            let ours = line.contains("--comment hubbub -j HUBBUB-") && !line[3..].starts_with(PREFIX);
            if let (true, Some(rest)) = (ours, line.strip_prefix("-A ")) {
                let _ = writeln!(text, "-D {rest}");
            }
        }
        for what in ["-F", "-X"] {
            for chain in &chains {
                let _ = writeln!(text, "{what} {chain}");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

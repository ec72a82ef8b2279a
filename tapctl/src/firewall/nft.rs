//! nftables: the table `inet hubbub`, replaced in one transaction.

use std::fmt::Write as _;

use serde_json::Value;

use super::{FirewallError, Guard, Rules};
use crate::name::Device;
use crate::tool::{Tool, ToolError};

/// All rules there are.
pub(crate) fn look(tool: &Tool) -> Result<Value, ToolError> {
    let text = tool.run(&["-j", "list", "ruleset"], "")?;
    // Text nft prints and we cannot read is as good as none: nothing is concluded from it.
    Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
}

pub(super) fn install(rules: &Rules) -> Result<(), FirewallError> {
    let tool = Tool::find("nft").ok_or(FirewallError::Missing("nft"))?;
    tool.run(&["-f", "-"], &script(rules))?;
    Ok(())
}

pub(super) fn remove() -> Result<(), FirewallError> {
    let tool = Tool::find("nft").ok_or(FirewallError::Missing("nft"))?;
    tool.run(&["-f", "-"], RESET)?;
    Ok(())
}

/// Deletes base chains and tables that nobody uses; the kernel refuses to delete a chain that has rules.
pub(super) fn delete_unused(fresh: &[super::Fresh]) -> Result<(), FirewallError> {
    let Some(tool) = Tool::find("nft") else {
        return Ok(());
    };
    // Two taps may have found the same chain missing.
    let mut items: Vec<&super::Fresh> = Vec::new();
    for item in fresh {
        if !items.contains(&item) {
            items.push(item);
        }
    }
    let ruleset = look(&tool)?;
    let mut script = String::new();
    for item in &items {
        let Some(chain) = &item.chain else { continue };
        if chain_is_unused(&ruleset, &item.family, &item.table, chain) {
            let _ = writeln!(script, "delete chain {} {} {chain}", item.family, item.table);
        }
    }
    if !script.is_empty() {
        tool.run(&["-f", "-"], &script)?;
    }
    let ruleset = look(&tool)?;
    let mut script = String::new();
    for item in items.iter().filter(|item| item.chain.is_none()) {
        if has_table(&ruleset, &item.family, &item.table)
            && chains(&ruleset, &item.family, &item.table).next().is_none()
        {
            let _ = writeln!(script, "delete table {} {}", item.family, item.table);
        }
    }
    if !script.is_empty() {
        tool.run(&["-f", "-"], &script)?;
    }
    Ok(())
}

pub(super) fn has_table(ruleset: &Value, family: &str, table: &str) -> bool {
    objects(ruleset, "table").any(|object| object["family"] == family && object["name"] == table)
}

pub(super) fn has_chain(ruleset: &Value, family: &str, table: &str, chain: &str) -> bool {
    chains(ruleset, family, table).any(|object| object["name"] == chain)
}

fn chain_is_unused(ruleset: &Value, family: &str, table: &str, chain: &str) -> bool {
    let accepts = |object: &Value| object["name"] == chain && object["policy"] == "accept";
    chains(ruleset, family, table).any(accepts) && rules_of(ruleset, family, table, chain).next().is_none()
}

fn chains<'a>(ruleset: &'a Value, family: &'a str, table: &'a str) -> impl Iterator<Item = &'a Value> {
    objects(ruleset, "chain").filter(move |object| object["family"] == family && object["table"] == table)
}

fn rules_of<'a>(
    ruleset: &'a Value,
    family: &'a str,
    table: &'a str,
    chain: &'a str,
) -> impl Iterator<Item = &'a Value> {
    objects(ruleset, "rule").filter(move |object| {
        object["family"] == family && object["table"] == table && object["chain"] == chain
    })
}

fn objects<'a>(ruleset: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    ruleset["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

/// Chains of others, seen by all forwarded packets, that drop what nobody accepted. An `accept` of ours does not help
/// there: each base chain decides for itself.
pub(super) fn obstacles(ruleset: &Value, device: &Device, skip_iptables: bool) -> Vec<String> {
    let mut found = Vec::new();
    for chain in objects(ruleset, "chain") {
        let text = |key: &str| chain[key].as_str().unwrap_or_default();
        let (family, table, name) = (text("family"), text("table"), text("name"));
        let forwards = text("type") == "filter" && text("hook") == "forward";
        if !forwards || !matches!(family, "ip" | "ip6" | "inet") || (family, table) == ("inet", TABLE) {
            continue;
        }
        if skip_iptables && family != "inet" && table == "filter" {
            continue;
        }
        let rules: Vec<&Value> = rules_of(ruleset, family, table, name).collect();
        let closed = text("policy") == "drop" || rules.iter().any(|rule| drops_everything(rule));
        if closed && !rules.iter().any(|rule| names(rule, device)) {
            found.push(format!(
                "the host's nft chain '{family} {table} {name}' drops what {device} forwards; \
                 this would let it through: \
                 nft insert rule {family} {table} {name} iifname \"{device}\" accept && \
                 nft insert rule {family} {table} {name} oifname \"{device}\" ct state established,related accept"
            ));
        }
    }
    found
}

fn drops_everything(rule: &Value) -> bool {
    let Some(expressions) = rule["expr"].as_array() else {
        return false;
    };
    let has = |kind: &str| {
        expressions
            .iter()
            .any(|expression| expression.get(kind).is_some())
    };
    (has("drop") || has("reject")) && !has("match") && !has("xt")
}

/// True if the rule speaks of the device by name or by a pattern that covers it.
fn names(rule: &Value, device: &Device) -> bool {
    let covers = |text: &str| match text.strip_suffix('*') {
        Some(start) => device.as_str().starts_with(start),
        None => text == device.as_str(),
    };
    match rule {
        Value::String(text) => covers(text),
        Value::Array(items) => items.iter().any(|item| names(item, device)),
        Value::Object(fields) => fields.values().any(|item| names(item, device)),
        _ => false,
    }
}

const TABLE: &str = "hubbub";
/// Deleting a table that is not there is an error, adding one that is there is none.
const RESET: &str = "table inet hubbub\ndelete table inet hubbub\n";

/// The whole table as text for `nft -f`.
pub(crate) fn script(rules: &Rules) -> String {
    let mut text = String::from(RESET);
    text.push_str("table inet hubbub {\n\tchain input {\n");
    text.push_str("\t\ttype filter hook input priority -10; policy accept;\n");
    for guard in &rules.guards {
        input(&mut text, guard);
    }
    text.push_str("\t}\n\tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n");
    for guard in &rules.guards {
        forward(&mut text, guard);
    }
    text.push_str("\t}\n\tchain postrouting {\n\t\ttype nat hook postrouting priority 100; policy accept;\n");
    for guard in &rules.guards {
        for (word, net) in [
            ("ip", guard.nat4.map(|net| net.to_string())),
            ("ip6", guard.nat6.map(|net| net.to_string())),
        ] {
            if let Some(net) = net {
                rule(
                    &mut text,
                    &format!("oifname != \"{}\" {word} saddr {net} masquerade", guard.device),
                );
            }
        }
    }
    text.push_str("\t}\n}\n");
    text
}

fn input(text: &mut String, guard: &Guard) {
    let from = format!("iifname \"{}\"", guard.device);
    // Neighbour discovery speaks from link-local addresses, and before it has any.
    sources(text, guard, &["fe80::/10", "::"]);
    if guard.allow_host {
        return;
    }
    rule(text, &format!("{from} ct state established,related accept"));
    if let Some(host) = guard.host4 {
        rule(
            text,
            &format!("{from} ip daddr {host} icmp type echo-request accept"),
        );
    }
    if let Some(host) = guard.host6 {
        rule(
            text,
            &format!("{from} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept"),
        );
        rule(
            text,
            &format!("{from} ip6 daddr {host} icmpv6 type echo-request accept"),
        );
    }
    rule(text, &format!("{from} drop"));
}

fn forward(text: &mut String, guard: &Guard) {
    let device = &guard.device;
    if !guard.apart.is_empty() {
        let others: Vec<String> = guard.apart.iter().map(|other| format!("\"{other}\"")).collect();
        let others = others.join(", ");
        rule(text, &format!("iifname \"{device}\" oifname {{ {others} }} drop"));
        rule(text, &format!("oifname \"{device}\" iifname {{ {others} }} drop"));
    }
    sources(text, guard, &[]);
    if !guard.allow_host {
        rule(
            text,
            &format!("iifname \"{device}\" ct direction original ct status dnat drop"),
        );
    }
    rule(text, &format!("iifname \"{device}\" accept"));
    rule(
        text,
        &format!("oifname \"{device}\" ct state established,related accept"),
    );
}

/// Drops what does not come from behind the tap.
fn sources(text: &mut String, guard: &Guard, more6: &[&str]) {
    let from = format!("iifname \"{}\"", guard.device);
    let four: Vec<String> = guard.sources4.iter().map(ToString::to_string).collect();
    let mut six: Vec<String> = guard.sources6.iter().map(ToString::to_string).collect();
    if six.is_empty() {
        rule(text, &format!("{from} meta nfproto ipv6 drop"));
    } else {
        six.extend(more6.iter().map(|&net| net.to_owned()));
        rule(
            text,
            &format!("{from} ip6 saddr != {{ {} }} drop", six.join(", ")),
        );
    }
    if four.is_empty() {
        rule(text, &format!("{from} meta nfproto ipv4 drop"));
    } else {
        rule(
            text,
            &format!("{from} ip saddr != {{ {} }} drop", four.join(", ")),
        );
    }
}

fn rule(text: &mut String, line: &str) {
    let _ = writeln!(text, "\t\t{line} comment \"hubbub\"");
}

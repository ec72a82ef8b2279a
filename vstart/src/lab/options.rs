//! From a machine of a lab to the arguments of vstart. Pure.
//!
//! `m[option]=value` is `--option=value`, whatever options vstart has: its own definition decides.

use std::path::Path;

use clap::Command;

use super::{Lab, LabMachine, Level, Problem, conf};
use crate::machine::Attachment;

/// Options that lstart itself decides.
const OURS: [&str; 8] = [
    "ethN",
    "foreground",
    "help",
    "hostlab",
    "hostwd",
    "print",
    "quiet",
    "version",
];
/// Options of Kathara that are about containers.
const KATHARA: [&str; 14] = [
    "args",
    "bridged",
    "cpus",
    "entrypoint",
    "env",
    "image",
    "ipv6",
    "num_terms",
    "port",
    "privileged",
    "shell",
    "sysctl",
    "ulimit",
    "volume",
];

/// The arguments of vstart for a machine, its name first; and what is wrong with them.
pub fn arguments(machine: &LabMachine, vstart: &Command, max_interfaces: u32) -> (Vec<String>, Vec<Problem>) {
    let mut arguments = vec![machine.name.to_string()];
    let mut problems = Vec::new();
    for interface in &machine.interfaces {
        let name = interface.name();
        if interface.number >= max_interfaces {
            problems.push(Problem {
                file: conf::FILE,
                line: None,
                level: Level::Error,
                text: format!(
                    "machine {} cannot have {name}: the highest is eth{}",
                    machine.name,
                    max_interfaces.saturating_sub(1)
                ),
            });
        }
        let attachment = match &interface.attachment {
            Attachment::Domain(domain) => domain.to_string(),
            Attachment::Tap { host, guest } => format!("tap,{host},{guest}"),
            Attachment::Nat => Attachment::Nat.to_string(),
        };
        arguments.push(format!("--{name}={attachment}"));
        if let Some(address) = interface.address {
            arguments.push(format!("--mac={name}={}", fabric::mac::MacAddr(address)));
        }
    }
    let mut words = Vec::new();
    for (line, option, value) in &machine.options {
        let result = word(vstart, option, value).and_then(|word| match word {
            Some(word) => check(vstart, &[&word]).map(|()| Some(word)),
            None => Ok(None),
        });
        match result {
            Ok(word) => words.extend(word),
            Err(error) => problems.push(Problem::new(conf::FILE, *line, error.0, error.1)),
        }
    }
    // Each is fine by itself: now together.
    if problems.iter().all(|problem| problem.level == Level::Warning) {
        let all: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Err((level, text)) = check(vstart, &all) {
            let text = format!("machine {}: {text}", machine.name);
            problems.push(Problem {
                file: conf::FILE,
                line: None,
                level,
                text,
            });
        }
    }
    arguments.extend(words);
    (arguments, problems)
}

/// The arguments that tell vstart about the lab.
pub fn lab_arguments(lab: &Lab, working_dir: &Path) -> Vec<String> {
    vec![
        format!("--hostlab={}", lab.dir.display()),
        format!("--hostwd={}", working_dir.display()),
    ]
}

/// The words of a text, split at blanks outside quotes, as `lstart -o` takes options.
///
/// # Errors
/// When a quote is not closed.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("there is no closing {quote} in: {text}"));
    }
    words.extend(word);
    Ok(words)
}

/// The argument for one option; none if it says that a flag is off.
fn word(vstart: &Command, option: &str, value: &str) -> Result<Option<String>, (Level, String)> {
    let known = vstart.get_arguments().find(|argument| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        let mut shorts = argument.get_short_and_visible_aliases().unwrap_or_default();
        shorts.extend(argument.get_short());
        argument.get_long() == Some(option)
            || aliases.contains(&option)
            || shorts.iter().any(|short| option == short.to_string())
    });
    let Some(argument) = known else {
        if KATHARA.contains(&option) {
            let text = format!("option '{option}' is for Kathara's containers and has no effect here");
            return Err((Level::Warning, text));
        }
        let text = format!("vstart has no option --{option}\nhint: 'vstart --help' shows those it has");
        return Err((Level::Error, text));
    };
    let long = argument
        .get_long()
        .filter(|long| !OURS.contains(long))
        .ok_or_else(|| {
            (
                Level::Error,
                format!("option '{option}' is for lstart to decide, not for a lab"),
            )
        })?;
    if argument.get_action().takes_values() {
        if long.starts_with("con") && value == "this" {
            let text = format!("{option}=this needs a terminal of its own for each machine: use vstart");
            return Err((Level::Error, text));
        }
        // Kathara writes 64m.
        let number = value.strip_suffix(['m', 'M']).filter(|_| long == "mem");
        return Ok(Some(format!("--{long}={}", number.unwrap_or(value))));
    }
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "yes" | "1" => Ok(Some(format!("--{long}"))),
        "false" | "no" | "0" => Ok(None),
        _ => Err((Level::Error, format!("'{value}' is neither yes nor no"))),
    }
}

/// Lets vstart's own parser look.
fn check(vstart: &Command, words: &[&str]) -> Result<(), (Level, String)> {
    let line = ["vstart", "name"].iter().chain(words);
    match vstart.clone().try_get_matches_from(line) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err((
                Level::Error,
                first.strip_prefix("error: ").unwrap_or(first).to_owned(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction, value_parser};

    fn vstart() -> Command {
        Command::new("vstart")
            .arg(Arg::new("name").required(true))
            .arg(
                Arg::new("mem")
                    .long("mem")
                    .short('M')
                    .value_parser(value_parser!(u32)),
            )
            .arg(
                Arg::new("append")
                    .long("append")
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true),
            )
            .arg(Arg::new("exec").long("exec").short('e'))
            .arg(Arg::new("con0").long("con0"))
            .arg(
                Arg::new("hide")
                    .long("hide-disk-file")
                    .short('D')
                    .action(ArgAction::SetTrue)
                    .conflicts_with("no-cow"),
            )
            .arg(
                Arg::new("no-cow")
                    .long("no-cow")
                    .short('W')
                    .action(ArgAction::SetTrue),
            )
            .arg(Arg::new("quiet").long("quiet").action(ArgAction::SetTrue))
    }

    fn run(conf: &str) -> (Vec<String>, Vec<String>) {
        let lab = Lab::new("/lab".into(), Some(&format!("LAB_MACHINES=m\n{conf}")), None, &[]);
        let (arguments, problems) = arguments(&lab.machines[0], &vstart(), 40);
        (arguments, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_machine_becomes_a_command_line() {
        let conf = "m[1]=B/02:00:00:00:00:0a\nm[0]=A\nm[2]=tap,10.0.0.1,10.0.0.2\nm[mem]=64m\nm[append]=a=1\nm[append]=b\n\
                    m[D]=yes\nm[no-cow]=no\nm[e]=\"echo a, b\"\n";
        let (arguments, problems) = run(conf);
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            arguments,
            [
                "m",
                "--eth0=A",
                "--eth1=B",
                "--mac=eth1=02:00:00:00:00:0a",
                "--eth2=tap,10.0.0.1,10.0.0.2",
                "--mem=64",
                "--append=a=1",
                "--append=b",
                "--hide-disk-file",
                "--exec=echo a, b"
            ]
        );
    }

    #[test]
    fn what_vstart_would_refuse_is_told_with_its_line() {
        let problem = |conf: &str| run(conf).1.join("\n");
        assert!(problem("m[mem]=much").starts_with("lab.conf:2: invalid value 'much' for '--mem"));
        assert!(problem("m[nonsense]=1").starts_with("lab.conf:2: vstart has no option --nonsense\nhint: "));
        assert!(problem("m[D]=maybe").starts_with("lab.conf:2: 'maybe' is neither yes nor no"));
        assert!(problem("m[quiet]=yes").starts_with("lab.conf:2: option 'quiet' is for lstart to decide"));
        assert!(problem("m[con0]=this").starts_with("lab.conf:2: con0=this needs a terminal"));
        assert!(problem("m[image]=quagga").starts_with("lab.conf:2: warning: option 'image'"));
        assert!(problem("m[mem]=64\nm[mem]=65").starts_with("lab.conf: machine m: the argument '--mem"));
        assert!(
            problem("m[D]=1\nm[W]=1").starts_with("lab.conf: machine m: the argument '--hide-disk-file'")
        );
        assert!(problem("m[40]=A").starts_with("lab.conf: machine m cannot have eth40"));
    }

    #[test]
    fn passed_options_are_split_as_by_a_shell() {
        assert_eq!(
            split("--mem=64  -e 'a  \"b\"' \"\" x\"y z\"").unwrap(),
            ["--mem=64", "-e", "a  \"b\"", "", "xy z"]
        );
        assert_eq!(split(" ").unwrap(), [""; 0]);
        assert!(split("-e 'a").is_err());
    }
}

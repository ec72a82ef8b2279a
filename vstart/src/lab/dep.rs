//! `lab.dep`: which machine waits for which, in the words of a makefile. Pure.
//!
//! ```text
//! a b: r          # a and b are started when r is ready
//! r: dns \
//!    dhcp
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Level, Problem};
use crate::name::MachineName;

/// The name of the file.
pub const FILE: &str = "lab.dep";

/// For each machine, those that must be ready before it is started.
pub type Needs = BTreeMap<MachineName, BTreeSet<MachineName>>;

/// What a `lab.dep` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dep {
    /// Who waits for whom.
    pub needs: Needs,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Dep {
    /// Reads the text, in which the machines of the lab are named. What cannot be understood, and waiting in a
    /// circle, is among the problems.
    pub fn parse(text: &str, machines: &BTreeSet<MachineName>) -> Self {
        let mut dep = Self::default();
        for (number, line) in joined(text) {
            if line.starts_with('\t') {
                dep.problem(
                    Some(number),
                    Level::Warning,
                    "commands of make are not run: lstart starts the machines itself",
                );
                continue;
            }
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Err(reason) = dep.rule(number, line, machines) {
                dep.problem(Some(number), Level::Error, reason);
            }
        }
        if let Some(cycle) = cycle(&dep.needs) {
            let names: Vec<&str> = cycle.iter().map(MachineName::as_str).collect();
            let text = format!("machines wait for each other: {}", names.join(" -> "));
            dep.problem(None, Level::Error, text);
        }
        dep
    }

    fn rule(&mut self, number: usize, line: &str, machines: &BTreeSet<MachineName>) -> Result<(), String> {
        let (targets, needs) = line
            .split_once(':')
            .ok_or_else(|| "it is not MACHINE: MACHINES TO WAIT FOR".to_owned())?;
        let names = |text: &str| -> Result<Vec<MachineName>, String> {
            text.split_whitespace()
                .map(|name| name.parse().map_err(|error| format!("{error}")))
                .collect()
        };
        let (targets, needs) = (names(targets)?, names(needs.trim_start_matches(':'))?);
        if targets.is_empty() {
            return Err("there is no machine before ':'".into());
        }
        if let Some(unknown) = needs.iter().find(|name| !machines.contains(*name)) {
            return Err(format!("there is no machine {unknown} in the lab to wait for"));
        }
        for target in targets {
            if machines.contains(&target) {
                self.needs
                    .entry(target)
                    .or_default()
                    .extend(needs.iter().cloned());
            } else {
                let text = format!("there is no machine {target} in the lab");
                self.problem(Some(number), Level::Warning, text);
            }
        }
        Ok(())
    }

    fn problem(&mut self, line: Option<usize>, level: Level, text: impl Into<String>) {
        self.problems.push(Problem {
            file: FILE,
            line,
            level,
            text: text.into(),
        });
    }
}

/// The lines, each with the number of its first part: a backslash at the end continues a line.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let (part, continues) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match lines.last_mut().filter(|_| open) {
            Some((_, whole)) => {
                whole.push(' ');
                whole.push_str(part.trim_start());
            }
            None => lines.push((number + 1, part.to_owned())),
        }
        open = continues;
    }
    lines
}

/// Machines that wait for each other, the first one named again at the end.
fn cycle(needs: &Needs) -> Option<Vec<MachineName>> {
    // Whoever waits for nobody that waits is no part of a circle.
    let mut left = needs.clone();
    loop {
        let free: Vec<MachineName> = left
            .iter()
            .filter(|(_, needs)| needs.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| name.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        for name in free {
            left.remove(&name);
        }
    }
    let mut path = vec![left.keys().next()?.clone()];
    loop {
        let last = path.last().expect("it has a first machine");
        let next = left[last]
            .iter()
            .find(|name| left.contains_key(*name))
            .expect("who is left waits for one who is left")
            .clone();
        if let Some(start) = path.iter().position(|name| *name == next) {
            path.drain(..start);
            path.push(next);
            return Some(path);
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(names: &str) -> BTreeSet<MachineName> {
        names
            .split_whitespace()
            .map(|name| name.parse().unwrap())
            .collect()
    }

    fn parse(text: &str) -> Dep {
        Dep::parse(text, &set("a b c r"))
    }

    fn problems(text: &str) -> Vec<String> {
        parse(text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_read() {
        let dep = parse("# order\na b: r # both\n\nr:\\\n  c\nb: c\n");
        assert_eq!(dep.problems, []);
        let expected = [("a", "r"), ("b", "c r"), ("r", "c")];
        let expected: Needs = expected.map(|(a, b)| (a.parse().unwrap(), set(b))).into();
        assert_eq!(dep.needs, expected);
    }

    #[test]
    fn problems_have_a_line() {
        assert_eq!(
            problems("a: b\na b\n"),
            ["lab.dep:2: it is not MACHINE: MACHINES TO WAIT FOR"]
        );
        assert_eq!(
            problems("a: x\n"),
            ["lab.dep:1: there is no machine x in the lab to wait for"]
        );
        assert_eq!(
            problems("x: a\n"),
            ["lab.dep:1: warning: there is no machine x in the lab"]
        );
        assert_eq!(problems(": a\n"), ["lab.dep:1: there is no machine before ':'"]);
        assert!(problems("a: b\n\techo\n")[0].starts_with("lab.dep:2: warning: commands of make"));
    }

    #[test]
    fn circles_are_told() {
        assert_eq!(
            problems("a: b\nb: c\nc: b\n"),
            ["lab.dep: machines wait for each other: b -> c -> b"]
        );
        assert_eq!(
            problems("a: a\n"),
            ["lab.dep: machines wait for each other: a -> a"]
        );
    }

    proptest! {
        #[test]
        fn a_circle_is_found_if_there_is_one(edges in prop::collection::vec((0u8..6, 0u8..6), 0..12)) {
            let name = |n: u8| -> MachineName { format!("m{n}").parse().unwrap() };
            let mut needs = Needs::new();
            for (a, b) in &edges {
                needs.entry(name(*a)).or_default().insert(name(*b));
            }
            // Who can be reached from whom, the slow way.
            let mut reach = [[false; 6]; 6];
            for (a, b) in &edges {
                reach[usize::from(*a)][usize::from(*b)] = true;
            }
            for k in 0..6 { for i in 0..6 { for j in 0..6 {
                reach[i][j] |= reach[i][k] && reach[k][j];
            } } }
            let circular = (0..6).any(|n| reach[n][n]);
            let found = cycle(&needs);
            prop_assert_eq!(found.is_some(), circular);
            if let Some(path) = found {
                prop_assert_eq!(path.first(), path.last());
                prop_assert!(path.windows(2).all(|pair| needs[&pair[0]].contains(&pair[1])));
            }
        }

        #[test]
        fn nothing_upsets_the_reader(text in "[ab:#\\\\ \t\nx]{0,40}") {
            let _ = parse(&text);
        }
    }
}

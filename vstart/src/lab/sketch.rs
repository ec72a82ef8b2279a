//! Where everything is in a lab's picture, and the picture as SVG. Pure.
//!
//! Machines stand in a row above, domains in a row below; a line between them is an interface.

use std::fmt::Write;

use super::Lab;
use super::drawing::{domains, place};

/// A picture, in pixels from its upper left corner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sketch {
    /// Its width.
    pub width: usize,
    /// Its height.
    pub height: usize,
    /// Interfaces; machines and domains cover their ends.
    pub lines: Vec<Line>,
    /// Machines and domains.
    pub nodes: Vec<Node>,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// The middle of the machine.
    pub from: (usize, usize),
    /// The middle of the domain.
    pub to: (usize, usize),
    /// Its name.
    pub label: String,
    /// The middle of the name, on its baseline.
    pub label_at: (usize, usize),
}

/// A machine or a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Whether it is a machine, which is a box; a domain is an ellipse.
    pub is_machine: bool,
    /// Its middle.
    pub at: (usize, usize),
    /// Half of its width; all are [`NODE_HEIGHT`] high.
    pub half_width: usize,
    /// Its name, in its middle.
    pub name: String,
}

/// Height of machines and domains.
pub const NODE_HEIGHT: usize = 40;

impl Sketch {
    /// Finds a place for everything.
    pub fn of(lab: &Lab) -> Self {
        let domains: Vec<String> = domains(lab).into_iter().collect();
        let machines = lab.machines.iter().map(|machine| machine.name.as_str());
        let names = machines.chain(domains.iter().map(String::as_str));
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
        let step = CHARACTER * longest + 80;
        let (machines_row, domains_row) = (lab.machines.len() * step, domains.len() * step);
        let width = machines_row.max(domains_row).max(step);
        // The shorter row is centred below or above the longer one.
        let x = |number: usize, row: usize| (width - row) / 2 + number * step + step / 2;
        let half_width = (step - 40) / 2;
        let mut lines = Vec::new();
        let mut nodes = Vec::new();
        for (number, machine) in lab.machines.iter().enumerate() {
            let from = x(number, machines_row);
            for interface in &machine.interfaces {
                let place = place(&interface.attachment);
                let domain = domains.iter().position(|domain| *domain == place).unwrap_or(0);
                let to = x(domain, domains_row);
                lines.push(Line {
                    from: (from, TOP),
                    to: (to, BOTTOM),
                    label: interface.name(),
                    // A third of the way down, where lines of one machine are apart already.
                    label_at: ((2 * from + to) / 3, (2 * TOP + BOTTOM) / 3),
                });
            }
            nodes.push(Node {
                is_machine: true,
                at: (from, TOP),
                half_width,
                name: machine.name.to_string(),
            });
        }
        nodes.extend(domains.iter().enumerate().map(|(number, domain)| Node {
            is_machine: false,
            at: (x(number, domains_row), BOTTOM),
            half_width,
            name: domain.clone(),
        }));
        Self {
            width,
            height: HEIGHT,
            lines,
            nodes,
        }
    }

    /// The picture as SVG.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a text cannot fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (width, height) = (self.width, self.height);
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"14\" text-anchor=\"middle\">"
        )?;
        writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
        for line in &self.lines {
            let ((x1, y1), (x2, y2), (x, y)) = (line.from, line.to, line.label_at);
            writeln!(
                out,
                "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"gray\"/>\
                 <text x=\"{x}\" y=\"{y}\" font-size=\"11\" fill=\"dimgray\">{}</text>",
                line.label
            )?;
        }
        for node in &self.nodes {
            let ((x, y), half) = (node.at, node.half_width);
            if node.is_machine {
                write!(
                    out,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{NODE_HEIGHT}\" rx=\"4\" fill=\"lightblue\" stroke=\"black\"/>",
                    x - half,
                    y - NODE_HEIGHT / 2,
                    2 * half,
                )?;
            } else {
                let ry = NODE_HEIGHT / 2;
                write!(
                    out,
                    "<ellipse cx=\"{x}\" cy=\"{y}\" rx=\"{half}\" ry=\"{ry}\" fill=\"lightyellow\" stroke=\"black\"/>"
                )?;
            }
            writeln!(out, "<text x=\"{x}\" y=\"{}\">{}</text>", y + 5, node.name)?;
        }
        writeln!(out, "</svg>")
    }
}

/// Widths and heights: of a character, of the picture, and of the middles of both rows.
const CHARACTER: usize = 9;
const HEIGHT: usize = 260;
const TOP: usize = 40;
const BOTTOM: usize = 220;

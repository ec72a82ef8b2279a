//! A lab as a drawing. Pure.
//!
//! Machines stand in a row above, domains in a row below; a line between them is an interface.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::str::FromStr;

use super::Lab;
use crate::machine::Attachment;

/// A way to write a drawing down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Scalable vector graphics, to look at.
    Svg,
    /// For Graphviz.
    Dot,
    /// For mermaid, as in Markdown.
    Mermaid,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "dot" | "gv" => Ok(Self::Dot),
            "mmd" | "mermaid" => Ok(Self::Mermaid),
            "png" => Err(
                "a drawing cannot be written as PNG: write SVG, which browsers and converters read"
                    .to_owned(),
            ),
            other => Err(format!(
                "'{other}' is no kind of drawing: use svg, dot or mermaid"
            )),
        }
    }
}

/// Draws the lab.
pub fn draw(lab: &Lab, format: Format) -> String {
    let mut out = String::new();
    let result = match format {
        Format::Svg => svg(lab, &mut out),
        Format::Dot => dot(lab, &mut out),
        Format::Mermaid => mermaid(lab, &mut out),
    };
    result.expect("writing to a text cannot fail");
    out
}

/// What machines are attached to, by name.
pub fn domains(lab: &Lab) -> BTreeSet<String> {
    let interfaces = lab.machines.iter().flat_map(|machine| &machine.interfaces);
    interfaces.map(|interface| place(&interface.attachment)).collect()
}

fn place(attachment: &Attachment) -> String {
    match attachment {
        Attachment::Domain(domain) => domain.to_string(),
        Attachment::Tap { .. } => "host".into(),
        Attachment::Nat => "internet".into(),
    }
}

fn dot(lab: &Lab, out: &mut String) -> std::fmt::Result {
    writeln!(out, "graph lab {{")?;
    for machine in &lab.machines {
        writeln!(out, "  \"m-{0}\" [label=\"{0}\", shape=box];", machine.name)?;
    }
    for domain in domains(lab) {
        writeln!(out, "  \"d-{domain}\" [label=\"{domain}\", shape=ellipse];")?;
    }
    for machine in &lab.machines {
        for interface in &machine.interfaces {
            let (domain, name) = (place(&interface.attachment), interface.name());
            writeln!(
                out,
                "  \"m-{}\" -- \"d-{domain}\" [label=\"{name}\"];",
                machine.name
            )?;
        }
    }
    writeln!(out, "}}")
}

fn mermaid(lab: &Lab, out: &mut String) -> std::fmt::Result {
    let domains: Vec<String> = domains(lab).into_iter().collect();
    writeln!(out, "graph TD")?;
    for (number, machine) in lab.machines.iter().enumerate() {
        writeln!(out, "  m{number}[\"{}\"]", machine.name)?;
    }
    for (number, domain) in domains.iter().enumerate() {
        writeln!(out, "  d{number}((\"{domain}\"))")?;
    }
    for (number, machine) in lab.machines.iter().enumerate() {
        for interface in &machine.interfaces {
            let place = place(&interface.attachment);
            let domain = domains.iter().position(|domain| *domain == place).unwrap_or(0);
            writeln!(out, "  m{number} ---|{}| d{domain}", interface.name())?;
        }
    }
    Ok(())
}

fn svg(lab: &Lab, out: &mut String) -> std::fmt::Result {
    let domains: Vec<String> = domains(lab).into_iter().collect();
    let longest = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0);
    let characters = longest(&mut lab.machines.iter().map(|m| m.name.as_str().chars().count()))
        .max(longest(&mut domains.iter().map(|d| d.chars().count())));
    let step = CHARACTER * characters + 80;
    let (machines_row, domains_row) = (lab.machines.len() * step, domains.len() * step);
    let width = machines_row.max(domains_row).max(step);
    // The shorter row is centred below or above the longer one.
    let x = |number: usize, row: usize| (width - row) / 2 + number * step + step / 2;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"14\" text-anchor=\"middle\">"
    )?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
    for (number, machine) in lab.machines.iter().enumerate() {
        let from = x(number, machines_row);
        for interface in &machine.interfaces {
            let place = place(&interface.attachment);
            let domain = domains.iter().position(|domain| *domain == place).unwrap_or(0);
            let to = x(domain, domains_row);
            writeln!(
                out,
                "<line x1=\"{from}\" y1=\"{TOP}\" x2=\"{to}\" y2=\"{BOTTOM}\" stroke=\"gray\"/>"
            )?;
            // A third of the way down, where lines of one machine are apart already.
            let (label_x, label_y) = ((2 * from + to) / 3, (2 * TOP + BOTTOM) / 3);
            writeln!(
                out,
                "<text x=\"{label_x}\" y=\"{label_y}\" font-size=\"11\" fill=\"dimgray\">{}</text>",
                interface.name()
            )?;
        }
    }
    let half = (step - 40) / 2;
    for (number, machine) in lab.machines.iter().enumerate() {
        let (x, name) = (x(number, machines_row), &machine.name);
        writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"40\" rx=\"4\" fill=\"lightblue\" stroke=\"black\"/>\
             <text x=\"{x}\" y=\"{}\">{name}</text>",
            x - half,
            TOP - 20,
            2 * half,
            TOP + 5
        )?;
    }
    for (number, domain) in domains.iter().enumerate() {
        let x = x(number, domains_row);
        writeln!(
            out,
            "<ellipse cx=\"{x}\" cy=\"{BOTTOM}\" rx=\"{half}\" ry=\"20\" fill=\"lightyellow\" stroke=\"black\"/>\
             <text x=\"{x}\" y=\"{}\">{domain}</text>",
            BOTTOM + 5
        )?;
    }
    writeln!(out, "</svg>")
}

/// Widths and heights, in pixels: of a character, of the picture, and of the middles of both rows.
const CHARACTER: usize = 9;
const HEIGHT: usize = 260;
const TOP: usize = 40;
const BOTTOM: usize = 220;

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Lab {
        let conf = "LAB_MACHINES=\"a r b\"\na[0]=left\nr[0]=left\nr[1]=right\nb[0]=right\nb[1]=tap,10.0.0.1,10.0.0.2\n";
        Lab::new("/lab".into(), Some(conf), None, &[])
    }

    #[test]
    fn every_interface_is_a_line() {
        let dot = draw(&lab(), Format::Dot);
        assert!(dot.contains("\"m-r\" -- \"d-right\" [label=\"eth1\"];"), "{dot}");
        assert_eq!(dot.matches(" -- ").count(), 5);
        let mermaid = draw(&lab(), Format::Mermaid);
        assert!(mermaid.contains("d0((\"host\"))"), "{mermaid}");
        assert!(mermaid.contains("m1 ---|eth1| d2"), "{mermaid}");
        assert_eq!(mermaid.matches("---|").count(), 5);
        let svg = draw(&lab(), Format::Svg);
        assert_eq!(
            (
                svg.matches("<line").count(),
                svg.matches("<ellipse").count(),
                svg.matches("rx=\"4\"").count()
            ),
            (5, 3, 3)
        );
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_is_a_drawing_too() {
        let lab = Lab::new("/lab".into(), Some(""), None, &[]);
        for format in [Format::Svg, Format::Dot, Format::Mermaid] {
            assert!(!draw(&lab, format).is_empty());
        }
    }

    #[test]
    fn formats_are_known_by_name() {
        assert_eq!("SVG".parse(), Ok(Format::Svg));
        assert_eq!("gv".parse(), Ok(Format::Dot));
        assert_eq!("mmd".parse(), Ok(Format::Mermaid));
        assert!("png".parse::<Format>().is_err_and(|error| error.contains("SVG")));
    }
}

//! A lab as a drawing. Pure.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::str::FromStr;

use super::Lab;
use super::picture::{TooWide, png};
use super::sketch::Sketch;
use crate::machine::Attachment;

/// A way to write a drawing down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Scalable vector graphics, to look at.
    Svg,
    /// Pixels, for whatever shows pictures.
    Png,
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
            "png" => Ok(Self::Png),
            other => Err(format!(
                "'{other}' is no kind of drawing: use svg, png, dot or mermaid"
            )),
        }
    }
}

/// Draws the lab.
///
/// # Errors
/// When the lab is too large for pixels.
pub fn draw(lab: &Lab, format: Format) -> Result<Vec<u8>, TooWide> {
    let text = |write: fn(&Lab, &mut String) -> std::fmt::Result| {
        let mut out = String::new();
        write(lab, &mut out).expect("writing to a text cannot fail");
        out.into_bytes()
    };
    Ok(match format {
        Format::Svg => Sketch::of(lab).svg().into_bytes(),
        Format::Png => png(&Sketch::of(lab))?,
        Format::Dot => text(dot),
        Format::Mermaid => text(mermaid),
    })
}

/// What machines are attached to, by name.
pub fn domains(lab: &Lab) -> BTreeSet<String> {
    let interfaces = lab.machines.iter().flat_map(|machine| &machine.interfaces);
    interfaces.map(|interface| place(&interface.attachment)).collect()
}

/// What an interface is attached to, by name.
pub(super) fn place(attachment: &Attachment) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(lab: &Lab, format: Format) -> String {
        String::from_utf8(draw(lab, format).unwrap()).unwrap()
    }

    fn lab() -> Lab {
        let conf = "LAB_MACHINES=\"a r b\"\na[0]=left\nr[0]=left\nr[1]=right\nb[0]=right\nb[1]=tap,10.0.0.1,10.0.0.2\n";
        Lab::new("/lab".into(), Some(conf), None, &[])
    }

    #[test]
    fn every_interface_is_a_line() {
        let dot = drawn(&lab(), Format::Dot);
        assert!(dot.contains("\"m-r\" -- \"d-right\" [label=\"eth1\"];"), "{dot}");
        assert_eq!(dot.matches(" -- ").count(), 5);
        let mermaid = drawn(&lab(), Format::Mermaid);
        assert!(mermaid.contains("d0((\"host\"))"), "{mermaid}");
        assert!(mermaid.contains("m1 ---|eth1| d2"), "{mermaid}");
        assert_eq!(mermaid.matches("---|").count(), 5);
        let svg = drawn(&lab(), Format::Svg);
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
        for format in [Format::Svg, Format::Png, Format::Dot, Format::Mermaid] {
            assert!(!draw(&lab, format).unwrap().is_empty());
        }
    }

    #[test]
    fn formats_are_known_by_name() {
        assert_eq!("SVG".parse(), Ok(Format::Svg));
        assert_eq!("gv".parse(), Ok(Format::Dot));
        assert_eq!("mmd".parse(), Ok(Format::Mermaid));
        assert_eq!("PNG".parse(), Ok(Format::Png));
        assert!(
            "jpg"
                .parse::<Format>()
                .is_err_and(|error| error.contains("use svg, png"))
        );
    }
}

//! A drawing of rates: groups of horizontal bars, each group with a scale of its own.

use std::fmt::Write as _;

/// What is compared with each other.
#[derive(Clone, Debug)]
pub struct Group {
    /// What was measured, in which unit.
    pub title: String,
    /// One for each contestant; the first is what the others are compared with.
    pub bars: Vec<Bar>,
}

/// One rate.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose.
    pub label: String,
    /// How much.
    pub value: f64,
}

const WIDTH: u32 = 760;
const LEFT: u32 = 170;
const LONGEST: f64 = 420.0;
const LINE: u32 = 20;

/// Draws groups one below the other as an SVG, with a line about their source at the end.
pub fn svg(groups: &[Group], source: &str) -> String {
    let mut body = String::new();
    let mut y = 24;
    for group in groups {
        _ = writeln!(
            body,
            r#"<text x="10" y="{y}" class="title">{}</text>"#,
            escaped(&group.title)
        );
        y += 8;
        let most = group.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        let first = group.bars.first().map_or(0.0, |bar| bar.value);
        for (bar, class) in group
            .bars
            .iter()
            .zip([true].into_iter().chain(std::iter::repeat(false)))
        {
            let width = if most > 0.0 {
                bar.value / most * LONGEST
            } else {
                0.0
            };
            let ratio = if first > 0.0 && !class {
                format!(" ({:.2})", bar.value / first)
            } else {
                String::new()
            };
            let middle = y + 14;
            _ = writeln!(
                body,
                r#"<text x="{}" y="{middle}" class="label">{}</text><rect x="{LEFT}" y="{}" width="{width:.1}" height="14" class="{}"/><text x="{:.1}" y="{middle}">{:.0}{ratio}</text>"#,
                LEFT - 8,
                escaped(&bar.label),
                y + 3,
                if class { "base" } else { "bar" },
                f64::from(LEFT) + width + 6.0,
                bar.value,
            );
            y += LINE;
        }
        y += LINE + 8;
    }
    _ = writeln!(
        body,
        r#"<text x="10" y="{y}" class="source">{}</text>"#,
        escaped(source)
    );
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">
<style>text {{ font: 12px sans-serif; fill: #222 }} .title {{ font-weight: bold }} .label {{ text-anchor: end }} .source {{ font-size: 10px; fill: #666 }} .base {{ fill: #b0b7c3 }} .bar {{ fill: #2f6fb2 }}</style>
<rect width="100%" height="100%" fill="white"/>
{body}</svg>
"#,
        height = y + 14
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            value,
        };
        let group = Group {
            title: "a & b".to_owned(),
            bars: vec![bar("one", 50.0), bar("two", 100.0)],
        };
        let drawing = svg(&[group], "<here>");
        for part in [
            r#"width="210.0""#,
            r#"width="420.0""#,
            "a &amp; b",
            "&lt;here&gt;",
            "100 (2.00)",
        ] {
            assert!(drawing.contains(part), "no {part} in {drawing}");
        }
        assert_eq!(drawing.matches("<rect").count(), 3);
    }
}

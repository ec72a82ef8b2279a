//! A lab's picture as PNG. Pure.
//!
//! The letters are a font of fixed width with those of Latin-1; what it lacks is shown as a question mark.

use std::convert::Infallible;

use embedded_graphics::Drawable;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_9X18};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor, WebColors};
use embedded_graphics::prelude::{DrawTarget, Pixel, Primitive};
use embedded_graphics::primitives::{
    CornerRadii, Ellipse, Line as Stroke, PrimitiveStyleBuilder, Rectangle, RoundedRectangle,
};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

use super::sketch::{NODE_HEIGHT, Node, Sketch};

/// A lab too large to be a picture of pixels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the picture would be {0} pixels wide, {WIDEST} are possible\nhint: SVG has no such limit")]
pub struct TooWide(usize);

/// What most programs that show pictures can cope with.
const WIDEST: usize = 32_000;

/// Draws the picture.
///
/// # Errors
/// When it would be too wide.
pub fn png(sketch: &Sketch) -> Result<Vec<u8>, TooWide> {
    let (Ok(width), Ok(height)) = (u32::try_from(sketch.width), u32::try_from(sketch.height)) else {
        return Err(TooWide(sketch.width));
    };
    if sketch.width > WIDEST {
        return Err(TooWide(sketch.width));
    }
    let mut canvas = Canvas {
        size: Size::new(width, height),
        pixels: vec![0xff; sketch.width * sketch.height * 3],
    };
    let Ok(()) = paint(sketch, &mut canvas);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("the sizes are right");
    writer
        .write_image_data(&canvas.pixels)
        .expect("there are as many pixels as were announced");
    writer.finish().expect("writing to memory cannot fail");
    Ok(file)
}

fn paint(sketch: &Sketch, canvas: &mut Canvas) -> Result<(), Infallible> {
    let gray = PrimitiveStyleBuilder::new()
        .stroke_color(Rgb888::CSS_GRAY)
        .stroke_width(2)
        .build();
    for line in &sketch.lines {
        Stroke::new(point(line.from), point(line.to))
            .into_styled(gray)
            .draw(canvas)?;
    }
    for line in &sketch.lines {
        write(
            &line.label,
            point(line.label_at),
            &FONT_7X13,
            Rgb888::CSS_DIM_GRAY,
            canvas,
        )?;
    }
    for node in &sketch.nodes {
        shape(node, canvas)?;
        write(&node.name, point(node.at), &FONT_9X18, Rgb888::BLACK, canvas)?;
    }
    Ok(())
}

fn shape(node: &Node, canvas: &mut Canvas) -> Result<(), Infallible> {
    let style = PrimitiveStyleBuilder::new()
        .stroke_color(Rgb888::BLACK)
        .stroke_width(1);
    let (half_width, half_height) = (node.half_width, NODE_HEIGHT / 2);
    let corner = (node.at.0 - half_width, node.at.1 - half_height);
    let size = Size::new(
        coordinate(2 * half_width).unsigned_abs(),
        coordinate(NODE_HEIGHT).unsigned_abs(),
    );
    if node.is_machine {
        let area = Rectangle::new(point(corner), size);
        let style = style.fill_color(Rgb888::CSS_LIGHT_BLUE).build();
        RoundedRectangle::new(area, CornerRadii::new(Size::new(4, 4)))
            .into_styled(style)
            .draw(canvas)
    } else {
        let style = style.fill_color(Rgb888::CSS_LIGHT_YELLOW).build();
        Ellipse::new(point(corner), size).into_styled(style).draw(canvas)
    }
}

fn write(
    text: &str,
    at: Point,
    font: &MonoFont<'_>,
    color: Rgb888,
    canvas: &mut Canvas,
) -> Result<(), Infallible> {
    let style = TextStyleBuilder::new()
        .alignment(Alignment::Center)
        .baseline(Baseline::Middle)
        .build();
    // White around the letters keeps them apart from lines.
    let mut letters = MonoTextStyle::new(font, color);
    if color != Rgb888::BLACK {
        letters.background_color = Some(Rgb888::WHITE);
    }
    Text::with_text_style(text, at, letters, style).draw(canvas)?;
    Ok(())
}

fn point((x, y): (usize, usize)) -> Point {
    Point::new(coordinate(x), coordinate(y))
}

fn coordinate(pixels: usize) -> i32 {
    i32::try_from(pixels).expect("the picture is no wider than WIDEST")
}

/// Pixels, three bytes each, row by row.
struct Canvas {
    size: Size,
    pixels: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        self.size
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, color) in pixels {
            // What lies outside is cut off.
            let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
                continue;
            };
            if x < self.size.width && y < self.size.height {
                let at = (y as usize * self.size.width as usize + x as usize) * 3;
                self.pixels[at..at + 3].copy_from_slice(&[color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    fn sketch(conf: &str) -> Sketch {
        Sketch::of(&Lab::new("/lab".into(), Some(conf), None, &[]))
    }

    /// Reads a picture back: width, height, and the color of a pixel.
    fn read(file: &[u8]) -> (u32, u32, impl Fn(usize, usize) -> [u8; 3]) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let width = usize::try_from(info.width).unwrap();
        let pixel = move |x: usize, y: usize| {
            let at = (y * width + x) * 3;
            [pixels[at], pixels[at + 1], pixels[at + 2]]
        };
        (info.width, info.height, pixel)
    }

    #[test]
    fn machines_domains_lines_and_letters_are_where_they_belong() {
        let sketch = sketch("LAB_MACHINES=\"pc1 pc2\"\npc1[0]=LAN\npc2[0]=LAN\n");
        let file = png(&sketch).unwrap();
        let (width, height, pixel) = read(&file);
        assert_eq!((width as usize, height as usize), (sketch.width, sketch.height));
        assert_eq!(pixel(0, 0), [255, 255, 255]);
        let colors = [(true, [173, 216, 230]), (false, [255, 255, 224])];
        for node in &sketch.nodes {
            let (x, y) = node.at;
            let fill = colors
                .iter()
                .find(|(machine, _)| *machine == node.is_machine)
                .unwrap()
                .1;
            assert_eq!(pixel(x - node.half_width + 8, y), fill, "{}", node.name);
            let area = (x - 14..x + 14).flat_map(|x| (y - 9..y + 9).map(move |y| (x, y)));
            let black = area.filter(|&(x, y)| pixel(x, y) == [0, 0, 0]).count();
            assert!((20..200).contains(&black), "{}: {black} black pixels", node.name);
        }
        for line in &sketch.lines {
            // Three quarters of the way down: below the label, above the domain.
            let middle = |a: usize, b: usize| (a + 3 * b) / 4;
            let (x, y) = (middle(line.from.0, line.to.0), middle(line.from.1, line.to.1));
            let near = (x - 3..x + 4).any(|x| pixel(x, y) == [128, 128, 128]);
            assert!(near, "no line at {x}, {y}");
        }
    }

    #[test]
    fn an_empty_lab_is_a_picture_and_a_huge_one_is_none() {
        assert!(png(&sketch("")).is_ok());
        let names: Vec<_> = (0..400).map(|n| format!("m{n}")).collect();
        let huge = sketch(&format!("LAB_MACHINES=\"{}\"\n", names.join(" ")));
        assert!(matches!(png(&huge), Err(TooWide(_))));
    }
}

//! `vdump -t`: a line for each frame.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use chrono::{DateTime, Local};

use super::convert::Consumer;
use super::summary::{Summary, summarise};
use crate::pcapng::{self, Block};

/// Prints frames as text.
pub(super) struct Text {
    out: BufWriter<File>,
    colours: bool,
    /// Names of the interfaces, by number.
    interfaces: HashMap<u32, String>,
}

const RED: &str = "31";
const DIM: &str = "2";

impl Text {
    /// Prints to standard output; in colour on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
    pub(super) fn new() -> anyhow::Result<Self> {
        let stdout = std::io::stdout();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self {
            colours: wanted && stdout.is_terminal(),
            out: BufWriter::new(File::from(stdout.as_fd().try_clone_to_owned()?)),
            interfaces: HashMap::new(),
        })
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours && !colour.is_empty() {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&self, block: &Block<'_>) -> String {
        let Summary {
            src,
            dst,
            protocol,
            info,
        } = summarise(block.frame());
        let time =
            DateTime::from_timestamp(block.time().as_secs().cast_signed(), block.time().subsec_nanos());
        let time = time.map_or_else(String::new, |time| {
            time.with_timezone(&Local).format("%H:%M:%S%.6f").to_string()
        });
        let port = self.interfaces.get(&block.interface()).map_or("", String::as_str);
        let time = self.paint(DIM, &time);
        let protocol = self.paint(colour(&protocol), &format!("{protocol:<6}"));
        let mut line = format!("{time} {port:<16} {src} > {dst} {protocol} {info}");
        line.truncate(line.trim_end().len());
        line += &format!(", {} bytes", block.wire_len());
        if !block.comment().is_empty() {
            line += &self.paint(RED, &format!(" [{}]", block.comment()));
        }
        line.push('\n');
        line
    }
}

fn colour(protocol: &str) -> &'static str {
    match protocol {
        "ARP" => "33",
        "ICMP" | "ICMPv6" => "32",
        "TCP" => "36",
        "UDP" => "34",
        "STP" | "LLDP" => "35",
        _ => "",
    }
}

impl Consumer for Text {
    fn block(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        match block.kind {
            pcapng::INTERFACE => {
                let number = u32::try_from(self.interfaces.len())?;
                self.interfaces.insert(number, block.name().to_owned());
            }
            pcapng::PACKET => {
                let line = self.line(block);
                self.out.write_all(line.as_bytes())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        Some(self.out.get_ref().as_fd())
    }
}

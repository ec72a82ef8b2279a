//! Programs that show a console in a window. Pure: their command lines.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::MachineName;

/// A terminal emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emulator {
    /// The standard one.
    Xterm,
    /// Gnome's.
    Gnome,
    /// KDE's.
    Konsole,
    /// A tab of KDE's.
    KonsoleTab,
    /// Alacritty.
    Alacritty,
    /// Kitty.
    Kitty,
    /// A tab of Kitty.
    KittyTab,
}

/// The text is no terminal emulator we know how to start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "'{0}' is not a terminal emulator: use xterm, gnome, konsole, konsole-tab, alacritty, kitty or kitty-tab"
)]
pub struct EmulatorError(String);

impl FromStr for Emulator {
    type Err = EmulatorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "xterm" => Self::Xterm,
            "gnome" => Self::Gnome,
            "konsole" => Self::Konsole,
            "konsole-tab" => Self::KonsoleTab,
            "alacritty" => Self::Alacritty,
            "kitty" => Self::Kitty,
            "kitty-tab" => Self::KittyTab,
            other => return Err(EmulatorError(other.to_owned())),
        })
    }
}

impl Emulator {
    /// The program to be installed.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xterm => "xterm",
            Self::Gnome => "gnome-terminal",
            Self::Konsole | Self::KonsoleTab => "konsole",
            Self::Alacritty => "alacritty",
            Self::Kitty | Self::KittyTab => "kitty",
        }
    }

    /// The command that runs `command` in a window of that title.
    pub fn command(self, title: &str, command: &[String]) -> Vec<String> {
        let tab_title = format!("tabtitle={title}");
        let before: &[&str] = match self {
            Self::Xterm | Self::Alacritty => &["-T", title, "-e"],
            Self::Gnome => &["--title", title, "--"],
            Self::Konsole => &["-p", &tab_title, "-e"],
            Self::KonsoleTab => &["--new-tab", "-p", &tab_title, "-e"],
            Self::Kitty => &["--title", title],
            Self::KittyTab => &["@", "launch", "--type=tab", "--title", title],
        };
        let words = std::iter::once(self.program())
            .chain(before.iter().copied())
            .map(str::to_owned);
        words.chain(command.iter().cloned()).collect()
    }
}

/// The command that runs `command` in a tmux session in the background.
pub fn tmux_start(title: &str, command: &[String]) -> Vec<String> {
    let mut words = tmux(&["new-session", "-d", "-s", &tmux_session(title)]);
    words.extend(command.iter().cloned());
    words
}

/// The command that shows a tmux session.
pub fn tmux_attach(title: &str) -> Vec<String> {
    tmux(&["attach", "-t", &format!("={}", tmux_session(title))])
}

/// The command that ends a tmux session, and the program in it.
pub fn tmux_end(title: &str) -> Vec<String> {
    tmux(&["kill-session", "-t", &format!("={}", tmux_session(title))])
}

/// What a console is called where it is shown.
pub fn title(machine: &MachineName, console: usize) -> String {
    match console {
        0 => machine.to_string(),
        number => format!("{machine}-con{number}"),
    }
}

/// The name of a tmux session: those of tmux have neither dots nor colons.
pub fn tmux_session(title: &str) -> String {
    title.replace(['.', ':'], "_")
}

/// A command to tmux, whose server is that of netkit-jh: the user's own sessions are elsewhere.
fn tmux(words: &[&str]) -> Vec<String> {
    let words = ["tmux", "-L", "netkit"].iter().chain(words);
    words.map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_emulator_gets_title_and_command() {
        let command = ["vconnect".to_owned(), "pc1".to_owned()];
        let line = |name: &str| {
            name.parse::<Emulator>()
                .unwrap()
                .command("pc1 con0", &command)
                .join("|")
        };
        assert_eq!(line("xterm"), "xterm|-T|pc1 con0|-e|vconnect|pc1");
        assert_eq!(line("gnome"), "gnome-terminal|--title|pc1 con0|--|vconnect|pc1");
        assert_eq!(line("konsole"), "konsole|-p|tabtitle=pc1 con0|-e|vconnect|pc1");
        assert_eq!(
            line("konsole-tab"),
            "konsole|--new-tab|-p|tabtitle=pc1 con0|-e|vconnect|pc1"
        );
        assert_eq!(line("alacritty"), "alacritty|-T|pc1 con0|-e|vconnect|pc1");
        assert_eq!(line("kitty"), "kitty|--title|pc1 con0|vconnect|pc1");
        assert_eq!(
            line("kitty-tab"),
            "kitty|@|launch|--type=tab|--title|pc1 con0|vconnect|pc1"
        );
        assert!("rxvt".parse::<Emulator>().is_err());
        assert_eq!(
            tmux_start("a.b", &command).join("|"),
            "tmux|-L|netkit|new-session|-d|-s|a_b|vconnect|pc1"
        );
        assert_eq!(tmux_attach("a.b").join("|"), "tmux|-L|netkit|attach|-t|=a_b");
        assert_eq!(tmux_end("pc1").join("|"), "tmux|-L|netkit|kill-session|-t|=pc1");
    }
}

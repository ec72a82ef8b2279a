//! A console in an xterm: what the machine writes is on xterm's screen, and what xterm types reaches the machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use tests::program::tool;
use tests::uml::{Home, wait_for};

/// A display that nobody looks at.
struct Display {
    server: Child,
    name: String,
}

impl Display {
    fn start(home: &Home) -> Self {
        // Xvfb writes the number of the display it has taken to its standard output.
        let mut server = Command::new(tool("Xvfb"))
            .args(["-displayfd", "1", "-nolisten", "tcp"])
            .env("HOME", home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb runs");
        let mut number = String::new();
        BufReader::new(server.stdout.take().expect("a piped stdout"))
            .read_line(&mut number)
            .expect("a display");
        let name = format!(":{}", number.trim());
        Self { server, name }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn an_xterm_shows_the_console_and_types_into_it() {
    let home = Home::new();
    let display = Display::start(&home);
    // CSI i lets xterm print its screen: here into a file.
    let (resources, screen) = (home.path().join("resources"), home.path().join("screen"));
    fs::write(
        &resources,
        format!(
            "XTerm*printerCommand: cat >{0}.new && mv {0}.new {0}\n",
            screen.display()
        ),
    )
    .expect("the home is ours");
    let started = home
        .command("vstart")
        .args(["pc1", "--con0=xterm", "-q"])
        .env("DISPLAY", &display.name)
        .env("XENVIRONMENT", &resources)
        .output()
        .expect("vstart runs");
    assert!(started.status.success(), "{started:?}");
    home.wait_for_status("pc1", "ready");
    let window = || {
        home.processes()
            .iter()
            .any(|(_, line)| line.starts_with("xterm "))
    };
    wait_for("the window", window);

    // A second viewer types; both show it. xterm is asked whether it is well, and answers by typing CSI 0 n.
    let mut typist = home
        .command("vconnect")
        .arg("pc1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("vconnect runs");
    let keys = "clear; echo $((6*7))-is-shown; printf '\\033[5n'; read -r -s -d n -t 30 answer; \
                echo ${#answer}-bytes-typed; printf '\\033[i'\n";
    let mut keyboard = typist.stdin.take().expect("a piped stdin");
    keyboard
        .write_all(keys.as_bytes())
        .expect("vconnect takes what is typed");
    wait_for("what is on xterm's screen", || screen.exists());
    let shown = fs::read_to_string(&screen).expect("xterm has printed its screen");
    for line in ["42-is-shown", "3-bytes-typed"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    home.ok("vhalt", ["pc1"]);
    drop(keyboard);
    typist.wait().expect("vconnect ends with the machine");
    wait_for("the window to close", || !window());
    for file in [resources, screen] {
        fs::remove_file(file).expect("the file is ours");
    }
    drop(display);
    home.assert_nothing_left();
}

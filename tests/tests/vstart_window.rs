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
    // Somebody who looks before there is anything to see.
    let mut typist = home
        .command("vconnect")
        .args(["--retry-count=300", "-n", "1", "pc1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vconnect runs");
    let mut told = BufReader::new(typist.stderr.take().expect("a piped stderr"));
    let mut line = String::new();
    told.read_line(&mut line).expect("vconnect says something");
    assert_eq!(line, "pc1: not there yet; waiting\n");
    let started = home
        .command("vstart")
        .args(["pc1", "--con0=xterm", "-q"])
        .env("DISPLAY", &display.name)
        .env("XENVIRONMENT", &resources)
        .output()
        .expect("vstart runs");
    assert!(started.status.success(), "{started:?}");
    home.wait_for_status("pc1", "ready");
    let windows = || {
        home.processes()
            .iter()
            .filter(|(_, line)| line.starts_with("xterm "))
            .count()
    };
    wait_for("the window", || windows() == 1);

    // A second viewer types; both show it. xterm is asked whether it is well, and answers by typing CSI 0 n.
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
    // Another window on the same console, and why there may be none.
    let opened = home
        .command("vconnect")
        .args(["-t", "pc1"])
        .env("DISPLAY", &display.name)
        .status();
    assert!(opened.expect("vconnect runs").success());
    wait_for("the second window", || windows() == 2);
    let error = home.fails(1, "vconnect", ["-t", "pc1"]);
    assert!(
        error.starts_with("vconnect: cannot open a window: there is no display\nhint: "),
        "{error}"
    );
    let error = home.fails(1, "vconnect", ["pc1", "pc1"]);
    assert!(
        error.contains("several machines on one terminal\nhint: "),
        "{error}"
    );
    let error = home.fails(1, "vconnect", ["-r2", "-n0", "pc2"]);
    assert!(
        error.contains("pc2: not there yet; waiting\nvconnect: no machine named pc2"),
        "{error}"
    );
    home.ok("vhalt", ["pc1"]);
    drop(keyboard);
    typist.wait().expect("vconnect ends with the machine");
    wait_for("the windows to close", || windows() == 0);
    for file in [resources, screen] {
        fs::remove_file(file).expect("the file is ours");
    }
    drop(display);
    home.assert_nothing_left();
}

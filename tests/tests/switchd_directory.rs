//! The daemon keeps its directory in order: names, modes, stale sockets, other programs, its own end and restart.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::ctl::{DomainSpec, Mode, Request};
use tests::client::Client;
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{Process, listens, run, tool};
use tests::switchd::{Switchd, files_below};
use tests::wait::until_true;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
}

#[test]
fn sockets_are_named_as_netkit_names_them_and_are_the_users_alone() {
    let switchd = Switchd::with_domain(&["A"]);
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    let control = switchd.uml_socket("A");
    let name = format!("vhub_{}_A.cnct", user.name);
    assert_eq!(control, switchd.dir().canonicalize().unwrap().join(name));
    let client = switchd.attach("A");
    let _old = Client::attach_v0(&control, &control.with_extension("data")).unwrap();
    until_true("both are attached", || switchd.ports("A").len() == 2);
    assert_eq!(mode(&switchd.dir()), 0o700);
    assert_eq!(mode(client.switch_path().parent().unwrap()), 0o700);
    let sockets = [
        &control,
        &control.with_extension("data"),
        &client.switch_path(),
        &switchd.socket(),
    ];
    for socket in sockets {
        assert_eq!(mode(socket), 0o600, "{}", socket.display());
    }
    assert_eq!(mode(&switchd.dir().join("switchd.lock")), 0o600);
}

#[test]
fn an_idle_daemon_ends_if_it_is_told_so() {
    let mut switchd = Switchd::prepared();
    switchd.launch(&["--idle-exit", "1"]);
    let mut holder = switchd.connect();
    holder.ask(&Request::DomainHold(DomainSpec::new("A".parse().unwrap())));
    let begun = Instant::now();
    until_true("more than the time limit has passed", || {
        assert!(switchd.process().is_running());
        begun.elapsed() > Duration::from_millis(1500)
    });
    drop(holder);
    assert!(switchd.wait().success());
    assert!(switchd.files().is_empty(), "{:?}", switchd.files());
}

#[test]
fn a_client_that_comes_and_goes_keeps_an_idle_daemon_for_the_whole_time_once_more() {
    let limit = Duration::from_secs(3);
    let mut switchd = Switchd::prepared();
    loop {
        switchd.launch(&["--idle-exit", "3"]);
        let begun = Instant::now();
        until_true("it waits", || begun.elapsed() > Duration::from_millis(500));
        let Ok(client) = UnixStream::connect(switchd.socket()) else {
            // The test was held up for so long that the daemon has ended.
            assert!(switchd.wait().success());
            continue;
        };
        let leaving = Instant::now();
        drop(client);
        assert!(switchd.wait().success());
        assert!(leaving.elapsed() >= limit, "{:?}", leaving.elapsed());
        return;
    }
}

#[test]
fn a_second_daemon_in_the_same_directory_is_refused() {
    let switchd = Switchd::with_domain(&["A"]);
    let text = switchd.run(&["run"]).failed(1);
    assert_has(
        &text,
        &[
            "already running in",
            switchd.dir().to_str().unwrap(),
            "hint:",
            "stop",
        ],
    );
    assert_eq!(switchd.domain("A").ports, 0);
}

#[test]
fn a_directory_open_to_others_is_refused_and_left_alone() {
    for open in [0o710, 0o701, 0o750, 0o777] {
        let switchd = Switchd::prepared();
        fs::create_dir(switchd.dir()).unwrap();
        fs::set_permissions(switchd.dir(), fs::Permissions::from_mode(open)).unwrap();
        let text = switchd.run(&["run"]).failed(1);
        assert_has(
            &text,
            &["open to other users", &format!("{open:04o}"), "hint: 'chmod 700"],
        );
        assert_eq!(mode(&switchd.dir()), open);
        assert!(switchd.files().is_empty());
    }
    let switchd = Switchd::prepared();
    fs::write(switchd.dir(), "").unwrap();
    assert_has(&switchd.run(&["run"]).failed(1), &["cannot make directory"]);
}

#[test]
fn a_stale_socket_is_replaced() {
    let switchd = Switchd::with_domain(&["A"]);
    let path = switchd.uml_socket("A");
    switchd.run(&["domain", "rm", "A"]).ok();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    switchd.add(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let sent = frame(BROADCAST, mac(1), 60, 1);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
}

#[test]
fn the_socket_of_a_living_uml_switch_is_refused_and_left_alone() {
    let switchd = Switchd::with_domain(&["A"]);
    let path = switchd.uml_socket("A");
    switchd.run(&["domain", "rm", "A"]).ok();
    let mut command = Command::new(tool("uml_switch"));
    let foreign = Process::start(command.arg("-unix").arg(&path).stdin(Stdio::null()));
    until_true("uml_switch listens", || UnixStream::connect(&path).is_ok());
    let text = switchd.run(&["domain", "add", "A"]).failed(1);
    assert_has(
        &text,
        &[
            "cannot listen at",
            path.to_str().unwrap(),
            "another program",
            "hint:",
        ],
    );
    // It still serves its clients.
    let (a, b) = (Client::attach(&path), Client::attach(&path));
    let sent = frame(BROADCAST, mac(1), 60, 1);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
    drop(foreign);

    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let text = switchd.run(&["domain", "add", "A"]).failed(1);
    assert_has(&text, &["cannot listen at", "no socket"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
}

#[test]
fn signals_and_stop_end_it_with_its_files_removed() {
    for ending in [
        Some(Signal::SIGINT),
        Some(Signal::SIGTERM),
        Some(Signal::SIGHUP),
        None,
    ] {
        let mut switchd = Switchd::with_domain(&["A"]);
        let clients = [(); 3].map(|()| switchd.attach("A"));
        let _old = Client::attach_v0(
            &switchd.uml_socket("A"),
            &switchd.uml_socket("A").with_extension("data"),
        );
        until_true("four ports", || switchd.ports("A").len() == 4);
        let status = match ending {
            Some(signal) => switchd.stop(signal),
            None => {
                switchd.run(&["stop"]).ok();
                switchd.wait()
            }
        };
        assert_eq!(status.code(), Some(0), "{ending:?}");
        assert!(switchd.files().is_empty(), "{ending:?}: {:?}", switchd.files());
        for client in clients {
            client.wait_for_hangup();
        }
    }
}

#[test]
fn after_kill_9_it_starts_again_over_what_is_left() {
    let mut switchd = Switchd::with_domain(&["A"]);
    let client = switchd.attach("A");
    let _old = Client::attach_v0(
        &switchd.uml_socket("A"),
        &switchd.uml_socket("A").with_extension("data"),
    );
    until_true("two ports", || switchd.ports("A").len() == 2);
    let control = switchd.uml_socket("A");
    let status = switchd.stop(Signal::SIGKILL);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(client.switch_path().exists(), "a killed daemon cannot clean up");
    // What somebody else has there stays: a uml_switch that lives, files that are no sockets.
    let (directory, name) = (switchd.dir(), control.file_name().unwrap().to_str().unwrap());
    let place = |end: &str| directory.join(name.replace("_A.cnct", end));
    let foreign = place("_B.cnct");
    let mut command = Command::new(tool("uml_switch"));
    let living = Process::start(command.arg("-unix").arg(&foreign).stdin(Stdio::null()));
    until_true("uml_switch listens", || listens(&foreign));
    fs::create_dir(place("_D.port")).unwrap();
    let precious = [place("_C.cnct"), place("_D.port").join("file"), place("_D.txt")];
    for path in &precious {
        fs::write(path, "precious").unwrap();
    }
    switchd.launch(&[]);
    assert!(switchd.stats().domains.is_empty());
    let mut left = vec![switchd.socket(), foreign.clone(), place("_D.port")];
    left.extend(precious.clone());
    left.sort();
    assert_eq!(switchd.files(), left);
    drop(living);
    for path in precious.iter().chain([&foreign]) {
        fs::remove_file(path).unwrap();
    }
    fs::remove_dir(place("_D.port")).unwrap();
    switchd.add(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let sent = frame(BROADCAST, mac(1), 60, 1);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
}

#[test]
fn a_configuration_file_makes_domains_and_options_stand_above_it() {
    let mut switchd = Switchd::prepared();
    let file = switchd.home().join("switchd.toml");
    fs::write(
        &file,
        "workers = 1\nhold_ms = 5\npoll_us = 50\n\n[[domain]]\nname = \"A\"\n\n[[domain]]\nname = \"B\"\nmode = \"switch\"\nmtu = 9000\nageing_s = 3\n",
    )
    .unwrap();
    let path = file.to_str().unwrap().to_owned();
    switchd.launch(&["--config", &path, "--workers", "3"]);
    assert_eq!(switchd.stats().daemon.workers, 3);
    assert_eq!(switchd.domain("A").mode, Mode::Hub);
    let b = switchd.domain("B");
    assert_eq!(
        (b.mode, b.mtu, b.ageing_s, b.transient),
        (Mode::Switch, 9000, 3, false)
    );
}

#[test]
fn a_configuration_file_with_a_mistake_is_refused_with_its_line() {
    let switchd = Switchd::prepared();
    let file = switchd.home().join("switchd.toml");
    for (content, parts) in [
        ("workers = 1\ncolour = \"red\"\n", &["line 2", "colour"][..]),
        ("[[domain]]\nname = \"A\"\nspeed = 10\n", &["line 3", "speed"]),
        ("[[domain]]\nname = \"a_b\"\n", &["line 2", "a_b"]),
        ("workers = \"many\"\n", &["line 1"]),
        ("workers = \n", &["line 1"]),
        ("hold_ms = 501\n", &["501"]),
        ("poll_us = 1001\n", &["1001 µs"]),
    ] {
        fs::write(&file, content).unwrap();
        let text = switchd
            .run(&["run", "--config", file.to_str().unwrap()])
            .failed(2);
        assert_has(&text, parts);
        if parts.len() > 1 {
            assert_has(&text, &[file.to_str().unwrap()]);
        }
    }
    let text = switchd.run(&["run", "--config", "/nonexistent/x"]).failed(2);
    assert_has(&text, &["cannot read /nonexistent/x", "No such file"]);
    assert!(switchd.files().is_empty());
    assert!(!switchd.dir().exists());

    // A domain that cannot be made ends it before it serves anybody.
    fs::write(
        &file,
        "[[domain]]\nname = \"A\"\n[[domain]]\nname = \"B\"\nmtu = 1\n",
    )
    .unwrap();
    let text = switchd
        .run(&["run", "--config", file.to_str().unwrap()])
        .failed(1);
    assert_has(&text, &["domain B", "68"]);
    assert!(switchd.files().is_empty(), "{:?}", switchd.files());
}

#[test]
fn a_path_too_long_for_a_socket_is_a_clear_error() {
    // Long enough for its own socket, too long for a domain's; then too long for both.
    let switchd = Switchd::prepared();
    let base = switchd.home().to_str().unwrap().len() + 1;
    let directory = switchd.home().join("d".repeat(85 - base));
    let arguments = |directory: &Path, words: &[&str]| {
        let mut command = Command::new(tests::program::binary("switchd"));
        command.arg("--dir").arg(directory).args(words);
        command
    };
    let mut command = arguments(&directory, &["run"]);
    let mut daemon = Process::start(command.stdin(Stdio::null()));
    until_true("it answers", || {
        UnixStream::connect(directory.join("switchd.sock")).is_ok()
    });
    let text = run(&mut arguments(&directory, &["domain", "add", "A"])).failed(1);
    assert_has(&text, &["domain A", directory.to_str().unwrap(), "107", "hint:"]);
    run(&mut arguments(&directory, &["stop"])).ok();
    assert!(daemon.wait().success());
    assert_eq!(files_below(&directory), [directory.join("switchd.lock")]);

    let directory = switchd.home().join("d".repeat(110 - base));
    let text = run(&mut arguments(&directory, &["run"])).failed(1);
    assert_has(&text, &["cannot listen at", "switchd.sock", "hint:"]);
    let text = run(&mut arguments(&directory, &["domain", "ls"])).failed(1);
    assert_has(&text, &["no switchd answers"]);
}

#[test]
fn the_directory_comes_from_the_option_the_environment_or_home() {
    let switchd = Switchd::prepared();
    let mut command = Command::new(tests::program::binary("switchd"));
    command.env_remove("HOME").env_remove("NETKIT_HUBS");
    let text = run(command.args(["domain", "ls"])).failed(2);
    assert_has(&text, &["HOME is not set", "hint: give --dir"]);
    // The environment's directory is that of --dir.
    let mut command = Command::new(tests::program::binary("switchd"));
    command.env("NETKIT_HUBS", switchd.dir());
    let text = run(command.args(["domain", "ls"])).failed(1);
    assert_has(&text, &[switchd.dir().to_str().unwrap()]);
}

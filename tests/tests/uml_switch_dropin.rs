//! Under the name `uml_switch`, ours does what Debian's does; where it differs, it does so on purpose.
//!
//! The tests of the first half run the same body against both programs.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use proto::uml::{self, Kind, Version};
use tempfile::TempDir;
use tests::client::{Client, ask, data_socket};
use tests::frame::{BROADCAST, frame, mac, tagged};
use tests::program::{Process, binary, in_namespaces, mentioning, run, tool};
use tests::wait::{until, until_true};

/// One of the two programs, and a directory for its sockets.
struct Subject {
    program: PathBuf,
    dir: TempDir,
    ours: bool,
}

impl Subject {
    fn debian() -> Self {
        Self {
            program: tool("uml_switch"),
            dir: tempfile::tempdir().expect("a temporary directory"),
            ours: false,
        }
    }

    /// Ours, under the name of the other.
    fn ours() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("uml_switch");
        std::os::unix::fs::symlink(binary("switchd"), &program).expect("a link");
        Self {
            program,
            dir,
            ours: true,
        }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("ctl")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Options for clients of version 0. The original replies with the path of the data socket as it is given here.
    fn compat(&self) -> [String; 4] {
        let text = |path: PathBuf| path.to_str().expect("a path in ASCII").to_owned();
        [
            "-compat-v0".to_owned(),
            "-unix".to_owned(),
            text(self.control()),
            text(self.data()),
        ]
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts it and waits until it listens.
    fn start(&self, arguments: &[&str]) -> Process {
        let process = Process::start_as_is(&mut self.command(arguments));
        self.wait_for_listener();
        process
    }

    fn wait_for_listener(&self) {
        until_true("it listens", || UnixStream::connect(self.control()).is_ok());
    }

    /// Attaches. The original, having just found a connection closed that only looked whether it listens, may close
    /// another one in its place: there it may take a second try.
    fn attach(&self) -> Client {
        if self.ours {
            return Client::attach(&self.control());
        }
        until("it takes a client", || {
            Client::try_attach(&self.control(), Version::V3, None).ok()
        })
    }
}

fn both(body: impl Fn(&Subject)) {
    for subject in [Subject::debian(), Subject::ours()] {
        eprintln!("against {}", subject.program.display());
        body(&subject);
    }
}

/// A frame reaches the other port.
#[track_caller]
fn assert_passes(a: &Client, b: &Client, seed: u32) {
    let sent = frame(BROADCAST, mac(1), 60, seed);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
}

#[test]
fn it_is_a_switch_unless_it_is_told_to_be_a_hub() {
    both(|subject| {
        for hub in [false, true] {
            let words = if hub {
                &["-hub", "-unix", "ctl"][..]
            } else {
                &["-unix", "ctl"]
            };
            let mut process = subject.start(words);
            let [a, b, c] = [(); 3].map(|()| subject.attach());
            // Station 2 makes itself known.
            b.send(&frame(BROADCAST, mac(2), 60, 1));
            a.recv();
            c.recv();
            let direct = frame(mac(2), mac(1), 60, 2);
            a.send(&direct);
            assert_eq!(b.recv(), direct);
            let marker = frame(BROADCAST, mac(1), 60, 3);
            a.send(&marker);
            assert_eq!(b.recv(), marker);
            let seen = c.recv_until(&marker);
            assert_eq!(seen.len(), usize::from(hub), "hub: {hub}");
            process.signal(Signal::SIGINT);
            process.wait();
        }
    });
}

#[test]
fn versions_1_and_3_are_served_and_version_2_is_closed() {
    both(|subject| {
        let _process = subject.start(&["-unix", "ctl"]);
        let attach = |version| Client::try_attach(&subject.control(), version, None).expect("a port");
        let (a, b) = (attach(Version::V1), attach(Version::V3));
        assert_passes(&a, &b, 1);
        assert_passes(&b, &a, 2);
        let (_socket, address) = data_socket().expect("a socket");
        let mut bytes = uml::request(Version::V3, Kind::Port { number: None }, address);
        bytes[4] = 2;
        let stream = UnixStream::connect(subject.control()).expect("a listener");
        let error = ask(&stream, &bytes).expect_err("a reply");
        assert!(matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        ));
        assert_passes(&a, &b, 3);
    });
}

#[test]
fn clients_of_every_version_meet_with_compat_v0() {
    both(|subject| {
        let mut process = subject.start(&subject.compat().each_ref().map(String::as_str));
        until_true("the data socket is there", || {
            fs::metadata(subject.data()).is_ok_and(|data| data.file_type().is_socket())
        });
        let modern = subject.attach();
        let middle = Client::try_attach(&subject.control(), Version::V1, None).expect("a port");
        let old = Client::attach_v0(&subject.control(), &subject.data()).expect("a listener");
        // Version 0 is not answered: only a frame tells that it is served.
        let mut n = 0;
        until_true("frames reach the old one", || {
            n += 1;
            modern.send(&frame(BROADCAST, mac(1), 60, n));
            middle.recv();
            old.recv_within(Duration::from_millis(20)).is_some()
        });
        while old.recv_within(Duration::from_millis(20)).is_some() {}
        let clients = [&modern, &middle, &old];
        for (n, sender) in (0..).zip(clients) {
            let sent = frame(BROADCAST, mac(n), 1514, 100);
            sender.send(&sent);
            for receiver in clients
                .iter()
                .filter(|client| client.address() != sender.address())
            {
                assert_eq!(receiver.recv(), sent, "from {n}");
            }
        }
        process.signal(Signal::SIGINT);
        process.wait();
        assert!(!subject.data().exists() && !subject.control().exists());
    });
}

#[test]
fn the_default_paths_are_those_of_the_original() {
    both(|subject| {
        let subcommand = if subject.ours { "uml_switch" } else { "" };
        let script = format!(
            // The program is opened first: it may stand below the /tmp that is covered.
            "exec 9<\"$0\" && mount -t tmpfs none /mnt && mount --bind /mnt /tmp && cd / \
             && exec /proc/self/fd/9 {subcommand} -compat-v0"
        );
        let program = fs::canonicalize(&subject.program).expect("a program");
        let mut command = Command::new(tool("unshare"));
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = Process::start_as_is(&mut command);
        let root = PathBuf::from(format!("/proc/{}/root/tmp", process.pid()));
        until_true("it listens", || UnixStream::connect(root.join("uml.ctl")).is_ok());
        until_true("it has its data socket", || root.join("uml.data").exists());
    });
}

#[test]
fn in_the_background_it_serves_from_the_moment_the_caller_goes_on() {
    both(|subject| {
        let path = subject.control();
        let words = ["-unix", path.to_str().expect("a path in ASCII"), "-daemon"];
        for round in 0..5 {
            let outcome = Process::start_as_is(&mut subject.command(&words)).wait();
            assert_eq!(outcome.code(), Some(0));
            // At once: no guest may lose its interface because it was too quick.
            let (a, b) = (subject.attach(), subject.attach());
            assert_passes(&a, &b, round);
            let running = mentioning(&path);
            let [pid] = running[..] else {
                panic!("{running:?} run");
            };
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).expect("a process");
            assert_eq!(cwd, Path::new("/"));
            kill(pid, Signal::SIGINT).expect("a process");
            until_true("it has ended", || mentioning(&path).is_empty());
            assert!(!path.exists());
        }
    });
}

#[test]
fn the_end_of_a_pipe_means_nothing() {
    both(|subject| {
        let mut command = subject.command(&["-unix", "ctl"]);
        let mut process = Process::start_as_is(command.stdin(Stdio::piped()));
        subject.wait_for_listener();
        drop(process.child().stdin.take());
        let (a, b) = (subject.attach(), subject.attach());
        for n in 0..20 {
            assert_passes(&a, &b, n);
        }
        assert!(process.is_running());
    });
}

#[test]
fn the_end_of_input_on_a_terminal_ends_it() {
    both(|subject| {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let mut command = subject.command(&subject.compat().each_ref().map(String::as_str));
        let terminal = pty.slave.try_clone().expect("a descriptor");
        let mut process = Process::start_as_is(command.stdin(pty.slave));
        subject.wait_for_listener();
        let (a, b) = (subject.attach(), subject.attach());
        let mut master = fs::File::from(pty.master);
        // Something else is typed: no reason to end.
        master.write_all(b"hello\n").expect("a terminal");
        until_true("it is read", || {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).expect("a terminal") == 0
        });
        assert_passes(&subject.attach(), &b, 1);
        assert_passes(&a, &b, 2);
        assert!(process.is_running());
        // More of it, and the end right behind.
        master.write_all(b"world\n").expect("a terminal");
        master.write_all(b"\x04").expect("a terminal");
        assert_eq!(process.wait().code(), Some(0));
        assert!(!subject.control().exists() && !subject.data().exists());
    });
}

#[test]
fn an_interrupt_removes_the_sockets_and_shows_termination_leaves_them() {
    use std::os::unix::process::ExitStatusExt;
    both(|subject| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut process = subject.start(&["-hub", "-unix", "ctl"]);
            let clients = [subject.attach(), subject.attach()];
            assert_passes(&clients[0], &clients[1], 1);
            process.signal(signal);
            assert_eq!(process.wait().signal(), Some(signal as i32));
            assert_eq!(subject.control().exists(), signal == Signal::SIGTERM);
            for client in &clients {
                client.wait_for_hangup();
            }
        }
        // What SIGTERM left is stale: the next one takes its place.
        let _process = subject.start(&["-hub", "-unix", "ctl"]);
        assert_passes(&subject.attach(), &subject.attach(), 2);
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    both(|subject| {
        drop(UnixListener::bind(subject.control()).expect("a socket"));
        let _process = subject.start(&["-unix", "ctl"]);
        let (a, b) = (subject.attach(), subject.attach());
        assert_passes(&a, &b, 1);
        let outcome = run(subject.command(&["-unix", "ctl"]).stderr(Stdio::piped()));
        assert_eq!(outcome.code(), Some(1));
        assert!(outcome.stderr.contains("ctl"), "{outcome:?}");
        assert_passes(&a, &b, 2);
    });
}

#[test]
fn an_unknown_option_is_an_error() {
    both(|subject| {
        for words in [&["-bogus"][..], &["-unix"], &["-unix", "a", "b"], &["-tap"]] {
            let outcome = run(subject.command(words).stderr(Stdio::piped()));
            assert_eq!(outcome.code(), Some(1), "{words:?}");
            let all = [outcome.stdout, outcome.stderr].concat();
            assert!(all.contains("Usage"), "{words:?}: {all}");
        }
    });
}

/// An ARP request of station 1 for `10.9.9.1`.
fn who_has() -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac(1)].concat();
    frame.extend([10, 9, 9, 2, 0, 0, 0, 0, 0, 0, 10, 9, 9, 1]);
    frame.resize(60, 0);
    frame
}

fn ip(words: &str) -> String {
    run(Command::new(tool("ip")).args(words.split(' '))).ok()
}

#[test]
fn a_tap_device_is_a_port() {
    let options = ["--user", "--map-root-user", "--net"];
    in_namespaces("a_tap_device_is_a_port", &options, || {
        ip("tuntap add dev tap9 mode tap");
        ip("address add 10.9.9.1/24 dev tap9");
        ip("link set tap9 up");
        both(|subject| {
            let mut process = subject.start(&["-unix", "ctl", "-tap", "tap9"]);
            let client = subject.attach();
            // The kernel behind the tap answers once the link is up; what else it says on it does not matter.
            let answer = until("an answer to the ARP request", || {
                client.send(&who_has());
                let frame = client.recv_within(Duration::from_secs(1))?;
                (frame[12..14] == [8, 6] && frame[20..22] == [0, 2]).then_some(frame)
            });
            assert_eq!(answer[..6], mac(1));
            assert_eq!(answer[28..32], [10, 9, 9, 1]);
            if subject.ours {
                // The original spins when the device is deleted. Ours goes on without it.
                ip("link delete tap9");
                let other = subject.attach();
                client.send(&frame(BROADCAST, mac(1), 60, 7));
                other.recv_until(&frame(BROADCAST, mac(1), 60, 7));
                assert!(process.is_running());
            }
        });
    });
}

#[test]
fn a_tap_device_that_is_not_there_is_an_error() {
    let subject = Subject::ours();
    let mut command = Command::new(tool("unshare"));
    command
        .args(["--user", "--net"])
        .arg(&subject.program)
        .args(["-unix", "ctl", "-tap", "tap9"])
        .current_dir(subject.dir.path());
    let text = run(&mut command).failed(1);
    assert!(text.contains("cannot attach tap device tap9"), "{text}");
    assert!(!subject.control().exists());
}

// Where ours differs.

#[test]
fn tagged_frames_are_whole() {
    let subject = Subject::ours();
    let _process = subject.start(&["-unix", "ctl"]);
    let (a, b) = (subject.attach(), subject.attach());
    let sent = tagged(mac(2), mac(1), &[(0x8100, 5)], 1518, 1);
    a.send(&sent);
    assert_eq!(b.recv(), sent);
}

#[test]
fn strangers_send_nothing_into_it() {
    let subject = Subject::ours();
    let _process = subject.start(&["-hub", "-unix", "ctl"]);
    let (a, b) = (subject.attach(), subject.attach());
    let (stranger, _) = data_socket().expect("a socket");
    let error = stranger.send_to_addr(&frame(BROADCAST, mac(6), 60, 6), a.switch());
    assert_eq!(error.expect_err("taken").kind(), ErrorKind::PermissionDenied);
    assert_passes(&a, &b, 1);
}

#[test]
fn requests_above_version_3_are_closed_and_bytes_after_a_request_are_tolerated() {
    let subject = Subject::ours();
    let _process = subject.start(&["-unix", "ctl"]);
    let (_socket, address) = data_socket().expect("a socket");
    let mut bytes = uml::request(Version::V3, Kind::Port { number: None }, address);
    bytes[4] = 4;
    let mut stream = UnixStream::connect(subject.control()).expect("a listener");
    assert!(ask(&stream, &bytes).is_err());
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    let (a, b) = (subject.attach(), subject.attach());
    a.control().write_all(b"hello").expect("a connection");
    assert_passes(&a, &b, 1);
}

#[test]
fn it_is_a_subcommand_too() {
    let subject = Subject::ours();
    let mut command = Command::new(binary("switchd"));
    command
        .args(["uml_switch", "-hub", "-unix"])
        .arg(subject.control())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut process = Process::start_as_is(&mut command);
    subject.wait_for_listener();
    assert_passes(&subject.attach(), &subject.attach(), 1);
    process.signal(Signal::SIGINT);
    process.wait();
    assert!(!subject.control().exists());
}

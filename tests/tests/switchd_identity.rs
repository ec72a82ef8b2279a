//! A process of another user can neither attach to a domain, nor send into it, nor capture it, nor command the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::geteuid;
use tests::client::{Client, data_socket};
use tests::frame::{BROADCAST, frame, mac};
use tests::program::{Outcome, binary, in_namespaces, run};
use tests::switchd::{Switchd, files_below};
use tests::wait::until_true;

/// `nobody` on Debian; any number but our own would do.
const STRANGER: u32 = 65534;

/// Runs a test body as root, who may become another user: as it is if we are root, else in a user namespace (which takes
/// the package uidmap and a line for the user in /etc/subuid).
fn as_root(test: &str, body: impl FnOnce()) {
    if geteuid().is_root() {
        return body();
    }
    in_namespaces(test, &["--user", "--map-root-user", "--map-auto"], body);
}

/// A place where a stranger finds programs to run.
struct Stranger {
    peer: PathBuf,
    switchd: PathBuf,
}

impl Stranger {
    fn new(switchd: &Switchd) -> Self {
        let copy = |from: &Path| {
            let name = from.file_name().expect("a file");
            let to = switchd.home().join(name);
            fs::copy(from, &to).expect("room for a copy");
            open(&to);
            to
        };
        open(switchd.home());
        Self {
            peer: copy(Path::new(env!("CARGO_BIN_EXE_peer"))),
            switchd: copy(&binary("switchd")),
        }
    }

    fn run(program: &Path, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .uid(STRANGER)
            .gid(STRANGER)
            .current_dir("/");
        run(&mut command)
    }

    /// Runs `peer`; it must fail with this error of the system.
    #[track_caller]
    fn fails(&self, arguments: &[&str], errors: &[i32]) {
        let outcome = Self::run(&self.peer, arguments);
        assert_eq!(outcome.code(), Some(1), "{arguments:?}: {outcome:#?}");
        let expected = errors
            .iter()
            .any(|error| outcome.stdout.starts_with(&format!("error {error}:")));
        assert!(expected, "{arguments:?}: {outcome:#?}");
    }

    #[track_caller]
    fn command_fails(&self, switchd: &Switchd, arguments: &[&str]) {
        let dir = switchd.dir();
        let mut words = vec!["--dir", dir.to_str().expect("a path in ASCII")];
        words.extend(arguments);
        let text = Self::run(&self.switchd, &words).failed(1);
        assert!(text.contains("switchd"), "{text}");
    }
}

/// Lets everybody in.
fn open(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("our own file");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in ASCII")
}

#[test]
fn another_user_is_kept_out_even_of_a_directory_that_was_opened() {
    as_root(
        "another_user_is_kept_out_even_of_a_directory_that_was_opened",
        || {
            let switchd = Switchd::with_domain(&["A"]);
            let control = switchd.uml_socket("A");
            let shared = control.with_extension("data");
            let (a, b) = (switchd.attach("A"), switchd.attach("A"));
            let old = Client::attach_v0(&control, &shared).expect("a domain");
            until_true("three ports", || switchd.ports("A").len() == 3);
            let socket = switchd.socket();
            let data = a.switch_path();
            let stranger = Stranger::new(&switchd);

            // The directory keeps the stranger out.
            let denied = [Errno::EACCES as i32];
            stranger.fails(&["attach", path(&control)], &denied);
            stranger.fails(&["send", path(&data)], &denied);
            stranger.fails(&["ask", path(&socket), r#"{"op":"shutdown"}"#], &denied);
            stranger.command_fails(&switchd, &["capture", "A", "-w", "/dev/null"]);
            assert!(
                switchd.stats().daemon.refused.is_empty(),
                "it came as far as the daemon"
            );

            // Somebody opens everything. Now it is the daemon that looks.
            open(&switchd.dir());
            for file in files_below(&switchd.dir()) {
                open(&file);
            }
            // Hung up on: end of the connection, or its reset.
            let hung_up = [0, Errno::ECONNRESET as i32, Errno::EPIPE as i32];
            stranger.fails(&["attach", path(&control)], &hung_up);
            assert_eq!(switchd.refused("foreign-user"), 1);
            for line in [
                r#"{"op":"hello"}"#,
                r#"{"op":"shutdown"}"#,
                r#"{"op":"domain-rm","domain":"A"}"#,
                r#"{"op":"domain-add","domain":"X"}"#,
            ] {
                stranger.fails(&["ask", path(&socket), line], &hung_up);
            }
            stranger.command_fails(&switchd, &["capture", "A", "-w", "/dev/null"]);
            stranger.command_fails(&switchd, &["stop"]);
            assert_eq!(switchd.refused("foreign-user"), 7);
            stranger.fails(&["send", path(&data)], &[Errno::EPERM as i32]);
            // The shared socket of version 0 clients takes anybody's datagrams and drops a stranger's.
            Stranger::run(&stranger.peer, &["send", path(&shared)]).ok();

            let marker = frame(BROADCAST, mac(1), 60, 1);
            old.send(&marker);
            assert_eq!(a.recv(), marker);
            assert_eq!(b.recv(), marker);
            let stats = switchd.stats();
            assert_eq!(stats.domains.len(), 1);
            assert_eq!((stats.domains[0].ports, stats.domains[0].captures), (3, 0));
            assert_eq!(stats.domains[0].rx_frames, 1);
        },
    );
}

#[test]
fn not_even_a_process_of_the_same_user_sends_into_another_ones_port() {
    let switchd = Switchd::with_domain(&["A"]);
    let (a, b) = (switchd.attach("A"), switchd.attach("A"));
    let (stranger, _) = data_socket().expect("a socket");
    let sent = stranger.send_to(&frame(BROADCAST, mac(6), 60, 6), a.switch_path());
    assert_eq!(sent.expect_err("taken").raw_os_error(), Some(Errno::EPERM as i32));
    let unnamed = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    let sent = unnamed.send_to(&frame(BROADCAST, mac(6), 60, 6), a.switch_path());
    assert_eq!(sent.expect_err("taken").raw_os_error(), Some(Errno::EPERM as i32));
    // Nor another port of the same domain.
    let sent = b
        .data()
        .send_to(&frame(BROADCAST, mac(2), 60, 6), a.switch_path());
    assert_eq!(sent.expect_err("taken").raw_os_error(), Some(Errno::EPERM as i32));
    let marker = frame(BROADCAST, mac(1), 60, 7);
    a.send(&marker);
    assert_eq!(b.recv(), marker);
    assert_eq!(switchd.domain("A").rx_frames, 1);
}

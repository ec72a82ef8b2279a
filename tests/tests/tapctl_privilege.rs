//! Who may do what: root, users through sudo, users with file capabilities, users with nothing.

use std::process::Command;

use tests::netns::{Net, uid};
use tests::program::{Outcome, binary, run, tool};

/// A command run by a user without any right.
fn as_user(host: &Net, user: &str, program: &str, line: &str) -> Command {
    let id = uid(user).to_string();
    let mut command = host.command(tool("setpriv"));
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", program]);
    command.args(line.split_whitespace());
    command
}

#[test]
fn a_user_acts_on_his_own_taps_only() {
    let host = Net::new();
    host.tap_for("alice", "up --addr 10.0.1.1").ok();
    let before = host.state();
    let refused = |outcome: Outcome, why: &str| {
        let text = outcome.failed(1);
        assert!(text.starts_with("tapctl: ") && text.contains(why), "{text}");
    };
    refused(
        host.tap_for("bob", "up --user alice --addr 10.0.2.1"),
        "only root may act for another user",
    );
    refused(
        host.tap_for("bob", "down --user alice"),
        "only root may act for another user",
    );
    refused(
        host.tap_for("bob", "down --dev nk_tap_alice"),
        "nk_tap_alice is not a tap of bob",
    );
    refused(
        host.tap_for("bob", "route 10.0.9.9 --dev nk_tap_alice"),
        "nk_tap_alice is not a tap of bob",
    );
    refused(
        host.tap_for("bob", "attach nk_tap_alice:10.0.5.1"),
        "nk_tap_alice is not a tap of bob",
    );
    refused(
        host.tap_for("bob", "attach eth7:10.0.5.1"),
        "only root may make a tap whose name",
    );
    refused(
        host.tap_for("bob", "attach auto:br0 --create-bridge"),
        "only root may put a tap into a bridge",
    );
    refused(host.tap_for("bob", "up --addr 9.9.9.1"), "not a private network");
    refused(
        host.tap_for("bob", "up --addr 10.0.1.9"),
        "overlaps 10.0.1.1/24 on nk_tap_alice",
    );
    refused(
        host.tap_for("bob", "up --addr 10.0.1.9/8"),
        "overlaps 10.0.1.1/24 on nk_tap_alice",
    );
    host.tap_for("bob", "down --all").ok();
    assert_eq!(host.tap_for("bob", "ls --json").ok(), "[]\n");
    let mut tunctl = host.tapctl("tunctl -d nk_tap_alice");
    assert_eq!(
        run(tunctl.env("SUDO_UID", uid("bob").to_string())).failed(1),
        "TUNSETIFF: Operation not permitted\n"
    );
    tests::netns::assert_same(&before, &host.state(), "after what bob tried");
    // Root may, and root is who has no SUDO_UID.
    host.tap("down --user alice").ok();
}

#[test]
fn wrong_input_is_exit_2_and_changes_nothing() {
    let host = Net::new();
    let before = host.state();
    for line in [
        "up",
        "up --addr 10.0.0",
        "up --addr 10.0.0.0/24",
        "up --addr 10.0.0.1/33",
        "up --addr 10.0.0.1 --addr6 fe80::1",
        "up --addr 10.0.0.1 --domain a_b",
        "up --addr 10.0.0.1 --domain ../x",
        "up --addr 10.0.0.1 --user nosuchuser",
        "up --addr 10.0.0.1 --firewall pf",
        "down --dev a/b",
        "down --dev tap+",
        "down --all --domain x",
        "attach",
        "attach tap0:10.0.0",
        "attach tap0 --create-bridge",
        "route 10.0.0 --dev tap0",
        "fly",
    ] {
        let outcome = host.tap(line);
        assert_eq!(outcome.code(), Some(2), "{line}: {outcome:#?}");
        assert!(
            !outcome.stderr.is_empty() && outcome.stdout.is_empty(),
            "{line}: {outcome:#?}"
        );
    }
    tests::netns::assert_same(&before, &host.state(), "after wrong input");
    let mut forged = host.tapctl("up --addr 10.0.0.1");
    assert!(run(forged.env("SUDO_UID", "0x0")).failed(1).contains("SUDO_UID"));
}

/// Puts a copy of tapctl where users can run it. Another process copies: a file this one has open for writing would
/// be inherited by the children of other tests, and then it cannot be executed.
fn copy_for_users(host: &Net) {
    let tapctl = binary("tapctl");
    host.script(&format!(
        "cp '{}' /run/tapctl && chmod 755 /run /run/tapctl",
        tapctl.display()
    ));
}

#[test]
fn without_any_right_nothing_is_done() {
    let host = Net::new();
    host.tap("up --user bob --addr 10.0.2.1").ok();
    copy_for_users(&host);
    for line in ["up --addr 10.0.1.1", "down --all", "ls"] {
        let text = run(&mut as_user(&host, "alice", "/run/tapctl", line)).failed(1);
        assert!(
            text.contains("Permission denied") && text.contains("hint: run it with sudo"),
            "{text}"
        );
    }
    // Nor does it help to claim to be somebody.
    let text = run(as_user(&host, "alice", "/run/tapctl", "down --user bob").env("SUDO_UID", "0")).failed(1);
    assert!(text.contains("only root may"), "{text}");
}

#[test]
fn file_capabilities_are_enough() {
    let host = Net::new();
    copy_for_users(&host);
    host.script("setcap cap_net_admin,cap_net_raw,cap_dac_override=ep /run/tapctl");
    let before = host.state();
    let up = |line: &str| run(&mut as_user(&host, "alice", "/run/tapctl", line));
    // What a user makes would be the user's: the directory has to be root's before.
    assert!(
        up("up --addr 10.0.1.1")
            .failed(1)
            .contains("does not belong to root alone")
    );
    host.script(
        "rm -rf /var/lib/hubbub; install -d -m 755 /var/lib/hubbub; install -d -m 700 /var/lib/hubbub/tapctl",
    );
    for backend in ["nft", "iptables"] {
        up(&format!(
            "up --addr 10.0.1.1 --addr6 fd00::1 --firewall {backend}"
        ))
        .ok();
        assert!(
            host.ok("ip -d -j link show nk_tap_alice")
                .contains("\"user\":\"alice\"")
        );
        assert!(
            up("up --user bob --addr 10.0.2.1")
                .failed(1)
                .contains("only root may")
        );
        up("down").ok();
        tests::netns::assert_same(
            &before,
            &host.state(),
            &format!("after down with capabilities, {backend}"),
        );
    }
}

#[test]
fn sudo_lets_a_group_in() {
    let host = Net::new();
    copy_for_users(&host);
    // A sudo of the test's own: the machine's configuration is covered for this namespace alone.
    host.script(
        "chmod 755 /run /run/tapctl; \
         mkdir /run/sudoers; \
         printf 'Defaults !use_pty, !syslog\\nalice ALL=(root) NOPASSWD: /run/tapctl\\n' >/run/sudoers/sudoers; \
         chmod 440 /run/sudoers/sudoers; mount --bind /run/sudoers/sudoers /etc/sudoers; \
         install -d -m 755 /var/lib/sudo",
    );
    let sudo = |user: &str, line: &str| {
        run(&mut as_user(
            &host,
            user,
            "/usr/bin/sudo",
            &format!("-n -- /run/tapctl {line}"),
        ))
    };
    sudo("alice", "up --addr 10.0.1.1").ok();
    assert!(
        host.ok("ip -d -j link show nk_tap_alice")
            .contains("\"user\":\"alice\"")
    );
    assert!(
        sudo("alice", "up --user bob --addr 10.0.2.1")
            .failed(1)
            .contains("only root may")
    );
    assert_ne!(sudo("bob", "down --all").code(), Some(0));
    sudo("alice", "down").ok();
    assert_eq!(host.tap("ls --json").ok(), "[]\n");
}

#[test]
fn what_is_not_needed_is_given_up() {
    let host = Net::new();
    // Another tapctl waits for the lock with everything already dropped: a process to look at.
    let lock = format!("/proc/{}/root/var/lib/hubbub/tapctl/lock", host.pid());
    host.tap("down --all").ok();
    let file = std::fs::File::options()
        .write(true)
        .open(&lock)
        .expect("the lock");
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("the lock");
    let waiting = tests::program::Process::start(&mut host.tapctl("down --all"));
    // CAP_NET_ADMIN is 12, CAP_NET_RAW 13.
    let wanted = "0000000000003000";
    let pid = waiting.pid();
    tests::wait::until_true("all but two capabilities are gone", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        ["CapPrm:", "CapEff:", "CapBnd:"]
            .iter()
            .all(|set| value(set) == wanted)
            && value("NoNewPrivs:") == "1"
            && value("CapInh:") == "0000000000000000"
    });
    drop(held);
    assert_eq!(waiting.outcome().code(), Some(0));
}

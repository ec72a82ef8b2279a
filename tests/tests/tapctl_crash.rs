//! tapctl killed at any moment leaves a host that `down` brings back to what it was.
//!
//! The program is killed for real (`SIGKILL`) at the nth of the places where something has just been written or done;
//! n goes up until a run comes through. See `crash_point` in tapctl: only debug builds have such places.

use nix::sys::signal::Signal;
use tests::netns::{Net, assert_same, uid};
use tests::program::{Outcome, run};

fn killed_at(host: &Net, n: u32, user: &str, line: &str) -> Outcome {
    let mut command = host.tapctl(line);
    command
        .env("SUDO_UID", uid(user).to_string())
        .env("TAPCTL_TEST_CRASH_AT", n.to_string());
    run(&mut command)
}

/// Runs `attempt` with 1, 2, 3... until it is no longer killed; tells how often it was.
fn at_every_step(mut attempt: impl FnMut(u32) -> Outcome, mut check: impl FnMut(u32, bool)) -> u32 {
    for n in 1..1000 {
        let outcome = attempt(n);
        let killed = outcome.signal() == Some(Signal::SIGKILL as i32);
        assert!(killed || outcome.code() == Some(0), "{outcome:#?}");
        check(n, killed);
        if !killed {
            return n - 1;
        }
    }
    panic!("it never came through");
}

fn furnished(backend: &str) -> Net {
    let host = Net::new();
    host.script(
        "iptables -A INPUT -p tcp --dport 22 -j ACCEPT; nft add table inet site; \
         nft add chain inet site guard '{ type filter hook forward priority 5; policy accept; }'; \
         ip link add up0 type veth peer name up1; ip addr add 192.0.2.9/24 dev up0; ip link set up0 up; \
         echo 1 >/proc/sys/net/ipv4/conf/up0/forwarding",
    );
    // Bob's tap is there all the time and needs what alice's needs.
    host.tap_for("bob", &format!("up --addr 10.0.9.1 --firewall {backend}"))
        .ok();
    host
}

fn up_is_killed(backend: &str, host: &Net) {
    let up = format!("up --addr 10.0.0.1 --addr6 fd00::1 --firewall {backend}");
    let before = host.state();
    let kills = at_every_step(
        |n| killed_at(host, n, "alice", &up),
        |n, _| {
            host.tap_for("alice", "down").ok();
            assert_same(
                &before,
                &host.state(),
                &format!("after up was killed at {n} and undone, {backend}"),
            );
        },
    );
    assert!(kills > 20, "only {kills} places to be killed at");
}

fn down_is_killed(backend: &str, host: &Net) {
    let up = format!("up --addr 10.0.0.1 --addr6 fd00::1 --firewall {backend}");
    let before = host.state();
    let kills = at_every_step(
        |n| {
            host.tap_for("alice", &up).ok();
            killed_at(host, n, "alice", "down")
        },
        |n, _| {
            host.tap_for("alice", "down").ok();
            assert_same(
                &before,
                &host.state(),
                &format!("after down was killed at {n} and repeated, {backend}"),
            );
        },
    );
    assert!(kills > 20, "only {kills} places to be killed at");
}

#[test]
fn up_killed_at_every_step_is_undone_under_nft() {
    up_is_killed("nft", &Net::new());
    up_is_killed("nft", &furnished("nft"));
}

#[test]
fn up_killed_at_every_step_is_undone_under_iptables() {
    up_is_killed("iptables", &Net::new());
    up_is_killed("iptables", &furnished("iptables"));
}

#[test]
fn down_killed_at_every_step_comes_to_the_same_under_nft() {
    down_is_killed("nft", &Net::new());
    down_is_killed("nft", &furnished("nft"));
}

#[test]
fn down_killed_at_every_step_comes_to_the_same_under_iptables() {
    down_is_killed("iptables", &Net::new());
    down_is_killed("iptables", &furnished("iptables"));
}

#[test]
fn up_after_a_killed_up_comes_to_what_one_up_comes_to() {
    let host = Net::new();
    let up = "up --addr 10.0.0.1 --firewall nft";
    // Interface numbers go up with every device, so only what is said of the tap is compared.
    let rules = |host: &Net| {
        (
            host.ok("nft list ruleset"),
            host.ok("ip -br addr show nk_tap_alice"),
        )
    };
    host.tap_for("alice", up).ok();
    let wanted = rules(&host);
    host.tap_for("alice", "down").ok();
    at_every_step(
        |n| killed_at(&host, n, "alice", up),
        |n, killed| {
            if killed && n % 3 == 0 {
                host.tap_for("alice", up).ok();
                assert_eq!(rules(&host), wanted, "killed at {n}");
            }
            host.tap_for("alice", "down").ok();
        },
    );
}

#[test]
fn a_failed_step_undoes_the_finished_ones() {
    let host = Net::new();
    let before = host.state();
    // From here on no switch of the kernel can be turned.
    host.script("mount --bind -o ro /proc/sys/net /proc/sys/net; mount -o remount,bind,ro /proc/sys/net");
    let refused = host
        .tap_for("alice", "up --addr 10.0.0.1 --firewall nft")
        .failed(1);
    assert!(
        refused.contains("cannot set net/ipv4/conf/nk_tap_alice/rp_filter to 1"),
        "{refused}"
    );
    assert_same(&before, &host.state(), "after a failed up");
    assert_eq!(host.journal()["taps"], serde_json::json!([]));
}

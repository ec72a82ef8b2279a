//! What tapctl takes over from uml_net, tunctl and vkernel: routes and proxy ARP, taps by hand, `-I`.

use tests::netns::{Guest, Net, PAGE, World, assert_same, fetch, serve};
use tests::program::{Outcome, run};

fn tunctl(host: &Net, line: &str) -> Outcome {
    run(host.tapctl("tunctl").args(line.split_whitespace()))
}

#[test]
fn tunctl_says_what_tunctl_says() {
    let host = Net::new();
    let before = host.state();
    // The same lines to the tool of uml-utilities, in a network of its own.
    let other = Net::new();
    for line in [
        "",
        "-b",
        "-u alice",
        "-u 61002 -t foo0",
        "-u bob -g 60 -t foo1",
        "-b -t foo2",
        "-d tap0",
        "-d foo1",
    ] {
        let theirs = other.run(&format!("tunctl {line}"));
        let ours = tunctl(&host, line);
        assert_eq!(
            (ours.code(), &ours.stdout),
            (theirs.code(), &theirs.stdout),
            "tunctl {line}"
        );
    }
    assert!(host.ok("ip -d -j link show tap2").contains("\"user\":\"alice\""));
    for (line, why) in [
        ("-x", "invalid option"),
        ("-t", "requires an argument"),
        (
            "-u nosuchuser",
            "'nosuchuser' is neither a username nor a numeric uid.\n",
        ),
        (
            "-g nosuchgroup",
            "'nosuchgroup' is neither a groupname nor a numeric group.\n",
        ),
    ] {
        let theirs = other.run(&format!("tunctl {line}")).failed(1);
        let ours = tunctl(&host, line).failed(1);
        assert!(ours.contains(why) && theirs.contains(why), "{line}: {ours}");
    }
    assert_eq!(
        tunctl(&host, "-t lo").failed(1),
        other.run("tunctl -t lo").failed(1)
    );
    assert!(
        tunctl(&host, "-t abcdefghijklmnopqrs")
            .failed(1)
            .contains("longer than 15 bytes")
    );
    host.tap("down --all").ok();
    assert_same(&before, &host.state(), "after all of tunctl's taps");
}

#[test]
fn the_program_is_tunctl_under_that_name() {
    let host = Net::new();
    host.script(&format!(
        "ln -s {} /run/tunctl",
        tests::program::binary("tapctl").display()
    ));
    assert_eq!(run(host.command("/run/tunctl").arg("-b")).ok(), "tap0\n");
    assert_eq!(
        run(host.command("/run/tunctl").args(["-d", "tap0"])).ok(),
        "Set 'tap0' nonpersistent\n"
    );
    assert_ne!(host.run("ip link show tap0").code(), Some(0));
}

#[test]
fn attach_wires_a_guest_as_vkernel_does() {
    let host = Net::new();
    host.ok("ip tuntap add dev tap0 mode tap");
    let before = host.state();
    let made = host.tap_for("alice", "attach auto:10.0.5.1:10.0.5.2/28").ok();
    assert_eq!(made, "device tap1\nhost 10.0.5.1/28\nguest 10.0.5.2/28\nmade\n");
    let json = host
        .tap_for("alice", "attach tap1:10.0.5.1:10.0.5.2/28 --json")
        .ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["device"], &json["made"]), (&"tap1".into(), &false.into()));
    assert_eq!(json["guest"], "10.0.5.2/28");
    // The host answers pings there and gives nothing else away, as behind any tap.
    let guest = Guest::new(&host, "tap1", "alice", "10.0.5.2/28", "10.0.5.1");
    let _server = serve(&host, PAGE);
    tests::wait::until_true("the host serves", || fetch(&host, "10.0.5.1").is_some());
    assert_eq!(fetch(&guest.net, "10.0.5.1"), None);
    drop(guest);
    host.tap_for("alice", "down --dev tap1").ok();
    // Two taps in a bridge that goes with the second.
    host.script("ip link add lan0 type veth peer name lan1; ip link set lan1 up; ip link set lan0 up");
    let bridged = host.state();
    host.tap("attach auto:bridge0 --create-bridge --bridge-port lan0")
        .ok();
    host.tap("attach auto:bridge0:10.0.6.2").ok();
    for device in ["tap1", "tap2", "lan0"] {
        assert!(
            host.ok(&format!("ip link show {device}"))
                .contains("master bridge0"),
            "{device}"
        );
    }
    host.tap("down --dev tap1").ok();
    assert!(host.ok("ip link show lan0").contains("master bridge0"));
    host.tap("down --dev tap2").ok();
    assert_same(&bridged, &host.state(), "after both bridged taps");
    let refused = host.tap("attach auto:bridge0").failed(1);
    assert!(
        refused.contains("bridge0 is not a bridge") && refused.contains("--create-bridge"),
        "{refused}"
    );
    host.ok("ip link del lan0");
    assert_same(&before, &host.state(), "after all of them");
}

#[test]
fn attach_to_a_tap_that_was_there_leaves_it_there() {
    let host = Net::new();
    // A device gets its queueing discipline when it is set up for the first time, and keeps it when set down.
    host.script("ip tuntap add dev tap7 mode tap user alice; ip link set tap7 up; ip link set tap7 down");
    let before = host.state();
    host.tap_for("alice", "attach tap7:10.0.5.1").ok();
    assert!(host.ok("ip addr show tap7").contains("10.0.5.1/24"));
    let refused = host.tap_for("bob", "attach tap7:10.0.6.1").failed(1);
    assert!(refused.contains("tap7 is not a tap of bob"), "{refused}");
    host.tap_for("alice", "down --dev tap7").ok();
    assert_same(&before, &host.state(), "after attaching to a prepared tap");
}

#[test]
fn a_lan_sees_a_guest_by_proxy_arp() {
    for backend in ["nft", "iptables"] {
        let world = World::new();
        let host = &world.host;
        let before = host.state();
        host.tap(&format!("up --user alice --addr 10.0.1.1 --firewall {backend}"))
            .ok();
        host.tap("route 192.0.2.77 --dev nk_tap_alice --proxy-arp eth0")
            .ok();
        let guest = Guest::new(host, "nk_tap_alice", "alice", "10.0.1.2/24", "10.0.1.1");
        guest.net.script("ip addr add 192.0.2.77/32 dev eth0");
        // The internet's host takes the guest for a neighbour; the kernel delays the first answer by proxy.
        tests::wait::until_true("the LAN reaches the guest", || {
            world.internet.run("ping -c 1 -W 2 192.0.2.77").code() == Some(0)
        });
        // The guest shows its own address, not the host's.
        let outcome = guest.net.run("ping -c 1 -W 2 -I 192.0.2.77 192.0.2.1");
        assert_eq!(outcome.code(), Some(0), "{outcome:#?}");
        let again = host.tap("route 192.0.2.77 --dev nk_tap_alice --proxy-arp eth0");
        assert_eq!(again.code(), Some(0), "{again:#?}");
        let refused = host
            .tap_for("alice", "route 192.0.2.78 --dev nk_tap_alice --proxy-arp eth0")
            .failed(1);
        assert!(refused.contains("only root may"), "{refused}");
        drop(guest);
        host.tap("down --user alice").ok();
        assert_same(&before, &host.state(), &format!("after the route, {backend}"));
    }
}

#[test]
fn a_dry_run_shows_the_steps_and_changes_nothing() {
    let host = Net::new();
    let before = host.state();
    let text = host.tap_for("maximilian", "up --addr 10.0.0.1 --firewall nft --dry-run");
    assert!(text.stderr.contains("is called nk_tap_ma-pqsan"), "{text:#?}");
    for line in [
        "make tap nk_tap_ma-pqsan owned by uid 61003",
        "undo: remove tap nk_tap_ma-pqsan",
        "masquerade",
    ] {
        assert!(text.stdout.contains(line), "{text:#?}");
    }
    assert_same(&before, &host.state(), "after a dry run");
    host.tap_for("maximilian", "up --addr 10.0.0.1 --firewall nft")
        .ok();
    let up = host.state();
    let undo = host.tap_for("maximilian", "down --dry-run").ok();
    assert!(
        undo.contains("remove tap nk_tap_ma-pqsan\n") && undo.contains("ip_forward back to 0"),
        "{undo}"
    );
    assert_same(&up, &host.state(), "after a dry run of down");
    // The shortened name is found again without being typed.
    assert_eq!(
        host.tap_for("maximilian", "down").ok(),
        "nk_tap_ma-pqsan is gone\n"
    );
    assert_same(&before, &host.state(), "after down");
}

#[test]
fn a_signal_between_two_steps_undoes_what_was_done() {
    let host = Net::new();
    let before = host.state();
    host.tap("down --all").ok();
    let lock = format!("/proc/{}/root/var/lib/hubbub/tapctl/lock", host.pid());
    let file = std::fs::File::options()
        .write(true)
        .open(&lock)
        .expect("the lock");
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("the lock");
    let waiting = tests::program::Process::start(&mut host.tapctl("up --addr 10.0.0.1"));
    // Signals wait from before the lock is asked for: blocked ones show in the status.
    tests::wait::until_true("tapctl holds signals back", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", waiting.pid())).unwrap_or_default();
        status
            .lines()
            .any(|line| line.starts_with("SigBlk:") && line.ends_with("4003"))
    });
    waiting.signal(nix::sys::signal::Signal::SIGINT);
    drop(held);
    assert!(waiting.outcome().failed(1).contains("interrupted"));
    assert_same(&before, &host.state(), "after an interrupted up");
}

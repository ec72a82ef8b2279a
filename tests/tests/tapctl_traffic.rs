//! What guests behind a tap reach and what they do not, with real frames, under every firewall.

use tests::netns::{FIREWALLS, Guest, Net, PAGE, World, fetch, serve};
use tests::program::Process;

/// Page of the host's own web server.
const SECRET: &str = "a page of the host\n";

struct Lab {
    world: World,
    alice: Guest,
    bob: Guest,
    _server: Process,
}

/// Two users with a tap and a guest each, on a host that has a web server of its own.
fn lab(firewall: &'static str, flags: &str) -> Lab {
    let world = World::new();
    let host = &world.host;
    let backend = host.firewall(firewall);
    if backend == "iptables" {
        // As Docker leaves it: nothing is forwarded but what a rule accepts.
        host.script("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
    }
    for (user, third) in [("alice", 1), ("bob", 2)] {
        let line = format!("up --addr 10.0.{third}.1 --addr6 fd00:{third}::1 --firewall {backend} {flags}");
        host.tap_for(user, &line).ok();
    }
    let server = serve(host, SECRET);
    let alice = Guest::new(host, "nk_tap_alice", "alice", "10.0.1.2/24", "10.0.1.1");
    let bob = Guest::new(host, "nk_tap_bob", "bob", "10.0.2.2/24", "10.0.2.1");
    for (guest, third) in [(&alice, 1), (&bob, 2)] {
        guest.net.script(&format!(
            "ip addr add fd00:{third}::2/64 dev eth0 nodad; ip -6 route add default via fd00:{third}::1"
        ));
    }
    Lab {
        world,
        alice,
        bob,
        _server: server,
    }
}

#[test]
fn guests_reach_the_outside_and_nothing_of_the_host() {
    for firewall in FIREWALLS {
        let Lab {
            world, alice, bob, ..
        } = &lab(firewall, "");
        let host = &world.host;
        assert_eq!(
            fetch(&alice.net, "192.0.2.1").as_deref(),
            Some(PAGE),
            "by NAT, {firewall}"
        );
        assert_eq!(
            fetch(&alice.net, "2001:db8::1").as_deref(),
            Some(PAGE),
            "by NAT, IPv6, {firewall}"
        );
        assert_eq!(
            fetch(&bob.net, "192.0.2.1").as_deref(),
            Some(PAGE),
            "bob's, {firewall}"
        );
        // The host's services on all its addresses; it would answer anybody else.
        assert_eq!(fetch(host, "10.0.1.1").as_deref(), Some(SECRET));
        assert_eq!(fetch(&world.internet, "192.0.2.2").as_deref(), Some(SECRET));
        for address in ["10.0.1.1", "192.0.2.2", "10.0.2.1", "fd00:1::1", "2001:db8::2"] {
            assert_eq!(
                fetch(&alice.net, address),
                None,
                "{address} of the host, {firewall}"
            );
        }
        // The host reaches its guests, and they may answer.
        let _page = serve(&alice.net, "a guest\n");
        tests::wait::until_true("the guest serves", || fetch(&alice.net, "127.0.0.1").is_some());
        assert_eq!(
            fetch(host, "10.0.1.2").as_deref(),
            Some("a guest\n"),
            "{firewall}"
        );
        // Another user's guest does not.
        assert_eq!(fetch(&bob.net, "10.0.1.2"), None, "{firewall}");
        assert_eq!(
            bob.net.run("ping -c 1 -W 1 10.0.1.2").code(),
            Some(1),
            "{firewall}"
        );
        assert_eq!(
            bob.net.run("ping -c 1 -W 1 fd00:1::2").code(),
            Some(1),
            "{firewall}"
        );
    }
}

#[test]
fn what_is_redirected_on_the_host_counts_as_the_hosts() {
    for firewall in FIREWALLS {
        let Lab { world, alice, .. } = &lab(firewall, "");
        // A container with a published port.
        let container = Net::new();
        world.host.cable("c0", &container, "eth0");
        world.host.script(
            "ip addr add 172.17.0.1/24 dev c0; \
             iptables -t nat -A PREROUTING -d 192.0.2.2 -p tcp --dport 8080 -j DNAT --to 172.17.0.2:80; \
             iptables -I FORWARD -o c0 -j ACCEPT; iptables -I FORWARD -i c0 -j ACCEPT",
        );
        container.script("ip addr add 172.17.0.2/24 dev eth0; ip route add default via 172.17.0.1");
        let _server = serve(&container, "a container\n");
        let published = |net: &Net| net.run("busybox nc -w 2 192.0.2.2 8080").code();
        tests::wait::until_true("the container is published", || {
            published(&world.internet) == Some(0)
        });
        assert_ne!(published(&alice.net), Some(0), "{firewall}");
    }
}

#[test]
fn only_the_declared_subnet_is_forwarded() {
    for firewall in FIREWALLS {
        let Lab { world, alice, .. } = &lab(firewall, "");
        let guest = &alice.net;
        // The internet knows the way back, so only the host stands in between; and its own check is turned off.
        world.internet.script("ip route add 10.66.0.0/24 via 192.0.2.2");
        world.host.script(
            "ip route add 10.66.0.0/24 dev nk_tap_alice; \
             echo 0 >/proc/sys/net/ipv4/conf/nk_tap_alice/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter",
        );
        guest.script("ip addr add 10.66.0.1/24 dev eth0");
        assert_eq!(
            guest.run("ping -c 1 -W 2 -I 10.0.1.2 192.0.2.1").code(),
            Some(0),
            "{firewall}"
        );
        assert_eq!(
            guest.run("ping -c 1 -W 1 -I 10.66.0.1 192.0.2.1").code(),
            Some(1),
            "{firewall}"
        );
        // Declared, it passes.
        world.host.script("ip route del 10.66.0.0/24 dev nk_tap_alice");
        world.host.tap("route 10.66.0.1 --dev nk_tap_alice").ok();
        assert_eq!(
            guest.run("ping -c 1 -W 2 -I 10.66.0.1 192.0.2.1").code(),
            Some(0),
            "{firewall}"
        );
    }
}

#[test]
fn what_is_allowed_is_reached() {
    for firewall in FIREWALLS {
        let Lab {
            world, alice, bob, ..
        } = &lab(firewall, "--allow-host --allow-taps");
        assert_eq!(
            fetch(&alice.net, "192.0.2.1").as_deref(),
            Some(PAGE),
            "{firewall}"
        );
        for address in ["10.0.1.1", "192.0.2.2", "2001:db8::2"] {
            assert_eq!(
                fetch(&alice.net, address).as_deref(),
                Some(SECRET),
                "{address}, {firewall}"
            );
        }
        assert_eq!(
            bob.net.run("ping -c 1 -W 2 10.0.1.2").code(),
            Some(0),
            "{firewall}"
        );
        // One who does not allow it closes the way for both.
        world.host.tap_for("bob", "down").ok();
        world.host.tap_for("bob", "up --addr 10.0.2.1").ok();
        let bob = Guest::new(&world.host, "nk_tap_bob", "bob", "10.0.2.2/24", "10.0.2.1");
        assert_eq!(
            bob.net.run("ping -c 1 -W 1 10.0.1.2").code(),
            Some(1),
            "{firewall}"
        );
        assert_eq!(
            alice.net.run("ping -c 1 -W 1 10.0.2.2").code(),
            Some(1),
            "{firewall}"
        );
    }
}

#[test]
fn a_host_that_will_drop_the_traffic_is_told_the_line_that_helps() {
    let world = World::new();
    let host = &world.host;
    host.script("iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER");
    let outcome = host.tap_for("alice", "up --addr 10.0.1.1 --firewall nft");
    assert_eq!(outcome.code(), Some(0), "{outcome:#?}");
    let guest = Guest::new(host, "nk_tap_alice", "alice", "10.0.1.2/24", "10.0.1.1");
    assert_eq!(fetch(&guest.net, "192.0.2.1"), None);
    // The lines are taken from the note and run as they stand.
    let note = outcome
        .stderr
        .lines()
        .find(|line| line.contains("this would let it through: "))
        .expect("a note");
    let (_, lines) = note.split_once("this would let it through: ").expect("lines");
    assert!(lines.contains("-I DOCKER-USER -i nk_tap_alice"), "{lines}");
    host.script(lines);
    assert_eq!(fetch(&guest.net, "192.0.2.1").as_deref(), Some(PAGE));
    // And it is not told again.
    let after = host.tap_for("alice", "up --domain lab --addr 10.0.3.1");
    assert!(
        after.stderr.contains("DROP"),
        "the new tap needs it too: {after:#?}"
    );
    host.tap_for("alice", "down --all").ok();

    // firewalld's way: a chain of nftables that ends in a reject.
    let world = World::new();
    let host = &world.host;
    host.script(
        "nft add table inet firewalld; \
         nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }'; \
         nft add rule inet firewalld filter_FORWARD ct state established,related accept; \
         nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
    );
    let outcome = host.tap_for("alice", "up --addr 10.0.1.1");
    let guest = Guest::new(host, "nk_tap_alice", "alice", "10.0.1.2/24", "10.0.1.1");
    assert_eq!(fetch(&guest.net, "192.0.2.1"), None);
    let note = outcome
        .stderr
        .lines()
        .find(|line| line.contains("this would let it through: "))
        .expect("a note");
    let (_, lines) = note.split_once("this would let it through: ").expect("lines");
    host.script(lines);
    assert_eq!(fetch(&guest.net, "192.0.2.1").as_deref(), Some(PAGE));
}

#[test]
fn a_second_user_cannot_use_the_first_ones_tap() {
    let host = Net::new();
    host.tap_for("alice", "up --addr 10.0.1.1").ok();
    let as_user = |user: &str| {
        let id = tests::netns::uid(user);
        let line = format!("setpriv --reuid {id} --regid {id} --clear-groups -- tunctl -t nk_tap_alice");
        host.run(&line)
    };
    // The kernel's own answer, through a program that only opens the device.
    assert!(as_user("bob").stderr.contains("Operation not permitted"));
    assert!(!as_user("alice").stderr.contains("Operation not permitted"));
}

//! After `down` the host is byte for byte what it was before `up`: links, addresses, routes, rules of both firewalls,
//! kernel switches.

use tests::netns::{FIREWALLS, Net, World, assert_same};

/// A host that others have set up: its own rules in both firewalls, chains like Docker's, a tap of somebody's.
fn furnish(host: &Net) {
    host.script(
        "
        ip tuntap add dev lab0 mode tap user bob
        ip addr add 10.77.0.1/24 dev lab0
        ip link set lab0 up
        ip link add docker0 type bridge
        ip addr add 172.17.0.1/16 dev docker0
        ip link add c0 type veth peer name c1
        ip link set c0 master docker0
        ip link set c0 up
        ip link set c1 up
        ip link set docker0 up
        iptables -N DOCKER
        iptables -N DOCKER-USER
        iptables -P FORWARD DROP
        iptables -A FORWARD -j DOCKER-USER
        iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        iptables -A FORWARD -o docker0 -j DOCKER
        iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
        iptables -A DOCKER-USER -j RETURN
        iptables -A INPUT -p tcp --dport 22 -j ACCEPT
        iptables -A INPUT -s 203.0.113.9 -j DROP
        iptables -t nat -N DOCKER
        iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
        iptables -t nat -A POSTROUTING -j MASQUERADE
        ip6tables -A INPUT -p tcp --dport 22 -j ACCEPT
        nft add table inet site
        nft add chain inet site guard '{ type filter hook input priority 5; policy accept; }'
        nft add rule inet site guard tcp dport 23 drop comment mine
        ",
    );
}

const FURNISHINGS: [(&str, &str); 3] = [
    ("an empty host", ""),
    ("a furnished host", "0"),
    ("a furnished host that forwards", "1"),
];

#[test]
fn down_leaves_the_host_as_up_found_it() {
    for firewall in FIREWALLS {
        for (name, forward) in FURNISHINGS {
            let World {
                host,
                internet: _internet,
                ..
            } = &World::new();
            let backend = host.firewall(firewall);
            if !forward.is_empty() {
                furnish(host);
                host.script(&format!("echo {forward} >/proc/sys/net/ipv4/ip_forward"));
            }
            // A device with its own opinion, which the global switch overrides.
            host.script("echo 1 >/proc/sys/net/ipv4/conf/eth0/forwarding");
            let when = format!("after down, {firewall} on {name}");
            let before = host.state();
            host.tap_for("alice", &format!("up --addr 10.0.0.1 --firewall {backend}"))
                .ok();
            let up = host.state();
            assert_ne!(before, up);
            host.tap_for("alice", &format!("up --addr 10.0.0.1 --firewall {backend}"))
                .ok();
            assert_same(
                &up,
                &host.state(),
                &format!("after the second up, {firewall} on {name}"),
            );
            host.tap_for("alice", "up --domain lab --addr 10.0.1.1 --addr6 fd00:1::1")
                .ok();
            host.tap_for("maximilian", "up --addr 10.0.2.1/28 --allow-host")
                .ok();
            assert_eq!(host.tap("ls --json").ok().matches("\"state\":\"up\"").count(), 3);
            host.tap_for("alice", "down --all").ok();
            assert_eq!(host.tap("ls --json").ok().matches("\"state\":\"up\"").count(), 1);
            let forwards = host.ok("cat /proc/sys/net/ipv4/ip_forward");
            assert_eq!(forwards, "1\n", "maximilian's tap still needs forwarding");
            host.tap_for("maximilian", "down").ok();
            assert_same(&before, &host.state(), &when);
            host.tap("down --all").ok();
            assert_same(&before, &host.state(), &when);
        }
    }
}

#[test]
fn what_others_changed_meanwhile_is_theirs() {
    let host = Net::new();
    host.tap("up --user alice --addr 10.0.0.1 --firewall nft").ok();
    // Someone takes the device away and makes one of the same name.
    host.script("ip link del nk_tap_alice; ip tuntap add dev nk_tap_alice mode tap user bob");
    assert!(host.tap("ls --json").ok().contains("\"state\":\"gone\""));
    // Someone decides for himself that this host does not forward.
    host.script("echo 0 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/lo/forwarding");
    host.tap("down --user alice").ok();
    assert!(
        host.ok("ip -d -j link show nk_tap_alice")
            .contains("\"user\":\"bob\"")
    );
    assert_eq!(host.ok("nft list ruleset"), "");
    assert_eq!(host.ok("cat /proc/sys/net/ipv4/ip_forward"), "0\n");
    assert_eq!(host.journal()["entries"], serde_json::json!([]));
    // It is not ours, so it is not used either.
    let refused = host.tap("up --user alice --addr 10.0.0.1").failed(1);
    assert!(
        refused.contains("was not made by tapctl") && refused.contains("hint: "),
        "{refused}"
    );
}

#[test]
fn a_reboot_is_not_undone_a_second_time() {
    let host = Net::new();
    host.tap("up --user alice --addr 10.0.0.1 --firewall nft").ok();
    let journal = format!("/proc/{}/root/var/lib/hubbub/tapctl/journal.json", host.pid());
    let boot = host.journal()["boot"].as_str().expect("a boot").to_owned();
    let text = std::fs::read_to_string(&journal).expect("a journal");
    std::fs::write(
        &journal,
        text.replace(&boot, "00000000-0000-0000-0000-000000000000"),
    )
    .expect("a journal");
    // The same names and numbers as before, but of another boot: nothing of it is ours, except the table's name.
    host.tap("down --all").ok();
    assert_eq!(host.ok("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    host.ok("ip link show nk_tap_alice");
    assert_eq!(host.ok("nft list ruleset"), "");
}

#[test]
fn the_journal_of_another_network_is_left_alone() {
    let host = Net::new();
    host.tap("up --user alice --addr 10.0.0.1").ok();
    // The same files, another network.
    let mut elsewhere = host.command(tests::program::tool("unshare"));
    elsewhere
        .arg("--net")
        .arg(tests::program::binary("tapctl"))
        .args(["down", "--all"]);
    let refused = tests::program::run(&mut elsewhere).failed(1);
    assert!(refused.contains("another network namespace"), "{refused}");
    host.ok("ip link show nk_tap_alice");
}

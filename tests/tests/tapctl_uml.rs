//! Real machines behind a tap: a page and bulk data through NAT, a second machine through the first, and nothing left.

use std::fs;
use std::process::Command;

use tests::netns::{Net, PAGE, World, assert_same};
use tests::program;
use tests::uml::{Home, PATIENCE};
use tests::wait::comes_true;

/// A command of the user's home, run inside a network.
fn inside(net: &Net, command: &Command) -> Command {
    let mut inside = net.command(command.get_program());
    inside.args(command.get_args());
    for (name, value) in command.get_envs() {
        inside.env(name, value.unwrap_or_default());
    }
    inside
}

/// Starts a machine in a network; `script` is run in it and its files appear in the user's home.
fn start(home: &Home, net: &Net, name: &str, options: &[&str], script: &str) {
    let file = home.path().join(format!("{name}.sh"));
    fs::write(&file, script).expect("a script");
    let exec = format!("sh /hosthome/{name}.sh >/hosthome/{name}.log 2>&1; touch /hosthome/{name}.done");
    let mut command = inside(net, &home.command("vstart"));
    program::run(
        command
            .arg(name)
            .args(options)
            .args(["--con0=detached", "-e", &exec]),
    )
    .ok();
}

/// Waits until a machine's script has come to its end.
fn finished(home: &Home, name: &str) {
    let done = home.path().join(format!("{name}.done"));
    let came = comes_true(PATIENCE, || done.exists());
    let log = file(home, &format!("{name}.log"));
    assert!(came, "waited in vain for {name} to finish, which said: {log}");
}

fn file(home: &Home, name: &str) -> String {
    fs::read_to_string(home.path().join(name)).unwrap_or_default()
}

/// Bits a second that an iperf3 run reports as received.
fn rate(home: &Home, name: &str) -> f64 {
    let report: serde_json::Value = serde_json::from_str(&file(home, name)).unwrap_or_default();
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or_default()
}

/// Fetches the page with nothing but a shell: the guest's root is the host's own system.
const FETCH: &str =
    "timeout 10 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'";

#[test]
fn machines_reach_the_internet_through_a_tap_and_nothing_is_left() {
    for backend in ["nft", "iptables"] {
        let world = World::new();
        let host = &world.host;
        let home = Home::new();
        // Under which firewall is for the host to decide, so that vstart need not know.
        if backend == "iptables" {
            host.script("iptables -A FORWARD -s 203.0.113.7 -j DROP");
        }
        let before = host.state();
        let _iperf = world.internet.start("iperf3 -s");

        // Domain A is the upper half of the tap's subnet; the router answers for it.
        let router = format!(
            "set -x
             ip addr add 10.0.0.129/25 dev eth1; ip link set eth1 up
             echo 1 >/proc/sys/net/ipv4/ip_forward
             echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp
             {FETCH} >/hosthome/router.page
             iperf3 -c 192.0.2.1 -t 2 -J >/hosthome/router.up
             iperf3 -c 192.0.2.1 -t 2 -R -J >/hosthome/router.down"
        );
        let options = ["--eth0=tap,10.0.0.1,10.0.0.2", "--eth1=A"];
        start(&home, host, "router", &options, &router);
        finished(&home, "router");
        let log = file(&home, "router.log");
        assert!(
            host.tap("ls --json")
                .ok()
                .contains(&format!("\"firewall\":\"{backend}\""))
        );
        assert!(file(&home, "router.page").ends_with(PAGE), "{backend}: {log}");
        let rates = [rate(&home, "router.up"), rate(&home, "router.down")];
        println!(
            "{backend}: {:.0} and {:.0} Mbit/s out and in",
            rates[0] / 1e6,
            rates[1] / 1e6
        );
        // What a stuck offload or a lost checksum leaves of TCP is far below this.
        assert!(
            rates.iter().all(|rate| *rate > 20e6),
            "{backend}: {rates:?} {log}"
        );

        let inner = format!(
            "set -x
             ip addr add 10.0.0.130/25 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.129
             {FETCH} >/hosthome/inner.page"
        );
        start(&home, host, "inner", &["--eth0=A"], &inner);
        finished(&home, "inner");
        assert!(
            file(&home, "inner.page").ends_with(PAGE),
            "{backend}: {}{log}",
            file(&home, "inner.log")
        );

        for name in ["inner", "router"] {
            program::run(inside(host, &home.command("vcrash")).arg(name)).ok();
        }
        program::run(inside(host, &home.command("vclean")).arg("-T")).ok();
        assert_same(
            &before,
            &host.state(),
            &format!("after machines and tap, {backend}"),
        );
    }
}

//! Any process as a machine, for an ordinary user: plugged commands talk to each other and to a real guest, and leave
//! nothing behind.
//!
//! The host is a network namespace of the test's, because the system this runs on may keep `/dev/net/tun` to itself.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use proto::ctl::PortRow;
use tests::netns::Net;
use tests::program::{Process, tool};
use tests::uml::{Home, text, wait_for};

fn plug(home: &Home, line: &str) -> Command {
    let mut command = home.command("vplug");
    command.args(line.split_whitespace());
    command
}

fn ports(home: &Home, domain: &str) -> Vec<PortRow> {
    let hubs = home.path().join(".netkit/hubs");
    let words = [
        "--dir",
        hubs.to_str().expect("text"),
        "port",
        "ls",
        domain,
        "--json",
    ];
    let output = home.run("switchd", words);
    // No domain, or not even a daemon, is no port.
    serde_json::from_str(&text(&output.stdout)).unwrap_or_default()
}

#[test]
fn two_plugged_commands_and_a_machine_talk() {
    let host = Net::new();
    let home = Home::of_ordinary_user().inside(&host);
    // From here on all are in one domain.
    let served = home.path().join("www");
    fs::create_dir(&served).expect("a new directory");
    fs::write(served.join("index.html"), "a plugged page\n").expect("a file");
    let mut server =
        Process::start(plug(&home, "A --ip 10.0.0.8/24 -- busybox httpd -f -p 80 -h").arg(&served));
    wait_for("the server's port", || ports(&home, "A").len() == 1);
    let row = &ports(&home, "A")[0];
    assert_eq!((row.kind.as_str(), row.name.as_str()), ("tap", "busybox:eth0"));

    let script = "until ping -c 1 -W 1 10.0.0.8 >/dev/null; do :; done; id -u; \
                  exec 3<>/dev/tcp/10.0.0.8/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let client = Process::start(plug(&home, "A --ip 10.0.0.9/24 -- bash -c").arg(script));
    let said = client.outcome().ok();
    assert!(said.ends_with("a plugged page\n"), "{said}");
    // Still an ordinary user.
    assert_ne!(said.lines().next(), Some("0"));

    home.start(
        "pc1",
        &[
            "--eth0=A",
            "-e",
            "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up",
        ],
    );
    wait_for("the machine to reach the plugged server", || {
        let fetch = "timeout 4 bash -c 'exec 3<>/dev/tcp/10.0.0.8/80; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'";
        text(&home.run("vexec", ["pc1", fetch]).stdout).ends_with("a plugged page\n")
    });
    let ping = Process::start(&mut plug(
        &home,
        "A --ip 10.0.0.9/24 -- ping -c 3 -i 0.2 -w 20 10.0.0.1",
    ));
    assert!(ping.outcome().ok().contains(" 0% packet loss"));

    server.signal(Signal::SIGTERM);
    // Stopped by the signal that was passed on.
    assert_eq!(server.wait().code(), Some(128 + 15));
    home.ok("vhalt", ["pc1"]);
    fs::remove_dir_all(&served).expect("the directory is ours");
    wait_for("all ports to go", || ports(&home, "A").is_empty());
    home.assert_nothing_left();
}

#[test]
fn a_plugged_command_ends_whole_and_tells_how() {
    let host = Net::new();
    let home = Home::of_ordinary_user().inside(&host);
    let status = |line: &str, script: &str| {
        let mut command = plug(&home, line);
        if !script.is_empty() {
            command.arg(script);
        }
        Process::start(&mut command).outcome()
    };
    assert_eq!(status("A -- sh -c", "exit 7").code(), Some(7));
    assert_eq!(status("A -- sh -c", "kill -9 $$").code(), Some(128 + 9));
    let missing = status("A -- /nonexistent", "");
    assert_eq!(missing.code(), Some(127), "{missing:?}");
    assert!(
        missing.stderr.contains("vplug: cannot run /nonexistent"),
        "{missing:?}"
    );
    let wrong = status("A --ip 10.0.0.9 -- true", "");
    assert!(wrong.stderr.contains("no address with a length"), "{wrong:?}");
    assert_eq!(wrong.code(), Some(2));

    // What it leaves in the background ends with it.
    let begun = home.path().join("begun");
    let script = format!("setsid sleep 1000 & touch {}; exit 3", begun.display());
    assert_eq!(status("A -- sh -c", &script).code(), Some(3));
    assert!(begun.exists());
    wait_for("what was left to end", || {
        home.processes()
            .iter()
            .all(|(_, line)| !line.contains("sleep 1000"))
    });

    // A vplug that is killed takes the command along.
    let mut plugged = Process::start(&mut plug(&home, "A -- sleep 2000"));
    wait_for("its port", || {
        ports(&home, "A").iter().any(|port| port.name == "sleep:eth0")
    });
    plugged.signal(Signal::SIGKILL);
    plugged.wait();
    wait_for("the command to follow", || {
        home.processes()
            .iter()
            .all(|(_, line)| !line.contains("sleep 2000"))
    });
    wait_for("its port to go", || ports(&home, "A").is_empty());
    fs::remove_file(begun).expect("the file is ours");
    home.assert_nothing_left();
}

#[test]
fn a_plugged_command_is_configured_by_dhcp() {
    let host = Net::new();
    let home = Home::of_ordinary_user().inside(&host);
    let names = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let conf = home.path().join("udhcpd.conf");
    let leases = home.path().join("leases");
    fs::write(
        &conf,
        format!(
            "start 10.0.7.20\nend 10.0.7.20\ninterface eth0\nlease_file {0}\npidfile {0}.pid\n\
             option subnet 255.255.255.0\noption router 10.0.7.1\noption dns 10.0.7.53\n",
            leases.display()
        ),
    )
    .expect("a file");
    fs::write(&leases, "").expect("a file");
    std::os::unix::fs::chown(&leases, Some(65534), Some(65534)).expect("root can give files away");
    let mut server = Process::start(plug(&home, "A --ip 10.0.7.1/24 -- busybox udhcpd -f").arg(&conf));
    wait_for("the server's port", || ports(&home, "A").len() == 1);
    let script = "ip -4 -o addr show eth0; ip route; cat /etc/resolv.conf";
    let said = Process::start(plug(&home, "A --dhcp -- sh -c").arg(script))
        .outcome()
        .ok();
    for wanted in ["10.0.7.20/24", "default via 10.0.7.1", "nameserver 10.0.7.53"] {
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), names);
    server.signal(Signal::SIGTERM);
    server.wait();
    // Nobody answers now.
    let alone = Process::start(&mut plug(&home, "A --dhcp -- true")).outcome();
    assert!(alone.stderr.contains("nobody answers"), "{alone:?}");
    for file in ["udhcpd.conf", "leases", "leases.pid"] {
        let _ = fs::remove_file(home.path().join(file));
    }
    home.assert_nothing_left();
}

#[test]
fn a_port_in_a_namespace_goes_with_it() {
    let host = Net::new();
    let home = Home::new().inside(&host);
    let hubs = home.path().join(".netkit/hubs");
    let switchd = |line: &str| {
        let words = ["--dir", hubs.to_str().expect("text")];
        home.run("switchd", words.into_iter().chain(line.split_whitespace()))
    };
    let mut daemon = home.command("switchd");
    let _daemon = Process::start(daemon.arg("--dir").arg(&hubs).arg("run"));
    wait_for("switchd", || hubs.join("switchd.sock").exists());
    switchd("domain add A");
    let nets = [Net::new(), Net::new()];
    for (n, net) in nets.iter().enumerate() {
        let line = format!("port add A --netns /proc/{}/ns/net --ifname blue{n}", net.pid());
        let output = switchd(&line);
        assert!(output.status.success(), "{output:?}");
        net.ok(&format!("ip addr add 10.0.0.{}/24 dev blue{n}", n + 1));
        // There is one already.
        let again = switchd(&line);
        assert!(text(&again.stderr).contains("exists"), "{again:?}");
    }
    let [a, b] = nets;
    wait_for("both to see each other", || {
        a.run("ping -c 1 -W 1 10.0.0.2").code() == Some(0)
    });
    assert_eq!(ports(&home, "A").len(), 2);
    for (path, why) in [
        ("/nonexistent", "cannot use network namespace"),
        ("/etc/passwd", "cannot use network namespace"),
    ] {
        let refused = switchd(&format!("port add A --netns {path} --ifname x"));
        assert!(text(&refused.stderr).contains(why), "{refused:?}");
    }
    // A namespace of an ordinary user's is his to change, without root.
    let user = Home::of_ordinary_user().inside(&host);
    let mut holder = user_command(&user, "unshare -U -r -n sleep 1000");
    let holder = Process::start(holder.stdin(Stdio::null()));
    let namespace = format!("/proc/{}/ns/net", holder.pid());
    let own = fs::read_link(format!("/proc/{}/ns/net", host.pid())).expect("a namespace");
    wait_for("the user's namespace", || {
        fs::read_link(&namespace).is_ok_and(|link| link != own)
            && fs::read_to_string(format!("/proc/{}/comm", holder.pid())).is_ok_and(|name| name == "sleep\n")
    });
    let theirs = user.path().join(".netkit/hubs");
    let daemon = user
        .command("switchd")
        .arg("--dir")
        .arg(&theirs)
        .arg("run")
        .stdin(Stdio::null())
        .spawn();
    let mut daemon = daemon.expect("switchd runs");
    wait_for("the user's switchd", || theirs.join("switchd.sock").exists());
    let dir = theirs.to_str().expect("text");
    user.ok("switchd", ["--dir", dir, "domain", "add", "A"]);
    user.ok(
        "switchd",
        [
            "--dir", dir, "port", "add", "A", "--netns", &namespace, "--ifname", "eth0",
        ],
    );
    let rows = ports(&user, "A");
    assert_eq!((rows.len(), rows[0].name.as_str()), (1, "eth0"));
    let root = format!("/proc/{}/ns/net", a.pid());
    let refused = user.fails(
        1,
        "switchd",
        [
            "--dir", dir, "port", "add", "A", "--netns", &root, "--ifname", "eth1",
        ],
    );
    assert!(refused.contains("cannot use network namespace"), "{refused}");
    // The end of the namespace is the end of its port.
    drop(holder);
    wait_for("the user's port to go", || ports(&user, "A").is_empty());
    drop(b);
    wait_for("the port to go", || ports(&home, "A").len() == 1);
    user.ok("switchd", ["--dir", dir, "stop"]);
    daemon.wait().expect("our child");
}

/// A program of the system's as the home's user.
fn user_command(home: &Home, line: &str) -> Command {
    let like = home.command("switchd");
    let mut words: Vec<_> = like.get_args().map(ToOwned::to_owned).collect();
    let program = words
        .iter()
        .position(|word| word.to_string_lossy().ends_with("/switchd"));
    words.truncate(program.expect("the program stands behind the options"));
    let mut command = Command::new(like.get_program());
    let mut line = line.split_whitespace();
    command
        .args(words)
        .arg(tool(line.next().expect("a program")))
        .args(line);
    command
}

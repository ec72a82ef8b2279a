//! The Internet without root: a machine on `nat` is an ordinary user's, and so is everything that carries its frames.
//!
//! The host and the Internet are network namespaces of the test's.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::ctl::PortRow;
use tests::netns::{Net, PAGE, World, name_server};
use tests::program::{Outcome, Process};
use tests::uml::{Home, text, wait_for};

/// A user's home on the host of a world.
struct User {
    home: Home,
}

impl User {
    fn inside(net: &Net) -> Self {
        let home = Home::of_ordinary_user().inside(net);
        Self { home }
    }

    /// Starts the user's switchd by hand.
    #[track_caller]
    fn start_switchd(&self) -> Process {
        let hubs = self.hubs();
        let daemon = Process::start(self.home.command("switchd").arg("--dir").arg(&hubs).arg("run"));
        wait_for("switchd", || hubs.join("switchd.sock").exists());
        daemon
    }

    fn hubs(&self) -> PathBuf {
        self.home.path().join(".netkit/hubs")
    }

    fn switchd(&self, line: &str) -> std::process::Output {
        let hubs = self.hubs();
        let words = ["--dir", hubs.to_str().expect("a path of letters")];
        self.home
            .run("switchd", words.into_iter().chain(line.split_whitespace()))
    }

    #[track_caller]
    fn switchd_ok(&self, line: &str) -> String {
        let output = self.switchd(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn switchd_fails(&self, line: &str, code: i32) -> String {
        let output = self.switchd(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        said
    }

    /// The domain's uplink and the process that carries it.
    fn uplink(&self, domain: &str) -> Option<(PortRow, Pid)> {
        let rows = self.switchd_ok(&format!("port ls {domain} --json"));
        let rows: Vec<PortRow> = serde_json::from_str(&rows).expect("ports");
        let row = rows.into_iter().find(|row| row.kind == "uplink")?;
        let pid = row.peer.expect("a process").pid;
        Some((row, Pid::from_raw(i32::try_from(pid).expect("a number"))))
    }

    /// Runs a command in the machine.
    fn guest(&self, line: &str) -> std::process::Output {
        self.home.run("vexec", ["pc1", line])
    }

    #[track_caller]
    fn guest_ok(&self, line: &str) -> String {
        let output = self.guest(line);
        assert!(output.status.success(), "{line}: {output:?}");
        text(&output.stdout)
    }

    /// Waits until the machine fetches the page by its server's name.
    #[track_caller]
    fn wait_for_page(&self) {
        wait_for("the page of the Internet", || {
            text(&self.guest(&fetch("server.test/80")).stdout).ends_with(PAGE)
        });
    }
}

/// Fetches the page of a server with nothing but a shell: the guest's root is the host's own system.
fn fetch(server: &str) -> String {
    format!(
        "timeout 4 bash -c 'exec 3<>/dev/tcp/{server}; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'"
    )
}

fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Nobody may have waited for it yet.
    stat.is_empty() || stat.contains(") Z ")
}

/// How long a domain is without an uplink whose program has been killed.
const LONGEST_RETURN: Duration = Duration::from_secs(2);

/// Fetches a page from outside the host; `None` if nobody answers.
fn fetch_port(net: &Net, port: u16) -> Option<String> {
    use std::io::{Read as _, Write as _};
    net.inside(move || {
        let address = SocketAddr::from(([192, 0, 2, 2], port));
        let soon = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&address, soon).ok()?;
        stream.set_read_timeout(Some(soon)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, page)| page.to_owned())
    })
}

#[test]
fn a_machine_on_nat_is_on_the_internet_whoever_carries_it() {
    let world = World::new();
    let _names = name_server(&world.internet, &world.host);
    let user = User::inside(&world.host);
    user.home.start("pc1", &["--eth0=nat"]);

    // Configured when it is up.
    let address = user.guest_ok("ip -4 -o address show eth0");
    assert!(address.contains("10.0.2.15/24"), "{address}");
    assert!(
        user.guest_ok("cat /etc/resolv.conf")
            .contains("nameserver 10.0.2.3")
    );
    user.wait_for_page();
    let (row, slirp) = user.uplink("nat").expect("an uplink");
    assert_eq!(row.name, "slirp4netns");
    // What listens on the host's loopback alone is out of reach.
    let _secret = world.host.start("busybox httpd -f -p 127.0.0.1:8000 -h /run");
    assert!(
        !user
            .guest("busybox wget -T 2 -q -O - http://10.0.2.2:8000/resolv.conf")
            .status
            .success()
    );

    // Killed, it is back within two seconds, and the machine notices nothing but a pause.
    let (mut row, mut slirp) = (row, slirp);
    let promised = (1..=5).any(|attempt| {
        let begun = Instant::now();
        kill(slirp, Signal::SIGKILL).expect("it runs");
        wait_for("another slirp4netns", || {
            let back = user.uplink("nat").filter(|(_, pid)| *pid != slirp);
            back.map(|back| (row, slirp) = back).is_some()
        });
        let pause = begun.elapsed();
        eprintln!("slirp4netns is back after {pause:?}");
        user.wait_for_page();
        // A machine that is busy with other things has further attempts, although the pause doubles with each.
        assert!(attempt < 5 || pause < LONGEST_RETURN, "never back in time");
        pause < LONGEST_RETURN
    });
    assert!(promised);
    assert!(
        user.switchd_fails("port add nat --uplink", 1)
            .contains("has an uplink already")
    );

    // Ended with its port; the next one publishes a server of the machine.
    user.switchd_ok(&format!("port rm nat {}", row.id));
    assert!(is_gone(slirp), "slirp4netns has outlived its port");
    user.guest_ok(
        "mkdir -p /tmp/www; echo a page of pc1 >/tmp/www/index.html; busybox httpd -p 80 -h /tmp/www",
    );
    user.switchd_ok("port add nat --uplink --ipv6 --publish tcp:8080:10.0.2.15:80");
    wait_for("the page of pc1", || {
        fetch_port(&world.internet, 8080).as_deref() == Some("a page of pc1\n")
    });
    user.switchd_ok("domain add B");
    let said = user.switchd_fails("port add B --uplink --publish tcp:8080:10.0.2.15:80", 1);
    assert!(said.contains("cannot publish tcp:8080:10.0.2.15:80"), "{said}");
    assert!(user.uplink("B").is_none());
    user.switchd_ok("domain rm B");

    // The same by passt: an address, a name, a page, a published port.
    let (row, slirp) = user.uplink("nat").expect("an uplink");
    user.switchd_ok(&format!("port rm nat {}", row.id));
    assert!(is_gone(slirp), "slirp4netns has outlived its port");
    user.switchd_ok("port add nat --uplink --via passt --publish tcp:8081:10.0.2.15:80");
    user.guest_ok("ip address flush dev eth0; rm /etc/resolv.conf");
    user.guest_ok("busybox udhcpc -i eth0 -n -q -t 20 -T 1 -s /run/hubbub/init 2>&1");
    user.wait_for_page();
    wait_for("the page of pc1 by passt", || {
        fetch_port(&world.internet, 8081).as_deref() == Some("a page of pc1\n")
    });
    let (_, passt) = user.uplink("nat").expect("an uplink");
    kill(passt, Signal::SIGKILL).expect("it runs");
    let mut back = None;
    wait_for("another passt", || {
        back = user.uplink("nat").filter(|(_, pid)| *pid != passt);
        back.is_some()
    });
    user.wait_for_page();
    let (_, passt) = back.expect("it is back");

    // The uplink goes with the domain's last machine.
    user.home.ok("vhalt", ["pc1"]);
    wait_for("passt to end", || is_gone(passt));
    user.home.assert_nothing_left();
}

#[test]
fn plugged_commands_are_on_the_internet() {
    let world = World::new();
    let _names = name_server(&world.internet, &world.host);
    let user = User::inside(&world.host);
    let mut daemon = user.start_switchd();
    user.switchd_ok("domain add A");
    user.switchd_ok("port add A --uplink --ipv6 --publish tcp:8082:10.0.2.15:80");
    let www = user.home.path().join("www");
    fs::create_dir(&www).expect("the home is ours");
    fs::write(www.join("index.html"), "a plugged page\n").expect("the home is ours");
    // The first to ask gets the first address, to which the port leads.
    let mut server = user.home.command("vplug");
    server.args(["A", "--dhcp", "--", "busybox", "httpd", "-f", "-p", "80", "-h"]);
    let mut server = Process::start(server.arg(&www));
    wait_for("the plugged page", || {
        fetch_port(&world.internet, 8082).as_deref() == Some("a plugged page\n")
    });
    let said = user.home.ok(
        "vplug",
        ["A", "--dhcp", "--", "sh", "-c", &fetch("server.test/80")],
    );
    assert!(said.ends_with(PAGE), "{said}");
    // IPv6 by router advertisements.
    let script = format!(
        "timeout 60 sh -c 'until ip -6 -o addr show dev eth0 scope global | grep -q fd00: && ip -6 route show default | grep -q via; \
         do sleep 0.2; done'; for i in 1 2 3 4 5; do {} && break; done",
        fetch("2001:db8::1/80")
    );
    let said = user.home.ok("vplug", ["A", "--dhcp", "--", "sh", "-c", &script]);
    assert!(said.ends_with(PAGE), "{said}");
    server.signal(Signal::SIGTERM);
    server.wait();
    user.switchd_ok("stop");
    daemon.wait();
    fs::remove_dir_all(&www).expect("the home is ours");
    user.home.assert_nothing_left();
}

#[test]
fn an_uplink_ends_with_a_daemon_that_is_killed() {
    let world = World::new();
    let user = User::inside(&world.host);
    let mut daemon = user.start_switchd();
    let mut carriers = Vec::new();
    for (domain, via) in [("A", "slirp4netns"), ("B", "passt")] {
        user.switchd_ok(&format!("domain add {domain}"));
        user.switchd_ok(&format!("port add {domain} --uplink --via {via}"));
        let (row, pid) = user.uplink(domain).expect("an uplink");
        assert_eq!((row.name.as_str(), is_gone(pid)), (via, false));
        carriers.push(pid);
    }
    daemon.signal(Signal::SIGKILL);
    let _ = daemon.wait();
    for pid in carriers {
        wait_for("the programs of the uplinks to end", || is_gone(pid));
    }
}

#[test]
fn what_cannot_be_led_to_the_internet_is_said() {
    let net = Net::new();
    let user = User::inside(&net);
    let daemon = user.start_switchd();
    user.switchd_ok("domain add A");
    for (line, code, why) in [
        ("port add A --uplink --publish tcp:80", 2, "is not PROTOCOL:"),
        ("port add A --uplink --via slirp", 2, "carries no uplink"),
        ("port add A --publish tcp:8080:10.0.2.15:80", 2, "--uplink"),
        ("port add A", 2, "--tap"),
        ("port add Z --uplink", 1, "there is no domain Z"),
        (
            "port add A --uplink --via passt --publish tcp:8080:10.0.2.16:80",
            1,
            "passt serves one machine",
        ),
        // This host leads nowhere.
        ("port add A --uplink --via passt", 1, "passt has ended"),
        (
            "port add A --uplink --publish tcp:80:10.0.2.15:80",
            1,
            "one for root",
        ),
    ] {
        let said = user.switchd_fails(line, code);
        assert!(said.contains(why), "{line}: {said}");
        assert!(user.uplink("A").is_none(), "{line}");
    }
    // The place of the uplink is still free.
    user.switchd_ok("port add A --uplink");
    user.switchd_ok("domain rm A");
    daemon.signal(Signal::SIGTERM);
    let Outcome { status, stderr, .. } = daemon.outcome();
    assert!(status.success(), "{stderr}");
    let left = fs::read_dir(user.hubs()).expect("its directory");
    let left: Vec<_> = left.flatten().map(|file| file.file_name()).collect();
    assert_eq!(left, ["switchd.lock"]);
}

//! The options of vstart's manual do what it says, with real kernels where they change more than a command line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;

use tests::model;
use tests::program::binary;
use tests::uml::{Home, text, wait_for};

/// What the guest of the small model has left in the home directory, and how often it has booted.
fn report(home: &Home) -> (String, String) {
    let path = home.path().join("report");
    wait_for("the guest's report", || path.exists());
    let report = fs::read_to_string(&path).unwrap_or_default();
    fs::remove_file(path).expect("the report is ours");
    let boots = report.lines().next().unwrap_or_default().trim().to_owned();
    (boots, report)
}

#[test]
fn changes_to_a_model_are_kept_beside_it() {
    let home = Home::new();
    let model = model::make(&home.path());
    let untouched = fs::read(&model).unwrap();
    for boots in ["1", "2"] {
        home.ok("vstart", ["pc1", "-m", "model"]);
        let (counted, report) = report(&home);
        assert_eq!(counted, boots, "{report}");
        assert!(report.contains("\"modules=/usr\""), "{report}");
        home.ok("vhalt", ["pc1"]);
    }
    let disk = home.path().join("pc1.disk");
    assert!(disk.exists());
    assert_eq!(fs::read(&model).unwrap(), untouched);

    // Changes belong to one model and, while it runs, to one machine.
    fs::copy(&model, home.path().join("other")).unwrap();
    let error = home.fails(1, "vstart", ["pc1", "-m", "other"]);
    assert!(
        error.contains("pc1.disk with model") && error.contains("\nhint: "),
        "{error}"
    );
    home.ok("vstart", ["pc1", "-m", "model"]);
    let error = home.fails(1, "vstart", ["pc2", "-m", "model", "-f", "pc1.disk"]);
    assert!(error.contains("machine pc1 is using it"), "{error}");
    let error = home.fails(1, "vstart", ["pc2", "-m", "model", "-f", "model"]);
    assert!(error.contains("something else than a COW file"), "{error}");
    home.ok("vcrash", ["pc1"]);
    for file in ["pc1.disk", "model", "other", "report"] {
        let _ = fs::remove_file(home.path().join(file));
    }
    home.assert_nothing_left();
}

#[test]
fn changes_may_be_hidden_or_go_into_the_model() {
    let home = Home::of_ordinary_user();
    let model = model::make(&home.path());
    fs::set_permissions(&model, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    for (option, boots) in [("-D", "1"), ("-D", "1"), ("-W", "1"), ("-W", "2")] {
        let mut vstart = home.command("vstart");
        let output = vstart
            .args(["pc1", option])
            .env("NETKIT_FILESYSTEM", &model)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(report(&home).0, boots, "{option}");
        home.ok("vhalt", ["pc1"]);
    }
    fs::remove_file(model).unwrap();
    home.assert_nothing_left();
}

#[test]
fn disks_and_cdroms_come_behind_the_first() {
    let home = Home::new();
    model::make(&home.path());
    for (name, kib) in [("d1", 64), ("d2", 128), ("cd", 256)] {
        fs::write(home.path().join(name), vec![0; kib * 1024]).unwrap();
    }
    home.ok(
        "vstart",
        [
            "pc1",
            "-D",
            "-m",
            "model",
            "--cdrom",
            "cd",
            "--disk=d1",
            "--disk=d2",
            "--pidfile",
            "pid",
        ],
    );
    let pid = fs::read_to_string(home.path().join("pid")).unwrap();
    assert_eq!(pid.trim().parse().ok(), Some(home.pid("pc1", "pid").as_raw()));
    let (_, report) = report(&home);
    let sizes = |name: &str| {
        report
            .lines()
            .any(|line| line.split_whitespace().skip(2).eq(name.split(' ')))
    };
    for disk in ["64 ubdb", "128 ubdc", "256 ubdd"] {
        assert!(sizes(disk), "{disk}: {report}");
    }
    home.ok("vhalt", ["pc1"]);
    for file in ["d1", "d2", "cd", "model"] {
        fs::remove_file(home.path().join(file)).unwrap();
    }
    home.assert_nothing_left();
}

#[test]
fn conflicts_of_the_manual_are_errors() {
    let home = Home::new();
    for (args, message) in [
        (&["pc1", "-W", "-f", "x"][..], "--no-cow changes the model itself"),
        (&["pc1", "-W", "-D"], "--no-cow changes the model itself"),
        (&["pc1", "-D", "-f", "x"], "--hide-disk-file removes the changes"),
        (&["pc1", "--con0=none"], "the primary console cannot be disabled"),
    ] {
        let error = home.fails(2, "vstart", args);
        assert!(
            error.starts_with(&format!("error: {message}")) && error.contains("\nhint: "),
            "{args:?}: {error}"
        );
    }
    fs::write(home.path().join("a,b"), "").unwrap();
    let error = home.fails(1, "vstart", ["pc1", "-W", "-m", "a,b", "-p"]);
    fs::remove_file(home.path().join("a,b")).unwrap();
    assert!(
        error.contains("a,b' contains a comma") && error.contains("\nhint: "),
        "{error}"
    );
    for args in [
        &["pc 1"][..],
        &["pc1", "--eth0=tap,10.0.0.1,10.0.0.1"],
        &["pc1", "--eth0=a_b"],
        &["pc1", "--eth0=tap"],
        &["pc1", "--con0=hdmi"],
        &["pc1", "--xterm=rxvt"],
        &[],
    ] {
        let error = home.fails(2, "vstart", args);
        assert!(error.starts_with("error: "), "{args:?}: {error}");
    }
    for (args, message) in [
        (
            &["pc1", "--con0=this", "--con1=this"][..],
            "cannot show both consoles on this terminal\nhint: ",
        ),
        (
            &["pc1", "--con0=xterm"],
            "cannot show console 0 as asked: there is no display\nhint: ",
        ),
        (
            &["pc1", "-W"],
            "cannot do without a model file system: --no-cow is about changes to it\nhint: ",
        ),
        (
            &["pc1", "-M", "1"],
            "cannot give machine pc1 1 MB of memory: use 8 to 65536",
        ),
        (
            &["pc1", "-m", "nowhere"],
            "cannot use model file system nowhere: ",
        ),
        (&["pc1", "-l", "nowhere"], "cannot use directory nowhere: "),
        (&["pc1", "--mount=/nowhere,/b"], "cannot use directory /nowhere: "),
        (&["pc1", "--eth40=A"], "cannot add eth40: the highest is eth39"),
    ] {
        let error = home.fails(1, "vstart", args);
        assert!(error.contains(&format!("vstart: {message}")), "{args:?}: {error}");
    }
    home.assert_nothing_left();
}

/// What vstart prints, without what it loads into kernels where the processor is too much for them.
fn bare(printed: &str) -> String {
    let preload = format!("env LD_PRELOAD={} ", binary("libhubbub_xstate.so").display());
    let bare = printed.replace(&preload, "");
    // Bytes of state that UML kernels before Linux 6.13 know of.
    let needed = netio::xstate::bytes() > 2696;
    assert_eq!(bare != printed, needed, "{printed}");
    bare
}

#[test]
fn the_examples_of_the_manual_print_what_they_run() {
    let home = Home::new();
    let dir = home.path();
    for file in ["model-fs", "uml-kernel"] {
        fs::write(dir.join(file), "").unwrap();
    }
    fs::set_permissions(
        dir.join("uml-kernel"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let print = |args: &[&str]| bare(&home.ok("vstart", args.iter().chain(&["-p"])));
    let home_word = format!("'\"hosthome={}\"'", dir.display());

    let plain = print(&["pc1"]);
    assert_eq!(plain.lines().count(), 1);
    assert!(
        plain.starts_with("/usr/bin/linux.uml umid=pc1 mem=132M root=/dev/root "),
        "{plain}"
    );
    assert!(plain.contains(&format!(" hostname=pc1 {home_word} ")), "{plain}");

    let kernel = dir.join("uml-kernel");
    let own = print(&["mypc1", "-k", "uml-kernel", "-M", "128", "-m", "model-fs"]);
    let expected = format!(
        "{} umid=mypc1 mem=132M ubd0={dir}/mypc1.disk,{dir}/model-fs root=98:0 uml_dir={dir}/.netkit/mconsole/ ",
        kernel.display(),
        dir = dir.display()
    );
    assert!(own.starts_with(&expected), "{own}");

    let router = print(&[
        "test",
        "--eth0=A",
        "--eth1=B",
        "-f",
        "myFilesystem",
        "-m",
        "model-fs",
    ]);
    let lines: Vec<_> = router.lines().collect();
    assert_eq!(lines.len(), 4, "{router}");
    assert!(lines[0].contains(&format!(
        "switchd run --dir {}/.netkit/hubs --idle-exit 5",
        dir.display()
    )));
    assert!(lines[1].contains(r#"{"op":"domain-hold","domain":"A","mode":"hub","#));
    assert!(lines[3].contains(&format!(
        "ubd0={dir}/myFilesystem,{dir}/model-fs",
        dir = dir.display()
    )));
    for (interface, domain) in [("eth0", "A"), ("eth1", "B")] {
        let socket = format!("{}/.netkit/hubs/vhub_", dir.display());
        let words: Vec<_> = lines[3]
            .split(' ')
            .filter(|word| word.starts_with(interface))
            .collect();
        let [word] = words[..] else { panic!("{router}") };
        assert!(
            word.contains(&format!(",unix,{socket}")) && word.ends_with(&format!("_{domain}.cnct")),
            "{word}"
        );
    }

    // Two machines on one hub: the same socket for both.
    let socket = |name: &str| {
        let printed = print(&[name, "--eth0=A"]);
        let command = printed.lines().last().expect("a command").to_owned();
        assert!(command.contains(&format!(" umid={name} ")), "{command}");
        let word = command.split(' ').find(|word| word.starts_with("eth0=daemon,"));
        let word = word.unwrap_or_else(|| panic!("{command}"));
        word.split(',').next_back().expect("a socket").to_owned()
    };
    assert_eq!(socket("producer"), socket("consumer"));
    assert!(!dir.join(".netkit").exists(), "printing must not make anything");
}

#[test]
fn the_examples_about_the_host_and_windows_print_what_they_run() {
    let home = Home::new();
    let router = home.ok(
        "vstart",
        ["router", "--eth0=tap,10.0.0.1,10.0.0.2", "--eth1=A", "-p"],
    );
    let lines: Vec<_> = router.lines().collect();
    assert_eq!(lines.len(), 5, "{router}");
    assert!(lines[0].ends_with("tapctl up --json --addr 10.0.0.1"), "{router}");
    assert!(
        lines[4].contains(" autoconf_eth0=10.0.0.2 def_route=10.0.0.1 eth0=daemon,")
            && lines[4].contains(" eth1=daemon,"),
        "{router}"
    );

    // Any program of that name will do for what is only printed.
    let konsole = home.path().join("konsole");
    fs::write(&konsole, "").unwrap();
    fs::set_permissions(&konsole, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = home.command("vstart");
    command
        .args([
            "conTest",
            "--con0=xterm",
            "--con1=xterm",
            "--xterm=konsole-tab",
            "-p",
        ])
        .env("DISPLAY", ":7")
        .env("PATH", format!("/usr/bin:{}", home.path().display()));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    assert!(lines[0].contains(" con0=fd:0,fd:1 con1=fd:3,fd:3 "), "{printed}");
    for (line, viewer) in [
        (lines[1], "vconnect conTest"),
        (lines[2], "vconnect conTest --con 1"),
    ] {
        assert!(
            line.starts_with("konsole --new-tab ") && line.ends_with(viewer),
            "{line}"
        );
    }
}

#[test]
fn a_machine_is_locked_to_a_processor_and_debugged() {
    let home = Home::new();
    let output = home.run("vstart", ["pc1", "--cpulock=map", "--debug", "--eth0=A"]);
    let errors = bare(&text(&output.stderr));
    assert!(output.status.success(), "{errors}");
    for told in [
        "switchd run --dir ",
        "\ntaskset -c 0 /usr/bin/linux.uml umid=pc1 ",
        " s: domain A\n",
        "pc1: there is no display: console 0 is detached\n",
    ] {
        assert!(errors.contains(told), "{errors}");
    }
    let kernels: Vec<_> = home
        .processes()
        .into_iter()
        .filter(|(_, line)| line.contains("umid=pc1 "))
        .collect();
    assert!(!kernels.is_empty());
    for (pid, line) in kernels {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
        // Processes of the guest come and go.
        let is_kernel = pid == home.pid("pc1", "pid");
        assert!(allowed.is_some() || !is_kernel, "{line}");
        assert_eq!(
            allowed.unwrap_or("Cpus_allowed_list:\t0"),
            "Cpus_allowed_list:\t0",
            "{line}"
        );
    }
    home.ok("vhalt", ["pc1"]);
    assert!(
        bare(&home.ok("vstart", ["pc1", "-p", "--cpulock=map,0"]))
            .starts_with("taskset -c 0 /usr/bin/linux.uml ")
    );
    assert!(bare(&home.ok("vstart", ["pc1", "-p", "--cpulock=any"])).starts_with("/usr/bin/linux.uml "));
    let error = home.fails(1, "vstart", ["pc1", "--cpulock=5000"]);
    assert!(
        error.starts_with("vstart: cannot lock a machine to processor 5000: this command may use 0"),
        "{error}"
    );
    let error = home.fails(2, "vstart", ["pc1", "--cpulock=all"]);
    assert!(
        error.contains("'all' is no lock: use any, map, map,N or N"),
        "{error}"
    );
    home.assert_nothing_left();
}

#[test]
fn settings_come_from_files_and_the_environment() {
    let home = Home::new();
    let dir = home.path().join(".netkit");
    fs::create_dir(&dir).unwrap();
    fs::write(
        dir.join("netkit.conf"),
        "VM_MEMORY=64 # small\nVM_CON1='pty'\nCHECK_FOR_UPDATES=yes\n",
    )
    .unwrap();
    assert!(home.ok("vstart", ["pc1", "-p"]).contains(" mem=68M "));
    assert!(home.ok("vstart", ["pc1", "-p", "-M", "80"]).contains(" mem=84M "));
    let shown = home.ok("vconfig", ["--show"]);
    assert!(
        shown.contains(&format!("VM_MEMORY=64  # {}/netkit.conf:1\n", dir.display())),
        "{shown}"
    );
    assert!(
        shown.contains("CHECK_FOR_UPDATES=yes  # ") && shown.contains(":3, without effect\n"),
        "{shown}"
    );
    let help = home.ok("vstart", ["-h"]);
    assert!(help.contains("VM_MEMORY       64"), "{help}");
    assert!(home.ok("vstart", ["--version"]).contains("\nhost kernel "));
    // Commands are written down where the user wants it.
    fs::write(dir.join("netkit.conf"), "LOGFILENAME=\"$HOME/commands\"\n").unwrap();
    home.ok("vstart", ["pc1", "-p", "-e", "echo hi"]);
    let log = home.path().join("commands");
    let written = fs::read_to_string(&log).unwrap();
    assert!(written.ends_with(": vstart pc1 -p -e 'echo hi'\n"), "{written}");
    assert!(
        written.starts_with("20") && written.lines().count() == 1,
        "{written}"
    );
    fs::remove_file(log).unwrap();
    fs::write(dir.join("netkit.conf"), "VM_MEMORY=$(reboot)\n").unwrap();
    let error = home.fails(1, "vstart", ["pc1", "-p"]);
    assert!(
        error.contains("netkit.conf:1: commands in it are not run"),
        "{error}"
    );
    home.ok("vstart", ["-h"]);
    fs::remove_file(dir.join("netkit.conf")).unwrap();
    home.assert_nothing_left();
}

#[test]
fn consoles_on_a_pty_and_a_port_work() {
    let home = Home::new();
    // A free port: whoever takes it in between makes the test fail, not pass.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let vstart = home
        .command("vstart")
        .args([
            "pc1",
            &format!("--con0=port:{port}"),
            "--con1=pty",
            "-e",
            "echo started > /dev/tty1",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The machine starts when somebody looks.
    let mut stream = None;
    wait_for("the port", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    home.wait_for_status("pc1", "ready");
    stream.set_read_timeout(Some(tests::wait::PATIENCE)).unwrap();
    stream.write_all(&[255, 253, 1]).unwrap();
    stream.write_all(b"echo $((6*7))-on-port\r\0").unwrap();
    let mut shown = String::new();
    while !shown.contains("42-on-port") {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).unwrap();
        shown.push_str(&text(&buffer[..length]));
    }
    let errors = text(&tests::uml::output(vstart).stderr);
    let pty = errors
        .split("screen ")
        .nth(1)
        .and_then(|rest| rest.split('\'').next())
        .expect("a pty is told");
    assert!(
        home.ok("vlist", ["pc1"])
            .contains(&format!("console 1   {pty}\n"))
    );
    let mut terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(pty))
        .unwrap();
    terminal.write_all(b"echo $((6*7))-on-pty\r").unwrap();
    let mut lines = BufReader::new(terminal).lines();
    assert!(lines.any(|line| line.unwrap().contains("42-on-pty")));
    home.ok("vhalt", ["pc1"]);
    home.assert_nothing_left();
}

#[test]
fn the_guest_reads_what_netkit_guests_read() {
    let home = Home::new();
    for dir in ["lab", "lab/pc1/etc", "lab/shared/etc", "work", "extra dir"] {
        fs::create_dir_all(home.path().join(dir)).unwrap();
    }
    fs::write(home.path().join("lab/shared/etc/who"), "shared\n").unwrap();
    fs::write(home.path().join("lab/pc1/etc/who"), "pc1\n").unwrap();
    fs::write(
        home.path().join("lab/pc1.startup"),
        "cp /etc/who /hostlab/startup\n",
    )
    .unwrap();
    let mount = format!("--mount={},/extra", home.path().join("extra dir").display());
    let args = [
        "-H",
        "-l",
        "lab",
        "-w",
        "work",
        &mount,
        "--append=autoconf_lo=10.9.9.9",
        "--append=foo",
    ];
    home.start(
        "pc1",
        &[
            &args[..],
            &[
                "-e",
                "ip -o a > /hostwd/a; ls -d /hosthome > /extra/home; cat /proc/cmdline > /hostwd/c",
            ],
        ]
        .concat(),
    );
    let read =
        |name: &str| fs::read_to_string(home.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(read("lab/startup"), "pc1\n");
    assert!(home.path().join("lab/pc1.ready").exists());
    assert!(read("work/a").contains("10.9.9.9/24"), "{}", read("work/a"));
    assert_eq!(read("extra dir/home"), "");
    assert!(
        read("work/c").contains(" autoconf_lo=10.9.9.9 foo "),
        "{}",
        read("work/c")
    );
    home.ok("vhalt", ["pc1"]);
}

#[test]
fn consoles_in_tmux_and_in_a_window_work() {
    let home = Home::new();
    // Xvfb writes the number of the display it has taken to its standard output.
    let mut server = std::process::Command::new(tests::program::tool("Xvfb"))
        .args(["-displayfd", "1", "-nolisten", "tcp"])
        .env("HOME", home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut display = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut display)
        .unwrap();
    let display = format!(":{}", display.trim());
    let output = home
        .command("vstart")
        .args(["pc1", "--con0=tmux", "--con1=xterm", "-q"])
        .env("DISPLAY", &display)
        .env("TMUX_TMPDIR", home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let viewers = || {
        home.processes()
            .iter()
            .filter(|(_, line)| line.contains("vconnect pc1"))
            .count()
    };
    // tmux runs its viewer as it is; xterm stays the parent of the other.
    wait_for("both viewers", || viewers() >= 3);
    let tmux = |args: &[&str]| {
        let tool = tests::program::tool("tmux");
        let output = std::process::Command::new(tool)
            .args(["-L", "netkit"])
            .args(args)
            .env("TMUX_TMPDIR", home.path())
            .output()
            .unwrap();
        text(&output.stdout)
    };
    home.wait_for_status("pc1", "ready");
    tmux(&["send-keys", "-t", "pc1", "echo $((6*7))-in-tmux", "Enter"]);
    wait_for("the answer in tmux", || {
        tmux(&["capture-pane", "-p", "-t", "pc1"]).contains("42-in-tmux")
    });
    let vconnect = |option: &str| {
        let mut command = home.command("vconnect");
        let output = command
            .args([option, "pc1"])
            .env("TMUX_TMPDIR", home.path())
            .output()
            .unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let listed = home.ok("vconnect", ["--list"]);
    let lines: Vec<Vec<_>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[1], ["pc1", "0", "tmux", "session", "pc1"]);
    assert_eq!(lines[2], ["pc1", "1", "in", "a", "window"]);
    assert!(
        home.ok("vconnect", ["-l", "--json"])
            .contains(r#""shown": "in a window""#)
    );
    // The session goes, the machine stays.
    assert_eq!(
        vconnect("-k"),
        (Some(0), "pc1: tmux session pc1 ended\n".to_owned())
    );
    wait_for("the session to end", || !tmux(&["list-sessions"]).contains("pc1"));
    let (code, error) = vconnect("-k");
    assert_eq!(code, Some(1));
    assert!(
        error.starts_with("vconnect: machine pc1 has no tmux session\nhint: "),
        "{error}"
    );
    assert_eq!(
        text(&home.run("vconnect", ["--kill-all"]).stderr),
        "0 tmux sessions ended\n"
    );
    assert_eq!(
        home.ok("vcommand", ["-n", "1", "-v", "pc1", "echo $((6*7))"]),
        "42\n"
    );
    home.ok("vhalt", ["pc1"]);
    wait_for("both viewers to end", || viewers() == 0);
    server.kill().unwrap();
    server.wait().unwrap();
    for entry in fs::read_dir(home.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tmux-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    home.assert_nothing_left();
}

#[test]
fn long_spellings_do_what_the_short_ones_do() {
    let home = Home::new();
    model::make(&home.path());
    for (short, long) in [
        (&["-k", "/bin/linux.uml"][..], &["--kernel=/bin/linux.uml"][..]),
        (&["-M", "100"], &["--mem=100"]),
        (&["-H"], &["--no-hosthome"]),
        (&["-m", "model"], &["--model-fs=model"]),
        (
            &["-m", "model", "-f", "mine"],
            &["--model-fs=model", "--filesystem=mine"],
        ),
        (&["-m", "model", "-W"], &["--model-fs=model", "--no-cow"]),
        (&["-m", "model", "-D"], &["--model-fs=model", "--hide-disk-file"]),
        (&["-e", "date"], &["--exec=date"]),
        (&["-l", "/srv"], &["--hostlab=/srv"]),
        (&["-w", "/srv"], &["--hostwd=/srv"]),
        (&["-F"], &["--foreground"]),
        (&["-q"], &["--quiet"]),
        (&["-v"], &["--verbose"]),
    ] {
        let print = |options: &[&str]| home.ok("vstart", [&["pc1", "-p", "--eth0=A"], options].concat());
        let plain = print(&[]);
        assert_eq!(print(short), print(long), "{long:?}");
        let says_more = ["-F", "-q", "-v"].contains(&short[0]);
        assert!(says_more || print(short) != plain, "{short:?} changes nothing");
    }
    fs::remove_file(home.path().join("model")).unwrap();
    home.assert_nothing_left();
}

#[test]
fn a_single_user_starts_without_start_up_commands() {
    let home = Home::new();
    home.ok("vstart", ["pc1", "--single-user", "-e", "touch /run/started"]);
    let line = home.ok("vexec", ["pc1", "cat", "/proc/cmdline"]);
    assert!(line.split_whitespace().any(|word| word == "single"), "{line}");
    home.ok("vexec", ["pc1", "test", "!", "-e", "/run/started"]);
    home.ok("vhalt", ["pc1"]);
    home.assert_nothing_left();
}

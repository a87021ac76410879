//! Exit codes, signals, time limits, and output that passes through.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::*;

#[test]
fn exit_codes_are_the_commands_own_or_say_what_failed() {
    for caller in callers() {
        for (script, code) in
            [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
        {
            sh(caller, &base_profile(), script).expect_code(code);
        }
        let run =
            |command: &[&str]| Shannot::new(caller).profile(&base_profile()).args(["run", "--"]).args(command).output();
        run(&["no-such-command"]).expect_code(127).expect_stderr("no-such-command").expect_stderr("hint: ");
        run(&["/etc/passwd"]).expect_code(126).expect_stderr("Permission denied");
        run(&["/usr"]).expect_code(126);
        run(&[""]).expect_code(125).expect_stderr("name is empty");
        Shannot::new(caller)
            .args(["run", "--no-such-option", "ls"])
            .output()
            .expect_code(125)
            .expect_stderr("--no-such-option");
        Shannot::new(caller).args(["run"]).output().expect_code(125);
        Shannot::new(caller).args(["--help"]).output().expect_code(0).expect_stdout("Exit codes");
    }
}

#[test]
fn a_missing_loader_is_told_from_a_missing_command() {
    let Some(_) = tool("gcc") else { return };
    for caller in callers() {
        let scratch = Scratch::new();
        let source = scratch.file("x.c", "int main(void) { return 0; }");
        let mut gcc = std::process::Command::new("gcc");
        gcc.args(["-Wl,--dynamic-linker=/no/such/loader", "-o"]).arg(scratch.path().join("x")).arg(&source);
        assert!(gcc.status().unwrap().success());
        let profile = with_binds(&[json!({"source": scratch.path(), "target": "/t"})], json!({}));
        let result = Shannot::new(caller).profile(&profile).args(["run", "/t/x"]).output();
        result.expect_code(126).expect_stderr("loader or interpreter");
    }
}

/// A running command that says what signal it got.
fn talking(caller: Caller, options: &[&str]) -> (std::process::Child, Shannot) {
    // Traps run between two commands; `read` would hold some of them back.
    let script = "for s in HUP INT QUIT TERM USR1 USR2 WINCH; do trap \"echo got $s\" $s; done; trap 'echo got CONT; exit 5' CONT; \
                  echo ready; while :; do sleep 0.02; done";
    let mut run =
        Shannot::new(caller).profile(&base_profile()).args(["run"]).args(options).args(["bash", "-c", script]);
    let mut child = run.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "ready");
    (child, run)
}

fn wait_for(child: &mut std::process::Child, text: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(&format!("{text}\n")) {
        let fd = nix::poll::PollFd::new(child.stdout.as_ref().unwrap().as_fd(), nix::poll::PollFlags::POLLIN);
        assert!(nix::poll::poll(&mut [fd], 20_000_u16).unwrap() > 0, "no {text:?} for 20 s: {seen:?}");
        let count = child.stdout.as_mut().unwrap().read(&mut byte).unwrap();
        assert!(count == 1, "end of output before {text:?}: {seen:?}");
        seen.push(char::from(byte[0]));
    }
    seen
}

#[test]
fn signals_are_passed_on() {
    for caller in callers() {
        let (mut child, _run) = talking(caller, &[]);
        let pid = Pid::from_raw(child.id().cast_signed());
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
        ] {
            kill(pid, signal).unwrap();
            wait_for(&mut child, &format!("got {}", signal.as_str().trim_start_matches("SIG")));
        }
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5));
    }
}

#[test]
fn a_signal_that_ends_the_command_is_the_exit_code() {
    for caller in callers() {
        let mut run =
            Shannot::new(caller).profile(&base_profile()).args(["run", "sh", "-c", "echo ready; exec sleep 60"]);
        let mut child = run.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        wait_for(&mut child, "ready");
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143));
    }
}

#[test]
fn the_timeout_ends_the_whole_tree() {
    for caller in callers() {
        let start = Instant::now();
        let run = |options: &[&str], script: &str| {
            Shannot::new(caller)
                .profile(&base_profile())
                .args(["run"])
                .args(options)
                .args(["bash", "-c", script])
                .output()
        };
        run(&["--timeout", "0.3"], "(setsid sleep 60 &); sleep 60").expect_code(124);
        // Who ignores the request is killed.
        run(&["--timeout", "0.3", "--kill-after", "0.3"], "trap '' TERM; sleep 60 & while :; do wait; done")
            .expect_code(124);
        // And who handles it may end in peace.
        run(&["--timeout", "0.3"], "trap 'echo bye; exit 0' TERM; sleep 60 & wait")
            .expect_code(124)
            .expect_stdout("bye");
        run(&["--timeout", "60"], "exit 9").expect_code(9);
        let from_profile = profile(json!({"limits": {"timeout": "300ms"}}));
        sh(caller, &from_profile, "sleep 60").expect_code(124);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn output_passes_through_without_being_held() {
    for caller in callers() {
        let mut run = Shannot::new(caller).profile(&base_profile()).args(["run", "head", "-c", "1G", "/dev/zero"]);
        let mut child = run.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0_u64;
        let mut most = 0;
        loop {
            let count = child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            total += count as u64;
            if total % (1 << 26) < count as u64 {
                let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
                let line = status
                    .lines()
                    .find(|line| line.starts_with("VmRSS"))
                    .map_or("0", |line| line.split_whitespace().nth(1).unwrap());
                most = most.max(line.parse::<u64>().unwrap());
            }
        }
        assert_eq!((total, child.wait().unwrap().code()), (1 << 30, Some(0)));
        assert!(most < 16 * 1024, "the supervisor holds {most} KiB");
    }
}

#[test]
fn a_reader_that_leaves_ends_the_command() {
    for caller in callers() {
        let scratch = Scratch::new();
        let path = scratch.file("p.json", base_profile().to_string());
        let script = format!("{} -p {} run yes | head -n 1", binary().display(), path.display());
        Shannot::through(caller, std::path::Path::new("/bin/sh"), ["-c", &script])
            .output()
            .expect_code(0)
            .expect_stdout("y\n");
    }
}

#[test]
fn odd_callers_do_not_make_it_hang() {
    for caller in callers() {
        let scratch = Scratch::new();
        let path = scratch.file("p.json", base_profile().to_string());
        let shannot = format!("{} -p {} run", binary().display(), path.display());
        let through =
            |script: &str| Shannot::through(caller, std::path::Path::new("/bin/bash"), ["-c", script]).output();
        // SIGCHLD ignored makes wait(2) lose the status.
        through(&format!("trap '' CHLD; exec {shannot} sh -c 'exit 4'")).expect_code(4);
        through(&format!("ulimit -n 16; exec {shannot} sh -c 'exit 4'")).expect_code(4);
        for descriptor in ["<&-", ">&-", "2>&-"] {
            let result = through(&format!("exec {shannot} sh -c 'exit 4' {descriptor}")).expect_code(125);
            assert!(descriptor == "2>&-" || result.stderr.contains("closed"), "{result:?}");
        }
        let starved = through(&format!("ulimit -n 6; exec {shannot} sh -c 'exit 4'"));
        assert!([4, 125].contains(&starved.code), "{starved:?}");
    }
}

#[test]
fn limits_hold() {
    for caller in callers() {
        let run = |options: &[&str], script: &str| {
            Shannot::new(caller)
                .profile(&base_profile())
                .args(["run"])
                .args(options)
                .args(["bash", "-c", script])
                .output()
        };
        // By its own account, or by a cgroup: of version 1 the process, of version 2 all.
        let result =
            run(&["--memory", "64M"], "head -c 200M /dev/zero | tail -c 100M > /dev/null; echo ${PIPESTATUS[1]}");
        assert!(["137\n", "1\n"].contains(&result.stdout.as_str()) || result.code == 137, "{result:?}");
        let limited = |limits| profile(json!({"limits": limits}));
        let result =
            sh(caller, &limited(json!({"file_size": "4K"})), "head -c 8192 /dev/zero > /tmp/x; stat -c %s /tmp/x");
        result.expect_stdout("4096");
        sh(caller, &limited(json!({"open_files": 20})), "ulimit -n").expect_stdout("20");
        let result = sh(caller, &limited(json!({"tmpfs_size": "64K"})), "head -c 1M /dev/zero > /tmp/x");
        result.expect_stderr("No space left on device");
        if caller == Caller::Nobody {
            run(&["--pids", "20"], "for i in $(seq 40); do sleep 2 & done 2>&1; wait").expect_stdout("fork");
            run(&["--cpus", "1"], "nproc").expect_stdout("1\n");
        }
    }
}

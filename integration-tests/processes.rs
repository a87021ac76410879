//! No process outside is seen, signalled or traced, and none inside outlives the run.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::*;

/// A process of the host's with a number that can't be one inside.
struct Victim(std::process::Child);

impl Victim {
    fn new(caller: Caller) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sleep");
        command.arg("600");
        if caller == Caller::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self(command.spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn processes_outside_are_neither_seen_nor_signalled_nor_traced() {
    for caller in callers() {
        let mut victim = Victim::new(caller);
        let pid = victim.0.id();
        let script = format!("ls -d /proc/[0-9]* | wc -l; kill -9 {pid}; kill -9 -1; true");
        let result = sh(caller, &base_profile(), &script);
        assert!(victim.is_alive(), "{result:?}");
        let seen: u32 = sh(caller, &base_profile(), "ls -d /proc/[0-9]* | wc -l").stdout.trim().parse().unwrap();
        assert!(seen <= 4, "{seen} processes are seen: init, sh, ls, wc");
    }
}

#[test]
fn the_hosts_proc_is_honoured_read_only_and_does_not_lead_outside() {
    for caller in callers() {
        let mut victim = Victim::new(caller);
        let pid = victim.0.id();
        let bind = json!({"source": "/proc", "target": "/proc", "read_only": false});
        let profile = with_binds(&[bind], json!({}));
        let script = format!(
            "cat /proc/{pid}/comm; cat /proc/{pid}/root/etc/shadow; cat /proc/{pid}/environ; kill {pid}; echo x > /proc/{pid}/comm; echo 1 > /proc/sys/kernel/core_uses_pid"
        );
        let result = sh(caller, &profile, &script);
        assert!(result.stdout.starts_with("sleep\n") && result.stdout.len() < 10, "{result:?}");
        assert!(result.stderr.contains("Permission denied"), "{result:?}");
        assert!(victim.is_alive());
        // Without Landlock nothing would keep the sandbox out of them.
        let mut refused = profile;
        refused["landlock"] = json!("off");
        sh(caller, &refused, "true").expect_code(125).expect_stderr("Landlock").expect_stderr("hint: ");
    }
}

#[test]
fn a_signal_to_its_own_group_does_not_reach_the_caller() {
    for caller in callers() {
        // kill(0) signals the whole process group, which the caller's shell shares.
        for changes in [json!({}), json!({"landlock": "off"})] {
            let file = Scratch::new();
            let path = file.file("p.json", profile(changes).to_string());
            let script =
                format!("{} -p {} run sh -c 'kill -USR1 0; sleep 0.1'; echo alive", binary().display(), path.display());
            let run = Shannot::through(caller, std::path::Path::new("/bin/sh"), ["-c", &script]);
            run.output().expect_code(0).expect_stdout("alive");
        }
    }
}

#[test]
fn init_tells_nothing_about_the_caller() {
    for caller in callers() {
        let run = Shannot::new(caller).env("TOKEN", "very-secret").profile(&base_profile());
        let script = "cat /proc/1/environ /proc/1/cmdline /proc/1/maps; ls /proc/1/root/ /proc/1/cwd/";
        let result = run.args(["run", "sh", "-c", script]).output();
        assert!(!result.stdout.contains("secret") && !result.stdout.contains("profile.json"), "{result:?}");
        for denied in ["environ", "maps", "root", "cwd"] {
            result
                .stderr
                .lines()
                .find(|line| line.contains(denied) && line.contains("Permission denied"))
                .expect(denied);
        }
    }
}

/// How many processes have this word in their command line.
fn count(marker: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(marker)).count()
}

fn wait_until_gone(marker: &str) {
    let start = Instant::now();
    while count(marker) > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{marker} is still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_outlives_the_command() {
    for caller in callers() {
        let marker = format!("7{:05}", std::process::id() % 100_000);
        let script = format!("(setsid sleep {marker} &) ; (nohup sleep {marker} >/dev/null 2>&1 &); exit 3");
        sh(caller, &base_profile(), &script).expect_code(3);
        assert_eq!(count(&format!("sleep\0{marker}")), 0);
    }
}

#[test]
fn a_killed_supervisor_leaves_nothing_behind() {
    for caller in callers() {
        for attempt in 0..100_u64 {
            let marker = format!("8{:05}.{attempt}", std::process::id() % 100_000);
            let mut run = Shannot::new(caller).profile(&base_profile()).args(["run", "sleep", &marker]);
            let mut child = run.command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            // At any moment of setting up, and after it.
            std::thread::sleep(Duration::from_micros(attempt * 150));
            child.kill().unwrap();
            child.wait().unwrap();
            wait_until_gone(&marker);
        }
    }
}

#[test]
fn only_its_own_children_can_be_traced() {
    let program = "
pid = os.fork()
if pid == 0:
    os.pause() if hasattr(os, 'pause') else __import__('signal').pause()
print(call(101, 16, pid, 0, 0))
print(call(101, 16, 1, 0, 0))
os.kill(pid, 9)
";
    if cfg!(target_arch = "x86_64") {
        for caller in callers() {
            let Some(result) = python(caller, &base_profile(), program) else { return };
            assert_eq!(result.stdout, "ok\nEPERM\n", "{result:?}");
        }
    }
}

//! What a hostile job tries against the machine that runs it: it is ended in time, the host is unharmed, the report true.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::*;

/// A job in an empty workspace, whose report comes on a descriptor of its own.
fn job(caller: Caller, options: &[&str], script: &str) -> (Result, Value, Duration) {
    let scratch = Scratch::new();
    scratch.folder("home", caller);
    let workspace = scratch.folder("home/work", caller);
    let report = scratch.folder("out", caller).join("report.json");
    let start = Instant::now();
    let mut run = Shannot::new(caller).args(["run", "-p", "ci"]).args(options).args(["--report"]).args([&report]);
    run = run.args(["--", "bash", "-c", script]).env("HOME", &scratch.path().join("home").display().to_string());
    run.command.current_dir(&workspace);
    let result = run.output();
    let elapsed = start.elapsed();
    let report = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    (result, report, elapsed)
}

/// A number of seconds that is this test's alone.
fn mark(number: u32) -> String {
    format!("{}", 300_000_000 + std::process::id() % 100_000 * 100 + number)
}

#[test]
fn who_ignores_the_end_of_time_is_killed_with_all_that_left_it() {
    for caller in callers() {
        let mark = mark(caller as u32);
        let script = format!(
            "trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM HUP; (setsid sleep {mark} &); sleep {mark}' &); while :; do sleep {mark}; done"
        );
        let (result, report, elapsed) = job(caller, &["--timeout", "500ms", "--kill-after", "500ms"], &script);
        assert_eq!((result.code, &report["outcome"]["ended_by"]), (124, &Value::from("kill_after")), "{report:#}");
        assert!(elapsed < Duration::from_secs(30) && running(&mark) == 0, "{elapsed:?}");
    }
}

#[test]
fn buffers_of_sockets_are_memory_of_the_job_too() {
    if !is_root() || tool("python3").is_none() {
        return;
    }
    // Pages of the whole machine that UDP has, in a namespace of its own too (proc(5), /proc/net/sockstat).
    let script = r#"
cat > /tmp/fill.py <<'END'
import re, socket
def pages():
    return int(re.search(r"UDP: .* mem (\d+)", open("/proc/net/sockstat").read())[1])
before, kept = pages(), []
for _ in range(40):
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    kept += [receiver, sender]
    for _ in range(100):
        try:
            sender.sendto(b"x" * 60000, receiver.getsockname())
        except OSError:
            pass
print((pages() - before) * 4096 >> 20)
END
exec python3 /tmp/fill.py"#;
    let free = job(Caller::Own, &[], script).0.expect_code(0);
    let (result, report, _) = job(Caller::Own, &["--memory", "32M"], script);
    let limit = &report["effective"]["limits.memory"];
    if limit["state"] == "full" {
        let mib = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        // Under version 2 the job is killed, under version 1 what is sent is lost.
        assert!(mib(&free.stdout) > 64 && mib(&result.stdout) <= 40, "{free:?} {result:?} {report:#}");
    }
}

#[test]
fn an_orphan_that_holds_the_output_open_does_not_hold_the_job_open() {
    for caller in callers() {
        let mark = mark(10 + caller as u32);
        // Whoever reads the output sees its end when the run ends, not when the orphan would.
        let (result, report, elapsed) = job(caller, &[], &format!("(setsid sleep {mark} &); echo done; exit 6"));
        assert_eq!((result.code, result.stdout.as_str(), &report["exit_code"]), (6, "done\n", &Value::from(6)));
        assert!(elapsed < Duration::from_secs(30) && running(&mark) == 0, "{elapsed:?}");
    }
}

#[test]
fn exit_codes_can_not_be_played_with() {
    for caller in callers() {
        for (script, code, how) in [
            ("exit 124", 124, "exited"),
            ("exit 125", 125, "exited"),
            ("exit 255", 255, "exited"),
            ("kill -KILL $$", 137, "signalled"),
            ("exit 137", 137, "exited"),
            ("(sleep 0.1; kill -STOP $$; sleep 0.1; kill -CONT $$) & wait; exit 3", 3, "exited"),
            ("(sleep 0.1; kill -TERM 1) & wait; exit 4", 4, "exited"),
        ] {
            let (result, report, _) = job(caller, &[], script);
            assert_eq!(result.code, code, "{script}: {result:?}");
            let outcome = &report["outcome"];
            assert_eq!(outcome["ending"]["how"], how, "{script}: {report:#}");
            assert_eq!(outcome["ended_by"], "command", "{script}: {report:#}");
        }
    }
}

#[test]
fn a_disk_filler_fills_what_it_was_given() {
    for caller in callers() {
        let script = "for d in /tmp ~ /dev/shm; do head -c 64M /dev/zero > $d/x; stat -c %s $d/x; done; head -c 3M /dev/zero > y";
        let (result, report, _) = job(caller, &["--tmpfs-size", "8M", "--file-size", "2M"], script);
        let sizes: Vec<u64> = result.stdout.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(sizes.len() == 3 && sizes.iter().sum::<u64>() <= 8 << 20, "{result:?}");
        assert!(report["outcome"].is_object());
    }
}

#[test]
fn a_gigabyte_of_output_passes() {
    let mut run = Shannot::new(Caller::Own).args(["run", "-p", "host", "--", "head", "-c", "1G", "/dev/zero"]);
    let mut child = run.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    assert_eq!(std::io::copy(&mut output, &mut std::io::sink()).unwrap(), 1 << 30);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_hundred_jobs_at_once_all_end_and_leave_nothing() {
    for caller in callers() {
        let scratch = Scratch::new();
        let home = scratch.folder("home", caller);
        let mark = mark(50 + caller as u32);
        let jobs: Vec<_> = (0..100)
            .map(|index| {
                let workspace = scratch.folder(&format!("home/work{index}"), caller);
                let script = format!("(setsid sleep {mark} &); echo $0 > made; sleep 0.5; exit {}", index % 100);
                let options = ["run", "-p", "ci", "--cache", "npm", "--timeout", "5m", "--", "bash", "-c", &script];
                let mut run = Shannot::new(caller).args(options).env("HOME", &home.display().to_string());
                run.command.current_dir(workspace).stdin(Stdio::null());
                let child = run.command.spawn().unwrap();
                (run, child)
            })
            .collect();
        for (index, (_run, mut child)) in jobs.into_iter().enumerate() {
            assert_eq!(child.wait().unwrap().code(), i32::try_from(index % 100).ok());
            assert!(home.join(format!("work{index}/made")).exists());
        }
        assert_eq!(running(&mark), 0);
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&scratch.path().display().to_string()));
        let left: Vec<_> = fs::read_dir(&home).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 101, "{left:?}");
    }
}

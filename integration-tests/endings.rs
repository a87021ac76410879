//! However a run ends, nothing of it is left: on every rung, whatever is killed or stopped. Part of `promises`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Rung, rungs};
use crate::support::*;

fn soon(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}

/// A number of seconds that is this test's alone.
fn mark() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}", 100_000 + std::process::id() % 100_000 * 100 + NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn nothing_outlives_the_command() {
    for rung in rungs() {
        let mark = mark();
        let script =
            format!("(setsid sh -c '(trap \"\" TERM HUP; sleep {mark} & sleep {mark}) &' &); sleep 0.3; exit 7");
        rung.sh(&profile(json!({})), &script).expect_code(7);
        assert_eq!(running(&mark), 0, "{rung:?}");
    }
}

#[test]
fn the_time_limit_ends_everything() {
    for rung in rungs() {
        let mark = mark();
        let script = format!("trap '' TERM; setsid sleep {mark} & sleep {mark}; sleep {mark}");
        let start = Instant::now();
        let words = ["--timeout", "500ms", "--kill-after", "500ms", "--", "sh", "-c", &script];
        rung.run(&profile(json!({})), &words).output().expect_code(124);
        assert!(start.elapsed() < Duration::from_secs(60), "{rung:?}");
        assert_eq!(running(&mark), 0, "{rung:?}");
    }
}

/// A run in a process group of its own, whose command has left it, and forks without end if it is told to.
struct Running {
    mark: String,
    supervisor: Child,
    folder: Option<PathBuf>,
}

const SLEEPS: &str = "(setsid sleep $0 &); sleep $0";
const HOPS: &str = "hop() { hop & exit; }; (setsid sh -c 'hop() { hop & exit; }; hop' $0 &); sleep $0";

impl Running {
    fn new(rung: &Rung, options: &[&str], script: &str) -> Self {
        let mark = mark();
        let script = format!("echo $TMPDIR; {script}");
        let mut run = rung.run(&profile(json!({})), options).args(["--", "sh", "-c", &script, &mark]);
        run.command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut supervisor = run.command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let folder = (rung.backend == "landlock").then(|| Path::new(line.trim()).parent().unwrap().to_owned());
        assert!(folder.as_ref().is_none_or(|folder| folder.is_dir()), "{rung:?}: {line}");
        assert!(soon(|| running(&mark) >= 2), "{rung:?}");
        Self { mark, supervisor, folder }
    }

    fn supervisor(&self) -> Pid {
        Pid::from_raw(self.supervisor.id().cast_signed())
    }

    /// Its one child: init, or init's keeper.
    fn child_of(parent: Pid) -> Pid {
        let is_child = |pid: &Pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&parent.to_string()))
        };
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.map(Pid::from_raw).find(is_child).unwrap()
    }

    /// Nothing of it is there any more. Gives the exit code, 128+n for the signal that ended the supervisor.
    fn expect_gone(mut self, what: &str) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.supervisor.wait().unwrap();
        let gone = soon(|| running(&self.mark) == 0);
        assert!(gone, "{what}: {} of {} are left", running(&self.mark), self.mark);
        let folder = self.folder.unwrap_or_default();
        assert!(soon(|| !folder.exists()), "{what}: {folder:?} is left");
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

#[test]
fn a_killed_supervisor_leaves_nothing_behind() {
    for rung in rungs() {
        let run = Running::new(&rung, &[], SLEEPS);
        kill(run.supervisor(), Signal::SIGKILL).unwrap();
        assert_eq!(run.expect_gone(&format!("{rung:?}")), 137);
    }
}

#[test]
fn a_killed_process_group_leaves_nothing_behind() {
    for rung in rungs() {
        let run = Running::new(&rung, &[], SLEEPS);
        nix::sys::signal::killpg(run.supervisor(), Signal::SIGKILL).unwrap();
        assert_eq!(run.expect_gone(&format!("{rung:?}")), 137);
    }
}

#[test]
fn a_killed_init_or_keeper_leaves_nothing_behind() {
    for rung in rungs() {
        for script in [SLEEPS, HOPS] {
            let run = Running::new(&rung, &[], script);
            let child = Running::child_of(run.supervisor());
            kill(child, Signal::SIGKILL).unwrap();
            assert_eq!(run.expect_gone(&format!("{rung:?} {script}")), 137);
            if rung.backend == "landlock" {
                let run = Running::new(&rung, &[], script);
                kill(Running::child_of(Running::child_of(run.supervisor())), Signal::SIGKILL).unwrap();
                assert_eq!(run.expect_gone(&format!("init on {rung:?} {script}")), 137);
            }
        }
    }
}

#[test]
fn a_stopped_init_or_keeper_does_not_stop_the_clock() {
    for rung in rungs() {
        let run = Running::new(&rung, &["--timeout", "1s", "--kill-after", "500ms"], SLEEPS);
        let child = Running::child_of(run.supervisor());
        kill(child, Signal::SIGSTOP).unwrap();
        if rung.backend == "landlock" {
            kill(Running::child_of(child), Signal::SIGSTOP).unwrap();
        }
        assert_eq!(run.expect_gone(&format!("{rung:?}")), 124);
    }
}

//! Limits of the sandbox as a whole: cgroups where the caller can make some, what is left of it where not.
//!
//! Each test has a part of the cgroup tree of its own, given to the caller as a service manager would delegate it, and runs in
//! there; what is left in it afterwards was left by us. Needs a shell and busybox alone, but for one that traces calls: on
//! kernels whose host has nothing else (`kernels/`) they run in the cgroup that they were started in.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use shannot::host::{CgroupVersion, Controller, Host};

use crate::support::*;

/// What such a host says of the cgroup that the tests were started in (`kernels/init`).
const EXPECTED: &str = "SHANNOT_EXPECT_LIMITS";

/// A part of the tree that belongs to the caller.
pub struct Delegated {
    caller: Caller,
    /// Those that the caller can have here.
    backends: Vec<&'static str>,
    /// In each hierarchy, the folder that cgroups of runs are made in.
    folders: Vec<PathBuf>,
    /// Where Shannot is started, if not where the tests are.
    starts: Vec<PathBuf>,
    scratch: Scratch,
}

impl Delegated {
    /// `None`, with the reason said, where this host has nothing to delegate.
    pub fn new(caller: Caller) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let host = Host::probe().with_cgroups(&Controller::ALL);
        let cgroups = host.cgroups.as_ref().unwrap();
        let name = format!("shannot-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (mut folders, mut starts): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
        for controller in Controller::ALL {
            let best = |version| cgroups.best(version, &[controller]);
            let Some(place) = best(CgroupVersion::V2).or_else(|| best(CgroupVersion::V1)) else {
                // A thing of the host's that nothing installs.
                eprintln!("skipped: no cgroup limits {}: {}", controller.name(), cgroups.why_not(controller).cause);
                return None;
            };
            let folder = place.folder.join(&name);
            if folders.contains(&folder) {
                continue;
            }
            fs::create_dir(&folder).unwrap();
            if place.version == CgroupVersion::V2 {
                for controller in &place.can_enable {
                    fs::write(place.folder.join("cgroup.subtree_control"), format!("+{}", controller.name())).unwrap();
                }
                // Its processes lie in a child, so that its other children can have controllers.
                let start = folder.join("main");
                fs::create_dir(&start).unwrap();
                fs::write(folder.join("cgroup.subtree_control"), "+memory +pids +cpu").unwrap();
                own(&start, caller);
                own(&start.join("cgroup.procs"), caller);
                own(&folder.join("cgroup.subtree_control"), caller);
                starts.push(start);
            } else {
                starts.push(folder.clone());
            }
            own(&folder, caller);
            own(&folder.join("cgroup.procs"), caller);
            folders.push(folder);
        }
        Some(Self { caller, backends: backends(caller), folders, starts, scratch: Scratch::new() })
    }

    /// The place that the tests have themselves.
    fn here() -> Self {
        let caller = Caller::Own;
        let cgroups = Host::probe().with_cgroups(&Controller::ALL).cgroups.unwrap();
        let place = cgroups.best(CgroupVersion::V2, &Controller::ALL).unwrap_or_else(|| panic!("{cgroups:?}"));
        let folders = vec![place.folder.clone()];
        Self { caller, backends: backends(caller), folders, starts: Vec::new(), scratch: Scratch::new() }
    }

    /// Shannot, or another program, in there.
    fn through(&self, program: &Path) -> Shannot {
        let mut script = String::new();
        for start in &self.starts {
            script.push_str(&format!("echo $$ > {}/cgroup.procs && ", start.display()));
        }
        script.push_str(match self.caller {
            Caller::Own => "exec \"$@\"",
            Caller::Nobody => "exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"",
        });
        Shannot::through(
            Caller::Own,
            Path::new("/bin/sh"),
            ["-c", &script, "sh"].map(Path::new).into_iter().chain([program]),
        )
    }

    fn run(&self, options: &[&str], script: &str) -> Shannot {
        let path = self.scratch.file("p.json", base_profile().to_string());
        self.through(binary()).args([Path::new("-p"), &path]).args(["run"]).args(options).args(["sh", "-c", script])
    }

    /// What came of it, and the report.
    fn report(&self, options: &[&str], script: &str) -> (Result, Value) {
        let folder = self.scratch.path().join("reports");
        if !folder.exists() {
            self.scratch.folder("reports", self.caller);
        }
        let path = folder.join("r.json");
        let mut all = vec!["--report", path.to_str().unwrap()];
        all.extend(options);
        let result = self.run(&all, script).output();
        let report = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        (result, report)
    }

    /// Cgroups of runs that are there now.
    fn left(&self) -> Vec<PathBuf> {
        let names = self.folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let is_runs = |name: &str| name.strip_prefix("shannot-").is_some_and(|rest| rest.len() == 16);
        let names = names.filter(|entry| entry.file_name().to_str().is_some_and(is_runs));
        names.map(|entry| entry.path()).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let made = if self.starts.is_empty() { &[] } else { &self.folders[..] };
        for folder in self.starts.iter().chain(made) {
            for _ in 0..200 {
                if !folder.exists() || fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Those that this host lets the caller have.
fn backends(caller: Caller) -> Vec<&'static str> {
    let is_there = |backend: &&str| Shannot::new(caller).args(["doctor", "--backend", backend]).output().code == 0;
    ["namespaces", "landlock"].into_iter().filter(is_there).collect()
}

/// One for each caller that there can be.
fn delegated() -> Vec<Delegated> {
    if std::env::var_os(EXPECTED).is_some() {
        return vec![Delegated::here()];
    }
    if !is_root() {
        eprintln!("skipped: only root has cgroups to delegate");
        return Vec::new();
    }
    callers().into_iter().filter_map(Delegated::new).collect()
}

#[test]
fn each_limit_is_in_the_report_with_what_holds_it() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--memory", "256M", "--pids", "50", "--cpus", "1.5"];
            let require = ["--require", "limits.memory", "--require", "limits.pids", "--require", "limits.cpus"];
            let (result, report) = place.report(&[&options[..], &require[..]].concat(), "echo ran");
            result.expect_code(0).expect_stdout("ran");
            for layer in ["limits.memory", "limits.pids", "limits.cpus"] {
                let by = report["effective"][layer]["by"].as_str().unwrap();
                assert!(by.starts_with("cgroup v"), "{report:#}");
            }
            let counted = &report["outcome"]["resources"]["cgroup"];
            // Version 2 counts it since Linux 5.19.
            assert!(counted["memory_peak_bytes"].as_u64().is_none_or(|peak| peak > 0), "{report:#}");
            assert_eq!(counted["oom_kills"], 0, "{report:#}");
            assert_eq!(place.left(), [] as [PathBuf; 0]);
        }
    }
}

#[test]
fn memory_is_limited_for_all_processes_together() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            // Each of them is under the limit, and has its memory until nobody waits for it any more.
            let script = |count: u32| {
                format!("for i in $(seq {count}); do dd if=/dev/zero bs=40M count=1 | sleep 1 & done; wait; echo ran")
            };
            let options = ["--backend", backend, "--memory", "120M"];
            let (result, report) = place.report(&options, &script(1));
            result.expect_code(0).expect_stdout("ran");
            assert_eq!(report["outcome"]["resources"]["cgroup"]["oom_kills"], 0, "{report:#}");
            let (result, report) = place.report(&options, &script(5));
            let counted = &report["outcome"]["resources"]["cgroup"];
            assert!(counted["oom_kills"].as_u64().unwrap() > 0, "{report:#} {result:?}");
            assert!(counted["memory_peak_bytes"].as_u64().is_none_or(|peak| peak <= 120 << 20), "{report:#}");
            result.expect_stderr("out of memory (limit 120 MiB)");
            assert_eq!(place.left(), [] as [PathBuf; 0]);
        }
    }
}

#[test]
fn out_of_memory_is_told_from_being_killed() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--memory", "64M"];
            let (result, report) = place.report(&options, "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
            assert_eq!(report["outcome"]["ended_by"], "memory", "{report:#}");
            let result = result.expect_code(137);
            result.expect_stderr("shannot: the command was killed: out of memory (limit 64 MiB)\n");
            // By the kernel, where the command may send no signals.
            let killed = "kill -9 $$; ulimit -t 1; while :; do :; done";
            let (result, report) = place.report(&options, killed);
            assert_eq!(report["outcome"]["ended_by"], "command", "{report:#}");
            let result = result.expect_code(137);
            assert!(!result.stderr.contains("memory"), "{result:?}");
        }
    }
}

#[test]
fn a_fork_bomb_ends_at_its_limit() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--pids", "30", "--timeout", "2", "--kill-after", "0.2"];
            let (result, report) =
                place.report(&options, "trap '' TERM; bomb() { bomb | bomb & }; (bomb) 2> /dev/null; exec sleep 60");
            result.expect_code(124);
            let counted = &report["outcome"]["resources"]["cgroup"];
            // Init and its keeper are counted as well.
            assert!(counted["pids_peak"].as_u64().is_none_or(|peak| peak <= 32), "{report:#}");
            assert!(counted["pids_refused"].as_u64().unwrap() > 0, "{report:#}");
            assert_eq!(place.left(), [] as [PathBuf; 0]);
            // And as many as were asked for can be had.
            let script = "for i in $(seq 28); do sleep 0.3 & done; wait; echo ran";
            let (result, report) = place.report(&["--backend", backend, "--pids", "30"], script);
            result.expect_code(0).expect_stdout("ran");
            assert_eq!(report["outcome"]["resources"]["cgroup"]["pids_refused"], 0, "{report:#}");
        }
    }
}

#[test]
fn cpu_time_is_limited_in_parts_of_a_cpu() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--cpus", "0.5"];
            // They end by the clock: Landlock before ABI 6 lets nobody send signals.
            let script = "busy() { while [ $(date +%s) -lt $end ]; do :; done; }; end=$(($(date +%s) + 3)); \
                busy & busy; wait; exit 3";
            let (result, report) = place.report(&options, script);
            result.expect_code(3);
            let resources = &report["outcome"]["resources"];
            let seconds = |name: &str| resources[name].as_f64().unwrap();
            let used = seconds("user_seconds") + seconds("system_seconds");
            assert!(used < 0.5 * 1.3 * seconds("elapsed_seconds"), "{report:#}");
            // It was busy at all.
            assert!(used > 0.1, "{report:#}");
        }
    }
}

#[test]
fn many_at_once_leave_no_cgroup() {
    for place in delegated() {
        let script = "sleep 0.2; exit 7";
        // The machine may be a slow one.
        let count = if std::env::var_os(EXPECTED).is_some() { 20 } else { 100 };
        let mut runs: Vec<Shannot> =
            (0..count).map(|_| place.run(&["--memory", "64M", "--pids", "20"], script)).collect();
        let children: Vec<Child> = runs
            .iter_mut()
            .map(|run| run.command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        for child in children {
            Result::new(child.wait_with_output().unwrap()).expect_code(7);
        }
        assert_eq!(place.left(), [] as [PathBuf; 0]);
    }
}

#[test]
fn the_next_run_sweeps_what_a_killed_supervisor_left() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--memory", "64M", "--pids", "20", "--cpus", "1"];
            let mut run = place.run(&options, "setsid sleep 600 & sleep 600");
            let mut child = run.command.stdin(Stdio::null()).spawn().unwrap();
            wait_until(|| place.left().iter().any(|group| !members(group).is_empty()));
            // One that is in use is nobody else's, also when another one is made beside it.
            place.run(&["--memory", "64M"], "exit 3").output().expect_code(3);
            assert!(!place.left().is_empty() && child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!place.left().is_empty());
            place.run(&options, "exit 3").output().expect_code(3);
            wait_until(|| place.left().is_empty());
        }
        // Even if something runs in it on and on; and nothing of another name is touched.
        let kept = place.folders.iter().map(|folder| folder.join("shannot-of-others")).collect::<Vec<_>>();
        let stray = place.folders.iter().map(|folder| folder.join("shannot-0123456789abcdef")).collect::<Vec<_>>();
        for folder in kept.iter().chain(&stray) {
            fs::create_dir(folder).unwrap();
            own(folder, place.caller);
        }
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        for folder in &stray {
            fs::write(folder.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
            if is_root() {
                chown(folder.join("cgroup.procs"), Some(NOBODY), None).unwrap();
            }
        }
        // Somebody else's stays as well; only root can make one.
        let foreign = is_root().then(|| place.folders[0].join("shannot-fedcba9876543210"));
        if let Some(foreign) = &foreign {
            fs::create_dir(foreign).unwrap();
            chown(foreign, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        if place.caller == Caller::Own {
            let options = ["--memory", "64M", "--pids", "20", "--cpus", "1"];
            place.run(&options, "exit 3").output().expect_code(3);
            assert!(sleeper.try_wait().unwrap().is_some(), "what was left in it has ended");
            assert!(stray.iter().all(|folder| !folder.exists()));
            assert!(kept.iter().chain(&foreign).all(|folder| folder.exists()));
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        for folder in kept.iter().chain(&stray).chain(&foreign).filter(|folder| folder.exists()) {
            fs::remove_dir(folder).unwrap();
        }
    }
}

fn members(group: &Path) -> String {
    ["cgroup.procs", "run/cgroup.procs"].map(|file| fs::read_to_string(group.join(file)).unwrap_or_default()).concat()
}

/// As the service manager does that a parent belongs to, when the needs of its own units change.
#[test]
fn nobody_takes_the_controllers_of_a_run_away() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let options = ["--backend", backend, "--memory", "64M", "--pids", "20", "--cpus", "0.5"];
            let mut run = place.run(&options, "sleep 600");
            let mut child = run.command.stdin(Stdio::null()).spawn().unwrap();
            wait_until(|| place.left().iter().any(|group| !members(group).is_empty()));
            let controls = place.folders.iter().map(|folder| folder.join("cgroup.subtree_control"));
            for control in controls.filter(|control| control.exists()) {
                for controller in ["-memory", "-pids", "-cpu"] {
                    let refused = fs::write(&control, controller).map_err(|error| error.kind());
                    assert_eq!(refused, Err(std::io::ErrorKind::ResourceBusy), "{controller}");
                }
            }
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            child.wait().unwrap();
            wait_until(|| place.left().is_empty());
        }
    }
}

#[track_caller]
fn wait_until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing for 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_limit_that_no_cgroup_holds_can_be_refused() {
    // One who has none here.
    let caller =
        if std::env::var(EXPECTED).is_ok_and(|holds| holds == "rlimits") { Caller::Own } else { Caller::Nobody };
    if !callers().contains(&caller) {
        return;
    }
    let run = |options: &[&str]| {
        Shannot::new(caller).profile(&base_profile()).args(["run"]).args(options).args(["sh", "-c", "nproc"]).output()
    };
    let refused = run(&["--memory", "64M", "--require", "limits.memory"]).expect_code(125);
    refused.expect_stderr("limits.memory, which is required: partial (without a sum over processes: RLIMIT_AS limits each process's address space; ");
    let refused = run(&["--pids", "20", "--require", "limits.pids"]).expect_code(125);
    let is_counted = caller == Caller::Nobody || !is_root();
    refused.expect_stderr(if is_counted {
        "limits.pids, which is required: partial (without a count per sandbox: "
    } else {
        "limits.pids, which is required: off (RLIMIT_NPROC, which it is set by, does not bind the host's root; "
    });
    let refused = run(&["--cpus", "0.5", "--require", "limits.cpus"]).expect_code(125);
    refused.expect_stderr("a part of a CPU: affinity holds it to 1");
    run(&["--cpus", "0.5"]).expect_code(0).expect_stdout("1\n");
    run(&["--cpus", "0.001"]).expect_code(125).expect_stderr("\"0.001\" is not a number of CPUs");
    run(&["--cpus", "1"]).expect_code(0).expect_stdout("1\n");
    // Affinity is a default that a process may change.
    for backend in backends(caller) {
        let whole = ["--cpus", "1", "--require", "limits.cpus", "--backend", backend];
        run(&whole).expect_code(125).expect_stderr("a process may choose its CPUs anew");
    }
}

#[test]
fn file_sizes_open_files_and_tmpfs_can_be_limited_by_options() {
    for caller in callers() {
        let run = |options: &[&str], script: &str| {
            let run = Shannot::new(caller).profile(&base_profile()).args(["run"]).args(options);
            run.args(["sh", "-c", script]).output()
        };
        run(&["--file-size", "4K"], "head -c 8192 /dev/zero > /tmp/x; stat -c %s /tmp/x").expect_stdout("4096");
        run(&["--open-files", "20"], "ulimit -n").expect_stdout("20");
        run(&["--tmpfs-size", "64K"], "dd if=/dev/zero of=/tmp/x bs=1048576 count=1")
            .expect_stderr("No space left on device");
        run(&["--file-size", "1M", "--tmpfs-size", "2M"], "head -c 921600 /dev/zero > /tmp/x && echo ran")
            .expect_stdout("ran");
        // Empty files take the kernel's memory too.
        let many = run(&["--tmpfs-size", "2M"], "i=0; while : > /tmp/$i; do i=$((i+1)); done; echo $i");
        many.expect_stderr("No space left on device");
        let over = json!({"limits": {"open_files": 30}});
        let run =
            Shannot::new(caller).profile(&profile(over)).args(["run", "--open-files", "20", "sh", "-c", "ulimit -n"]);
        run.output().expect_stdout("20");
    }
}

/// Children that stay, until one is refused or there are more than allowed.
const FORKS: &str = "\
import os, signal
children = []
try:
    for number in range(30):
        children.append(os.fork())
        if children[-1] == 0:
            signal.pause()
except BlockingIOError:
    print('refused')
print('ran')
for child in children:
    os.kill(child, 9)
";

#[test]
fn no_failing_call_leaves_a_limit_out() {
    let (Some(strace), Some(timeout)) = (tool("strace"), tool("timeout")) else { return };
    let Some(_) = tool("python3") else { return };
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let trace = place.scratch.file(&format!("trace-{backend}"), "");
            own(&trace, place.caller);
            let profile = place.scratch.file("p.json", base_profile().to_string());
            for call in ["mkdir", "flock", "openat", "write", "rmdir", "unshare", "getdents64"] {
                for occurrence in 1..80 {
                    let inject = format!("inject={call}:error=EPERM:when={occurrence}");
                    let run =
                        place.through(&timeout).args(["-s", "KILL", "60"]).args([&strace]).args(["-f", "-qq", "-o"]);
                    let run = run.args([&trace]).args(["-e", &format!("trace={call}"), "-e", &inject]).args([binary()]);
                    let options = ["run", "--backend", backend, "--memory", "64M", "--pids", "20"];
                    let run = run.args([Path::new("-p"), &profile]).args(options);
                    // Without the namespace there would be another rung.
                    let run = run.args(["--require", "limits.memory", "--require", "limits.pids"]);
                    let result = run.args(["python3", "-c", FORKS]).output();
                    let context = format!("{inject} as {:?} by {backend}: {result:?}", place.caller);
                    if result.stdout.contains("ran") {
                        assert!(result.stdout.contains("refused"), "{context}");
                    } else {
                        let is_said = result.stderr.contains("shannot: ") || result.stderr.contains("python");
                        // The injected write may be that of the message, or the command's own.
                        assert!(is_said || call == "write", "{context}");
                        assert_ne!(result.code, 0, "{context}");
                    }
                    assert_ne!(result.code, 137, "hangs: {context}");
                    if !fs::read_to_string(&trace).unwrap().contains("(INJECTED)") {
                        break;
                    }
                }
            }
            // The calls that could not remove one left it to this.
            place.run(&["--backend", backend, "--memory", "64M", "--pids", "20"], "true").output().expect_code(0);
            assert_eq!(place.left(), [] as [PathBuf; 0]);
        }
    }
}

#[test]
fn the_command_can_not_lift_its_limits() {
    for place in delegated() {
        for backend in place.backends.iter().copied() {
            let binds = [json!({"source": "/sys", "target": "/sys"})];
            let profile = place.scratch.file("sys.json", with_binds(&binds, json!({})).to_string());
            let options = ["run", "--backend", backend, "--memory", "64M", "--pids", "20", "--cpus", "1", "sh", "-c"];
            // Each file of the run's cgroups and of those above them.
            let script = "for folder; do for group in $folder/shannot-*; do \
                    cd $group || continue; \
                    echo found; \
                    for file in memory.max memory.limit_in_bytes pids.max cpu.max cpu.cfs_quota_us ../cgroup.procs; do \
                        [ -e $file ] && (echo 0 > $file) 2> /dev/null && echo \"wrote $file\"; \
                    done; \
                done; done; true";
            let run = place.through(binary()).args([Path::new("-p"), &profile]).args(options).args([script, "sh"]);
            let run = run.args(&place.folders);
            let result = run.output().expect_code(0).expect_stdout("found");
            assert!(!result.stdout.contains("wrote"), "{result:?}");
        }
    }
}

//! Fault injection: every security-relevant call fails once, at each of its occurrences. The command then does not run,
//! or it runs with everything that an undisturbed run has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::*;

/// What the command reports of its own confinement.
const LOOK: &str = "grep -E 'Cap|NoNew|Seccomp' /proc/self/status; for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; \
cut -d' ' -f4-6 /proc/self/mountinfo; cat /proc/self/uid_map /proc/self/gid_map; ls /proc/self/fd; pwd; hostname; \
: > /proc/self/fd/0; touch /etc/x; unshare -U true; echo ran";

const CALLS: &[&str] = &[
    "clone",
    "unshare",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "capset",
    "capget",
    "prctl",
    "seccomp",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "sethostname",
    "chdir",
    "fchdir",
    "close_range",
    "keyctl",
    "setrlimit",
    "prlimit64",
    "openat2",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "write",
    "statx",
    "socket",
    "ioctl",
    "rt_sigprocmask",
    "signalfd4",
    "socketpair",
    "execve",
    "poll",
    "ppoll",
    "faccessat2",
];

/// Namespaces are new in every run: their numbers say nothing.
fn comparable(text: &str) -> String {
    let without_number = |line: &str| line.split_once(":[").map_or(line.to_owned(), |(kind, _)| kind.to_owned());
    text.lines().map(without_number).collect::<Vec<_>>().join("\n")
}

struct Injector {
    strace: PathBuf,
    /// timeout(1).
    timeout: PathBuf,
    scratch: Scratch,
    /// What is injected into, up to the command.
    launcher: Vec<String>,
    /// Its exit code for failures of its own.
    failed: i32,
    host_namespaces: Vec<String>,
}

impl Injector {
    /// `None`, with the reason said, where the tools are missing.
    fn new() -> Option<Self> {
        let (strace, timeout) = (tool("strace")?, tool("timeout")?);
        let link = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
        let host_namespaces = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"].map(link).to_vec();
        let scratch = Scratch::new();
        // Else a call that fails can lead to a lower rung, or one with less furniture, that needs no such call.
        let require = ["user-namespace", "uts-namespace", "cgroup-namespace", "procfs", "userns-limit"];
        let changes = json!({"hostname": "injected", "network": "none", "hide": ["/etc/shadow"], "require": require});
        let profile = scratch.file("p.json", profile(changes).to_string());
        let launcher = [binary(), Path::new("-p"), &profile].map(|word| word.display().to_string());
        let launcher =
            launcher.into_iter().chain(["run", "--backend", "namespaces", "--"].map(str::to_owned)).collect();
        Some(Self { strace, timeout, scratch, launcher, failed: 125, host_namespaces })
    }

    /// The same where there are no namespaces.
    fn in_place() -> Option<Self> {
        let mut injector = Self::new()?;
        let changes = json!({"hostname": "injected", "network": "none", "hide": ["/etc/shadow"]});
        injector.scratch.file("p.json", profile(changes).to_string());
        for word in &mut injector.launcher {
            if word == "namespaces" {
                "landlock".clone_into(word);
            }
        }
        injector.host_namespaces.clear();
        Some(injector)
    }

    /// The same for the stand-in for bubblewrap, with the options that ask for the most.
    fn of_bwrap() -> Option<Self> {
        let options = "--ro-bind /usr /usr --ro-bind /etc /etc --ro-bind-try /bin /bin --ro-bind-try /lib /lib --ro-bind-try /lib64 /lib64 \
                       --tmpfs /tmp --unshare-all --unshare-user --disable-userns --proc /proc --dev /dev --cap-drop ALL \
                       --hostname injected --new-session --die-with-parent --clearenv --setenv PATH /usr/bin:/bin --chdir /tmp";
        let words = options.split_whitespace().map(str::to_owned);
        let launcher = std::iter::once(bwrap_binary().display().to_string()).chain(words).collect();
        Some(Self { launcher, failed: 1, ..Self::new()? })
    }

    /// A run with these injections, and whether any of them came to pass.
    fn run(&self, caller: Caller, inject: &[&str]) -> (Result, bool) {
        let trace = self.scratch.path().join(format!("trace-{caller:?}"));
        fs::write(&trace, "").unwrap();
        own(&trace, caller);
        let calls: Vec<&str> = inject.iter().filter_map(|what| what.split(':').next()).collect();
        let mut arguments = vec!["-s".to_owned(), "KILL".into(), "20".into(), self.strace.display().to_string()];
        arguments.extend(["-f", "-qq", "-o"].map(str::to_owned));
        arguments.push(trace.display().to_string());
        arguments.extend(["-e".into(), format!("trace={}", calls.join(","))]);
        arguments.extend(inject.iter().flat_map(|what| ["-e".to_owned(), format!("inject={what}")]));
        arguments.extend(self.launcher.iter().cloned());
        arguments.extend(["bash", "-c", LOOK].map(str::to_owned));
        let start = Instant::now();
        let result = Shannot::through(caller, &self.timeout, arguments).output();
        assert!(start.elapsed() < Duration::from_secs(19), "{inject:?} as {caller:?} hangs: {result:?}");
        let injected = String::from_utf8_lossy(&fs::read(&trace).unwrap()).contains("(INJECTED)");
        (result, injected)
    }
}

/// Whether the call's `nth` occurrence belongs to setting up. strace counts per process; the command's own calls come
/// under the same number, and their failing is the command's business.
fn judge(injector: &Injector, undisturbed: &str, what: &str, result: &Result) {
    if !result.stdout.contains("ran") {
        // It did not run: then nothing of it did.
        // An injected write may be that of the message itself.
        let said = (what.starts_with("write") && result.code == injector.failed)
            || result.stderr.contains("bwrap: ")
            || result.stderr.contains("shannot: cannot")
            || result.stderr.contains("shannot: the sandbox")
            || result.code > 128;
        let by_command = result.stdout.contains("Cap")
            || result.stderr.contains("bash")
            || result.stderr.contains("error while loading");
        assert!(said || by_command, "{what}: {result:?}");
        assert!(result.code != 0, "{what}: {result:?}");
        return;
    }
    for namespace in &injector.host_namespaces {
        assert!(!result.stdout.contains(namespace.as_str()), "{what}: {namespace} is the host's: {result:?}");
    }
    for line in comparable(undisturbed).lines() {
        let essential = ["Cap", "NoNew", "Seccomp"].iter().any(|word| line.starts_with(word))
            // The command could not say it.
            && !result.stderr.contains("grep: write error");
        assert!(!essential || result.stdout.contains(line), "{what}: without {line:?}: {result:?}");
    }
    assert!(!Path::new("/etc/x").exists(), "{what}");
}

#[test]
fn no_failing_call_leaves_a_layer_out() {
    let Some(injector) = Injector::new() else { return };
    fail_each_call(&injector, "EPERM");
}

#[test]
fn no_failing_call_leaves_a_layer_out_without_namespaces() {
    let Some(injector) = Injector::in_place() else { return };
    fail_each_call(&injector, "EPERM");
}

#[test]
fn no_failing_call_leaves_out_what_bubblewraps_options_ask_for() {
    let Some(injector) = Injector::of_bwrap() else { return };
    // It goes on where root of a container may not drop from the bounding set (EPERM), as bubblewrap does.
    fail_each_call(&injector, "ENOSYS");
}

fn fail_each_call(injector: &Injector, errno: &str) {
    for caller in callers() {
        let (undisturbed, _) = injector.run(caller, &["getpgid:error=EPERM:when=9999"]);
        assert!(undisturbed.stdout.contains("ran"), "{undisturbed:?}");
        for call in CALLS {
            for occurrence in 1..60 {
                let what = format!("{call}:error={errno}:when={occurrence}");
                let (result, injected) = injector.run(caller, &[&what]);
                judge(injector, &undisturbed.stdout, &format!("{what} as {caller:?}"), &result);
                if !injected {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_kill_at_any_call_leaves_nothing_behind() {
    for injector in [Injector::new(), Injector::in_place()].into_iter().flatten() {
        for caller in callers() {
            for call in ["clone", "mount", "pivot_root", "prctl", "landlock_restrict_self", "seccomp", "write"] {
                for occurrence in [1, 2, 5] {
                    let what = format!("{call}:signal=KILL:when={occurrence}");
                    injector.run(caller, &[&what]);
                }
            }
        }
    }
}

#[test]
fn kernels_without_the_newer_calls_get_the_same_sandbox() {
    for injector in [Injector::new(), Injector::of_bwrap()].into_iter().flatten() {
        without_newer_calls(&injector);
    }
}

fn without_newer_calls(injector: &Injector) {
    for caller in callers() {
        let (undisturbed, _) = injector.run(caller, &["getpgid:error=EPERM:when=9999"]);
        for missing in [
            &["openat2:error=ENOSYS"][..],
            &["open_tree:error=ENOSYS", "move_mount:error=ENOSYS", "mount_setattr:error=ENOSYS"],
            &["close_range:error=ENOSYS"],
            &[
                "openat2:error=ENOSYS",
                "open_tree:error=ENOSYS",
                "mount_setattr:error=ENOSYS",
                "close_range:error=ENOSYS",
            ],
        ] {
            let (result, _) = injector.run(caller, missing);
            assert!(result.stdout.contains("ran"), "{missing:?} as {caller:?}: {result:?}");
            let lines = |text: &str| {
                // nosuid means nothing for a device, and bubblewrap's are given it only where one call does it.
                let is_device = |line: &&str| line.contains(" /dev/");
                let mut lines: Vec<String> =
                    comparable(text).lines().filter(|line| !is_device(line)).map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&result.stdout), lines(&undisturbed.stdout), "{missing:?} as {caller:?}");
        }
    }
}

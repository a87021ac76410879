//! Hosts that refuse what a sandbox is made of, simulated on this kernel: which rung it is, what the report says, and a
//! canary inside that confirms each promise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::*;

/// A host: a program that starts what follows it on one.
struct Host {
    name: &'static str,
    words: Vec<String>,
}

impl Host {
    fn shell(name: &'static str, script: &str) -> Self {
        Self { name, words: ["sh", "-c", &format!("{script} exec \"$@\""), "sh"].map(str::to_owned).to_vec() }
    }

    fn start(&self, caller: Caller) -> Shannot {
        let (program, arguments) = self.words.split_first().unwrap();
        let run = Shannot::through(caller, &tool(program).unwrap(), arguments);
        run.args([binary()])
    }

    /// Runs under a profile, gives what the report says, and lets the canary try to break the promises.
    fn is(&self, caller: Caller, rung: &str, profile: &str, layers: &[(&str, &str)]) {
        let words = ["-p", profile, "run", "--report", "fd:1", "--no-stdout", "--", "ls", "/etc/hostname"];
        let result = self.start(caller).args(words).output();
        assert_eq!(result.code, 0, "{} as {caller:?}: {result:?}", self.name);
        let report: Value = serde_json::from_str(&result.stdout).unwrap();
        assert_eq!(report["rung"], rung, "{} as {caller:?}: {report:#}", self.name);
        for (layer, state) in layers {
            assert_eq!(
                report["effective"][layer]["state"], *state,
                "{layer} on {} as {caller:?}: {report:#}",
                self.name
            );
        }
        let canary = self.start(caller).args(["-p", profile, "verify"]).output();
        assert_eq!(canary.code, 0, "{} as {caller:?}: {canary:?}", self.name);
        let doctor = self.start(caller).args(["-p", profile, "doctor", "--json"]).output();
        assert_eq!(doctor.code, 0, "{}: {doctor:?}", self.name);
        let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
        assert_eq!(doctor["profile"]["rung"], rung, "{}: doctor says another rung: {doctor:#}", self.name);
        assert_eq!(doctor["profile"]["expected"], report["effective"], "{}: doctor says something else", self.name);
    }
}

/// An outer user namespace in which no more can be made; what follows has no capability in it.
const NO_USER_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces;";

#[test]
fn without_user_namespaces_an_ordinary_user_gets_the_lowest_rung() {
    for caller in callers() {
        let script = format!(
            "{NO_USER_NAMESPACES} exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$@\"; exit 99;"
        );
        let mut host = Host::shell("max_user_namespaces=0", &script);
        host.words.splice(0..0, ["unshare", "-Ur"].map(str::to_owned));
        for profile in ["minimal", "readonly", "diagnostics", "host"] {
            host.is(
                caller,
                "landlock",
                profile,
                &[("user-namespace", "off"), ("landlock-fs", "full"), ("seccomp", "full")],
            );
        }
        let refused = host.start(caller).args(["run", "--backend", "namespaces", "--", "ls"]).output();
        refused.expect_code(125).expect_stderr("user.max_user_namespaces is 0").expect_stderr("hint: sysctl");
    }
}

#[test]
fn without_user_namespaces_root_keeps_the_first_rung() {
    for caller in callers() {
        let mut host = Host::shell("max_user_namespaces=0, root", NO_USER_NAMESPACES);
        host.words.splice(0..0, ["unshare", "-Ur"].map(str::to_owned));
        host.is(
            caller,
            "namespaces",
            "minimal",
            &[("user-namespace", "off"), ("mount-namespace", "full"), ("procfs", "full")],
        );
    }
}

#[test]
fn where_parts_of_proc_are_masked_the_hosts_is_shown_read_only() {
    for caller in callers() {
        let mut host = Host::shell("masked /proc", "mount -t tmpfs none /proc/irq;");
        host.words.splice(0..0, ["unshare", "-Urmpf", "--mount-proc"].map(str::to_owned));
        host.is(caller, "namespaces", "minimal", &[("procfs", "partial"), ("pid-namespace", "full")]);
        let status = host.start(caller).args([
            "-p",
            "host",
            "run",
            "--",
            "sh",
            "-c",
            "cat /proc/self/status; echo x > /proc/sys/kernel/domainname",
        ]);
        let status = status.output();
        assert!(status.stdout.contains("NoNewPrivs:\t1") && status.code != 0, "{status:?}");
        let off = json!({"name": "x", "landlock": "off", "binds": [{"source": "/", "target": "/"}], "environment": {"PATH": "/usr/bin:/bin"}});
        let scratch = Scratch::new();
        let path = scratch.file("p.json", off.to_string());
        // Without Landlock it would lead through other processes; then there is none.
        let result =
            host.start(caller).args(["-p".as_ref(), path.as_os_str()]).args(["run", "--", "ls", "/proc"]).output();
        assert_eq!(result.stdout, "", "{result:?}");
    }
}

/// Starts what follows under a filter.
const UNDER_FILTER: &str = "\
import ctypes, os, sys
code = open(sys.argv[1], 'rb').read()
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
program = Program(len(code) // 8, code)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
";

/// A host whose filter is this policy.
fn filtered(name: &'static str, scratch: &Scratch, policy: &Path) -> Host {
    let compiled = scratch.path().join("filter.bpf");
    let compile = Shannot::new(Caller::Own)
        .args(["seccomp", "compile"])
        .args([policy])
        .args(["-o".as_ref(), compiled.as_os_str()]);
    compile.output().expect_code(0);
    fs::set_permissions(&compiled, fs::Permissions::from_mode(0o644)).unwrap();
    let words = ["python3", "-c", UNDER_FILTER, &compiled.display().to_string()].map(str::to_owned).to_vec();
    Host { name, words }
}

#[test]
fn filters_that_refuse_namespaces_leave_the_lowest_rung() {
    if tool("python3").is_none() {
        return;
    }
    for (name, errno) in [("a filter with EPERM", 1), ("a filter with ENOSYS", 38)] {
        let refused = json!({"names": ["unshare", "clone3", "mount", "setns", "pivot_root", "umount2", "open_tree"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
        let flags = json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": [{"index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}]});
        let mounts = json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": [{"index": 0, "value": 0x2_0000, "valueTwo": 0x2_0000, "op": "SCMP_CMP_MASKED_EQ"}]});
        let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused, flags, mounts]});
        let scratch = Scratch::new();
        let host = filtered(name, &scratch, &scratch.file("policy.json", policy.to_string()));
        for caller in callers() {
            host.is(caller, "landlock", "minimal", &[("landlock-fs", "full"), ("allowlist", "full")]);
            let refused = host.start(caller).args(["run", "--backend", "namespaces", "--", "ls"]).output();
            refused.expect_code(125).expect_stderr("a seccomp filter around this process refuses user namespaces");
        }
    }
}

#[test]
fn systemds_filters_leave_what_they_do_not_forbid() {
    if tool("python3").is_none() {
        return;
    }
    // RestrictSUIDSGID: openat2 can't be looked into, and set-id modes are refused (systemd, seccomp-util.c).
    let hidden = json!({"names": ["openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38});
    let modes = json!({"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 2, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ"}]});
    let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [hidden, modes]});
    let scratch = Scratch::new();
    let host = filtered("RestrictSUIDSGID", &scratch, &scratch.file("policy.json", policy.to_string()));
    for caller in callers() {
        host.is(caller, "namespaces", "minimal", &[("mount-namespace", "full"), ("procfs", "full")]);
    }
}

#[test]
fn dockers_policy_around_us_leaves_the_lowest_rung() {
    let policy = sources().join("../shared/data");
    let Some(policy) = find(&policy, "docker").or_else(|| find(&policy, "moby")) else {
        eprintln!("skipped: no policy of Docker's here");
        return;
    };
    let scratch = Scratch::new();
    let host = filtered("Docker's policy", &scratch, &policy);
    host.is(Caller::Nobody, "landlock", "minimal", &[("landlock-fs", "full")]);
}

fn find(folder: &Path, word: &str) -> Option<PathBuf> {
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.to_string_lossy().contains(word)
                && path.extension().is_some_and(|extension| extension == "json")
            {
                return Some(path);
            }
        }
    }
    None
}

#[test]
fn nested_in_shannot_and_in_bubblewrap() {
    for caller in callers() {
        // Where it is copied to, an ordinary user's tests find a tmpfs.
        let folder = binary().parent().unwrap();
        let nested = |words: &[&str]| {
            let run = Shannot::new(caller).args(["-p", "host", "run", "--ro"]).args([folder]).args(["--"]);
            run.args([binary()]).args(words).output()
        };
        let result = nested(&["-p", "minimal", "run", "--report", "fd:1", "--no-stdout", "--", "ls", "/etc/hostname"]);
        let report: Value = serde_json::from_str(&result.stdout).unwrap_or_else(|_| panic!("{result:?}"));
        assert_eq!(report["rung"], "landlock", "{result:?}");
        nested(&["-p", "minimal", "verify"]).expect_code(0);
        if tool("bwrap").is_some() {
            let words = "bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-all --die-with-parent";
            let host = Host { name: "in bwrap", words: words.split(' ').map(str::to_owned).collect() };
            host.is(caller, "namespaces", "minimal", &[("mount-namespace", "full")]);
        }
    }
}

/// A root with busybox, and this binary as /shannot.
fn small_root(scratch: &Scratch, busybox: &Path) -> PathBuf {
    let root = scratch.path().join("rootfs");
    for folder in ["", "bin", "proc", "dev", "etc", "tmp", "usr", "sys"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    for (from, to) in [(busybox, "bin/busybox"), (binary(), "shannot")] {
        fs::copy(from, root.join(to)).unwrap();
        fs::set_permissions(root.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for applet in ["sh", "ls", "cat", "touch"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/hostname"), "small").unwrap();
    root
}

#[test]
fn in_a_chroot() {
    if !is_root() {
        return;
    }
    let Some(busybox) = tool("busybox") else { return };
    let scratch = Scratch::new();
    let root = small_root(&scratch, &busybox);
    for user in ["root", "nobody"] {
        let ids = if user == "root" { "0:0" } else { "65534:65534" };
        let script = format!(
            "mount -t proc proc {0}/proc && mount --bind /dev {0}/dev && exec /usr/sbin/chroot --userspec={ids} {0} /shannot \"$@\"",
            root.display()
        );
        let run = |words: &[&str]| {
            let run = Shannot::through(Caller::Own, &tool("unshare").unwrap(), ["-m", "sh", "-c", &script, "sh"]);
            run.args(words).output()
        };
        let result = run(&["run", "--report", "fd:1", "--no-stdout", "--", "ls", "/etc/hostname"]);
        let report: Value = serde_json::from_str(&result.stdout).unwrap_or_else(|_| panic!("{user}: {result:?}"));
        assert_eq!((result.code, &report["rung"]), (0, &json!("landlock")), "{user}: {report:#}");
        run(&["verify"]).expect_code(0);
    }
}

#[test]
fn in_a_bundle_of_runc() {
    let (Some(runc), Some(busybox)) = (tool("runc"), tool("busybox")) else { return };
    for caller in callers() {
        let scratch = Scratch::new();
        let bundle = scratch.folder("bundle", caller);
        fs::rename(small_root(&scratch, &busybox), bundle.join("rootfs")).unwrap();
        own(&bundle.join("rootfs"), caller);
        let run = |words: &[&str]| {
            let state = scratch.path().join("bundle/state");
            let spec = Shannot::through(caller, &runc, ["spec", "--rootless", "-b"]).args([&bundle]);
            fs::remove_file(bundle.join("config.json")).ok();
            spec.output().expect_code(0);
            let text = fs::read_to_string(bundle.join("config.json")).unwrap();
            let mut config: Value = serde_json::from_str(&text).unwrap();
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = std::iter::once(&"/shannot").chain(words).copied().collect();
            config["linux"].as_object_mut().unwrap().remove("resources");
            fs::write(bundle.join("config.json"), config.to_string()).unwrap();
            let name = format!("shannot-test-{}-{}-{}", std::process::id(), caller as u8, words.len());
            let run = Shannot::through(caller, &runc, ["--root".as_ref(), state.as_os_str()]).args(["run", "-b"]);
            run.args([bundle.as_os_str()])
                .args([name])
                .env("XDG_RUNTIME_DIR", &scratch.path().display().to_string())
                .output()
        };
        let result = run(&["run", "--report", "fd:1", "--no-stdout", "--", "ls", "/etc/hostname"]);
        let report: Value = serde_json::from_str(&result.stdout).unwrap_or_else(|_| panic!("{caller:?}: {result:?}"));
        assert_eq!((result.code, &report["rung"]), (0, &json!("landlock")), "{caller:?}: {report:#}");
        assert!(report["in_place"]["because"].as_str().unwrap().contains("CAP_SETFCAP"), "{caller:?}: {report:#}");
        run(&["verify"]).expect_code(0);
    }
}

//! Without namespaces: what Landlock has no right for is refused by filters or left out of the rules, and what can't be is said.

use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::support::*;

const RUN: &[&str] = &["run", "--backend", "landlock"];

/// A run on the lowest rung of a shell script.
fn in_place(caller: Caller, profile: &Value, script: &str) -> Result {
    Shannot::new(caller).profile(profile).args(RUN).args(["--", "sh", "-c", script]).output()
}

/// What the report says of a layer.
fn layer(caller: Caller, profile: &Value, options: &[&str], layer: &str) -> Value {
    let run = Shannot::new(caller).profile(profile).args(["run", "--report", "fd:1"]).args(options);
    let result = run.args(["--", "true"]).output().expect_code(0);
    serde_json::from_str::<Value>(&result.stdout).unwrap()["effective"][layer].clone()
}

fn bind(path: &Path, read_only: bool) -> Value {
    json!({"source": path, "target": path, "read_only": read_only})
}

#[cfg(target_arch = "x86_64")]
#[test]
fn nothing_tells_of_hidden_files_but_stat() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        for name in ["shown", "hidden"] {
            own(&scratch.file(&format!("data/{name}"), "text"), caller);
        }
        let profile = with_binds(&[bind(&folder, true)], json!({"hide": [folder.join("hidden")]}));
        let program = format!(
            "\
P = {folder:?} + '/'
for name in ('shown', 'hidden'):
    path = (P + name).encode()
    b = ctypes.create_string_buffer(256)
    print(name, *(attempt(lambda: os.listxattr(path, follow_symlinks=f)) for f in (True, False)),
        *(attempt(lambda: os.getxattr(path, 'user.x', follow_symlinks=f)) for f in (True, False)),
        call(464, -100 & 0xffffffff, path, 0, b'user.x', b, 16), call(465, -100 & 0xffffffff, path, 0, b, 256))
    print(name, attempt(os.listxattr, os.open(path, os.O_PATH)), attempt(lambda p: os.listxattr(os.open(p, os.O_RDONLY)), path))
fd = libc.inotify_init1(0)
print(fd >= 0, [call(254, fd, path, 0x100) for path in (P.encode(), (P + 'hidden').encode(), b'/', b'/usr')])
print(call(300, 0, 0))
",
        );
        let Some(result) = python_with(caller, &profile, RUN, &program) else { return };
        // Two names for one number.
        let stdout = result.stdout.replace("EOPNOTSUPP", "ENOTSUP");
        let lines: Vec<&str> = stdout.lines().collect();
        let none = "ENOTSUP ENOTSUP ENOTSUP ENOTSUP";
        let expected = [
            format!("shown {none} ENOTSUP ENOTSUP"),
            "shown EBADF ok".to_owned(),
            format!("hidden {none} ENOTSUP ENOTSUP"),
            "hidden EBADF EACCES".to_owned(),
            "True ['ENOSPC', 'ENOSPC', 'ENOSPC', 'ENOSPC']".to_owned(),
        ];
        assert_eq!(lines.get(..5).unwrap_or_default(), expected, "{caller:?}: {result:#?}");
        assert!(["EPERM", "ENOSYS"].contains(lines.last().unwrap()), "fanotify: {result:#?}");
    }
}

#[test]
fn programs_that_ask_for_attributes_and_watches_go_on_without() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        own(&scratch.file("data/file", "precious\n"), caller);
        let profile = with_binds(&[bind(&folder, true)], json!({}));
        let path = folder.display();
        let listed = in_place(caller, &profile, &format!("ls -l {path} && cp {path}/file copy && cat copy"));
        let listed = listed.expect_code(0).expect_stdout("precious");
        assert_eq!(listed.stderr, "", "{caller:?}");
        // It polls: what is appended is seen.
        let script = "echo one > log; tail -n +1 -s 0.1 -f log & sleep 0.5; echo two >> log; sleep 1; kill $!";
        in_place(caller, &profile, script).expect_stdout("one\ntwo");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn pairs_of_sockets_are_of_one_family() {
    for caller in callers() {
        let program = "\
for family, kind in ((1, 1), (1, 5), (1, 2), (2, 1), (10, 1), (30, 1), (16, 1), (1 << 32 | 2, 1)):
    print(call(53, family, kind, 0, ctypes.byref((ctypes.c_int * 2)())))
";
        let Some(result) = python_with(caller, &base_profile(), RUN, program) else { return };
        let answers: Vec<&str> = result.stdout.lines().collect();
        let no = "EAFNOSUPPORT";
        // Of datagram sockets each could send anywhere.
        assert_eq!(answers, ["ok", "ok", "EPROTONOSUPPORT", no, no, no, no, no], "{caller:?}: {result:#?}");
    }
}

/// Runs as the caller on the lowest rung, in a mount namespace of the test's own with more mounts.
fn below_mounts(caller: Caller, scratch: &Scratch, mounts: &str, profile: &Value, words: &[&str]) -> Option<Result> {
    if !is_root() {
        return None;
    }
    let path = scratch.file("profile.json", profile.to_string());
    let user = if caller == Caller::Nobody { "setpriv --reuid 65534 --regid 65534 --clear-groups" } else { "" };
    let (folder, binary) = (scratch.path().display(), binary().display());
    let outer = format!("set -e; cd {folder}; {mounts}\nexec {user} {binary} -p {} \"$@\"", path.display());
    Some(Shannot::through(Caller::Own, &tool("unshare")?, ["-m", "sh", "-c", &outer, "sh"]).args(words).output())
}

#[test]
fn devices_that_are_mounted_elsewhere_are_not_opened() {
    for caller in callers() {
        let scratch = Scratch::new();
        for folder in ["tree", "tree/dev", "tree/pts", "tree/one"] {
            scratch.folder(folder, caller);
        }
        for file in ["tree/file", "tree/node", "tree/one/file"] {
            own(&scratch.file(file, "precious"), caller);
        }
        let mounts = "mount --rbind /dev tree/dev; mount -t devpts devpts tree/pts -o ptmxmode=666; mount --bind /dev/ptmx tree/node;";
        let tree = scratch.path().join("tree");
        let run = |read_only, words: &[&str]| {
            let profile = with_binds(&[bind(&tree, read_only)], json!({}));
            below_mounts(caller, &scratch, mounts, &profile, words)
        };
        let sh = |script: &str| run(true, &[RUN, &["--", "sh", "-c", script]].concat());
        let path = tree.display();
        let Some(result) =
            sh(&format!("cat {path}/file {path}/one/file; ls {path} {path}/dev; cat /dev/null {path}/file"))
        else {
            return;
        };
        result.expect_code(0).expect_stdout("preciousprecious").expect_stdout("urandom");
        for node in ["dev/ptmx", "pts/ptmx", "node"] {
            let result = sh(&format!("test -e {path}/{node} || exit 9; : < {path}/{node}")).unwrap();
            assert!(result.code != 0 && result.code != 9, "{node} as {caller:?}: {result:#?}");
            result.expect_stderr("Permission denied");
            let result = sh(&format!(": > {path}/{node}")).unwrap();
            assert_ne!(result.code, 0, "{node} as {caller:?}: {result:#?}");
        }
        let verify = run(true, &["verify", "--backend", "landlock"]).unwrap().expect_code(0);
        verify.expect_stdout("/tree/dev can't be opened").expect_stdout("/tree/pts can't be opened");
        // Landlock can't take back below what is writable.
        let refused = run(false, &[RUN, &["--", "true"]].concat()).unwrap().expect_code(125);
        refused.expect_stderr("which is writable").expect_stderr("--allow-degraded landlock-fs");
    }
}

#[test]
fn a_bind_of_devices_shows_names_alone() {
    for caller in callers() {
        let whole = with_binds(&[bind(Path::new("/dev"), true)], json!({}));
        let node = with_binds(&[bind(Path::new("/dev/ptmx"), true)], json!({}));
        in_place(caller, &whole, "ls /dev").expect_code(0).expect_stdout("urandom");
        for (profile, node) in [(&whole, "urandom"), (&whole, "ptmx"), (&node, "ptmx")] {
            // As with a mount that is nodev.
            let script = format!(": < /dev/{node}");
            sh(caller, profile, &script).expect_code(2).expect_stderr("Permission denied");
            in_place(caller, profile, &script).expect_code(2).expect_stderr("Permission denied");
        }
        in_place(caller, &base_profile(), "head -c 3 /dev/urandom | wc -c").expect_code(0).expect_stdout("3");
    }
}

#[test]
fn a_procfs_below_a_bind_is_not_opened() {
    for caller in callers() {
        let scratch = Scratch::new();
        for folder in ["tree", "tree/proc", "tree/sys"] {
            scratch.folder(folder, caller);
        }
        own(&scratch.file("tree/file", "precious"), caller);
        let tree = scratch.path().join("tree");
        let path = tree.display();
        let run = |mounts: &str, read_only, script: &str| {
            let profile = with_binds(&[bind(&tree, read_only)], json!({}));
            below_mounts(caller, &scratch, mounts, &profile, &[RUN, &["--", "sh", "-c", script]].concat())
        };
        let proc = "mount -t proc proc tree/proc;";
        let Some(result) = run(proc, true, &format!("cat {path}/file; cat {path}/proc/version")) else { return };
        result.expect_stdout("precious").expect_stderr("version: Permission denied");
        // Nor by its own name.
        let named = with_binds(&[bind(&tree.join("proc"), false)], json!({}));
        let script = format!(
            "cat {path}/proc/version; f={path}/proc/sys/kernel/printk; read v < /proc/sys/kernel/printk; echo $v > $f"
        );
        let words = [RUN, &["--", "sh", "-c", &script]].concat();
        let result = below_mounts(caller, &scratch, proc, &named, &words).unwrap();
        assert_eq!((result.code != 0, result.stdout.as_str()), (true, ""), "{caller:?}: {result:#?}");
        for mounts in [proc, "mount -t sysfs sysfs tree/sys;"] {
            run(mounts, false, "true").unwrap().expect_code(125).expect_stderr("which is writable");
        }
    }
}

#[test]
fn a_node_in_an_ordinary_folder_is_what_the_report_says() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        let node = folder.join("zero");
        let profile = with_binds(&[bind(&folder, true)], json!({}));
        // Of /dev/zero: it harms nobody.
        if is_root() && mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 5)).is_ok() {
            own(&node, caller);
            let script = format!("head -c 3 {} | wc -c", node.display());
            sh(caller, &profile, &script).expect_stdout("0").expect_stderr("Permission denied");
            in_place(caller, &profile, &script).expect_stdout("3");
            let named = with_binds(&[bind(&node, true)], json!({}));
            in_place(caller, &named, &script).expect_stdout("0").expect_stderr("Permission denied");
        }
        let said = layer(caller, &profile, &["--backend", "landlock"], "mount-namespace");
        assert_eq!(said["state"], "partial");
        let words =
            if is_root() && caller == Caller::Own { "which for root may be disks" } else { "where permissions" };
        let missing = said["missing"].as_str().unwrap();
        assert!(missing.contains("device nodes") && missing.contains(words), "{caller:?}: {said}");
        assert_eq!(layer(caller, &profile, &["--backend", "namespaces"], "mount-namespace")["state"], "full");
    }
}

#[test]
fn what_proc_tells_here_is_what_the_report_says() {
    const MASKED: &[&str] =
        &["kcore", "keys", "timer_list", "latency_stats", "acpi", "asound", "dynamic_debug/control", "scsi"];
    for caller in callers() {
        let mut profile = base_profile();
        profile["additional_args"] = json!(["--proc", "/proc"]);
        let script = format!(
            "for f in {}; do if test -d /proc/$f; then ls /proc/$f | grep -q . && echo =$f; else head -c 1 /proc/$f | grep -q . && echo =$f; fi; done",
            MASKED.join(" ")
        );
        let fresh = sh(caller, &profile, &script);
        assert_eq!(fresh.stdout, "", "{caller:?}: {fresh:#?}");
        let found = in_place(caller, &profile, &script);
        let said = layer(caller, &profile, &["--backend", "landlock"], "procfs")["missing"].to_string();
        for name in found.stdout.lines().map(|line| line.trim_start_matches('=')) {
            let name = name.split('/').next().unwrap();
            assert!(said.contains(name), "{name} can be read, and the report says {said}");
        }
        if is_root() && Path::new("/proc/timer_list").exists() {
            assert_eq!(said.contains("timer_list"), caller == Caller::Own, "{said}");
        }
        let result = in_place(caller, &profile, "echo h > /proc/sysrq-trigger; cat /proc/version");
        result.expect_stdout("Linux");
    }
}

/// Children that a shell gets to start.
const BOMB: &str = "n=0; for i in $(seq 60); do sleep 5 & n=$((n+1)); done; echo started $n";

#[test]
fn a_limit_of_processes_binds_or_is_reported_as_off() {
    for caller in callers() {
        // One whose processes nobody else's test adds to.
        let other = ["--reuid=64999", "--regid=64999", "--clear-groups"].map(str::to_owned);
        let start = || match (caller, tool("setpriv")) {
            (Caller::Nobody, Some(setpriv)) => Shannot::through(Caller::Own, &setpriv, &other).args([binary()]),
            (Caller::Own, _) if is_root() => Shannot::without_cgroups(&[]),
            _ => Shannot::new(caller),
        };
        let root = is_root() && caller == Caller::Own;
        // Without namespaces all processes of the user count, those of a developer too.
        for backend in ["namespaces", "landlock"].iter().filter(|backend| is_root() || **backend == "namespaces") {
            let run = |options: &[&str], words: &[&str]| {
                let run = start().profile(&base_profile()).args(["run", "--backend", backend, "--pids", "40"]);
                run.args(options).args(["--"]).args(words).output()
            };
            let report = run(&["--report", "fd:1"], &["true"]).expect_code(0);
            let report: Value = serde_json::from_str(&report.stdout).unwrap();
            let said = &report["effective"]["limits.pids"]["state"];
            assert_eq!(said, if root { "off" } else { "partial" }, "{caller:?} {backend}");
            let result = run(&[], &["bash", "-c", BOMB]);
            assert_eq!(result.stderr.contains("fork"), !root, "{caller:?} {backend}: {result:#?}");
            let why = if root { "does not bind the host's root" } else { "a count per sandbox" };
            let required = run(&["--require", "limits.pids"], &["true"]).expect_code(125);
            required.expect_stderr("limits.pids").expect_stderr(why);
        }
    }
    if is_root() && tool("unshare").is_some() {
        // Whose root is root outside, and whose is not.
        for (ids, state) in [("-r", "off"), ("--map-user=1000", "off")] {
            let run = Shannot::without_cgroups(&["unshare", "-U", ids]);
            let result = run.args(["run", "--pids", "40", "--report", "fd:1", "--no-stdout", "--", "ls"]).output();
            let report: Value = serde_json::from_str(&result.expect_code(0).stdout).unwrap();
            assert_eq!(report["effective"]["limits.pids"]["state"], state, "{ids}");
        }
        let run = Shannot::through(Caller::Nobody, &tool("unshare").unwrap(), ["-Ur"]).args([binary()]);
        let result = run.args(["run", "--pids", "40", "--report", "fd:1", "--no-stdout", "--", "ls"]).output();
        let report: Value = serde_json::from_str(&result.expect_code(0).stdout).unwrap();
        assert_eq!(report["effective"]["limits.pids"]["state"], "partial");
    }
}

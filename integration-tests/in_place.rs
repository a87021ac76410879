//! Without namespaces: what Landlock has no right for is refused by filters or left out of the rules, and what can't be is said.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

const RUN: &[&str] = &["run", "--backend", "landlock"];

/// A run on the lowest rung of a shell script.
fn in_place(caller: Caller, profile: &Value, script: &str) -> Result {
    Shannot::new(caller).profile(profile).args(RUN).args(["--", "sh", "-c", script]).output()
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

/// Children that a shell gets to start.
const BOMB: &str = "n=0; for i in $(seq 60); do sleep 5 & n=$((n+1)); done; echo started $n";

#[test]
fn a_limit_of_processes_binds_or_is_reported_as_off() {
    for caller in callers() {
        // One whose processes nobody else's test adds to.
        let other = ["--reuid=64999", "--regid=64999", "--clear-groups"].map(str::to_owned);
        let start = || match (caller, tool("setpriv")) {
            (Caller::Nobody, Some(setpriv)) => Shannot::through(Caller::Own, &setpriv, &other).args([binary()]),
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
            let run = Shannot::through(Caller::Own, &tool("unshare").unwrap(), ["-U", ids]).args([binary()]);
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

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

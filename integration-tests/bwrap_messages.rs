//! The messages and exit codes of `shannot-bwrap` that clients and bubblewrap's own tests look for.

use crate::bwrap_differential::prepare;
use crate::support::*;

/// Words, exit code, and what is said: what clients and bubblewrap's own tests look for.
const MESSAGES: &[(&[&str], i32, &str)] = &[
    (&[], 1, "usage: "),
    (&["--nonsense"], 1, "bwrap: Unknown option --nonsense\n"),
    (&["--bind", "/usr"], 1, "bwrap: --bind takes two arguments\n"),
    (
        &["--perms", "0700", "--bind", "/", "/", "true"],
        1,
        "bwrap: --perms must be followed by an option that creates a file\n",
    ),
    (
        &["--perms", "0700", "--perms", "0700", "--dir", "/a", "true"],
        1,
        "bwrap: --perms given twice for the same action\n",
    ),
    (&["--size", "1", "--dir", "/a", "true"], 1, "bwrap: --size must be followed by --tmpfs\n"),
    (&["--size", "0", "--tmpfs", "/a", "true"], 1, "bwrap: --size takes a non-zero number of bytes\n"),
    (&["--file", "0a", "/a", "true"], 1, "bwrap: Invalid fd: 0a\n"),
    (&["--argv0", "a", "--argv0", "b", "true"], 1, "bwrap: --argv0 used multiple times\n"),
    (&["--hostname", "a", "true"], 1, "bwrap: Specifying --hostname requires --unshare-uts\n"),
    (&["--disable-userns", "true"], 1, "bwrap: --disable-userns requires --unshare-user\n"),
    (
        &["--seccomp", "FD", "--add-seccomp-fd", "FD", "true"],
        1,
        "bwrap: --add-seccomp-fd cannot be combined with --seccomp\n",
    ),
    (&["--ro-bind", "/", "/", "--seccomp", "FD", "true"], 1, "bwrap: Invalid seccomp data, must be multiple of 8\n"),
    (&["--tmp-overlay", "/a", "true"], 1, "bwrap: --tmp-overlay requires at least one --overlay-src\n"),
    (
        &["--ro-bind", "/", "/", "--chdir", "/usr", "--chdir", "/", "true"],
        0,
        "bwrap: Only the last --chdir option will take effect\n",
    ),
    (
        &["--level-prefix", "--ro-bind", "/", "/", "--chdir", "/usr", "--chdir", "/", "true"],
        0,
        "<4>bwrap: Only the last --chdir",
    ),
    (
        &["--ro-bind", "@/missing", "/a", "true"],
        1,
        "bwrap: Can't find source path @/missing: No such file or directory\n",
    ),
    (
        &["--symlink", "/dev/null", "/a", "--symlink", "/b", "/a", "true"],
        1,
        "bwrap: Can't make symlink at /a: existing destination is /dev/null\n",
    ),
    (
        &["--dir", "/a", "--symlink", "/b", "/a", "true"],
        1,
        "bwrap: Can't make symlink at /a: destination exists and is not a symlink\n",
    ),
    (&["--symlink", "b", "/a", "--tmpfs", "/a", "true"], 1, "bwrap: Can't mount on symlink destination /a\n"),
    (&["--ro-bind", "@/host/f", "/a", "--tmpfs", "/a", "true"], 1, "bwrap: Destination is not a directory /a\n"),
    (&["--dir", "/a", "--ro-bind", "@/host/f", "/a", "true"], 1, "bwrap: Destination is not a file /a\n"),
    (
        &["--ro-bind", "/", "/", "--chdir", "/nowhere", "true"],
        1,
        "bwrap: Can't chdir to /nowhere: No such file or directory\n",
    ),
    (&["--ro-bind", "/", "/", "no-such-command"], 1, "bwrap: execvp no-such-command: No such file or directory\n"),
    // Twice from one descriptor, as codex does.
    (
        &[
            "--ro-bind",
            "/",
            "/",
            "--tmpfs",
            "/tmp",
            "--ro-bind-data",
            "0",
            "/tmp/a",
            "--ro-bind-data",
            "0",
            "/tmp/b",
            "true",
        ],
        0,
        "",
    ),
    // codex tries again without --proc when it reads this.
    (
        &[
            "--unshare-user",
            "--unshare-pid",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--tmpfs",
            "/proc/sys",
            "BWRAP",
            "--unshare-user",
            "--unshare-pid",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "true",
        ],
        1,
        "bwrap: Can't mount proc on /newroot/proc: Operation not permitted\n",
    ),
    (&["--ro-bind", "/", "/", "sh", "-c", "exit 42"], 42, ""),
    (&["--ro-bind", "/", "/", "sh", "-c", "kill -TERM $$"], 143, ""),
    (&["--ro-bind", "/", "/", "--unshare-pid", "sh", "-c", "kill -KILL $$"], 137, ""),
];

#[test]
fn messages_and_exit_codes_are_those_that_clients_know() {
    for caller in callers() {
        for (words, code, text) in MESSAGES {
            let scratch = Scratch::new();
            let result = prepare(caller, bwrap_binary(), &scratch, *words).output();
            let text = text.replace('@', scratch.path().join("tree").to_str().unwrap());
            let said = if text.is_empty() { result.stderr.is_empty() } else { result.stderr.contains(&text) };
            assert!(result.code == *code && said, "{caller:?} {words:?}: not {code} {text:?} but {result:#?}");
        }
    }
}

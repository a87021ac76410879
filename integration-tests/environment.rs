//! No variable, descriptor or secret of the caller's, unless asked.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::*;

fn names(result: &Result) -> BTreeSet<String> {
    result.stdout.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.to_owned()).collect()
}

fn run(caller: Caller, changes: serde_json::Value, options: &[&str]) -> Result {
    let run = Shannot::new(caller).env("TOKEN", "secret").env("LC_ALL", "C").env("LC_TIME", "de_DE");
    run.profile(&profile(changes)).args(["run"]).args(options).args(["--", "env"]).output().expect_code(0)
}

#[test]
fn the_environment_is_the_profiles() {
    for caller in callers() {
        let names_of = |changes, options: &[&str]| names(&run(caller, changes, options));
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        assert_eq!(names_of(json!({}), &[]), set(&["PATH", "LANG"]));
        assert_eq!(names_of(json!({"env_pass": ["LC_*"]}), &[]), set(&["PATH", "LANG", "LC_ALL", "LC_TIME"]));
        assert_eq!(names_of(json!({}), &["--env-pass", "TOK*"]), set(&["PATH", "LANG", "TOKEN"]));
        assert!(names_of(json!({}), &["--inherit-env"]).is_superset(&set(&["TOKEN", "HOME", "LANG"])));
        let unset = json!({"env_pass": ["*"], "additional_args": ["--unsetenv", "TOKEN"]});
        assert!(!names_of(unset, &[]).contains("TOKEN"));
        let result = run(caller, json!({}), &["--env", "A=b=c", "--env", "TOKEN", "--env", "LANG=x"]);
        for line in ["A=b=c\n", "TOKEN=secret\n", "LANG=x\n"] {
            assert!(result.stdout.contains(line), "{result:?}");
        }
    }
}

#[test]
fn descriptors_above_2_are_closed() {
    for caller in callers() {
        let scratch = Scratch::new();
        let path = scratch.file("p.json", base_profile().to_string());
        let inner = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done; cat <&7";
        let script = format!(
            "exec 7</etc/passwd 250</etc/passwd; exec {} -p {} run bash -c '{inner}'",
            binary().display(),
            path.display()
        );
        let run = Shannot::through(caller, std::path::Path::new("/bin/bash"), ["-c", &script]);
        let result = run.output();
        // 3 or 255 is bash's own, for the directory.
        assert!(!result.stdout.contains("\n7\n") && !result.stdout.contains("\n250\n"), "{result:?}");
        assert!(result.stderr.contains("Bad file descriptor") && !result.stdout.contains("root:"), "{result:?}");
    }
}

#[test]
fn a_directory_is_no_standard_descriptor() {
    for caller in callers() {
        for (redirect, name) in [("<", "stdin"), ("2<", "stderr"), ("1<", "stdout")] {
            let script = format!("exec {redirect}/etc {} --error-format json run ls /", binary().display());
            let run = Shannot::through(caller, std::path::Path::new("/bin/sh"), ["-c", &script]);
            let result = run.output().expect_code(125);
            assert!(name == "stderr" || result.stderr.contains(name), "{result:?}");
            assert_eq!(result.stdout, "", "{result:?}");
        }
    }
}

#[test]
fn the_session_keyring_is_new() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    // keyctl(KEYCTL_DESCRIBE, the session keyring): the filter refuses it, so it is turned off.
    let program = "
buffer = ctypes.create_string_buffer(200)
libc.syscall(250, 6, -3, buffer, 200)
print(buffer.value.decode())
";
    for caller in callers() {
        let Some(result) = python(caller, &profile(json!({"seccomp_profile": "none"})), program) else { return };
        assert!(result.stdout.contains("_ses"), "{result:?}");
    }
}

#[test]
fn the_umask_and_ignored_signals_are_the_callers() {
    for caller in callers() {
        let scratch = Scratch::new();
        let path = scratch.file("p.json", base_profile().to_string());
        let script = format!(
            "umask 027; trap '' USR1; exec {} -p {} run sh -c 'umask; grep -E \"Sig(Ign|Blk)\" /proc/self/status'",
            binary().display(),
            path.display()
        );
        let result = Shannot::through(caller, std::path::Path::new("/bin/sh"), ["-c", &script]).output();
        assert!(result.stdout.starts_with("0027\n"), "{result:?}");
        assert!(result.stdout.contains("SigBlk:\t0000000000000000"), "{result:?}");
        // SIGUSR1 is 10; SIGPIPE, which Rust ignores, is 13.
        let ignored = result.stdout.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_eq!((ignored >> 9 & 1, ignored >> 12 & 1), (1, 0), "{result:?}");
    }
}

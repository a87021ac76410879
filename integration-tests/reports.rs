//! What a run leaves in writing: the report, and that there always is one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

#[test]
fn the_report_says_what_happened() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("out", caller);
        let file = folder.join("report.json");
        let run = |command: &[&str]| {
            let run =
                Shannot::new(caller).profile(&base_profile()).args(["run", "--report"]).args([&file]).args(command);
            let code = run.output().code;
            let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(report["exit_code"], json!(code));
            report
        };
        let report = run(&["sh", "-c", "exit 7"]);
        assert_eq!(report["outcome"]["ending"], json!({"how": "exited", "code": 7}));
        assert_eq!(report["effective"]["seccomp"]["state"], json!("full"));
        assert_eq!(report["profile"]["sha256"].as_str().unwrap().len(), 64);
        assert_eq!(report["denials_complete"], json!(false));
        let report = run(&["sh", "-c", "kill -9 $$"]);
        assert_eq!(report["outcome"]["ending"]["signal"], json!(9));
        let report = run(&["--timeout", "0.2", "sleep", "60"]);
        assert_eq!((&report["outcome"]["ended_by"], &report["exit_code"]), (&json!("timeout"), &json!(124)));
        // A command that exits with Shannot's own codes is told apart.
        assert_eq!(run(&["sh", "-c", "exit 125"])["outcome"]["ended_by"], json!("command"));
        let report = run(&["no-such-command"]);
        assert_eq!((&report["exit_code"], &report["effective"]), (&json!(127), &json!({})));
        assert!(report["error"]["message"].as_str().unwrap().contains("no-such-command"));
        let through_fd = format!("{} run --report fd:5 ls / 5>&1 >/dev/null", binary().display());
        let run = Shannot::through(caller, Path::new("/bin/sh"), ["-c", &through_fd]);
        assert!(serde_json::from_str::<Value>(&run.output().expect_code(0).stdout).is_ok());
        // What was in a descriptor's file before is its owner's.
        let appended = format!("{{ echo mine; {} run --report fd:1 ls /; }} > {}", binary().display(), file.display());
        Shannot::through(caller, Path::new("/bin/sh"), ["-c", &appended]).output().expect_code(0);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("mine\nbin\n") && text.ends_with("}\n"), "{text:?}");
    }
}

#[test]
fn a_report_is_not_written_through_a_link_or_to_nowhere() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("out", caller);
        let precious = folder.join("precious");
        fs::write(&precious, "precious").unwrap();
        own(&precious, caller);
        std::os::unix::fs::symlink(&precious, folder.join("link")).unwrap();
        for destination in [folder.join("link"), folder.join("no/such"), "fd:77".into(), "fd:x".into()] {
            let run = Shannot::new(caller).args(["run", "--report"]).args([&destination]).args(["ls", "/"]);
            let result = run.output().expect_code(125);
            assert_eq!(result.stdout, "", "{result:?}");
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        // Nobody reads it: that is said, and not waited for.
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        own(&pipe, caller);
        let run = Shannot::new(caller).args(["run", "--report"]).args([&pipe]).args(["ls", "/"]);
        run.output().expect_code(125).expect_stderr("No such device or address");
        let read = format!("cat {0} & {1} run --report {0} true; wait", pipe.display(), binary().display());
        let read = Shannot::through(caller, Path::new("/bin/sh"), ["-c", &read]);
        read.output().expect_stdout("\"command\":[\"true\"]");
    }
}

/// Runs with a report, and checks that its exit code is the one that the caller saw.
fn reported(caller: Caller, words: &[&str]) -> Value {
    let scratch = Scratch::new();
    let file = scratch.folder("out", caller).join("report.json");
    let run = Shannot::new(caller).args(["run", "--report"]).args([&file]).args(words).env("HOME", "/nonexistent");
    let result = run.output();
    let text = fs::read_to_string(&file).unwrap_or_else(|_| panic!("no report of {result:?}"));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["exit_code"], json!(result.code), "{report} {result:?}");
    report
}

#[test]
fn there_is_a_report_however_early_it_failed() {
    for caller in callers() {
        let report = reported(caller, &["-p", "no-such-profile", "--", "ls"]);
        assert_eq!((&report["error"]["stage"], &report["command"]), (&json!("profile"), &json!(["ls"])));
        assert!(report["profile"].is_null() && report["rung"].is_null(), "{report}");
        let report = reported(caller, &["rm", "/x"]);
        assert_eq!((&report["exit_code"], &report["profile"]["name"]), (&json!(126), &json!("minimal")));
        let report = reported(caller, &["-p", "host", "--secret", "A=file:/nonexistent", "true"]);
        assert_eq!((&report["error"]["stage"], &report["effective"]), (&json!("secret"), &json!({})));
        let report = reported(caller, &["-p", "host", "no-such-command"]);
        assert_eq!((&report["rung"], &report["exit_code"]), (&json!("namespaces"), &json!(127)));
    }
}

#[test]
fn an_early_failure_reaches_junit_and_the_runner() {
    let scratch = Scratch::new();
    let file = scratch.path().join("junit.xml");
    let run = Shannot::new(Caller::Own).args(["run", "-p", "no-such-profile", "--ci", "github", "--junit"]);
    let result = run.args([&file]).args(["--", "ls"]).output().expect_code(125);
    result.expect_stdout("::stop-commands::").expect_stdout("::error title=ls").expect_stderr("no-such-profile");
    let junit = fs::read_to_string(&file).unwrap();
    assert!(junit.contains("errors=\"1\"") && junit.contains("no-such-profile"), "{junit}");
}

#[test]
fn what_is_known_of_refusals_is_reported() {
    for caller in callers() {
        let once = ["-p", "host", "--exec-once", "--", "sh", "-c", "/bin/true; /bin/true; /bin/false; exit 0"];
        let report = reported(caller, &once);
        let execute =
            |path: &str, count: u64| json!({"layer": "exec-once", "action": "execute", "object": path, "count": count});
        assert_eq!(report["denials"], json!([execute("/bin/false", 1), execute("/bin/true", 2)]));
        // Landlock tells nobody.
        assert_eq!(report["denials_complete"], json!(false));
        let too_large = [
            "-p",
            "host",
            "--file-size",
            "1K",
            "--tmpfs",
            "/tmp",
            "--",
            "sh",
            "-c",
            "exec head -c 9999 /dev/zero > /tmp/x",
        ];
        let report = reported(caller, &too_large);
        assert_eq!(report["denials"][0]["layer"], json!("limits.file_size"), "{report}");
        let nothing = reported(caller, &["-p", "host", "--", "cat", "/etc/shadow"]);
        assert_eq!((&nothing["denials"], &nothing["exit_code"]), (&json!([]), &json!(1)));
        let scratch = Scratch::new();
        let policy = scratch.file(
            "kills.json",
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chdir"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#,
        );
        let words = ["-p", "host", "--seccomp", policy.to_str().unwrap(), "--", "sh", "-c", "cd /"];
        let report = reported(caller, &words);
        assert_eq!(
            (&report["denials"][0]["layer"], &report["exit_code"]),
            (&json!("seccomp"), &json!(159)),
            "{report}"
        );
    }
}

#[test]
fn a_library_that_may_not_be_mapped_is_reported_where_the_supervisor_is_asked() {
    for caller in callers() {
        let scratch = Scratch::new();
        let library = scratch.folder("lib", caller).join("other.so");
        let Some(libc) = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6"]
            .into_iter()
            .find(|path| Path::new(path).exists())
        else {
            return skip("no C library where Debian has it");
        };
        fs::copy(libc, &library).unwrap();
        own(&library, caller);
        let name = library.to_str().unwrap();
        let allowed = with_binds(
            &[json!({"source": library.parent().unwrap(), "target": library.parent().unwrap()})],
            json!({"allowed_commands": ["cat"], "environment": {"PATH": "/usr/bin:/bin", "LD_PRELOAD": name}}),
        );
        let profile = scratch.file("p.json", allowed.to_string());
        let words = ["-p", profile.to_str().unwrap(), "--backend", "landlock", "--", "cat", "/dev/null"];
        let report = reported(caller, &words);
        assert_eq!(report["rung"], json!("landlock"), "{report}");
        let expected = json!({"layer": "allowlist", "action": "map as executable", "object": name, "count": 1});
        assert_eq!(report["denials"], json!([expected]));
    }
}

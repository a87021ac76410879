//! The commands besides `run`, and what 0.3's users type.

use serde_json::{Value, json};

use crate::support::*;

fn old_profile(name: &str) -> Option<std::path::PathBuf> {
    let path = sources().join(format!("../shared/data/shannot-0.3-profiles/{name}.json"));
    // Real inputs that lie beside the project, not in it.
    path.exists().then_some(path)
}

#[test]
fn what_the_users_of_0_3_type_works() {
    for caller in callers() {
        let run = |line: &str| {
            let run = Shannot::new(caller).env("HOME", "/nonexistent");
            run.args(line.split_whitespace()).output()
        };
        run("ls /").expect_code(0).expect_stdout("usr");
        run("--version").expect_code(0).expect_stdout("shannot 0.");
        run("cat /proc/meminfo").expect_code(0).expect_stdout("MemTotal");
        run("grep -r root /etc/passwd").expect_code(0);
        run("find /etc -maxdepth 1 -name *.conf").expect_code(0).expect_stdout(".conf");
        run("ls -la /etc/passwd").expect_code(0).expect_stdout("passwd");
        run("verify").expect_code(0).expect_stdout("promises hold");
        run("--verbose verify").expect_code(0);
        run("export").expect_code(0).expect_stdout("\"name\": \"minimal\"");
        run("run --bubblewrap /opt/bwrap ls /").expect_code(0);
        run("-v run --bubblewrap /opt/bwrap ls /").expect_code(0).expect_stderr("no effect");
        run("run --no-check -- grep nothing-of-the-kind /etc/passwd").expect_code(1);
        assert_eq!(run("run --no-stdout ls /").expect_code(0).stdout, "");
        assert_eq!(run("run --no-stderr ls /nonexistent").expect_code(2).stderr, "");
        run("run -- verify").expect_code(126).expect_stderr("\"verify\" is not allowed");
    }
}

#[test]
fn the_profiles_of_0_3_load_and_run_unchanged() {
    for caller in callers() {
        for (name, commands) in [
            ("minimal", &["ls /", "cat /etc/hostname"][..]),
            ("readonly", &["cat /etc/os-release", "head -n 1 /etc/passwd"]),
            (
                "diagnostics",
                &["df -h", "free -h", "ps aux", "uptime", "env", "tail -n 1 /etc/passwd", "wc -l /etc/passwd"],
            ),
        ] {
            let Some(path) = old_profile(name) else { continue };
            for command in commands {
                let program = command.split_whitespace().next().unwrap();
                if tool(program).is_none() {
                    continue;
                }
                let run = Shannot::new(caller).args(["--profile"]).args([&path]).args(["run"]);
                run.args(command.split_whitespace()).output().expect_code(0);
            }
            let run = Shannot::new(caller).args(["-p"]).args([&path]).args(["run", "rm", "/tmp/test"]);
            run.output().expect_code(126).expect_stderr("not allowed");
        }
    }
}

#[test]
fn verify_tells_what_holds_and_what_does_not() {
    for caller in callers() {
        for name in ["minimal", "readonly", "diagnostics", "host"] {
            Shannot::new(caller).args(["-p", name, "verify"]).output().expect_code(0).expect_stdout("promises hold");
        }
        let result = Shannot::new(caller).args(["verify", "--json"]).output().expect_code(0);
        let verdict: Value = serde_json::from_str(&result.stdout).unwrap();
        assert_eq!(verdict["holds"], json!(true));
        let promises: Vec<&str> =
            verdict["findings"].as_array().unwrap().iter().map(|f| f["promise"].as_str().unwrap()).collect();
        for expected in [
            "can't be written",
            "network",
            "invisible",
            "environment",
            "executed",
            "capability",
            "filter",
            "descriptor",
        ] {
            assert!(promises.iter().any(|promise| promise.contains(expected)), "{expected}: {promises:?}");
        }
        let extra = ["verify", "--allowed-command", "ls", "/", "--disallowed-command", "rm -rf /tmp"];
        Shannot::new(caller).args(extra).output().expect_code(0).expect_stdout("`rm -rf /tmp` is refused");
        Shannot::new(caller)
            .args(["verify", "--disallowed-command", "ls"])
            .output()
            .expect_code(1)
            .expect_stdout("BROKEN");
    }
}

#[test]
fn export_is_sorted_and_a_fixed_point() {
    for name in ["minimal", "readonly", "diagnostics", "host"] {
        let scratch = Scratch::new();
        let first = Shannot::new(Caller::Own).args(["-p", name, "export"]).output().expect_code(0).stdout;
        let path = scratch.file("exported.json", &first);
        let second =
            Shannot::new(Caller::Own).args(["-p"]).args([path]).args(["export"]).output().expect_code(0).stdout;
        assert_eq!(first, second);
        let keys: Vec<&str> = first.lines().filter_map(|line| line.strip_prefix("  \"")?.split('"').next()).collect();
        assert!(keys.is_sorted() && keys.contains(&"additional_args") && keys.contains(&"seccomp_profile"), "{keys:?}");
    }
}

#[test]
fn dry_run_shows_the_plan_and_does_nothing() {
    for caller in callers() {
        let run = |option: &str| Shannot::new(caller).args(["run", option, "ls", "/"]).output().expect_code(0);
        run("--dry-run").expect_stdout("bind /usr (ro").expect_stdout("expected protection");
        let plan: Value = serde_json::from_str(&run("--dry-run=json").stdout).unwrap();
        assert_eq!(plan["command"]["argv"], json!(["ls", "/"]));
    }
}

#[test]
fn errors_as_json_are_one_object() {
    for caller in callers() {
        for (arguments, stage) in [
            (&["run", "-p", "host", "--error-format", "json", "no-such-command"][..], "lookup"),
            (&["--error-format", "json", "-p", "no-such-profile", "ls"], "profile"),
            (&["--error-format=json", "run", "--no-such-option"], "usage"),
            (&["--error-format", "json", "run", "rm"], "plan"),
        ] {
            let result = Shannot::new(caller).args(arguments).output();
            let error: Value = serde_json::from_str(&result.stderr).unwrap_or_else(|_| panic!("{result:?}"));
            assert_eq!(error["stage"], json!(stage), "{error}");
            assert!(error["message"].is_string());
        }
    }
}

#[test]
fn mistyped_names_and_options_suggest_the_nearest() {
    let run = |arguments: &[&str]| Shannot::new(Caller::Own).args(arguments).output().expect_code(125);
    run(&["-p", "diagnostic", "ls"]).expect_stderr("did you mean \"diagnostics\"?");
    run(&["run", "--tmeout", "3", "ls"]).expect_stderr("--timeout");
    run(&["run", "--require", "secomp", "ls"]).expect_stderr("did you mean \"seccomp\"?");
    run(&["run", "--net", "loopbak", "ls"]).expect_stderr("loopback");
    run(&["--rw", ".", "ls"]).expect_stderr("hint: --rw is an option of `run`: shannot run --rw … -- COMMAND");
    let result = run(&["--error-format=json", "--timeout=3", "ls"]);
    let error: Value = serde_json::from_str(&result.stderr).unwrap();
    assert!(error["hint"].as_str().unwrap().contains("shannot run --timeout"), "{error}");
    let result = run(&["run", "--no-such-option", "ls"]);
    assert!(!result.stderr.contains("is an option of"), "{result:?}");
    let bare = |arguments: &[&str]| Shannot::new(Caller::Own).args(arguments).output();
    bare(&["doctr"]).expect_code(126).expect_stderr("is not allowed").expect_stderr("did you mean `shannot doctor`?");
    bare(&["-p", "host", "verfy"]).expect_code(127).expect_stderr("did you mean `shannot verify`?");
    let result = bare(&["-p", "host", "no-such-command"]).expect_code(127);
    assert!(!result.stderr.contains("did you mean"), "{result:?}");
}

#[test]
fn verbose_says_what_is_easily_overlooked() {
    let run = |arguments: &[&str]| Shannot::new(Caller::Own).args(["run", "-p", "host"]).args(arguments).output();
    run(&["-v", "--hide", "/nowhere", "true"]).expect_code(0).expect_stderr("--hide /nowhere: there is no such file");
    run(&["-v", "--timeout", "0.2", "sleep", "60"]).expect_code(124).expect_stderr("after the timeout");
    assert_eq!(run(&["--hide", "/nowhere", "--timeout", "0.2", "sleep", "60"]).expect_code(124).stderr, "");
}

#[test]
fn documentation_is_generated() {
    let run = |arguments: &[&str]| Shannot::new(Caller::Own).args(arguments).output().expect_code(0);
    run(&["completions", "bash"]).expect_stdout("_shannot()");
    run(&["man"]).expect_stdout(".TH").expect_stdout("shannot run");
    run(&["profile", "list"]).expect_stdout("diagnostics").expect_stdout("built in");
    run(&["profile", "show", "readonly"]).expect_stdout("/var/lib/ca-certificates");
    let schema: Value = serde_json::from_str(&run(&["profile", "schema"]).stdout).unwrap();
    assert!(schema["properties"]["allowed_commands"].is_object() && schema["additionalProperties"] == json!(false));
}

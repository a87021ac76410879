//! What CI systems are told of a run, and the ways in which they start one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::*;

/// A workspace below a home, which the caller owns.
fn workspace(scratch: &Scratch, caller: Caller) -> (PathBuf, PathBuf) {
    let home = scratch.folder("home", caller);
    (home, scratch.folder("home/work", caller))
}

/// The program that is a shell, under another name.
fn shell(scratch: &Scratch, name: &str) -> PathBuf {
    let link = scratch.path().join(name);
    symlink(sh_binary(), &link).unwrap();
    link
}

#[test]
fn exit_codes_and_signals_are_faithful_through_each_entry() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let sh = shell(&scratch, "shannot-sh");
        let (home, runner) = (home.display().to_string(), scratch.folder("runner", caller));
        let at = |mut run: Shannot| {
            run.command.current_dir(&work).env("HOME", &home);
            run
        };
        let step = (0..=255).step_by(if caller == Caller::Own { 1 } else { 37 });
        for code in step {
            let script = format!("exit {code}");
            at(Shannot::through(caller, &sh, ["-c", &script])).output().expect_code(code);
            if code % 16 == 0 {
                at(Shannot::new(caller).args(["run", "-p", "ci", "--", "bash", "-c", &script]))
                    .output()
                    .expect_code(code);
                let file = runner.join("script");
                fs::write(&file, &script).unwrap();
                at(Shannot::through(caller, &sh, ["-e".as_ref(), file.as_os_str()])).output().expect_code(code);
            }
        }
        for signal in ["TERM", "KILL", "SEGV"] {
            let number =
                [("TERM", 143), ("KILL", 137), ("SEGV", 139)].iter().find(|(name, _)| *name == signal).unwrap().1;
            at(Shannot::through(caller, &sh, ["-c", &format!("kill -{signal} $$")])).output().expect_code(number);
        }
    }
}

#[test]
fn a_shells_profile_comes_from_the_runner_and_never_from_the_workspace() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let sh = shell(&scratch, "shannot-sh");
        let open = json!({"name": "open", "binds": [{"source": "/", "target": "/"}], "environment": {"PATH": "/usr/bin:/bin"}});
        fs::write(work.join("open.json"), open.to_string()).unwrap();
        symlink(work.join("open.json"), home.join("link.json")).unwrap();
        let extends = json!({"name": "x", "extends": ["work/open.json"]});
        fs::write(home.join("extends.json"), extends.to_string()).unwrap();
        fs::write(home.join("other.json"), open.to_string()).unwrap();
        // The stranger chooses among the profiles of others.
        symlink("../other.json", work.join("leads-out.json")).unwrap();
        // A folder that is called like a profile is none.
        fs::create_dir(work.join("lint")).unwrap();
        let run = |profile: &str| {
            let mut run = Shannot::through(caller, &sh, ["-c", "ls -A ~; echo done"]).env("SHANNOT_PROFILE", profile);
            run.command.current_dir(&work).env("HOME", &home);
            run.output()
        };
        for bad in [
            "open.json",
            "./open.json",
            &work.join("open.json").display().to_string(),
            &home.join("link.json").display().to_string(),
            "~/work/open.json",
            &home.join("extends.json").display().to_string(),
            "leads-out.json",
        ] {
            run(bad).expect_code(125).expect_stderr("lies in the workspace");
        }
        run("").expect_code(0).expect_stdout("work\ndone");
        run("lint").expect_code(0).expect_stdout("done");
        // SANDBOX_PROFILE is what people set for themselves, not for jobs.
        let mut other = Shannot::through(caller, &sh, ["-c", "ls -A ~"]).env("SANDBOX_PROFILE", "host");
        other.command.current_dir(&work).env("HOME", &home);
        assert_eq!(other.output().expect_code(0).stdout, "work\n");
        // What the checkout around the current directory holds is the stranger's too, and so is a HOME there.
        let part = scratch.folder("home/work/part", caller);
        let fake = scratch.folder("home/work/fake", caller);
        fs::create_dir_all(fake.join(".config/shannot")).unwrap();
        let other =
            json!({"name": "ci", "binds": [{"source": "/", "target": "/"}], "environment": {"PATH": "/usr/bin:/bin"}});
        fs::write(fake.join(".config/shannot/ci.json"), other.to_string()).unwrap();
        let below = |home: &Path, profile: &Path| {
            let mut run = Shannot::through(caller, &sh, ["-c", "ls -A ~; echo done"]);
            run.command.current_dir(&part).env("HOME", home).env("SHANNOT_PROFILE", profile);
            run.output()
        };
        fs::create_dir(work.join(".git")).unwrap();
        own(scratch.path(), caller);
        below(&home, &work.join("open.json")).expect_code(125).expect_stderr("lies in the workspace");
        // A job can make one of its own further in.
        fs::create_dir(part.join(".git")).unwrap();
        own(&part.join(".git"), caller);
        below(&home, &work.join("open.json")).expect_code(125).expect_stderr("lies in the workspace");
        below(&fake, Path::new("ci")).expect_code(125).expect_stderr("lies in the workspace");
        fs::remove_dir_all(fake.join(".config")).unwrap();
        below(&fake, Path::new("lint")).expect_code(125).expect_stderr("cannot use HOME=");
        below(&home, Path::new("lint")).expect_code(0).expect_stdout("done");
    }
}

#[test]
fn a_shell_that_is_called_in_a_folder_of_the_workspace_has_all_of_it() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let part = scratch.folder("home/work/part", caller);
        fs::write(work.join("top"), "seen\n").unwrap();
        fs::write(work.join("open.json"), json!({"name": "open"}).to_string()).unwrap();
        let sh = shell(&scratch, "shannot-sh");
        let run = |workspace: &Path, profile: &str| {
            let mut run = Shannot::through(caller, &sh, ["-c", "cat ../top; pwd; ls -A ~"]);
            run.command.current_dir(&part).env("HOME", &home).env("SHANNOT_WORKSPACE", workspace);
            run.env("SHANNOT_PROFILE", profile).output()
        };
        assert_eq!(run(&work, "").expect_code(0).stdout, format!("seen\n{}\nwork\n", part.display()));
        let alone = run(Path::new(""), "").expect_code(0).expect_stderr("No such file");
        assert_eq!(alone.stdout, format!("{}\nwork\n", part.display()));
        run(&home, "").expect_code(125).expect_stderr("holds the home directory");
        run(&scratch.folder("home/other", caller), "")
            .expect_code(125)
            .expect_stderr("the current directory lies outside");
        fs::remove_dir(home.join("other")).unwrap();
        run(&work, &work.join("open.json").display().to_string()).expect_code(125).expect_stderr("in the workspace");
        run(Path::new("/no/such/folder"), "").expect_code(125).expect_stderr("/no/such/folder");
    }
}

#[test]
fn variables_of_build_tools_are_passed_on_and_their_credentials_are_not() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let passed =
            ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "RUST_BACKTRACE", "RUSTFLAGS", "npm_lifecycle_event", "INIT_CWD"];
        let kept =
            ["CARGO_REGISTRY_TOKEN", "CARGO_REGISTRIES_X_TOKEN", "NPM_TOKEN", "npm_config__auth", "PIP_INDEX_URL"];
        let mut run = Shannot::new(caller).args(["run", "-p", "ci", "--", "env"]);
        for name in passed.iter().chain(&kept) {
            run.command.env(name, "x");
        }
        run.command.current_dir(&work).env("HOME", &home);
        let result = run.output().expect_code(0);
        for name in passed {
            assert!(result.stdout.contains(&format!("{name}=x\n")), "no {name} in {result:?}");
        }
        for name in kept {
            assert!(!result.stdout.contains(name), "{name} in {result:?}");
        }
    }
}

#[test]
fn a_script_beside_the_workspace_is_shown_however_it_is_named() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let beside = scratch.folder("beside", caller);
        let script = beside.join("script.sh");
        fs::write(&script, "echo ran; ls -A $(dirname $0); echo x >> $0").unwrap();
        fs::write(beside.join("other"), "").unwrap();
        own(&script, caller);
        symlink(&beside, scratch.path().join("link")).unwrap();
        let sh = shell(&scratch, "shannot-sh");
        let linked = scratch.path().join("link/script.sh");
        for name in [script.to_str().unwrap(), "../../beside/script.sh", linked.to_str().unwrap()] {
            let mut run = Shannot::through(caller, &sh, ["-e", name]);
            run.command.current_dir(&work).env("HOME", &home);
            let result = run.output().expect_stderr("Read-only file system");
            assert_eq!(result.stdout, "ran\nscript.sh\n", "{name}: {result:?}");
        }
    }
}

#[test]
fn called_by_a_shells_name_it_is_that_shell() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let bash = shell(&scratch, "bash");
        let run = |words: &[&str]| {
            let mut run = Shannot::through(caller, &bash, words);
            run.command.current_dir(&work).env("HOME", &home);
            run.command.env("PATH", format!("{}:/usr/bin:/bin", scratch.path().display()));
            run
        };
        run(&["-c", "echo $BASH_VERSION; cat ~/../other"]).output().expect_stdout("5.");
        let mut stdin = run(&["-s", "a"]).command;
        let mut child = stdin.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"echo from $1; exit 9").unwrap();
        let result = Result::new(child.wait_with_output().unwrap()).expect_code(9);
        result.expect_stdout("from a");
    }
}

#[test]
fn reports_say_what_ran_and_how_it_ended() {
    for caller in callers() {
        let scratch = Scratch::new();
        let (home, work) = workspace(&scratch, caller);
        let out = scratch.folder("out", caller);
        let run = |words: &[&str], script: &str| {
            let mut run = Shannot::new(caller).args(["run", "-p", "ci"]).args(words).args(["--", "bash", "-c", script]);
            run.command.current_dir(&work).env("HOME", &home).env("GITHUB_STEP_SUMMARY", out.join("summary.md"));
            run
        };
        let junit = out.join("junit.xml").display().to_string();
        run(&["--junit", &junit], "echo '<&\"'; exit 4").output().expect_code(4);
        let xml = fs::read_to_string(&junit).unwrap();
        for part in [
            "failures=\"1\"",
            "<failure type=\"exit\" message=\"exit code 4\"/>",
            "&lt;&amp;&quot;",
            "name=\"landlock-fs\"",
        ] {
            assert!(xml.contains(part), "no {part} in {xml}");
        }
        if tool("python3").is_some() {
            let check = "import sys, xml.dom.minidom as m; m.parse(sys.argv[1])";
            let checked = Shannot::through(Caller::Own, Path::new("/usr/bin/python3"), ["-c", check, &junit]);
            checked.output().expect_code(0);
        }
        run(&["--junit", &junit], "true").output().expect_code(0);
        assert!(fs::read_to_string(&junit).unwrap().contains("failures=\"0\" errors=\"0\""));
        // The job's output is no command to the runner until it has ended.
        let result = run(&["--ci", "github"], "printf '::error::from the job'; exit 5").output().expect_code(5);
        let lines: Vec<&str> = result.stdout.lines().collect();
        let token = lines[0].strip_prefix("::stop-commands::").unwrap();
        assert_eq!(lines[1], "::error::from the job");
        assert_eq!(lines[2], format!("::{token}::"));
        assert!(lines[3].starts_with("::error title=bash (profile ci)::exit code 5"), "{result:?}");
        assert!(fs::read_to_string(out.join("summary.md")).unwrap().contains("exit code 5"));
        // Nor by the other stream, which the runner reads beside the first: both are one, in order, and whole.
        let both = "echo 1; echo ::error::2 >&2; head -c 3000000 /dev/zero | tr '\\0' x; echo; (trap '' TERM; sleep 60; echo late) & echo ::3 >&2";
        let result = run(&["--ci", "github"], both).output().expect_code(0);
        let lines: Vec<&str> = result.stdout.lines().collect();
        assert_eq!(
            (lines[1], lines[2], lines[3].len(), lines[4], &*result.stderr),
            ("1", "::error::2", 3_000_000, "::3", "")
        );
        let thrown = run(&["--ci", "github", "--no-stderr"], "echo 1; echo 2 >&2").output().expect_code(0);
        assert!(thrown.stdout.contains("\n1\n\n::shannot-"), "{thrown:?}");
        // Whose reader has gone away ends as without Shannot.
        let piped = format!("{} run -p ci --ci github -- yes | head -n 3 | wc -l", binary().display());
        let mut piped =
            Shannot::through(caller, Path::new("/bin/bash"), ["-c", &piped]).env("HOME", home.to_str().unwrap());
        piped.command.current_dir(&work);
        assert_eq!(piped.output().expect_code(0).stdout, "3\n");
        let again = run(&["--ci", "github"], "true").output().expect_code(0);
        assert!(!again.stdout.contains(token) && !again.stdout.contains("::error"), "{again:?}");
        let result = run(&["--ci", "auto"], "echo hi").env("GITLAB_CI", "true").output().expect_code(0);
        assert!(result.stdout.contains("section_start:") && result.stdout.contains("section_end:"), "{result:?}");
        assert_eq!(run(&["--ci", "auto"], "echo hi").output().expect_code(0).stdout, "hi\n");
        // A report that can't be written leaves the runner listening again.
        let full = run(&["--ci", "github", "--report", "/dev/full"], "true").output().expect_code(125);
        let token = full.stdout.lines().next().unwrap().strip_prefix("::stop-commands::").unwrap().to_owned();
        assert!(full.stdout.lines().any(|line| line == format!("::{token}::")), "{full:?}");
        // What a job could not start at all.
        let result = run(&["--junit", &junit, "--chdir", "/no/such"], "true").output().expect_code(125);
        assert!(fs::read_to_string(&junit).unwrap().contains("<error type=\"shannot\""), "{result:?}");
    }
}

//! Which profile is used, and what is not accepted as one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::support::*;

/// A run with a home directory of its own.
fn at_home(caller: Caller, home: &Scratch, arguments: &[&str]) -> Result {
    Shannot::new(caller).env("HOME", home.path().to_str().unwrap()).args(arguments).output()
}

fn named(name: &str) -> String {
    profile(json!({"name": name})).to_string()
}

#[test]
fn profiles_are_searched_in_order() {
    for caller in callers() {
        let home = Scratch::new();
        let name_of = |arguments: &[&str], variable: Option<(&str, &str)>| {
            let mut run = Shannot::new(caller).env("HOME", home.path().to_str().unwrap());
            if let Some((name, value)) = variable {
                run = run.env(name, value);
            }
            let result = run.args(arguments).args(["export"]).output().expect_code(0);
            serde_json::from_str::<Value>(&result.stdout).unwrap()["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name_of(&[], None), "minimal");
        fs::create_dir_all(home.path().join(".config/shannot")).unwrap();
        home.file(".config/shannot/profile.json", named("second"));
        assert_eq!(name_of(&[], None), "second");
        home.file(".config/shannot/minimal.json", named("first"));
        assert_eq!(name_of(&[], None), "first");
        home.file(".config/shannot/mine.json", named("mine"));
        assert_eq!(name_of(&["-p", "mine"], None), "mine");
        assert_eq!(name_of(&[], Some(("SANDBOX_PROFILE", "mine"))), "mine");
        assert_eq!(name_of(&[], Some(("SHANNOT_PROFILE", "~/.config/shannot/mine.json"))), "mine");
        assert_eq!(name_of(&["-p", "readonly"], Some(("SANDBOX_PROFILE", "mine"))), "readonly");
        // One that can't be used is not passed over.
        home.file(".config/shannot/minimal.json", "{");
        at_home(caller, &home, &["ls", "/"]).expect_code(125).expect_stderr("minimal.json");
    }
}

#[test]
fn what_is_no_profile_is_refused() {
    for caller in callers() {
        for (text, expected) in [
            (String::new(), "EOF"),
            ("[]".into(), "invalid type"),
            ("{}".into(), "missing field `name`"),
            (r#"{"name": ""}"#.into(), "name"),
            (r#"{"name": "x", "name": "y"}"#.into(), "duplicate field `name`"),
            (r#"{"name": "x", "secomp_profile": "none"}"#.into(), "did you mean \"seccomp_profile\"?"),
            (r#"{"name": "x", "binds": "/usr"}"#.into(), "binds"),
            (r#"{"name": "x", "network_isolation": "yes"}"#.into(), "network_isolation"),
            (r#"{"name": "x", "network": "host", "network_isolation": true}"#.into(), "contradicts"),
            (r#"{"name": "x", "binds": [{"source": "/usr", "target": "/a/../usr"}]}"#.into(), ".."),
            (r#"{"name": "x", "binds": [{"source": "/usr", "target": "usr"}]}"#.into(), "not absolute"),
            (r#"{"name": "x", "binds": [{"source": "/usr", "target": "/a\u0000b"}]}"#.into(), "NUL"),
            (r#"{"name": "x", "binds": [{"source": "/us\u0000r", "target": "/usr"}]}"#.into(), "is no path"),
            (r#"{"name": "x", "environment": {"A=B": "c"}}"#.into(), "A=B"),
            (r#"{"name": "x", "environment": {"A": "b\u0000"}}"#.into(), "NUL"),
            (r#"{"name": "x", "additional_args": ["--frobnicate"]}"#.into(), "Unknown option --frobnicate"),
            (r#"{"name": "x", "limits": {"memory": "lots"}}"#.into(), "limits.memory"),
            (r#"{"name": "x", "limits": {"timeout": 0}}"#.into(), "limits.timeout"),
            (r#"{"name": "x", "require": ["secomp"]}"#.into(), "did you mean \"seccomp\"?"),
            (r#"{"name": "x", "hostname": ""}"#.into(), "hostname"),
            (format!(r#"{{"name": "{}"}}"#, "x".repeat(10 << 20)), "larger than"),
            (format!(r#"{{"name": {}}}"#, "[".repeat(100_000)), "line 1"),
            ("\u{0}".into(), "line 1"),
        ] {
            let scratch = Scratch::new();
            let path = scratch.file("bad.json", &text);
            let result = Shannot::new(caller).args(["-p"]).args([path]).args(["run", "true"]).output().expect_code(125);
            let shown: String = text.chars().take(80).collect();
            assert!(result.stderr.contains(expected), "{shown}: {result:?}");
            assert!(result.stdout.is_empty() && result.stderr.len() < 4096, "{shown}: {result:?}");
        }
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    for caller in callers() {
        let scratch = Scratch::new();
        let fifo = scratch.path().join("fifo.json");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o644)).unwrap();
        for path in [fifo.to_str().unwrap(), "/dev/zero", "/", "/no/such.json"] {
            let result = Shannot::new(caller).args(["-p", path, "run", "true"]).output().expect_code(125);
            assert!(result.stderr.contains(path), "{result:?}");
        }
    }
}

#[test]
fn root_trusts_no_file_that_another_user_could_change() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let run =
        |path: &std::path::Path| Shannot::new(Caller::Own).args(["-p"]).args([path]).args(["run", "true"]).output();
    let path = scratch.file("p.json", named("x"));
    run(&path).expect_code(0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    run(&path).expect_code(125).expect_stderr("anybody can write").expect_stderr("hint: ");
    let foreign = scratch.file("foreign.json", named("x"));
    own(&foreign, Caller::Nobody);
    run(&foreign).expect_code(125).expect_stderr("belongs to user 65534");
    // Whoever owns a folder on the way decides which file it is.
    let folder = scratch.folder("folder", Caller::Nobody);
    fs::write(folder.join("p.json"), named("x")).unwrap();
    run(&folder.join("p.json")).expect_code(125).expect_stderr("belongs to user 65534");
    let link = scratch.path().join("link.json");
    std::os::unix::fs::symlink(folder.join("p.json"), &link).unwrap();
    run(&link).expect_code(125);
    // The same for a filter.
    let filter = scratch.file("f.bpf", [6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    own(&filter, Caller::Nobody);
    let path = scratch.file("q.json", profile(json!({"seccomp_profile": "f.bpf"})).to_string());
    run(&path).expect_code(125).expect_stderr("f.bpf");
}

#[test]
fn sources_that_are_missing_unreadable_or_of_the_wrong_kind() {
    for caller in callers() {
        let scratch = Scratch::new();
        let file = scratch.file("file", "content");
        let folder = scratch.folder("folder", Caller::Own);
        let secret = scratch.folder("secret", Caller::Own);
        fs::create_dir(secret.join("inside")).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
        let run = |bind: Value| {
            let path = scratch.file("p.json", with_binds(&[bind], json!({})).to_string());
            Shannot::new(caller).args(["-v", "-p"]).args([path]).args(["run", "true"]).output()
        };
        run(json!({"source": "/no/such", "target": "/x"})).expect_code(0).expect_stderr("skipped bind /no/such");
        run(json!({"source": "/no/such", "target": "/x", "optional": false}))
            .expect_code(125)
            .expect_stderr("cannot bind \"/no/such\" to \"/x\"");
        run(json!({"source": file, "target": "/tmp"})).expect_code(125).expect_stderr("Is a directory");
        run(json!({"source": folder, "target": "/etc/passwd"})).expect_code(125).expect_stderr("Not a directory");
        run(json!({"source": folder, "target": "/etc/new/target"})).expect_code(125).expect_stderr("/etc/new/target");
        run(json!({"source": "folder", "target": "/relative"})).expect_code(0);
        if caller == Caller::Nobody {
            run(json!({"source": secret.join("inside"), "target": "/x"}))
                .expect_code(125)
                .expect_stderr("Permission denied");
        }
        std::os::unix::fs::symlink("loop", scratch.path().join("loop")).unwrap();
        run(json!({"source": scratch.path().join("loop"), "target": "/x"}))
            .expect_code(125)
            .expect_stderr("symbolic links");
    }
}

#[test]
fn dot_dot_and_links_in_sources_mean_what_they_mean_on_the_host() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", Caller::Own);
        fs::write(folder.join("file"), "content").unwrap();
        let depth = "../".repeat(folder.components().count() + 2);
        std::os::unix::fs::symlink(format!("{depth}usr/bin"), folder.join("up")).unwrap();
        for (source, inside) in [
            (format!("{0}/../data", folder.display()), "/x/file"),
            (format!("{0}/{depth}{1}", folder.display(), folder.display()), "/x/file"),
            (format!("{}/up", folder.display()), "/x/env"),
            ("/../../usr/bin".to_owned(), "/x/env"),
        ] {
            let profile = with_binds(&[json!({"source": source, "target": "/x"})], json!({}));
            sh(caller, &profile, &format!("test -e {inside}")).expect_code(0);
        }
    }
}

#[test]
fn the_shipped_profiles_fit_the_schema_and_hold_their_intent() {
    for name in ["minimal", "readonly", "diagnostics", "host"] {
        let path = sources().join(format!("profiles/{name}.json"));
        let document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let schema = shannot::profile::json_schema();
        for key in document.as_object().unwrap().keys() {
            assert!(schema["properties"].get(key).is_some(), "{name}: {key}");
        }
        assert_eq!(document["name"], json!(name));
    }
}

#[test]
fn the_profile_host_shows_the_host_and_hides_credentials() {
    for caller in callers() {
        let home = Scratch::new();
        for name in [".ssh", ".aws", ".gnupg", ".cache"] {
            fs::create_dir(home.path().join(name)).unwrap();
            fs::write(home.path().join(name).join("secret"), "secret").unwrap();
        }
        let work = home.folder("work", caller);
        fs::write(work.join("file"), "mine").unwrap();
        let run = |script: &str| {
            let mut run = Shannot::new(caller)
                .env("HOME", home.path().to_str().unwrap())
                .args(["-p", "host", "bash", "-c", script]);
            run.command.current_dir(&work);
            run.output()
        };
        run("cat file; ls / | head -1; ls | wc -l").expect_code(0).expect_stdout("mine");
        assert_eq!(run("cat ~/.ssh/* ~/.aws/* ~/.gnupg/* ~/.cache/* /etc/shadow 2>/dev/null").stdout, "");
        run("touch file2").expect_code(1).expect_stderr("Read-only");
        run("touch /tmp/x /run/x ~/.cache/x").expect_code(0);
        assert!(!fs::exists("/tmp/x").unwrap() && !fs::exists(home.path().join(".cache/x")).unwrap());
    }
}

//! What a profile promises holds on every rung that accepts it: one suite, run on each, as *works inside / denied inside*.
//! Needs a shell and busybox, so that it runs on kernels whose host has nothing else (`kernels/`).

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

#[path = "endings.rs"]
mod endings;

/// What a host of one rung alone says (`kernels/init`).
const EXPECTED: &str = "SHANNOT_EXPECT_RUNG";

/// A way to isolate that this host lets the caller have.
#[derive(Debug, Clone)]
struct Rung {
    caller: Caller,
    backend: &'static str,
    landlock: i64,
}

impl Rung {
    fn run(&self, profile: &Value, words: &[&str]) -> Shannot {
        Shannot::new(self.caller).profile(profile).args(["run", "--backend", self.backend]).args(words)
    }

    fn sh(&self, profile: &Value, script: &str) -> Result {
        self.run(profile, &["--", "sh", "-c", script]).output()
    }

    /// Signals inside are refused together with those that leave.
    fn has_signals(&self) -> bool {
        self.backend != "landlock" || self.landlock >= 6
    }
}

/// Every caller on every rung. None, where the host is one that refuses everything.
fn rungs() -> Vec<Rung> {
    let mut rungs = Vec::new();
    for caller in callers() {
        for backend in ["namespaces", "landlock"] {
            let result = Shannot::new(caller).args(["doctor", "--json", "--backend", backend]).output();
            let doctor: Value = serde_json::from_str(&result.stdout).unwrap();
            let abi = doctor["findings"].as_array().unwrap().iter().find(|finding| finding["what"] == "Landlock");
            let abi = abi
                .and_then(|finding| finding["found"].as_str()?.strip_prefix("ABI ")?.split(';').next()?.parse().ok());
            if result.code == 0 {
                rungs.push(Rung { caller, backend, landlock: abi.unwrap_or(0) });
            }
        }
    }
    let expected = std::env::var(EXPECTED).unwrap_or_else(|_| "namespaces".to_owned());
    assert_eq!(rungs.is_empty(), expected == "refused", "{rungs:?}");
    rungs
}

/// A folder of the caller's with a file in it.
fn data(scratch: &Scratch, caller: Caller) -> PathBuf {
    let folder = scratch.folder("data", caller);
    let file = scratch.file("data/file", "precious");
    own(&file, caller);
    folder
}

fn bind(path: &Path, read_only: bool) -> Value {
    json!({"source": path, "target": path, "read_only": read_only})
}

#[test]
fn what_is_bound_read_only_can_be_read_and_not_changed() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = data(&scratch, rung.caller);
        let profile = with_binds(&[bind(&folder, true)], json!({}));
        let path = folder.display();
        rung.sh(&profile, &format!("cat {path}/file; ls {path}"))
            .expect_code(0)
            .expect_stdout("precious")
            .expect_stdout("file");
        for attempt in [
            format!("echo x > {path}/file"),
            format!("echo x >> {path}/file"),
            format!("echo x > {path}/new"),
            format!("mkdir {path}/new"),
            format!("rm {path}/file"),
            format!("mv {path}/file {path}/other"),
            format!("ln {path}/file {path}/other"),
            format!("ln -s x {path}/other"),
            format!("chmod 0 {path}/file"),
            format!("touch -d 2001-01-01 {path}/file"),
            format!("truncate -s 0 {path}/file"),
            format!("mkfifo {path}/new"),
        ] {
            let result = rung.sh(&profile, &attempt);
            assert_ne!(result.code, 0, "{attempt} on {rung:?}: {result:?}");
        }
        let file = folder.join("file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious", "{rung:?}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644, "{rung:?}");
        assert!(
            fs::metadata(&file).unwrap().modified().unwrap().elapsed().unwrap() < Duration::from_secs(600),
            "{rung:?}"
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "{rung:?}");
    }
}

#[test]
fn what_is_bound_writable_can_be_changed_and_nothing_beside_it() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = data(&scratch, rung.caller);
        let beside = scratch.folder("beside", rung.caller);
        let profile = with_binds(&[bind(&folder, false)], json!({}));
        let script = "cd $1 && echo more >> file && mkdir sub && echo x > sub/new && mv sub/new sub/newer && rm sub/newer && cat file";
        let result = rung.run(&profile, &["--", "sh", "-c", script, "sh"]).args([&folder]).output();
        result.expect_code(0).expect_stdout("more");
        assert!(fs::read_to_string(folder.join("file")).unwrap().contains("more"), "{rung:?}");
        assert!(folder.join("sub").is_dir(), "{rung:?}");
        if rung.backend != "landlock" || rung.landlock >= 2 {
            // Between folders, without a copy: before ABI 2 Landlock refuses all of these.
            let script = "cd $1 && echo x > sub/a && ln sub/a b && mv sub/a c && mv b sub/d && ls sub";
            let result = rung.run(&profile, &["--", "sh", "-c", script, "sh"]).args([&folder]).output();
            result.expect_code(0).expect_stdout("d");
        }
        let result = rung.sh(&profile, &format!("echo x > {}/x", beside.display()));
        assert_ne!(result.code, 0, "{rung:?}");
        assert_eq!(fs::read_dir(&beside).unwrap().count(), 0, "{rung:?}");
    }
}

#[test]
fn what_is_hidden_or_not_bound_cannot_be_read() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = data(&scratch, rung.caller);
        for (name, text) in [("token", "secret-1"), ("keys/key", "secret-2"), ("shown/file", "shown")] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            own(path.parent().unwrap(), rung.caller);
            own(&path, rung.caller);
        }
        let other = scratch.file("other", "secret-3");
        let profile = with_binds(&[bind(&folder, true)], json!({"hide": [folder.join("token"), folder.join("keys")]}));
        let path = folder.display();
        let script = format!("cat {path}/file {path}/shown/file");
        rung.sh(&profile, &script).expect_code(0).expect_stdout("precious").expect_stdout("shown");
        let script = format!(
            "cat {path}/token; cat {path}/keys/key; cat {path}/shown/../token; cat {}; ls {path}/keys; cat < {path}/token; true",
            other.display()
        );
        let result = rung.sh(&profile, &script);
        assert!(!result.stdout.contains("secret") && !result.stdout.contains("key"), "{rung:?}: {result:?}");
    }
}

#[test]
fn there_is_no_network() {
    for rung in rungs() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let outside = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        if outside {
            assert!(listener.accept().is_ok());
        }
        for network in ["none", "loopback"] {
            let profile = profile(json!({"network": network}));
            let result = rung.sh(&profile, &format!("busybox nc 127.0.0.1 {port} < /dev/null"));
            assert_ne!(result.code, 0, "{rung:?}: {result:?}");
            assert!(listener.accept().is_err(), "{network} on {rung:?}");
        }
    }
}

#[test]
fn processes_outside_are_not_signalled() {
    for rung in rungs() {
        let mut victim = Shannot::through(rung.caller, &tool("sleep").unwrap(), ["600"]);
        let mut victim = victim.command.stdin(Stdio::null()).spawn().unwrap();
        let pid = victim.id();
        let result = rung
            .sh(&profile(json!({})), &format!("kill -9 {pid}; kill -0 {pid} && echo reached; kill -9 -1; echo still"));
        assert!(!result.stdout.contains("reached"), "{rung:?}: {result:?}");
        assert!(victim.try_wait().unwrap().is_none(), "{rung:?}: {result:?}");
        victim.kill().unwrap();
        victim.wait().unwrap();
        if rung.has_signals() {
            rung.sh(&profile(json!({})), "sleep 600 & kill $! && wait $!; echo $?").expect_stdout("143");
        }
        // Looking through other processes.
        let me = std::process::id();
        let result = rung.sh(
            &profile(json!({})),
            &format!("cat /proc/{me}/environ; ls /proc/{me}/root/ /proc/{me}/cwd/; readlink /proc/{me}/fd/0"),
        );
        assert!(result.stdout.is_empty(), "{rung:?}: {result:?}");
    }
}

#[test]
fn the_environment_is_the_profiles() {
    for rung in rungs() {
        let result = rung.run(&profile(json!({})), &["--", "env"]).env("TOKEN", "secret").output();
        let result = result.expect_code(0).expect_stdout("LANG=C.UTF-8");
        assert!(!result.stdout.contains("secret"), "{rung:?}");
    }
}

#[test]
fn no_privilege_is_left_or_to_be_had() {
    for rung in rungs() {
        let profile = profile(json!({"hostname": "inside"}));
        let result = rung.sh(&profile, "cat /proc/self/status").expect_code(0);
        let zero = |name: &str| format!("{name}:\t0000000000000000");
        for line in [
            zero("CapInh"),
            zero("CapPrm"),
            zero("CapEff"),
            zero("CapAmb"),
            "NoNewPrivs:\t1".into(),
            "Seccomp:\t2".into(),
        ] {
            assert!(result.stdout.contains(&line), "no {line} on {rung:?}: {result:?}");
        }
        for attempt in
            ["busybox unshare -U true", "busybox mount -t tmpfs x /tmp", "busybox chroot / true", "busybox hostname x"]
        {
            let result = rung.sh(&profile, attempt);
            assert_ne!(result.code, 0, "{attempt} on {rung:?}: {result:?}");
        }
    }
}

#[test]
fn only_allowed_files_are_executed() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let other = scratch.path().join("other");
        fs::copy(tool("busybox").unwrap(), &other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        let changes = json!({"allowed_commands": ["find", "cat"]});
        let profile = with_binds(&[bind(scratch.path(), true)], changes);
        let find = |what: &str| {
            rung.run(&profile, &["--", "find", &other.display().to_string(), "-exec", what, "echo", "ran", ";"])
                .output()
        };
        rung.run(&profile, &["--", "find", &other.display().to_string(), "-exec", "cat", "/etc/hostname", ";"])
            .output()
            .expect_code(0);
        let result = find(&other.display().to_string());
        assert!(!result.stdout.contains("ran"), "{rung:?}: {result:?}");
        for loader in
            ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].iter().filter(|path| Path::new(path).exists())
        {
            let words = ["--", "find", "/etc/hostname", "-exec", loader, "/bin/sh", "-c", "echo ran", ";"];
            let result = rung.run(&profile, &words).output();
            assert!(!result.stdout.contains("ran"), "{loader} on {rung:?}: {result:?}");
        }
        rung.run(&profile, &["--", "sh", "-c", "true"]).output().expect_code(126);
    }
}

/// A loader maps what the environment says, for whoever may set it: `env` is in `readonly` and `diagnostics`.
#[test]
fn an_allowed_command_maps_no_library_that_it_does_not_need() {
    let Some(library) = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"]
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        return;
    };
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = scratch.folder("workspace", rung.caller);
        fs::copy(library, scratch.path().join("evil.so")).unwrap();
        let profile = with_binds(
            &[bind(scratch.path(), true), bind(&folder, false)],
            json!({"allowed_commands": ["env", "cp", "ls", "sh", "chmod"]}),
        );
        let run = |words: &[&str]| rung.run(&profile, &["--"]).args(words).output();
        let needed = Path::new(library).with_file_name("libc.so.6");
        let preload = |path: &Path| format!("LD_PRELOAD={}", path.display());
        let result = run(&["env", &preload(&needed), "ls", "/etc/hostname"]).expect_code(0);
        assert_eq!(result.stderr, "", "{rung:?}");
        let evil = scratch.path().join("evil.so");
        run(&["env", &preload(&evil), "ls", "/etc/hostname"])
            .expect_stderr("cannot be preloaded (failed to map segment");
        run(&["env", &format!("LD_LIBRARY_PATH={}", scratch.path().display()), "ls", "/etc/hostname"]).expect_code(0);
        run(&["env", "--", &evil.display().to_string()]).expect_code(126);
        // What can be written can't be executed either.
        for place in ["${TMPDIR:-/tmp}", &folder.display().to_string()] {
            let script = format!("cp /usr/bin/id {place}/x && chmod 755 {place}/x; {place}/x; ls {place}");
            let result = run(&["sh", "-c", &script]).expect_code(0).expect_stdout("x");
            assert!(!result.stdout.contains("uid="), "{rung:?}: {result:?}");
        }
    }
}

#[test]
fn what_may_be_executed_can_not_be_changed() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", rung.caller);
        let program = folder.join("tool");
        fs::copy(tool("busybox").unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        own(&program, rung.caller);
        let changes = json!({"allowed_commands": [program, "dd"]});
        let profile = with_binds(&[bind(&folder, false)], changes);
        let target = format!("of={}", program.display());
        let result = rung.run(&profile, &["--", "dd", "if=/etc/hostname", &target]).output();
        assert_ne!(result.code, 0, "{rung:?}: {result:?}");
        assert!(fs::metadata(&program).unwrap().len() > 10_000, "{rung:?}: {result:?}");
        if rung.backend == "landlock" {
            result.expect_code(125).expect_stderr("from being changed").expect_stderr("--allow-degraded allowlist");
        }
    }
}

#[test]
fn folders_that_a_killed_run_left_go_with_the_next() {
    for rung in rungs().into_iter().filter(|rung| rung.backend == "landlock") {
        let run = || rung.run(&profile(json!({})), &["--", "sh", "-c", "echo $TMPDIR"]).output().expect_code(0);
        let used = run();
        let parent = Path::new(used.stdout.trim()).parent().unwrap().parent().unwrap().to_owned();
        let (left, young) = (parent.join("shannot-00000000deadbeef"), parent.join("shannot-00000000cafecafe"));
        for folder in [&left, &young] {
            fs::create_dir_all(folder.join("tmp")).unwrap();
            own(folder, rung.caller);
        }
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(&left).unwrap().set_modified(old).unwrap();
        fs::set_permissions(left.join("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
        run();
        let gone = !left.exists();
        let kept = young.exists();
        fs::remove_dir_all(&left).ok();
        fs::remove_dir_all(&young).unwrap();
        assert!(gone && kept, "{rung:?}");
    }
}

#[test]
fn the_shipped_profiles_run_and_the_canary_confirms_them() {
    for rung in rungs() {
        for name in ["minimal", "readonly", "diagnostics"] {
            let run = || Shannot::new(rung.caller).args(["-p", name, "run", "--backend", rung.backend]);
            run().args(["--", "cat", "/proc/version"]).output().expect_code(0).expect_stdout("Linux");
            run().args(["--", "ls"]).output().expect_code(0);
            let verify = Shannot::new(rung.caller).args(["-p", name, "verify", "--backend", rung.backend]).output();
            assert_eq!(verify.code, 0, "{name} on {rung:?}: {verify:?}");
        }
    }
}

#[test]
fn the_report_names_the_rung() {
    for rung in rungs() {
        let result = rung.run(&profile(json!({})), &["--report", "fd:1", "--", "true"]).output().expect_code(0);
        let report: Value = serde_json::from_str(&result.stdout).unwrap();
        assert_eq!(report["rung"], rung.backend);
        assert_eq!(report["in_place"].is_null(), rung.backend == "namespaces");
        assert_ne!(
            report["effective"]["landlock-fs"]["state"],
            json!(if rung.backend == "landlock" { "off" } else { "" })
        );
    }
}

#[test]
fn what_is_hidden_stays_hidden_by_links_wildcards_and_in_proc() {
    for rung in rungs() {
        let scratch = Scratch::new();
        let folder = data(&scratch, rung.caller);
        fs::create_dir(folder.join("real")).unwrap();
        fs::write(folder.join("real/secret"), "SECRET").unwrap();
        // It leads there only inside.
        std::os::unix::fs::symlink("/data/real", folder.join("link")).unwrap();
        let moved = |read_only| {
            let bind = json!({"source": folder, "target": "/data", "read_only": read_only});
            with_binds(&[bind], json!({"hide": ["/data/link/secret"]}))
        };
        let read = format!("cat {}/real/secret /data/real/secret; true", folder.display());
        for profile in [moved(true), moved(false)] {
            let result = rung.sh(&profile, &read);
            assert!(!result.stdout.contains("SECRET"), "{rung:?}: {result:?}");
        }
        let wild = json!({"allowed_commands": ["cat", format!("{}/real/*", folder.display())], "hide": [folder.join("real/secret")]});
        let wild = with_binds(&[bind(&folder, true)], wild);
        let result = rung.run(&wild, &["--", "cat"]).args([folder.join("real/secret")]).output();
        assert!(!result.stdout.contains("SECRET"), "{rung:?}: {result:?}");
        let masked = profile(json!({"hide": ["/proc/version", "/dev/urandom"]}));
        let result = rung.sh(&masked, "cat /proc/version; head -c 8 /dev/urandom");
        assert!(result.code != 0 && result.stdout.is_empty(), "{rung:?}: {result:?}");
    }
}

#[test]
fn the_lowest_rung_refuses_what_it_cannot_keep() {
    for rung in rungs().into_iter().filter(|rung| rung.backend == "landlock") {
        let scratch = Scratch::new();
        let folder = data(&scratch, rung.caller);
        let inner = folder.join("kept");
        fs::create_dir(&inner).unwrap();
        own(&inner, rung.caller);
        let kept = with_binds(&[bind(&folder, false), bind(&inner, true)], json!({}));
        rung.sh(&kept, "true")
            .expect_code(125)
            .expect_stderr("read-only below")
            .expect_stderr("--allow-degraded landlock-fs");
        let hidden = with_binds(&[bind(&folder, false)], json!({"hide": [inner]}));
        rung.sh(&hidden, "true").expect_code(125).expect_stderr("which is writable");
        rung.run(&hidden, &["--allow-degraded", "landlock-fs", "--", "true"]).output().expect_code(0);
        rung.run(&profile(json!({})), &["--require", "mount-namespace", "--", "true"])
            .output()
            .expect_code(125)
            .expect_stderr("mount-namespace");
        let off = profile(json!({"landlock": "off"}));
        rung.sh(&off, "true").expect_code(125).expect_stderr("the policy turns Landlock off");
    }
}

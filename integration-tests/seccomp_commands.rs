//! `shannot seccomp`: what it compiles runs here and under bubblewrap, what it says of a policy is what then happens.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

fn seccomp(arguments: &[&str]) -> Result {
    Shannot::new(Caller::Own).args(["seccomp"]).args(arguments).output()
}

/// A policy of Docker's, Podman's or the guide's, where the workplace has them.
fn real(name: &str) -> Option<String> {
    let folder = sources().join("../shared/data/seccomp-policies");
    let found = std::fs::read_to_string(folder.join(name)).ok();
    if found.is_none() {
        eprintln!("{name} is not on this machine");
    }
    found
}

/// Everything is allowed but these, as an allowlist has it.
fn refusing(names: &[&str], errno: u16) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]})
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

#[test]
fn what_is_compiled_runs_under_bubblewrap_with_the_same_verdicts() {
    let (Some(bwrap), Some(python)) = (tool("bwrap"), tool("python3")) else { return };
    let scratch = Scratch::new();
    let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78, "args": [{"index": 1, "value": 0x1_0000_0007_u64, "op": "SCMP_CMP_EQ"}]},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 79, "args": [{"index": 1, "value": 0xff00, "valueTwo": 0x4200, "op": "SCMP_CMP_MASKED_EQ"}]}]});
    let source = scratch.file("p.json", policy.to_string());
    let filter = scratch.path().join("p.bpf");
    seccomp(&["compile", path(&source), "-o", path(&filter)]).expect_code(0).expect_stderr("instructions for ");
    let calls =
        [("getppid", "0,0"), ("ioctl", "0,0x100000007"), ("ioctl", "0,0x4242"), ("getpid", "0,0"), ("ioctl", "0,0x17")];
    for (name, args) in calls {
        let said = seccomp(&["eval", path(&filter), "--syscall", name, "--args", args, "--json"]);
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        let program = format!(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall({}, *[ctypes.c_void_p(a) for a in [{args}]])\nprint(ctypes.get_errno())",
            said["nr"]
        );
        let script = format!(
            "exec {} --ro-bind / / --seccomp 9 {} -c '{program}' 9< {}",
            path(&bwrap),
            path(&python),
            path(&filter)
        );
        let run = Shannot::through(Caller::Own, Path::new("/bin/sh"), ["-c", &script]).output().expect_code(0);
        let seen: u16 = run.stdout.trim().parse().unwrap();
        let verdict = said["verdict"].as_str().unwrap();
        match [77, 78, 79].contains(&seen) {
            true => assert!(verdict.starts_with(&format!("errno {seen}")), "{name}({args}): {verdict}, and {seen}"),
            false => assert_eq!(verdict, "allow", "{name}({args}): {seen}"),
        }
        assert_eq!(said["lets_through"], verdict == "allow");
    }
}

#[test]
fn the_same_policy_gives_the_same_bytes_and_the_file_is_whole_or_not_there() {
    let scratch = Scratch::new();
    let policy = scratch.file("p.json", refusing(&["mount", "reboot", "clone3"], 38).to_string());
    let (a, b) = (scratch.path().join("a.bpf"), scratch.path().join("b.bpf"));
    for out in [&a, &b] {
        seccomp(&["compile", path(&policy), "-o", path(out), "--kernel", "6.1", "--arch", "x86_64"]).expect_code(0);
    }
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let bad = scratch.file(
        "bad.json",
        "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{\"names\": [], \"action\": \"SCMP_ACT_LOG\"}]}",
    );
    let before = std::fs::read(&a).unwrap();
    seccomp(&["compile", path(&bad), "-o", path(&a)])
        .expect_code(125)
        .expect_stderr("syscalls[0].names: it names no call");
    assert_eq!(std::fs::read(&a).unwrap(), before);
    seccomp(&["compile", path(&policy), "-o", "/nonexistent/x.bpf"]).expect_code(125).expect_stderr("cannot write");
    seccomp(&["compile", path(&policy), "-o", path(&a), "--arch", "mips"]).expect_code(2 + 123).expect_stderr("mips");
    let mut left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.bpf", "b.bpf", "bad.json", "p.json"]);
}

#[test]
fn check_names_the_fault_the_symptom_and_the_fix() {
    let scratch = Scratch::new();
    let policy = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "raed", "mount", "rt_sigaction", "clone", "clone3"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
    let file = scratch.file("p.json", policy.to_string());
    let report = seccomp(&["check", path(&file)]).expect_code(1);
    for expected in [
        "execve is refused (errno 1 (EPERM))",
        "any program that handles a signal will crash",
        "no architecture has a call \"raed\"",
        "did you mean \"read\"?",
        "these are allowed: mount",
        "faccessat2 is answered with errno 1 (EPERM) instead of ENOSYS",
        "clone: syscalls[0] says allow without a condition",
    ] {
        assert!(report.stdout.contains(expected), "{expected}: {}", report.stdout);
    }
    let findings: Value =
        serde_json::from_str(&seccomp(&["check", path(&file), "--json"]).expect_code(1).stdout).unwrap();
    let kinds: Vec<&str> =
        findings["findings"].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    assert!(
        ["execve", "sigreturn", "unknown", "dangerous", "probed", "shadowed"].iter().all(|kind| kinds.contains(kind)),
        "{kinds:?}"
    );

    let fixed = scratch.path().join("fixed.json");
    // All but the typo, whose meaning is not for us to guess; and clone without namespaces.
    seccomp(&["check", path(&file), "--fix", "-o", path(&fixed)]).expect_code(1);
    seccomp(&["check", path(&fixed)]).expect_code(1).expect_stdout("fixed.json: 0 errors, 1 warning");
    let evaluated = |args: &str| seccomp(&["eval", path(&fixed), "--syscall", "mount", "--args", args]).code;
    assert_eq!(evaluated("0"), 1);
    let raw = scratch.path().join("p.bpf");
    seccomp(&["compile", path(&file), "-o", path(&raw)]).expect_code(0).expect_stderr("raed");
    seccomp(&["check", path(&raw)]).expect_code(1).expect_stdout("instruction ").expect_stdout("rt_sigreturn");
    seccomp(&["check", path(&raw), "--fix"]).expect_code(125).expect_stderr("cannot fix a raw filter");
}

#[test]
fn check_finds_the_way_around_a_raw_filter() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let scratch = Scratch::new();
    // mount is refused by its number alone: x32 and i386 have others.
    let program =
        [(0x20_u16, 0_u8, 0_u8, 0_u32), (0x15, 0, 1, 165), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|&(code, jt, jf, k)| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat())
        .collect();
    let file = scratch.file("hole.bpf", bytes);
    let report = seccomp(&["check", path(&file)]).expect_code(1);
    report.expect_stdout("calls that are refused can be made as x32: mount").expect_stdout("as x86: mount");
}

#[test]
fn explain_and_names_say_what_there_is() {
    let explained = seccomp(&["explain", "default"]).expect_code(0);
    for expected in [
        "load arch",
        "return allow",
        "errno 1 (EPERM) (",
        "clone: allow if arg0 & 0x7e020000 == 0x0",
        "numbers without a name: errno 38 (ENOSYS)",
    ] {
        assert!(explained.stdout.contains(expected), "{expected}: {}", explained.stdout);
    }
    let json: Value = serde_json::from_str(&seccomp(&["explain", "strict", "--json"]).expect_code(0).stdout).unwrap();
    assert!(
        json["instructions"].as_array().unwrap().len() > 50
            && json["interfaces"][0]["calls"].as_array().unwrap().len() > 300
    );
    seccomp(&["names", "--arch", "x32", "execve*"]).expect_code(0).expect_stdout("1073742344  execve\n");
    seccomp(&["names", "--arch", "aarch64", "openat"]).expect_code(0).expect_stdout("56  openat\n");
    seccomp(&["names", "nosuchcall"]).expect_code(1);
    seccomp(&["eval", "default", "--syscall", "opneat"]).expect_code(125).expect_stderr("did you mean \"openat\"?");
    seccomp(&["eval", "default", "--syscall", "read", "--args", "x"])
        .expect_code(125)
        .expect_stderr("\"x\" is no number");
    seccomp(&["explain", "none"]).expect_code(125).expect_stderr("is no filter");
    seccomp(&["explain", "defualt"]).expect_code(125).expect_stderr("presets are: default");
}

/// Real work under each of the real policies, and what `check` said of it before.
#[test]
fn real_policies_run_what_check_says_they_run() {
    let (Some(_), Some(_)) = (tool("bash"), tool("python3")) else { return };
    let threads = "import threading; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()";
    for caller in callers() {
        for (file, works) in
            [("docker-default.json", true), ("podman-seccomp.json", true), ("shannot-guide-readonly.json", false)]
        {
            let Some(text) = real(file) else { return };
            let scratch = Scratch::new();
            let policy = scratch.file(file, text);
            let profile = profile(json!({"seccomp_profile": ["none", path(&policy)]}));
            let run = |words: &[&str]| Shannot::new(caller).profile(&profile).args(["run", "--"]).args(words).output();
            run(&["ls", "/"]).expect_code(0).expect_stdout("usr");
            let said = seccomp(&["check", path(&policy)]).expect_code(1);
            assert_eq!(said.stdout.contains("handles a signal will crash"), !works, "{said:?}");
            assert_eq!(said.stdout.contains("can't start one"), !works, "{said:?}");
            let pipeline = run(&["bash", "-c", "ls / | wc -l"]);
            let python = run(&["python3", "-c", threads]);
            if works {
                pipeline.expect_code(0);
                python.expect_code(0).expect_stdout("thread");
                run(&["bash", "-c", "trap 'echo caught' USR1; kill -USR1 $$"]).expect_code(0).expect_stdout("caught");
            } else {
                pipeline.expect_code(139);
                assert_ne!(python.code, 0, "{python:?}");
                let fixed = scratch.path().join("fixed.json");
                seccomp(&["check", path(&policy), "--fix", "-o", path(&fixed)]).expect_code(0);
                own(&fixed, Caller::Own);
                let profile = profile_with(&fixed);
                let run =
                    |words: &[&str]| Shannot::new(caller).profile(&profile).args(["run", "--"]).args(words).output();
                run(&["bash", "-c", "ls / | wc -l"]).expect_code(0);
                run(&["python3", "-c", threads]).expect_code(0).expect_stdout("thread");
            }
        }
    }
}

fn profile_with(policy: &Path) -> Value {
    profile(json!({"seccomp_profile": ["none", path(policy)]}))
}

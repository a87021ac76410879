//! Filters of one's own, in order, over the preset; files that are no filters.

use serde_json::json;

use crate::support::*;

/// struct sock_filter.
fn bytes(program: &[(u16, u8, u8, u32)]) -> Vec<u8> {
    let word = |&(code, jt, jf, k): &(u16, u8, u8, u32)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(word).collect()
}

const ALLOW: (u16, u8, u8, u32) = (0x06, 0, 0, 0x7fff_0000);

/// One call fails with an errno, all others are allowed.
fn refusing(nr: u32, errno: u32) -> Vec<u8> {
    bytes(&[(0x20, 0, 0, 0), (0x15, 0, 1, nr), (0x06, 0, 0, 0x0005_0000 | errno), ALLOW])
}

const GETPPID: u32 = if cfg!(target_arch = "x86_64") { 110 } else { 173 };

#[test]
fn a_raw_filter_applies_over_the_preset() {
    for caller in callers() {
        let scratch = Scratch::new();
        scratch.file("my.bpf", refusing(GETPPID, 77));
        let run = |filters: serde_json::Value| {
            let path = scratch.file("p.json", profile(json!({"seccomp_profile": filters})).to_string());
            let program =
                format!("{PRELUDE}print(call({GETPPID})); print(call(165))\nprint(open('/proc/self/status').read())");
            Shannot::new(caller).args(["-p"]).args([path]).args(["run", "/usr/bin/python3", "-c", &program]).output()
        };
        if tool("python3").is_none() {
            return;
        }
        let both = run(json!("my.bpf")).expect_code(0);
        assert!(both.stdout.starts_with("77\n1\n") && both.stdout.contains("Seccomp_filters:\t2"), "{both:?}");
        let twice = run(json!(["my.bpf", "my.bpf"])).expect_code(0);
        assert!(twice.stdout.contains("Seccomp_filters:\t3"), "{twice:?}");
        let alone = run(json!(["none", "my.bpf"])).expect_code(0);
        assert!(alone.stdout.starts_with("77\n") && alone.stdout.contains("Seccomp_filters:\t1"), "{alone:?}");
    }
}

const PRELUDE: &str = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(nr):
    libc.syscall(nr, 0, 0, 0, 0, 0)
    return ctypes.get_errno()
";

#[test]
fn what_is_no_filter_is_refused_by_name() {
    for caller in callers() {
        let last_jump = bytes(&[(0x15, 1, 0, 0), ALLOW]);
        let no_execve = bytes(&[(0x06, 0, 0, 0x0005_0001)]);
        for (content, expected) in [
            (vec![], "it is empty"),
            (vec![0; 7], "7 bytes are not a whole number"),
            (vec![6; 4097 * 8], "4097 instructions"),
            (vec![6; 65537 * 8], "65537 instructions"),
            (vec![0xff; 64], "instruction 0: operation 0xffff"),
            (last_jump, "instruction 0: jump leads behind the end"),
            (b"{\"defaultAction\": \"SCMP_ACT_ALOW\"}".to_vec(), "defaultAction: unknown variant"),
            (no_execve, "it answers execve with errno 1"),
        ] {
            let scratch = Scratch::new();
            scratch.file("bad.bpf", content);
            let path = scratch.file("p.json", profile(json!({"seccomp_profile": "bad.bpf"})).to_string());
            let result = Shannot::new(caller).args(["-p"]).args([path]).args(["run", "true"]).output().expect_code(125);
            assert!(result.stderr.contains(expected) && result.stderr.contains("bad.bpf"), "{expected}: {result:?}");
        }
        let missing = profile(json!({"seccomp_profile": "missing.bpf"}));
        sh(caller, &missing, "true").expect_code(125).expect_stderr("missing.bpf").expect_stderr("No such file");
        let mistyped = profile(json!({"seccomp_profile": "defualt"}));
        sh(caller, &mistyped, "true").expect_code(125).expect_stderr("did you mean \"default\"?");
    }
}

#[test]
fn none_means_no_filter() {
    for caller in callers() {
        let result = sh(caller, &profile(json!({"seccomp_profile": "none"})), "grep Seccomp: /proc/self/status");
        result.expect_stdout("Seccomp:\t0");
    }
}

/// Each action, installed for real: what the kernel does is what the interpreter says.
#[test]
fn every_action_of_a_policy_is_in_force() {
    for caller in callers() {
        for (action, expected_code, expected) in [
            (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 77}), 0, "77"),
            (json!({"action": "SCMP_ACT_ERRNO", "errno": "ENOTEMPTY"}), 0, "39"),
            (json!({"action": "SCMP_ACT_KILL_PROCESS"}), 128 + 31, ""),
            (json!({"action": "SCMP_ACT_KILL"}), 128 + 31, ""),
            (json!({"action": "SCMP_ACT_TRAP"}), 128 + 31, ""),
            // Without a tracer.
            (json!({"action": "SCMP_ACT_TRACE", "errnoRet": 5}), 0, "38"),
            (json!({"action": "SCMP_ACT_LOG"}), 0, "0"),
        ] {
            let mut rule = action.clone();
            rule["names"] = json!(["getppid"]);
            let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]});
            let scratch = Scratch::new();
            let path = scratch.file("policy.json", policy.to_string());
            let profile = profile(json!({"seccomp_profile": path}));
            let Some(result) = python(
                caller,
                &profile,
                &format!("ctypes.set_errno(0); libc.syscall({GETPPID}); print(ctypes.get_errno())"),
            ) else {
                return;
            };
            assert_eq!((result.code, result.stdout.trim()), (expected_code, expected), "{action}: {result:?}");
        }
    }
}

#[test]
fn what_nobody_would_answer_is_refused() {
    for caller in callers() {
        let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]});
        let scratch = Scratch::new();
        let path = scratch.file("policy.json", policy.to_string());
        let result = sh(caller, &profile(json!({"seccomp_profile": path})), "true").expect_code(125);
        result.expect_stderr("asks a listener (SCMP_ACT_NOTIFY), and nobody would answer");
    }
}

/// A program for i386 of 32-bit ELF made by hand: getppid, then exit with the errno.
fn i386_program() -> Vec<u8> {
    let code = [
        0xb8, 64, 0, 0, 0, // mov eax, getppid
        0xcd, 0x80, // int 0x80
        0xf7, 0xd8, // neg eax
        0x89, 0xc3, // mov ebx, eax
        0xb8, 1, 0, 0, 0, // mov eax, exit
        0xcd, 0x80,
    ];
    let base: u32 = 0x0804_8000;
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0".to_vec();
    file.extend(words(&[1, base + 84, 52, 0, 0]));
    // Sizes and counts of the headers.
    file.extend([52_u16, 32, 1, 0, 0, 0].iter().flat_map(|value| value.to_le_bytes()));
    let size = 84 + u32::try_from(code.len()).unwrap();
    file.extend(words(&[1, 0, base, base, size, size, 5, 0x1000]));
    file.extend(code);
    file
}

#[test]
fn other_interfaces_are_filtered_by_their_own_numbers() {
    use std::os::unix::fs::PermissionsExt;
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    for caller in callers() {
        let scratch = Scratch::new();
        let program = scratch.file("i386", i386_program());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let native = std::process::Command::new(&program).status();
        if native.is_err() {
            skip("this kernel runs no i386 programs");
            return;
        }
        let bind = json!({"source": scratch.path(), "target": "/t"});
        let run = |architectures: serde_json::Value| {
            let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
                "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]});
            let path = scratch.file("policy.json", policy.to_string());
            let profile = with_binds(std::slice::from_ref(&bind), json!({"seccomp_profile": ["none", path]}));
            let i386 = Shannot::new(caller).profile(&profile).args(["run", "/t/i386"]).output().code;
            let x32 = "ctypes.set_errno(0); libc.syscall(0x40000000 | 110); print(ctypes.get_errno())";
            (i386, python(caller, &profile, x32).map(|result| (result.code, result.stdout.trim().to_owned())))
        };
        let (i386, x32) = run(json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        assert_eq!(i386, 77);
        assert!(x32.is_none_or(|x32| x32 == (0, "77".to_owned())));
        // The preset kills it, and -v says so.
        let said = Shannot::new(caller)
            .profile(&with_binds(std::slice::from_ref(&bind), json!({})))
            .args(["-v", "run", "/t/i386"])
            .output();
        said.expect_code(128 + 31).expect_stderr("a program for i386");
        let (i386, x32) = run(json!([]));
        assert_eq!(i386, 128 + 31);
        assert!(x32.is_none_or(|(code, _)| code == 128 + 31));
    }
}

#[test]
fn exec_once_lets_the_launch_through_and_nothing_after_it() {
    for caller in callers() {
        let once = profile(json!({"exec_once": true}));
        let result = sh(caller, &once, "echo first; ls /; echo $?; exec ls /").expect_code(126);
        assert!(result.stdout.starts_with("first\n126\n"), "{result:?}");
        result.expect_stderr("Permission denied");
        // Without it the same works.
        sh(caller, &profile(json!({})), "ls / && exec ls /").expect_code(0);
        // A raw filter that refuses execve, also with execveat and for threads.
        let scratch = Scratch::new();
        let execve = if cfg!(target_arch = "x86_64") { 59 } else { 221 };
        scratch.file("raw.bpf", refusing(execve, 77));
        let path =
            scratch.file("p.json", profile(json!({"seccomp_profile": "raw.bpf", "exec_once": true})).to_string());
        let program = "\
import os, threading
def attempt():
    try: os.execv('/usr/bin/true', ['true'])
    except OSError as e: print(e.errno)
attempt()
t = threading.Thread(target=attempt); t.start(); t.join()
try: os.execve(os.open('/usr/bin/true', os.O_RDONLY), ['true'], {})
except OSError as e: print(e.errno)
";
        if tool("python3").is_some() {
            let run = Shannot::new(caller)
                .args(["-p"])
                .args([&path])
                .args(["run", "/usr/bin/python3", "-c", program])
                .output();
            assert_eq!((run.code, run.stdout.as_str()), (0, "13\n13\n13\n"), "{run:?}");
        }
        // How the gate's questions wait is for the policy to say, and means nothing without a gate.
        let policy = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]});
        let killable = scratch.file("killable.json", policy.to_string());
        for once in [true, false] {
            sh(caller, &profile(json!({"seccomp_profile": killable, "exec_once": once})), "true").expect_code(0);
        }
        let refused = Shannot::new(caller).args(["-p"]).args([&path]).args(["run", "nosuchprogram"]).output();
        refused.expect_code(127);
        let report =
            Shannot::new(caller).profile(&once).args(["run", "--dry-run=json", "true"]).output().expect_code(0);
        report.expect_stdout("\"exec-once\": {");
        // The gate is no filter of the policy's, and is not taken for one.
        let gate_alone = profile(json!({"exec_once": true, "seccomp_profile": "none"}));
        let text = Shannot::new(caller).profile(&gate_alone).args(["run", "--dry-run", "true"]).output().expect_code(0);
        text.expect_stdout("seccomp            off (the policy asks for no filter)");
    }
}

#[test]
fn the_presets_hold_and_let_work() {
    for caller in callers() {
        for preset in ["default", "strict", "readonly"] {
            let profile = profile(json!({"seccomp_profile": preset}));
            sh(caller, &profile, "ls / | wc -l; trap 'echo caught' USR1; (exit 3); echo $?")
                .expect_code(0)
                .expect_stdout("3");
            let program = "\
import threading
t = threading.Thread(target=lambda: None); t.start(); t.join()
print(attempt(lambda: open('/tmp/new', 'w').close()), attempt(os.mkdir, '/tmp/folder'))
print(attempt(lambda: socket.socket(socket.AF_INET)), attempt(lambda: socket.socket(socket.AF_UNIX)))
print(call(101, 0, 0, 0, 0), call(135, 8))
";
            let Some(result) = python(caller, &profile, program) else { return };
            let expected = match preset {
                "default" => "ok ok\nok ok\n",
                "strict" => "ok ok\nEAFNOSUPPORT ok\n",
                _ => "EROFS EROFS\nEAFNOSUPPORT EAFNOSUPPORT\n",
            };
            assert!(result.stdout.starts_with(expected), "{preset}: {result:?}");
            if cfg!(target_arch = "x86_64") {
                let others = if preset == "default" { "ok ok\n" } else { "EPERM EPERM\n" };
                assert!(result.stdout.ends_with(others), "{preset}: {result:?}");
            }
        }
    }
}

#[test]
fn filters_are_installed_whatever_they_refuse_of_it() {
    for caller in callers() {
        let scratch = Scratch::new();
        let policy = |refused: &[&str], errno: u16| {
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]}).to_string()
        };
        scratch.file("no-seccomp.json", policy(&["seccomp", "getppid"], 71));
        scratch.file("no-seccomp-either.json", policy(&["seccomp", "getuid"], 72));
        scratch.file("neither.json", policy(&["seccomp", "prctl", "getgid"], 73));
        let run = |filters: serde_json::Value| {
            let path = scratch.file("p.json", profile(json!({"seccomp_profile": filters})).to_string());
            let (getuid, getgid) = if cfg!(target_arch = "x86_64") { (102, 104) } else { (174, 176) };
            let program = format!(
                "{PRELUDE}print(call({GETPPID}), call({getuid}), call({getgid}))\nprint(open('/proc/self/status').read())"
            );
            Shannot::new(caller).args(["-p"]).args([&path]).args(["run", "/usr/bin/python3", "-c", &program]).output()
        };
        if tool("python3").is_none() {
            return;
        }
        let all = run(json!(["neither.json", "no-seccomp.json", "default", "no-seccomp-either.json"])).expect_code(0);
        assert!(all.stdout.starts_with("71 72 73\n") && all.stdout.contains("Seccomp_filters:\t4"), "{all:?}");
        let both = run(json!(["neither.json", "neither.json"])).expect_code(125);
        both.expect_stderr("neither.json under ")
            .expect_stderr("refuses seccomp(2) and prctl(2)")
            .expect_stderr("write both into one");
    }
}

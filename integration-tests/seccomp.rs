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
            (b"{\"defaultAction\": \"SCMP_ACT_ALLOW\"}".to_vec(), "it is JSON"),
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

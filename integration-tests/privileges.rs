//! No capability, no way to get one, nothing of the kernel's to turn.

use serde_json::json;

use crate::support::*;

#[test]
fn the_kernel_says_that_the_command_is_powerless() {
    for caller in callers() {
        let result = sh(caller, &base_profile(), "cat /proc/self/status").expect_code(0);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(result.stdout.contains(&format!("{set}:\t0000000000000000")), "{result:?}");
        }
        assert!(result.stdout.contains("NoNewPrivs:\t1") && result.stdout.contains("Seccomp:\t2"), "{result:?}");
    }
}

#[test]
fn the_command_has_the_callers_ids() {
    for caller in callers() {
        let expected = if caller == Caller::Nobody { NOBODY } else { nix::unistd::geteuid().as_raw() };
        sh(caller, &base_profile(), "id -u; id -g").expect_stdout(&format!("{expected}\n"));
    }
}

/// System calls by their numbers on x86-64, and what they answer under the default filter.
#[cfg(target_arch = "x86_64")]
const REFUSED: &[(&str, i32, &str)] = &[
    ("mount", 165, "EPERM"),
    ("umount2", 166, "EPERM"),
    ("pivot_root", 155, "EPERM"),
    ("unshare(NEWUSER)", 272, "EPERM"),
    ("setns", 308, "EPERM"),
    ("keyctl", 250, "EPERM"),
    ("add_key", 248, "EPERM"),
    ("bpf", 321, "EPERM"),
    ("io_uring_setup", 425, "EPERM"),
    ("perf_event_open", 298, "EPERM"),
    ("userfaultfd", 323, "EPERM"),
    ("open_tree", 428, "EPERM"),
    ("clone3", 435, "ENOSYS"),
    ("init_module", 175, "EPERM"),
    ("reboot", 169, "EPERM"),
    ("not yet invented", 999, "ENOSYS"),
];

#[cfg(target_arch = "x86_64")]
#[test]
fn dangerous_calls_are_refused() {
    let calls: String =
        REFUSED.iter().map(|(_, nr, _)| format!("print(call({nr}, 0x10000000, 0, 0, 0, 0))\n")).collect();
    for caller in callers() {
        let Some(result) = python(caller, &base_profile(), &calls) else { return };
        let answers: Vec<&str> = result.stdout.lines().collect();
        for ((name, _, expected), answer) in REFUSED.iter().zip(&answers) {
            assert_eq!(answer, expected, "{name} as {caller:?}");
        }
        assert_eq!(answers.len(), REFUSED.len());
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn terminal_injection_is_refused_also_with_high_bits() {
    let program = "
import pty
master, slave = pty.openpty()
for command in (0x5412, 0x541c, 0x100005412):
    print(call(16, slave, command, ctypes.c_char_p(b'x')))
print(call(16, slave, 0x5413, ctypes.create_string_buffer(8)))
";
    for caller in callers() {
        let Some(result) = python(caller, &base_profile(), program) else { return };
        assert_eq!(result.stdout, "EPERM\nEPERM\nEPERM\nok\n", "{result:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_32_bit_door_is_closed() {
    let Some(_) = tool("gcc") else { return };
    let scratch = Scratch::new();
    let source = scratch.file(
        "i386.c",
        "int main(void) { int r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(20)); return r > 0 ? 0 : 1; }",
    );
    let program = scratch.path().join("i386");
    let compiled =
        std::process::Command::new("gcc").args(["-static", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(compiled.success());
    for caller in callers() {
        let profile = |changes| with_binds(&[json!({"source": scratch.path(), "target": "/t"})], changes);
        let run = |changes| Shannot::new(caller).profile(&profile(changes)).args(["run", "/t/i386"]).output();
        // SIGSYS.
        run(json!({})).expect_code(159);
        let open = run(json!({"seccomp_profile": "none"}));
        if open.code != 0 {
            skip("this kernel has no 32-bit system calls");
        }
    }
}

#[test]
fn control_files_are_read_only_or_hidden() {
    for caller in callers() {
        let script = "
for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /proc/sysrq-trigger /proc/sys/vm/drop_caches
do (echo x > $f) 2>/dev/null && echo \"$f written\"; done
for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && cat $f 2>/dev/null && echo \"$f read\"; done
cat /proc/meminfo > /dev/null && cat /proc/sys/kernel/ostype";
        assert_eq!(sh(caller, &base_profile(), script).stdout, "Linux\n");
        let sys = with_binds(&[json!({"source": "/sys", "target": "/sys", "read_only": true})], json!({}));
        let result = sh(caller, &sys, "find /sys -xdev -writable -type f 2>/dev/null | head; mkdir /sys/fs/cgroup/x");
        assert!(result.stdout.is_empty() && !result.stderr.is_empty(), "{result:?}");
    }
}

#[test]
fn set_user_id_programs_gain_nothing() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let copy = scratch.path().join("id");
    std::fs::copy("/usr/bin/id", &copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let profile = with_binds(&[json!({"source": scratch.path(), "target": "/t"})], json!({}));
    let result = sh(Caller::Nobody, &profile, "/t/id -u").expect_code(0);
    assert_eq!(result.stdout.trim(), NOBODY.to_string());
}

/// Whoever writes a file would wait for who holds a lease on it.
#[test]
fn no_lease_keeps_the_host_from_its_files() {
    let program = "
import fcntl, sys
f = open(sys.argv[0] if sys.argv[0] != '-c' else '/proc/self/environ')
for path in sys.argv[1:]:
    f = open(path)
    print(attempt(fcntl.fcntl, f.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK), attempt(fcntl.fcntl, f.fileno(), fcntl.F_GETFD))
";
    for caller in callers() {
        let scratch = Scratch::new();
        let file = scratch.file("file", "x");
        own(&file, caller);
        let bind = json!({"source": scratch.path(), "target": scratch.path()});
        let program = program.replace("sys.argv[1:]", &format!("[{:?}]", file.display().to_string()));
        for backend in ["namespaces", "landlock"] {
            let run = ["--backend", backend];
            let profile = with_binds(std::slice::from_ref(&bind), json!({}));
            let Some(result) = python_with(caller, &profile, &[&["run"], &run[..]].concat(), &program) else { return };
            assert_eq!(result.stdout, "EAGAIN ok\n", "{backend}: {result:?}");
        }
    }
}

//! Each layer alone, with the others turned off, so that one does not hide another.

use serde_json::json;

use crate::support::*;

#[test]
fn mounts_alone_keep_binds_read_only() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("data", caller);
        let bind = json!({"source": folder, "target": "/data"});
        let profile = with_binds(&[bind], json!({"landlock": "off", "seccomp_profile": "none"}));
        sh(caller, &profile, "touch /data/x").expect_code(1).expect_stderr("Read-only file system");
    }
}

#[test]
fn landlock_alone_keeps_descriptors_from_leading_outside() {
    for caller in callers() {
        for (landlock, emptied) in [("off", true), ("required", false)] {
            let scratch = Scratch::new();
            let file = scratch.file("log", "precious");
            own(&file, caller);
            let profile = profile(json!({"landlock": landlock, "seccomp_profile": "none"}));
            let mut run = Shannot::new(caller).profile(&profile).args(["run", "bash", "-c", ": > /proc/self/fd/0"]);
            run.command.stdin(std::fs::File::open(&file).unwrap());
            run.command.output().unwrap();
            let is_empty = std::fs::read(&file).unwrap().is_empty();
            assert_eq!(is_empty, emptied, "Landlock {landlock} as {caller:?}");
        }
    }
}

#[test]
fn capabilities_alone_keep_mounts_away() {
    for caller in callers() {
        let profile = profile(json!({"landlock": "off", "seccomp_profile": "none"}));
        let Some(result) = python(
            caller,
            &profile,
            "print(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None), errno.errorcode[ctypes.get_errno()])",
        ) else {
            return;
        };
        result.expect_stdout("-1 EPERM");
    }
}

#[test]
fn the_namespace_limit_alone_refuses_new_user_namespaces() {
    const CLONE_NEWUSER: u32 = 0x1000_0000;
    let program = format!("print(libc.unshare({CLONE_NEWUSER}), errno.errorcode[ctypes.get_errno()])");
    for caller in callers() {
        let run = |changes| python(caller, &profile(changes), &program);
        // The filter answers before the limit is asked.
        let Some(filtered) = run(json!({})) else { return };
        filtered.expect_stdout("-1 EPERM");
        run(json!({"landlock": "off", "seccomp_profile": "none"})).unwrap().expect_stdout("-1 ENOSPC");
    }
}

#[test]
fn the_filter_alone_holds_without_landlock() {
    for caller in callers() {
        let profile = profile(json!({"landlock": "off"}));
        let Some(result) = python(caller, &profile, "print(attempt(lambda: socket.socket(socket.AF_VSOCK, 1)))") else {
            return;
        };
        result.expect_stdout("EAFNOSUPPORT");
    }
}

#[test]
fn without_a_user_namespace_root_is_as_powerless() {
    if !is_root() {
        return;
    }
    let no_userns = |changes: serde_json::Value| {
        let mut profile = profile(changes);
        profile["user_namespace_isolation"] = json!(false);
        profile
    };
    let result = sh(
        Caller::Own,
        &no_userns(json!({})),
        "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; touch /etc/x; unshare -U true",
    );
    assert!(result.stdout.matches("0000000000000000").count() == 5, "{result:?}");
    assert!(result.stderr.contains("Read-only file system") && result.stderr.contains("unshare failed"), "{result:?}");
    let script = "echo x > /proc/sys/kernel/core_pattern; cat /proc/sys/kernel/core_pattern > /dev/null";
    sh(Caller::Own, &no_userns(json!({})), script).expect_code(0).expect_stderr("Read-only file system");
    sh(Caller::Nobody, &no_userns(json!({})), "true").expect_code(125).expect_stderr("needs root");
}

#[test]
fn requiring_a_layer_that_is_off_refuses() {
    for caller in callers() {
        for (changes, feature) in [
            (json!({"landlock": "off", "require": ["landlock-fs"]}), "landlock-fs"),
            (json!({"seccomp_profile": "none", "require": ["seccomp"]}), "seccomp"),
            (json!({"network_isolation": false, "require": ["network-namespace"]}), "network-namespace"),
        ] {
            sh(caller, &profile(changes), "true").expect_code(125).expect_stderr(feature);
        }
        let weaker = profile(json!({"limits": {"memory": "1G"}, "require": ["limits.memory"]}));
        let run = if caller == Caller::Own && is_root() { Shannot::without_cgroups(&[]) } else { Shannot::new(caller) };
        run.profile(&weaker).args(["run", "true"]).output().expect_code(125).expect_stderr("limits.memory");
        sh(caller, &profile(json!({"require": ["seccomp", "capabilities"]})), "true").expect_code(0);
    }
}

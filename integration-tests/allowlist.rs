//! Nothing but the allowed commands can be executed, whatever an allowed command tries.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::*;

fn run(caller: Caller, allowed: &[&str], command: &[&str]) -> Result {
    let profile = profile(json!({"allowed_commands": allowed}));
    Shannot::new(caller).profile(&profile).args(["run", "--"]).args(command).output()
}

const TOOLS: &[&str] = &["ls", "find", "env", "cat", "/usr/bin/stat"];

#[test]
fn allowed_commands_work() {
    for caller in callers() {
        run(caller, TOOLS, &["ls", "/"]).expect_code(0).expect_stdout("usr");
        run(caller, TOOLS, &["/usr/bin/stat", "/"]).expect_code(0);
        run(caller, TOOLS, &["find", "/usr/bin/env"]).expect_code(0);
        // One allowed command may start another.
        run(caller, TOOLS, &["find", "/etc/hostname", "-exec", "cat", "{}", ";"]).expect_code(0);
        run(caller, TOOLS, &["env", "A=b", "ls", "/"]).expect_code(0);
    }
}

#[test]
fn other_words_are_refused_before_anything_is_made() {
    for caller in callers() {
        let result = run(caller, TOOLS, &["sh", "-c", "true"]).expect_code(126);
        result.expect_stderr("\"sh\" is not allowed").expect_stderr("hint: allowed_commands has: ls, find");
        run(caller, TOOLS, &["/usr/bin/ls"]).expect_code(126);
        run(caller, TOOLS, &["stat"]).expect_code(126);
        // The pattern matches, the file is another one.
        run(caller, &["/usr/bin/*"], &["/usr/bin/../../tmp/x"]).expect_code(127);
    }
}

#[test]
fn allowed_commands_cannot_start_others() {
    for caller in callers() {
        let denied = |command: &[&str]| {
            let result = run(caller, TOOLS, command);
            assert!(result.stderr.contains("Permission denied"), "{command:?}: {result:?}");
            assert!(!result.stdout.contains("reached"), "{command:?}: {result:?}");
        };
        denied(&["find", "/etc/hostname", "-exec", "sh", "-c", "echo reached", ";"]);
        denied(&["find", "/etc/hostname", "-exec", "/usr/bin/id", ";"]);
        denied(&["env", "sh", "-c", "echo reached"]);
        denied(&["env", "/usr/bin/python3", "-c", "print('reached')"]);
        denied(&["env", "/proc/1/exe"]);
    }
}

#[test]
fn the_dynamic_loader_starts_no_other_program() {
    let Some(loader) = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap())
    else {
        return skip("no known loader");
    };
    for caller in callers() {
        run(caller, TOOLS, &["env", loader, "/usr/bin/ls", "/"]).expect_code(0);
        let result = run(caller, TOOLS, &["env", loader, "/usr/bin/id"]);
        assert!(result.code != 0 && result.stdout.is_empty(), "{result:?}");
        assert!(result.stderr.contains("failed to map segment"), "{result:?}");
    }
}

#[test]
fn what_is_made_inside_cannot_be_executed() {
    for caller in callers() {
        let allowed = &["sh", "cp", "chmod", "cat"];
        for place in ["/tmp", "/dev/shm"] {
            let script = format!("cp /usr/bin/id {place}/x && chmod 755 {place}/x && {place}/x");
            let result = run(caller, allowed, &["sh", "-c", &script]);
            assert!(result.stdout.is_empty() && result.stderr.contains("Permission denied"), "{result:?}");
        }
    }
}

#[test]
fn a_program_in_a_memory_file_cannot_be_executed() {
    let Some(_) = tool("python3") else { return };
    let program = "
import os, errno
try:
    fd = os.memfd_create('x')
    os.write(fd, open('/usr/bin/id', 'rb').read())
    os.execv(f'/proc/self/fd/{fd}', ['id'])
except OSError as e:
    print(errno.errorcode[e.errno])
";
    for caller in callers() {
        let python = ["/usr/bin/python3", "-c", program];
        run(caller, &["/usr/bin/python3"], &python).expect_stdout("ENOSYS");
        // It is the allowlist that refuses this.
        Shannot::new(caller).profile(&base_profile()).args(["run"]).args(python).output().expect_stdout("uid=");
    }
}

#[test]
fn a_script_needs_its_interpreter_listed_and_the_error_says_so() {
    for caller in callers() {
        let scratch = Scratch::new();
        let script = scratch.file("hello", "#!/bin/sh\necho hello\n");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let bind = json!({"source": scratch.path(), "target": "/scripts"});
        let run = |allowed: &[&str]| {
            let profile = with_binds(std::slice::from_ref(&bind), json!({"allowed_commands": allowed}));
            Shannot::new(caller).profile(&profile).args(["run", "/scripts/hello"]).output()
        };
        run(&["/scripts/hello", "sh"]).expect_code(0).expect_stdout("hello");
        run(&["/scripts/hello"]).expect_code(126).expect_stderr("interpreter");
        let path = scratch.file(
            "p.json",
            with_binds(std::slice::from_ref(&bind), json!({"allowed_commands": ["/scripts/hello"]})).to_string(),
        );
        let check = Shannot::new(caller).args(["profile", "check"]).arg(path).output();
        check
            .expect_code(0)
            .expect_stdout("/scripts/hello is a script, and its interpreter /bin/sh is not in allowed_commands");
    }
}

#[test]
fn patterns_match_the_word_and_allow_the_files() {
    for caller in callers() {
        run(caller, &["/usr/bin/*"], &["/usr/bin/id", "-u"]).expect_code(0);
        run(caller, &["l?"], &["ls", "/"]).expect_code(0);
        run(caller, &["l?"], &["id"]).expect_code(126);
    }
}

#[test]
fn argv0_restores_the_check_of_0_3() {
    for caller in callers() {
        let profile = profile(json!({"allowed_commands": ["find"], "command_enforcement": "argv0"}));
        let run = |command: &[&str]| Shannot::new(caller).profile(&profile).args(["run", "--"]).args(command).output();
        run(&["find", "/etc/hostname", "-exec", "id", ";"]).expect_code(0).expect_stdout("uid=");
        run(&["id"]).expect_code(126);
    }
}

#[test]
fn applets_of_one_file_cannot_be_told_apart_and_check_says_so() {
    let Some(busybox) = tool("busybox") else { return };
    for caller in callers() {
        let scratch = Scratch::new();
        fs::copy(&busybox, scratch.path().join("busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", scratch.path().join("ls")).unwrap();
        let bind = json!({"source": scratch.path(), "target": "/bb"});
        let profile = with_binds(&[bind], json!({"allowed_commands": ["/bb/ls"]}));
        let path = scratch.file("p.json", profile.to_string());
        Shannot::new(caller).profile(&profile).args(["run", "/bb/ls", "/"]).output().expect_code(0);
        let check = Shannot::new(caller).args(["profile", "check"]).arg(path).output();
        check.expect_stdout("/bb/busybox is many commands in one file");
        Shannot::new(caller)
            .profile(&profile)
            .args(["verify"])
            .output()
            .expect_stdout("/bb/busybox is many commands in one file");
    }
}

impl Shannot {
    fn arg(self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.args([argument])
    }
}

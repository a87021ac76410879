//! What is mounted below a bound folder comes along, but no door to the kernel with it. All mounts are made in a namespace
//! of the test's own: the host's /proc/sys is not touched, and what is written is what was there.

use serde_json::{Value, json};

use crate::support::*;

/// A run below mounts of its own: `mounts` is a script in the scratch folder, before the run.
struct Below {
    scratch: Scratch,
    caller: Caller,
}

impl Below {
    fn new(caller: Caller) -> Option<Self> {
        if !is_root() || tool("unshare").is_none() || tool("setpriv").is_none() {
            return None;
        }
        let scratch = Scratch::new();
        scratch.folder("tree", caller);
        for folder in ["tree/proc", "tree/sys", "tree/plain"] {
            scratch.folder(folder, caller);
        }
        scratch.file("tree/file", "");
        Some(Self { scratch, caller })
    }

    fn tree(&self) -> String {
        self.scratch.path().join("tree").display().to_string()
    }

    fn run(&self, mounts: &str, profile: &Value, script: &str) -> Result {
        let path = self.scratch.file("profile.json", profile.to_string());
        let user =
            if self.caller == Caller::Nobody { "setpriv --reuid 65534 --regid 65534 --clear-groups" } else { "" };
        let outer = format!(
            "set -e; cd {}; {mounts}\nexec {user} {} -p {} run sh -c \"$1\"",
            self.scratch.path().display(),
            binary().display(),
            path.display(),
        );
        let arguments = ["-m", "sh", "-c", &outer, "sh", script];
        Shannot::through(Caller::Own, &tool("unshare").unwrap(), arguments).output()
    }
}

/// With a writable bind of the tree; also without what else might hold: Landlock, and for root a user namespace.
fn profiles(caller: Caller, binds: &[Value]) -> Vec<Value> {
    let mut all = vec![json!({}), json!({"landlock": "off", "seccomp_profile": "none"})];
    if caller == Caller::Own {
        all.push(json!({"user_namespace_isolation": false}));
        all.push(json!({"user_namespace_isolation": false, "landlock": "off", "seccomp_profile": "none"}));
    }
    all.into_iter().map(|changes| with_binds(binds, changes)).collect()
}

const MOUNTS: &str = "mount -t proc proc tree/proc; mount -t sysfs sysfs tree/sys; mount -t tmpfs tmpfs tree/plain; \
                      echo kept > tree/plain/file; chmod 666 tree/plain/file";

#[test]
fn a_procfs_below_a_bind_is_covered_and_a_sysfs_read_only() {
    for caller in callers() {
        let Some(below) = Below::new(caller) else { return };
        let bind = json!({"source": below.tree(), "target": "/tree", "read_only": false});
        for profile in profiles(caller, &[bind]) {
            // What is harmless comes along as it is.
            let script = "cat /tree/plain/file; echo new > /tree/plain/file && ls /tree/sys/kernel";
            below.run(MOUNTS, &profile, script).expect_code(0).expect_stdout("kept").expect_stdout("mm");
            let script = "ls /tree/proc; cat /tree/proc/1/cmdline; cat /tree/proc/sys/kernel/core_pattern; \
                          chmod 755 /tree/proc; echo /tree/proc/*; grep -c . /proc/self/status";
            let result = below.run(MOUNTS, &profile, script);
            let (first, own) = result.stdout.split_once('\n').unwrap_or_default();
            assert!(first == "/tree/proc/*" && own.trim().parse::<u32>().is_ok(), "{caller:?} {profile}: {result:#?}");
            // Written is what was read; for nobody the mode refuses it, as it does outside.
            let script = "f=/tree/sys/kernel/mm/transparent_hugepage/khugepaged/defrag; read v < $f && echo $v > $f";
            let result = below.run(MOUNTS, &profile, script);
            assert!(result.code != 0 && result.stderr.contains("cannot create"), "{caller:?} {profile}: {result:#?}");
            if caller == Caller::Own {
                result.expect_stderr("Read-only file system");
            }
        }
    }
}

#[test]
fn the_hosts_tree_brings_no_second_procfs() {
    for caller in callers() {
        let Some(below) = Below::new(caller) else { return };
        let tree = below.tree();
        for (lines, place) in [
            (json!(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]), tree.clone()),
            (json!(["--bind", "/", "/mnt"]), format!("/mnt{tree}")),
        ] {
            let profile = profile(json!({"additional_args": lines}));
            let script =
                format!("cat {place}/proc/*/cmdline | tr '\\0' ' '; ls {place} && echo x > {place}/plain/file");
            let result = below.run(MOUNTS, &profile, &script);
            assert!(result.stdout == "file\nplain\nproc\nsys\n", "{lines}: {result:#?}");
        }
    }
}

#[test]
fn what_the_policy_binds_by_name_is_as_it_says() {
    let Some(below) = Below::new(Caller::Own) else { return };
    // A sysfs that is asked for, writable, is; one below it is not.
    let binds = [json!({"source": format!("{}/sys", below.tree()), "target": "/asked", "read_only": false})];
    let script = "f=kernel/mm/transparent_hugepage/khugepaged/defrag; for d in /asked /tree/sys; do \
                  (read v < $d/$f && echo $v > $d/$f) && echo written in $d; done";
    let tree = json!({"source": below.tree(), "target": "/tree", "read_only": false});
    let both = [binds[0].clone(), tree.clone()];
    for user_namespace in [true, false] {
        // In a user namespace root has no power over what it does not map, but this is its own.
        let profile = with_binds(&both, json!({"landlock": "off", "user_namespace_isolation": user_namespace}));
        let result = below.run(MOUNTS, &profile, script).expect_stderr("Read-only file system");
        assert_eq!(result.stdout, "written in /asked\n", "{result:#?}");
    }
    // The host's /proc, where Landlock guards it, with what is mounted in it.
    let proc = json!({"source": "/proc", "target": "/outer"});
    let result = below.run(MOUNTS, &with_binds(&[proc, tree.clone()], json!({})), "ls /outer/self/; ls /tree/proc");
    if result.stderr.contains("only Landlock would keep") {
        return skip("no Landlock here");
    }
    result.expect_stdout("status").expect_stderr("'/tree/proc': Permission denied");
    // Where the mount is not reached by its name, nothing is to be done about it.
    let hidden = with_binds(&[tree], json!({"hide": ["/tree/proc"]}));
    below.run(MOUNTS, &hidden, "ls /tree/proc").expect_code(2).expect_stderr("Permission denied");
}

#[test]
fn a_file_of_a_procfs_below_a_bind_is_refused_and_can_be_hidden() {
    for caller in callers() {
        let Some(below) = Below::new(caller) else { return };
        let mounts = "mount --bind /proc/version tree/file";
        let bind = json!({"source": below.tree(), "target": "/tree"});
        let result =
            below.run(mounts, &with_binds(std::slice::from_ref(&bind), json!({})), "cat /tree/file").expect_code(125);
        result.expect_stderr("cannot guard what is mounted below").expect_stderr("hint: a file of a procfs");
        let hidden = with_binds(&[bind], json!({"hide": ["/tree/file"]}));
        below.run(mounts, &hidden, "cat /tree/file").expect_code(1).expect_stderr("Permission denied");
    }
}

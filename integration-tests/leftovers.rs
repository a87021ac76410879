//! A run leaves the host as it was, many runs do, and many at once work.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use crate::support::*;

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What a sandbox could leave behind: mounts, its own processes, files in places for temporary ones.
fn state() -> (String, usize, Vec<BTreeSet<String>>) {
    let mine = binary().display().to_string();
    let processes = names("/proc").into_iter().filter(|name| {
        let exe = fs::read_link(format!("/proc/{name}/exe")).unwrap_or_default();
        exe.display().to_string() == mine
    });
    let folders = ["/", "/dev/shm", "/run"].map(names);
    (fs::read_to_string("/proc/self/mountinfo").unwrap(), processes.count(), folders.into())
}

#[test]
fn a_thousand_runs_leave_the_host_as_it_was() {
    let scratch = Scratch::new();
    let path = scratch.file("p.json", base_profile().to_string());
    for caller in callers() {
        // Other tests run at the same time: their processes come and go, mounts never show.
        let before = state();
        for index in 0..1000 {
            let mut run =
                Shannot::new(caller).args(["-p"]).args([&path]).args(["run", "sh", "-c", "touch /tmp/x; exit $0"]);
            let code = index % 100;
            run.command.arg(code.to_string());
            let status = run.command.stdin(Stdio::null()).status().unwrap();
            assert_eq!(status.code(), Some(code));
        }
        let after = state();
        assert_eq!((&before.0, &before.2), (&after.0, &after.2));
    }
}

#[test]
fn fifty_at_once_all_succeed() {
    for caller in callers() {
        let mut runs: Vec<Shannot> = (0..50)
            .map(|_| {
                Shannot::new(caller).profile(&base_profile()).args(["run", "sh", "-c", "sleep 0.2; cat /etc/hostname"])
            })
            .collect();
        let children: Vec<_> = runs
            .iter_mut()
            .map(|run| run.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
            .collect();
        for child in children {
            let result = Result::new(child.wait_with_output().unwrap()).expect_code(0);
            assert!(!result.stdout.is_empty());
        }
    }
}

//! Who swaps files between planning and launch gains nothing by it: what the plan was made for is used, or nothing is.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;

use crate::support::*;

/// Runs with `-v`, whose words come between planning and launch: into a full pipe, so that the launcher waits there.
fn with_swap_after_planning(mut run: Shannot, swap: impl FnOnce()) -> Result {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let filled = fill(&writer.try_clone().unwrap().into());
    let (mut answer, stdout) = std::io::pipe().unwrap();
    run.command.stdin(Stdio::null()).stdout(stdout).stderr(writer);
    let mut child = run.command.spawn().unwrap();
    wait_until_it_writes(child.id());
    swap();
    // Drops our ends of the pipes, so that they end.
    drop(run);
    let mut stderr = vec![0; filled];
    reader.read_exact(&mut stderr).unwrap();
    stderr.clear();
    reader.read_to_end(&mut stderr).unwrap();
    let mut stdout = Vec::new();
    answer.read_to_end(&mut stdout).unwrap();
    Result::new(std::process::Output { status: child.wait().unwrap(), stdout, stderr })
}

/// How many bytes it took.
fn fill(pipe: &OwnedFd) -> usize {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL).unwrap());
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    let mut filled = 0;
    while let Ok(written) = nix::unistd::write(pipe, &[b'.'; 4096]) {
        filled += written;
    }
    fcntl(pipe, FcntlArg::F_SETFL(flags)).unwrap();
    filled
}

/// proc(5), /proc/PID/syscall: the number of the call that it is in, and its arguments.
fn wait_until_it_writes(pid: u32) {
    let wanted = format!("{} 0x2 ", nix::libc::SYS_write);
    let start = Instant::now();
    while !fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with(&wanted)) {
        assert!(start.elapsed() < Duration::from_secs(10), "it writes nothing");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Puts a link in the place of something.
fn swap_for_link(path: &Path, to: impl AsRef<Path>) {
    fs::rename(path, path.with_extension("was")).unwrap();
    symlink(to, path).unwrap();
}

#[test]
fn a_source_that_is_swapped_after_planning_is_not_bound() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("theirs", caller);
        let source = folder.join("data");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "planned").unwrap();
        let profile = with_binds(&[json!({"source": source, "target": "/data", "read_only": false})], json!({}));
        let run = || {
            let run = Shannot::new(caller).profile(&profile);
            run.args(["-v", "run", "sh", "-c", "cat /data/file; ls /data"])
        };
        with_swap_after_planning(run(), || {}).expect_code(0).expect_stdout("planned");
        let swapped = with_swap_after_planning(run(), || swap_for_link(&source, "/")).expect_code(125);
        assert_eq!(swapped.stdout, "");
        swapped.expect_stderr("cannot open the source").expect_stderr("hint: it is another file than when the plan");
        // A link that was there before is what the plan was made for.
        run().output().expect_stdout("etc");
    }
}

#[test]
fn a_folder_on_the_way_to_a_source_that_is_swapped_after_planning_leads_nowhere() {
    for caller in callers() {
        let scratch = Scratch::new();
        let folder = scratch.folder("theirs", caller);
        let above = folder.join("above");
        fs::create_dir_all(above.join("etc")).unwrap();
        let profile = with_binds(&[json!({"source": above.join("etc"), "target": "/data"})], json!({}));
        let run = Shannot::new(caller).profile(&profile).args(["-v", "run", "ls", "/data"]);
        let swapped = with_swap_after_planning(run, || swap_for_link(&above, "/")).expect_code(125);
        assert_eq!(swapped.stdout, "");
        swapped.expect_stderr("hint: it is another file than when the plan");
    }
}

#[test]
fn an_allowed_command_that_is_swapped_after_planning_makes_nothing_else_executable() {
    let Some(other) = tool("id") else { return };
    for caller in callers() {
        // By its name under Landlock, and by a pattern without: then the folder is what is executable.
        for (pattern, landlock) in [("tool", "best-effort"), ("*", "off")] {
            let scratch = Scratch::new();
            let folder = scratch.folder("theirs", caller);
            let command = folder.join("bin/tool");
            fs::create_dir(folder.join("bin")).unwrap();
            fs::copy(tool("cat").unwrap(), &command).unwrap();
            fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
            let allowed = format!("{}/{pattern}", folder.join("bin").display());
            let bind = json!({"source": folder, "target": folder});
            let profile = with_binds(&[bind], json!({"allowed_commands": [allowed, "env"], "landlock": landlock}));
            let word = command.display().to_string();
            let run = || {
                let run = Shannot::new(caller).profile(&profile);
                run.args(["-v", "run", "env", &word, "/etc/hostname"])
            };
            with_swap_after_planning(run(), || {}).expect_code(0);
            let swapped = with_swap_after_planning(run(), || {
                if pattern == "tool" {
                    swap_for_link(&command, &other);
                } else {
                    symlink(&other, folder.join("tool")).unwrap();
                    swap_for_link(&folder.join("bin"), &folder);
                }
            });
            assert_eq!((swapped.code, swapped.stdout.as_str()), (125, ""), "{swapped:#?}");
            swapped.expect_stderr("hint: it is another file than when the plan");
        }
    }
}

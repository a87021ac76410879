//! Changes of an overlay against whoever wants them to reach something else, or nothing: hostile upper directories, a
//! workspace that is changed meanwhile, apply killed at any moment, and whatever else a command may do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::changes::{Job, listing, outside, own_all};
use crate::support::{Caller, Shannot, binary, callers, is_root, tool};

/// A run whose upper directory is made by hand: as the command can't, but a bug might let it.
fn handmade(caller: Caller, prepare: &str, make: impl FnOnce(&Path)) -> Job {
    let mut job = Job::new(caller, prepare);
    let mut run = job.begin();
    make(&run.upper());
    run.finish(0).unwrap();
    drop(run);
    own_all(&job.state, caller);
    job
}

#[test]
fn a_hostile_upper_directory_reaches_nothing_else() {
    for caller in callers() {
        let victim = crate::support::Scratch::new();
        let target = victim.folder("target", caller);
        fs::write(target.join("f"), "mine").unwrap();
        // A link in the workspace in the place of a folder, and the reverse.
        let prepare = format!("ln -s {} link; mkdir folder; echo 1 >folder/f", target.display());
        let job = handmade(caller, &prepare, |upper| {
            fs::create_dir(upper.join("link")).unwrap();
            fs::write(upper.join("link/f"), "evil").unwrap();
            fs::write(upper.join("link/g"), "evil").unwrap();
            symlink(&target, upper.join("folder")).unwrap();
        });
        assert_eq!(
            job.changes(&["apply", "last"]).expect_code(0).stdout,
            format!("T  folder -> {}\nT  link/\nA  link/f\nA  link/g\n", target.display())
        );
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "mine");
        assert!(!target.join("g").exists() && job.workspace.join("link/g").exists());
        assert!(fs::symlink_metadata(job.workspace.join("folder")).unwrap().is_symlink());

        // What is not carried over.
        let job = handmade(caller, "echo 1 >plain; mkdir d", |upper| {
            for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755)] {
                fs::write(upper.join(name), "x").unwrap();
                fs::set_permissions(upper.join(name), fs::Permissions::from_mode(mode)).unwrap();
            }
            nix::unistd::mkfifo(&upper.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            nix::unistd::mkfifo(&upper.join("plain"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            drop(std::os::unix::net::UnixListener::bind(upper.join("sock")).unwrap());
            fs::write(upper.join(format!(".shannot-{}", upper.parent().unwrap().file_name().unwrap().display())), "")
                .unwrap();
        });
        // Chown takes the bits away.
        let runs = job.state.join("shannot/runs").join(&job.id);
        for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755)] {
            fs::set_permissions(runs.join("upper").join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let result = job.changes(&["apply", "last"]).expect_code(1);
        let expected = "A  sgid  (mode 0755; set-user-ID and set-group-ID bits are not carried over)\n";
        let result = result.expect_stdout(expected).expect_stdout("!  pipe  (a named pipe: special files");
        result
            .expect_stdout("!  plain  (a named pipe")
            .expect_stdout("!  sock")
            .expect_stdout("(the name is Shannot's own)");
        assert_eq!(fs::metadata(job.workspace.join("suid")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(listing(&job.workspace).len(), 5);
    }
}

#[test]
fn marks_that_no_overlay_of_ours_has_stop_everything() {
    for (name, folder) in
        [("user.overlay.metacopy", false), ("user.overlay.redirect", true), ("user.overlay.redirect", false)]
    {
        let job = handmade(Caller::Own, "echo 1 >a", |upper| {
            fs::write(upper.join("a"), "2").unwrap();
            let marked = upper.join("marked");
            if folder {
                fs::create_dir(&marked).unwrap()
            } else {
                fs::write(&marked, "").unwrap()
            }
            xattr::set(&marked, name, b"/etc").unwrap();
        });
        let result = job.changes(&["apply", "last"]).expect_code(125);
        result.expect_stderr(&name[5..]).expect_stderr("\"marked\"");
        assert_eq!(fs::read_to_string(job.workspace.join("a")).unwrap(), "1\n");
    }
}

#[test]
fn very_deep_trees_cost_little_and_can_be_discarded() {
    // 4,000 folders, in steps that a path can name.
    let deep = "p=$(printf 'dddddddd/%.0s' $(seq 400)); for i in 1 2 3 4 5 6 7 8 9 10; do mkdir -p $p; cd -P $p; done; echo 1 >f";
    for caller in callers() {
        let mut job = Job::new(caller, "echo 1 >a");
        let run_once = |job: &mut Job, script: &str| {
            let mut run = job.begin();
            let result = job.inside(&run, script);
            run.finish(0).unwrap();
            drop(run);
            job.give_back();
            result.code == 0
        };
        if !run_once(&mut job, &format!("echo 2 >a; {deep}")) {
            crate::support::skip("no overlayfs for this caller");
            continue;
        }
        let result = job.changes(&["apply", "last"]).expect_code(1).expect_stdout("(the path is too long)");
        assert_eq!(result.stdout.lines().filter(|line| line.starts_with('!')).count(), 1);
        assert_eq!(fs::read_to_string(job.workspace.join("a")).unwrap(), "2\n");
        // A deep tree of the workspace, too deep to be looked through, stays.
        outside(caller, &job.workspace, &format!("mkdir old; cd old; {deep}")).expect_code(0);
        assert!(run_once(&mut job, "rm -r old; echo 3 >a"));
        job.changes(&["apply", "last"]).expect_code(1).expect_stdout("!  old/  (the path is too long)");
        for _ in 0..2 {
            job.changes(&["discard", "last"]).expect_code(0);
        }
        assert_eq!(fs::read_dir(job.state.join("shannot/runs")).unwrap().count(), 0);
        // The test's own removal has to come through as well.
        outside(caller, &job.workspace, "rm -r dddddddd old").expect_code(0);
    }
}

#[test]
fn many_folders_at_the_bottom_of_a_deep_tree_are_looked_at_one_by_one() {
    let Some(strace) = tool("strace") else { return };
    let deep = "d/".repeat(1500);
    let job = handmade(Caller::Own, "true", |upper| {
        fs::create_dir_all(upper.join(&deep)).unwrap();
        for number in 0..200 {
            fs::create_dir(upper.join(format!("{deep}{number}"))).unwrap();
        }
    });
    let calls = job.scratch.path().join("calls");
    let words = ["-qq", "-e", "trace=openat", "-o", calls.to_str().unwrap()];
    let show = Shannot::through(Caller::Own, &strace, words).args([binary()]).args(["changes", "show", "last"]);
    let shown = show.env("XDG_STATE_HOME", job.state.to_str().unwrap()).output().expect_code(0);
    assert_eq!(shown.stdout.lines().count(), 1700);
    let calls = fs::read_to_string(calls).unwrap().lines().count();
    assert!((1700..17_000).contains(&calls), "{calls} calls");
    job.changes(&["discard", "last"]).expect_code(0);
}

#[test]
fn a_folder_that_is_swapped_meanwhile_leads_nowhere() {
    let victim = crate::support::Scratch::new();
    let target = victim.folder("target", Caller::Own);
    fs::write(target.join("f1"), "mine").unwrap();
    let before = listing(&target);
    let (mut applied, mut noticed) = (0, 0);
    for _ in 0..8 {
        let job = handmade(Caller::Own, "mkdir -p d/e; cd d/e; seq -f f%g 200 | xargs touch", |upper| {
            fs::create_dir_all(upper.join("d/e")).unwrap();
            for number in 0..400 {
                fs::write(upper.join(format!("d/e/f{number}")), "evil").unwrap();
            }
        });
        symlink(&target, job.workspace.join("d/link")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (folder, link) = (job.workspace.join("d/e"), job.workspace.join("d/link"));
                while !done.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, &folder, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE).unwrap();
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            // What comes of it differs; that it does not reach the other folder is the point.
            for _ in 0..5 {
                let result = job.changes(&["apply", "last", "--force"]);
                assert!(matches!(result.code, 0 | 125), "{result:?}");
                applied += usize::from(result.code == 0);
                noticed += usize::from(result.stderr.contains("was replaced in the workspace"));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(listing(&target), before);
    }
    // Else none of them came as far as to write, or nothing was swapped.
    assert!(applied > 0 && noticed > 0, "{applied} {noticed}");
}

/// Calls that change something, or say how far it has come. What a question mark precedes strace may not know.
const CHANGING: [&str; 13] = [
    "copy_file_range",
    "ftruncate",
    "utimensat",
    "write",
    "renameat",
    "renameat2",
    "unlinkat",
    "mkdirat",
    "symlinkat",
    "linkat",
    "fchmod",
    "fchmodat",
    "?fchmodat2",
];

/// Kills apply at the `occurrence`th of these calls. Whether it came as far.
fn kill_apply_at(job: &Job, strace: &Path, call: &str, occurrence: u32) -> bool {
    let inject = format!("inject={call}:signal=KILL:when={occurrence}");
    let words = ["-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
    let apply = Shannot::through(job.caller, strace, words).args([binary()]).args(["changes", "apply", "last"]);
    let result = apply.env("XDG_STATE_HOME", job.state.to_str().unwrap()).output();
    assert!(matches!(result.code, 0 | 137), "{inject}: {result:?}");
    result.code == 137
}

#[test]
fn what_a_killed_apply_left_goes_with_the_run() {
    let Some(strace) = tool("strace") else { return };
    for caller in callers() {
        let prepare = "mkdir -p ro/in typed; echo 1 >ro/in/f; echo 1 >typed/f; chmod 500 ro/in; chmod 550 ro";
        let script = "rm -r typed; seq 10 >typed; chmod 700 ro ro/in; seq 10 >ro/in/f; seq 10 >ro/in/g; chmod 500 ro/in; chmod 550 ro";
        let mut left = 0;
        for (call, occurrence) in
            [("fchmod", 1), ("fchmod", 2), ("utimensat", 2), ("renameat", 1), ("renameat2", 1), ("copy_file_range", 1)]
        {
            let mut job = Job::new(caller, prepare);
            if !job.run(script) {
                break;
            }
            kill_apply_at(&job, &strace, call, occurrence);
            let names = |job: &Job| {
                listing(&job.workspace)
                    .into_keys()
                    .filter(|path| path.display().to_string().contains(".shannot-"))
                    .count()
            };
            left += names(&job);
            job.changes(&["discard", "last"]).expect_code(0);
            assert_eq!(names(&job), 0, "{call} as {caller:?}");
            let mode = |path: &str| fs::metadata(job.workspace.join(path)).unwrap().mode() & 0o7777;
            assert_eq!((mode("ro"), mode("ro/in")), (0o550, 0o500), "{call} as {caller:?}");
        }
        assert!(left > 0 || caller == Caller::Nobody, "none of the kills left anything");
    }
}

/// Where there is no room, as a limit of a file's size says.
#[test]
fn an_apply_that_fails_leaves_nothing_unfinished() {
    for caller in callers() {
        let mut job = Job::new(caller, "echo 1 >a");
        if !job.run("seq 1000000 >big") {
            continue;
        }
        let command = format!("trap '' XFSZ; ulimit -f 64; exec {} changes apply last", binary().display());
        let mut apply = Shannot::through(caller, Path::new("/bin/sh"), ["-c", &command]);
        apply.command.env("XDG_STATE_HOME", &job.state);
        apply.output().expect_code(125).expect_stderr("cannot write \"big\": File too large");
        assert_eq!(listing(&job.workspace).len(), 2);
    }
}

#[test]
fn apply_that_is_killed_anywhere_can_be_run_again() {
    let Some(strace) = tool("strace") else { return };
    for caller in callers() {
        let prepare = "mkdir many typed ro; (cd many; seq 4 | xargs touch); mkdir -p gone/a/b; (cd gone/a/b; seq 5 | xargs touch); \
                       echo 1 >file; echo 1 >l1; ln l1 l2; (cd typed; seq 3 | xargs touch); echo 1 >ro/f; chmod 555 ro; mkdir shut";
        let script = "for i in $(seq 4); do echo $i >many/$i; done; mv gone/a other; rm -r gone; rm file; mkdir -p file/x/y; \
                      echo 2 >file/x/y/z; rm -r typed; echo 2 >typed; echo 2 >n1; ln n1 n2; rm l1; echo 2 >l2; chmod 755 ro; \
                      echo 2 >ro/g; chmod 555 ro; mkdir dark; seq 100 >dark/f; chmod 0 dark; chmod 0 shut; rm -r many/1; mkdir many/1; \
                      ln -s file link";
        let mut whole = Job::new(caller, prepare);
        if !whole.run(script) {
            continue;
        }
        whole.changes(&["apply", "last"]).expect_code(0);
        let expected = listing(&whole.workspace);
        let mut total = 0;
        for call in CHANGING {
            // Each kill comes a call later, in what the kills before have left.
            let mut killed = Job::new(caller, prepare);
            assert!(killed.run(script));
            let mut kills = 0;
            while kill_apply_at(&killed, &strace, call, kills + 1) {
                kills += 1;
            }
            total += kills;
            assert_eq!(listing(&killed.workspace), expected, "{kills} kills at {call} as {caller:?}");
            killed.changes(&["apply", "last"]).expect_code(0).expect_stderr("was applied already");
        }
        assert!(total > 30, "{total} kills are too few to say anything");
    }
}

#[test]
fn a_file_system_with_plain_renames_alone_is_enough() {
    let Some(strace) = tool("strace") else { return };
    for inject in [&["renameat2:error=EINVAL"][..], &["renameat2:error=EINVAL", "linkat:error=EPERM"]] {
        let prepare = "mkdir -p typed d; echo 1 >typed/f; echo 1 >d/f; echo 1 >file; echo 1 >changed";
        let script = "rm -r typed; echo 2 >typed; rm file; mkdir -p file/new; echo 2 >changed; echo 2 >n1; ln n1 n2; ln -s x link; \
                      mkdir -p out/sub; echo 2 >out/sub/f; rm -r d";
        let (mut plain, mut whole) = (Job::new(Caller::Own, prepare), Job::new(Caller::Own, prepare));
        if !plain.run(script) || !whole.run(script) {
            return;
        }
        whole.changes(&["apply", "last"]).expect_code(0);
        let mut apply = Shannot::through(Caller::Own, &strace, ["-qq", "-o", "/dev/null"]);
        for inject in inject {
            apply = apply.args(["-e", &format!("inject={inject}")]);
        }
        let apply = apply.args([binary()]).args(["changes", "apply", "last"]);
        apply.env("XDG_STATE_HOME", plain.state.to_str().unwrap()).output().expect_code(0);
        let texts =
            |job: &Job| outside(Caller::Own, &job.workspace, LIST).stdout.split("links\n").next().unwrap().to_owned();
        assert_eq!(texts(&plain), texts(&whole), "{inject:?}");
        plain.changes(&["show", "last"]).expect_code(0);
    }
}

#[test]
fn no_folder_stays_open_that_was_opened_to_be_looked_into() {
    for caller in callers() {
        let mode = |job: &Job, path: &str| fs::metadata(job.workspace.join(path)).unwrap().mode() & 0o7777;
        // One that goes with the folder around it, which the upper directory does not have.
        let prepare = "mkdir -p gone/dark; echo 1 >gone/dark/f; chmod 0 gone/dark; echo 1 >b; echo 1 >c";
        let job = handmade(caller, prepare, |upper| {
            xattr::set(upper, "user.overlay.opaque", b"x").unwrap();
            fs::write(upper.join("gone"), "").unwrap();
            xattr::set(upper.join("gone"), "user.overlay.whiteout", b"").unwrap();
            fs::write(upper.join("b"), "2").unwrap();
            fs::write(upper.join("c"), "2").unwrap();
        });
        for path in ["b", "c"] {
            job.changes(&["apply", "last", "--only", path]).expect_code(0);
            assert_eq!(mode(&job, "gone/dark"), 0, "{path} as {caller:?}");
        }
        job.changes(&["apply", "last"]).expect_code(0);
        assert!(!job.workspace.join("gone").exists());

        // What is wanted of a folder is not what was changed of itself.
        let mut job = Job::new(caller, "mkdir d; echo 1 >d/f; chmod 555 d");
        if job.run("chmod 755 d; echo 2 >d/f; chmod 711 d") {
            let applied = job.changes(&["apply", "last", "--only", "d/f"]).expect_code(0);
            assert_eq!((applied.stdout.as_str(), mode(&job, "d")), ("M  d/f\n", 0o555));
            job.changes(&["apply", "last"]).expect_code(0).expect_stdout("m  d/");
            assert_eq!(mode(&job, "d"), 0o711);
        }
    }
}

/// One step of a command. Folders keep what their owner needs to look into them: without capabilities even root would not see
/// what is in there.
fn operation() -> impl Strategy<Value = String> {
    let path = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "a/a",
        "a/b",
        "b/a",
        "b/b",
        "c/c",
        "a/a/a",
        "b/a/b",
        "a/b/c",
        "link/x",
        "$(printf 'n\\nl')",
    ]);
    (0..13_u32, path.clone(), path, 0..1000_u32).prop_map(|(kind, one, two, number)| {
        let (one, two) = (format!("\"{one}\""), format!("\"{two}\""));
        match kind {
            0 | 1 => format!("echo {number} >{one}"),
            2 => format!("echo {number} >>{one}"),
            3 => format!("rm -rf {one}"),
            4 => format!("mkdir -p {one}"),
            5 => format!("rm -rf {one}; mkdir {one}; echo {number} >{one}/new"),
            6 | 7 => format!("mv -T {one} {two}"),
            8 => format!("ln {one} {two}"),
            9 => format!("ln -sfn {two} {one}"),
            10 => format!("[ -L {one} ] || chmod {} {one}", ["700", "755", "711", "500", "750"][number as usize % 5]),
            11 => format!("cp -a {one} {two}"),
            _ => format!("rm -f {one}; rmdir {one}"),
        }
    })
}

/// Prints a tree as [`listing`] sees it, from inside.
const LIST: &str = "find . -mindepth 1 -printf '%p %y %l ' \\( -type l -o -printf '%m ' \\) \\( ! -type f -o -exec md5sum '{}' ';' \\) \
                    -printf '\\n' | LC_ALL=C sort; echo links; \
                    find . -type f -links +1 -printf '%i %p\\n' | LC_ALL=C sort -k2 | awk '{ if (!($1 in n)) n[$1] = NR; $1 = n[$1]; print }'";

#[test]
fn whatever_a_command_does_is_what_apply_makes() {
    for caller in callers() {
        let steps = || prop::collection::vec(operation(), 1..25);
        let config = Config { cases: 25, failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&(steps(), steps(), 1..9_usize), |(before, inside, every)| {
            // A step that can't be made is none.
            let quiet = |steps: Vec<String>| {
                steps.iter().map(|step| format!("( {step} ) 2>/dev/null || true; ")).collect::<String>()
            };
            let mut job = Job::new(caller, &quiet(before));
            let Some(seen) = job.output(&format!("{} {LIST}", quiet(inside))) else { return Ok(()) };
            // In parts, whose traces are nobody else's.
            let shown: Value = serde_json::from_str(&job.changes(&["show", "last", "--json"]).stdout).unwrap();
            let paths = shown.as_array().unwrap().iter().map(|change| change["path"].as_str().unwrap());
            for path in paths.step_by(every) {
                let part = job.changes(&["apply", "last", "--only", path]);
                prop_assert!(part.code == 0 || part.stderr.contains("nothing was changed at"), "{path}: {part:?}");
            }
            job.changes(&["apply", "last"]).expect_code(0);
            let now = outside(caller, &job.workspace, LIST).expect_code(0).stdout;
            // Names of one file in the workspace may be several for the overlay, which copies them one by one.
            let tree = |text: &str| text.split("links\n").next().unwrap().to_owned();
            prop_assert_eq!(tree(&seen), tree(&now));
            prop_assert_eq!(job.show(), "");
            Ok(())
        });
        outcome.unwrap();
    }
}

#[test]
fn what_is_mounted_in_the_workspace_is_left_alone() {
    if !is_root() {
        eprintln!("skipped: only root can mount something there that apply sees");
        return;
    }
    let mut job = Job::new(Caller::Own, "mkdir -p d/mounted e; echo 1 >d/f");
    if !job.run("rm -r d; echo 2 >e/new") {
        return;
    }
    let victim = job.scratch.folder("victim", Caller::Own);
    fs::write(victim.join("f"), "mine").unwrap();
    let mounted = job.workspace.join("d/mounted");
    // In a mount namespace of its own, where nothing is left behind.
    let script = format!(
        "mount --bind {0} {1}; mount --bind {0} {2}; exec \"$@\"",
        victim.display(),
        mounted.display(),
        job.workspace.join("e").display()
    );
    let mut apply = Shannot::through(
        Caller::Own,
        Path::new("/usr/bin/unshare"),
        ["-m", "sh", "-ec", &script, "sh", binary().to_str().unwrap(), "changes", "apply", "last"],
    );
    apply.command.env("XDG_STATE_HOME", &job.state);
    let result = apply.output().expect_code(1);
    result.expect_stdout("!  d/  (something else is mounted there)").expect_stdout("!  e/  (something else");
    assert_eq!(listing(&victim).len(), 2);
    assert!(job.workspace.join("d/f").exists());
}

//! A job's workspace as an overlay, what is wanted of it, and what its repository could tell or be made to do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::ci::{Job, git, own_all};
use crate::support::*;

#[test]
fn an_overlay_changes_nothing_until_it_is_applied() {
    for caller in callers() {
        let job = Job::new(caller);
        fs::create_dir(job.workspace.join("many")).unwrap();
        for index in 0..10_000 {
            fs::write(job.workspace.join(format!("many/{index}")), "x").unwrap();
        }
        own_all(&job.workspace, caller);
        let script = "rm -rf many file; mkdir out; echo result > out/r; ln -s ../out/r out/inside; ln -s /etc/shadow out/shadow; echo made > made; \
                      chmod 700 out/r; echo x > .git/hooks/pre-commit; git status --short | wc -l; exit 3";
        let run = job.run(&[
            "run",
            "-p",
            "ci",
            "--workspace-mode",
            "overlay",
            "--artifact",
            "out",
            "--",
            "bash",
            "-c",
            script,
        ]);
        let result = run.output().expect_code(3).expect_stderr("out/shadow").expect_stderr("shannot changes show");
        assert!(job.workspace.join("file").exists() && !job.workspace.join("made").exists(), "{result:?}");
        assert_eq!(fs::read_dir(job.workspace.join("many")).unwrap().count(), 10_000);
        // The artifact, without the link that leads out.
        assert_eq!(fs::read_to_string(job.workspace.join("out/r")).unwrap(), "result\n");
        assert!(job.workspace.join("out/shadow").symlink_metadata().is_err());
        fs::remove_dir_all(job.workspace.join("out")).unwrap();
        let shown = job.run(&["changes", "show", "last"]).output().expect_code(0);
        for line in ["D  file", "A  made", "A  out/r  (mode 0700)", "D  many/"] {
            assert!(shown.stdout.lines().any(|shown| shown == line), "no {line:?} in {} …", &shown.stdout[..200]);
        }
        job.run(&["changes", "apply", "last"]).output().expect_code(0);
        assert!(!job.workspace.join("file").exists() && !job.workspace.join("many").exists());
        assert_eq!(fs::read_to_string(job.workspace.join("made")).unwrap(), "made\n");
        job.run(&["changes", "discard", "last"]).output().expect_code(0);
        assert!(!job.workspace.join(".git/hooks/pre-commit").exists());
        // What changes nothing, or does not start, leaves nothing.
        job.sh(&["run", "-p", "ci", "--workspace-mode", "overlay"], "true").expect_code(0);
        job.run(&["run", "-p", "ci", "--workspace-mode", "overlay", "--", "/no/such"]).output().expect_code(127);
        assert!(!job.run(&["changes", "list"]).output().stdout.contains("finished"));
        job.run(&["run", "-p", "ci", "--artifact", "x", "--", "true"])
            .output()
            .expect_code(125)
            .expect_stderr("overlay");
    }
}

#[test]
fn an_artifact_that_can_not_be_had_fails_a_job_that_succeeded_and_no_other() {
    for caller in callers() {
        let job = Job::new(caller);
        // An artifact that can't be had is a failure of the run, and the report says so.
        let report = job.home.join("report.json");
        let overlay = ["run", "-p", "ci", "--workspace-mode", "overlay", "--report", report.to_str().unwrap()];
        for artifact in ["leads-out", "missing"] {
            let words = ["--artifact", artifact, "--", "ln", "-s", "/etc/shadow", "leads-out"];
            job.run(&overlay).args(words).output().expect_code(1);
            let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
            assert_eq!((&report["exit_code"], &report["outcome"]["ending"]["code"]), (&json!(1), &json!(0)));
            job.run(&["changes", "discard", "last"]).output().expect_code(0);
        }
        // Also below folders that the command alone has; never through a link of the repository's.
        let victim = job.home.join("victim");
        fs::create_dir(&victim).unwrap();
        symlink(&victim, job.workspace.join("link")).unwrap();
        own_all(&job.home, caller);
        let script = "rm link; mkdir -p link target/release; echo evil > link/key; echo built > target/release/app; ln -s /etc/shadow leads-out; exit 3";
        let artifacts =
            ["link/key", "missing", "leads-out", "target/release/app", "link/key:x:"].map(|path| ["--artifact", path]);
        job.run(&overlay)
            .args(artifacts.concat())
            .args(["--", "sh", "-c", script])
            .output()
            .expect_code(125)
            .expect_stderr("no destination");
        let artifacts = artifacts.split_at(4).0.concat();
        let result = job.run(&overlay).args(&artifacts).args(["--", "sh", "-c", script]).output().expect_code(3);
        result
            .expect_stderr("artifact link/key: ")
            .expect_stderr("artifact missing: ")
            .expect_stderr("artifact leads-out: ")
            .expect_stderr("what changed is kept: shannot changes show ");
        assert_eq!(fs::read_to_string(job.workspace.join("target/release/app")).unwrap(), "built\n");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        job.run(&["changes", "discard", "last"]).output().expect_code(0);
    }
}

#[test]
fn a_configuration_is_shown_without_its_tokens() {
    for caller in callers() {
        let job = Job::new(caller);
        git(&job.workspace, &["config", "http.https://github.com/.extraheader", "AUTHORIZATION: basic c3ecret"]);
        git(&job.workspace, &["remote", "add", "origin", "https://user:t0ken@example.org/a.git"]);
        own_all(&job.workspace, caller);
        let script =
            "git remote -v; git config --get-regexp '.*'; cat .git/config; echo x >> .git/config; git config a.b c";
        for mode in ["rw", "overlay", "ro"] {
            let result = job.sh(&["run", "-p", "ci", "--workspace-mode", mode], script);
            assert!(result.stdout.contains("https://example.org/a.git"), "{mode}: {result:?}");
            assert!(!result.stdout.contains("c3ecret") && !result.stdout.contains("t0ken"), "{mode}: {result:?}");
        }
        let config = fs::read_to_string(job.workspace.join(".git/config")).unwrap();
        assert!(config.contains("c3ecret") && config.contains("t0ken") && !config.contains("[a]"));
    }
}

/// A repository with a submodule `sub`, its worktree `../tree`, and a workspace whose administrative folder lies in it.
fn repositories(job: &Job) -> [PathBuf; 2] {
    let module = job.workspace.join(".git/modules/sub");
    fs::create_dir_all(&module).unwrap();
    git(&job.workspace, &["init", "-q", "--separate-git-dir", module.to_str().unwrap(), "sub"]);
    let tree = job.home.join("tree");
    git(&job.workspace, &["config", "extensions.worktreeConfig", "true"]);
    git(&job.workspace, &["worktree", "add", "-q", tree.to_str().unwrap()]);
    let apart = job.home.join("apart");
    fs::create_dir_all(apart.join("real")).unwrap();
    git(&job.home, &["init", "-q", "--separate-git-dir", apart.join("real/git").to_str().unwrap(), "apart"]);
    own_all(&job.home, job.caller);
    [tree, apart]
}

#[test]
fn no_folder_around_what_git_follows_can_be_replaced() {
    for caller in callers() {
        let job = Job::new(caller);
        let [tree, apart] = repositories(&job);
        let run = |folder: &Path, words: &[&str], script: &str| {
            let run = Shannot::new(caller).args(["run", "-p", "ci"]).args(words).args(["--", "bash", "-c", script]);
            let mut run = run.env("HOME", job.home.to_str().unwrap());
            run.command.current_dir(folder);
            run.output()
        };
        let evil = "printf '[core]\\n\\tfsmonitor = evil\\n'";
        for moved in ["modules", "modules/sub"] {
            let script =
                format!("mv .git/{moved} .git/old; cp -r .git/old .git/{moved}; {evil} > .git/modules/sub/config");
            run(&job.workspace, &[], &script);
        }
        run(
            &apart,
            &[],
            &format!("mv real old; cp -r old real; mv real/git real/x; mkdir real/git; {evil} > real/git/config"),
        );
        let admin = job.workspace.join(".git/worktrees/tree");
        let before = fs::read_to_string(admin.join("HEAD")).unwrap();
        let script = format!(
            "{evil} > {0}/config.worktree; {evil} > {0}/config; {evil} > $(git rev-parse --git-dir)/hooks/x",
            admin.display()
        );
        run(&tree, &[], &script);
        let overlay = format!(
            "echo 'ref: refs/heads/evil' > {0}/HEAD; echo zz > {0}/index; {evil} > {0}/config.worktree",
            admin.display()
        );
        run(&tree, &["--workspace-mode", "overlay"], &overlay);
        assert_eq!(fs::read_to_string(admin.join("HEAD")).unwrap(), before);
        for config in [
            job.workspace.join(".git/modules/sub/config"),
            apart.join("real/git/config"),
            admin.join("config.worktree"),
            admin.join("config"),
        ] {
            let text = fs::read_to_string(&config).unwrap_or_default();
            assert!(!text.contains("evil"), "{}: {text}", config.display());
        }
    }
}

#[test]
fn links_that_a_job_swaps_in_show_the_next_one_nothing() {
    for caller in callers() {
        let job = Job::new(caller);
        let module = job.workspace.join(".git/modules/m");
        fs::create_dir_all(module.join("hooks")).unwrap();
        fs::write(module.join("HEAD"), "ref: x\n").unwrap();
        fs::write(module.join("config"), "").unwrap();
        symlink(&job.home, job.workspace.join(".git/link")).unwrap();
        own_all(&job.workspace, caller);
        // As a job does that ran before there was anything to guard.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (link, hooks) = (job.workspace.join(".git/link"), module.join("hooks"));
                let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &link, nix::fcntl::AT_FDCWD, &hooks, exchange)
                        .unwrap_or_default();
                    std::thread::sleep(std::time::Duration::from_micros(1500));
                }
            });
            let look = format!(
                "cat {0}/.ssh/id_ed25519; grep ' {0} ' /proc/self/mountinfo | grep -v tmpfs",
                job.home.display()
            );
            let start = std::time::Instant::now();
            let mut ran = 0;
            while start.elapsed() < std::time::Duration::from_secs(4) {
                let result = job.sh(&["run", "-p", "ci"], &look);
                assert!(!result.stdout.contains("precious") && result.stdout.is_empty(), "{result:?}");
                ran += u32::from(result.code != 125);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            println!("{ran} ran");
        });
    }
}

#[test]
fn tokens_are_shown_in_no_configuration_of_a_repository() {
    for caller in callers() {
        let job = Job::new(caller);
        let [tree, _] = repositories(&job);
        let header = ["http.https://example.org/.extraheader", "AUTHORIZATION: t0ken"];
        for (folder, words) in [
            (&job.workspace, &["config"][..]),
            (&job.workspace, &["config", "--worktree"]),
            (&tree, &["config", "--worktree"]),
        ] {
            git(folder, &[words, &header].concat());
        }
        git(&job.workspace.join("sub"), &["config", header[0], header[1]]);
        own_all(&job.home, caller);
        for (folder, words) in [(&job.workspace, &[][..]), (&tree, &[]), (&tree, &["--workspace-mode", "ro"])] {
            let run =
                Shannot::new(caller).args(["run", "-p", "ci"]).args(words).env("HOME", job.home.to_str().unwrap());
            let mut run = run.args([
                "--",
                "bash",
                "-c",
                "grep -r t0ken . \"$(git rev-parse --git-common-dir)\"; git status -s | head -n 3",
            ]);
            run.command.current_dir(folder);
            let result = run.output();
            assert!(!result.stdout.contains("t0ken") && result.stderr.is_empty(), "{folder:?}: {result:?}");
        }
    }
}

#[test]
fn a_repository_whose_work_is_elsewhere_is_not_guarded_by_halves() {
    let mut job = Job::new(Caller::Own);
    // As submodules are, whose worktree git finds anyway.
    let modules = job.home.join("modules");
    fs::rename(&job.workspace, &modules).unwrap();
    job.workspace = modules;
    let elsewhere = job.home.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for (key, value) in [("core.worktree", elsewhere.to_str().unwrap()), ("core.bare", "true")] {
        git(&job.workspace, &["config", key, value]);
        job.sh(&["run", "-p", "ci"], "true").expect_code(125).expect_stderr("core.worktree or core.bare");
        job.sh(&["run", "-p", "ci", "--workspace-mode", "ro"], "true").expect_code(0);
        git(&job.workspace, &["-c", "core.bare=false", "config", "--unset", key]);
    }
    job.sh(&["run", "-p", "ci"], "true").expect_code(0);
}

#[test]
fn a_configuration_that_the_host_changes_meanwhile_is_named() {
    let job = Job::new(Caller::Own);
    let mut run =
        job.run(&["run", "-p", "ci", "--", "sh", "-c", "touch started; while test -e started; do sleep 0.05; done"]);
    let child = run.command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let started = job.workspace.join("started");
    while !started.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    git(&job.workspace, &["config", "a.b", "c"]);
    fs::remove_file(&started).unwrap();
    let result = Result::new(child.wait_with_output().unwrap()).expect_code(0);
    result.expect_stderr(".git/config was changed on the host meanwhile");
    assert_eq!(job.sh(&["run", "-p", "ci"], "true").expect_code(0).stderr, "");
}

#[test]
fn names_that_a_job_has_made_do_not_reach_the_terminal() {
    for caller in callers() {
        let job = Job::new(caller);
        let script = "d=$(printf '\\033]0;x\\007\\nshannot: all good'); mkdir -p \".git/modules/$d\"; ln -s /x \".git/modules/$d/hooks\"";
        job.sh(&["run", "-p", "ci"], script).expect_code(0);
        let result = job.sh(&["run", "-p", "ci"], "true").expect_code(125).expect_stderr("is a link");
        assert!(!result.stderr.contains(['\x1b', '\x07']) && result.stderr.lines().count() == 1, "{result:?}");
    }
}

#[test]
fn what_git_would_execute_is_known_or_nothing_runs() {
    for caller in callers() {
        let job = Job::new(caller);
        let module = job.workspace.join(".git/modules/m");
        fs::create_dir_all(module.join("hooks")).unwrap();
        fs::write(module.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        own_all(&job.workspace, caller);
        let hook = "chmod u+rwx .git/modules/m; echo evil > .git/modules/m/hooks/post-checkout";
        // One job shuts the door, so that the next one goes unguarded.
        job.sh(&["run", "-p", "ci"], "chmod 0 .git/modules/m").expect_code(0);
        let next = job.sh(&["run", "-p", "ci"], hook);
        if caller == Caller::Nobody || !is_root() {
            next.expect_code(125).expect_stderr(".git/modules/m").expect_stderr("chmod u+rwx");
        }
        fs::set_permissions(&module, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(!module.join("hooks/post-checkout").exists());
        // Nor is a configuration shown of which it is not known what it holds.
        let config = job.workspace.join(".git/config");
        let long = format!("[x]\n{}[remote \"r\"]\n\turl = https://user:t0ken@example.org\n", "#\n".repeat(1 << 20));
        fs::write(&config, long).unwrap();
        let result =
            job.sh(&["run", "-p", "ci"], "tail -n 2 .git/config").expect_code(125).expect_stderr("File too large");
        assert!(!result.stdout.contains("t0ken"), "{result:?}");
    }
}

#[test]
fn folders_of_submodules_and_worktrees_stay_whatever_they_are_called() {
    for caller in callers() {
        let job = Job::new(caller);
        let git_folder = job.workspace.join(".git");
        for module in ["plain", "libs/foo", "plain/modules/below"] {
            let folder = git_folder.join("modules").join(module);
            fs::create_dir_all(folder.join("hooks")).unwrap();
            for (name, text) in [("HEAD", "ref: refs/heads/main\n"), ("config", "[core]\n")] {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        git(&job.workspace, &["worktree", "add", "-q", &job.home.join("tree").display().to_string()]);
        git(&job.workspace, &["config", "extensions.worktreeConfig", "true"]);
        own_all(&job.home, caller);
        let script = "for m in plain libs/foo plain/modules/below; do echo x > .git/modules/$m/config; echo x > .git/modules/$m/hooks/y; \
                      echo x > .git/modules/$m/commondir; rm -rf .git/modules/$m/hooks; done; \
                      echo x > .git/worktrees/tree/commondir; rm -rf .git/worktrees; echo x > .git/config.worktree; true";
        job.sh(&["run", "-p", "ci"], script).expect_code(0);
        for module in ["plain", "libs/foo", "plain/modules/below"] {
            let folder = git_folder.join("modules").join(module);
            assert_eq!(fs::read_to_string(folder.join("config")).unwrap(), "[core]\n", "{module}");
            assert!(!folder.join("hooks/y").exists() && !folder.join("commondir").exists(), "{module}");
        }
        assert_eq!(fs::read_to_string(git_folder.join("worktrees/tree/commondir")).unwrap(), "../..\n");
        assert!(!git_folder.join("config.worktree").exists());
        git(&job.home.join("tree"), &["status"]);
    }
}

/// What a job left is nothing that the next one's launcher follows.
#[test]
fn links_in_a_repository_lead_the_launcher_nowhere() {
    for caller in callers() {
        for (link, to) in [("modules", "outside"), ("modules/m", "outside"), ("modules/k/config", "outside/file")] {
            let job = Job::new(caller);
            let outside = job.home.join("outside");
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("HEAD"), "").unwrap();
            fs::write(outside.join("file"), "").unwrap();
            let link = job.workspace.join(".git").join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(job.home.join(to), &link).unwrap();
            own_all(&job.home, caller);
            let before = fs::read_dir(&outside).unwrap().count();
            job.sh(&["run", "-p", "ci"], "true").expect_code(125).expect_stderr("is a link");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), before, "{link:?}");
            assert!(!job.workspace.join(".git/commondir").exists());
        }
    }
}

#[test]
fn a_killed_launcher_leaves_what_harms_no_git() {
    let caller = Caller::Own;
    let job = Job::new(caller);
    fs::remove_dir_all(job.workspace.join(".git/hooks")).unwrap();
    for attempt in 0..20_u64 {
        let mut run = job.run(&["run", "-p", "ci", "--", "sleep", "5"]);
        let mut child = run.command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(attempt));
        child.kill().unwrap();
        child.wait().unwrap();
        git(&job.workspace, &["status"]);
    }
    job.sh(&["run", "-p", "ci"], "git log --oneline").expect_code(0);
    assert!(!job.workspace.join(".git/commondir").exists());
    assert!(Path::new(&job.workspace).is_dir());
}

//! Jobs of strangers: profiles for CI, what they are made of, the workspace and its repository, secrets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::*;

/// A caller's home with a workspace in it, and a repository there.
pub struct Job {
    _scratch: Scratch,
    pub caller: Caller,
    pub home: PathBuf,
    pub workspace: PathBuf,
}

pub fn git(folder: &Path, words: &[&str]) {
    let identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "safe.directory=*"];
    let mut git = Command::new("git");
    git.args(identity).args(words).current_dir(folder).env("HOME", "/nonexistent");
    let output = git.output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

pub fn own_all(folder: &Path, caller: Caller) {
    own(folder, caller);
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            own_all(&entry.path(), caller);
        } else if caller == Caller::Nobody {
            std::os::unix::fs::lchown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

impl Job {
    pub fn new(caller: Caller) -> Self {
        let scratch = Scratch::new();
        let home = scratch.folder("home", caller);
        let workspace = scratch.folder("home/work", caller);
        fs::create_dir(home.join(".ssh")).unwrap();
        fs::write(home.join(".ssh/id_ed25519"), "precious").unwrap();
        git(&workspace, &["init", "-q", "."]);
        fs::write(workspace.join("file"), "1").unwrap();
        git(&workspace, &["add", "."]);
        git(&workspace, &["commit", "-qm", "one"]);
        own_all(&home, caller);
        Self { _scratch: scratch, caller, home, workspace }
    }

    pub fn run(&self, words: &[&str]) -> Shannot {
        let mut run = Shannot::new(self.caller).args(words).env("HOME", &self.home.display().to_string());
        run.command.current_dir(&self.workspace);
        run
    }

    pub fn sh(&self, words: &[&str], script: &str) -> Result {
        self.run(words).args(["--", "bash", "-c", script]).output()
    }
}

#[test]
fn a_job_has_its_workspace_and_nothing_else() {
    for caller in callers() {
        let job = Job::new(caller);
        let result = job
            .run(&["run", "-p", "ci", "--", "bash", "-c"])
            .args(["pwd; echo made > made; cat ~/.ssh/id_ed25519; cat /etc/shadow; ls -A ~ /run /tmp; touch /usr/x /etc/x; env; hostname"])
            .env("GITHUB_SHA", "abc")
            .env("CI_COMMIT_SHA", "def")
            .env("GITHUB_TOKEN", "secret-1")
            .env("CI_JOB_TOKEN", "secret-2")
            .env("ACTIONS_RUNTIME_TOKEN", "secret-3")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "secret-4")
            .env("SSH_AUTH_SOCK", "secret-5")
            .env("SOMETHING", "secret-6")
            .env("BUILD_URL", "https://me:secret-7@example.org/job/1?x=https://secret-8@h")
            .output();
        for seen in [
            "GITHUB_SHA=abc",
            "CI_COMMIT_SHA=def",
            "CI=true",
            "TZ=UTC",
            "\nci\n",
            "BUILD_URL=https://example.org/job/1?x=https://h",
        ] {
            assert!(result.stdout.contains(seen), "no {seen:?} in {result:?}");
        }
        assert!(!result.stdout.contains("secret") && !result.stdout.contains("precious"), "{result:?}");
        assert_eq!(fs::read_to_string(job.workspace.join("made")).unwrap(), "made\n");
        assert_eq!(result.stderr.matches("Read-only file system").count(), 2, "{result:?}");
        assert!(!Path::new("/usr/x").exists() && !Path::new("/etc/x").exists());
    }
}

#[test]
fn patterns_never_pass_tokens_on() {
    for caller in callers() {
        let job = Job::new(caller);
        let run = |words: &[&str]| {
            let run = job.run(&["run", "-p", "ci"]).args(words);
            run.env("CI_JOB_TOKEN", "t0ken").env("CI_THING", "thing").output()
        };
        let result = run(&["--env-pass", "CI_*", "--", "env"]).expect_code(0).expect_stdout("CI_THING=thing");
        assert!(!result.stdout.contains("t0ken"), "{result:?}");
        let result = run(&["--inherit-env", "--", "env"]).expect_code(0).expect_stdout("CI_THING=thing");
        assert!(!result.stdout.contains("t0ken"), "{result:?}");
        run(&["--env", "CI_JOB_TOKEN", "--", "env"]).expect_code(125).expect_stderr("--secret");
    }
}

#[test]
fn what_the_hosts_git_would_execute_stays() {
    for caller in callers() {
        for hooks in [true, false] {
            let job = Job::new(caller);
            let git_folder = job.workspace.join(".git");
            if !hooks {
                fs::remove_dir_all(git_folder.join("hooks")).unwrap();
            }
            let before = names(&git_folder);
            let config = fs::read(git_folder.join("config")).unwrap();
            let script = "echo 2 > file; git -c user.name=x -c user.email=x@x commit -qam two && git log --oneline | wc -l; \
                          echo x > .git/hooks/pre-commit; echo x > .git/commondir; rm -rf .git/commondir .git/hooks; mv .git other; \
                          rm -rf .git/config; echo x >> .git/config; git config core.fsmonitor x; rmdir .git/hooks; echo evil > .git/config.worktree.x";
            job.sh(&["run", "-p", "ci"], script).expect_stdout("2\n");
            assert_eq!(fs::read(git_folder.join("config")).unwrap(), config);
            assert!(!job.workspace.join("other").exists());
            let after = names(&git_folder);
            let new: Vec<_> = after.iter().filter(|name| !before.contains(name)).collect();
            assert!(new.iter().all(|name| ["COMMIT_EDITMSG", "config.worktree.x"].contains(&name.as_str())), "{new:?}");
            assert!(!git_folder.join("hooks/pre-commit").exists());
            git(&job.workspace, &["status"]);
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_worktree_is_understood_and_a_forged_one_shows_nothing() {
    for caller in callers() {
        let job = Job::new(caller);
        let tree = job.home.join("tree");
        git(&job.workspace, &["worktree", "add", "-q", &tree.display().to_string()]);
        own_all(&job.home, caller);
        let script = "git status --porcelain && echo 2 > file && git diff --stat | tail -1; git add file; cat ~/.ssh/id_ed25519; \
                      echo x > .git; echo x > $(git rev-parse --git-dir)/commondir; echo x > $(git rev-parse --git-common-dir)/hooks/pre-commit";
        let mut run = job.run(&["run", "-p", "ci", "--", "bash", "-c", script]);
        run.command.current_dir(&tree);
        let result = run.output().expect_stdout("1 file changed");
        assert!(!result.stdout.contains("precious"), "{result:?}");
        assert!(!job.workspace.join(".git/hooks/pre-commit").exists());
        git(&tree, &["status"]);
        // The workspace is a stranger's: its .git may say anything.
        let forged = job.home.join("forged");
        fs::create_dir(&forged).unwrap();
        fs::write(forged.join(".git"), format!("gitdir: {}/.ssh\n", job.home.display())).unwrap();
        own_all(&forged, caller);
        let mut run = job.run(&["run", "-p", "ci", "--", "bash", "-c", "cat ~/.ssh/id_ed25519; ls -A ~"]);
        run.command.current_dir(&forged);
        let result = run.output();
        assert!(!result.stdout.contains("precious") && !result.stdout.contains(".ssh"), "{result:?}");
        fs::remove_file(forged.join(".git")).unwrap();
        std::os::unix::fs::symlink(job.workspace.join(".git"), forged.join(".git")).unwrap();
        let mut run = job.run(&["run", "-p", "ci", "--", "true"]);
        run.command.current_dir(&forged);
        run.output().expect_code(125).expect_stderr("is a link");
    }
}

#[test]
fn a_secret_is_a_file_that_only_the_job_sees() {
    for caller in callers() {
        let job = Job::new(caller);
        let secret = job.home.join("secret");
        fs::write(&secret, "s3cret").unwrap();
        own(&secret, caller);
        let option = format!("KEY=file:{}", secret.display());
        let script = "cat /run/secrets/KEY; stat -c ' %a' /run/secrets/KEY; env | grep -c s3cret; echo x > /run/secrets/KEY; ls /proc/self/fd | wc -l";
        let result = job.sh(&["run", "-p", "ci", "--secret", &option], script);
        assert!(result.stdout.starts_with("s3cret 400\n0\n"), "{result:?}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "s3cret");
        let through = format!(
            "exec {} run -p ci --secret KEY=fd:9 -- cat /run/secrets/KEY 9< {}",
            binary().display(),
            secret.display()
        );
        let mut run = Shannot::through(caller, Path::new("/bin/bash"), ["-c", &through]);
        run.command.current_dir(&job.workspace).env("HOME", &job.home);
        run.output().expect_code(0).expect_stdout("s3cret");
        for bad in ["s3cret", "=fd:9", "../x=fd:9", "KEY=fd:1", "KEY=fd:99", "KEY=file:/no/such", "KEY=s3cret"] {
            let result = job.run(&["run", "-p", "ci", "--secret", bad, "--", "true"]).output().expect_code(125);
            assert!(!result.stderr.contains("s3cret"), "{result:?}");
        }
        let report = job.run(&["run", "-p", "ci", "--secret", &option, "--report", "fd:1", "--", "true"]).output();
        assert!(!report.stdout.contains("s3cret"), "{report:?}");
    }
}

#[test]
fn the_workspace_is_a_folder_below_home_and_its_mode_is_kept() {
    for caller in callers() {
        let job = Job::new(caller);
        let home = job.home.display().to_string();
        for bad in [
            "/",
            home.as_str(),
            "/no/such/folder",
            "/etc/passwd",
            "/etc",
            "/usr/share",
            "/usr",
            "/var",
            "/home",
            "/usr/local/bin",
        ] {
            job.run(&["run", "-p", "ci", "--workspace", bad, "--", "true"]).output().expect_code(125);
        }
        let mut run = job.run(&["run", "-p", "ci", "--workspace", &job.workspace.display().to_string(), "--", "touch"]);
        run.command.arg(job.workspace.join("x")).current_dir("/");
        run.output().expect_code(0);
        let mut rootless = job.run(&["run", "-p", "ci", "--", "true"]);
        rootless.command.env("HOME", "/");
        rootless.output().expect_code(125).expect_stderr("HOME is /");
        let secret = job.home.join("secret");
        fs::write(&secret, "x").unwrap();
        own(&secret, caller);
        let secret = format!("A=file:{}", secret.display());
        let lower = [
            "run",
            "-p",
            "ci",
            "--backend",
            "landlock",
            "--allow-degraded",
            "mount-namespace",
            "--allow-degraded",
            "landlock-fs",
        ];
        for words in [&["--workspace-mode", "overlay"][..], &["--secret", &secret]] {
            job.run(&[&lower[..], words, &["--", "true"]].concat())
                .output()
                .expect_code(125)
                .expect_stderr("mount namespace");
        }
        let mut elsewhere =
            job.run(&["run", "-p", "ci", "--workspace", &job.workspace.display().to_string(), "--", "pwd"]);
        elsewhere.command.current_dir("/");
        elsewhere.output().expect_code(0).expect_stdout(&job.workspace.display().to_string());
        for words in [&["run", "-p", "lint"][..], &["run", "-p", "ci", "--workspace-mode", "ro"]] {
            job.sh(words, "cat file && touch y").expect_stdout("1").expect_stderr("Read-only");
        }
        assert!(!job.workspace.join("y").exists());
        for profile in ["build", "test", "install"] {
            job.sh(&["run", "-p", profile], "touch y && rm y").expect_code(0);
        }
        job.run(&["verify", "-p", "ci"]).output().expect_code(0);
    }
}

#[test]
fn profiles_are_made_of_others() {
    for caller in callers() {
        let job = Job::new(caller);
        let write = |name: &str, text: Value| {
            let path = job.home.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text.to_string()).unwrap();
            own_all(&job.home, caller);
            path.display().to_string()
        };
        let show = |words: &[&str]| {
            let result = job.run(&[words, &["profile", "show"]].concat()).output().expect_code(0);
            serde_json::from_str::<Value>(&result.stdout).unwrap()
        };
        write(
            "base/base.json",
            json!({"name": "base", "binds": [{"source": "data", "target": "/data"}], "hide": ["/a"], "allowed_commands": ["ls", "cat"], "network": "host"}),
        );
        let child = write(
            "child.json",
            json!({"name": "child", "extends": ["base/base.json"], "remove": {"hide": ["/a"], "allowed_commands": ["cat"]}, "network_isolation": true, "env_pass": ["X"]}),
        );
        let shown = show(&["-p", &child]);
        assert_eq!(shown["binds"][0]["source"], json!(job.home.join("base/data")));
        assert_eq!((&shown["allowed_commands"], &shown["name"]), (&json!(["ls"]), &json!("child")));
        assert_eq!((&shown["network_isolation"], shown.get("hide"), shown.get("extends")), (&json!(true), None, None));
        // Words that belong together stay together: any two of the built-in profiles can be laid over each other.
        let built_in = ["build", "ci", "diagnostics", "host", "install", "lint", "minimal", "readonly", "test"];
        for (one, other) in built_in.iter().flat_map(|one| built_in.iter().map(move |other| (one, other))) {
            job.run(&["-p", one, "-p", other, "run", "--dry-run", "ls"]).output().expect_code(0);
        }
        let closed = json!({"name": "closed", "extends": ["minimal"], "network": "none", "network_isolation": true});
        assert_eq!(show(&["-p", &write("closed.json", closed)])["network"], json!("none"));
        // One that takes the place of a built-in one, and is made of it.
        write(".config/shannot/ci.json", json!({"name": "ci", "extends": ["ci"], "env_pass": ["MINE"]}));
        let shown = show(&["-p", "ci"]);
        assert!(
            shown["env_pass"].as_array().unwrap().contains(&json!("MINE")) && shown["hostname"] == "ci",
            "{shown:#}"
        );
        let narrow = write("narrow.json", json!({"name": "narrow", "network": "none", "workspace": {"mode": "ro"}}));
        let both = show(&["-p", "ci", "-p", &narrow]);
        assert_eq!(
            (&both["name"], &both["network"], &both["workspace"]["mode"]),
            (&json!("ci+narrow"), &json!("none"), &json!("ro"))
        );
        for (text, said) in [
            (json!({"name": "x", "extends": ["x.json"]}), "it extends itself"),
            (json!({"name": "x", "extends": ["nosuch"]}), "nosuch"),
            (
                json!({"name": "x", "extends": ["minimal"], "remove": {"hide": ["/nope"]}}),
                "nothing that is inherited is \"/nope\"",
            ),
            (
                json!({"name": "x", "extends": ["child.json"], "remove": {"allowed_commands": ["ls"]}}),
                "would allow every command",
            ),
            (json!({"name": "x", "extend": ["minimal"]}), "extends"),
        ] {
            let path = write("x.json", text);
            job.run(&["-p", &path, "profile", "show"]).output().expect_code(125).expect_stderr(said);
        }
    }
}

#[test]
fn caches_lie_where_nobody_else_writes() {
    for caller in callers() {
        let job = Job::new(caller);
        let run = |cache: &str, script: &str| job.sh(&["run", "-p", "ci", "--cache", cache], script);
        run("npm", "true").expect_code(0);
        let kept = job.home.join(".cache/shannot");
        // No link in it leads elsewhere, and none lies where jobs write.
        fs::create_dir(job.home.join("target")).unwrap();
        std::os::unix::fs::symlink(job.home.join("target"), kept.join("pip")).unwrap();
        own_all(&job.home, caller);
        run("pip", "touch ~/.cache/pip/x").expect_code(125).expect_stderr("is a link or no folder");
        fs::remove_file(kept.join("pip")).unwrap();
        let inside = job.run(&["run", "-p", "ci", "--cache", "pip", "--", "true"]);
        let inside = inside.env("XDG_CACHE_HOME", job.workspace.join("c").to_str().unwrap()).output();
        inside.expect_code(125).expect_stderr("it lies in the workspace");
        if caller == Caller::Nobody {
            std::os::unix::fs::chown(kept.join("npm"), Some(0), None).unwrap();
            run("npm", "true").expect_code(125).expect_stderr("another user");
            own_all(&job.home, caller);
        }
        // The caller's own links on the way are the caller's business.
        fs::create_dir(job.home.join("real")).unwrap();
        std::os::unix::fs::symlink(job.home.join("real"), job.home.join("linked")).unwrap();
        own_all(&job.home, caller);
        for below in ["linked", "linked/not/yet"] {
            let linked = job.run(&[
                "run",
                "-p",
                "ci",
                "--cache",
                "pip,npm:overlay",
                "--",
                "sh",
                "-c",
                "touch ~/.cache/pip/x ~/.npm/x",
            ]);
            linked.env("XDG_CACHE_HOME", job.home.join(below).to_str().unwrap()).output().expect_code(0);
        }
        assert!(
            job.home.join("real/shannot/pip/.cache/pip/x").exists()
                && job.home.join("real/not/yet/shannot/pip/.cache/pip/x").exists()
        );
        let open = job.home.join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let shared = job.run(&["run", "-p", "ci", "--cache", "pip", "--", "true"]);
        shared
            .env("XDG_CACHE_HOME", open.join("c").to_str().unwrap())
            .output()
            .expect_code(125)
            .expect_stderr("another user");
    }
}

#[test]
fn caches_are_kept_by_name_and_mode() {
    for caller in callers() {
        let job = Job::new(caller);
        let run = |cache: &str, script: &str| job.sh(&["run", "-p", "ci", "--cache", cache], script);
        run("npm,cargo", "echo 1 > ~/.npm/a; echo 2 > ~/.cargo/registry/b; ls -A ~/.cargo").expect_code(0);
        let kept = job.home.join(".cache/shannot");
        assert_eq!(fs::read_to_string(kept.join("npm/.npm/a")).unwrap(), "1\n");
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let metadata = fs::metadata(kept.join("cargo/.cargo/registry")).unwrap();
        let owner = if caller == Caller::Nobody { NOBODY } else { nix::unistd::geteuid().as_raw() };
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o700, owner));
        let home = job.home.join("elsewhere").display().to_string();
        let words = ["run", "-p", "ci", "--env", &format!("HOME={home}"), "--cache", "npm:ro"];
        job.sh(&words, "echo ~; cat ~/.npm/a").expect_code(0).expect_stdout(&format!("{home}\n1\n"));
        run("npm:ro", "cat ~/.npm/a; echo 3 > ~/.npm/c").expect_stdout("1").expect_stderr("Read-only");
        run("npm:overlay", "cat ~/.npm/a; rm ~/.npm/a; echo 3 > ~/.npm/c; ls ~/.npm")
            .expect_code(0)
            .expect_stdout("1\nc");
        run("npm:rw", "ls ~/.npm; mv ~/.npm ~/.other; rmdir ~/.npm").expect_stdout("a\n");
        // Another job has none of it.
        assert!(!job.sh(&["run", "-p", "ci"], "ls -A ~").stdout.contains(".npm"));
        for bad in ["nmp", "npm:x", "", "npm,,"] {
            job.run(&["run", "-p", "ci", "--cache", bad, "--", "true"])
                .output()
                .expect_code(125)
                .expect_stderr("--cache");
        }
        let many: Vec<_> = (0..8)
            .map(|index| {
                let script = format!("for i in $(seq 50); do echo x > ~/.npm/f{index}-$i; done");
                let mut run = job.run(&["run", "-p", "ci", "--cache", "npm", "--", "bash", "-c", &script]);
                let child = run.command.spawn().unwrap();
                (run, child)
            })
            .collect();
        for (_run, mut child) in many {
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        assert_eq!(fs::read_dir(kept.join("npm/.npm")).unwrap().count(), 401);
    }
}

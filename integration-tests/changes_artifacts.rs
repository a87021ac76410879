//! What is copied out of an overlay: as the command left it, to where it is wanted, and through nobody's links.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shannot::changes::Store;

use crate::changes::{Job, give, listing};
use crate::ci::git;
use crate::support::{Caller, callers};

#[test]
fn artifacts_are_copied_from_what_the_command_saw() {
    for caller in callers() {
        let mut job = Job::new(caller, "mkdir -p out/sub gone; echo old >out/old; echo 1 >out/sub/low; echo 1 >gone/f");
        let script = "echo new >out/new; rm out/old; echo 2 >out/sub/up; ln -s sub/up out/good; ln -s ../.. out/evil; \
                      ln -s /etc/shadow out/shadow; ln -s sub/../../x out/crooked; mkfifo out/pipe; rm -r gone; \
                      echo s >suid; chmod 4755 suid; ln -s /etc/shadow top; ln -s suid fine; \
                      mkdir shut up; echo 1 >shut/f; chmod 0 shut; ln -s ../suid up/link";
        if !job.run(script) {
            continue;
        }
        give(&job.state, nix::unistd::geteuid().as_raw());
        let run = Store::at(&job.state).unwrap().open("last").unwrap();
        let to = job.scratch.folder("artifacts", Caller::Own);
        let copy = |from: &str, name: &str| run.artifact(Path::new(from), Some(&to.join(name)), &[]);
        let left = copy("out", "out").unwrap();
        let left: Vec<_> = left.iter().map(|left| left.path.to_str().unwrap()).collect();
        assert_eq!(left, ["out/crooked", "out/evil", "out/pipe", "out/shadow"]);
        let names: Vec<PathBuf> = listing(&to.join("out")).into_keys().collect();
        assert_eq!(names, ["", "good", "new", "sub", "sub/low", "sub/up"].map(PathBuf::from));
        assert_eq!(copy("suid", "suid").unwrap(), []);
        assert_eq!(fs::metadata(to.join("suid")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(copy("top", "top").unwrap().len(), 1);
        assert_eq!(copy("fine", "fine").unwrap(), []);
        assert_eq!(fs::read_link(to.join("fine")).unwrap(), Path::new("suid"));
        assert!(fs::symlink_metadata(to.join("top")).is_err());
        assert_eq!(copy("shut", "shut").unwrap(), []);
        assert!(listing(&to.join("shut")).contains_key(Path::new("f")));
        for missing in ["gone", "gone/f", "out/old", "top/x", "out/good/x", "nothing"] {
            copy(missing, "x").unwrap_err();
        }
        assert!(copy("../x", "x").unwrap_err().to_string().contains("is not in the workspace"));
        // What is there stays, and a link there is not followed.
        std::os::unix::fs::symlink("/tmp/shannot-escaped", to.join("trap")).unwrap();
        assert!(copy("suid", "trap").is_err() && copy("out", "trap").is_err() && copy("suid", "fine").is_err());
        assert!(!Path::new("/tmp/shannot-escaped").exists());
        // Elsewhere, what a link leads up to is another's.
        assert_eq!(copy("up/link", "up").unwrap().len(), 1);
        assert_eq!(listing(&to).keys().filter(|path| path.starts_with("up")).count(), 0);
        // Nothing is left of what fails.
        assert!(
            fs::read_dir(&to).unwrap().all(|entry| !entry.unwrap().file_name().display().to_string().starts_with('.'))
        );
    }
}

#[test]
fn an_artifact_in_the_workspace_makes_its_folders_and_follows_no_link() {
    for caller in callers() {
        let mut job = Job::new(caller, "mkdir victim shut; echo 1 >plain; chmod 555 shut");
        let victim = job.scratch.folder("victim", caller);
        std::os::unix::fs::symlink(&victim, job.workspace.join("out")).unwrap();
        std::os::unix::fs::symlink("victim", job.workspace.join("near")).unwrap();
        let script = "rm out near plain; mkdir -p out near plain target/release; umask 077; mkdir -p target/release/own; umask 022; \
                      for f in out/key near/key plain/key target/release/app target/release/own/key shut; do [ -d $f ] || echo made >$f; done";
        if !job.run(script) {
            continue;
        }
        give(&job.state, nix::unistd::geteuid().as_raw());
        let run = Store::at(&job.state).unwrap().open("last").unwrap();
        let copy = |path: &str| run.artifact(Path::new(path), None, &[]);
        for path in ["out/key", "near/key", "plain/key"] {
            let error = copy(path).unwrap_err();
            assert!(error.to_string().contains("it is a link, a file") && error.hint().is_some(), "{error}");
        }
        assert_eq!(
            fs::read_dir(&victim).unwrap().count() + fs::read_dir(job.workspace.join("victim")).unwrap().count(),
            0
        );
        for path in ["target/release/app", "target/release/own/key"] {
            assert_eq!(copy(path).unwrap(), []);
            assert_eq!(fs::read_to_string(job.workspace.join(path)).unwrap(), "made\n");
        }
        let mode = |path: &str| fs::metadata(job.workspace.join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("target/release"), mode("target/release/own")), (0o755, 0o700));
        let error = copy("target/release").unwrap_err();
        assert!(error.to_string().contains("there is something already") && error.hint().is_some(), "{error}");
    }
}

#[test]
fn an_artifact_that_fails_halfway_leaves_nothing() {
    for caller in callers() {
        let mut job = Job::new(caller, "true");
        if !job.run("mkdir out; echo 1 >out/a; echo 1 >out/b; chmod 555 out; mkdir -p new/er/out; echo 1 >new/er/out/b")
        {
            continue;
        }
        give(&job.state, nix::unistd::geteuid().as_raw());
        let run = Store::at(&job.state).unwrap().open("last").unwrap();
        let to = job.scratch.folder("artifacts", Caller::Own);
        let copy = || run.artifact(Path::new("out"), Some(&to.join("out")), &[]);
        // A mark that no overlay of ours has.
        let marked = run.upper().join("out/b");
        for marked in [&marked, &run.upper().join("new/er/out/b")] {
            xattr::set(marked, "user.overlay.redirect", b"/etc").unwrap();
        }
        run.artifact(Path::new("new/er/out"), None, &[]).unwrap_err();
        assert_eq!(fs::read_dir(&job.workspace).unwrap().count(), 0, "nor of the folders around it");
        copy().unwrap_err();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
        xattr::remove(&marked, "user.overlay.redirect").unwrap();
        assert_eq!(copy().unwrap(), []);
        assert_eq!(listing(&to.join("out")).len(), 3);
    }
}

#[test]
fn what_the_command_could_not_see_is_in_no_artifact() {
    for caller in callers() {
        let job = crate::ci::Job::new(caller);
        git(&job.workspace, &["config", "http.https://github.com/.extraheader", "AUTHORIZATION: basic c3ecret"]);
        fs::create_dir_all(job.workspace.join("d/keys")).unwrap();
        for name in [".env", "d/keys/private", "d/shown"] {
            fs::write(job.workspace.join(name), "c3ecret").unwrap();
        }
        crate::ci::own_all(&job.home, caller);
        let hidden = [".env", "d/keys", "later"].map(|name| job.workspace.join(name));
        let to = |name: &str| job.home.join(name);
        let artifacts = [".", ".git", ".env", "d/keys/private", "d/shown", "later"];
        let places: Vec<_> = (0..).map(|index: u32| to(&format!("artifact{index}"))).take(artifacts.len()).collect();
        let mut run = job.run(&["run", "-p", "ci", "--workspace-mode", "overlay"]);
        for (name, place) in artifacts.iter().zip(&places) {
            run = run.args(["--artifact", &format!("{name}:{}", place.display())]);
        }
        for path in &hidden {
            run = run.args([std::ffi::OsStr::new("--hide"), path.as_os_str()]);
        }
        // What it makes itself at such a name is its own.
        let result = run.args(["--", "sh", "-c", "cat .env d/keys/*; echo x >d/new; echo made >later"]).output();
        assert!(!result.stdout.contains("c3ecret"), "{result:?}");
        let result = result.expect_code(1);
        for name in [".env", "d/keys", "d/keys/private", ".git/config"] {
            assert!(
                result.stderr.contains(&format!("artifact {name}: it was hidden from the command\n")),
                "no {name}: {result:?}"
            );
        }
        assert!(!places[2].exists() && !places[3].exists(), "{result:?}");
        assert_eq!(fs::read_to_string(&places[4]).unwrap(), "c3ecret");
        assert_eq!(fs::read_to_string(&places[5]).unwrap(), "made\n");
        let (all, repository) = (listing(&places[0]), listing(&places[1]));
        assert!(all.contains_key(Path::new("d/new")) && all.contains_key(Path::new(".git/HEAD")), "{all:#?}");
        assert!(repository.contains_key(Path::new("HEAD")) && !repository.contains_key(Path::new("config")));
        for name in [".env", "d/keys", ".git/config"] {
            assert!(!all.contains_key(Path::new(name)), "{name}");
        }
        job.run(&["changes", "discard", "last"]).output().expect_code(0);
    }
}

#[test]
fn an_artifact_with_a_file_that_cannot_be_read_leaves_nothing() {
    for caller in callers() {
        let job = crate::ci::Job::new(caller);
        fs::create_dir_all(job.workspace.join("out/sub")).unwrap();
        for name in ["a", "sub/dark", "z"] {
            fs::write(job.workspace.join("out").join(name), "1").unwrap();
        }
        crate::ci::own_all(&job.home, caller);
        let dark = job.workspace.join("out/sub/dark");
        fs::set_permissions(&dark, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        let to = job.home.join("artifact");
        let artifact = format!("out:{}", to.display());
        // In the workspace as well: below folders that only the command has.
        let words = ["--artifact", &artifact, "--artifact", "new/er/pipe", "--", "sh", "-c"];
        let script = "echo >out/made; mkdir -p new/er; mkdir new/er/pipe; echo 1 >new/er/pipe/f";
        let run = job.run(&["run", "-p", "ci", "--workspace-mode", "overlay"]).args(words).args([script]);
        let code = run.output().code;
        assert!(job.workspace.join("new/er/pipe/f").exists());
        let reads_all = crate::support::is_root() && caller == Caller::Own;
        assert_eq!((code, to.exists()), if reads_all { (0, true) } else { (1, false) }, "{caller:?}");
        let names = fs::read_dir(&job.home).unwrap().map(|entry| entry.unwrap().file_name().display().to_string());
        assert!(names.into_iter().all(|name| !name.starts_with(".shannot")));
        job.run(&["changes", "discard", "last"]).output().expect_code(0);
    }
}

#[test]
fn an_artifact_may_come_to_lie_in_what_it_is_copied_from() {
    let mut job = Job::new(Caller::Own, "mkdir -p d; echo 1 >d/f");
    if job.run("echo 2 >d/g") {
        let run = Store::at(&job.state).unwrap().open("last").unwrap();
        assert_eq!(run.artifact(Path::new("."), Some(&job.workspace.join("d/copy")), &[]).unwrap(), []);
        let names: Vec<PathBuf> = listing(&job.workspace.join("d/copy")).into_keys().collect();
        assert_eq!(names, ["", "d", "d/f", "d/g"].map(PathBuf::from));
    }
}

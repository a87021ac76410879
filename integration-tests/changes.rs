//! Changes of an overlay: nothing of the workspace changes until they are applied, and then it is what the command saw.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shannot::changes::{Run, Store};

use crate::support::{Caller, NOBODY, Result, Scratch, Shannot, binary, bwrap_binary, callers, own, tool};

/// A workspace, and a command that saw it through an overlay.
pub struct Job {
    pub caller: Caller,
    pub scratch: Scratch,
    pub workspace: PathBuf,
    pub state: PathBuf,
    pub id: String,
}

/// A shell script of the caller's, outside of any sandbox.
pub fn outside(caller: Caller, folder: &Path, script: &str) -> Result {
    let mut run = Shannot::through(caller, Path::new("/bin/sh"), ["-ec", script]);
    run.command.current_dir(folder);
    run.output()
}

pub fn own_all(path: &Path, caller: Caller) {
    if caller == Caller::Nobody {
        for entry in walk(path, true).0 {
            std::os::unix::fs::lchown(&entry, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

/// Gives the store and its runs to a user, but not what is in their upper directories.
pub fn give(state: &Path, user: u32) {
    let inside = |path: PathBuf| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    let runs = state.join("shannot/runs");
    let folders = [state.to_owned(), state.join("shannot"), runs.clone()].into_iter().filter(|path| path.exists());
    for path in folders.chain(inside(runs.clone())).chain(inside(runs).flat_map(inside)) {
        std::os::unix::fs::lchown(&path, Some(user), Some(user)).unwrap();
    }
}

/// What was locked to its owner, with the permissions that it gets back.
#[derive(Default)]
pub struct Locked(Vec<(PathBuf, fs::Permissions)>);

impl Locked {
    /// Root looks into everything; others open what is theirs, as long as this lives.
    fn open(&mut self, path: &Path, metadata: &fs::Metadata) {
        let needed = if metadata.is_dir() { 0o700 } else { 0o400 };
        let mode = metadata.permissions().mode();
        if !crate::support::is_root() && mode & needed != needed {
            self.0.push((path.to_owned(), metadata.permissions()));
            fs::set_permissions(path, fs::Permissions::from_mode(mode | needed)).unwrap();
        }
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        self.0.iter().find(|(locked, _)| locked == path).map(|(_, permissions)| permissions.mode())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for (path, permissions) in self.0.drain(..).rev() {
            fs::set_permissions(path, permissions).unwrap();
        }
    }
}

/// All paths of a tree, links not followed.
fn walk(top: &Path, opens: bool) -> (Vec<PathBuf>, Locked) {
    let mut found = vec![top.to_owned()];
    let mut locked = Locked::default();
    let mut next = 0;
    while next < found.len() {
        let metadata = fs::symlink_metadata(&found[next]).unwrap();
        if opens && (metadata.is_dir() || metadata.is_file()) {
            locked.open(&found[next], &metadata);
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(&found[next]);
            assert!(entries.is_ok() || !opens, "{entries:?}");
            found.extend(entries.into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
        next += 1;
    }
    (found, locked)
}

impl Job {
    /// `prepare` makes what is in the workspace.
    pub fn new(caller: Caller, prepare: &str) -> Self {
        let scratch = Scratch::new();
        let workspace = scratch.folder("workspace", caller);
        outside(caller, &workspace, &format!("umask 022; {prepare}")).expect_code(0);
        let state = scratch.path().join("state");
        fs::create_dir(&state).unwrap();
        Self { caller, scratch, workspace, state, id: String::new() }
    }

    /// A new run, whose folders belong to the caller.
    pub fn begin(&mut self) -> Run {
        give(&self.state, nix::unistd::geteuid().as_raw());
        let run = Store::at(&self.state).unwrap().create(&self.workspace).unwrap();
        self.id = run.id().to_owned();
        self.give_back();
        run
    }

    /// Lets the caller have what the test has made in the store.
    pub fn give_back(&self) {
        let own = nix::unistd::geteuid().as_raw();
        give(&self.state, if self.caller == Caller::Nobody { NOBODY } else { own });
    }

    /// A shell script in the overlay, as the caller without capabilities: `shannot run` has no overlays yet.
    pub fn inside(&self, run: &Run, script: &str) -> Result {
        let mut shell =
            Shannot::through(self.caller, bwrap_binary(), ["--bind", "/", "/", "--dev", "/dev", "--unshare-pid"]);
        shell.command.args(["--cap-drop", "ALL", "--overlay-src"]).arg(&self.workspace);
        shell.command.arg("--overlay").args([run.upper(), run.work(), self.workspace.clone()]);
        shell.command.arg("--chdir").arg(&self.workspace).args(["sh", "-c", script]);
        shell.output()
    }

    /// Runs a script in the overlay. `false`: this caller has no overlays here.
    pub fn run(&mut self, script: &str) -> bool {
        self.output(script).is_some()
    }

    /// What it printed.
    pub fn output(&mut self, script: &str) -> Option<String> {
        // Who opens a folder changes it, and that is a conflict.
        let before = listing_as(&self.workspace, false);
        let mut run = self.begin();
        let result = self.inside(&run, &format!("umask 022; set -e; {script}"));
        if result.code != 0 && result.stderr.starts_with("bwrap: Can't make overlay") {
            crate::support::skip(&format!("no overlayfs for {:?}: {}", self.caller, result.stderr));
            return None;
        }
        let result = result.expect_code(0);
        assert_eq!(listing_as(&self.workspace, false), before, "changed before it was applied");
        run.finish(0).unwrap();
        drop(run);
        self.give_back();
        Some(result.stdout)
    }

    pub fn command(&self, arguments: &[&str]) -> Shannot {
        Shannot::new(self.caller).env("XDG_STATE_HOME", self.state.to_str().unwrap()).args(["changes"]).args(arguments)
    }

    pub fn changes(&self, arguments: &[&str]) -> Result {
        self.command(arguments).output()
    }

    pub fn show(&self) -> String {
        self.changes(&["show", "last"]).expect_code(0).stdout
    }
}

/// Path, kind and permissions, content or text of everything below a folder; names of the same file as groups.
pub fn listing(top: &Path) -> BTreeMap<PathBuf, String> {
    listing_as(top, true)
}

/// Where nothing may be opened, what is locked is not looked into.
fn listing_as(top: &Path, opens: bool) -> BTreeMap<PathBuf, String> {
    let mut list = BTreeMap::new();
    let mut names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let (mut paths, locked) = walk(top, opens);
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_file() {
            let first = names.entry(metadata.ino()).or_insert_with(|| path.clone());
            format!("{:?} {:?}", fs::read(&path).ok(), first.strip_prefix(top).unwrap())
        } else {
            String::new()
        };
        let mode = locked.mode(&path).unwrap_or_else(|| metadata.permissions().mode());
        let mode = if metadata.is_symlink() { 0 } else { mode & 0o1777 };
        let kind = metadata.file_type();
        list.insert(path.strip_prefix(top).unwrap().to_owned(), format!("{kind:?} {mode:o} {content}"));
    }
    list
}

#[test]
fn what_was_changed_is_shown_and_applied() {
    for caller in callers() {
        let mut job = Job::new(
            caller,
            "echo 1 >edited; echo 1 >gone; mkdir -p d/e; echo 1 >d/e/f; echo 1 >d/x; ln -s edited link; echo 1 >typed; \
             mkdir folder; echo 1 >folder/y; echo 1 >mode; echo same >same; mkdir opaque; echo 1 >opaque/old; \
             echo 1 >opaque/kept; mkdir shut; touch -d 2001-01-01 edited",
        );
        let script = "echo 2 >edited; rm gone; mv d moved; ln -sfn other link; rm typed; mkdir typed; echo 2 >typed/z; \
                      rm -r folder; echo 2 >folder; chmod 750 mode; echo same >same; rm -r opaque; mkdir opaque; \
                      echo 1 >opaque/kept; echo 2 >opaque/new; echo 2 >one; ln one two; ln -s /nowhere new; \
                      chmod 700 shut; touch -d 2002-02-02 one; echo 3 >\"$(printf 'a\\nb')\"";
        if !job.run(script) {
            continue;
        }
        let expected = "A  a\\nb\nD  d/\nM  edited\nT  folder\nD  gone\nM  link -> other\nm  mode  (mode 0750)\nA  moved/\nA  moved/e/\n\
                        A  moved/e/f\nA  moved/x\nA  new -> /nowhere\nA  one\nA  opaque/new\nD  opaque/old\nm  shut/  (mode 0700)\nA  two\nT  typed/\n\
                        A  typed/z\n";
        assert_eq!(job.show(), expected);
        let shown = job.changes(&["show", &job.id, "--json"]).expect_code(0);
        let shown: Vec<Value> = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown.len(), expected.lines().count());
        assert_eq!(shown[0]["path"], "a\nb");
        assert_eq!(
            shown[6],
            json!({"path": "mode", "change": "mode", "type": "file", "mode": "0750", "conflict": false})
        );
        job.changes(&["list"]).expect_code(0).expect_stdout(&format!("{}  finished       0  ", job.id));

        assert_eq!(job.changes(&["apply", "last"]).expect_code(0).stdout, expected);
        let list = listing(&job.workspace);
        assert!(!list.contains_key(Path::new("d")) && !list.contains_key(Path::new("opaque/old")), "{list:#?}");
        assert_eq!(fs::read_to_string(job.workspace.join("edited")).unwrap(), "2\n");
        let one = fs::metadata(job.workspace.join("one")).unwrap();
        assert_eq!(one.ino(), fs::metadata(job.workspace.join("two")).unwrap().ino());
        assert_eq!(one.mtime(), 1_012_608_000);
        assert_eq!(one.uid(), fs::metadata(&job.workspace).unwrap().uid());
        assert_eq!(job.show(), "");

        job.changes(&["apply", "last"]).expect_code(0).expect_stderr("was applied already");
        job.changes(&["list", "--json"]).expect_code(0).expect_stdout("\"state\": \"applied\"");
        assert_eq!(job.changes(&["discard", &job.id[..10]]).expect_code(0).stdout, format!("{}: discarded\n", job.id));
        job.changes(&["show", "last"]).expect_code(125).expect_stderr("there is no run \"last\"");
        assert_eq!(fs::read_dir(job.state.join("shannot/runs")).unwrap().count(), 0);
        assert_eq!(listing(&job.workspace), list);
    }
}

#[test]
fn the_workspace_is_what_the_command_saw() {
    if !crate::support::is_root() {
        eprintln!("skipped: who is not root must open what is locked to look at it, which is a change");
        return;
    }
    for caller in callers() {
        // 10,000 files go, some come back, folders are renamed, without permissions, and files are links of each other.
        let mut job = Job::new(
            caller,
            "mkdir many deep; (cd many; seq 10000 | xargs touch); mkdir -p deep/a/b/c; echo 1 >deep/a/b/c/f; echo 1 >l1; \
             ln l1 l2; ln l1 l3; mkdir ro; echo 1 >ro/f; chmod 555 ro; echo secret >none; chmod 0 none; echo '#' >many.sh",
        );
        let script = "rm -r many; mkdir many; echo 1 >many/7; mv deep/a deep/z; rm deep/z/b/c/f; echo 2 >l1; chmod 755 ro; \
                      echo 2 >ro/g; rm ro/f; chmod 555 ro; mkdir shut; echo 1 >shut/f; chmod 0 shut; chmod 1777 deep; \
                      truncate -s 1T hole; echo end >>hole; chmod 644 none; echo 2 >none; chmod 0 none; \
                      ln many.sh other.sh; chmod 755 many.sh";
        if !job.run(script) {
            continue;
        }
        job.changes(&["apply", "last"]).expect_code(0);
        let list = listing(&job.workspace.join("many"));
        assert_eq!(list.len(), 2);
        let mode = |name: &str| fs::metadata(job.workspace.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("ro"), mode("shut"), mode("deep"), mode("none")), (0o555, 0, 0o1777, 0));
        assert_eq!(fs::read_to_string(job.workspace.join("shut/f")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(job.workspace.join("ro/g")).unwrap(), "2\n");
        assert!(!job.workspace.join("ro/f").exists() && job.workspace.join("deep/z/b/c").is_dir());
        let hole = fs::metadata(job.workspace.join("hole")).unwrap();
        assert!(hole.len() > 1 << 40 && hole.blocks() < 100, "{hole:?}");
        let inode = |name: &str| fs::metadata(job.workspace.join(name)).unwrap().ino();
        assert_ne!(inode("l1"), inode("l2"));
        assert_eq!(inode("l2"), inode("l3"));
        assert_eq!(inode("many.sh"), inode("other.sh"));
    }
}

#[test]
fn what_git_executes_is_never_changed() {
    for caller in callers() {
        let mut job = Job::new(
            caller,
            "mkdir -p .git/hooks sub; echo 1 >.git/config; echo 1 >.git/hooks/h; echo 1 >.git/HEAD; echo 1 >file",
        );
        let script = "echo evil >.git/config; echo evil >.git/hooks/post-commit; rm .git/hooks/h; echo 2 >.git/HEAD; \
                      echo ../evil >.git/commondir; echo 2 >file; ln .git/config linked; echo more >>linked";
        if !job.run(script) {
            continue;
        }
        let before = listing(&job.workspace.join(".git/hooks"));
        let result = job.changes(&["apply", "last"]).expect_code(1).expect_stderr("but for 4 that can't be");
        let expected = "M  .git/HEAD\n!  .git/commondir  (protected)\n!  .git/config  (protected)\n\
                        !  .git/hooks/h  (protected)\n!  .git/hooks/post-commit  (protected)\nM  file\nA  linked\n";
        assert_eq!(result.stdout, expected);
        assert_eq!(listing(&job.workspace.join(".git/hooks")), before);
        assert_eq!(fs::read_to_string(job.workspace.join(".git/config")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(job.workspace.join("file")).unwrap(), "2\n");
        let links = fs::metadata(job.workspace.join(".git/config")).unwrap().nlink();
        assert_eq!(links, 1, "another name would be a way to it");

        // The folder around them.
        for (script, code) in [
            ("rm -r .git", 1),
            ("rm -r .git; echo gitdir: /tmp/evil >.git", 1),
            ("rm -r .git; mkdir .git; echo evil >.git/config", 1),
            ("mv .git other; ln -s other .git", 1),
            ("rm -r sub; mkdir sub; chmod 700 .git", 0),
        ] {
            let config = fs::metadata(job.workspace.join(".git/config")).unwrap().ino();
            assert!(job.run(script));
            job.changes(&["apply", "last"]).expect_code(code);
            assert_eq!(fs::metadata(job.workspace.join(".git/config")).unwrap().ino(), config, "{script}");
            assert_eq!(listing(&job.workspace.join(".git/hooks")), before, "{script}");
        }
        // A worktree's .git is a file, and where there is none, none is made.
        for prepare in ["echo gitdir: x >.git", "true"] {
            let mut job = Job::new(caller, prepare);
            for script in ["rm -f .git; echo gitdir: /tmp/evil >.git", "rm -f .git; ln -s /tmp .git"] {
                let before = listing(&job.workspace);
                assert!(job.run(script));
                job.changes(&["apply", "last"]).expect_code(1).expect_stdout("  (protected)\n");
                assert_eq!(listing(&job.workspace), before);
            }
        }
    }
}

#[test]
fn what_was_changed_meanwhile_is_not_lost() {
    for caller in callers() {
        let mut job = Job::new(caller, "echo 1 >a; echo 1 >b; mkdir d; echo 1 >d/f; mkdir e; echo 1 >e/f");
        if !job.run("echo 2 >a; echo 2 >b; rm -r d; echo 2 >e/new; echo 2 >c") {
            continue;
        }
        outside(caller, &job.workspace, "echo mine >a; echo mine >d/g; echo mine >e/other; echo mine >c")
            .expect_code(0);
        let before = listing(&job.workspace);
        let refused = job.changes(&["apply", "last"]).expect_code(1);
        let expected =
            ["M  a", "M  c", "D  d/"].map(|line| format!("{line}  (changed in the workspace since the run started)\n"));
        assert_eq!(refused.stdout, expected.concat());
        refused.expect_stderr("nothing was applied").expect_stderr("hint: --force");
        assert_eq!(listing(&job.workspace), before);
        // What is not concerned can be applied alone.
        job.changes(&["apply", "last", "--only", "b", "e"]).expect_code(0);
        let after = listing(&job.workspace);
        assert!(after.contains_key(Path::new("e/new")) && after.contains_key(Path::new("e/other")), "{after:#?}");
        assert_eq!(after[Path::new("a")], before[Path::new("a")]);
        job.changes(&["apply", "last", "--only", "nothing"]).expect_code(125).expect_stderr("nothing was changed at");
        job.changes(&["apply", "last", "--only", "../x"]).expect_code(125).expect_stderr("is not in the workspace");
        job.changes(&["apply", "last", "--force"]).expect_code(0);
        assert_eq!(fs::read_to_string(job.workspace.join("a")).unwrap(), "2\n");
        assert!(!job.workspace.join("d").exists());
    }
}

#[test]
fn an_index_that_looking_has_written_is_told_from_work() {
    for caller in callers() {
        let mut job = Job::new(caller, "mkdir .git; echo 1 >.git/index; echo 1 >a");
        if !job.run("echo 2 >.git/index; echo 2 >a") {
            continue;
        }
        outside(caller, &job.workspace, "echo mine >.git/index").expect_code(0);
        let refused = job.changes(&["apply", "last"]).expect_code(1);
        refused.expect_stderr("hint: `git status` alone writes .git/index").expect_stderr("hint: --force");
        outside(caller, &job.workspace, "echo mine >a").expect_code(0);
        let refused = job.changes(&["apply", "last"]).expect_code(1).expect_stderr("hint: --force");
        assert!(!refused.stderr.contains("git status"), "{refused:?}");
    }
}

#[test]
fn runs_are_kept_apart_and_found_again() {
    let caller = Caller::Own;
    let mut job = Job::new(caller, "echo 1 >a");
    let first = job.begin();
    let second = job.begin();
    assert_ne!((first.id(), first.upper()), (second.id(), second.upper()));
    assert_eq!(fs::metadata(first.upper().parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    job.changes(&["show", first.id()]).expect_code(125).expect_stderr("is in use");
    job.changes(&["discard", first.id()]).expect_code(125).expect_stderr("is in use");
    let list = job.changes(&["list"]).expect_code(0).stdout;
    assert_eq!(list.matches("running").count(), 2, "{list}");
    let (first_id, second_id) = (first.id().to_owned(), second.id().to_owned());
    fs::write(first.upper().join("b"), "").unwrap();
    drop((first, second));
    job.changes(&["show", "20"]).expect_code(125).expect_stderr("is the beginning of several runs");
    job.changes(&["show", &first_id]).expect_code(0).expect_stdout("A  b").expect_stderr("was interrupted");
    job.changes(&["show", "../.."]).expect_code(125).expect_stderr("there is no run");
    // Without changes and without a process, once it is old.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let folder = job.state.join("shannot/runs");
    for id in [&first_id, &second_id] {
        fs::File::open(folder.join(id)).unwrap().set_modified(old).unwrap();
    }
    let third = job.begin();
    let kept = job.changes(&["list"]).expect_code(0).stdout;
    assert!(kept.contains(&first_id) && !kept.contains(&second_id) && kept.contains(third.id()), "{kept}");

    // Where overlayfs can't work.
    let inside = Store::at(&job.workspace.join("state")).unwrap().create(&job.workspace).unwrap_err();
    assert!(inside.to_string().contains("it lies in the workspace") && inside.hint().is_some(), "{inside}");
    let other = job.scratch.folder("other", caller);
    fs::create_dir(other.join("shannot")).unwrap();
    fs::set_permissions(other.join("shannot"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Store::at(&other).unwrap_err().hint().is_some());
    // Another folder at the same path is another workspace.
    drop(third);
    fs::rename(&job.workspace, job.scratch.path().join("away")).unwrap();
    fs::create_dir(&job.workspace).unwrap();
    job.changes(&["apply", &first_id]).expect_code(125).expect_stderr("is not the folder that the run was started in");
    fs::remove_dir(&job.workspace).unwrap();
    std::os::unix::fs::symlink("away", &job.workspace).unwrap();
    job.changes(&["apply", &first_id]).expect_code(125);
    assert!(!job.scratch.path().join("away/b").exists());
    own(&job.state, caller);
    assert!(job.id.len() == 20 && Path::new(&job.id).as_os_str().as_bytes()[8] == b'-');
}

#[test]
fn programs_get_paths_as_they_are() {
    let scratch = Scratch::new();
    let workspace = scratch.folder(r"back\slash", Caller::Own);
    let state = scratch.folder("state", Caller::Own);
    Store::at(&state).unwrap().create(&workspace).unwrap();
    let list = |words: &[&str]| {
        Shannot::new(Caller::Own).env("XDG_STATE_HOME", state.to_str().unwrap()).args(["changes", "list"]).args(words)
    };
    let runs: Value = serde_json::from_str(&list(&["--json"]).output().expect_code(0).stdout).unwrap();
    assert_eq!(runs[0]["workspace"], workspace.to_str().unwrap());
    list(&[]).output().expect_code(0).expect_stdout(r"/back\\slash");
}

#[test]
fn a_store_that_overlayfs_does_not_take_is_told_with_the_cure() {
    let Some(strace) = tool("strace") else { return };
    let scratch = Scratch::new();
    let (workspace, state) = (scratch.folder("workspace", Caller::Own), scratch.folder("state", Caller::Own));
    let refused = (1..80).find_map(|occurrence| {
        let inject = format!("inject=mount:error=EINVAL:when={occurrence}");
        let mut run = Shannot::through(
            Caller::Own,
            &strace,
            ["-f", "-qq", "-o", "/dev/null", "-e", "trace=mount", "-e", &inject],
        )
        .args([binary()])
        .args(["run", "-p", "ci", "--workspace-mode", "overlay", "--", "true"])
        .env("XDG_STATE_HOME", state.to_str().unwrap());
        run.command.current_dir(&workspace);
        Some(run.output())
            .filter(|result| result.stderr.contains(&format!("cannot mount {workspace:?}: Invalid argument")))
    });
    let refused = refused.expect("none of the mounts is the overlay's").expect_code(125);
    refused.expect_stderr("hint: not every file system can be the top of an overlay");
}

//! The private folder of the rung landlock: whatever a command leaves in it goes, nothing beside it does, and it is the one that
//! was made.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::*;

/// Few descriptors, and a stack that recursion would soon have used up. Without optimization the command line needs more.
const SCARCE: &str =
    if cfg!(debug_assertions) { "ulimit -n 20; ulimit -s 1024;" } else { "ulimit -n 20; ulimit -s 256;" };

/// So many hundred folders in one another, and in each hundredth a file, a link, and a folder that its owner can't list.
fn deep(hundreds: u32) -> String {
    let part = ["d"; 100].join("/");
    format!(
        "cd $TMPDIR; pwd; i=0; while [ $i -lt {hundreds} ]; do mkdir -p {part}; : > file; ln -s /etc link; \
         (umask 0477; mkdir closed; mkdir closed/in); cd -P {part} || exit 1; i=$((i+1)); done 2>/dev/null; echo $i"
    )
}

/// A run below a folder of its own as TMPDIR.
struct Case {
    caller: Caller,
    scratch: Scratch,
    parent: PathBuf,
}

impl Case {
    /// One for each caller that the rung is there for.
    fn all() -> Vec<Self> {
        let new = |caller| {
            let scratch = Scratch::new();
            let parent = scratch.folder("parent", caller);
            let case = Self { caller, scratch, parent };
            let result = case.run("true").output();
            (result.code == 0).then_some(case)
        };
        let cases: Vec<Self> = callers().into_iter().filter_map(new).collect();
        if cases.is_empty() {
            skip("no Landlock here");
        }
        cases
    }

    fn run(&self, script: &str) -> Shannot {
        self.run_with(&[], script)
    }

    /// With other options.
    fn run_with(&self, options: &[&str], script: &str) -> Shannot {
        let start = format!("{SCARCE} exec \"$@\"");
        let words = ["-c", &start, "sh", binary().to_str().unwrap()];
        let run = Shannot::through(self.caller, Path::new("/bin/sh"), words).profile(&base_profile());
        let run = run.args(["run", "--backend", "landlock"]).args(options).args(["--", "sh", "-c", script]);
        run.env("TMPDIR", self.parent.to_str().unwrap())
    }

    fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.parent).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// As if a run had been killed an hour ago.
    fn leave(&self) -> PathBuf {
        let left = self.parent.join("shannot-00000000deadbeef");
        fs::create_dir(&left).unwrap();
        own(&left, self.caller);
        left
    }

    fn age(&self, left: &Path) {
        let hour = SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(left).unwrap().set_modified(hour).unwrap();
    }
}

#[test]
fn a_tree_deeper_than_any_path_goes_with_the_run() {
    for case in Case::all() {
        let result = case.run(&deep(30)).output().expect_code(0).expect_stdout("\n30\n");
        assert!(result.stdout.contains(case.parent.to_str().unwrap()), "{result:?}");
        assert!(!result.stderr.contains("cannot remove"), "{result:?}");
        assert_eq!(case.left(), [] as [PathBuf; 0], "{:?}", case.caller);
    }
}

#[test]
fn a_tree_deeper_than_any_path_goes_when_the_supervisor_is_killed() {
    for case in Case::all() {
        let mut run = case.run(&format!("{}; sleep 600", deep(30)));
        let mut child = run.command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(std::result::Result::unwrap);
        assert!(lines.any(|line| line == "30"));
        assert_eq!(case.left().len(), 1);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        let start = Instant::now();
        while !case.left().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}: {:?}", case.caller, case.left());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_tree_deeper_than_any_path_goes_with_the_next_run() {
    for case in Case::all() {
        let left = case.leave();
        // Made by a shell outside, with what no command inside can make: folders with something in them and no rights.
        let outside = case.scratch.folder("outside", case.caller);
        fs::write(outside.join("file"), "precious").unwrap();
        let mut shell = Shannot::through(case.caller, Path::new("/bin/sh"), ["-c", &deep(200)]);
        shell.command.env("TMPDIR", &left);
        shell.output().expect_code(0).expect_stdout("\n200\n");
        for (index, locked) in ["a", "a/b"].iter().enumerate() {
            fs::create_dir(left.join(locked)).unwrap();
            own(&left.join(locked), case.caller);
            symlink(&outside, left.join(locked).join(format!("link{index}"))).unwrap();
        }
        for locked in ["a/b", "a", ""] {
            fs::set_permissions(left.join(locked), Permissions::from_mode(0o000)).unwrap();
        }
        fs::set_permissions(&outside, Permissions::from_mode(0o500)).unwrap();
        if !is_root() {
            fs::set_permissions(&left, Permissions::from_mode(0o700)).unwrap();
        }
        case.age(&left);
        case.run("true").output().expect_code(0);
        assert_eq!(case.left(), [] as [PathBuf; 0], "{:?}", case.caller);
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
        assert_eq!(fs::metadata(&outside).unwrap().permissions().mode() & 0o777, 0o500);
    }
}

#[test]
fn a_folder_with_very_many_files_goes_with_the_run() {
    for case in Case::all() {
        let script = "cd $TMPDIR; i=0; while [ $i -lt 30000 ]; do : > file$i; i=$((i+1)); done; ls | wc -l";
        let result = case.run(script).output().expect_code(0).expect_stdout("30000");
        assert!(!result.stderr.contains("cannot remove"), "{result:?}");
        assert_eq!(case.left(), [] as [PathBuf; 0], "{:?}", case.caller);
    }
}

#[test]
fn what_cannot_be_removed_is_reported() {
    let Some(chattr) = tool("chattr") else { return };
    for case in Case::all() {
        let set =
            |flag: &str, path: &Path| Command::new(&chattr).arg(flag).arg(path).status().is_ok_and(|s| s.success());
        let mut run = case.run_with(&["--report", "fd:1"], "cd $TMPDIR; mkdir -p a/b; : > a/b/kept; pwd; read word");
        let (word, writer) = std::io::pipe().unwrap();
        let mut child = run.command.stdin(word).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(std::result::Result::unwrap);
        let kept = PathBuf::from(lines.next().unwrap()).join("a/b/kept");
        let is_set = set("+i", &kept);
        drop(writer);
        let report: Value = serde_json::from_str(&lines.collect::<String>()).unwrap();
        child.wait().unwrap();
        if !is_set {
            assert!(case.left().is_empty());
            // On a file system that has no such attribute, and for others than root.
            eprintln!("skipped: no file can be made immutable here");
            return;
        }
        assert_eq!(report["outcome"]["left_behind"], json!(true), "{report:#}");
        let [left] = &case.left()[..] else { panic!("{:?}", case.left()) };
        let found = Command::new("find").arg(left).args(["-name", "kept"]).output().unwrap().stdout;
        assert!(set("-i", Path::new(String::from_utf8_lossy(&found).trim())));
        case.age(left);
        case.run("true").output().expect_code(0);
        assert!(case.left().is_empty());
    }
}

#[test]
fn a_folder_that_others_could_swap_is_not_made_use_of() {
    if !is_root() {
        eprintln!("skipped: one user can't make another's folders");
        return;
    }
    for case in Case::all() {
        let uses = |parent: &Path| {
            let run = case.run("echo $TMPDIR").env("TMPDIR", parent.to_str().unwrap());
            let result = run.output().expect_code(0);
            result.stdout.starts_with(parent.to_str().unwrap())
        };
        let inner = case.parent.join("inner");
        fs::create_dir(&inner).unwrap();
        own(&inner, case.caller);
        assert!(uses(&case.parent) && uses(&inner), "{:?}", case.caller);
        let mode = |mode| fs::set_permissions(&case.parent, Permissions::from_mode(mode)).unwrap();
        for shared in [0o777, 0o775] {
            mode(shared);
            assert!(!uses(&case.parent) && !uses(&inner), "{:?}: {shared:o}", case.caller);
        }
        mode(0o1777);
        assert!(uses(&case.parent) && uses(&inner), "{:?}", case.caller);
        std::os::unix::fs::chown(&case.parent, Some(1234), None).unwrap();
        for shared in [0o1777, 0o755] {
            mode(shared);
            assert!(!uses(&case.parent) && !uses(&inner), "{:?}: {shared:o}", case.caller);
        }
    }
}

#[test]
fn a_folder_that_is_swapped_before_the_launch_is_not_made_use_of() {
    let Some(strace) = tool("strace") else { return };
    for case in Case::all() {
        let run = |swap: &dyn Fn(&Path)| {
            let profile = case.scratch.file("p.json", base_profile().to_string());
            let words = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=landlock_create_ruleset"];
            let run = Shannot::through(case.caller, &strace, words);
            let run = run.args(["-e", "inject=landlock_create_ruleset:delay_enter=1000000"]).args([binary()]);
            let run = run.args(["-p"]).args([profile]).args(["run", "--backend", "landlock", "--"]);
            let mut run = run.args(["sh", "-c", "echo x > $TMPDIR/new; ls $TMPDIR"]);
            run.command.env("TMPDIR", &case.parent).stdin(Stdio::null());
            let child = run.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let start = Instant::now();
            let made = loop {
                match &case.left()[..] {
                    [made] if made.join("tmp").is_dir() => break made.clone(),
                    _ => assert!(start.elapsed() < Duration::from_secs(20), "nothing is made"),
                }
            };
            swap(&made);
            Result::new(child.wait_with_output().unwrap())
        };
        run(&|_| ()).expect_code(0).expect_stdout("new");
        assert!(case.left().is_empty(), "{:?}", case.caller);
        let other = case.scratch.folder("other", case.caller);
        fs::write(other.join("secret"), "secret").unwrap();
        let was = case.scratch.path().join("was");
        let result = run(&|made| {
            fs::rename(made, &was).unwrap();
            symlink(&other, made).unwrap();
        });
        let result = result.expect_code(125).expect_stderr("private folder").expect_stderr("was replaced meanwhile");
        assert_eq!(result.stdout, "", "{:?}", case.caller);
        // What is there by now is not ours.
        assert_eq!(case.left().len(), 1, "{:?}", case.caller);
        assert_eq!(fs::read_to_string(other.join("secret")).unwrap(), "secret");
    }
}

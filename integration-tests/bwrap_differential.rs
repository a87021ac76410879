//! `shannot-bwrap` beside Debian's bwrap: random command lines of file system options, each run by both on trees of the
//! same layout, give the same exit code, the same tree inside with the same mount flags, and the same changes on the
//! host. What may differ is in [`ALLOWED`], and nothing else.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use crate::support::*;

/// What runs inside.
const INSPECT: &str = include_str!("bwrap_differential.py");

const DESTS: &[&str] = &[
    "/mnt/a",
    "/mnt/a/b",
    "/mnt/a/b/c",
    "/mnt/d",
    "/mnt/d/e",
    "/mnt/d/new/o",
    "/mnt/f",
    "/mnt/f/below",
    "/mnt/link",
    "/mnt/link/new",
    "/mnt/link/e",
    "/mnt/far/new",
    "/mnt/absolute/new",
    "/mnt/over/new",
    "/mnt/nowhere",
    "/mnt/nowhere/new",
    "/mnt/loop/new",
    "/mnt/d/../a",
    "mnt/a",
    "//mnt//d/./e/",
    "/mnt/closed/new",
    "/mnt/socket",
    "/mnt",
];
/// `@` is the scratch tree, which is also the directory that relative ones start at.
const SOURCES: &[&str] = &[
    "@/host",
    "@/host/d",
    "@/host/d/e",
    "@/host/f",
    "@/host/d/f",
    "@/host/link",
    "@/host/link/f",
    "@/host/file-link",
    "@/host/nowhere",
    "@/host/missing",
    "@/host/f/below",
    "@/host/loop",
    "@/host/closed",
    "@/host/socket",
    "host/d",
    "@/other",
    "@/other/a",
    "/dev/null",
    "/dev/zero",
    "/sys",
];
const BINDS: &[&str] = &["--bind", "--ro-bind", "--dev-bind", "--bind-try", "--ro-bind-try", "--dev-bind-try"];
const PERMS: &[&str] = &["0700", "0755", "0711", "1777", "0750", "0640", "0604", "600"];
/// Owners keep their rights, or an ordinary user could not delete the tree.
const CHMODS: &[&str] = &["0700", "0755", "0711", "1777"];
const TEXTS: &[&str] = &["d", "a", "../mnt/d", "../../mnt/d", "/mnt/d", "nothing", "/usr", "link"];

/// Words of one command line but for its first and its last ones; `FD` is a descriptor of its own with data.
type Words = Vec<&'static str>;

fn operation() -> impl Strategy<Value = Words> {
    let dest = || select(DESTS);
    let perms = || prop_oneof![2 => Just(vec![]), 1 => select(PERMS).prop_map(|mode| vec!["--perms", mode])];
    let size =
        prop_oneof![2 => Just(vec![]), 1 => select(vec!["4096", "0x10000"]).prop_map(|size| vec!["--size", size])];
    let data = select(vec!["--file", "--bind-data", "--ro-bind-data"]);
    let kernel = select(vec!["--proc", "--dev", "--mqueue"]);
    prop_oneof![
        8 => (select(BINDS), select(SOURCES), dest()).prop_map(|(how, source, dest)| vec![how, source, dest]),
        3 => (perms(), size, dest()).prop_map(|(perms, size, dest)| [perms, size, vec!["--tmpfs", dest]].concat()),
        3 => (perms(), dest()).prop_map(|(perms, dest)| [perms, vec!["--dir", dest]].concat()),
        4 => (perms(), data, dest()).prop_map(|(perms, how, dest)| [perms, vec![how, "FD", dest]].concat()),
        2 => (select(TEXTS), dest()).prop_map(|(text, dest)| vec!["--symlink", text, dest]),
        2 => (select(CHMODS), dest()).prop_map(|(mode, dest)| vec!["--chmod", mode, dest]),
        2 => dest().prop_map(|dest| vec!["--remount-ro", dest]),
        2 => (kernel, dest()).prop_map(|(kernel, dest)| vec![kernel, dest]),
    ]
}

fn command_line() -> impl Strategy<Value = Vec<Words>> {
    let usr = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"];
    let root = select(vec![usr.to_vec(), vec!["--ro-bind", "/", "/"]]);
    let rooms = [["--tmpfs", "/mnt"].as_slice(), &["--bind", "@/host", "/mnt"], &["--ro-bind", "@/host", "/mnt"]];
    let room = select(rooms.map(<[_]>::to_vec).to_vec());
    let namespaces = proptest::sample::subsequence(vec!["--unshare-user", "--unshare-pid", "--unshare-ipc"], 0..=3);
    let operations = proptest::collection::vec(operation(), 1..6);
    (namespaces, root, room, operations).prop_map(|(mut namespaces, root, room, mut operations)| {
        if operations.iter().any(|words| words.contains(&"--chmod")) && !namespaces.contains(&"--unshare-pid") {
            // Without it `--proc` is the host's /proc, whose mode root would change for all; ours refuses to.
            namespaces.push("--unshare-pid");
        }
        operations.insert(0, [namespaces, root, vec!["--proc", "/proc"], room].concat());
        operations
    })
}

/// What came of a command line.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    succeeded: bool,
    stderr: String,
    inside: Vec<String>,
    host: Vec<String>,
}

/// The trees that command lines work on.
fn lay_out(tree: &Path, caller: Caller) {
    for folder in ["", "host", "host/d", "host/d/e", "host/closed", "other", "other/a"] {
        fs::create_dir(tree.join(folder)).unwrap();
    }
    for (name, mode) in [("host/f", 0o644), ("host/d/f", 0o640), ("other/a/f", 0o755), ("host/d/e/deep", 0o600)] {
        fs::write(tree.join(name), name).unwrap();
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        own(&tree.join(name), caller);
    }
    let links =
        [("link", "d"), ("file-link", "f"), ("far", "../mnt/d"), ("over", "../../mnt/d"), ("absolute", "/mnt/d")];
    for (name, text) in links.into_iter().chain([("nowhere", "nothing"), ("loop", "loop")]) {
        symlink(text, tree.join("host").join(name)).unwrap();
    }
    std::os::unix::net::UnixListener::bind(tree.join("host/socket")).unwrap();
    // Not closed: somebody else's, where nobody may make anything.
    for name in ["host", "host/d", "host/d/e", "host/socket", "other", "other/a"] {
        own(&tree.join(name), caller);
    }
}

/// All that is below, as the host sees it.
fn snapshot(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![tree.to_owned()];
    while let Some(path) = left.pop() {
        let name = path.strip_prefix(tree).unwrap().display().to_string();
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_file() { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        lines.push(format!("{name} {:o} {} {content}", metadata.mode(), metadata.uid()));
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

/// A run in a tree of its own, as words say.
pub fn prepare<'a>(
    caller: Caller,
    bwrap: &Path,
    scratch: &Scratch,
    words: impl IntoIterator<Item = &'a &'a str>,
) -> Shannot {
    let tree = scratch.path().join("tree");
    lay_out(&tree, caller);
    let mut redirections = String::new();
    let mut rendered = Vec::new();
    for word in words {
        let fd = 3 + redirections.lines().count();
        rendered.push(if *word == "FD" {
            let data = scratch.file(&format!("data{fd}"), format!("data {fd}"));
            redirections.push_str(&format!("exec {fd}<{}\n", data.display()));
            fd.to_string()
        } else {
            word.replace('@', tree.to_str().unwrap()).replace("BWRAP", bwrap.to_str().unwrap())
        });
    }
    // Descriptors by a shell of its own, lest children of other tests have them too.
    let script = format!("{redirections}exec \"$@\"");
    let mut run = Shannot::through(caller, Path::new("/bin/sh"), ["-c", script.as_str(), "sh"]);
    run.command.arg(bwrap).args(rendered).current_dir(&tree);
    run
}

fn run(caller: Caller, bwrap: &Path, operations: &[Words]) -> Outcome {
    let scratch = Scratch::new();
    let run = prepare(caller, bwrap, &scratch, operations.iter().flatten());
    let result = run.args(["/usr/bin/python3", "-ISEc", INSPECT]).output();
    Outcome {
        succeeded: result.code == 0,
        stderr: result.stderr,
        inside: result.stdout.lines().map(str::to_owned).collect(),
        host: snapshot(&scratch.path().join("tree")),
    }
}

/// What theirs and ours are started with.
type Both = [Vec<Words>; 2];

/// A difference that is meant, and the command lines (theirs, ours) that have to do the same nevertheless.
struct Allowed {
    why: &'static str,
    instead: fn(pair: &Pair<'_>, theirs: &Outcome, ours: &Outcome) -> Option<Both>,
}

const ALLOWED: &[Allowed] = &[
    Allowed {
        why: "a link in the last place of a target is not followed, as since 0.12.0: it could be anybody's",
        instead: |pair, _, ours| {
            // The second is that of --dir, the third that of --file.
            let refused = [
                "Can't mount on symlink destination",
                "Destination is not a directory",
                "Too many levels of symbolic links",
            ];
            let is_refused = !ours.succeeded && refused.iter().any(|text| ours.stderr.contains(text));
            is_refused.then(|| pair.before_failure(bwrap_binary(), pair.ours)).flatten()
        },
    },
    Allowed {
        why: "links that are absolute or lead above the root lead to where they do inside (CVE-2026-87766)",
        instead: |pair, _, _| {
            let straight = straighten(pair.theirs);
            (straight != pair.theirs).then(|| [straight, pair.ours.to_vec()])
        },
    },
    Allowed {
        why: "a link that is there already is as good as a new one, as since 0.9.0",
        instead: |pair, theirs, _| {
            if !theirs.stderr.contains("Can't make symlink at") || !theirs.stderr.contains("File exists") {
                return None;
            }
            let mut without = pair.theirs.to_vec();
            without[pair.first_failure(pair.bwrap, pair.theirs)?].clear();
            Some([without, pair.ours.to_vec()])
        },
    },
    Allowed {
        why: "a slash at the end of a target makes no folder of it, as since 0.12.0",
        instead: |pair, _, _| {
            let trim = |operation: &Words| {
                operation
                    .iter()
                    .map(|word| word.strip_suffix("/").filter(|word| !word.is_empty()).unwrap_or(word))
                    .collect()
            };
            let trimmed: Vec<Words> = pair.theirs.iter().map(trim).collect();
            (trimmed != pair.theirs).then(|| [trimmed, pair.ours.to_vec()])
        },
    },
    Allowed {
        why: "no folders are made on the way to what is not there to be remounted",
        instead: |pair, theirs, ours| {
            let is_it = !theirs.succeeded && ours.stderr.contains("Can't remount readonly on");
            is_it.then(|| pair.before_failure(bwrap_binary(), pair.ours)).flatten()
        },
    },
    Allowed {
        why: "what --bind-data mounted can be made read-only: 0.8.0 looks for the name of a deleted file",
        instead: |pair, theirs, _| {
            let is_it = theirs.stderr.contains("(deleted)\" in mount table");
            is_it.then(|| pair.before_failure(pair.bwrap, pair.theirs)).flatten()
        },
    },
];

/// Command lines that have to do the same.
struct Pair<'a> {
    caller: Caller,
    bwrap: &'a Path,
    theirs: &'a [Words],
    ours: &'a [Words],
}

impl Pair<'_> {
    /// The operation at which one fails.
    fn first_failure(&self, bwrap: &Path, operations: &[Words]) -> Option<usize> {
        (1..operations.len()).find(|last| !run(self.caller, bwrap, &operations[..=*last]).succeeded)
    }

    /// Both without the operation at which one fails, and those after it.
    fn before_failure(&self, bwrap: &Path, operations: &[Words]) -> Option<Both> {
        let first = self.first_failure(bwrap, operations)?;
        Some([self.theirs[..first].to_vec(), self.ours[..first].to_vec()])
    }

    /// The rules that allowed a difference.
    fn compare(&self) -> std::result::Result<Vec<&'static str>, String> {
        let theirs = run(self.caller, self.bwrap, self.theirs);
        let ours = run(self.caller, bwrap_binary(), self.ours);
        if (theirs.succeeded, &theirs.inside, &theirs.host) == (ours.succeeded, &ours.inside, &ours.host) {
            return Ok(Vec::new());
        }
        let mut why = self.explain(&theirs, &ours);
        for rule in ALLOWED {
            let Some([theirs, ours]) = (rule.instead)(self, &theirs, &ours) else { continue };
            match (Pair { theirs: &theirs, ours: &ours, ..*self }).compare() {
                Ok(rules) => return Ok([vec![rule.why], rules].concat()),
                Err(other) => why.push_str(&format!("\nnor, as {}:\n{other}", rule.why)),
            }
        }
        Err(why)
    }

    fn explain(&self, theirs: &Outcome, ours: &Outcome) -> String {
        let differs = |theirs: &[String], ours: &[String]| {
            let missing = theirs.iter().filter(|line| !ours.contains(line)).map(|line| format!("- {line}\n"));
            let added = ours.iter().filter(|line| !theirs.contains(line)).map(|line| format!("+ {line}\n"));
            missing.chain(added).collect::<String>()
        };
        format!(
            "{:?}: {}\ntheirs {}\nours {}\ninside:\n{}host:\n{}",
            self.caller,
            self.ours.concat().join(" "),
            theirs.stderr,
            ours.stderr,
            differs(&theirs.inside, &ours.inside),
            differs(&theirs.host, &ours.host)
        )
    }
}

/// The same targets without those links in them that 0.8.0 follows out of the new root.
fn straighten(operations: &[Words]) -> Vec<Words> {
    let mut links = Vec::new();
    if operations[0].contains(&"@/host") {
        links.extend(["/mnt/absolute", "/mnt/over", "/mnt/link", "/mnt/far"].map(|link| (link, "/mnt/d".to_owned())));
    }
    let mut straight = operations.to_vec();
    for operation in &mut straight {
        let Some((dest, before)) = operation.split_last_mut() else { continue };
        for (link, to) in links.iter().rev() {
            let rest = dest.strip_prefix(link);
            if let Some(rest) = rest.filter(|rest| rest.starts_with('/') || (rest.is_empty() && before[0] == "--chmod"))
            {
                *dest = format!("{to}{rest}").leak();
            }
        }
        if before.first() == Some(&"--symlink") {
            links.push((*dest, clean(&Path::new(*dest).parent().unwrap().join(before[1]))));
        }
    }
    straight
}

/// Without `..`.
fn clean(path: &Path) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.to_str().unwrap().split('/').filter(|name| !name.is_empty() && *name != ".") {
        if name == ".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    format!("/{}", names.join("/"))
}

#[test]
fn command_lines_do_what_they_do_under_debians_bwrap() {
    let (Some(bwrap), Some(_)) = (tool("bwrap"), tool("python3")) else { return };
    // Another version, and how many command lines: for who looks for more.
    let bwrap = std::env::var_os("SHANNOT_TEST_PEER").map_or(bwrap, Into::into);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    for caller in callers() {
        let config =
            ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let same = Cell::new(0);
        let result = runner.run(&command_line(), |line| {
            let rules = Pair { caller, bwrap: &bwrap, theirs: &line, ours: &line }.compare();
            same.set(same.get() + u32::from(rules.as_ref().is_ok_and(Vec::is_empty)));
            rules.map(drop).map_err(TestCaseError::fail)
        });
        if let Err(TestError::Fail(why, _)) = result {
            panic!("{why}");
        }
        assert!(same.get() > cases * 4 / 5, "{caller:?}: only {} of {cases} needed no rule", same.get());
    }
}

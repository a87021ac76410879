//! The marks of overlayfs and the store, made by hand: what needs no mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, mknod};

use super::diff::{Found, Goal, MOST_BYTES, Walk};
use super::journal::{Journal, Since};
use super::remove::remove;
use super::tree::{Permissions, Tree};
use super::upper::{Modes, Upper};
use super::{Applied, Change, ChangeKind, Error, Node, Options, Protected, Refusal, Run, Store, printable};

mod meanwhile;
mod runs;

/// Says why a test can't be made here; an error where nothing may be skipped.
fn skip(why: &str) {
    assert!(std::env::var_os("SHANNOT_TEST_NO_SKIP").is_none(), "nothing may be skipped, but: {why}");
    println!("skipped: {why}");
}

/// A store and a workspace with some files in it.
fn case() -> (tempfile::TempDir, Store, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let workspace = folder.path().join("workspace");
    fs::create_dir_all(workspace.join("d/e")).unwrap();
    for name in ["a", "d/f", "d/e/g"] {
        fs::write(workspace.join(name), name).unwrap();
    }
    let store = Store::at(&folder.path().join("state")).unwrap();
    (folder, store, workspace)
}

/// A device node, which root alone can make, and outside of a user namespace.
fn whiteout(path: &Path) -> bool {
    let made = mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).is_ok();
    match made || nix::unistd::geteuid().is_root() {
        true if !made => skip("root can't make device nodes here"),
        true => {}
        false => println!("skipped: the tests do not run as root"),
    }
    made
}

/// A mark that anybody can make, where the file system has such attributes.
fn mark(path: &Path, name: &str, value: &[u8]) -> bool {
    let made = xattr::set(path, name, value);
    if let Err(error) = &made {
        skip(&format!("no {name} here: {error}"));
    }
    made.is_ok()
}

fn apply(run: &mut Run, only: &[PathBuf]) -> Vec<Change> {
    match run.apply(&Options { protected: &Protected::default(), force: false, only }).unwrap() {
        Applied::Done(changes) => changes,
        other => panic!("{other:?}"),
    }
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{} {}", change.letter(), change.name())).collect()
}

#[test]
fn a_whiteout_takes_away_what_is_there_and_is_nothing_else() {
    let (_folder, store, workspace) = case();
    let mut run = store.create(&workspace).unwrap();
    if !whiteout(&run.upper().join("d")) {
        return;
    }
    assert!(whiteout(&run.upper().join("never was")));
    assert_eq!(lines(&apply(&mut run, &[])), ["D d/"]);
    assert!(!workspace.join("d").exists() && workspace.join("a").exists());
    assert!(matches!(
        run.apply(&Options { protected: &Protected::default(), force: false, only: &[] }),
        Ok(Applied::Before)
    ));
}

#[test]
fn an_opaque_folder_hides_what_is_below_it_also_deeper() {
    let (_folder, store, workspace) = case();
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d/e")).unwrap();
    fs::write(run.upper().join("d/new"), "").unwrap();
    if !mark(&run.upper().join("d"), "user.overlay.opaque", b"y") {
        return;
    }
    assert_eq!(lines(&run.changes(&Protected::default()).unwrap()), ["D d/e/g", "D d/f", "A d/new"]);
    apply(&mut run, &[PathBuf::from("d/e")]);
    assert!(!workspace.join("d/e/g").exists() && workspace.join("d/f").exists() && !workspace.join("d/new").exists());
    apply(&mut run, &[]);
    assert!(!workspace.join("d/f").exists() && workspace.join("d/new").exists());
}

#[test]
fn a_whiteout_by_attribute_counts_where_the_folder_says_that_there_are_some() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    fs::create_dir(run.upper().join("d")).unwrap();
    fs::write(run.upper().join("d/f"), "").unwrap();
    if !mark(&run.upper().join("d/f"), "user.overlay.whiteout", b"") {
        return;
    }
    assert_eq!(lines(&run.changes(&Protected::default()).unwrap()), ["M d/f"]);
    xattr::set(run.upper().join("d"), "user.overlay.opaque", b"x").unwrap();
    assert_eq!(lines(&run.changes(&Protected::default()).unwrap()), ["D d/f"]);
}

#[test]
fn marks_of_other_overlays_are_none() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    fs::create_dir(run.upper().join("d")).unwrap();
    fs::write(run.upper().join("d/new"), "").unwrap();
    for (path, name) in
        [("d", "trusted.overlay.opaque"), ("d", "trusted.overlay.redirect"), ("d/new", "trusted.overlay.metacopy")]
    {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can set {name}");
        } else if !mark(&run.upper().join(path), name, b"y") {
            return;
        }
    }
    assert_eq!(lines(&run.changes(&Protected::default()).unwrap()), ["A d/new"]);
}

#[test]
fn what_is_copied_up_unchanged_is_no_change() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d/e")).unwrap();
    fs::copy(workspace.join("d/e/g"), run.upper().join("d/e/g")).unwrap();
    assert_eq!(run.changes(&Protected::default()).unwrap(), []);
    assert!(run.is_unchanged().unwrap());
    fs::set_permissions(run.upper().join("d/e/g"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!run.is_unchanged().unwrap());
    let changes = run.changes(&Protected::default()).unwrap();
    assert_eq!((changes[0].kind, changes[0].mode), (ChangeKind::Mode, 0o600));
    fs::set_permissions(run.upper().join("d/e/g"), fs::Permissions::from_mode(0o4644)).unwrap();
    assert_eq!(run.changes(&Protected::default()).unwrap()[0].refused, Some(Refusal::SetId));
}

#[test]
fn protected_paths_are_the_callers_choice_in_either_case() {
    let protected = Protected::new(["a/b"]);
    for (path, becomes, refused) in [
        ("a/b", Some(Node::File), true),
        ("A/B/c", Some(Node::File), true),
        ("a", Some(Node::Directory), false),
        ("a", Some(Node::Link), true),
        ("a", None, true),
        ("a/bc", Some(Node::File), false),
        (".git/config", Some(Node::File), false),
    ] {
        assert_eq!(protected.refuses(Path::new(path), becomes), refused, "{path}");
    }
}

#[test]
fn names_can_be_printed() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    assert_eq!(printable(OsStr::from_bytes(b"a\n\x1b[1m\xff\"'")), "a\\n\\u{1b}[1m\\xff\"'");
    assert_eq!(printable(OsStr::new("zoë \u{202e}x")), "zoë \\u{202e}x");
}

#[test]
fn a_line_tells_links_and_modes_and_no_name_imitates_that() {
    let (_folder, store, workspace) = case();
    fs::set_permissions(workspace.join("a"), fs::Permissions::from_mode(0o644)).unwrap();
    let run = store.create(&workspace).unwrap();
    let upper = run.upper();
    for (name, mode) in [
        ("a", 0o600),
        ("b  (protected)", 0o644),
        ("c   (protected)", 0o644),
        ("d -> e", 0o644),
        ("run.sh", 0o755),
        (".git", 0o755),
    ] {
        fs::write(upper.join(name), "new").unwrap();
        fs::set_permissions(upper.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, text) in [("link", "x  (protected)"), ("link ->", "\u{9b}")] {
        std::os::unix::fs::symlink(text, upper.join(name)).unwrap();
    }
    let lines: Vec<_> = run.changes(&Protected::default()).unwrap().iter().map(Change::line).collect();
    let expected = [
        "!  .git  (protected)",
        "M  a  (mode 0600)",
        "A  b \\u{20}(protected)",
        "A  c \\u{20} (protected)",
        "A  d\\u{20}-> e",
        "A  link -> x \\u{20}(protected)",
        "A  link\\u{20}-> -> \\u{9b}",
        "A  run.sh  (mode 0755)",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn any_tree_can_be_removed_without_recursion_and_without_following() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    fs::write(&kept, "").unwrap();
    let top = folder.path().join("top");
    fs::create_dir(&top).unwrap();
    // 5,000 folders deep: each is made around the one before it.
    for _ in 0..5_000 {
        let next = folder.path().join("next");
        fs::create_dir(&next).unwrap();
        fs::rename(&top, next.join("0")).unwrap();
        fs::rename(&next, &top).unwrap();
    }
    std::os::unix::fs::symlink(folder.path(), top.join("link")).unwrap();
    for number in 0..3000 {
        fs::write(top.join(format!("{number}x")), "").unwrap();
    }
    fs::create_dir_all(top.join("shut/inner")).unwrap();
    fs::set_permissions(top.join("shut"), fs::Permissions::from_mode(0o0)).unwrap();
    let parent = fs::File::open(folder.path()).unwrap();
    remove(&parent, "top".as_ref()).unwrap();
    remove(&parent, "top".as_ref()).unwrap();
    assert!(!top.exists() && kept.exists());
}

#[test]
fn a_run_has_a_record_and_folders_like_the_workspace() {
    let (_folder, store, workspace) = case();
    fs::set_permissions(&workspace, fs::Permissions::from_mode(0o751)).unwrap();
    let mut run = store.create(&workspace).unwrap();
    assert_eq!(fs::metadata(run.upper()).unwrap().mode() & 0o7777, 0o751);
    assert!(matches!(store.open(run.id()), Err(Error::InUse(_))));
    run.finish(3).unwrap();
    let (id, record) = (run.id().to_owned(), run.record().clone());
    drop(run);
    assert_eq!(store.open(&id).unwrap().record(), &record);
    assert_eq!((record.exit_code, record.workspace.clone()), (Some(3), fs::canonicalize(&workspace).unwrap()));
    fs::write(store.open("last").unwrap().upper().join("../run.json"), "{").unwrap();
    assert!(matches!(store.open("last"), Err(Error::Record { .. })));
    assert!(store.list().unwrap()[0].record.is_none());
    store.discard(&id[..4]).unwrap();
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_file_whose_time_is_to_come_was_not_changed_by_that() {
    let (_folder, store, workspace) = case();
    let future = std::time::SystemTime::now() + Duration::from_secs(100_000_000);
    for name in ["a", "d/f"] {
        fs::File::options().write(true).open(workspace.join(name)).unwrap().set_modified(future).unwrap();
    }
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir(run.upper().join("d")).unwrap();
    for name in ["a", "d/f"] {
        fs::write(run.upper().join(name), "new").unwrap();
    }
    assert_eq!(lines(&apply(&mut run, &["a".into()])), ["M a"]);
    // Also once apply has begun.
    assert_eq!(lines(&apply(&mut run, &[])), ["M d/f"]);
    let mut run = store.create(&workspace).unwrap();
    fs::write(run.upper().join("a"), "newer").unwrap();
    fs::write(workspace.join("a"), "mine").unwrap();
    fs::File::options().write(true).open(workspace.join("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let options = Options { protected: &Protected::default(), force: false, only: &[] };
    assert!(matches!(run.apply(&options), Ok(Applied::Conflicts(_))));
}

#[test]
fn what_is_refused_is_told_as_what_it_would_be() {
    let (_folder, store, workspace) = case();
    nix::unistd::mkfifo(&workspace.join("pipe"), Mode::S_IRWXU).unwrap();
    let run = store.create(&workspace).unwrap();
    for name in ["a", "new", "pipe"] {
        nix::unistd::mkfifo(&run.upper().join(name), Mode::S_IRWXU).unwrap();
    }
    let changes = run.changes(&Protected::default()).unwrap();
    let refused: Vec<_> = changes.iter().map(|change| (change.name(), change.kind, change.refused)).collect();
    let special = |name: &str, kind| (name.to_owned(), kind, Some(Refusal::Special));
    let expected =
        [special("a", ChangeKind::Retyped), special("new", ChangeKind::Added), special("pipe", ChangeKind::Modified)];
    assert_eq!(refused, expected);
}

#[test]
fn folders_that_were_opened_up_get_back_what_they_had_whatever_fails() {
    let (_folder, _store, workspace) = case();
    let mode = |path: &str| fs::metadata(workspace.join(path)).unwrap().mode() & 0o7777;
    let shut = |path: &str| fs::set_permissions(workspace.join(path), fs::Permissions::from_mode(0o500)).unwrap();
    let open = || {
        let mut tree = Tree::open(&fs::canonicalize(&workspace).unwrap()).unwrap();
        tree.open_up(Path::new("d/e")).unwrap();
        assert_eq!((mode("d"), mode("d/e")), (0o700, 0o700));
        tree
    };
    shut("d/e");
    shut("d");
    drop(open());
    assert_eq!((mode("d"), mode("d/e")), (0o500, 0o500));
    // One that has gone is no failure, nor is it whatever has its name.
    let mut tree = open();
    fs::rename(workspace.join("d/e"), workspace.join("away")).unwrap();
    fs::create_dir(workspace.join("d/e")).unwrap();
    fs::set_permissions(workspace.join("d/e"), fs::Permissions::from_mode(0o755)).unwrap();
    tree.settle().unwrap();
    assert_eq!((mode("d"), mode("d/e")), (0o500, 0o755));
    // What is wanted comes first, and its failure keeps nothing else open.
    shut("d/e");
    let mut tree = open();
    let wanted = |identity| Permissions { mode: 0o711, identity, are_old: false };
    tree.settle_on("d/e".into(), wanted(Some((0, 0))));
    assert_eq!(tree.settle(), Err(("d/e".into(), nix::errno::Errno::ENOTDIR)));
    assert_eq!(mode("d"), 0o500);
    tree.settle_on("d/e".into(), wanted(None));
    drop(tree);
    assert_eq!(mode("d/e"), 0o711);
}

#[test]
fn a_tree_goes_up_only_where_it_came_down() {
    let (_folder, _store, workspace) = case();
    fs::create_dir_all(workspace.join("d/e/x/y")).unwrap();
    fs::create_dir_all(workspace.join("d/e/z")).unwrap();
    let mut tree = Tree::open(&fs::canonicalize(&workspace).unwrap()).unwrap();
    let inode = |path: &str| fs::metadata(workspace.join(path)).unwrap().ino();
    let mut at = |path: &str| {
        let folder = tree.open_folder(Path::new(path))?;
        nix::Result::Ok(folder.metadata().unwrap().ino())
    };
    for path in ["d/e/x/y", "d/e/z", "d/e/x", "d/e", "d/e/x/y", "d", "", "d/e/z", "d/e/x/y"] {
        assert_eq!(at(path).unwrap(), inode(path), "{path}");
    }
    // Moved to elsewhere, where it leads up to another folder.
    fs::create_dir_all(workspace.join("away/e")).unwrap();
    fs::create_dir(workspace.join("away/e/z")).unwrap();
    fs::rename(workspace.join("d/e/x"), workspace.join("away/e/x")).unwrap();
    assert_eq!(at("d/e/z").unwrap(), inode("d/e/z"));
    assert_eq!(at("d/e/x"), Err(nix::errno::Errno::ENOENT));
}

#[test]
fn no_folder_has_more_names_than_there_is_memory_for() {
    let (_folder, _store, workspace) = case();
    let mut tree = Tree::open(&fs::canonicalize(&workspace).unwrap()).unwrap();
    let size = size_of::<std::ffi::OsString>() + 1;
    assert_eq!(tree.names(Path::new("d"), 2 * size).unwrap(), ["e", "f"]);
    assert_eq!(tree.names(Path::new("d"), 2 * size - 1), Err(nix::errno::Errno::E2BIG));
}

#[test]
fn what_a_walk_holds_is_bounded_and_only_what_is_asked_for_counts() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    fs::create_dir(run.upper().join("new")).unwrap();
    for number in 0..100 {
        fs::write(run.upper().join(format!("new/{number}")), "").unwrap();
    }
    fs::write(run.upper().join("a"), "changed").unwrap();
    let journal = Journal::read(tempfile::tempfile().unwrap()).unwrap();
    let walk = |only: &[&str], room: usize| {
        let mut upper =
            Upper::new(fs::File::open(run.upper()).unwrap().into(), Modes::new(tempfile::tempfile().unwrap(), ""));
        let walk = Walk {
            upper: upper.as_mut().unwrap(),
            workspace: &mut Tree::open(&run.record().workspace).unwrap(),
            protected: &Protected::default(),
            only: &only.iter().map(PathBuf::from).collect(),
            since: Since { start: run.record().start, journal: &journal },
            run: run.id(),
            own: ".shannot".as_ref(),
            found: Found::default(),
            bytes: MOST_BYTES - room,
            may_open: false,
            goal: Goal::Changes,
        };
        walk.all().map(|found| lines(&found.changes))
    };
    let names = 100 * (size_of::<std::ffi::OsString>() + 2);
    let error = walk(&[], names + 1000).unwrap_err();
    assert!(matches!(&error, Error::TooMany { run: named, .. } if named == run.id()) && error.hint().is_some());
    assert!(matches!(walk(&["a"], names / 2), Err(Error::TooMany { .. })));
    assert_eq!(walk(&["a"], names + 1000).unwrap(), ["M a"]);
    assert_eq!(walk(&["new/7"], names + 1000).unwrap(), ["A new/", "A new/7"]);
    assert_eq!(walk(&[], MOST_BYTES).unwrap().len(), 102);
}

#[test]
fn whether_anything_changed_is_said_without_reading_much() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    for folder in [&workspace, &run.upper()] {
        fs::File::create(folder.join("big")).unwrap().set_len(1 << 40).unwrap();
    }
    assert_eq!(run.changes(&Protected::default()).unwrap(), []);
    assert!(!run.is_unchanged().unwrap(), "too big to be compared for that");
}

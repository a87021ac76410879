//! Applied in parts, or interrupted, while somebody works in the workspace.

use std::fs;
use std::path::{Path, PathBuf};

use super::{apply, case, lines, mark};
use crate::changes::{Applied, Options, Protected, Run};

/// What speaks against applying all.
fn conflicts(run: &mut Run) -> Vec<String> {
    match run.apply(&Options { protected: &Protected::default(), force: false, only: &[] }).unwrap() {
        Applied::Conflicts(changes) => lines(&changes),
        other => panic!("{other:?}"),
    }
}

/// As mv(1), cp -p, tar and rsync leave it: with the time that it had elsewhere.
fn bring(workspace: &Path, name: &str) {
    let elsewhere = workspace.parent().unwrap().join("mine");
    fs::write(&elsewhere, "mine").unwrap();
    fs::File::options().write(true).open(&elsewhere).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::rename(elsewhere, workspace.join(name)).unwrap();
}

#[test]
fn what_others_bring_after_a_part_was_applied_is_a_conflict_however_old_it_is() {
    let (_folder, store, workspace) = case();
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d")).unwrap();
    for (name, text) in [("d/new", "new"), ("a", "job's")] {
        fs::write(run.upper().join(name), text).unwrap();
    }
    if !mark(&run.upper().join("d"), "user.overlay.opaque", b"y") {
        return;
    }
    let parts: Vec<PathBuf> = vec!["d".into()];
    assert_eq!(lines(&apply(&mut run, &parts)), ["D d/e/", "D d/f", "A d/new"]);
    // Again: what apply itself wrote is in nobody's way.
    fs::remove_file(run.upper().join("d/new")).unwrap();
    fs::write(run.upper().join("d/new"), "newer").unwrap();
    assert_eq!(lines(&apply(&mut run, &parts)), ["M d/new"]);
    bring(&workspace, "d/thesis");
    bring(&workspace, "a");
    assert_eq!(conflicts(&mut run), ["M a", "D d/thesis"]);
    assert!(run.changes(&Protected::default()).unwrap().iter().all(|change| change.conflict));
    fs::remove_file(workspace.join("d/thesis")).unwrap();
    bring(&workspace, "d/new");
    assert_eq!(conflicts(&mut run), ["M a", "M d/new"]);
    assert_eq!(fs::read_to_string(workspace.join("a")).unwrap(), "mine");
}

#[test]
fn what_apply_wrote_and_somebody_moved_is_not_taken_away() {
    let (_folder, store, workspace) = case();
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d")).unwrap();
    fs::write(run.upper().join("new"), "new").unwrap();
    if !mark(&run.upper().join("d"), "user.overlay.opaque", b"y") {
        return;
    }
    apply(&mut run, &["new".into()]);
    fs::rename(workspace.join("new"), workspace.join("d/e/kept")).unwrap();
    assert_eq!(conflicts(&mut run), ["D d/e/"]);
}

#[test]
fn a_file_of_which_apply_took_away_a_name_is_not_changed_by_that_and_by_others_it_is() {
    let (_folder, store, workspace) = case();
    for name in ["d/e/second", "third", "fourth"] {
        fs::hard_link(workspace.join("a"), workspace.join(name)).unwrap();
    }
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d")).unwrap();
    for name in ["third", "fourth"] {
        fs::write(run.upper().join(name), "job's").unwrap();
    }
    if !mark(&run.upper().join("d"), "user.overlay.opaque", b"y") {
        return;
    }
    // With a folder, and alone.
    assert_eq!(lines(&apply(&mut run, &["d".into()])), ["D d/e/", "D d/f"]);
    assert_eq!(lines(&apply(&mut run, &["third".into()])), ["M third"]);
    fs::rename(workspace.join("fourth"), workspace.join("fifth")).unwrap();
    fs::rename(workspace.join("fifth"), workspace.join("fourth")).unwrap();
    assert_eq!(conflicts(&mut run), ["M fourth"]);
}

#[test]
fn a_folder_that_was_moved_into_what_goes_is_a_conflict_though_all_in_it_is_old() {
    let (folder, store, workspace) = case();
    let mine = folder.path().join("mine");
    fs::create_dir_all(mine.join("in")).unwrap();
    fs::write(mine.join("in/thesis"), "mine").unwrap();
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d")).unwrap();
    fs::write(run.upper().join("d/e"), "no folder any more").unwrap();
    if !mark(&run.upper().join("d"), "user.overlay.opaque", b"y") {
        return;
    }
    for (place, expected) in [("d/mine", "D d/mine/"), ("d/e/mine", "T d/e")] {
        fs::rename(&mine, workspace.join(place)).unwrap();
        assert_eq!(conflicts(&mut run), [expected]);
        fs::rename(workspace.join(place), &mine).unwrap();
    }
    assert!(mine.join("in/thesis").exists());
}

#[test]
fn another_folder_in_the_place_of_one_that_stays_is_not_what_the_command_saw() {
    let (folder, store, workspace) = case();
    let mine = folder.path().join("mine");
    fs::create_dir_all(mine.join("e")).unwrap();
    for name in ["f", "e/g", "e/h"] {
        fs::write(mine.join(name), "mine").unwrap();
    }
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d/e")).unwrap();
    for name in ["d/f", "d/e/g", "d/new"] {
        fs::write(run.upper().join(name), "job's").unwrap();
    }
    fs::set_permissions(run.upper().join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    // What apply makes of a folder's permissions is no trace of somebody else.
    assert_eq!(lines(&apply(&mut run, &["d/e".into()])), ["M d/e/g"]);
    fs::write(workspace.join("d/e/g"), "d/e/g").unwrap();
    fs::rename(workspace.join("d"), folder.path().join("away")).unwrap();
    fs::rename(&mine, workspace.join("d")).unwrap();
    assert_eq!(conflicts(&mut run), ["M d/e/g", "M d/f"]);
    // Something new in it is nobody's business.
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir_all(run.upper().join("d")).unwrap();
    fs::write(run.upper().join("d/f"), "job's").unwrap();
    fs::write(workspace.join("d/new"), "mine").unwrap();
    let changes = apply(&mut run, &[]);
    assert!(lines(&changes).contains(&"M d/f".to_owned()) && changes.iter().all(|change| !change.conflict));
}

#[test]
fn an_artifact_in_the_workspace_is_nobody_elses_change() {
    let (_folder, store, workspace) = case();
    let mut run = store.create(&workspace).unwrap();
    fs::create_dir(run.upper().join("out")).unwrap();
    fs::write(run.upper().join("out/one"), "new").unwrap();
    fs::hard_link(run.upper().join("out/one"), run.upper().join("out/two")).unwrap();
    assert_eq!(run.artifact(Path::new("out"), None, &[]).unwrap(), []);
    assert_eq!(lines(&apply(&mut run, &[])), ["M out/two"]);
    let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(workspace.join(name)).unwrap());
    assert_eq!(inode("out/one"), inode("out/two"));
}

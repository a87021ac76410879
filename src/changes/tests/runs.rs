//! Runs in the store: who holds them, which of them are swept away, how they are known.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::{case, lines, skip};
use crate::changes::{Error, Protected, Record};

/// Another process's lock of a run, or of what is left of one.
fn hold(store: &Path, name: &str) -> Flock<fs::File> {
    Flock::lock(fs::File::open(store.join(name)).unwrap(), FlockArg::LockExclusiveNonblock).unwrap()
}

#[test]
fn one_who_looks_for_a_moment_keeps_nobody_from_a_run() {
    let (folder, store, workspace) = case();
    let id = store.create(&workspace).unwrap().id().to_owned();
    let held = hold(&folder.path().join("state/shannot/runs"), &id);
    let looking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    let run = store.open(&id).unwrap();
    looking.join().unwrap();
    assert!(matches!(store.open(&id), Err(Error::InUse(_))));
    // Who holds it can discard it.
    store.discard_held(run).unwrap();
    assert!(matches!(store.open(&id), Err(Error::NoRun(_))));
}

#[test]
fn what_somebody_else_is_removing_is_left_to_them() {
    let (folder, store, workspace) = case();
    let runs = folder.path().join("state/shannot/runs");
    let gone = runs.join(".gone-20261126-000000-0000");
    fs::create_dir_all(gone.join("upper/d")).unwrap();
    let held = hold(&runs, ".gone-20261126-000000-0000");
    store.create(&workspace).unwrap();
    assert!(gone.join("upper/d").exists());
    drop(held);
    store.create(&workspace).unwrap();
    assert!(!gone.exists());
}

/// As if nobody had touched it for a while.
fn make_old(folder: &Path) {
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    fs::File::open(folder).unwrap().set_modified(old).unwrap();
}

#[test]
fn a_run_that_changed_only_the_permissions_of_the_workspace_is_not_swept_away() {
    let (folder, store, workspace) = case();
    fs::set_permissions(&workspace, fs::Permissions::from_mode(0o755)).unwrap();
    let ids = [0o755, 0o700].map(|mode| {
        let run = store.create(&workspace).unwrap();
        fs::set_permissions(run.upper(), fs::Permissions::from_mode(mode)).unwrap();
        run.id().to_owned()
    });
    for id in &ids {
        make_old(&folder.path().join("state/shannot/runs").join(id));
    }
    store.create(&workspace).unwrap();
    assert!(matches!(store.open(&ids[0]), Err(Error::NoRun(_))));
    assert_eq!(lines(&store.open(&ids[1]).unwrap().changes(&Protected::default()).unwrap()), ["m ./"]);
}

#[test]
fn a_workspace_with_another_device_number_is_known_by_its_birth() {
    let (_folder, store, workspace) = case();
    let run = store.create(&workspace).unwrap();
    let (path, record) = (run.work().join("../run.json"), run.record().clone());
    if record.born.is_none() {
        return skip("no birth times here");
    }
    let id = run.id().to_owned();
    drop(run);
    let open_with = |born| {
        let record = Record { device: record.device + 1, born, ..record.clone() };
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        store.open(&id).unwrap().changes(&Protected::default())
    };
    assert_eq!(open_with(record.born).unwrap(), []);
    for born in [None, Some((1, 2))] {
        assert!(matches!(open_with(born), Err(Error::OtherWorkspace(_))));
    }
}

#[test]
fn what_is_written_after_the_start_is_younger_and_what_was_before_is_older() {
    let (_folder, store, workspace) = case();
    for _ in 0..20 {
        fs::write(workspace.join("before"), "").unwrap();
        let run = store.create(&workspace).unwrap();
        fs::write(workspace.join("after"), "").unwrap();
        let ctime = |name: &str| {
            let metadata = fs::metadata(workspace.join(name)).unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        assert!(ctime("before") <= run.record().start && ctime("after") > run.record().start);
    }
}

//! The calls that have more to them than their arguments.

use super::*;

#[test]
fn fnmatch_is_pythons() {
    assert!(fnmatch("/usr/bin/*", OsStr::new("/usr/bin/x/y")));
    assert!(fnmatch("l?", OsStr::new("ls")));
    assert!(fnmatch("[!a]*", OsStr::new("ls")));
    assert!(!fnmatch("ls", OsStr::new("/usr/bin/ls")));
    assert!(fnmatch("a\\*", OsStr::new("a\\b")));
}

#[test]
fn vfork_runs_the_child_and_waits_for_it() {
    let mut seen = 0;
    let pid = vfork(&mut || {
        seen = 7;
        3
    })
    .unwrap();
    let waited = wait4(Some(pid), 0).unwrap().unwrap();
    assert_eq!((seen, libc::WEXITSTATUS(waited.status)), (7, 3));
}

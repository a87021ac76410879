//! Removes what is in a folder, however deep, wide or locked it is, and whoever still changes it: a folder in it that is not empty
//! is moved to its top, so that there is one level to look at, with few descriptors and no recursion. Everything is named by a
//! descriptor and one name, and no link is followed: what is outside can't be reached.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::sys::{self, proc_path};

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Whose folders are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The caller's. Another's in a place where the caller alone makes any came from elsewhere, and stays.
    Own,
    /// Everybody's, as far as the caller has the right.
    Anyones,
}

/// Removes a folder that is held, and is called so in its parent.
///
/// # Errors
/// ESTALE: something else has its name by now. ETIMEDOUT: somebody puts things in as fast. EBUSY: something is mounted there, or
/// in it. ENOTEMPTY: some of it stays, for a reason that was not said. Those of unlink(2), rename(2) and open(2).
pub(crate) fn remove(
    parent: impl AsFd,
    name: &CStr,
    folder: BorrowedFd<'_>,
    whose: Whose,
    until: Instant,
) -> nix::Result<()> {
    let mut removal = Removal {
        top: folder,
        whose,
        prefix: format!("{:016x}-", sys::unguessable()),
        moved: 0,
        pending: Vec::new(),
        until,
        failed: None,
    };
    match remove_empty(&parent, name, folder) {
        // Something is mounted there.
        result @ (Ok(()) | Err(Errno::EBUSY)) => return result,
        Err(_) => removal.empty()?,
    }
    match remove_empty(parent, name, folder) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Err(removal.failed.unwrap_or(Errno::ENOTEMPTY)),
        result => result,
    }
}

fn remove_empty(parent: impl AsFd, name: &CStr, folder: BorrowedFd<'_>) -> nix::Result<()> {
    match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(()),
        Ok(stat) if is_same(&stat, &fstat(folder)?) => unlinkat(parent, name, UnlinkatFlags::RemoveDir),
        Ok(_) => Err(Errno::ESTALE),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// chmod(2) 0700 of a folder that lacks some of it, so that it can be looked into and emptied. Through the descriptor, whatever
/// has the name by now. Without /proc what follows fails by itself, or root needs no right.
pub(crate) fn grant_owner_access(folder: &OwnedFd, stat: &FileStat) {
    let change = || fchmodat(AT_FDCWD, &proc_path(folder), Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
    if stat.st_mode & 0o700 != 0o700 && change().is_err() {}
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    whose: Whose,
    /// How names of moved folders begin. Nobody could have known it before.
    prefix: String,
    /// Folders moved so far: their numbers are their names.
    moved: u64,
    /// Those that are still to be removed.
    pending: Vec<u64>,
    until: Instant,
    /// Why something stays: the first reason, from which others follow.
    failed: Option<Errno>,
}

impl Removal<'_> {
    /// Opens a folder for its name, and gives its owner the rights that it may lack.
    fn open(&self, parent: impl AsFd, name: &CStr) -> nix::Result<OwnedFd> {
        let folder = openat(parent, name, FOLDER | OFlag::O_PATH, Mode::empty())?;
        let stat = fstat(&folder)?;
        if self.whose == Whose::Own && stat.st_uid != geteuid().as_raw() {
            return Err(Errno::EPERM);
        }
        grant_owner_access(&folder, &stat);
        Ok(folder)
    }

    /// Looks again until nothing more can be removed. Fails if there is no more time.
    fn empty(&mut self) -> nix::Result<()> {
        let mut go_on = true;
        while go_on {
            let top = openat(self.top, c".", FOLDER | OFlag::O_PATH, Mode::empty())?;
            go_on = self.look_through(&top)?;
            while let Some(number) = self.pending.pop() {
                self.remove_moved(number)?;
            }
        }
        Ok(())
    }

    /// Whether anything was removed or moved.
    fn look_through(&mut self, folder: &OwnedFd) -> nix::Result<bool> {
        let mut entries = match Dir::openat(folder, c".", FOLDER, Mode::empty()) {
            Ok(entries) => entries,
            Err(errno) => return Ok(self.note(errno)),
        };
        let mut progress = false;
        for entry in entries.iter() {
            if Instant::now() >= self.until {
                return Err(Errno::ETIMEDOUT);
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return Ok(self.note(errno) || progress),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || name.to_bytes().starts_with(self.prefix.as_bytes()) {
                continue;
            }
            match self.discard(folder, name, entry.file_type()) {
                Ok(()) => progress = true,
                Err(errno) => progress |= self.note(errno),
            }
        }
        Ok(progress)
    }

    /// That is no progress.
    fn note(&mut self, errno: Errno) -> bool {
        self.failed.get_or_insert(errno);
        false
    }

    /// Removes a file or an empty folder; moves another.
    fn discard(&mut self, folder: &OwnedFd, name: &CStr, kind: Option<Type>) -> nix::Result<()> {
        if kind != Some(Type::Directory) {
            match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
                // Not every file system says in its list what is what.
                Err(Errno::EISDIR) => {}
                result => return result,
            }
        }
        // First as if it were empty: a mount point says EBUSY, and is not looked into.
        match unlinkat(folder, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.move_up(folder, name),
            result => result,
        }
    }

    fn move_up(&mut self, folder: &OwnedFd, name: &CStr) -> nix::Result<()> {
        // Its entry `..` changes, for which it must be writable.
        drop(self.open(folder, name)?);
        let number = self.moved;
        self.moved += 1;
        renameat(folder, name, self.top, self.name(number).as_str())?;
        self.pending.push(number);
        Ok(())
    }

    fn name(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    fn remove_moved(&mut self, number: u64) -> nix::Result<()> {
        let name = self.name(number).into_bytes();
        let name = CString::new(name).unwrap_or_default();
        let before = self.pending.len();
        let progress = match self.open(self.top, &name) {
            Ok(folder) => self.look_through(&folder)?,
            Err(errno) => self.note(errno),
        };
        match unlinkat(self.top, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            // There was no room to move all of it, and there is when the others have gone.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if progress => self.pending.insert(before, number),
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => drop(self.note(errno)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions, create_dir, create_dir_all, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use nix::sys::stat::mkdirat;

    /// A folder, and beside it something that nobody may touch.
    struct Case(tempfile::TempDir);

    impl Case {
        fn new() -> Self {
            let case = Self(tempfile::tempdir().unwrap());
            create_dir_all(case.folder()).unwrap();
            create_dir_all(case.outside().join("below")).unwrap();
            fs::write(case.outside().join("file"), "precious").unwrap();
            set_permissions(case.outside(), Permissions::from_mode(0o500)).unwrap();
            case
        }

        fn folder(&self) -> std::path::PathBuf {
            self.0.path().join("folder")
        }

        fn outside(&self) -> std::path::PathBuf {
            self.0.path().join("outside")
        }

        fn remove(&self, patience: Duration) -> nix::Result<()> {
            let open = |path: &Path| openat(AT_FDCWD, path, FOLDER, Mode::empty()).unwrap();
            let folder = open(&self.folder());
            let until = Instant::now() + patience;
            let result = remove(open(self.0.path()), c"folder", folder.as_fd(), Whose::Own, until);
            assert_eq!(fs::read_to_string(self.outside().join("file")).unwrap(), "precious");
            assert_eq!(fs::metadata(self.outside()).unwrap().permissions().mode() & 0o777, 0o500);
            assert!(self.outside().join("below").is_dir());
            result
        }

        #[track_caller]
        fn expect_removed(&self) {
            assert_eq!(self.remove(Duration::from_secs(60)), Ok(()));
            assert!(!self.folder().exists() && self.outside().exists());
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            set_permissions(self.outside(), Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn what_is_deeper_than_any_path_is_removed() {
        let case = Case::new();
        let mut here = openat(AT_FDCWD, &case.folder(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            for name in ["beside", "in"] {
                mkdirat(&here, name, Mode::S_IRWXU).unwrap();
            }
            here = openat(&here, "in", FOLDER, Mode::empty()).unwrap();
        }
        case.expect_removed();
    }

    #[test]
    fn very_many_files_are_removed() {
        let case = Case::new();
        create_dir(case.folder().join("in")).unwrap();
        let mut file = case.folder().join("in/file");
        for index in 0..200_000 {
            // A file can have 65,000 names.
            if index % 50_000 == 0 {
                file.set_file_name(format!("file{index}"));
                fs::write(&file, "").unwrap();
            }
            fs::hard_link(&file, case.folder().join(format!("in/{index}"))).unwrap();
        }
        case.expect_removed();
    }

    #[test]
    fn what_is_locked_or_leads_elsewhere_is_removed_and_nothing_else() {
        let case = Case::new();
        let below = case.folder().join("a/b/c");
        create_dir_all(&below).unwrap();
        create_dir(case.folder().join("a/empty")).unwrap();
        for (index, link) in [case.folder(), case.folder().join("a"), below.clone()].iter().enumerate() {
            symlink(case.outside(), link.join("link")).unwrap();
            fs::hard_link(case.outside().join("file"), link.join(format!("file{index}"))).unwrap();
        }
        for folder in [&below, &case.folder().join("a/empty"), &case.folder().join("a/b"), &case.folder().join("a")] {
            set_permissions(folder, Permissions::from_mode(0o000)).unwrap();
        }
        case.expect_removed();
    }

    #[test]
    fn what_is_another_users_stays() {
        if !geteuid().is_root() {
            println!("skipped: only root can make what is another's");
            return;
        }
        let case = Case::new();
        let theirs = case.folder().join("mine/theirs");
        create_dir_all(&theirs).unwrap();
        fs::write(theirs.join("file"), "").unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        assert_eq!(case.remove(Duration::from_secs(60)), Err(Errno::EPERM));
        std::os::unix::fs::chown(&theirs, Some(0), None).unwrap_or_default();
    }

    #[test]
    fn another_folder_of_its_name_stays() {
        let case = Case::new();
        let open = |path: &Path| openat(AT_FDCWD, path, FOLDER, Mode::empty()).unwrap();
        fs::write(case.folder().join("file"), "").unwrap();
        let held = open(&case.folder());
        fs::rename(case.folder(), case.0.path().join("was")).unwrap();
        create_dir(case.folder()).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        assert_eq!(remove(open(case.0.path()), c"folder", held.as_fd(), Whose::Own, until), Err(Errno::ESTALE));
        assert!(case.folder().is_dir() && !case.0.path().join("was/file").exists());
    }

    #[test]
    fn who_goes_on_changing_it_gains_nothing() {
        let case = Case::new();
        let stop = AtomicBool::new(false);
        let (folder, outside) = (case.folder(), case.outside());
        std::thread::scope(|scope| {
            let change = || {
                let (at, away) = (folder.join("a/b"), folder.join("away"));
                while !stop.load(Ordering::Relaxed) {
                    // Each of them fails where the removal was faster.
                    create_dir_all(&at).unwrap_or_default();
                    fs::write(at.join("file"), "").unwrap_or_default();
                    fs::rename(&at, &away).unwrap_or_default();
                    symlink(&outside, &at).unwrap_or_default();
                    fs::remove_file(&at).unwrap_or_default();
                    fs::rename(&away, &at).unwrap_or_default();
                }
            };
            scope.spawn(change);
            let start = Instant::now();
            for _ in 0..20 {
                if case.remove(Duration::from_millis(100)).is_ok() {
                    create_dir(&folder).unwrap_or_default();
                }
            }
            assert!(start.elapsed() < Duration::from_secs(30));
            stop.store(true, Ordering::Relaxed);
        });
        create_dir_all(&folder).unwrap();
        case.expect_removed();
    }
}

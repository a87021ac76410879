//! The private folder of a run without a root of its own: made before anything runs, removed after everything has ended. It and
//! its parent are held, so that each step is about the folder that was made, whatever its path names by then.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat, umask};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::prepare::c_string;
use crate::host::{is_private_name, open_without_links};
use crate::plan::Scratch;
use crate::removal::{self, Whose, grant_owner_access, is_same};
use crate::sys;

/// A folder that is younger may be about to be locked.
const OLD: Duration = Duration::from_secs(10);

/// For a removal while something of a sandbox may live that puts more in. What is left then, later runs remove.
pub(super) const HASTY: Duration = Duration::from_secs(10);
/// For a removal after everything has ended: more than a disk needs, and less than for ever.
pub(super) const PATIENT: Duration = Duration::from_secs(600);

const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The folder of a run.
#[derive(Debug)]
pub(super) struct Folder {
    parent: OwnedFd,
    name: CString,
    /// Locked while a run uses it, by supervisor and init; the lock goes with the last of them, however that ends.
    held: OwnedFd,
}

impl Folder {
    /// Makes it. What is there already is somebody else's. Those that killed runs left in the same place go.
    pub(super) fn make(scratch: &Scratch) -> nix::Result<Self> {
        let (Some(parent), Some(name)) = (scratch.path.parent(), scratch.path.file_name()) else {
            return Err(Errno::EINVAL);
        };
        let (parent, name) = (open_without_links(parent)?, c_string(name));
        sweep(&parent);
        // One that takes rights from the owner would make a folder of no use.
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let made = Self::make_in(parent, name, scratch);
        umask(before);
        made
    }

    fn make_in(parent: OwnedFd, name: CString, scratch: &Scratch) -> nix::Result<Self> {
        mkdirat(&parent, name.as_c_str(), Mode::S_IRWXU)?;
        let held = match hold(&parent, &name) {
            Ok(held) => held,
            // An empty folder at most.
            Err(errno) => return unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir).and(Err(errno)),
        };
        let folder = Self { parent, name, held };
        let stat = fstat(folder.as_fd())?;
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            return Err(Errno::ESTALE);
        }
        let inside = scratch.folders.iter().try_for_each(|below| mkdirat(folder.as_fd(), below, Mode::S_IRWXU));
        match inside {
            Ok(()) => Ok(folder),
            Err(errno) => folder.remove(HASTY).and(Err(errno)),
        }
    }

    /// ESTALE, if the path does not name it any more: the command is told the path.
    pub(super) fn check(&self, path: &Path) -> nix::Result<()> {
        match open_without_links(path) {
            Ok(named) if is_same(&fstat(&named)?, &fstat(self.as_fd())?) => Ok(()),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Err(Errno::ESTALE),
            Err(errno) => Err(errno),
        }
    }

    /// The descriptors that hold it.
    pub(super) fn numbers(&self) -> [RawFd; 2] {
        [self.parent.as_raw_fd(), self.held.as_raw_fd()]
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(&self, patience: Duration) -> nix::Result<()> {
        removal::remove(&self.parent, &self.name, self.as_fd(), Whose::Own, Instant::now() + patience)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

fn hold(parent: impl AsFd, name: &CStr) -> nix::Result<OwnedFd> {
    let folder = openat(parent, name, OPEN, Mode::empty())?;
    sys::lock_whole(folder.as_fd()).map(|()| folder)
}

/// Removes folders of this name and this user that no run holds. That some can't be removed keeps nobody from running.
fn sweep(parent: &OwnedFd) {
    let until = Instant::now() + HASTY;
    // A parent that can be written may be one that can't be listed.
    let Ok(mut entries) = Dir::openat(parent, c".", OPEN, Mode::empty()) else { return };
    for entry in entries.iter().map_while(Result::ok) {
        let name = entry.file_name();
        if let Ok(held) = hold_left(parent, name)
            && removal::remove(parent, name, held.as_fd(), Whose::Own, until).is_err()
        {
            // The next run tries again.
        }
    }
}

/// Takes a folder that a run left.
fn hold_left(parent: &OwnedFd, name: &CStr) -> nix::Result<OwnedFd> {
    if !is_private_name(name.to_bytes()) {
        return Err(Errno::EINVAL);
    }
    let seen = openat(parent, name, OPEN | OFlag::O_PATH, Mode::empty())?;
    let stat = fstat(&seen)?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    if stat.st_uid != geteuid().as_raw() || changed.elapsed().unwrap_or_default() <= OLD {
        return Err(Errno::EBUSY);
    }
    grant_owner_access(&seen, &stat);
    hold(&seen, c".")
}

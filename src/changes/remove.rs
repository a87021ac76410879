//! Removes what may be a file, a folder or nothing.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::change::Node;
use super::tree::{FOLDER, meta_at};
use crate::removal::{self, Whose, grant_owner_access};

/// Longer than any removal takes, unless somebody makes as much anew.
pub(super) const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Removes a name, with all that is in it; that there is none is no error. EXDEV for what something is mounted in.
pub(super) fn remove(parent: impl AsFd, name: &OsStr) -> nix::Result<()> {
    remove_until(parent, name, Instant::now() + PATIENCE)
}

/// The same as long as there is time; then ETIMEDOUT.
pub(super) fn remove_until(parent: impl AsFd, name: &OsStr, until: Instant) -> nix::Result<()> {
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        // POSIX says so of a folder.
        Err(Errno::EPERM) if meta_at(&parent, name)?.node == Node::Directory => {}
        Err(errno) => return Err(errno),
    }
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let folder = openat(&parent, name.as_c_str(), FOLDER | OFlag::O_PATH, Mode::empty())?;
    grant_owner_access(&folder, &fstat(&folder)?);
    match removal::remove(parent, &name, folder.as_fd(), Whose::Anyones, until) {
        Err(Errno::EBUSY) => Err(Errno::EXDEV),
        result => result,
    }
}

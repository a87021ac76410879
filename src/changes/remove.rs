//! Removal of a tree that may be hostile: as deep as it likes, without permissions, changed meanwhile, with links and
//! mounts in it. Nothing is followed and no mount is entered; memory and descriptors are bounded, because what lies deeper
//! is moved up before it is removed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::change::Node;
use super::tree::{FOLDER, chmod_at, meta_at, name_of};
use crate::sys;

/// Names that are held at once.
const BATCH: usize = 1024;

/// Removes a name, with all that is in it; that there is none is no error. EXDEV for what something is mounted in.
pub(super) fn remove(parent: impl AsFd, name: &OsStr) -> nix::Result<()> {
    let parent = parent.as_fd();
    if unlink(parent, name)? {
        return Ok(());
    }
    let top = open(parent, name)?;
    let mut removal = Removal { mount: sys::mount_id(top.as_fd())?, top, fresh: 0 };
    if removal.mount != sys::mount_id(parent)? {
        return Err(Errno::EXDEV);
    }
    loop {
        let names = batch(&removal.top)?;
        if names.is_empty() {
            return unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        }
        for name in names {
            removal.entry(&name)?;
        }
    }
}

struct Removal {
    top: OwnedFd,
    mount: Option<u64>,
    /// For names of what is moved up.
    fresh: u64,
}

impl Removal {
    fn entry(&mut self, name: &OsStr) -> nix::Result<()> {
        if unlink(self.top.as_fd(), name)? {
            return Ok(());
        }
        let folder = open(self.top.as_fd(), name)?;
        if sys::mount_id(folder.as_fd())? != self.mount {
            return Err(Errno::EXDEV);
        }
        loop {
            let names = batch(&folder)?;
            if names.is_empty() {
                return unlinkat(&self.top, name, UnlinkatFlags::RemoveDir);
            }
            for name in names {
                if !unlink(folder.as_fd(), &name)? {
                    self.move_up(folder.as_fd(), &name)?;
                }
            }
        }
    }

    fn move_up(&mut self, folder: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
        let mut may_open = true;
        loop {
            let fresh = self.fresh.to_string();
            match rename_to_new(folder, name, self.top.as_fd(), OsStr::new(&fresh)) {
                // Its entry `..` changes, which takes the right to write in it.
                Err(Errno::EACCES) if may_open => {
                    may_open = false;
                    chmod_at(folder, name, 0o700)?;
                }
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => self.fresh += 1,
                result => {
                    self.fresh += 1;
                    return result;
                }
            }
        }
    }
}

/// renameat2(2), RENAME_NOREPLACE, where the file system has it.
pub(super) fn rename_to_new(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, new: &OsStr) -> nix::Result<()> {
    match renameat2(from, name, to, new, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => renameat(from, name, to, new),
        result => result,
    }
}

/// Removes what is no folder. `false`: it is one.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<bool> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR) => Ok(false),
        // POSIX says so of a folder.
        Err(Errno::EPERM) if meta_at(parent, name)?.node == Node::Directory => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens a folder, and gives its owner the right to empty it.
fn open(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let folder = match openat(parent, name, FOLDER, Mode::empty()) {
        Err(Errno::EACCES) => {
            chmod_at(parent, name, 0o700)?;
            openat(parent, name, FOLDER, Mode::empty())?
        }
        result => result?,
    };
    if !geteuid().is_root() && fstat(&folder)?.st_mode & 0o700 != 0o700 {
        fchmod(&folder, Mode::S_IRWXU)?;
    }
    Ok(folder)
}

fn batch(folder: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut stream = Dir::openat(folder, ".", FOLDER, Mode::empty())?;
    let mut names = Vec::new();
    for entry in stream.iter() {
        names.extend(name_of(entry?.file_name().to_bytes()));
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

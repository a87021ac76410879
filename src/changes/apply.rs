//! Makes the workspace what the command saw. Each file appears complete or not at all: it is written under a name of
//! Shannot's own beside its place and renamed. Whatever is done stays done, and whoever comes again after a kill finds less
//! to do. The order: what is new or changed, then what is gone, then permissions of folders, the deepest first.
//!
//! That holds for whoever looks and for kills, not for a power loss: fsync(2) before each rename(2) takes some 3 ms a
//! file on a local disk.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat};

use super::change::{Change, ChangeKind, Node};
use super::content;
use super::diff::{Anchor, Found};
use super::error::{Error, at_errno};
use super::journal::{Deed, Journal};
use super::remove::remove;
use super::tree::{Meta, Permissions, Tree, meta_at};
use super::upper::Upper;
use crate::sys;

/// What makes the file that is to be renamed.
const NEW: OFlag =
    OFlag::O_WRONLY.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

pub(super) struct Apply<'a> {
    upper: &'a mut Upper,
    journal: &'a Journal,
    workspace: Tree,
    /// The same, for a second place at the same time.
    anchored: Tree,
    own: &'a OsStr,
    anchors: HashMap<u64, Anchor>,
    /// The folder that was last seen to be writable.
    writable: Option<PathBuf>,
}

impl<'a> Apply<'a> {
    pub(super) fn new(
        upper: &'a mut Upper,
        journal: &'a Journal,
        workspace: Tree,
        own: &'a OsStr,
        found: &mut Found,
    ) -> nix::Result<Self> {
        let root = workspace.root().try_clone_to_owned().map_err(|error| sys::errno_of(&error))?;
        let anchors = std::mem::take(&mut found.anchors);
        let anchored = Tree::new(root)?;
        Ok(Self { upper, journal, workspace, anchored, own, anchors, writable: None })
    }

    /// Applies what is not refused, and takes away what an interrupted apply left in `folders`.
    pub(super) fn all(mut self, changes: &[Change], folders: &[PathBuf]) -> Result<(), Error> {
        let done = self.change_all(changes, folders);
        // No folder stays more open than it was because something else failed.
        done.and(settle(&mut self.workspace))
    }

    /// Takes away what is not finished, and nothing else.
    pub(super) fn clear_all(mut self, folders: &[PathBuf]) -> Result<(), Error> {
        let done = folders.iter().try_for_each(|folder| self.clear(folder));
        done.and(settle(&mut self.workspace))
    }

    fn change_all(&mut self, changes: &[Change], folders: &[PathBuf]) -> Result<(), Error> {
        for folder in folders {
            self.clear(folder)?;
        }
        let wanted = || changes.iter().filter(|change| change.refused.is_none());
        for change in wanted().filter(|change| change.kind != ChangeKind::Deleted) {
            self.make(change)?;
        }
        for change in wanted().filter(|change| change.kind == ChangeKind::Deleted) {
            self.delete(&change.path).map_err(swapped("delete", &change.path))?;
        }
        Ok(())
    }

    fn clear(&mut self, folder: &Path) -> Result<(), Error> {
        let mut cleared = self.try_clear(folder);
        if cleared == Err(Errno::EACCES) {
            // It has its final permissions already.
            cleared = self.workspace.open_up(folder).and_then(|()| self.try_clear(folder));
        }
        match cleared {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EXDEV) => Ok(()),
            Err(errno) => Err(at_errno("clean up", folder)(errno)),
        }
    }

    fn try_clear(&mut self, folder: &Path) -> nix::Result<()> {
        let held = self.workspace.folder(folder)?;
        match meta_at(held, self.own) {
            Err(Errno::ENOENT) => Ok(()),
            _ => remove(held, self.own),
        }
    }

    fn make(&mut self, change: &Change) -> Result<(), Error> {
        let made = self.try_make(change);
        if made.is_err() && self.try_clear(change.path.parent().unwrap_or(Path::new(""))).is_err() {
            // Why it was not made says more; the next apply, or who discards the run, tries again.
        }
        made
    }

    fn try_make(&mut self, change: &Change) -> Result<(), Error> {
        let path = &change.path;
        self.open_for_writing(path.parent().unwrap_or(Path::new(""))).map_err(swapped("write in", path))?;
        match change.node {
            Node::Directory => self.make_folder(change).map_err(swapped("make", path)),
            Node::Link => self.make_link(change).map_err(|error| swapped("make", path)(sys::errno_of(&error))),
            _ => self.make_file(change).map_err(|error| swapped("write", path)(sys::errno_of(&error))),
        }
    }

    /// Folders whose owner has no right to write are opened up until the end.
    fn open_for_writing(&mut self, folder: &Path) -> nix::Result<()> {
        if geteuid().is_root() || self.writable.as_deref() == Some(folder) {
            return Ok(());
        }
        let mode = self.workspace.folder(folder).and_then(fstat).map(|stat| stat.st_mode);
        if !matches!(mode, Ok(mode) if mode & 0o300 == 0o300) {
            self.workspace.open_up(folder)?;
        }
        self.writable = Some(folder.to_owned());
        Ok(())
    }

    fn make_folder(&mut self, change: &Change) -> nix::Result<()> {
        let mut last = Permissions { mode: change.mode, identity: change.identity, are_old: false };
        if change.kind != ChangeKind::Mode {
            let (folder, name) = self.workspace.parent(&change.path)?;
            if change.kind == ChangeKind::Retyped {
                remove(folder, self.own)?;
                mkdirat(folder, self.own, Mode::S_IRWXU)?;
                put(folder, self.own, name, change)?;
            } else {
                mkdirat(folder, name, Mode::S_IRWXU)?;
            }
            let made = meta_at(folder, name)?;
            // What a folder inherits is the workspace's business.
            last.mode |= made.mode & 0o2000;
            last.identity = Some(made.identity());
        } else if let Some(meta) = self.workspace.meta(&change.path)? {
            self.journal.note(Deed::Touched, &[meta]).map_err(|error| sys::errno_of(&error))?;
        }
        self.workspace.settle_on(change.path.clone(), last);
        Ok(())
    }

    fn make_link(&mut self, change: &Change) -> io::Result<()> {
        let text = self.upper.tree.link(&change.path)?;
        let (folder, name) = self.workspace.parent(&change.path)?;
        remove(folder, self.own)?;
        symlinkat(text.as_os_str(), folder, self.own)?;
        if let (true, Ok(old)) = (geteuid().is_root(), meta_at(folder, name)) {
            let (uid, gid) = (Uid::from_raw(old.uid), Gid::from_raw(old.gid));
            fchownat(folder, self.own, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        self.journal.note(Deed::Wrote, &[meta_at(folder, self.own)?])?;
        Ok(put(folder, self.own, name, change)?)
    }

    fn make_file(&mut self, change: &Change) -> io::Result<()> {
        let Some(meta) = self.upper.meta(&change.path)? else { return Err(Errno::ENOENT.into()) };
        let (folder, name) = self.workspace.parent(&change.path)?;
        remove(folder, self.own)?;
        let anchor = if meta.links > 1 { self.anchors.get(&meta.inode) } else { None };
        if let Some((path, identity)) = anchor
            && link(&mut self.anchored, path, *identity, folder, self.own)?
        {
            return Ok(put(folder, self.own, name, change)?);
        }
        let from = self.upper.tree.file(&change.path)?;
        let to = File::from(openat(folder, self.own, NEW, Mode::S_IRUSR | Mode::S_IWUSR)?);
        content::copy(&from, &to)?;
        keep_owner(&to, meta_at(folder, name))?;
        fchmod(&to, Mode::from_bits_truncate(change.mode))?;
        futimens(&to, &TimeSpec::UTIME_NOW, &TimeSpec::new(meta.mtime.0, meta.mtime.1))?;
        let made = Meta::from(fstat(&to)?);
        self.journal.note(Deed::Wrote, &[made])?;
        put(folder, self.own, name, change)?;
        if meta.links > 1 {
            self.anchors.insert(meta.inode, (change.path.clone(), made.identity()));
        }
        Ok(())
    }

    fn delete(&mut self, path: &Path) -> nix::Result<()> {
        self.open_for_writing(path.parent().unwrap_or(Path::new("")))?;
        let (folder, name) = self.workspace.parent(path)?;
        if meta_at(folder, name)?.node == Node::Directory {
            // It is gone at once, whatever happens while it is emptied.
            remove(folder, self.own)?;
            renameat(folder, name, folder, self.own)?;
            return remove(folder, self.own);
        }
        remove(folder, name)
    }
}

/// [`Tree::settle`], with the error that it is.
pub(super) fn settle(workspace: &mut Tree) -> Result<(), Error> {
    workspace.settle().map_err(|(path, errno)| swapped("set the permissions of", &path)(errno))
}

/// The owner of what is replaced stays its owner, where the caller can see to that; what is new is the caller's.
fn keep_owner(file: &File, old: nix::Result<Meta>) -> nix::Result<()> {
    let Ok(old) = old else { return Ok(()) };
    let now = Meta::from(fstat(file)?);
    if (old.uid, old.gid) == (now.uid, now.gid) {
        return Ok(());
    }
    let uid = geteuid().is_root().then(|| Uid::from_raw(old.uid));
    match fchown(file, uid, Some(Gid::from_raw(old.gid))) {
        // A group that the caller is not in.
        Err(Errno::EPERM) if !geteuid().is_root() => Ok(()),
        result => result,
    }
}

/// Gives a file of the workspace another name. `false`: it is no longer the file that it was.
fn link(tree: &mut Tree, path: &Path, identity: (u64, u64), folder: BorrowedFd<'_>, new: &OsStr) -> nix::Result<bool> {
    let linked = tree.parent(path).and_then(|(from, name)| linkat(from, name, folder, new, AtFlags::empty()));
    match linked {
        Ok(()) if meta_at(folder, new)?.identity() == identity => Ok(true),
        Ok(()) => remove(folder, new).map(|()| false),
        // There are file systems without hard links, and files with as many as can be.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EPERM | Errno::EMLINK | Errno::EXDEV | Errno::ELOOP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// renameat2(2), RENAME_NOREPLACE, where the file system has it. NFS has not, but links, which replace nothing either.
pub(super) fn rename_to_new(folder: BorrowedFd<'_>, name: &OsStr, new: &OsStr) -> nix::Result<()> {
    match renameat2(folder, name, folder, new, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => {}
        result => return result,
    }
    match linkat(folder, name, folder, new, AtFlags::empty()) {
        Ok(()) => unlinkat(folder, name, UnlinkatFlags::NoRemoveDir),
        Err(Errno::EEXIST) => Err(Errno::EEXIST),
        // A folder has one name, and some file systems have no links.
        Err(_) => match meta_at(folder, new) {
            Err(Errno::ENOENT) => renameat(folder, name, folder, new),
            Ok(_) => Err(Errno::EEXIST),
            Err(errno) => Err(errno),
        },
    }
}

/// Puts what is finished in its place.
fn put(folder: BorrowedFd<'_>, own: &OsStr, name: &OsStr, change: &Change) -> nix::Result<()> {
    match change.kind {
        ChangeKind::Added => rename_to_new(folder, own, name),
        ChangeKind::Retyped => {
            // rename(2) does not replace a folder by a file, nor the reverse.
            match renameat2(folder, own, folder, name, RenameFlags::RENAME_EXCHANGE) {
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    remove(folder, name)?;
                    renameat(folder, own, folder, name)
                }
                Ok(()) => remove(folder, own),
                Err(errno) => Err(errno),
            }
        }
        _ => renameat(folder, own, folder, name),
    }
}

/// What these errors mean in a tree that was looked at before.
fn swapped(verb: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EEXIST
        | Errno::ELOOP
        | Errno::ENOTEMPTY
        | Errno::ESTALE => Error::Swapped(path.to_owned()),
        errno => at_errno(verb, path)(errno),
    }
}

/// The name of what is not finished. One for a run is enough: nobody else applies it at the same time.
pub(super) fn own_name(run: &str) -> OsString {
    format!(".shannot-{run}").into()
}

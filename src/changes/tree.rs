//! A folder tree that somebody else may be changing: reached step by step from one descriptor, and never by a path that
//! the kernel would follow links in. At most three descriptors are held, however deep it goes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::geteuid;

use super::change::Node;
use super::journal::note_opened;
use crate::sys;

/// What opens a folder for its name only, and no link.
const STEP: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// What opens a folder to be listed or changed, and no link.
pub(super) const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// What opens a file to be read: no link, and nothing that waits (a FIFO) or becomes a terminal.
const READ: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Bytes of a path below the tree's root that are looked at. What lies deeper can't be named by one path anyway
/// (PATH_MAX), and bounds what a hostile tree costs.
pub(super) const LONGEST: usize = 4000;

/// What lstat(2) says, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) node: Node,
    /// Permissions with the set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) links: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, i64),
    /// The same.
    pub(super) ctime: (i64, i64),
    /// A character device 0/0: overlayfs's mark of what was deleted.
    pub(super) is_whiteout: bool,
}

impl From<FileStat> for Meta {
    fn from(stat: FileStat) -> Self {
        let node = match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => Node::File,
            libc::S_IFDIR => Node::Directory,
            libc::S_IFLNK => Node::Link,
            libc::S_IFIFO => Node::Fifo,
            libc::S_IFSOCK => Node::Socket,
            _ => Node::Device,
        };
        Self {
            node,
            mode: stat.st_mode & 0o7777,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            device: stat.st_dev,
            inode: stat.st_ino,
            links: wide(stat.st_nlink),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            is_whiteout: stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0,
        }
    }
}

/// The link count has 32 bits on aarch64 and riscv64.
fn wide(count: impl Into<u64>) -> u64 {
    count.into()
}

impl Meta {
    /// Which file it is.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// The permissions that a folder gets in the end.
#[derive(Debug)]
pub(super) struct Permissions {
    pub(super) mode: u32,
    /// Which folder is meant, where that is known.
    pub(super) identity: Option<(u64, u64)>,
    /// Those that it had before it was opened up. That it has gone since is no failure.
    pub(super) are_old: bool,
}

/// A tree below one folder. Paths are relative to it; the empty one is the folder itself. However it ends, no folder stays
/// more open than it was.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// Which mount that is, where the kernel can tell (Linux 5.8).
    mount: Option<u64>,
    /// Where it was last, the descriptor of that folder, and which ones those on the way to it are, the last one included.
    at: PathBuf,
    folder: Option<OwnedFd>,
    way: Vec<(u64, u64)>,
    /// Of folders that were opened up, or made, in a way that their permissions may not allow.
    pending: BTreeMap<PathBuf, Permissions>,
    /// Where it is noted before a folder is opened up, so that it is known after a kill.
    notes: Option<File>,
}

impl Tree {
    /// Of the folder that a descriptor names.
    pub(super) fn new(root: OwnedFd) -> nix::Result<Self> {
        let mount = sys::mount_id(root.as_fd())?;
        let (at, way) = (PathBuf::new(), Vec::new());
        Ok(Self { root, mount, at, folder: None, way, pending: BTreeMap::new(), notes: None })
    }

    /// Of the folder at an absolute path without links, `.` and `..`. ENOTDIR and ELOOP for one that has some.
    pub(super) fn open(path: &Path) -> nix::Result<Self> {
        let relative = path.strip_prefix("/").map_err(|_| Errno::EINVAL)?;
        let mut folder = open("/", STEP, Mode::empty())?;
        for part in relative {
            if part == ".." {
                return Err(Errno::ELOOP);
            }
            folder = openat(&folder, part, STEP, Mode::empty())?;
        }
        Self::new(folder)
    }

    /// The folder itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A folder of the tree, for its name only. ENOTDIR for a link, EXDEV for what another mount covers.
    pub(super) fn folder(&mut self, path: &Path) -> nix::Result<BorrowedFd<'_>> {
        let common = self.at.iter().zip(path).take_while(|(one, other)| one == other).count();
        let up = self.way.len() - common;
        // Back from the root where that is shorter. Else deep trees would cost their depth for each folder at the bottom.
        if up > common || self.go_up(up).is_err() {
            (self.at, self.folder) = (PathBuf::new(), None);
            self.way.clear();
        }
        for part in path.iter().skip(self.way.len()) {
            let next = self.step(part)?;
            self.way.push(Meta::from(fstat(&next)?).identity());
            self.at.push(part);
            self.folder = Some(next);
        }
        Ok(self.folder.as_ref().map_or(self.root.as_fd(), AsFd::as_fd))
    }

    fn step(&self, name: &OsStr) -> nix::Result<OwnedFd> {
        let next = openat(self.folder.as_ref().unwrap_or(&self.root), name, STEP, Mode::empty())?;
        if self.mount.is_some() && sys::mount_id(next.as_fd())? != self.mount {
            return Err(Errno::EXDEV);
        }
        Ok(next)
    }

    /// To the folders that were gone through on the way down, and to no others: what was moved meanwhile is ESTALE.
    fn go_up(&mut self, steps: usize) -> nix::Result<()> {
        for _ in 0..steps {
            let up = self.step(OsStr::new(".."))?;
            let above = self.way.len().checked_sub(2).and_then(|above| self.way.get(above)).copied();
            self.folder = match above {
                Some(identity) if Meta::from(fstat(&up)?).identity() != identity => return Err(Errno::ESTALE),
                Some(_) => Some(up),
                None => None,
            };
            self.way.pop();
            self.at.pop();
        }
        Ok(())
    }

    /// The folder that a path lies in, and its name there; of the root, itself and `.`.
    pub(super) fn parent<'a>(&mut self, path: &'a Path) -> nix::Result<(BorrowedFd<'_>, &'a OsStr)> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((self.folder(parent)?, name)),
            _ => Ok((self.root.as_fd(), OsStr::new("."))),
        }
    }

    /// lstat(2); `None` where there is nothing, or no folder on the way.
    pub(super) fn meta(&mut self, path: &Path) -> nix::Result<Option<Meta>> {
        if path.as_os_str().is_empty() {
            // By name it would take the right to look into it.
            return fstat(&self.root).map(|stat| Some(stat.into()));
        }
        let found = self.parent(path).and_then(|(folder, name)| meta_at(folder, name));
        match found {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            other => other.map(Some),
        }
    }

    /// chmod(2), links not followed.
    pub(super) fn chmod(&mut self, path: &Path, mode: u32) -> nix::Result<()> {
        if path.as_os_str().is_empty() {
            return chmod_held(&self.root, mode);
        }
        let (folder, name) = self.parent(path)?;
        chmod_at(folder, name, mode)
    }

    /// Lets the owner into each folder on a path, and into the last one, until [`Tree::settle`].
    pub(super) fn open_up(&mut self, path: &Path) -> nix::Result<()> {
        let mut folder = PathBuf::new();
        let steps = std::iter::once(OsStr::new("")).chain(path.iter());
        for step in steps {
            folder = if step.is_empty() { PathBuf::new() } else { folder.join(step) };
            let Some(meta) = self.meta(&folder)? else { return Ok(()) };
            let is_shut = meta.node == Node::Directory && meta.mode & 0o700 != 0o700;
            if is_shut && meta.uid == geteuid().as_raw() {
                if let Some(notes) = &self.notes {
                    note_opened(notes, &folder, &meta)?;
                }
                let old = Permissions { mode: meta.mode, identity: Some(meta.identity()), are_old: true };
                self.pending.entry(folder.clone()).or_insert(old);
                self.chmod(&folder, meta.mode | 0o700)?;
            }
        }
        Ok(())
    }

    /// Whatever is opened up from now on is noted there.
    pub(super) fn note_opened_in(&mut self, file: File) {
        self.notes = Some(file);
    }

    /// Says what permissions a folder gets from [`Tree::settle`], whatever it had.
    pub(super) fn settle_on(&mut self, path: PathBuf, permissions: Permissions) {
        self.pending.insert(path, permissions);
    }

    /// Gives folders their permissions, the deepest first: those above may shut the way to them. Goes on after a failure; the
    /// first one is returned with its path.
    pub(super) fn settle(&mut self) -> Result<(), (PathBuf, Errno)> {
        let mut failed = None;
        for (path, last) in std::mem::take(&mut self.pending).into_iter().rev() {
            match self.set_permissions(&path, &last) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if last.are_old => {}
                Err(errno) => drop(failed.get_or_insert((path, errno))),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn set_permissions(&mut self, path: &Path, last: &Permissions) -> nix::Result<()> {
        let Some(meta) = self.meta(path)? else { return Err(Errno::ENOENT) };
        if meta.node != Node::Directory || last.identity.is_some_and(|identity| identity != meta.identity()) {
            return Err(Errno::ENOTDIR);
        }
        let held = if path.as_os_str().is_empty() {
            openat(self.root(), ".", FOLDER, Mode::empty())
        } else {
            let (folder, name) = self.parent(path)?;
            openat(folder, name, FOLDER, Mode::empty())
        };
        match held {
            Ok(held) if Meta::from(fstat(&held)?).identity() != meta.identity() => Err(Errno::ENOTDIR),
            Ok(held) => fchmod(&held, Mode::from_bits_truncate(last.mode)),
            // Its owner alone can be refused, who harms nobody by what is put in its place.
            Err(Errno::EACCES) => self.chmod(path, last.mode),
            Err(errno) => Err(errno),
        }
    }

    /// Names in a folder, sorted. E2BIG where they take more than so many bytes of memory.
    pub(super) fn names(&mut self, path: &Path, most: usize) -> nix::Result<Vec<OsString>> {
        let mut names = Vec::new();
        let mut bytes = 0;
        let mut folder = Dir::openat(self.folder(path)?, ".", FOLDER, Mode::empty())?;
        for entry in folder.iter() {
            let Some(name) = name_of(entry?.file_name().to_bytes()) else { continue };
            bytes += size_of::<OsString>() + name.len();
            if bytes > most {
                return Err(Errno::E2BIG);
            }
            names.push(name);
        }
        names.sort();
        Ok(names)
    }

    /// A regular file to be read; ELOOP for anything else that is there.
    pub(super) fn file(&mut self, path: &Path) -> nix::Result<File> {
        let (folder, name) = self.parent(path)?;
        let file = openat(folder, name, READ, Mode::empty())?;
        let is_file = Meta::from(fstat(&file)?).node == Node::File;
        if is_file { Ok(file.into()) } else { Err(Errno::ELOOP) }
    }

    /// A folder to be listed or asked for attributes.
    pub(super) fn open_folder(&mut self, path: &Path) -> nix::Result<File> {
        openat(self.folder(path)?, ".", FOLDER, Mode::empty()).map(File::from)
    }

    /// The text of a symbolic link.
    pub(super) fn link(&mut self, path: &Path) -> nix::Result<OsString> {
        let (folder, name) = self.parent(path)?;
        readlinkat(folder, name)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.settle().is_err() {
            // Something else has failed before, and is what is said.
        }
    }
}

/// A name of a directory stream, but `.` and `..`.
pub(super) fn name_of(bytes: &[u8]) -> Option<OsString> {
    (bytes != b"." && bytes != b"..").then(|| OsString::from_vec(bytes.to_vec()))
}

/// lstat(2) of a name in a folder.
pub(super) fn meta_at(folder: impl AsFd, name: &OsStr) -> nix::Result<Meta> {
    fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(Meta::from)
}

/// chmod(2) of a name in a folder, links not followed.
pub(super) fn chmod_at(folder: impl AsFd, name: &OsStr, mode: u32) -> nix::Result<()> {
    fchmodat(folder, name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)
}

/// chmod(2) of a descriptor that was opened for its name only, through /proc.
fn chmod_held(held: impl AsFd, mode: u32) -> nix::Result<()> {
    fchmodat(AT_FDCWD, &sys::proc_path(held), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

/// Bytes of a path.
pub(super) fn length(path: &Path) -> usize {
    path.as_os_str().as_bytes().len()
}

//! What lies where on the host. A trait, so that a plan can be made, and tested, against a tree in memory.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat};

use super::{Program, parse_program};
use crate::sys;

/// What opens a file for its name only.
const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// What a path names, links not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Some execute bit is set.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its text.
    Link(PathBuf),
    /// A device node.
    Device,
    /// A socket or pipe.
    Other,
}

/// Which file it is, whatever its name (stat(2), st_dev and st_ino).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// Device.
    pub device: u64,
    /// Inode number on it. No file has 0.
    pub inode: u64,
}

/// What a path leads to, links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path without links, `.` and `..`.
    pub path: PathBuf,
    /// The file at that path.
    pub identity: Identity,
}

/// The host's files, as far as a plan needs to know them.
pub trait Files {
    /// lstat(2).
    ///
    /// # Errors
    /// lstat's and readlink's.
    fn kind(&self, path: &Path) -> io::Result<Kind>;

    /// What a path names in the end, links followed.
    ///
    /// # Errors
    /// stat(2)'s.
    fn target_kind(&self, path: &Path) -> io::Result<Kind>;

    /// What a path names in the end, links followed: name and file belong together, whoever renames meanwhile.
    ///
    /// # Errors
    /// open(2)'s; ENOENT for what has no path.
    fn find(&self, path: &Path) -> io::Result<Found>;

    /// Which file a path names, links not followed, when [`Files::kind`] looked at it.
    ///
    /// # Errors
    /// lstat(2)'s.
    fn identity(&self, path: &Path) -> io::Result<Identity>;

    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// opendir(3)'s.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// How the kernel would start a file.
    ///
    /// # Errors
    /// open(2)'s and read(2)'s; not those of a malformed file, which is [`Program::Unknown`].
    fn program(&self, path: &Path) -> io::Result<Program>;

    /// What the kernel says in a file of /proc.
    ///
    /// # Errors
    /// open(2)'s and read(2)'s.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Where the dynamic loader's cache says that a library of this name lies (ldconfig(8)).
    fn cached_libraries(&self, name: &str) -> Vec<PathBuf>;
}

/// What lstat(2) said.
type Seen = (Kind, Identity);

/// The files of the machine that this runs on. Remembers what it saw: a plan asks for the same directories again and
/// again, and should see one state of them.
#[derive(Debug, Default)]
pub struct LocalFiles {
    /// By the path's bytes: as a `Path` each comparison would parse it.
    seen: RefCell<HashMap<OsString, Result<Seen, i32>>>,
    loader_cache: OnceCell<Vec<u8>>,
}

fn kind_of(path: &Path, metadata: &std::fs::Metadata) -> io::Result<Kind> {
    let file_type = metadata.file_type();
    Ok(if file_type.is_file() {
        Kind::File { executable: metadata.mode() & 0o111 != 0 }
    } else if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Link(std::fs::read_link(path)?)
    } else if file_type.is_char_device() || file_type.is_block_device() {
        Kind::Device
    } else {
        Kind::Other
    })
}

fn identity_of(metadata: &std::fs::Metadata) -> Identity {
    Identity { device: metadata.dev(), inode: metadata.ino() }
}

/// Opens, for its name only, a path that has no link in it.
///
/// # Errors
/// ELOOP for one that has, and as open(2).
pub fn open_without_links(path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(PATH_ONLY).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        // Before Linux 5.6, or a filter around us that knows nothing of openat2(2).
        Err(Errno::ENOSYS | Errno::EPERM) => walk_without_links(path),
        result => result,
    }
}

/// The same, one component at a time.
fn walk_without_links(path: &Path) -> nix::Result<OwnedFd> {
    let mut here = open(if path.is_absolute() { "/" } else { "." }, PATH_ONLY, Mode::empty())?;
    for component in path.components() {
        let name = match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => OsStr::new(".."),
            Component::Normal(name) => name,
        };
        here = open_no_link(here, name)?;
    }
    Ok(here)
}

/// Opens a name in a folder, for its name only.
///
/// # Errors
/// ELOOP for a link, and as openat(2).
pub fn open_no_link(folder: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let opened = openat(folder, name, PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty())?;
    let is_link = SFlag::from_bits_truncate(fstat(&opened)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK;
    if is_link { Err(Errno::ELOOP) } else { Ok(opened) }
}

/// What has no link and no `..` on its way, and so is called what the path says: the usual case, and the cheaper one.
fn open_as_called(path: &Path) -> Option<File> {
    let is_plain = path.is_absolute() && path.components().all(|part| part != Component::ParentDir);
    if is_plain { open_without_links(path).ok().map(File::from) } else { None }
}

impl LocalFiles {
    fn look<T>(&self, path: &Path, part: impl Fn(&Seen) -> T) -> io::Result<T> {
        if let Some(known) = self.seen.borrow().get(path.as_os_str()) {
            return known.as_ref().map(part).map_err(|errno| io::Error::from_raw_os_error(*errno));
        }
        let seen = std::fs::symlink_metadata(path)
            .and_then(|metadata| Ok((kind_of(path, &metadata)?, identity_of(&metadata))))
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        let result = seen.as_ref().map(part).map_err(|errno| io::Error::from_raw_os_error(*errno));
        self.seen.borrow_mut().insert(path.into(), seen);
        result
    }
}

impl Files for LocalFiles {
    fn kind(&self, path: &Path) -> io::Result<Kind> {
        self.look(path, |(kind, _)| kind.clone())
    }

    fn target_kind(&self, path: &Path) -> io::Result<Kind> {
        kind_of(path, &std::fs::metadata(path)?)
    }

    fn find(&self, path: &Path) -> io::Result<Found> {
        if let Some(file) = open_as_called(path) {
            let identity = identity_of(&file.metadata()?);
            return Ok(Found { path: path.components().collect(), identity });
        }
        let file = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let identity = identity_of(&file.metadata()?);
        let path = std::fs::read_link(sys::proc_path(&file))?;
        // A pipe, or a place outside of this process's root.
        if !path.is_absolute() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        Ok(Found { path, identity })
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        self.look(path, |(_, identity)| *identity)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let mut names = std::fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn program(&self, path: &Path) -> io::Result<Program> {
        // O_NONBLOCK: a FIFO with execute bits must not hang the plan.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(parse_program(&file))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn cached_libraries(&self, name: &str) -> Vec<PathBuf> {
        let cache = self.loader_cache.get_or_init(|| std::fs::read("/etc/ld.so.cache").unwrap_or_default());
        super::program::search_loader_cache(cache, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_with_a_link_is_refused_by_the_kernel_and_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        symlink("a", real.join("link")).unwrap();
        for open in [open_without_links, walk_without_links] {
            assert!(
                open(&real.join("a/b")).is_ok() && open(&real.join("a/../a/b")).is_ok() && open(Path::new("/")).is_ok()
            );
            for (path, errno) in [("link", Errno::ELOOP), ("link/b", Errno::ELOOP), ("none", Errno::ENOENT)] {
                assert_eq!(open(&real.join(path)).unwrap_err(), errno, "{path}");
            }
        }
    }
}

//! What lies where on the host. A trait, so that a plan can be made, and tested, against a tree in memory.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::{Program, parse_program};

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
    /// A device, socket or pipe.
    Other,
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

    /// The path without links, `.` and `..`, as realpath(3).
    ///
    /// # Errors
    /// realpath's.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;

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

    /// Where the dynamic loader's cache says that a library of this name lies (ldconfig(8)).
    fn cached_libraries(&self, name: &str) -> Vec<PathBuf>;
}

/// The files of the machine that this runs on. Remembers what it saw: a plan asks for the same directories again and
/// again, and should see one state of them.
#[derive(Debug, Default)]
pub struct LocalFiles {
    /// By the path's bytes: as a `Path` each comparison would parse it.
    kinds: RefCell<HashMap<OsString, Result<Kind, i32>>>,
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
    } else {
        Kind::Other
    })
}

impl Files for LocalFiles {
    fn kind(&self, path: &Path) -> io::Result<Kind> {
        if let Some(known) = self.kinds.borrow().get(path.as_os_str()) {
            return known.clone().map_err(io::Error::from_raw_os_error);
        }
        let kind = std::fs::symlink_metadata(path).and_then(|metadata| kind_of(path, &metadata));
        let known = kind.as_ref().map(Kind::clone).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        self.kinds.borrow_mut().insert(path.into(), known);
        kind
    }

    fn target_kind(&self, path: &Path) -> io::Result<Kind> {
        kind_of(path, &std::fs::metadata(path)?)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(path)
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

    fn cached_libraries(&self, name: &str) -> Vec<PathBuf> {
        let cache = self.loader_cache.get_or_init(|| std::fs::read("/etc/ld.so.cache").unwrap_or_default());
        super::program::search_loader_cache(cache, name)
    }
}

//! The private folder of a run without a root of its own: made before anything runs, removed after everything has ended.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;

use crate::plan::Scratch;

/// Makes it. What is there already is somebody else's.
pub(super) fn make(scratch: &Scratch) -> nix::Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
    builder.create(&scratch.path).map_err(errno)?;
    let inside = scratch.folders.iter().try_for_each(|folder| builder.create(scratch.path.join(folder)));
    inside.or_else(|error| remove(scratch).and(Err(error))).map_err(errno)
}

/// Removes it with all that is in it; nothing of the sandbox may run any more.
pub(super) fn remove(scratch: &Scratch) -> io::Result<()> {
    match fs::remove_dir_all(&scratch.path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // A folder whose owner took away its own right to look into it.
            unlock(&scratch.path)?;
            fs::remove_dir_all(&scratch.path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn unlock(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unlock(&entry.path())?;
        }
    }
    Ok(())
}

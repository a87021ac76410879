//! The private folder of a run without a root of its own: made before anything runs, removed after everything has ended.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use crate::plan::Scratch;

/// Held while a run uses its folder; gone with the process, however that ends.
pub(super) type Lock = Flock<OwnedFd>;

/// A folder that is younger may be about to be locked.
const OLD: Duration = Duration::from_secs(10);

/// Makes it. What is there already is somebody else's. Those that killed runs left in the same place go.
pub(super) fn make(scratch: &Scratch) -> nix::Result<Lock> {
    if let Some(parent) = scratch.path.parent() {
        sweep(parent);
    }
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
    builder.create(&scratch.path).map_err(errno)?;
    let inside = scratch.folders.iter().try_for_each(|folder| builder.create(scratch.path.join(folder)));
    inside.or_else(|error| remove(scratch).and(Err(error))).map_err(errno)?;
    lock(&scratch.path).or_else(|errno| remove(scratch).map_or(Err(errno), |()| Err(errno)))
}

fn lock(folder: &Path) -> nix::Result<Lock> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = open(folder, flags, Mode::empty())?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

/// Removes folders of this name and this user that no run holds. That some can't be removed keeps nobody from running.
fn sweep(parent: &Path) {
    let is_left = |path: &Path| -> Option<Lock> {
        let name = path.file_name()?.to_str()?.strip_prefix("shannot-")?;
        let metadata = fs::symlink_metadata(path).ok()?;
        let is_ours = name.len() == 16
            && name.bytes().all(|byte| byte.is_ascii_hexdigit())
            && metadata.is_dir()
            && metadata.uid() == geteuid().as_raw()
            && metadata.modified().ok()?.elapsed().ok()? > OLD;
        if is_ours { lock(path).ok() } else { None }
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Some(_held) = is_left(&path)
            && remove(&Scratch { path, folders: Vec::new() }).is_err()
        {
            // The next run tries again.
        }
    }
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

//! Folders of caches. Jobs write into them, and each comes to its own: none is another user's, and no link leads elsewhere.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::geteuid;

use super::Error;
use crate::host::safe_folder;
use crate::policy::{Cache, FsOp, Policy};

const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Makes those that are missing. The policy then names them by paths without links, at which nobody else can put others.
pub(super) fn make(policy: &mut Policy) -> Result<(), Error> {
    let workspace = policy.workspace.as_ref().map(|workspace| workspace.path.clone());
    for cache in &mut policy.caches {
        let path = cache.base.join(&cache.below);
        let failed = |errno: Errno| Error { hint: hint(errno), ..Error::new("use the cache", &path, errno) };
        cache.base = make_one(cache, workspace.as_deref()).map_err(failed)?;
        let real = cache.base.join(&cache.below);
        for op in &mut policy.fs {
            let sources = match op {
                FsOp::Bind { source, .. } => std::slice::from_mut(source),
                FsOp::Overlay { sources, .. } => sources.as_mut_slice(),
                _ => &mut [],
            };
            sources.iter_mut().filter(|source| **source == path).for_each(|source| source.clone_from(&real));
        }
    }
    Ok(())
}

fn hint(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::EXDEV => {
            "it lies in the workspace, where a job chooses what it is: set XDG_CACHE_HOME to a folder elsewhere"
        }
        Errno::EPERM => {
            "it, or a folder on the way, is another user's, or another user may write to it: chown, chmod go-w"
        }
        Errno::ENOTDIR | Errno::ELOOP => "it, or a folder on the way, is a link or no folder: remove it",
        _ => "caches are kept below $XDG_CACHE_HOME, else below ~/.cache: name a folder of yours there",
    })
}

/// The real base. Not even another user may know what is cached.
fn make_one(cache: &Cache, workspace: Option<&Path>) -> nix::Result<PathBuf> {
    let errno_of = |error: std::io::Error| crate::sys::errno_of(&error);
    DirBuilder::new().recursive(true).mode(0o700).create(&cache.base).map_err(errno_of)?;
    let base = cache.base.canonicalize().map_err(errno_of)?;
    if workspace.is_some_and(|workspace| base.starts_with(workspace)) {
        return Err(Errno::EXDEV);
    }
    let mut folder = open(&base, FOLDER, Mode::empty())?;
    // Who can change a folder on the way can put another one in its place.
    if safe_folder(&base).is_none() || fstat(&folder)?.st_uid != geteuid().as_raw() {
        return Err(Errno::EPERM);
    }
    for component in cache.below.components() {
        let Component::Normal(name) = component else { return Err(Errno::EINVAL) };
        match mkdirat(&folder, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        folder = openat(&folder, name, FOLDER | OFlag::O_NOFOLLOW, Mode::empty())?;
        let stat = fstat(&folder)?;
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            return Err(Errno::EPERM);
        }
    }
    Ok(base)
}

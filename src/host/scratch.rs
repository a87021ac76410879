//! Where a private folder can be made: where nobody else may rename or remove what the caller makes, nor anything on the way.

use std::fs::symlink_metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::survey::is_writable;

/// A path for one that does not exist.
pub(super) fn probe_scratch() -> Option<PathBuf> {
    let me = nix::unistd::geteuid();
    let usual = ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(PathBuf::from);
    let own = PathBuf::from(format!("/run/user/{me}"));
    // Whose `/` is can replace everything anyway. In a user namespace without root it is nobody, and so is everyone else: that is
    // trusted only where the system's own folders are.
    let root = symlink_metadata("/").ok()?.uid();
    let is_ours = |owner| owner == 0 || owner == me.as_raw();
    let chosen = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let chosen = chosen.and_then(|folder| find_safe(&folder, is_ours));
    let mut usual = usual.into_iter().chain([own]);
    let folder =
        chosen.or_else(|| usual.find_map(|folder| find_safe(&folder, |owner| is_ours(owner) || owner == root)))?;
    Some(folder.join(super::private_name()))
}

/// A folder's path without links, if nobody but root and this user can rename or remove what this user makes there.
pub fn safe_folder(folder: &Path) -> Option<PathBuf> {
    let me = nix::unistd::geteuid().as_raw();
    find_safe(folder, |owner| owner == 0 || owner == me)
}

/// Its path without links, if all on it are safe from others.
fn find_safe(folder: &Path, is_trusted: impl Fn(u32) -> bool) -> Option<PathBuf> {
    let path = folder.canonicalize().ok()?;
    let is_safe = matches!(unsafe_on_way(&path, is_trusted), Ok(None));
    (is_safe && is_writable(&path)).then_some(path)
}

/// The first folder of a path without links, from the root down, in which others than those can rename or remove what is not
/// theirs. In a sticky one they can't.
///
/// # Errors
/// lstat(2)'s.
pub fn unsafe_on_way(path: &Path, is_trusted: impl Fn(u32) -> bool) -> io::Result<Option<PathBuf>> {
    let mut on_the_way: Vec<&Path> = path.ancestors().collect();
    // Below a folder that is safe nobody changes what was seen.
    on_the_way.reverse();
    for folder in on_the_way {
        let found = symlink_metadata(folder)?;
        let is_shared = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
        if !found.is_dir() || !is_trusted(found.uid()) || is_shared {
            return Ok(Some(folder.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn a_folder_is_safe_only_with_all_above_it() {
        let parent = tempfile::tempdir().unwrap();
        let (above, folder) = (parent.path().join("above"), parent.path().join("above/folder"));
        create_dir(&above).unwrap();
        create_dir(&folder).unwrap();
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let me = nix::unistd::geteuid().as_raw();
        let find = || find_safe(&folder, |owner| owner == 0 || owner == me);
        assert_eq!(find(), Some(folder.canonicalize().unwrap()));
        for path in [&folder, &above] {
            mode(path, 0o1777);
            assert!(find().is_some(), "{path:?}");
            for shared in [0o777, 0o770] {
                mode(path, shared);
                assert_eq!(find(), None, "{path:?}");
            }
            mode(path, 0o755);
            if me == 0 {
                chown(path, Some(65534), None).unwrap();
                assert_eq!(find(), None, "{path:?}");
                chown(path, Some(0), None).unwrap();
            }
        }
        let link = parent.path().join("link");
        symlink(&above, &link).unwrap();
        assert_eq!(find_safe(&link.join("folder"), |owner| owner == 0 || owner == me), find());
        assert!(find().is_some());
    }
}

//! Where the store may lie. overlayfs is told its folders by their paths: whoever could put another folder in the place of one
//! on the way would choose what is mounted, and what is read and removed later.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, geteuid};

use super::error::{Error, at};
use crate::host::unsafe_on_way;

/// Below `$XDG_STATE_HOME`, else `~/.local/state`; for root with a HOME that is not root's alone, with `/` or with none,
/// `/var/lib`.
pub(super) fn of_caller() -> Result<PathBuf, Error> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return Ok(state);
    }
    let is_root = geteuid().is_root();
    let is_own = |home: &Path| home != "/" && fs::canonicalize(home).is_ok_and(|home| check(&home, geteuid()).is_ok());
    match absolute("HOME").filter(|home| !is_root || is_own(home)) {
        Some(home) => Ok(home.join(".local/state")),
        None if is_root => Ok("/var/lib".into()),
        None => Err(Error::NoPlace),
    }
}

/// Makes a folder that may hold the store, if there is none. Its path without links.
pub(super) fn make(state: &Path) -> Result<PathBuf, Error> {
    let look = |path: &Path| fs::canonicalize(path).map_err(at("look at", path));
    if geteuid().is_root() {
        // Nothing is made in what is another's.
        let existing = state.ancestors().find(|path| path.exists()).unwrap_or(state);
        check(&look(existing)?, geteuid())?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(at("make", state))?;
    let path = look(state)?;
    check(&path, geteuid())?;
    Ok(path)
}

/// For root, each folder on the way must be root's, and nobody else may rename what is in it. For others the last one must be
/// theirs or root's: those above are their own business, or the administrator's.
fn check(path: &Path, caller: Uid) -> Result<(), Error> {
    let owner = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.uid()).map_err(at("look at", path));
    // In a user namespace, what is root's outside is nobody's.
    let root = owner(Path::new("/"))?;
    let is_trusted = |owner: u32| [0, root, caller.as_raw()].contains(&owner);
    let untrusted = if caller.is_root() {
        unsafe_on_way(path, is_trusted).map_err(at("look at", path))?
    } else {
        let is_others = !is_trusted(owner(path)?);
        is_others.then(|| path.to_owned())
    };
    untrusted.map_or(Ok(()), |folder| Err(Error::Untrusted(folder)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn a_place_on_whose_way_others_can_write_is_none_for_root() {
        if !geteuid().is_root() {
            println!("skipped: only root can give a folder away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (way, state) = (folder.path().join("way"), folder.path().join("way/state"));
        fs::create_dir(&way).unwrap();
        let refuses = |path: &Path, folder: &Path| {
            let error = make(path).unwrap_err();
            assert!(matches!(&error, Error::Untrusted(named) if named == folder) && error.hint().is_some(), "{error}");
        };
        let mode = |mode: u32| fs::set_permissions(&way, fs::Permissions::from_mode(mode)).unwrap();
        for writable in [0o777, 0o775] {
            mode(writable);
            refuses(&state, &way);
        }
        mode(0o755);
        chown(&way, Some(65534), None).unwrap();
        refuses(&state, &way);
        assert!(!state.exists(), "nothing is made there");
        // Nobody can rename what is root's in such a folder, as in /tmp.
        chown(&way, Some(0), None).unwrap();
        mode(0o1777);
        assert_eq!(make(&state).unwrap(), fs::canonicalize(&state).unwrap());
        chown(&state, Some(65534), None).unwrap();
        refuses(&state, &state);
        // A link in it leads to a place that is judged by itself.
        std::os::unix::fs::symlink(&state, folder.path().join("link")).unwrap();
        refuses(&folder.path().join("link"), &state);
        // Its owner may have it, another may not, and everybody may use what is root's.
        check(&state, Uid::from_raw(65534)).unwrap();
        assert!(check(&state, Uid::from_raw(1)).is_err());
        check(&way, Uid::from_raw(1)).unwrap();
    }
}

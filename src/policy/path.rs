//! Paths inside the sandbox.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Serialize, Serializer};

/// An absolute path inside the sandbox: no `..` (but from [`SandboxPath::traversing`]), no `.`, no empty component, no NUL,
/// at most `PATH_MAX` bytes. Links inside it are resolved by the kernel under the new root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxPath(
    /// Normal form, so that it can be compared as bytes; as a `Path` each comparison would parse it.
    OsString,
);

/// Why a path can't be one inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Relative.
    #[error("path {0:?} is not absolute")]
    Relative(PathBuf),
    /// `..` would make the meaning depend on links.
    #[error("path {0:?} contains \"..\"")]
    ParentComponent(PathBuf),
    /// A NUL byte ends a path for the kernel.
    #[error("path {0:?} contains a NUL byte")]
    Nul(PathBuf),
    /// Longer than the kernel takes.
    #[error("path of {0} bytes is longer than the kernel takes (4095)")]
    TooLong(usize),
}

/// PATH_MAX without the final NUL (limits.h).
const PATH_MAX: usize = 4095;

impl SandboxPath {
    /// Validates and normalises.
    ///
    /// # Errors
    /// [`PathError`] for a relative path, `..`, a NUL byte, or more than 4095 bytes.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, PathError> {
        Self::normalise(path.as_ref(), false)
    }

    /// As bubblewrap takes a path: a relative one is from the root, and `..` stays in it, to be resolved by the kernel under
    /// the new root, where it can't lead out. Such a path is for the sandbox alone: compared as text it says little.
    ///
    /// # Errors
    /// [`PathError`] for a NUL byte, or more than 4095 bytes.
    pub fn traversing(path: impl AsRef<Path>) -> Result<Self, PathError> {
        Self::normalise(&Path::new("/").join(path), true)
    }

    fn normalise(path: &Path, traversing: bool) -> Result<Self, PathError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.contains(&0) {
            return Err(PathError::Nul(path.to_owned()));
        }
        if bytes.len() > PATH_MAX {
            return Err(PathError::TooLong(bytes.len()));
        }
        let mut normal = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => normal.push(name),
                Component::ParentDir if traversing => normal.push(".."),
                Component::ParentDir => return Err(PathError::ParentComponent(path.to_owned())),
                Component::Prefix(_) => return Err(PathError::Relative(path.to_owned())),
            }
        }
        if !path.is_absolute() {
            return Err(PathError::Relative(path.to_owned()));
        }
        Ok(Self(normal.into_os_string()))
    }

    /// The root.
    pub fn root() -> Self {
        Self(OsString::from("/"))
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Whether it is `/`, or could turn out to be, by its `..`.
    pub fn may_be_root(&self) -> bool {
        self.is_root() || self.as_path().components().any(|component| component == Component::ParentDir)
    }

    /// A path below this one. `name` is one or more components that are known to be plain.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> Self {
        let mut path = PathBuf::from(&self.0);
        for component in name.as_ref().components() {
            if let Component::Normal(name) = component {
                path.push(name);
            }
        }
        Self(path.into_os_string())
    }

    /// The directory that it lies in; none for the root.
    pub fn parent(&self) -> Option<SandboxPath> {
        self.as_path().parent().map(|parent| Self(parent.as_os_str().to_owned()))
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// As raw text.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// Whether `self` is `ancestor` or lies below it.
    pub fn is_under(&self, ancestor: &SandboxPath) -> bool {
        self.below(ancestor).is_some()
    }

    /// What of this path lies below `ancestor`: a relative path, empty for `ancestor` itself.
    pub fn below(&self, ancestor: &SandboxPath) -> Option<&Path> {
        let bytes = self.0.as_bytes();
        let rest = match ancestor.0.as_bytes() {
            b"/" => bytes.strip_prefix(b"/")?,
            prefix => match bytes.strip_prefix(prefix)? {
                [b'/', rest @ ..] => rest,
                [] => &[],
                _ => return None,
            },
        };
        Some(Path::new(OsStr::from_bytes(rest)))
    }

    /// For system calls. The constructor refused NUL bytes, so nothing is lost.
    pub fn to_cstring(&self) -> CString {
        CString::new(self.0.as_bytes()).unwrap_or_default()
    }
}

impl AsRef<Path> for SandboxPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl Serialize for SandboxPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string_lossy())
    }
}

impl fmt::Debug for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_path().display(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_dots_are_normalised() {
        assert_eq!(SandboxPath::new("//usr/./bin//").unwrap().as_path(), Path::new("/usr/bin"));
        assert!(SandboxPath::new("/").unwrap().is_root());
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        assert!(matches!(SandboxPath::new("/a/../b"), Err(PathError::ParentComponent(_))));
        assert!(matches!(SandboxPath::new("etc"), Err(PathError::Relative(_))));
        assert!(matches!(SandboxPath::new("/a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(SandboxPath::new("/".repeat(5000)), Err(PathError::TooLong(_))));
    }

    #[test]
    fn bubblewraps_paths_start_at_the_root_and_keep_their_dots() {
        let path = |text| SandboxPath::traversing(text).unwrap();
        assert_eq!(path("tmp/./x").as_path(), Path::new("/tmp/x"));
        assert_eq!(path("/a/../b").as_path(), Path::new("/a/../b"));
        assert!(matches!(SandboxPath::traversing("a\0b"), Err(PathError::Nul(_))));
    }

    #[test]
    fn under_compares_whole_components() {
        let usr = SandboxPath::new("/usr").unwrap();
        assert!(SandboxPath::new("/usr/bin").unwrap().is_under(&usr));
        assert!(!SandboxPath::new("/usrlocal").unwrap().is_under(&usr));
    }
}

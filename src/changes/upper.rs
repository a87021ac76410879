//! The upper directory of an overlay, and the marks that overlayfs leaves in it
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::geteuid;
use xattr::FileExt;

use super::change::Node;
use super::tree::{Meta, Tree};

/// Attributes of a mount with `userxattr`, as Shannot makes them all. A command can't set them inside: overlayfs keeps them to
/// itself. `trusted.overlay.*` are other overlays', whose layers lie in the workspace (Docker's), and mean nothing here.
const SPACE: &str = "user";

/// Permissions that were taken away for the owner's own look, by inode: noted before they are changed, so that they are
/// known after any interruption.
#[derive(Debug)]
pub(super) struct Modes {
    known: HashMap<u64, u32>,
    /// Where they are noted.
    file: File,
}

impl Modes {
    /// Lines of inode and octal mode; one that was cut off by a kill was never acted on.
    pub(super) fn new(file: File, text: &str) -> Self {
        let parse = |line: &str| {
            let (inode, mode) = line.split_once(' ')?;
            Some((inode.parse().ok()?, u32::from_str_radix(mode.strip_suffix(" .\n")?, 8).ok()?))
        };
        let mut known = HashMap::new();
        for (inode, mode) in text.split_inclusive('\n').filter_map(parse) {
            known.entry(inode).or_insert(mode);
        }
        Self { known, file }
    }

    fn note(&mut self, inode: u64, mode: u32) -> io::Result<()> {
        // On a line of its own, whatever was cut off before, and with a mark of its end.
        self.file.write_all(format!("\n{inode} {mode:o} .\n").as_bytes())?;
        self.known.insert(inode, mode);
        Ok(())
    }
}

/// What a folder of the upper directory says of the one below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FolderMarks {
    /// Nothing of what is below is seen.
    pub(super) is_opaque: bool,
    /// Files in it may be whiteouts by attribute.
    has_attribute_whiteouts: bool,
}

/// An upper directory.
#[derive(Debug)]
pub(super) struct Upper {
    pub(super) tree: Tree,
    modes: Modes,
}

/// The name of an attribute that this does not understand.
pub(super) type Foreign = &'static str;

impl Upper {
    pub(super) fn new(root: OwnedFd, modes: Modes) -> nix::Result<Self> {
        Ok(Self { tree: Tree::new(root)?, modes })
    }

    /// lstat(2), with the permissions that the command left; readable for the owner afterwards.
    pub(super) fn meta(&mut self, path: &Path) -> io::Result<Option<Meta>> {
        let Some(mut meta) = self.tree.meta(path)? else { return Ok(None) };
        let wanted = match meta.node {
            Node::Directory => 0o700,
            Node::File => 0o400,
            _ => return Ok(Some(meta)),
        };
        let now = meta.mode;
        if let Some(mode) = self.modes.known.get(&meta.inode) {
            meta.mode = *mode;
        }
        if now & wanted != wanted && !geteuid().is_root() {
            if !self.modes.known.contains_key(&meta.inode) {
                self.modes.note(meta.inode, now)?;
            }
            self.tree.chmod(path, now | wanted)?;
        }
        Ok(Some(meta))
    }

    /// The marks of a folder.
    pub(super) fn folder_marks(&mut self, path: &Path) -> io::Result<Result<FolderMarks, Foreign>> {
        let folder = self.tree.open_folder(path)?;
        if has(&folder, "overlay.redirect")? {
            return Ok(Err("overlay.redirect"));
        }
        let mut marks = FolderMarks { is_opaque: false, has_attribute_whiteouts: false };
        match attribute(&folder, "overlay.opaque")?.as_deref() {
            Some(b"y") => marks.is_opaque = true,
            Some(b"x") => marks.has_attribute_whiteouts = true,
            _ => {}
        }
        Ok(Ok(marks))
    }

    /// Whether an entry of a folder with these marks says that there is nothing. Looks into files, for what they may not have.
    pub(super) fn is_whiteout(
        &mut self,
        path: &Path,
        meta: &Meta,
        marks: FolderMarks,
    ) -> io::Result<Result<bool, Foreign>> {
        if meta.is_whiteout {
            return Ok(Ok(true));
        }
        if meta.node != Node::File {
            return Ok(Ok(false));
        }
        let file = self.tree.file(path)?;
        for foreign in ["overlay.metacopy", "overlay.redirect"] {
            if has(&file, foreign)? {
                return Ok(Err(foreign));
            }
        }
        Ok(Ok(marks.has_attribute_whiteouts && meta.size == 0 && has(&file, "overlay.whiteout")?))
    }
}

fn has(file: &File, name: &str) -> io::Result<bool> {
    Ok(attribute(file, name)?.is_some())
}

fn attribute(file: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    match file.get_xattr(OsStr::new(&format!("{SPACE}.{name}"))) {
        // A file system without such attributes has none.
        Err(error) if error.raw_os_error() == Some(Errno::ENOTSUP as i32) => Ok(None),
        result => result,
    }
}

//! Copies one path out of what the command saw: the upper directory over the workspace.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::change::Node;
use super::content;
use super::error::{Error, at, at_errno};
use super::tree::{FOLDER, LONGEST, Meta, Tree, length};
use super::upper::{FolderMarks, Upper};

/// Something of an artifact that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Relative to the workspace.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// A folder as the command saw it.
#[derive(Debug, Clone)]
struct Seen {
    path: PathBuf,
    /// The upper directory has it, with these marks.
    upper: Option<FolderMarks>,
    /// The workspace's folder shows through.
    has_lower: bool,
}

/// An entry of one.
struct Entry {
    meta: Meta,
    in_upper: bool,
    /// Of a folder.
    folder: Option<Seen>,
}

struct Merged<'a> {
    upper: &'a mut Upper,
    workspace: &'a mut Tree,
}

impl Merged<'_> {
    fn marks(&mut self, path: &Path) -> Result<FolderMarks, Error> {
        let foreign = |attribute| Error::Foreign { path: path.to_owned(), attribute };
        self.upper.folder_marks(path).map_err(at("look into", path))?.map_err(foreign)
    }

    fn root(&mut self) -> Result<Seen, Error> {
        let marks = self.marks(Path::new(""))?;
        Ok(Seen { path: PathBuf::new(), upper: Some(marks), has_lower: !marks.is_opaque })
    }

    fn entry(&mut self, folder: &Seen, name: &OsStr) -> Result<Option<Entry>, Error> {
        let path = folder.path.join(name);
        let look = at("look at", &path);
        let lower =
            if folder.has_lower { self.workspace.meta(&path).map_err(|errno| look(errno.into()))? } else { None };
        let upper = match folder.upper {
            Some(marks) => self.upper.meta(&path).map_err(&look)?.map(|meta| (meta, marks)),
            None => None,
        };
        let lower_is_folder = lower.is_some_and(|meta| meta.node == Node::Directory);
        let Some((meta, marks)) = upper else {
            let seen = || Seen { path: path.clone(), upper: None, has_lower: true };
            return Ok(lower.map(|meta| Entry { meta, in_upper: false, folder: lower_is_folder.then(seen) }));
        };
        let foreign = |attribute| Error::Foreign { path: path.clone(), attribute };
        if self.upper.is_whiteout(&path, &meta, marks).map_err(&look)?.map_err(foreign)? {
            return Ok(None);
        }
        let folder = match meta.node {
            Node::Directory => {
                let marks = self.marks(&path)?;
                Some(Seen { has_lower: lower_is_folder && !marks.is_opaque, upper: Some(marks), path })
            }
            _ => None,
        };
        Ok(Some(Entry { meta, in_upper: true, folder }))
    }

    fn names(&mut self, folder: &Seen) -> Result<BTreeSet<OsString>, Error> {
        let look = at_errno("look into", &folder.path);
        let mut names = BTreeSet::new();
        if folder.upper.is_some() {
            names.extend(self.upper.tree.names(&folder.path).map_err(&look)?);
        }
        if folder.has_lower {
            names.extend(self.workspace.names(&folder.path).map_err(&look)?);
        }
        Ok(names)
    }

    fn tree(&mut self, entry: &Entry) -> &mut Tree {
        if entry.in_upper { &mut self.upper.tree } else { self.workspace }
    }

    /// Copies what is no folder. What is left out is said.
    fn copy(
        &mut self,
        entry: &Entry,
        path: &Path,
        to: BorrowedFd<'_>,
        name: &OsStr,
        depth: usize,
    ) -> io::Result<Option<String>> {
        match entry.meta.node {
            Node::File => {
                let from = self.tree(entry).file(path)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                if let Err(error) = content::copy(&from, &file) {
                    // Half a file is worse than none.
                    unlinkat(to, name, UnlinkatFlags::NoRemoveDir)?;
                    return Err(error);
                }
                let (seconds, nanoseconds) = entry.meta.mtime;
                futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::new(seconds, nanoseconds))?;
                fchmod(&file, Mode::from_bits_truncate(entry.meta.mode & 0o777))?;
            }
            Node::Link => {
                let text = self.tree(entry).link(path)?;
                if leads_out(Path::new(&text), depth) {
                    return Ok(Some("a symbolic link that leads out".to_owned()));
                }
                symlinkat(text.as_os_str(), to, name)?;
            }
            node => return Ok(Some(format!("a {}", node.name()))),
        }
        Ok(None)
    }
}

/// Whether a link that lies `depth` folders deep may lead further up than that. Once it has gone down it must not go up
/// again: what it went through may be a link too.
fn leads_out(text: &Path, depth: usize) -> bool {
    let mut up = 0;
    let mut has_gone_down = false;
    for part in text.components() {
        match part {
            Component::ParentDir if has_gone_down => return true,
            Component::ParentDir => up += 1,
            Component::Normal(_) => has_gone_down = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return true,
        }
    }
    up > depth
}

pub(super) fn copy(
    upper: &mut Upper,
    workspace: &mut Tree,
    path: &Path,
    destination: &Path,
) -> Result<Vec<LeftOut>, Error> {
    let mut merged = Merged { upper, workspace };
    let mut folder = merged.root()?;
    let mut entry = None;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let none = || Error::NoArtifact(path.to_owned());
        let found = merged.entry(&folder, name)?.ok_or_else(none)?;
        if names.peek().is_some() {
            folder = found.folder.ok_or_else(none)?;
        } else if let Some(last) = &found.folder {
            folder = last.clone();
            entry = None;
        } else {
            entry = Some(found);
        }
    }
    let (parent, name) = place(destination)?;
    let write = at("write", destination);
    if let Some(entry) = entry {
        let depth = path.iter().count().saturating_sub(1);
        let left = merged.copy(&entry, path, parent.as_fd(), &name, depth).map_err(write)?;
        return Ok(left.map(|why| LeftOut { path: path.to_owned(), why }).into_iter().collect());
    }
    mkdirat(&parent, name.as_os_str(), Mode::S_IRWXU).map_err(|errno| write(errno.into()))?;
    let top = openat(&parent, name.as_os_str(), OFlag::O_PATH | FOLDER, Mode::empty());
    let top = top.and_then(Tree::new).map_err(|errno| write(errno.into()))?;
    copy_folder(&mut merged, folder, top)
}

/// The folder that it is to lie in, and its name there.
fn place(destination: &Path) -> Result<(OwnedFd, OsString), Error> {
    let refused = at_errno("write", destination);
    let name = destination.file_name().ok_or_else(|| refused(Errno::EEXIST))?;
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    Ok((parent.map_err(refused)?, name.to_owned()))
}

fn copy_folder(merged: &mut Merged<'_>, top: Seen, mut to: Tree) -> Result<Vec<LeftOut>, Error> {
    let base = top.path.clone();
    let mut left = Vec::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    let mut todo = vec![top];
    while let Some(folder) = todo.pop() {
        let relative = folder.path.strip_prefix(&base).unwrap_or(Path::new("")).to_owned();
        if relative.as_os_str().is_empty() {
            let meta = if folder.upper.is_some() {
                merged.upper.meta(&base)
            } else {
                merged.workspace.meta(&base).map_err(Into::into)
            };
            let mode = meta.map_err(at("look at", &base))?.map_or(0o755, |meta| meta.mode);
            folders = vec![(PathBuf::new(), mode)];
        }
        let depth = relative.iter().count();
        for name in merged.names(&folder)? {
            let path = folder.path.join(&name);
            let write = at("copy", &path);
            let Some(entry) = merged.entry(&folder, &name)? else { continue };
            if length(&path) > LONGEST {
                left.push(LeftOut { path, why: "the path is too long".to_owned() });
                continue;
            }
            let held = to.folder(&relative).map_err(|errno| write(errno.into()))?;
            if let Some(seen) = entry.folder {
                mkdirat(held, name.as_os_str(), Mode::S_IRWXU).map_err(|errno| write(errno.into()))?;
                folders.push((relative.join(&name), entry.meta.mode));
                todo.push(seen);
            } else if let Some(why) = merged.copy(&entry, &path, held, &name, depth).map_err(write)? {
                left.push(LeftOut { path, why });
            }
        }
    }
    // The deepest first: without permissions there is no way to what is below.
    for (path, mode) in folders.iter().rev() {
        let folder = to.open_folder(path).map_err(at_errno("copy", path))?;
        fchmod(&folder, Mode::from_bits_truncate(mode & 0o777)).map_err(at_errno("copy", path))?;
    }
    left.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(left)
}
